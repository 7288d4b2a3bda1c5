//! What `fnctl new` writes is embedded in the binary; cargo does not see files that are added to those folders by itself.
#![allow(
    clippy::print_stdout,
    reason = "this is how a build script talks to cargo"
)]

fn main() {
    for folder in ["templates", "../sdk", "../wit"] {
        println!("cargo:rerun-if-changed={folder}");
    }
}
