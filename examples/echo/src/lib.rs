//! Answers every request with its own body: the smallest function, and the one that the benchmarks use.

use fnctl_sdk::{Error, Request, Response};

/// Sends the body back, with its content type.
#[fnctl_sdk::handler]
fn handle(request: Request) -> Result<Response, Error> {
    // For whoever wants to see a log, or to measure what it costs.
    if std::env::var_os("LOG").is_some() {
        println!("{} bytes", request.body.len());
    }
    let content_type = request
        .header("content-type")
        .unwrap_or("application/octet-stream")
        .to_owned();
    Ok(Response::ok(request.body).with_header("content-type", &content_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_comes_back() {
        let answer = __fnctl_answer(Request::post("hello"));
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (200, &b"hello"[..])
        );
    }
}
