//! A template: code that is compiled and linked, not instantiated. What kind of guest it is shows in its bytes.

use crate::engine::{Concurrency, GuestEngine};
use crate::sandbox::command::CommandState;
use crate::state::ComponentState;
use fnctl_core::ladder::{RungCost, Wishes};
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::sync::Arc;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wasmtime::{Engine, Module};
use wasmtime_wasi_http::p2::bindings::ProxyIndices;
use wasmtime_wasi_http::p3::bindings::ServiceIndices;

/// The export that initialises an instance; see `wit/guest/lifecycle.wit`.
const LIFECYCLE: &str = "fnctl:guest/lifecycle@0.1.0";

/// Compiled and linked code of one artifact.
pub(crate) struct Template {
    pub(crate) engine: GuestEngine,
    pub(crate) kind: TemplateKind,
    /// What loading it took, and the compiled code in memory.
    pub(crate) cost: RungCost,
    /// How long the functions that used it want it kept.
    pub(crate) wishes: Mutex<Wishes>,
}

/// The two kinds of guests.
pub(crate) enum TemplateKind {
    /// A component that exports `wasi:http/incoming-handler@0.2` or `wasi:http/handler@0.3`.
    Component(ComponentTemplate),
    /// A core module with a WASI p1 `_start`.
    Command(Arc<wasmtime::InstancePre<CommandState>>),
}

impl TemplateKind {
    /// Whether one instance can serve several requests at once: only what is called asynchronously can.
    pub(crate) const fn can_share(&self) -> bool {
        match self {
            Self::Component(component) => matches!(component.handler, HandlerIndices::P3(_)),
            Self::Command(_) => false,
        }
    }
}

/// A linked component.
pub(crate) struct ComponentTemplate {
    pub(crate) pre: InstancePre<ComponentState>,
    pub(crate) handler: HandlerIndices,
    /// The `init` function of the lifecycle export, if there is one.
    pub(crate) init: Option<ComponentExportIndex>,
}

/// Where a component's handler is, by the world that it was built for.
pub(crate) enum HandlerIndices {
    /// `wasi:http/incoming-handler@0.2`.
    P2(ProxyIndices),
    /// `wasi:http/handler@0.3`.
    P3(ServiceIndices),
}

impl HandlerIndices {
    /// A component that exports both is run as the newer one.
    fn find(pre: &InstancePre<ComponentState>) -> Result<Self, Failure> {
        let newer = match ServiceIndices::new(pre) {
            Ok(indices) => return Ok(Self::P3(indices)),
            Err(error) => error,
        };
        ProxyIndices::new(pre).map(Self::P2).map_err(|older| {
            Failure::new(
                ErrorKind::InvalidArtifact,
                "the component exports neither wasi:http/incoming-handler@0.2 nor wasi:http/handler@0.3, so it cannot \
                 answer requests; build it for the world wasi:http/proxy of WASI 0.2 or wasi:http/service of WASI 0.3.0 \
                 (not one of its release candidates)",
            )
            .because(format!("0.2: {older:#}; 0.3: {newer:#}"))
        })
    }
}

/// What the first bytes say an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestKind {
    Component,
    Command,
}

/// Detects the kind of a Wasm binary. The fourth to eighth byte are its version and layer.
pub(crate) fn detect(bytes: &[u8]) -> Result<GuestKind, Failure> {
    match (bytes.get(..4), bytes.get(4..8)) {
        (Some(b"\0asm"), Some([1, 0, 0, 0])) => Ok(GuestKind::Command),
        (Some(b"\0asm"), Some([_, _, 1, 0])) => Ok(GuestKind::Component),
        _ => Err(Failure::new(
            ErrorKind::InvalidArtifact,
            "the artifact is not a Wasm module or component; deploy the .wasm file that your toolchain wrote",
        )),
    }
}

impl GuestKind {
    /// Compiles an artifact to the bytes that the compile cache keeps.
    pub(crate) fn precompile(self, engine: &Engine, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let compiled = match self {
            Self::Component => engine.precompile_component(bytes),
            Self::Command => engine.precompile_module(bytes),
        };
        compiled.map_err(|error| invalid("the artifact does not compile", &error))
    }
}

fn invalid(what: &str, error: &wasmtime::Error) -> Failure {
    Failure::new(ErrorKind::InvalidArtifact, what.to_owned()).because(format!("{error:#}"))
}

/// Links every template; made once.
pub(crate) struct Linkers {
    component: Linker<ComponentState>,
    command: wasmtime::Linker<CommandState>,
}

impl Linkers {
    pub(crate) fn new(engine: &Engine, concurrency: Concurrency) -> Result<Self, Failure> {
        let build = || -> wasmtime::Result<Self> {
            let mut component = Linker::new(engine);
            wasmtime_wasi::p2::add_to_linker_async(&mut component)?;
            wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut component)?;
            if concurrency == Concurrency::With {
                wasmtime_wasi::p3::add_to_linker(&mut component)?;
                wasmtime_wasi_http::p3::add_to_linker(&mut component)?;
            }
            crate::nn::wit::add_to_linker(&mut component)?;
            crate::logging::add_to_linker(&mut component)?;
            if concurrency == Concurrency::With {
                crate::attribution::add_to_linker(&mut component)?;
            }
            let mut command = wasmtime::Linker::new(engine);
            wasmtime_wasi::p1::add_to_linker_async(&mut command, CommandState::wasi)?;
            crate::nn::witx::add_to_linker(&mut command)?;
            Ok(Self { component, command })
        };
        build().map_err(|error| Failure::internal(format!("{error:#}")))
    }

    pub(crate) fn component(&self, component: &Component) -> Result<ComponentTemplate, Failure> {
        let pre = self.component.instantiate_pre(component).map_err(|error| {
            invalid(
                "the component imports something this platform does not offer; it has wasi:cli, wasi:clocks, wasi:filesystem, \
                 wasi:http, wasi:random, wasi:sockets (all 0.2 and 0.3), wasi:io 0.2, wasi:nn 0.2.0-rc-2024-10-28 and \
                 wasi:logging 0.1.0-draft",
                &error,
            )
        })?;
        let handler = HandlerIndices::find(&pre)?;
        let init = component
            .get_export_index(None, LIFECYCLE)
            .and_then(|lifecycle| component.get_export_index(Some(&lifecycle), "init"));
        Ok(ComponentTemplate { pre, handler, init })
    }

    pub(crate) fn command(
        &self,
        module: &Module,
    ) -> Result<wasmtime::InstancePre<CommandState>, Failure> {
        if module
            .get_export("_start")
            .is_none_or(|export| export.func().is_none())
        {
            return Err(Failure::new(
                ErrorKind::InvalidArtifact,
                "the module exports no _start function; build a WASI command, or a component that exports wasi:http/incoming-handler@0.2 or wasi:http/handler@0.3",
            ));
        }
        self.command.instantiate_pre(module).map_err(|error| {
            invalid("the module imports something this platform does not offer; it has WASI preview 1 and wasi_ephemeral_nn", &error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_shows_in_the_first_bytes() {
        assert_eq!(detect(b"\0asm\x01\0\0\0rest").unwrap(), GuestKind::Command);
        assert_eq!(detect(b"\0asm\x0d\0\x01\0").unwrap(), GuestKind::Component);
        for bad in [
            &b""[..],
            b"\0asm",
            b"\x7fELF\x02\x01\x01\0",
            b"\0asm\x02\0\0\0",
            b"PK\x03\x04aaaa",
        ] {
            assert_eq!(detect(bad).unwrap_err().kind, ErrorKind::InvalidArtifact);
        }
    }
}
