//! The component side: exports for the platform, wasi-nn for models.

use crate::__private::{Handle, Init};
use crate::error::Error;
use crate::http::{Request, Response};
use crate::tensor::{Tensor, TensorType};
use std::io::{Read, Write};
use std::marker::PhantomData;
pub use wasip2;
use wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

/// Generated from `wit/`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]
pub mod bindings {
    pub mod nn {
        wit_bindgen::generate!({ path: "../wit/nn/wasi-nn.wit", world: "ml", generate_all });
    }
    pub mod logging {
        wit_bindgen::generate!({ path: "../wit/logging", world: "imports" });
    }
    pub mod lifecycle {
        wit_bindgen::generate!({
            path: "../wit/guest",
            world: "initialised",
            pub_export_macro: true,
            default_bindings_module: "::fnctl_sdk::__private::bindings::lifecycle",
        });
    }
}
use bindings::nn::wasi::nn::{errors, graph, inference, tensor};

/// Exports a handler from the component.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_handler {
    ($handler:ty) => {
        type HttpExport = $crate::__private::HttpExport<$handler>;
        $crate::__private::wasip2::http::proxy::export!(HttpExport with_types_in $crate::__private::wasip2);
    };
}

/// Exports an init from the component.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_init {
    ($init:ty) => {
        type LifecycleExport = $crate::__private::LifecycleExport<$init>;
        $crate::__private::bindings::lifecycle::export!(LifecycleExport with_types_in $crate::__private::bindings::lifecycle);
    };
}

/// `wasi:http/incoming-handler` over a handler.
pub struct HttpExport<H>(PhantomData<H>);

impl<H: Handle + 'static> wasip2::exports::http::incoming_handler::Guest for HttpExport<H> {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let response = match read(request) {
            Ok(request) => H::handle(request),
            Err(error) => error.into_response(),
        };
        write(response, out);
    }
}

/// `fnctl:guest/lifecycle` over an init.
pub struct LifecycleExport<I>(PhantomData<I>);

impl<I: Init + 'static> bindings::lifecycle::exports::fnctl::guest::lifecycle::Guest
    for LifecycleExport<I>
{
    fn init() -> Result<(), String> {
        I::init().map_err(|error| error.to_string())
    }
}

fn read(incoming: IncomingRequest) -> Result<Request, Error> {
    let method = match incoming.method() {
        Method::Get => "GET".to_owned(),
        Method::Head => "HEAD".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Delete => "DELETE".to_owned(),
        Method::Connect => "CONNECT".to_owned(),
        Method::Options => "OPTIONS".to_owned(),
        Method::Trace => "TRACE".to_owned(),
        Method::Patch => "PATCH".to_owned(),
        Method::Other(other) => other,
    };
    let path = incoming.path_with_query().unwrap_or_else(|| "/".to_owned());
    let headers = incoming.headers().entries();
    let mut body = Vec::new();
    if let Ok(stream) = incoming.consume() {
        let stream = stream
            .stream()
            .map_err(|()| Error::internal("the body's stream is taken"))?;
        let mut stream = stream;
        stream
            .read_to_end(&mut body)
            .map_err(|error| Error::bad_request(format!("the body broke off: {error}")))?;
    }
    Ok(Request {
        method,
        path,
        headers,
        body,
    })
}

fn write(response: Response, out: ResponseOutparam) {
    let headers = Fields::new();
    for (name, value) in &response.headers {
        // A header that HTTP or the host forbids is left out; the answer matters more.
        let _ = headers.append(name, value);
    }
    let _ = headers.set(
        "content-length",
        &[response.body.len().to_string().into_bytes()],
    );
    let outgoing = OutgoingResponse::new(headers);
    if outgoing.set_status_code(response.status).is_err() {
        let _ = outgoing.set_status_code(500);
    }
    let Ok(body) = outgoing.body() else { return };
    ResponseOutparam::set(out, Ok(outgoing));
    if let Ok(mut stream) = body.write() {
        // A caller that is gone needs no rest.
        if stream.write_all(&response.body).is_ok() {
            let _ = stream.flush();
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

/// A model that is ready to compute.
pub(crate) struct Context(inference::GraphExecutionContext);

fn failed(error: errors::Error) -> Error {
    match error.code() {
        errors::ErrorCode::InvalidArgument => Error::bad_request(error.data()),
        errors::ErrorCode::Timeout => Error::new(504, error.data()),
        _ => Error::internal(error.data()),
    }
}

impl Context {
    pub(crate) fn load(name: &str) -> Result<Self, Error> {
        let graph = graph::load_by_name(name).map_err(failed)?;
        graph.init_execution_context().map(Self).map_err(failed)
    }

    pub(crate) fn compute(
        &self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let inputs = inputs
            .into_iter()
            .map(|(name, input)| {
                (
                    name,
                    tensor::Tensor::new(&input.dimensions, to_wit(input.ty), &input.data),
                )
            })
            .collect();
        let outputs = self.0.compute(inputs).map_err(failed)?;
        Ok(outputs
            .into_iter()
            .map(|(name, output)| {
                let tensor = Tensor {
                    dimensions: output.dimensions(),
                    ty: from_wit(output.ty()),
                    data: output.data(),
                };
                (name, tensor)
            })
            .collect())
    }
}

fn to_wit(ty: TensorType) -> tensor::TensorType {
    match ty {
        TensorType::Fp16 => tensor::TensorType::Fp16,
        TensorType::Fp32 => tensor::TensorType::Fp32,
        TensorType::Fp64 => tensor::TensorType::Fp64,
        TensorType::Bf16 => tensor::TensorType::Bf16,
        TensorType::U8 => tensor::TensorType::U8,
        TensorType::I32 => tensor::TensorType::I32,
        TensorType::I64 => tensor::TensorType::I64,
    }
}

fn from_wit(ty: tensor::TensorType) -> TensorType {
    match ty {
        tensor::TensorType::Fp16 => TensorType::Fp16,
        tensor::TensorType::Fp32 => TensorType::Fp32,
        tensor::TensorType::Fp64 => TensorType::Fp64,
        tensor::TensorType::Bf16 => TensorType::Bf16,
        tensor::TensorType::U8 => TensorType::U8,
        tensor::TensorType::I32 => TensorType::I32,
        tensor::TensorType::I64 => TensorType::I64,
    }
}
