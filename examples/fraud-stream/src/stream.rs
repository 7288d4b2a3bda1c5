//! The component's side: `wasi:http/handler@0.3`. The response goes out at once; a task of its own fills its body.

use crate::App;
use crate::lines::{Line, Lines, MAX_LINE};
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::{StreamReader, StreamResult, StreamWriter, spawn_local};
use wasip3::{wit_future, wit_stream};

wasip3::http::service::export!(FraudStream);

struct FraudStream;

/// Bytes that are read at a time.
const PIECE: usize = 16 << 10;

impl wasip3::exports::http::handler::Guest for FraudStream {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let app = fnctl_sdk::state::<App>()
            .map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
        let (_read, read_result) = wit_future::new(|| Ok(()));
        let (payments, arrived) = Request::consume_body(request, read_result);
        let (answers, body) = wit_stream::new();
        let (written, trailers) = wit_future::new(|| Ok(None));
        let headers = Fields::new();
        let _ = headers.set("content-type", &[b"application/x-ndjson".to_vec()]);
        let (response, _sent) = Response::new(headers, Some(body), trailers);
        spawn_local(async move {
            if score(app, payments, answers).await {
                // A request that broke off must not look like one that was answered to its end.
                let _ = written.write(arrived.await.map(|_| None)).await;
            }
        });
        Ok(response)
    }
}

/// Answers line after line. Says whether somebody read the answers to the end.
async fn score(app: &App, mut payments: StreamReader<u8>, mut answers: StreamWriter<u8>) -> bool {
    let mut lines = Lines::default();
    loop {
        let (result, piece) = payments.read(Vec::with_capacity(PIECE)).await;
        let mut complete = lines.push(&piece);
        let is_over = !matches!(result, StreamResult::Complete(_));
        if is_over {
            complete.extend(lines.end());
        }
        for line in complete {
            let answer = match line {
                Line::Whole(line) => app.answer(&line),
                Line::TooLong => format!("{{\"error\":\"a line may have {MAX_LINE} bytes\"}}\n"),
            };
            // What could not be written comes back: nobody reads any more.
            if !answers.write_all(answer.into_bytes()).await.is_empty() {
                return false;
            }
        }
        if is_over {
            return true;
        }
    }
}
