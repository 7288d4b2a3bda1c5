//! `/fn/{name}`: resolve, limit, hand over to the invoker, and put what was measured on the answer.

use crate::Shared;
use crate::client_body::{BodyFate, ClientBody};
use crate::identity;
use crate::respond;
use crate::service::{Answer, Context};
use crate::trace;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::Unanswered;
use fnctl_core::version::{Selector, Version};
use fnctl_core::{Body, ErrorKind, Failure, Invocation};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::net::IpAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) async fn invoke(
    shared: &Arc<Shared>,
    context: &Context,
    function: FunctionName,
    selector: Selector,
    rest: &str,
    request: Request<Incoming>,
) -> Answer {
    let step = context.root.trace().step("resolve");
    let version = shared
        .backend
        .functions
        .resolve(&function, &selector, context.request_id.draw());
    drop(step);
    let Some(version) = version else {
        return Answer::failed(
            "fn",
            &unknown(shared, &function, &selector),
            &context.request_id,
        );
    };
    let named = Some((version.function.clone(), version.number));
    let report = wants_report(shared, context, &request);
    let fate = BodyFate::default();
    let admitted = check_rate(shared, &version)
        .and_then(|()| guest_request(shared, context, &version, rest, request, &fate));
    let request = match admitted {
        Ok(request) => request,
        Err(failure) => {
            return Answer {
                function: named,
                ..Answer::failed("fn", &failure, &context.request_id)
            };
        }
    };
    let invocation = Invocation {
        request_id: context.request_id.clone(),
        request,
        received: context.received,
        deadline: context.received + version.config.timeout.duration(),
        cancelled: CancellationToken::new(),
        trace: context.root.trace().clone(),
        report,
        version: version.clone(),
    };
    match shared.backend.invoker.invoke(invocation).await {
        // The guest answered with what it made of a body that never came whole; the client did not send it.
        Ok(reply) if fate.was_too_large() || fate.timed_out() => {
            let failure = blame(
                Failure::new(
                    ErrorKind::BadRequest,
                    "the request body did not arrive whole",
                ),
                &fate,
                &version,
            );
            let mut answer = Answer::failed("fn", &failure, &context.request_id);
            respond::with_anatomy(
                &mut answer.response,
                version.number,
                Some(reply.start),
                &reply.phases,
                Some(reply.run),
            );
            Answer {
                function: named,
                start: Some(reply.start),
                ..answer
            }
        }
        Ok(reply) => {
            let mut response = reply.response;
            respond::with_anatomy(
                &mut response,
                version.number,
                Some(reply.start),
                &reply.phases,
                Some(reply.run),
            );
            Answer {
                function: named,
                start: Some(reply.start),
                ..Answer::new("fn", response)
            }
        }
        Err(Unanswered {
            failure,
            start,
            phases,
        }) => {
            let failure = blame(failure, &fate, &version);
            let mut answer = Answer::failed("fn", &failure, &context.request_id);
            respond::with_anatomy(&mut answer.response, version.number, start, &phases, None);
            Answer {
                function: named,
                start,
                ..answer
            }
        }
    }
}

/// Whether the caller asks for a report of what the invocation took, and may. It costs a line of the function's log,
/// so it is for those who may read that log.
fn wants_report(shared: &Shared, context: &Context, request: &Request<Incoming>) -> bool {
    request.headers().contains_key(respond::REPORT)
        && identity::admin(
            &shared.config,
            context.peer.ip(),
            request.uri().authority().map(http::uri::Authority::as_str),
            request.headers(),
        )
        .is_ok()
}

fn unknown(shared: &Shared, function: &FunctionName, selector: &Selector) -> Failure {
    let exists = !shared
        .backend
        .functions
        .functions(Some(function))
        .is_empty();
    let message = if exists {
        format!(
            "'{function}' has no version or alias '{selector}'; see `fnctl versions {function}`"
        )
    } else {
        format!("there is no function '{function}'; deploy it, or see `fnctl ls`")
    };
    Failure::new(ErrorKind::NotFound, message)
}

fn check_rate(shared: &Shared, version: &Version) -> Result<(), Failure> {
    let Some(limit) = version.config.rate_limit else {
        return Ok(());
    };
    shared.rates.check(&version.function, limit).map_err(|wait| {
        shared.metrics.rate_limited(&version.function);
        Failure::new(
            ErrorKind::RateLimited,
            format!("the function's rate limit of {} requests per second is used up; slow down, or raise rate_limit", limit.requests_per_second),
        )
        .retry_after(wait)
    })
}

/// A failure that the client's own body caused is the client's, whatever the guest made of it.
fn blame(failure: Failure, fate: &BodyFate, version: &Version) -> Failure {
    if fate.was_too_large() {
        too_large(version).because(failure)
    } else if fate.timed_out() {
        Failure::new(
            ErrorKind::SlowClient,
            "the request body did not arrive in time; send it without pauses",
        )
        .because(failure)
    } else {
        failure
    }
}

fn too_large(version: &Version) -> Failure {
    Failure::new(
        ErrorKind::PayloadTooLarge,
        format!(
            "the request body is larger than the function's limit of {}; raise request_body",
            version.config.request_body
        ),
    )
}

/// The request as the guest sees it.
fn guest_request(
    shared: &Shared,
    context: &Context,
    version: &Version,
    rest: &str,
    request: Request<Incoming>,
    fate: &BodyFate,
) -> Result<Request<Body>, Failure> {
    let limit = version.config.request_body.bytes();
    let (mut parts, body) = request.into_parts();
    if body.size_hint().lower() > limit {
        return Err(too_large(version));
    }
    match parts.headers.get(header::HOST) {
        Some(host) if host.is_empty() => {
            parts.headers.remove(header::HOST);
        }
        // Checked here, so that a guest's instance never meets what it cannot be given.
        Some(host) if Authority::try_from(host.as_bytes()).is_err() => {
            return Err(Failure::new(
                ErrorKind::BadRequest,
                "the Host header is not a host; write it like example.com or example.com:8080",
            ));
        }
        _ => {}
    }
    parts.uri = guest_uri(&parts.uri, rest)?;
    remove_hop_by_hop(&mut parts.headers);
    // The platform's own token is not for guests; a caller's token for the guest is.
    if identity::carries_token(&shared.config, &parts.headers) {
        parts.headers.remove(header::AUTHORIZATION);
    }
    add_own(&mut parts.headers, context);
    // An empty body, the rule for GET, needs no wrapper.
    let body = if body.is_end_stream() {
        fnctl_core::empty()
    } else {
        ClientBody::new(
            body,
            limit,
            shared.config.body_timeout.duration(),
            fate.clone(),
        )
        .boxed_unsync()
    };
    Ok(Request::from_parts(parts, body))
}

fn guest_uri(uri: &Uri, rest: &str) -> Result<Uri, Failure> {
    let invalid = |_| Failure::new(ErrorKind::BadRequest, "the path or query is malformed");
    let path = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{rest}?{query}")),
        None => PathAndQuery::try_from(rest),
    }
    .map_err(invalid)?;
    let mut parts = http::uri::Parts::default();
    // HTTP/2 has its authority here; HTTP/1.1 has the Host header.
    if let Some(authority) = uri.authority() {
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(authority.clone());
    }
    parts.path_and_query = Some(path);
    Uri::from_parts(parts)
        .map_err(|_| Failure::new(ErrorKind::BadRequest, "the path or query is malformed"))
}

/// Headers that belong to the connection (RFC 9110, section 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn add_own(headers: &mut HeaderMap, context: &Context) {
    if let Ok(value) = HeaderValue::from_str(context.request_id.as_str()) {
        headers.insert(respond::REQUEST_ID, value);
    }
    headers.remove(respond::REPORT);
    // The guest's own calls belong below this span.
    if let Some(Ok(parent)) = context
        .root
        .trace()
        .traceparent()
        .map(|text| HeaderValue::from_str(&text))
    {
        headers.insert(trace::TRACEPARENT, parent);
    }
    headers
        .entry(header::HOST)
        .or_insert(HeaderValue::from_static("localhost"));
    let peer = match context.peer.ip().to_canonical() {
        // The usual peer of a platform behind a proxy or under test: no formatting.
        IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) => Ok(HeaderValue::from_static("127.0.0.1")),
        other => HeaderValue::from_str(&other.to_string()),
    };
    if let Ok(peer) = peer {
        headers.append(HeaderName::from_static("x-forwarded-for"), peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_the_rest_of_the_path_and_the_query() {
        let uri = |text: &str, rest| guest_uri(&text.parse().unwrap(), rest).unwrap().to_string();
        assert_eq!(uri("/fn/a", "/"), "/");
        assert_eq!(uri("/fn/a/b/c?x=1&y=%20", "/b/c"), "/b/c?x=1&y=%20");
        assert_eq!(uri("http://h:1/fn/a?q", "/"), "http://h:1/?q");
    }

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("x-keep", "2"),
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("x-keep"));
    }
}
