//! What a path means. Pure, and the only place that knows the paths.

use fnctl_core::ids::{Digest, FunctionName, IdError};
use fnctl_core::version::Selector;

/// A recognised path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// `/fn/{name}[:{selector}][/rest]`; the rest starts with `/`.
    Invoke {
        function: FunctionName,
        selector: Selector,
        rest: &'a str,
    },
    /// `/api/v1/...`
    Api(Api<'a>),
    /// `/healthz`
    Healthz,
    /// `/readyz`
    Readyz,
    /// `/metrics`
    Metrics,
    /// `/`
    Root,
}

/// A recognised path of the admin API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Api<'a> {
    Functions,
    Function(FunctionName),
    Versions(FunctionName),
    Rollback(FunctionName),
    Logs(FunctionName),
    Alias(FunctionName, &'a str),
    Artifacts,
    Artifact(Digest),
    Status,
    Activity,
    Trace,
    Inference,
    InferenceRestart,
}

/// Why a path is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RouteError {
    Unknown,
    Name(IdError),
}

impl From<IdError> for RouteError {
    fn from(error: IdError) -> Self {
        Self::Name(error)
    }
}

/// Names are label characters only, so nothing is percent-decoded: an encoded name is simply no valid name.
pub(crate) fn route(path: &str) -> Result<Route<'_>, RouteError> {
    if let Some(target) = path.strip_prefix("/fn/") {
        let (target, rest) = match target.find('/') {
            Some(slash) => target.split_at(slash),
            None => (target, "/"),
        };
        let (name, selector) = match target.split_once(':') {
            Some((name, selector)) => (name, selector.parse()?),
            None => (target, Selector::Live),
        };
        return Ok(Route::Invoke {
            function: name.parse()?,
            selector,
            rest,
        });
    }
    if let Some(path) = path.strip_prefix("/api/v1/") {
        return api(path).map(Route::Api);
    }
    match path {
        "/healthz" => Ok(Route::Healthz),
        "/readyz" => Ok(Route::Readyz),
        "/metrics" => Ok(Route::Metrics),
        "/" => Ok(Route::Root),
        _ => Err(RouteError::Unknown),
    }
}

fn api(path: &str) -> Result<Api<'_>, RouteError> {
    let mut parts = path.split('/');
    let mut next = || parts.next();
    let api = match (next(), next(), next(), next(), next()) {
        (Some("functions"), None, ..) => Api::Functions,
        (Some("functions"), Some(name), None, ..) => Api::Function(name.parse()?),
        (Some("functions"), Some(name), Some("versions"), None, _) => Api::Versions(name.parse()?),
        (Some("functions"), Some(name), Some("rollback"), None, _) => Api::Rollback(name.parse()?),
        (Some("functions"), Some(name), Some("logs"), None, _) => Api::Logs(name.parse()?),
        (Some("functions"), Some(name), Some("aliases"), Some(alias), None) => {
            Api::Alias(name.parse()?, alias)
        }
        (Some("artifacts"), None, ..) => Api::Artifacts,
        (Some("artifacts"), Some(digest), None, ..) => Api::Artifact(digest.parse()?),
        (Some("status"), None, ..) => Api::Status,
        (Some("activity"), None, ..) => Api::Activity,
        (Some("trace"), None, ..) => Api::Trace,
        (Some("inference"), None, ..) => Api::Inference,
        (Some("inference"), Some("restart"), None, ..) => Api::InferenceRestart,
        _ => return Err(RouteError::Unknown),
    };
    Ok(api)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::VersionNumber;

    fn name(text: &str) -> FunctionName {
        text.parse().unwrap()
    }

    #[test]
    fn invocation_paths() {
        let invoke = |selector, rest| {
            Ok(Route::Invoke {
                function: name("fraud"),
                selector,
                rest,
            })
        };
        assert_eq!(route("/fn/fraud"), invoke(Selector::Live, "/"));
        assert_eq!(route("/fn/fraud/"), invoke(Selector::Live, "/"));
        assert_eq!(route("/fn/fraud/a/b"), invoke(Selector::Live, "/a/b"));
        assert_eq!(
            route("/fn/fraud:3/a:b"),
            invoke(Selector::Number(VersionNumber(3)), "/a:b")
        );
        assert_eq!(route("/fn/fraud:latest"), invoke(Selector::Latest, "/"));
        assert_eq!(
            route("/fn/fraud:canary"),
            invoke(Selector::Alias("canary".parse().unwrap()), "/")
        );
        for bad in [
            "/fn/",
            "/fn//x",
            "/fn/Fraud",
            "/fn/%66raud",
            "/fn/fraud:",
            "/fn/../api",
            "/fn/fraud:a:b",
        ] {
            assert!(matches!(route(bad), Err(RouteError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn admin_paths() {
        assert_eq!(route("/api/v1/functions"), Ok(Route::Api(Api::Functions)));
        assert_eq!(
            route("/api/v1/functions/a/versions"),
            Ok(Route::Api(Api::Versions(name("a"))))
        );
        assert_eq!(
            route("/api/v1/functions/a/aliases/b"),
            Ok(Route::Api(Api::Alias(name("a"), "b")))
        );
        for bad in [
            "/api/v1/",
            "/api/v1/functions/a/b",
            "/api/v1/functions/a/versions/1",
            "/api/v2/functions",
            "/nothing",
        ] {
            assert_eq!(route(bad), Err(RouteError::Unknown), "{bad}");
        }
    }
}
