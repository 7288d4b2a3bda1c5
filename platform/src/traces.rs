//! Where spans go: the OpenTelemetry SDK batches them on a thread of its own and sends them by OTLP. A collector that is
//! slow or gone costs spans, never an invocation.

use async_trait::async_trait;
use fnctl_core::trace::Tracer;
use fnctl_gateway::Tracing;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Most time for sending one batch.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What an operator may set about traces.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the collector listens; nothing is recorded without it.
    pub endpoint: Option<String>,
    /// How to talk to it.
    pub protocol: Protocol,
    /// Share of invocations that are recorded, from 0 to 1.
    pub ratio: f64,
    /// Whether a caller's own decision is followed.
    pub follow_caller: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::Http,
            ratio: 0.01,
            follow_caller: true,
        }
    }
}

/// The two transports of OTLP that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf over HTTP/1.1, usually port 4318.
    Http,
    /// gRPC, usually port 4317.
    Grpc,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        })
    }
}

impl FromStr for Protocol {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "http" => Ok(Self::Http),
            "grpc" => Ok(Self::Grpc),
            _ => Err("write http or grpc"),
        }
    }
}

/// The exporter of a platform.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracing: Tracing,
}

impl Traces {
    /// Starts exporting, if an endpoint is set. To be called within the runtime, which drives gRPC.
    pub(crate) fn start(config: &Config) -> Result<Option<Self>, crate::StartError> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        let exporter =
            exporter(endpoint, config.protocol).map_err(|source| crate::StartError::Traces {
                endpoint: endpoint.clone(),
                source,
            })?;
        let resource = Resource::builder()
            .with_service_name("fnctl")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            // The gateway decides; what it begins is recorded.
            .with_sampler(Sampler::AlwaysOn)
            .build();
        let tracer = Tracer::new(Box::new(provider.tracer("fnctl")));
        let tracing = Tracing {
            tracer: Arc::new(tracer),
            ratio: config.ratio,
            follow_caller: config.follow_caller,
        };
        Ok(Some(Self { provider, tracing }))
    }

    /// What the gateway begins traces with.
    pub(crate) fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }

    /// Sends what is left, for a moment.
    pub(crate) async fn stop(self) {
        let provider = self.provider;
        let shutdown = tokio::task::spawn_blocking(move || {
            provider.shutdown_with_timeout(Duration::from_secs(2))
        });
        if let Ok(Err(error)) = shutdown.await {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

fn exporter(
    endpoint: &str,
    protocol: Protocol,
) -> Result<SpanExporter, opentelemetry_otlp::ExporterBuildError> {
    match protocol {
        Protocol::Http => {
            // The signal's path, unless somebody wrote one (OTLP specification, "Endpoint URLs for OTLP/HTTP").
            let root = endpoint.trim_end_matches('/');
            let has_path = root.splitn(4, '/').nth(3).is_some();
            let url = if has_path {
                root.to_owned()
            } else {
                format!("{root}/v1/traces")
            };
            SpanExporter::builder()
                .with_http()
                .with_http_client(UreqClient::new())
                .with_endpoint(url)
                .with_timeout(SEND_TIMEOUT)
                .build()
        }
        Protocol::Grpc => {
            let builder = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(SEND_TIMEOUT);
            if endpoint.starts_with("https://") {
                let tls = opentelemetry_otlp::tonic_types::transport::ClientTlsConfig::new();
                builder.with_tls_config(tls.with_webpki_roots()).build()
            } else {
                builder.build()
            }
        }
    }
}

/// Sends on the exporter's own thread, which may block.
#[derive(Debug)]
struct UreqClient(ureq::Agent);

impl UreqClient {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(SEND_TIMEOUT))
            .http_status_as_error(false)
            .build();
        Self(config.into())
    }
}

#[async_trait]
impl HttpClient for UreqClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = response.into_parts();
        let bytes = body.with_config().limit(1 << 20).read_to_vec()?;
        Ok(Response::from_parts(parts, bytes.into()))
    }
}
