#!/usr/bin/env bash
# Makes a private Rust sysroot with std for wasm32-wasip1 in the folder $1, for machines where `rustup target add` cannot
# reach its server. Needs apt (Debian 12 or later, as root or with a readable archive cache) and the Rust package registry; installs nothing
# system-wide. Takes about a minute.
#
# Debian packages a rustc, its std sources and wasi-libc. They are unpacked into the folder, std is built once for the Wasm
# target, and its rlibs are put where that rustc looks for them. cargo and the linkers stay those of the installed toolchain.
set -euo pipefail

folder=$(realpath -m "${1:?usage: wasm-sysroot.sh FOLDER}")
target=wasm32-wasip1
host=$(rustc -vV | sed -n 's/^host: //p')
[ -f "$folder/.done" ] && exit 0

command -v apt-get >/dev/null || { echo "no apt here; install the Wasm target with: rustup target add wasm32-wasip1" >&2; exit 1; }
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p'; }
[ -n "$(candidate rustc-web)" ] || apt-get update -qq
version=$(candidate rustc-web)
[ -n "$version" ] || { echo "this Debian has no rustc-web package; use: rustup target add wasm32-wasip1" >&2; exit 1; }
series=$(echo "$version" | cut -d. -f1,2)

rm -rf "$folder"
mkdir -p "$folder/packages" "$folder/root" "$folder/bin" "$folder/seed/src"
chmod 777 "$folder/packages"
(
    cd "$folder/packages"
    llvm=$(apt-cache depends "libstd-rust-web-$series" | sed -n 's/^ *Depends: \(libllvm[0-9]*\)$/\1/p' | head -n 1)
    apt-get download -qq "rustc-web=$version" "rust-web-src=$version" "libstd-rust-web-dev=$version" \
        "libstd-rust-web-$series=$version" "$llvm" wasi-libc
)
for package in "$folder"/packages/*.deb; do
    case $package in
        */rust-web-src_*)
            # Only the library: the compiler's own sources are large and not needed.
            dpkg --fsys-tarfile "$package" |
                tar -x -C "$folder/root" --wildcards './usr/lib/rustlib/*' '*/library/*' --exclude='*/stdarch/crates/core_arch/src/*/test*'
            ;;
        *) dpkg -x "$package" "$folder/root" ;;
    esac
done
rm -rf "$folder/packages"

usr=$folder/root/usr
toolchain=$(dirname "$(dirname "$(rustup which rustc 2>/dev/null || command -v rustc)")")
mkdir -p "$usr/lib/rustlib/$target/lib/self-contained"
# A link, not a copy: rust-lld looks for libLLVM beside the place it really is at.
ln -s "$(realpath "$toolchain/lib/rustlib/$host/bin")" "$usr/lib/rustlib/$host/bin"
cp "$usr"/lib/wasm32-wasi/{crt1.o,crt1-command.o,crt1-reactor.o,libc.a} "$usr/lib/rustlib/$target/lib/self-contained/"
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/lib/%s exec %s/bin/rustc "$@"\n' "$usr" "$(gcc -dumpmachine 2>/dev/null || echo x86_64-linux-gnu)" "$usr" >"$folder/bin/rustc"
chmod +x "$folder/bin/rustc"

printf '[package]\nname = "seed"\nversion = "0.0.0"\nedition = "2021"\n[profile.release]\nopt-level = "s"\npanic = "abort"\n[workspace]\n' >"$folder/seed/Cargo.toml"
: >"$folder/seed/src/lib.rs"
RUSTC=$folder/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Cembed-bitcode=yes" cargo build -q --release \
    --manifest-path "$folder/seed/Cargo.toml" --target-dir "$folder/seed/target" -Z build-std=std,panic_abort --target "$target"
rm -f "$folder/seed/target/$target/release/deps/"libseed*
cp "$folder/seed/target/$target/release/deps/"lib*.rlib "$usr/lib/rustlib/$target/lib/"
rm -rf "$folder/seed"
touch "$folder/.done"
