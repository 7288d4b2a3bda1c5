//! `GET /api/v1/functions/{name}/logs`: stored log lines, and new ones as they come, one JSON object a line.

use super::Outcome;
use crate::Shared;
use bytes::Bytes;
use fnctl_core::ids::FunctionName;
use fnctl_core::log::{LogItem, LogQuery};
use fnctl_core::{ErrorKind, Failure, RequestId, VersionNumber};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

pub(super) async fn logs(shared: &Shared, name: FunctionName, query: Option<&str>) -> Outcome {
    super::function(shared, &name)?;
    let query = parse(name, query.unwrap_or_default())?;
    let items = shared.backend.logs.read(query).await?;
    let lines = futures::stream::unfold(items, |mut items| async move {
        let bytes = encoded(items.recv().await?);
        Some((Ok(Frame::data(bytes)), items))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    Ok(response)
}

fn encoded(item: LogItem) -> Bytes {
    match item {
        LogItem::Lines(lines) => lines,
        LogItem::Skipped(count) => Bytes::from(format!("{{\"skipped\":{count}}}\n")),
        // An empty line, so that each side notices when the other is gone.
        LogItem::Alive => Bytes::from_static(b"\n"),
    }
}

/// Reads the query string. Unknown keys are errors, as everywhere.
fn parse(name: FunctionName, text: &str) -> Result<LogQuery, Failure> {
    let mut query = LogQuery::all(name);
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let bad = |why: &str| {
            let shown: String = value.chars().take(80).collect();
            Failure::new(
                ErrorKind::BadRequest,
                format!("{}={}: {why}", key.escape_debug(), shown.escape_debug()),
            )
        };
        match key {
            "follow" => {
                query.follow = match value {
                    "" | "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(bad("write true or false")),
                }
            }
            "since_ms" => {
                query.since_ms = value
                    .parse()
                    .map_err(|_| bad("write milliseconds since 1970"))?;
            }
            "tail" => {
                query.tail = Some(value.parse().map_err(|_| bad("write a number of lines"))?);
            }
            "request" => {
                let id = RequestId::from_caller(value)
                    .ok_or_else(|| bad("this is no request id; it is in X-Request-Id"))?;
                query.request_id = Some(id);
            }
            "version" => {
                let number = value.parse().map_err(|_| bad("write a version's number"))?;
                query.version = Some(VersionNumber(number));
            }
            "level" => {
                query.level = value.parse().map_err(|error: String| bad(&error))?;
            }
            _ => {
                return Err(Failure::new(
                    ErrorKind::BadRequest,
                    format!(
                        "logs have no '{}'; they have follow, since_ms, tail, request, version and level",
                        key.chars().take(80).collect::<String>().escape_debug()
                    ),
                ));
            }
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::log::LogLevel;

    fn parsed(text: &str) -> Result<LogQuery, Failure> {
        parse("fraud".parse().unwrap(), text)
    }

    #[test]
    fn every_part_of_a_query_is_read() {
        let query = parsed("follow&since_ms=12&tail=5&request=abc&version=3&level=warn").unwrap();
        assert!(query.follow);
        assert_eq!(query.since_ms, 12);
        assert_eq!(query.tail, Some(5));
        assert_eq!(query.request_id.unwrap().as_str(), "abc");
        assert_eq!(query.version, Some(VersionNumber(3)));
        assert_eq!(query.level, LogLevel::Warn);
        for level in LogLevel::ALL.map(LogLevel::as_str) {
            assert!(parsed(&format!("level={level}")).is_ok());
        }
        assert!(!parsed("").unwrap().follow);
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, word) in [
            ("folow=true", "folow"),
            ("follow=perhaps", "true or false"),
            ("since_ms=-1", "milliseconds"),
            ("tail=all", "number"),
            ("request=%20", "request id"),
            ("version=live", "number"),
            ("level=loud", "critical"),
        ] {
            let failure = parsed(text).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::BadRequest);
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}
