#!/usr/bin/env bash
# Makes images that stand in for those of a registry, for `cargo xtask compose-test --standin` on a machine that cannot
# pull any: from Debian's packages and the installed Rust toolchain. Needs a Docker Engine, mmdebstrap and root.
# There is none for Grafana, which Debian does not package.
set -euo pipefail
docker=${DOCKER:-docker}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
has() { "$docker" image inspect "$1" >/dev/null 2>&1; }

if ! has fnctl-standin/debian; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/base.tar"
    "$docker" import "$work/base.tar" fnctl-standin/debian:bare >/dev/null
    rm "$work/base.tar"
    # A machine behind a proxy with a certificate authority of its own says so with SSL_CERT_FILE.
    mkdir "$work/debian"
    cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$work/debian/certificates.crt"
    "$docker" build --quiet --tag fnctl-standin/debian --file - "$work/debian" <<'DOCKERFILE'
FROM fnctl-standin/debian:bare
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt
DOCKERFILE
fi

if ! has fnctl-standin/prometheus; then
    mkdir "$work/prometheus"
    # The same programs, user and folders as in the real images, which come with busybox.
    "$docker" build --quiet --tag fnctl-standin/prometheus --file - "$work/prometheus" <<'DOCKERFILE'
FROM fnctl-standin/debian
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus prometheus-alertmanager busybox \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /bin/busybox /usr/local/bin/wget \
    && install -d -o 65534 -g 65534 /prometheus /alertmanager
USER 65534:65534
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
DOCKERFILE
    "$docker" build --quiet --tag fnctl-standin/alertmanager --file - "$work/prometheus" <<'DOCKERFILE'
FROM fnctl-standin/prometheus
WORKDIR /alertmanager
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
DOCKERFILE
fi

if [ "${1:-}" = rust ] && ! has fnctl-standin/rust:wasm; then
    mkdir "$work/rust"
    toolchain=$(rustc --print sysroot)
    tar -C "$toolchain" --exclude=share --exclude=lib/rustlib/src --exclude='lib/rustlib/wasm32*' -cf "$work/rust/toolchain.tar" .
    # The real image adds a Wasm target with rustup. Here `cargo xtask setup` has made a sysroot of packages, or has found
    # rustup's target; $2 is the sysroot's folder.
    mkdir -p "$work/rust/wasm" "$work/rust/target/lib/rustlib"
    host=$(rustc -vV | sed -n 's/^host: //p')
    if [ -d "$toolchain/lib/rustlib/wasm32-wasip1" ]; then
        cp -a "$toolchain/lib/rustlib/wasm32-wasip1" "$work/rust/target/lib/rustlib/"
    else
        cp -a "${2:?the folder of the Wasm sysroot}/." "$work/rust/wasm"
        ln -sfn "/usr/local/lib/rustlib/$host/bin" "$work/rust/wasm/root/usr/lib/rustlib/$host/bin"
        sed -i "s|$2|/opt/wasm-sysroot|g" "$work/rust/wasm/bin/rustc"
    fi
    # The four libraries are what the sysroot's compiler links to.
    cat > "$work/rust/Dockerfile" <<'DOCKERFILE'
FROM fnctl-standin/debian
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev pkg-config libedit2 libffi8 libxml2 libz3-4 \
    && rm -rf /var/lib/apt/lists/*
ADD toolchain.tar /usr/local/
COPY target /usr/local
COPY wasm /opt/wasm-sysroot
ENV FNCTL_WASM_SYSROOT=/opt/wasm-sysroot
DOCKERFILE
    "$docker" build --quiet --tag fnctl-standin/rust --tag fnctl-standin/rust:wasm "$work/rust"
fi
