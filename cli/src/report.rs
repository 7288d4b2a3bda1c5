//! How an error is told: what happened, whether a name was misspelt, what to do next, the request's id, the exit code.

use crate::client::{ClientError, Refusal};
use crate::exit::{Exit, MissingError, UnavailableError, UsageError};
use crate::output::{Page, Tone};
use fnctl_core::ErrorKind;
use serde_json::{Value, json};

/// An error as it is told.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) message: String,
    pub(crate) exit: Exit,
    code: Option<String>,
    request_id: Option<String>,
    next: Option<String>,
    /// What the caller may have meant.
    pub(crate) suggestion: Option<String>,
}

impl Report {
    /// What an error comes to.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let mut report = Self {
            message: chain(error),
            exit: Exit::Failed,
            code: None,
            request_id: None,
            next: None,
            suggestion: None,
        };
        match error.downcast_ref::<ClientError>() {
            Some(ClientError::Refused(refusal)) => report.refused(refusal),
            Some(ClientError::FunctionAnswered {
                function,
                request_id,
                ..
            }) => {
                report.exit = Exit::Guest;
                report.request_id.clone_from(request_id);
                let logs = logs_command(function.as_deref(), request_id.as_deref());
                report.next = Some(format!("its answer is above; {logs} shows what it wrote"));
            }
            Some(ClientError::Unreachable { cause, .. }) => {
                report.exit = Exit::Unavailable;
                let next = if cause.contains("certificate") {
                    "name the certificates to trust by --ca-file, or keep them: `fnctl context add NAME URL --ca-file FILE`"
                } else {
                    "start one with `fnctl serve`, or name another with --server, FNCTL_SERVER or `fnctl context use`"
                };
                report.next = Some(next.to_owned());
            }
            Some(ClientError::NotFnctl { .. }) => {
                report.exit = Exit::Unavailable;
                report.next = Some(
                    "check the address: `fnctl context show` says where it comes from".to_owned(),
                );
            }
            None if error.is::<UsageError>() => report.exit = Exit::Usage,
            None if error.is::<MissingError>() => report.exit = Exit::NotFound,
            None if error.is::<UnavailableError>() => report.exit = Exit::Unavailable,
            None => {}
        }
        report
    }

    fn refused(&mut self, refusal: &Refusal) {
        self.code = Some(refusal.code.clone());
        self.request_id = Some(refusal.request_id.clone());
        self.exit = refusal
            .kind
            .map_or(Exit::of_status(refusal.status), Exit::of_kind);
        self.next = Some(match refusal.kind {
            Some(kind) => {
                let function = refusal.subject.as_ref().map(|subject| &*subject.function);
                let logs = logs_command(function, Some(&refusal.request_id));
                next_step(kind, refusal.retry_after, &logs)
            }
            None => "this platform knows errors that this fnctl does not; `fnctl --version` and \
                     `GET /api/v1/status` tell the two versions"
                .to_owned(),
        });
    }

    /// For people.
    pub(crate) fn write(&self, page: &mut Page) {
        let mut lines = self.message.lines();
        page.pieces([
            ("error: ", Tone::Bad),
            (lines.next().unwrap_or_default(), Tone::Plain),
        ]);
        for line in lines {
            page.line(line);
        }
        if let Some(suggestion) = &self.suggestion {
            page.pieces([("  hint: ", Tone::Good), (suggestion, Tone::Plain)]);
        }
        if let Some(next) = &self.next {
            page.pieces([("  next: ", Tone::Warn), (next, Tone::Plain)]);
        }
        let identity: Vec<_> = [
            self.code.clone(),
            self.request_id.as_ref().map(|id| format!("request {id}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !identity.is_empty() {
            page.pieces([(format!("  [{}]", identity.join(", ")), Tone::Dim)]);
        }
    }

    /// For programs.
    pub(crate) fn value(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "code": self.code,
            "request_id": self.request_id,
            "suggestion": self.suggestion,
            "next": self.next,
            "exit_code": self.exit.number(),
        }})
    }
}

/// The causes of an error, each told once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}

/// The command that shows the log of one request.
fn logs_command(function: Option<&str>, request_id: Option<&str>) -> String {
    let function = function.unwrap_or("NAME");
    match request_id {
        Some(id) => format!("`fnctl logs {function} --request {id}`"),
        None => format!("`fnctl logs {function}`"),
    }
}

/// What whoever reads an error of a kind does next.
fn next_step(kind: ErrorKind, retry_after: Option<u64>, logs: &str) -> String {
    let again = match retry_after {
        Some(seconds) => format!("try again in {seconds} s"),
        None => "try again".to_owned(),
    };
    let text = match kind {
        ErrorKind::BadRequest | ErrorKind::MethodNotAllowed => {
            "check the arguments with --help; if they are right, fnctl and platform may be of different versions"
        }
        ErrorKind::Unauthorized => {
            "pass the token by FNCTL_TOKEN or --token, or keep it: `fnctl context add NAME URL --token-stdin`"
        }
        ErrorKind::Forbidden => {
            "ask from the platform's own machine, or give the platform a token (gateway.token) and pass it here"
        }
        ErrorKind::NotFound => {
            "`fnctl ls` lists the functions, `fnctl versions NAME` versions and aliases"
        }
        ErrorKind::Conflict => "`fnctl get NAME` and `fnctl versions NAME` show the present state",
        ErrorKind::PayloadTooLarge => {
            "send less, or raise request_body in function.toml (for a deploy: gateway.max_artifact of the platform)"
        }
        ErrorKind::SlowClient => "try again over a faster connection",
        ErrorKind::RateLimited => {
            return format!("{again}; rate_limit in function.toml is the limit");
        }
        ErrorKind::Throttled => {
            return format!("{again}; concurrency and queue_size in function.toml are the limits");
        }
        ErrorKind::Cancelled => return again,
        ErrorKind::InvalidConfig => {
            "correct function.toml, then deploy again; docs/function-toml.md has every key"
        }
        ErrorKind::InvalidArtifact => {
            "build a wasi:http component or a WASI p1 command, then deploy again; docs/api.md says what a guest may import"
        }
        ErrorKind::InvalidModel => "check that the model file is whole and ONNX, then deploy again",
        ErrorKind::StartFailed | ErrorKind::Trap | ErrorKind::BadResponse => {
            return format!(
                "{logs} shows what it wrote and why it failed; `fnctl rollback NAME` goes back a version"
            );
        }
        ErrorKind::OutOfMemory => {
            "raise memory in function.toml and deploy again, or send a smaller request"
        }
        ErrorKind::CpuExceeded => {
            "raise cpu in function.toml and deploy again, or send a smaller request"
        }
        ErrorKind::Timeout => {
            "raise timeout in function.toml and deploy again, or send a smaller request"
        }
        ErrorKind::ResponseTooLarge => "raise response_body in function.toml and deploy again",
        ErrorKind::StartTimeout => {
            return format!("{again}; start_timeout in function.toml is the limit");
        }
        ErrorKind::BudgetExceeded => {
            "use smaller models, or raise inference.memory of the platform"
        }
        ErrorKind::Quarantined => {
            return format!(
                "deploy the function again once its model is repaired, or {again}; docs/inference-host.md says why"
            );
        }
        ErrorKind::Overloaded => {
            return format!("{again}, or end a `fnctl logs -f` that is not needed");
        }
        ErrorKind::QueueTimeout => {
            return format!("{again}; more concurrency in function.toml shortens the queue");
        }
        ErrorKind::NodeFull => {
            return format!("{again}; worker.max_instances is the platform's limit");
        }
        ErrorKind::Draining => {
            return format!("{again}; the platform is being stopped or restarted");
        }
        ErrorKind::Unavailable => {
            "the message says what the platform lacks; its log has the details"
        }
        ErrorKind::Corrupt | ErrorKind::Internal => {
            "the platform's log has the details under this request's id; please report it with them"
        }
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::usage;
    use crate::output::Terminal;

    fn refusal(kind: Option<ErrorKind>, status: u16) -> anyhow::Error {
        ClientError::Refused(Box::new(Refusal {
            status,
            code: kind.map_or("brand_new", ErrorKind::code).to_owned(),
            kind,
            message: "no".to_owned(),
            request_id: "abc".to_owned(),
            retry_after: Some(7),
            subject: None,
        }))
        .into()
    }

    fn text(report: &Report) -> String {
        let mut page = Page::new(Terminal {
            width: None,
            colours: false,
            unicode: false,
            bars: false,
        });
        report.write(&mut page);
        page.into_text()
    }

    #[test]
    fn every_kind_tells_its_code_the_request_and_a_next_step() {
        for kind in ErrorKind::ALL {
            let report = Report::of(&refusal(Some(*kind), 400).context("while testing"));
            let text = text(&report);
            assert!(
                text.contains(kind.code())
                    && text.contains("request abc")
                    && text.contains("next: "),
                "{text}"
            );
            assert_eq!(
                report.exit,
                Exit::of_kind(*kind),
                "a context does not hide {kind}"
            );
            if kind.retryable() && *kind != ErrorKind::SlowClient {
                assert!(text.contains("in 7 s"), "{text}");
            }
        }
    }

    #[test]
    fn an_unknown_code_is_judged_by_its_status() {
        for (status, exit) in [(404, 3), (418, 4), (500, 5), (502, 6), (503, 5), (504, 6)] {
            assert_eq!(Report::of(&refusal(None, status)).exit.number(), exit);
        }
    }

    #[test]
    fn errors_of_this_side_have_codes_too() {
        assert_eq!(Report::of(&usage("write it like x")).exit, Exit::Usage);
        assert_eq!(
            Report::of(&MissingError("no context".into()).into()).exit,
            Exit::NotFound
        );
        assert_eq!(Report::of(&anyhow::anyhow!("disk")).exit, Exit::Failed);
        let unreachable = ClientError::Unreachable {
            server: "s".into(),
            cause: "c".into(),
        };
        assert_eq!(Report::of(&unreachable.into()).exit, Exit::Unavailable);
    }
}
