//! Log lines with levels, by the usual `log` crate: they become lines of the function's log, with the request's id.
//!
//! ```no_run
//! struct App;
//!
//! #[fnctl_sdk::init]
//! fn init() -> Result<App, fnctl_sdk::Error> {
//!     fnctl_sdk::logging::init(log::LevelFilter::Info);
//!     log::info!("ready");
//!     Ok(App)
//! }
//! # fn main() {}
//! ```
//!
//! On the platform they go through `wasi:logging`, on the host (`cargo test`) to stderr. A function that never calls
//! [`init`] does not import `wasi:logging`, and so runs on hosts without it. `println!` and `eprintln!` work too: they
//! count as info and warn.

use log::{LevelFilter, Log, Metadata, Record};

struct Platform;

/// Sends what is at least as serious as `max` to the function's log. To be called in `init`; once is enough.
pub fn init(max: LevelFilter) {
    // A second call finds the logger installed, and only changes the level.
    let _ = log::set_logger(&Platform);
    log::set_max_level(max);
}

impl Log for Platform {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            write(record);
        }
    }

    fn flush(&self) {}
}

#[cfg(target_family = "wasm")]
fn write(record: &Record<'_>) {
    use crate::wasm::bindings::logging::wasi::logging::logging;
    let level = match record.level() {
        log::Level::Trace => logging::Level::Trace,
        log::Level::Debug => logging::Level::Debug,
        log::Level::Info => logging::Level::Info,
        log::Level::Warn => logging::Level::Warn,
        log::Level::Error => logging::Level::Error,
    };
    logging::log(level, record.target(), &record.args().to_string());
}

#[cfg(not(target_family = "wasm"))]
#[allow(
    clippy::print_stderr,
    reason = "on the host a function's log is for whoever runs its tests"
)]
fn write(record: &Record<'_>) {
    eprintln!(
        "{:5} {}: {}",
        record.level(),
        record.target(),
        record.args()
    );
}
