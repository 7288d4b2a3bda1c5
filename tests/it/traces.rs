//! Spans as a collector receives them: the protobuf of OTLP, by HTTP and by gRPC.

use fnctl_platform::traces::Protocol;
use fnctl_tests::{Deployment, TestPlatform, probe};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Receives spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    fn take_in(&self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            assert!(
                attributes
                    .iter()
                    .any(|attribute| attribute.key == "service.name"),
                "the resource names its service"
            );
            for scope in resource.scope_spans {
                self.0.lock().extend(scope.spans);
            }
        }
    }

    async fn http(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let this = this.clone();
                let service = hyper::service::service_fn(move |request| {
                    let this = this.clone();
                    async move { this.receive(request).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        address
    }

    async fn receive(
        &self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
        assert_eq!(request.uri().path(), "/v1/traces");
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = request.into_body().collect().await?.to_bytes();
        self.take_in(ExportTraceServiceRequest::decode(body).unwrap());
        let answer = ExportTraceServiceResponse::default().encode_to_vec();
        Ok(http::Response::new(Full::from(answer)))
    }

    async fn grpc(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(service);
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            connection.await.unwrap();
        });
        address
    }

    /// The spans so far; complete after the platform was drained.
    fn spans(&self) -> Vec<Span> {
        self.0.lock().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take_in(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn traced(address: SocketAddr, protocol: Protocol, ratio: f64) -> TestPlatform {
    TestPlatform::start_with(|config| {
        config.traces.endpoint = Some(format!("http://{address}"));
        config.traces.protocol = protocol;
        config.traces.ratio = ratio;
    })
    .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "one span '{name}' in {:#?}", names(spans));
    found[0]
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let value = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| attribute.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("{key} of {}: {other:?}", span.name),
    }
}

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn call(platform: &TestPlatform, path: &str, traceparent: &str) {
    platform
        .client
        .send(http::Method::GET, path, &[("traceparent", traceparent)], "")
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_request_is_a_span_below_its_callers() {
    let collector = Collector::default();
    let mut platform = traced(collector.http().await, Protocol::Http, 0.0).await;
    platform.deploy_folder("examples/fraud").await;
    let body = fnctl_tests::file("examples/fraud/request.json");
    platform
        .client
        .send(
            http::Method::POST,
            "/fn/fraud",
            &[("traceparent", CALLER), ("x-request-id", "traced")],
            body,
        )
        .await
        .ok();
    assert!(platform.take().drain().await);

    let spans = collector.spans();
    let root = named(&spans, "invoke");
    assert_eq!(hex(&root.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&root.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(root.kind, 2, "SERVER");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("faas.name", "fraud"),
        ("faas.version", "1"),
        ("faas.coldstart", "true"),
        ("faas.invocation_id", "traced"),
    ] {
        assert_eq!(attribute(root, key), value);
    }
    for (parent, children) in [
        (
            "invoke",
            &["resolve", "admit", "acquire", "run", "respond"][..],
        ),
        // The deploy compiled it already.
        ("acquire", &["model", "instantiate", "init"]),
        ("run", &["compute"]),
    ] {
        let parent = named(&spans, parent);
        for child in children {
            let child = named(&spans, child);
            assert_eq!(child.parent_span_id, parent.span_id, "{}", child.name);
            assert_eq!(child.trace_id, root.trace_id);
            assert!(
                child.end_time_unix_nano >= child.start_time_unix_nano,
                "{}",
                child.name
            );
        }
    }
    assert_eq!(attribute(named(&spans, "run"), "fnctl.computes"), "1");
    let order = |name| named(&spans, name).start_time_unix_nano;
    assert!(order("admit") <= order("acquire") && order("acquire") <= order("run"));
    assert!(order("run") <= order("compute") && order("compute") <= order("respond"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_goes_on_through_outgoing_http_to_the_next_platform() {
    let collector = Collector::default();
    let address = collector.http().await;
    let mut far = traced(address, Protocol::Http, 0.0).await;
    far.deploy(Deployment::new("far", probe())).await;
    let mut near = traced(address, Protocol::Http, 0.0).await;
    let far_address = far.platform().address().to_string();
    near.deploy(Deployment::new("near", probe()).with("allow_hosts", vec![far_address.clone()]))
        .await;
    call(
        &near,
        &format!("/fn/near/fetch?{far_address}/fn/far/log"),
        CALLER,
    )
    .await;
    assert!(near.take().drain().await);
    assert!(far.take().drain().await);

    let spans = collector.spans();
    let call = named(&spans, "outgoing");
    assert_eq!(call.kind, 3, "CLIENT");
    assert_eq!(attribute(call, "server.address"), far_address);
    assert_eq!(attribute(call, "http.response.status_code"), "200");
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "invoke").collect();
    assert_eq!(roots.len(), 2);
    let (near, far) = match attribute(roots[0], "faas.name").as_str() {
        "near" => (roots[0], roots[1]),
        _ => (roots[1], roots[0]),
    };
    assert_eq!(far.parent_span_id, call.span_id);
    assert_eq!(far.trace_id, near.trace_id);
    assert_eq!(hex(&near.parent_span_id), "00f067aa0ba902b7");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_failures_and_sampling() {
    let collector = Collector::default();
    let mut platform = traced(collector.grpc().await, Protocol::Grpc, 1.0).await;
    platform.deploy(Deployment::new("probe", probe())).await;
    // Sampled: nobody said anything, and the ratio is 1. The trap marks its spans.
    assert_eq!(platform.call("probe/trap").await.status, 502);
    // Not sampled: the caller decided.
    call(&platform, "/fn/probe/log", &CALLER.replace("-01", "-00")).await;
    // What is no traceparent is no caller.
    call(&platform, "/fn/probe/log", "00-nonsense-01").await;
    assert!(platform.take().drain().await);

    let spans = collector.spans();
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "invoke").collect();
    assert_eq!(roots.len(), 2, "{:?}", names(&spans));
    assert!(roots.iter().all(|root| root.parent_span_id.is_empty()));
    let failed: Vec<_> = spans
        .iter()
        .filter(|span| span.status.as_ref().is_some_and(|status| status.code == 2))
        .map(|span| span.name.as_str())
        .collect();
    assert!(
        failed.contains(&"invoke") && failed.contains(&"run"),
        "{failed:?}"
    );
    let trapped = roots
        .iter()
        .find(|root| attribute(root, "http.response.status_code") == "502")
        .unwrap();
    assert_eq!(attribute(trapped, "error.type"), "trap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_costs_no_invocation() {
    let nowhere = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut platform = traced(nowhere, Protocol::Http, 1.0).await;
    platform.deploy(Deployment::new("probe", probe())).await;
    for _ in 0..20 {
        platform.call("probe/log").await.ok();
    }
    let since = std::time::Instant::now();
    assert!(platform.take().drain().await);
    assert!(
        since.elapsed() < std::time::Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
}
