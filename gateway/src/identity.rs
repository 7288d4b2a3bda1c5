//! Who may use the admin API: whoever has the token, or, where none is set, whoever is on this machine and is not a web
//! page.

use crate::config::Config;
use fnctl_core::{ErrorKind, Failure};
use http::{HeaderMap, header};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// What tells that somebody else's request is passed on by a proxy on this machine.
const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Lets an admin request through, or says why not.
pub(crate) fn admin(
    config: &Config,
    peer: IpAddr,
    authority: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), Failure> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    match &config.token {
        Some(_) if carries_token(config, headers) => Ok(()),
        Some(_) => Err(Failure::new(
            ErrorKind::Unauthorized,
            "the admin API needs the token: pass --token or set FNCTL_TOKEN",
        )),
        None if !peer.to_canonical().is_loopback() => Err(Failure::new(
            ErrorKind::Forbidden,
            "without a token the admin API answers on this machine only; set gateway.token (FNCTL_TOKEN) on the server",
        )),
        // A web page that the user has open may send requests to this machine: it cannot hide its origin, and a name
        // that it had resolved to the loopback address shows in Host.
        None if PROXY_HEADERS.iter().any(|name| headers.contains_key(*name)) => Err(Failure::new(
            ErrorKind::Forbidden,
            "without a token the admin API does not answer through a proxy; set gateway.token (FNCTL_TOKEN) on the server",
        )),
        None if headers.contains_key(header::ORIGIN)
            || ![text(header::HOST), authority]
                .into_iter()
                .flatten()
                .all(is_local_host) =>
        {
            Err(Failure::new(
                ErrorKind::Forbidden,
                "the admin API does not answer web pages; use the fnctl command, or set a token",
            ))
        }
        None => Ok(()),
    }
}

/// Whether a request carries the platform's token.
pub(crate) fn carries_token(config: &Config, headers: &HeaderMap) -> bool {
    let Some(token) = &config.token else {
        return false;
    };
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .is_some_and(|given| bool::from(given.as_bytes().ct_eq(token.as_bytes())))
}

fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        token: Option<&str>,
        peer: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<(), ErrorKind> {
        let config = Config {
            token: token.map(str::to_owned),
            ..Config::default()
        };
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        admin(&config, peer.parse().unwrap(), None, &headers).map_err(|failure| failure.kind)
    }

    #[test]
    fn without_a_token_only_this_machine_is_let_in_and_no_web_page() {
        assert_eq!(
            ask(None, "127.0.0.1", &[("host", "localhost:8080")]),
            Ok(())
        );
        assert_eq!(ask(None, "::1", &[("host", "[::1]:8080")]), Ok(()));
        assert_eq!(ask(None, "::ffff:127.0.0.1", &[]), Ok(()));
        assert_eq!(ask(None, "10.0.0.7", &[]), Err(ErrorKind::Forbidden));
        assert_eq!(
            ask(None, "127.0.0.1", &[("x-forwarded-for", "10.0.0.7")]),
            Err(ErrorKind::Forbidden)
        );
        assert_eq!(
            ask(None, "127.0.0.1", &[("origin", "https://evil.example")]),
            Err(ErrorKind::Forbidden)
        );
        assert_eq!(
            ask(None, "127.0.0.1", &[("host", "rebound.evil.example:8080")]),
            Err(ErrorKind::Forbidden)
        );
    }

    #[test]
    fn with_a_token_it_decides_alone() {
        assert_eq!(
            ask(
                Some("s3cret"),
                "10.0.0.7",
                &[("authorization", "Bearer s3cret")]
            ),
            Ok(())
        );
        for wrong in ["Bearer s3cre", "Bearer s3crett", "Basic s3cret", "Bearer "] {
            assert_eq!(
                ask(Some("s3cret"), "127.0.0.1", &[("authorization", wrong)]),
                Err(ErrorKind::Unauthorized)
            );
        }
        assert_eq!(
            ask(Some("s3cret"), "127.0.0.1", &[]),
            Err(ErrorKind::Unauthorized)
        );
    }
}
