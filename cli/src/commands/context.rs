//! `fnctl context`: platforms under names. Tokens go in and are never printed.

use crate::app::App;
use crate::contexts::{self, Context, Contexts, read_token};
use crate::exit::usage;
use crate::output::{Table, Tone};
use crate::target::{Origin, server_url};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of a token on stdin.
const MAX_TOKEN: u64 = 64 << 10;

#[derive(Args, Debug)]
#[command(
    after_help = "A platform is chosen by --server or --context, then FNCTL_SERVER or FNCTL_CONTEXT, then the current context, then http://127.0.0.1:8080.\n\nExamples:\n  fnctl context add prod https://fnctl.example.com --token-stdin < token\n  fnctl context use prod\n  fnctl context ls\n  fnctl --context prod ls"
)]
pub(crate) struct ContextArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Keep a platform under a name; the first becomes the current one.
    #[command(
        after_help = "The token is kept in contexts.toml, which only you may read; with --token-file it stays in its file and is read each time.\n\nExamples:\n  fnctl context add prod https://fnctl.example.com --token-stdin < token\n  fnctl context add prod https://fnctl.example.com --token-file /run/secrets/fnctl --use\n  fnctl context add lab https://lab:8443 --ca-file lab-ca.pem\n  fnctl context add local localhost:8080"
    )]
    Add {
        /// What it is called.
        #[arg(value_parser = context_name)]
        name: String,
        /// Its address.
        #[arg(value_name = "URL", value_parser = crate::target::Unechoed(server_url))]
        url: String,
        /// Read the token from this file each time.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["token_stdin", "token"])]
        token_file: Option<PathBuf>,
        /// Read the token from stdin now and keep it.
        #[arg(long, conflicts_with = "token")]
        token_stdin: bool,
        /// Make it the current one.
        #[arg(long = "use")]
        make_current: bool,
        /// Replace what has this name.
        #[arg(long)]
        replace: bool,
    },
    /// Make a context the current one.
    #[command(after_help = "Examples:\n  fnctl context use prod")]
    Use {
        /// The context.
        name: String,
    },
    /// List the contexts.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  fnctl context ls\n  fnctl context ls --json | jq -r '.[].name'"
    )]
    Ls,
    /// Show a context, or the platform that commands talk to now, and why.
    #[command(after_help = "Examples:\n  fnctl context show\n  fnctl context show prod -o yaml")]
    Show {
        /// The context.
        name: Option<String>,
    },
    /// Remove contexts.
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  fnctl context rm prod"
    )]
    Rm {
        /// The contexts.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

fn context_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.len() {
        1..=63 if text.chars().all(fits) => Ok(text.to_owned()),
        _ => Err("a context's name has 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.'".to_owned()),
    }
}

/// A context as it may be seen.
#[derive(Serialize)]
struct View<'a> {
    name: Option<&'a str>,
    server: &'a str,
    /// Where the token is; never the token.
    token: String,
    ca_file: Option<&'a Path>,
    current: bool,
    /// Who chose it, if it is what commands use now.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
}

impl<'a> View<'a> {
    fn of(name: &'a str, context: &'a Context, current: Option<&str>) -> Self {
        Self {
            name: Some(name),
            server: &context.server,
            token: match (&context.token, &context.token_file) {
                (Some(_), _) => "kept here".to_owned(),
                (None, Some(file)) => format!("file {}", file.display()),
                (None, None) => "none".to_owned(),
            },
            ca_file: context.ca_file.as_deref(),
            current: current == Some(name),
            from: None,
        }
    }

    fn print(&self, app: &App) -> anyhow::Result<()> {
        app.out.show(self, |page| {
            let mut fields = vec![
                ("name", self.name.unwrap_or("-").to_owned()),
                ("server", self.server.to_owned()),
                ("token", self.token.clone()),
                (
                    "ca file",
                    self.ca_file
                        .map_or("-".to_owned(), |file| file.display().to_string()),
                ),
                (
                    "current",
                    if self.current { "yes" } else { "no" }.to_owned(),
                ),
            ];
            fields.extend(self.from.clone().map(|from| ("chosen by", from)));
            page.fields(fields);
        })
    }
}

pub(crate) fn run(app: &App, args: &ContextArgs) -> anyhow::Result<()> {
    let path = contexts::path()?;
    let mut kept = Contexts::load(&path)?;
    if contexts::is_readable_by_others(&path)
        && kept
            .contexts
            .values()
            .any(|context| context.token.is_some())
    {
        app.out.note(format!(
            "warning: others may read {} and the tokens in it; chmod 600 ends that",
            path.display()
        ));
    }
    match &args.action {
        Action::Add {
            name,
            url,
            token_file,
            token_stdin,
            make_current,
            replace,
        } => {
            if !replace && kept.contexts.contains_key(name) {
                return Err(usage(format!(
                    "there is a context '{name}' already; --replace replaces it"
                )));
            }
            let context = Context {
                server: url.clone(),
                token: match (token_stdin, &app.connection().token) {
                    (true, _) => Some(token_from_stdin()?),
                    (false, given) => given.clone(),
                },
                token_file: token_file.as_deref().map(absolute).transpose()?,
                ca_file: app
                    .connection()
                    .ca_file
                    .as_deref()
                    .map(absolute)
                    .transpose()?,
            };
            if let Some(file) = &context.token_file {
                read_token(file)?;
            }
            if context.token()?.is_some() && travels_open(url) {
                app.out.note(format!("warning: the token travels unencrypted to {url}; use https where others can listen"));
            }
            kept.contexts.insert(name.clone(), context);
            if *make_current || kept.current.is_none() {
                kept.current = Some(name.clone());
            }
            kept.save(&path)?;
            let current = kept.current.as_deref() == Some(name);
            app.out.show(&View::of(name, kept.get(name)?, kept.current.as_deref()), |page| {
                page.done(if current {
                    format!("context '{name}' is added and is the current one")
                } else {
                    format!("context '{name}' is added; `fnctl context use {name}` makes it the current one")
                });
            })
        }
        Action::Use { name } => {
            kept.get(name)?;
            kept.current = Some(name.clone());
            kept.save(&path)?;
            app.out
                .show(&View::of(name, kept.get(name)?, Some(name)), |page| {
                    page.done(format!("context '{name}' is the current one"));
                })
        }
        Action::Ls => {
            let views: Vec<_> = kept
                .contexts
                .iter()
                .map(|(name, context)| View::of(name, context, kept.current.as_deref()))
                .collect();
            app.out.show(&views, |page| {
                if views.is_empty() {
                    page.line("no contexts yet; add one with `fnctl context add NAME URL`");
                    return;
                }
                let mut table = Table::new(&["NAME", "CURRENT", "SERVER", "TOKEN"]);
                for view in &views {
                    let (mark, tone) = if view.current {
                        ("*", Tone::Good)
                    } else {
                        ("", Tone::Plain)
                    };
                    table.row([
                        (view.name.unwrap_or_default(), tone),
                        (mark, tone),
                        (view.server, Tone::Plain),
                        (view.token.as_str(), Tone::Dim),
                    ]);
                }
                page.table(table);
            })
        }
        Action::Show { name: Some(name) } => {
            View::of(name, kept.get(name)?, kept.current.as_deref()).print(app)
        }
        Action::Show { name: None } => show_chosen(app, &kept),
        Action::Rm { names } => {
            for name in names {
                kept.get(name)?;
            }
            kept.contexts.retain(|name, _| !names.contains(name));
            kept.current = kept.current.filter(|current| !names.contains(current));
            kept.save(&path)?;
            app.out
                .show(&serde_json::json!({ "removed": names }), |page| {
                    for name in names {
                        page.done(format!("context '{name}' is removed"));
                    }
                })
        }
    }
}

/// The platform that flags, environment and contexts come to.
fn show_chosen(app: &App, kept: &Contexts) -> anyhow::Result<()> {
    let target = app.target()?;
    let name = match &target.origin {
        Origin::Context(name) => Some(name.as_str()),
        _ => None,
    };
    let view = View {
        name,
        server: &target.server,
        token: if target.token.is_some() {
            "known"
        } else {
            "none"
        }
        .to_owned(),
        ca_file: target.ca_file.as_deref(),
        current: name.is_some() && kept.current.as_deref() == name,
        from: Some(target.origin.to_string()),
    };
    view.print(app)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

fn token_from_stdin() -> anyhow::Result<crate::target::Secret> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_TOKEN)
        .read_to_string(&mut text)
        .context("no token could be read from stdin")?;
    text.parse()
        .map_err(|problem| usage(format!("stdin holds no token: {problem}")))
}

/// Whether others on the way can read what is sent there.
fn travels_open(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else {
        return false;
    };
    let host = rest.rsplit_once(':').map_or(rest, |(host, port)| {
        if port.parse::<u16>().is_ok() {
            host
        } else {
            rest
        }
    });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    !is_here && host != "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_way_is_one_that_leaves_this_machine_unencrypted() {
        for url in [
            "http://127.0.0.1:8080",
            "http://localhost",
            "http://[::1]:80",
            "https://prod:1",
        ] {
            assert!(!travels_open(url), "{url}");
        }
        for url in [
            "http://prod",
            "http://10.0.0.1:8080",
            "http://[2001:db8::1]:80",
        ] {
            assert!(travels_open(url), "{url}");
        }
    }

    #[test]
    fn names_are_words() {
        assert!(context_name("prod-eu.1_b").is_ok());
        for wrong in ["", "a b", "ü", "a/b", &"x".repeat(64)] {
            assert!(context_name(wrong).is_err(), "{wrong}");
        }
    }
}
