//! Which platform a command talks to, and with which token.
//!
//! A flag comes before the environment, that before the current context, that before this machine. A context's token
//! goes to that context's platform and nowhere else.

use crate::contexts::{Context, Contexts};
use crate::exit::usage;
use anyhow::Context as _;
use clap::Args;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a platform is that nobody has said anything about.
pub(crate) const DEFAULT: &str = "http://127.0.0.1:8080";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text, to send or to store it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl FromStr for Secret {
    type Err = String;

    /// One line of characters that an HTTP header may hold.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a token is one line of printable ASCII without spaces".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Reads a value that may be a secret, or hold one: an error does not repeat it, as clap's own does.
#[derive(Clone, Copy)]
pub(crate) struct Unechoed<T>(pub(crate) fn(&str) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> clap::builder::TypedValueParser for Unechoed<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        let name = argument.map_or_else(String::new, |argument| format!("{argument}: "));
        value
            .to_str()
            .ok_or_else(|| "the value is no UTF-8".to_owned())
            .and_then(self.0)
            .map_err(|problem| {
                clap::Error::raw(
                    clap::error::ErrorKind::ValueValidation,
                    format!("{name}{problem}\n"),
                )
                .with_cmd(command)
            })
    }
}

/// How a client command reaches the platform.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Connection {
    /// The platform's address [env: FNCTL_SERVER] [default: the current context's, or http://127.0.0.1:8080].
    #[arg(long, global = true, value_name = "URL", value_parser = Unechoed(server_url))]
    pub(crate) server: Option<String>,
    /// The admin API's token [env: FNCTL_TOKEN] [default: the context's].
    #[arg(long, global = true, value_name = "TOKEN", value_parser = Unechoed(Secret::from_str))]
    pub(crate) token: Option<Secret>,
    /// The context to use; `fnctl context ls` lists them [env: FNCTL_CONTEXT] [default: the current one].
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "server")]
    pub(crate) context: Option<String>,
    /// PEM certificates to trust for https instead of the public ones [env: FNCTL_CA_FILE] [default: the context's].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Who named the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    Variable,
    Context(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("--server"),
            Self::Variable => f.write_str("FNCTL_SERVER"),
            Self::Context(name) => write!(f, "context '{name}'"),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// A platform as it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `http://` or `https://`, host and port; no slash at the end.
    pub(crate) server: String,
    pub(crate) token: Option<Secret>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) origin: Origin,
}

/// The address of a platform, with a scheme and without a slash at the end.
pub(crate) fn server_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !matches!(scheme, "http" | "https") {
        return Err("write it like http://127.0.0.1:8080 or https://fnctl.example.com".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(
            "an address holds no user or password; the token goes by --token or a context"
                .to_owned(),
        );
    }
    let parsed: Result<ureq::http::uri::Authority, _> = rest.parse();
    match parsed {
        Ok(authority) if !authority.host().is_empty() => Ok(format!("{scheme}://{rest}")),
        _ => Err("write it like http://127.0.0.1:8080, with nothing behind the port".to_owned()),
    }
}

/// Whether an address can be nobody but this machine.
fn is_this_machine(server: &str) -> bool {
    let host = server
        .parse()
        .ok()
        .and_then(|uri: ureq::http::Uri| uri.host().map(str::to_owned))
        .unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

impl Connection {
    /// What flags, environment and contexts come to.
    pub(crate) fn resolve(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        contexts: impl FnOnce() -> anyhow::Result<Contexts>,
    ) -> anyhow::Result<Target> {
        if self.server.is_some() && self.context.is_some() {
            return Err(usage(
                "--server and --context name two platforms; pass one of them",
            ));
        }
        let token = match (&self.token, variable("FNCTL_TOKEN")) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(text)) => Some(
                Secret::from_str(&text)
                    .map_err(|problem| usage(format!("FNCTL_TOKEN: {problem}")))?,
            ),
            (None, None) => None,
        };
        let ca_file = self
            .ca_file
            .clone()
            .or_else(|| variable("FNCTL_CA_FILE").map(PathBuf::from));
        let named = |server: &str, origin| Target {
            server: server.to_owned(),
            token: token.clone().or_else(|| {
                // The variable is the server's as well: what it names belongs to this machine's platform, and no other
                // is shown it. Before the first start there is no such file; without a token much can be asked, too.
                let file = variable("FNCTL_TOKEN_FILE").filter(|_| is_this_machine(server))?;
                token_in(Path::new(&file)).ok()
            }),
            ca_file: ca_file.clone(),
            origin,
        };
        if let Some(server) = &self.server {
            return Ok(named(server, Origin::Flag));
        }
        if let Some(name) = &self.context {
            let context = contexts()?.get(name)?.clone();
            // The flag speaks before the environment, for the token as for the address.
            let own = match &self.token {
                Some(token) => Some(token.clone()),
                None => context.token()?.or(token),
            };
            return Ok(Target {
                token: own,
                ..self.of_context(name, &context, ca_file)
            });
        }
        if let Some(server) = variable("FNCTL_SERVER") {
            let server =
                server_url(&server).map_err(|problem| usage(format!("FNCTL_SERVER: {problem}")))?;
            return Ok(named(&server, Origin::Variable));
        }
        let contexts = contexts()?;
        match variable("FNCTL_CONTEXT").or_else(|| contexts.current.clone()) {
            Some(name) => {
                let context = contexts.get(&name)?;
                let own = match token {
                    Some(token) => Some(token),
                    None => context.token()?,
                };
                Ok(Target {
                    token: own,
                    ..self.of_context(&name, context, ca_file)
                })
            }
            None => Ok(named(DEFAULT, Origin::Default)),
        }
    }

    fn of_context(&self, name: &str, context: &Context, ca_file: Option<PathBuf>) -> Target {
        Target {
            server: context.server.clone(),
            token: None,
            ca_file: ca_file.or_else(|| context.ca_file.clone()),
            origin: Origin::Context(name.to_owned()),
        }
    }
}

fn token_in(file: &Path) -> anyhow::Result<Secret> {
    let text = fnctl_platform::token_file::read(file).with_context(|| {
        format!(
            "{} holds no token that can be read; has the platform been started with this gateway.token_file?",
            file.display()
        )
    })?;
    Secret::from_str(&text).map_err(|problem| usage(format!("{}: {problem}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        let mut contexts = Contexts::default();
        for name in ["prod", "lab"] {
            let context = Context {
                server: format!("https://{name}"),
                token: Some(format!("{name}-token").parse().unwrap()),
                ..Context::default()
            };
            contexts.contexts.insert(name.to_owned(), context);
        }
        contexts.current = Some("lab".to_owned());
        contexts
    }

    /// The address and the token of a command line and an environment.
    fn resolve(
        flags: &[(&str, &str)],
        environment: &[(&str, &str)],
        contexts: Contexts,
    ) -> (String, Option<String>) {
        let flag = |name: &str| {
            flags
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let connection = Connection {
            server: flag("server"),
            token: flag("token").map(|text| text.parse().unwrap()),
            context: flag("context"),
            ca_file: None,
        };
        let variable = |name: &str| {
            environment
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let target = connection.resolve(&variable, || Ok(contexts)).unwrap();
        (
            target.server,
            target.token.map(|token| token.reveal().to_owned()),
        )
    }

    #[test]
    fn a_flag_comes_before_the_environment_before_the_current_context_before_this_machine() {
        let (server, context, token) = (
            ("FNCTL_SERVER", "http://env"),
            ("FNCTL_CONTEXT", "prod"),
            ("FNCTL_TOKEN", "env-token"),
        );
        for (flags, environment, expected) in [
            (
                vec![("server", "http://flag")],
                vec![server, context],
                ("http://flag", None),
            ),
            (
                vec![("server", "http://flag"), ("token", "t")],
                vec![token],
                ("http://flag", Some("t")),
            ),
            (
                vec![("context", "prod")],
                vec![server, token],
                ("https://prod", Some("prod-token")),
            ),
            (
                vec![("context", "prod"), ("token", "t")],
                vec![],
                ("https://prod", Some("t")),
            ),
            (vec![], vec![server, context], ("http://env", None)),
            (
                vec![],
                vec![server, token],
                ("http://env", Some("env-token")),
            ),
            (vec![], vec![context], ("https://prod", Some("prod-token"))),
            (vec![], vec![token], ("https://lab", Some("env-token"))),
            (vec![], vec![], ("https://lab", Some("lab-token"))),
        ] {
            let (address, token) = resolve(&flags, &environment, contexts());
            assert_eq!(
                (address.as_str(), token.as_deref()),
                expected,
                "{flags:?} {environment:?}"
            );
        }
        assert_eq!(
            resolve(&[], &[], Contexts::default()),
            (DEFAULT.to_owned(), None)
        );
    }

    #[test]
    fn the_token_file_of_the_environment_is_for_this_machine_and_comes_after_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "from-file\n").unwrap();
        let file = ("FNCTL_TOKEN_FILE", file.to_str().unwrap());
        let token = |flags: &[(&str, &str)], environment: &[(&str, &str)], contexts| {
            resolve(flags, environment, contexts).1
        };
        let from_file = Some("from-file".to_owned());
        assert_eq!(token(&[], &[file], Contexts::default()), from_file);
        for server in ["localhost:1", "http://127.0.0.1:1", "[::1]:1"] {
            let environment = [file, ("FNCTL_SERVER", server)];
            assert_eq!(token(&[], &environment, Contexts::default()), from_file);
        }
        for server in [
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
        ] {
            assert_eq!(token(&[("server", server)], &[file], contexts()), None);
        }
        // A context names another platform, whose token this is not.
        let lab = Some("lab-token".to_owned());
        assert_eq!(token(&[], &[file], contexts()), lab);
        let both = [file, ("FNCTL_TOKEN", "env-token")];
        assert_eq!(
            token(&[], &both, Contexts::default()),
            Some("env-token".to_owned())
        );
        let missing = [("FNCTL_TOKEN_FILE", "/nonexistent/token")];
        assert_eq!(token(&[], &missing, Contexts::default()), None);
    }

    #[test]
    fn a_context_that_is_not_there_is_an_error_that_suggests_one() {
        let connection = Connection {
            context: Some("prdo".to_owned()),
            ..Connection::default()
        };
        let error = connection
            .resolve(&|_| None, || Ok(contexts()))
            .unwrap_err();
        assert!(
            error.to_string().contains("did you mean 'prod'?"),
            "{error}"
        );
    }

    #[test]
    fn addresses_get_a_scheme_and_hold_no_secret() {
        assert_eq!(
            server_url("localhost:8080/").unwrap(),
            "http://localhost:8080"
        );
        assert_eq!(
            server_url("https://[::1]:8443").unwrap(),
            "https://[::1]:8443"
        );
        for wrong in [
            "",
            "ftp://x",
            "http://",
            "http://user:secret@host",
            "http://host/path",
            "http://ho st",
            "http://host?x",
        ] {
            let error = server_url(wrong).expect_err(wrong);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_in_debug_output_and_is_one_line() {
        let secret: Secret = " s3cret\n".parse().unwrap();
        assert_eq!(
            (format!("{secret:?}").as_str(), secret.reveal()),
            ("(hidden)", "s3cret")
        );
        assert!("a\r\nX-Other: 1".parse::<Secret>().is_err() && " ".parse::<Secret>().is_err());
    }
}
