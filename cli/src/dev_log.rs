//! What `fnctl dev` shows while it serves: the guest's lines and one line per request, for a person at a terminal.

use crate::output::Output;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Installs it.
pub(crate) fn init(out: Output, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("--log '{filter}' cannot be read: {error}; write it like warn,guest=info")
    })?;
    tracing_subscriber::registry()
        .with(Show(out).with_filter(filter))
        .init();
    Ok(())
}

struct Show(Output);

impl<S: Subscriber> Layer<S> for Show {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(line) = fields.line(event.metadata().target(), *event.metadata().level()) {
            self.0.note(line);
        }
    }
}

/// The fields of an event as text, in their order.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), format!("{value:.1}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl Fields {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value.as_str())
    }

    fn line(&self, target: &str, level: Level) -> Option<String> {
        let get = |name| self.get(name).unwrap_or("-");
        let message = self.get("message").unwrap_or_default();
        match target {
            "guest" => {
                // A version that is only being tried has the number 0.
                let version = match get("version") {
                    "0" => "warm-up".to_owned(),
                    number => format!("v{number}"),
                };
                Some(format!("  {} {version} | {message}", get("function")))
            }
            // What is no function's request is this command's own deploying.
            "access" => self.get("function").map(|function| {
                let mut line = format!(
                    "  {function} v{} < {} -> {} in {} ms",
                    get("version"),
                    get("method"),
                    get("status"),
                    get("ms")
                );
                for extra in ["start", "code"] {
                    if let Some(value) = self.get(extra) {
                        let _ = write!(line, ", {value}");
                    }
                }
                line
            }),
            _ => {
                let mut line = format!("  fnctl {}: {message}", level.as_str().to_lowercase());
                for (name, value) in self.0.iter().filter(|(name, _)| *name != "message") {
                    let _ = write!(line, " {name}={value}");
                }
                Some(line)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_who_spoke_and_what_a_request_took() {
        let fields = |pairs: &[(&'static str, &str)]| {
            Fields(
                pairs
                    .iter()
                    .map(|(name, value)| (*name, (*value).to_owned()))
                    .collect(),
            )
        };
        let guest = fields(&[("function", "iris"), ("version", "2"), ("message", "hello")]);
        assert_eq!(
            guest.line("guest", Level::INFO).unwrap(),
            "  iris v2 | hello"
        );
        let candidate = fields(&[("function", "iris"), ("version", "0"), ("message", "hi")]);
        assert_eq!(
            candidate.line("guest", Level::INFO).unwrap(),
            "  iris warm-up | hi"
        );
        let access = [
            ("method", "POST"),
            ("function", "iris"),
            ("version", "2"),
            ("status", "200"),
            ("start", "cold"),
            ("ms", "1.2"),
            ("message", "request"),
        ];
        assert_eq!(
            fields(&access).line("access", Level::INFO).unwrap(),
            "  iris v2 < POST -> 200 in 1.2 ms, cold"
        );
        assert_eq!(fields(&access[..1]).line("access", Level::INFO), None);
        let other = fields(&[("message", "no room"), ("free", "0")]);
        assert_eq!(
            other.line("x", Level::WARN).unwrap(),
            "  fnctl warn: no room free=0"
        );
    }
}
