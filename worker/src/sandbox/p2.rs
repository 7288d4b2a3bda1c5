//! One request through `wasi:http/incoming-handler@0.2`: a call that returns when the guest is done with everything.

use super::component::Answer;
use crate::failure::run_failure;
use crate::state::ComponentState;
use fnctl_core::{Body, ErrorKind, Failure};
use http_body_util::BodyExt;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

/// Calls the handler, and returns when it has returned.
pub(super) async fn handle(
    store: &mut Store<ComponentState>,
    proxy: &Proxy,
    request: http::Request<Body>,
    answer: &Answer,
) -> Result<(), Failure> {
    let request = request.map(|body| body.map_err(super::component::body_error));
    let mut view = store.data_mut().http();
    let request = view
        .new_incoming_request(Scheme::Http, request)
        .map_err(|error| {
            Failure::new(ErrorKind::BadRequest, "the request has no usable host")
                .because(format!("{error:#}"))
        })?;
    let sender = answer.clone();
    let response = view
        .new_response_outparam_from_callback(move |result| sender.send(result, None))
        .map_err(Failure::internal)?;
    let returned = proxy
        .wasi_http_incoming_handler()
        .call_handle(&mut *store, request, response)
        .await;
    match returned {
        Ok(()) if answer.is_sent() => Ok(()),
        Ok(()) => Err(Failure::new(
            ErrorKind::BadResponse,
            "the function returned without answering the request",
        )),
        Err(error) => Err(run_failure(&error, &store.data().guest)),
    }
}
