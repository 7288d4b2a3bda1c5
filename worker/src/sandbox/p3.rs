//! One request through `wasi:http/handler@0.3`: an async call that returns the response, after which the guest may go on
//! in tasks of its own, among them the one that writes the response's body.
//!
//! The run is over when the guest has no task left and the body is gone, read to its end or dropped: bodies that the
//! guest only passes on (its request's, or that of an outgoing request) need the sandbox as long. Nothing here waits by
//! itself: Wasmtime does not promise to poll what runs inside its event loop, so deadline and cancellation are watched
//! from outside of it.

use super::component::{Answer, body_error};
use crate::cpu::CpuMeter;
use crate::failure::run_failure;
use crate::state::ComponentState;
use fnctl_core::{Body, ErrorKind, Failure};
use http::uri::{Authority, Scheme};
use http_body_util::BodyExt;
use std::future::poll_fn;
use tokio_util::sync::CancellationToken;
use wasmtime::{AsContextMut, Store};
use wasmtime_wasi_http::p3::Request;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{FieldMap, WasiHttpView};

/// Handles of one sandbox at most: resources, streams, futures, subtasks. Each costs the host some hundred bytes.
const MAX_HANDLES: usize = 16_384;
/// What stands behind these handles on the host: both ends of a stream have an entry each, and so has what they share.
const MAX_ENTRIES: usize = 4 * MAX_HANDLES;

/// A guest that never drops what it opens must run out of handles before the host runs out of memory.
pub(super) fn arm(store: &mut Store<ComponentState>) {
    store.set_max_component_handles(MAX_HANDLES);
    if let Some(table) = store.as_context_mut().concurrent_resource_table() {
        table.set_max_capacity(MAX_ENTRIES);
    }
}

/// Calls the handler, and returns when nothing of it is left.
pub(super) async fn handle(
    store: &mut Store<ComponentState>,
    service: &Service,
    request: http::Request<Body>,
    answer: &Answer,
    meter: CpuMeter,
) -> Result<(), Failure> {
    let request = incoming(store.data_mut(), request)?;
    store.data_mut().guest.meter = Some(meter.clone());
    let gone = CancellationToken::new();
    let run = store.run_concurrent(async |accessor| {
        let result = match service.handle(accessor, request).await? {
            Ok(response) => {
                // What the guest may wait for: that its body was taken.
                let taken = gone.clone();
                let taken = async move {
                    taken.cancelled().await;
                    Ok(())
                };
                let converted = accessor.with(|store| response.into_http(store, taken));
                converted.map_err(|error| format!("{error:#}"))
            }
            Err(code) => Err(format!("{code:?}")),
        };
        answer.send(result, Some(gone.clone().drop_guard()));
        poll_fn(|ctx| accessor.poll_no_interesting_tasks(ctx)).await;
        gone.cancelled().await;
        wasmtime::Result::Ok(())
    });
    let outcome = meter.measure(run).await.and_then(|run| run);
    outcome.map_err(|error| run_failure(&error, &store.data().guest))
}

/// The request as the guest sees it. The host's name is no header there, it is the request's authority.
pub(super) fn incoming(
    state: &mut ComponentState,
    request: http::Request<Body>,
) -> Result<Request, Failure> {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get(http::header::HOST);
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => Ok(authority.clone()),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|e| e.to_string()),
        (None, None) => Err("no authority and no host header".to_owned()),
    }
    .map_err(|cause| {
        Failure::new(ErrorKind::BadRequest, "the request has no usable host").because(cause)
    })?;
    let headers = FieldMap::new_immutable(state.http().hooks, parts.headers);
    let path = parts.uri.path_and_query().cloned();
    let body = body.map_err(body_error);
    // How the guest fared with the body tells nobody here anything.
    let (request, _read) = Request::new(
        parts.method,
        Some(Scheme::HTTP),
        Some(authority),
        path,
        headers,
        None,
        body,
    );
    Ok(request)
}
