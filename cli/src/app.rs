//! What every command is given: where to print, and the platform to talk to.

use crate::client::{Client, ClientError};
use crate::contexts::{self, Contexts};
use crate::output::{Output, OutputArgs, variable};
use crate::report::Report;
use crate::suggest;
use crate::target::{Connection, Target};
use std::process::ExitCode;

/// One run of the command.
pub(crate) struct App {
    /// Prints.
    pub(crate) out: Output,
    connection: Connection,
}

impl App {
    pub(crate) fn new(output: OutputArgs, connection: Connection) -> Self {
        Self {
            out: Output::new(output),
            connection,
        }
    }

    /// The flags about the platform, as they were given.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The platform that flags, environment and contexts come to.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        self.connection
            .resolve(&variable, || match contexts::path() {
                Ok(path) => Contexts::load(&path),
                // Without a home there are none.
                Err(_) => Ok(Contexts::default()),
            })
    }

    /// A client of that platform.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.target()?)
    }

    /// Tells an error and picks the exit code.
    pub(crate) fn fail(&self, error: &anyhow::Error) -> ExitCode {
        let mut report = Report::of(error);
        if let Some(ClientError::Refused(refusal)) = error.downcast_ref()
            && let Ok(client) = self.client()
        {
            report.suggestion = suggest::for_refusal(&client, refusal);
        }
        self.out.fail(&report);
        report.exit.into()
    }
}
