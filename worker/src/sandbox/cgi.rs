//! The head that a command may put before its answer, after CGI/1.1 (RFC 3875, section 6.3): `Status: 404`, further header
//! lines, an empty line. What begins otherwise is all body, as for commands that know nothing of HTTP.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// Longest head, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Most header lines.
const MAX_LINES: usize = 100;
/// What the server decides.
const OF_THE_SERVER: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::UPGRADE,
    header::TE,
];

/// The response that a command's output is.
pub(super) fn response(output: Bytes) -> http::Response<Bytes> {
    let (status, mut headers, body) = match head(&output) {
        Some((status, headers, length)) => (status, headers, output.slice(length..)),
        None => (StatusCode::OK, HeaderMap::new(), output),
    };
    headers.entry(header::CONTENT_TYPE).or_insert_with(|| {
        HeaderValue::from_static(if std::str::from_utf8(&body).is_ok() {
            "text/plain; charset=utf-8"
        } else {
            "application/octet-stream"
        })
    });
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Status, headers and length of the head, if the output begins with one. Half of one is none.
fn head(output: &[u8]) -> Option<(StatusCode, HeaderMap, usize)> {
    let mut rest = output;
    let first = line(&mut rest)?.strip_prefix(b"Status:")?;
    // `404 Not Found`: the words are not sent on.
    let code = first.trim_ascii().split(|byte| *byte == b' ').next()?;
    let status = StatusCode::from_bytes(code).ok()?;
    // 1xx would not end the request, and there are no codes above 599.
    if !(200..600).contains(&status.as_u16()) {
        return None;
    }
    let mut headers = HeaderMap::new();
    for _ in 0..=MAX_LINES {
        let line = line(&mut rest)?;
        let length = output.len() - rest.len();
        if length > MAX_HEAD {
            return None;
        }
        if line.is_empty() {
            return Some((status, headers, length));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name).ok()?;
        let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
        if !OF_THE_SERVER.contains(&name) {
            headers.append(name, value);
        }
    }
    None
}

/// Takes a line, without its end, off the front.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().take(MAX_HEAD).position(|byte| *byte == b'\n')?;
    let (line, behind) = rest.split_at(end);
    *rest = behind.get(1..)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(output: &'static str) -> (u16, String, String) {
        let response = response(Bytes::from_static(output.as_bytes()));
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
        (
            response.status().as_u16(),
            kind.to_owned(),
            String::from_utf8(response.body().to_vec()).unwrap(),
        )
    }

    #[test]
    fn a_head_sets_status_and_headers() {
        let own = ("application/json".to_owned(), "{}".to_owned());
        let with = |code| (code, own.0.clone(), own.1.clone());
        assert_eq!(
            parsed("Status: 404 Not Found\r\nContent-Type: application/json\r\n\r\n{}"),
            with(404)
        );
        assert_eq!(
            parsed("Status:400\nContent-Type:application/json\n\n{}"),
            with(400)
        );
        let plain = "text/plain; charset=utf-8".to_owned();
        assert_eq!(parsed("Status: 204\n\n"), (204, plain, String::new()));
        let kept = response(Bytes::from_static(
            b"Status: 302\nLocation: /x\nContent-Length: 99\nSet-Cookie: a\nSet-Cookie: b\n\n",
        ));
        assert_eq!(kept.headers()["location"], "/x");
        assert!(!kept.headers().contains_key("content-length"));
        assert_eq!(kept.headers().get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn what_is_no_head_is_all_body() {
        for output in [
            "",
            "hello",
            "status: 404\n\nx",
            "Content-Type: text/html\n\nx",
            "Status: fine\n\nx",
            "Status: 100\n\nx",
            "Status: 999\n\nx",
            "Status: 404\nno colon\n\nx",
            "Status: 404\nBad Name: x\n\nx",
            "Status: 404\nX: y",
            "Status: 404",
        ] {
            let (status, _, body) = parsed(output);
            assert_eq!((status, body.as_str()), (200, output), "{output:?}");
        }
        let long = format!("Status: 404\n{}\nx", "A: b\n".repeat(MAX_LINES + 1));
        assert_eq!(response(long.clone().into()).status(), 200);
        let wide = format!("Status: 404\nA: {}\n\nx", "b".repeat(MAX_HEAD));
        assert_eq!(response(wide.into()).status(), 200);
        assert_eq!(
            response(Bytes::from_static(b"\xff")).headers()["content-type"],
            "application/octet-stream"
        );
    }
}
