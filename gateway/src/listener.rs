//! Accepts connections, within a limit, and serves HTTP/1.1 and h2c on them.

use crate::Shared;
use crate::io::StallTimeout;
use crate::service;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How long to wait when the system refuses an accept (EMFILE, ENFILE, ENOBUFS): the next one would fail as well.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

pub(crate) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
    close: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(shared.config.max_connections));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => return,
            permit = connections.clone().acquire_owned() => permit,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (shared, close) = (shared.clone(), close.clone());
                shared.tasks.clone().spawn(
                    "connection",
                    serve_connection(stream, peer, shared, close, permit),
                );
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed; trying again");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    close: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    // Without it, a response in two writes waits for the client's delayed acknowledgement (40 ms).
    let _ = stream.set_nodelay(true);
    let _open = shared.metrics.connection();
    let config = &shared.config;
    let header_timeout = config.header_timeout.duration();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(config.max_header.as_usize().max(8 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(u32::try_from(config.max_header.bytes()).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let io = TokioIo::new(StallTimeout::new(
        stream,
        header_timeout,
        config.write_timeout.duration(),
    ));
    let handle = shared.clone();
    let service = service_fn(move |request| service::handle_request(handle.clone(), peer, request));
    let mut connection = pin!(builder.serve_connection(io, service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = close.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // Clients break connections all the time; that is theirs to know.
        tracing::debug!(%peer, %error, "connection ended");
    }
}
