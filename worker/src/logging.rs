//! `wasi:logging@0.1.0-draft`, the WIT of WebAssembly/wasi-logging, for components.

use crate::guest_log::GuestLog;
use crate::sharing::attributed;
use crate::state::ComponentState;
use fnctl_core::log::LogLevel;
use wasmtime::StoreContextMut;
use wasmtime::component::{HasData, Linker};

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
mod bindings {
    wasmtime::component::bindgen!({
        world: "imports",
        path: "../wit/logging/logging.wit",
    });
}
use bindings::wasi::logging::logging;

struct HasLog;

impl HasData for HasLog {
    type Data<'a> = &'a mut GuestLog;
}

/// Adds the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    logging::add_to_linker::<_, HasLog>(linker, |state| &mut state.guest.log)
}

/// Adds a `log` that asks which request it is called for.
pub(crate) fn add_attributed(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker
        .instance("wasi:logging/logging@0.1.0-draft")?
        .func_wrap(
            "log",
            |mut store: StoreContextMut<'_, ComponentState>,
             (level, context, message): (logging::Level, String, String)| {
                attributed(&mut store, |store| {
                    let log = &mut store.data_mut().guest.log;
                    logging::Host::log(log, level, context, message);
                })
            },
        )
}

impl logging::Host for GuestLog {
    fn log(&mut self, level: logging::Level, context: String, message: String) {
        let level = match level {
            logging::Level::Trace => LogLevel::Trace,
            logging::Level::Debug => LogLevel::Debug,
            logging::Level::Info => LogLevel::Info,
            logging::Level::Warn => LogLevel::Warn,
            logging::Level::Error => LogLevel::Error,
            logging::Level::Critical => LogLevel::Critical,
        };
        self.levelled(level, &context, &message);
    }
}
