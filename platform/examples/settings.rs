//! Prints the table of docs/config.md.
#![allow(clippy::print_stdout, reason = "its one purpose")]

fn main() {
    print!("{}", fnctl_platform::settings::documentation());
}
