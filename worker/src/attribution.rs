//! Host functions that ask which request they are called for, in the place of those that do not: output, logging,
//! inference and outgoing calls. What they do is left to the functions that they stand for.
//!
//! Only for the engine that can run several requests in one guest; a guest that serves one at a time passes through.

use crate::guest_log::Stream;
use crate::sharing::{attributed, begin_turn, end_turn};
use crate::state::ComponentState;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use wasmtime::component::{Access, Linker, Resource, StreamReader};
use wasmtime::{AsContextMut, StoreContextMut};
use wasmtime_wasi::cli::{WasiCli, WasiCliCtxView, WasiCliView};
use wasmtime_wasi::p2::DynOutputStream;
use wasmtime_wasi::p2::bindings::io::streams::{self, Host as _, HostOutputStream as _};
use wasmtime_wasi::p3::bindings::cli::{stderr, stdout};
use wasmtime_wasi_http::p3::bindings::http::client;
use wasmtime_wasi_http::p3::bindings::http::types::Request;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView};

type Written = wasmtime::Result<(Result<(), streams::StreamError>,)>;

/// Puts them in place.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_output(linker)?;
    add_output_of_0_3(linker)?;
    add_outgoing(linker)?;
    crate::logging::add_attributed(linker)?;
    crate::nn::wit::add_attributed(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn written(state: &mut ComponentState, result: wasmtime_wasi::p2::StreamResult<()>) -> Written {
    match result {
        Ok(()) => Ok((Ok(()),)),
        Err(error) => Ok((Err(state.table.convert_stream_error(error)?),)),
    }
}

/// `wasi:io` of 0.2, which is what the standard libraries print through.
fn add_output(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut streams = linker.instance("wasi:io/streams@0.2.12")?;
    streams.func_wrap(
        "[method]output-stream.write",
        |mut store: StoreContextMut<'_, ComponentState>,
         (stream, bytes): (Resource<DynOutputStream>, Vec<u8>)| {
            attributed(&mut store, |store| {
                let state = store.data_mut();
                let result = state.table.write(stream, bytes);
                written(state, result)
            })?
        },
    )?;
    streams.func_wrap_async(
        "[method]output-stream.blocking-write-and-flush",
        |mut store: StoreContextMut<'_, ComponentState>,
         (stream, bytes): (Resource<DynOutputStream>, Vec<u8>)| {
            Box::new(async move {
                begin_turn(&mut store)?;
                let state = store.data_mut();
                let result = state.table.blocking_write_and_flush(stream, bytes).await;
                let written = written(state, result);
                end_turn(&mut store);
                written
            })
        },
    )
}

fn cli(state: &mut ComponentState) -> WasiCliCtxView<'_> {
    state.cli()
}

/// `wasi:cli` of 0.3: the stream belongs to whoever hands it over.
fn add_output_of_0_3(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    for stream in [Stream::Stdout, Stream::Stderr] {
        let name = match stream {
            Stream::Stdout => "wasi:cli/stdout@0.3.0",
            Stream::Stderr => "wasi:cli/stderr@0.3.0",
        };
        linker.instance(name)?.func_wrap(
            "write-via-stream",
            move |mut store: StoreContextMut<'_, ComponentState>, (data,): (StreamReader<u8>,)| {
                attributed(&mut store, |store| {
                    let access = Access::<_, WasiCli>::new(store.as_context_mut(), cli);
                    let done = match stream {
                        Stream::Stdout => {
                            <WasiCli as stdout::HostWithStore<_>>::write_via_stream(access, data)
                        }
                        Stream::Stderr => {
                            <WasiCli as stderr::HostWithStore<_>>::write_via_stream(access, data)
                        }
                    };
                    done.map(|done| (done,))
                })?
            },
        )?;
    }
    Ok(())
}

/// `wasi:http` of 0.3: the call is sent when it is first polled, and then it is known whose it is.
fn add_outgoing(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker
        .instance("wasi:http/client@0.3.0")?
        .func_wrap_concurrent("send", |accessor, (request,): (Resource<Request>,)| {
            Box::pin(async move {
                let http = accessor.with_getter::<WasiHttp>(ComponentState::http);
                let mut sending =
                    pin!(<WasiHttp as client::HostWithStore<_>>::send(&http, request));
                let mut is_sent = false;
                let sent = poll_fn(|ctx| {
                    if std::mem::replace(&mut is_sent, true) {
                        return sending.as_mut().poll(ctx).map(Ok);
                    }
                    let began =
                        accessor.with(|mut access| begin_turn(&mut access.as_context_mut()));
                    if let Err(error) = began {
                        return Poll::Ready(Err(error));
                    }
                    let polled = sending.as_mut().poll(ctx);
                    accessor.with(|mut access| end_turn(&mut access.as_context_mut()));
                    polled.map(Ok)
                })
                .await;
                match sent? {
                    Ok(response) => Ok((Ok(response),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            })
        })
}
