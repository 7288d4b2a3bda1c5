//! An instance of a WASI p1 command: template and models are held, and every request has a fresh store, since a
//! command runs once. Request body on stdin, the answer on stdout, CGI variables; exit code 0 is status 200 unless the
//! answer begins with a status of its own.

use super::{RunBounds, SyncBody, bounded, cgi};
use crate::failure::{self, run_failure, start_failure};
use crate::guest_log::GuestLog;
use crate::nn::NnContext;
use crate::nn::witx::{WitxHandles, WitxHost};
use crate::state::{self, Guest, GuestState};
use crate::template::Template;
use crate::thread_time::metered;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fnctl_core::inference::InferenceError;
use fnctl_core::ports::Sandbox;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, ReplySender, RunEnd, RunReport};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio_util::io::StreamReader;
use wasmtime::Store;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdoutStream};
use wasmtime_wasi::p1::WasiP1Ctx;

/// The store's data of a command.
pub(crate) struct CommandState {
    guest: GuestState,
    wasi: WasiP1Ctx,
    nn: WitxHandles,
}

impl CommandState {
    pub(crate) fn wasi(&mut self) -> &mut WasiP1Ctx {
        &mut self.wasi
    }
}

impl Guest for CommandState {
    fn guest(&mut self) -> &mut GuestState {
        &mut self.guest
    }
}

impl WitxHost for CommandState {
    fn nn(&mut self) -> (&mut NnContext, &mut WitxHandles) {
        (&mut self.guest.nn, &mut self.nn)
    }

    fn note(&mut self, error: &InferenceError) {
        self.guest.log.note(&format!("wasi_ephemeral_nn: {error}"));
    }
}

pub(crate) struct CommandSandbox {
    command: Arc<wasmtime::InstancePre<CommandState>>,
    template: Arc<Template>,
    version: Arc<Version>,
    nn: NnContext,
    log: GuestLog,
}

impl CommandSandbox {
    pub(crate) fn new(
        command: Arc<wasmtime::InstancePre<CommandState>>,
        template: Arc<Template>,
        version: Arc<Version>,
        nn: NnContext,
        log: GuestLog,
    ) -> Self {
        Self {
            command,
            template,
            version,
            nn,
            log,
        }
    }

    async fn serve(&self, invocation: Invocation, used: &mut Used) -> Result<Bytes, Failure> {
        let bounds = RunBounds::of(&invocation);
        let tick = self.template.engine.tick;
        let mut guest = GuestState::new(&self.version, self.nn.fork(), self.log.fork(), tick);
        guest.begin(&invocation);
        used.cpu = invocation.is_observed().then_some(Duration::ZERO);
        let output = Output::new(self.version.config.response_body.as_usize());
        let mut wasi = state::wasi(&self.version, &guest.log);
        for (name, value) in cgi(&invocation) {
            wasi.env(name, value);
        }
        let body = StreamReader::new(SyncBody::new(invocation.request.into_body()));
        wasi.arg(self.version.function.as_str())
            .stdin(AsyncStdinStream::new(body))
            .stdout(output.clone());
        let state = CommandState {
            guest,
            wasi: wasi.build_p1(),
            nn: WitxHandles::new(),
        };

        let mut store = Store::new(&self.template.engine.engine, state);
        state::arm(&mut store, self.version.config.memory.as_usize());
        let _running = self.template.engine.running();
        let run = async {
            let instance = self
                .command
                .instantiate_async(&mut store)
                .await
                .map_err(|error| start_failure(&error, Some(&store.data().guest)))?;
            let start = instance
                .get_typed_func::<(), ()>(&mut store, "_start")
                .map_err(|error| start_failure(&error, None))?;
            Ok::<_, Failure>(start.call_async(&mut store, ()).await)
        };
        let run = metered(used.cpu.as_mut(), run);
        let outcome = bounded(run, bounds.deadline, &bounds.cancelled).await;
        let guest = &store.data().guest;
        guest.log.end();
        used.memory = guest.limits.memory as u64;
        used.inference = guest.nn.spent;
        used.computes = guest.nn.computes;
        if output.overflowed() {
            return Err(failure::response_too_large());
        }
        let exit = match outcome {
            Err(stopped) => return Err(stopped.failure(self.version.config.timeout.duration())),
            Ok(Err(failure)) => return Err(failure),
            Ok(Ok(Ok(()))) => 0,
            Ok(Ok(Err(error))) => match error.downcast_ref::<I32Exit>() {
                Some(exit) => exit.0,
                None => return Err(run_failure(&error, guest)),
            },
        };
        if exit != 0 {
            return Err(Failure::new(
                ErrorKind::BadResponse,
                format!(
                    "the function exited with code {exit}; its log lines carry this request id"
                ),
            ));
        }
        Ok(output.take())
    }
}

/// What a run used.
#[derive(Default)]
struct Used {
    memory: u64,
    cpu: Option<Duration>,
    inference: Duration,
    computes: u32,
}

/// The variables of CGI/1.1 (RFC 3875, section 4.1) that mean something here.
fn cgi(invocation: &Invocation) -> Vec<(String, String)> {
    let request = &invocation.request;
    let text = |name: http::HeaderName| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut variables = vec![
        ("GATEWAY_INTERFACE".into(), "CGI/1.1".into()),
        ("REQUEST_METHOD".into(), request.method().to_string()),
        (
            "SCRIPT_NAME".into(),
            format!("/fn/{}", invocation.version.function),
        ),
        ("PATH_INFO".into(), request.uri().path().to_owned()),
        (
            "QUERY_STRING".into(),
            request.uri().query().unwrap_or_default().to_owned(),
        ),
        (
            "CONTENT_TYPE".into(),
            text(http::header::CONTENT_TYPE).to_owned(),
        ),
        (
            "CONTENT_LENGTH".into(),
            text(http::header::CONTENT_LENGTH).to_owned(),
        ),
        ("SERVER_PROTOCOL".into(), format!("{:?}", request.version())),
        (
            "SERVER_SOFTWARE".into(),
            concat!("fnctl/", env!("CARGO_PKG_VERSION")).into(),
        ),
    ];
    for (name, value) in request.headers() {
        // RFC 3875 4.1.18: authentication and the headers above are not repeated. `Proxy` would become HTTP_PROXY,
        // which many HTTP clients obey (CVE-2016-5385).
        let skipped = ["authorization", "content-type", "content-length", "proxy"];
        if let Ok(value) = value.to_str()
            && !skipped.contains(&name.as_str())
        {
            variables.push((
                format!(
                    "HTTP_{}",
                    name.as_str().to_ascii_uppercase().replace('-', "_")
                ),
                value.to_owned(),
            ));
        }
    }
    variables
}

#[async_trait]
impl Sandbox for CommandSandbox {
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        let mut used = Used::default();
        let end = match self.serve(invocation, &mut used).await {
            Ok(body) => {
                let response = cgi::response(body).map(fnctl_core::full);
                reply.send(Ok(response));
                RunEnd::Completed
            }
            Err(failure) => {
                reply.send(Err(failure.clone()));
                RunEnd::Failed(failure)
            }
        };
        RunReport {
            end,
            memory: used.memory,
            cpu: used.cpu,
            inference: used.inference,
            computes: used.computes,
        }
    }
}

/// The command's stdout, collected up to a limit: the status is known only when the command exits.
#[derive(Clone)]
struct Output(Arc<Mutex<Collected>>);

struct Collected {
    bytes: BytesMut,
    limit: usize,
    overflowed: bool,
}

impl Output {
    fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Collected {
            bytes: BytesMut::new(),
            limit,
            overflowed: false,
        })))
    }

    fn overflowed(&self) -> bool {
        self.0.lock().overflowed
    }

    fn take(&self) -> Bytes {
        std::mem::take(&mut self.0.lock().bytes).freeze()
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let mut collected = self.0.lock();
        if collected.bytes.len() + bytes.len() > collected.limit {
            collected.overflowed = true;
            return Poll::Ready(Err(std::io::ErrorKind::StorageFull.into()));
        }
        collected.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
