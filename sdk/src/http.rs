//! Requests and responses with their bodies at hand.

use crate::error::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The method, as in `POST`.
    pub method: String,
    /// Path and query behind the function's name, as in `/x?y=1`.
    pub path: String,
    /// The headers, with lower-case names.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A `POST` of a body, for tests.
    pub fn post(body: impl Into<Vec<u8>>) -> Self {
        Self {
            method: "POST".into(),
            path: "/".into(),
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// The first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// Adds a header, for tests.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .push((name.to_ascii_lowercase(), value.as_bytes().to_vec()));
        self
    }

    /// The media type that the caller gave its body: the first part of `Content-Type`, in lower case, without
    /// parameters like `charset` (RFC 9110, section 8.3.1). Empty if the caller gave none.
    pub fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    }

    /// For handlers of raw bodies: 400 if there is no body, 415 if the caller calls it something else than one of
    /// `types`, which are lower case.
    ///
    /// A body that is called nothing in particular passes, and the handler's own parser decides: no `Content-Type`,
    /// `application/octet-stream`, or `application/x-www-form-urlencoded`, which `curl --data-binary` calls every file.
    pub fn require_body(&self, types: &[&str]) -> Result<&[u8], Error> {
        let wanted = types.join(" or ");
        if self.body.is_empty() {
            return Err(Error::bad_request(format!(
                "the request has no body; send {wanted}"
            )));
        }
        let unlabelled = [
            "",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
        ];
        let given = self.media_type();
        if types.contains(&given.as_str()) || unlabelled.contains(&given.as_str()) {
            return Ok(&self.body);
        }
        Err(Error::unsupported_media_type(format!(
            "the Content-Type is {given}; send {wanted}"
        )))
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// The body as text.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.body).map_err(|_| Error::bad_request("the body is not UTF-8"))
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A response without headers or body.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200).with_body(body)
    }

    /// 200 with a JSON body.
    pub fn json<T: Serialize>(value: &T) -> Result<Self, Error> {
        let body = serde_json::to_vec(value).map_err(|error| Error::internal(error.to_string()))?;
        Ok(Self::ok(body).with_header("content-type", "application/json"))
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .push((name.to_owned(), value.as_bytes().to_vec()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// What a handler can take.
pub trait FromRequest: Sized {
    /// Reads it from a request.
    fn from_request(request: Request) -> Result<Self, Error>;
}

impl FromRequest for Request {
    fn from_request(request: Request) -> Result<Self, Error> {
        Ok(request)
    }
}

impl<T: DeserializeOwned> FromRequest for T {
    fn from_request(request: Request) -> Result<Self, Error> {
        request.json()
    }
}

/// What a handler can return.
pub trait IntoResponse {
    /// Writes it as a response.
    fn into_response(self) -> Result<Response, Error>;
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self)
    }
}

impl<T: Serialize> IntoResponse for T {
    fn into_response(self) -> Result<Response, Error> {
        Response::json(&self)
    }
}

/// Runs a handler on a raw request.
pub fn serve<I, O>(request: Request, handler: impl FnOnce(I) -> Result<O, Error>) -> Response
where
    I: FromRequest,
    O: IntoResponse,
{
    I::from_request(request)
        .and_then(handler)
        .and_then(O::into_response)
        .unwrap_or_else(Error::into_response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Input {
        n: u32,
    }

    #[derive(Serialize)]
    struct Output {
        double: u32,
    }

    #[test]
    fn json_in_json_out() {
        let answer = serve(Request::post("{\"n\":4}"), |input: Input| {
            Ok(Output {
                double: input.n * 2,
            })
        });
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (200, &b"{\"double\":8}"[..])
        );
    }

    #[test]
    fn raw_in_raw_out() {
        let answer = serve(Request::post("abc"), |request: Request| {
            Ok(Response::new(201).with_body(request.body))
        });
        assert_eq!((answer.status, answer.body.as_slice()), (201, &b"abc"[..]));
    }

    #[test]
    fn a_media_type_is_compared_without_case_and_parameters() {
        let labelled = |label: &str| Request::post("x").with_header("Content-Type", label);
        let png = labelled("Image/PNG; q=1");
        assert_eq!(png.media_type(), "image/png");
        assert_eq!(png.require_body(&["image/png"]).unwrap(), b"x");
        for unlabelled in [
            "application/octet-stream",
            "application/x-www-form-urlencoded",
        ] {
            assert!(labelled(unlabelled).require_body(&["image/png"]).is_ok());
        }
        assert!(Request::post("x").require_body(&["image/png"]).is_ok());
    }

    #[test]
    fn a_body_of_another_media_type_or_none_at_all_is_refused_with_the_way_out() {
        let jpeg = Request::post("x").with_header("content-type", "image/jpeg");
        let error = jpeg.require_body(&["audio/wav", "audio/wave"]).unwrap_err();
        assert_eq!(error.status(), 415);
        assert_eq!(
            error.message(),
            "the Content-Type is image/jpeg; send audio/wav or audio/wave"
        );
        let error = Request::post("").require_body(&["image/png"]).unwrap_err();
        assert_eq!(
            (error.status(), error.message()),
            (400, "the request has no body; send image/png")
        );
    }

    #[test]
    fn wrong_input_is_the_callers_fault_and_says_why() {
        let answer = serve(Request::post("{\"m\":4}"), |input: Input| {
            Ok(Output { double: input.n })
        });
        assert_eq!(answer.status, 400);
        assert!(
            String::from_utf8(answer.body)
                .unwrap()
                .contains("missing field `n`")
        );
    }

    #[test]
    fn an_error_of_the_handler_keeps_its_status() {
        let answer = serve(Request::post("{\"n\":4}"), |_: Input| {
            Err::<Output, _>(Error::not_found("no such customer"))
        });
        assert_eq!(answer.status, 404);
    }
}
