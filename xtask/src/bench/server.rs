//! The servers that are measured, each a process of its own that ends with its value.

use crate::process;
use anyhow::{Context, bail};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running server.
pub(crate) struct Server {
    process: Child,
    address: String,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// An address that nobody listens on at the moment.
    pub(crate) fn free_address() -> anyhow::Result<String> {
        Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
    }

    /// fnctl with the defaults and some settings, as `key=value`.
    pub(crate) fn fnctl(program: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        Self::fnctl_in(program, settings, tempfile::tempdir()?)
    }

    fn fnctl_in(program: &Path, settings: &[&str], folder: TempDir) -> anyhow::Result<Self> {
        let address = Self::free_address()?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--listen", &address, "--log", "warn", "--data"])
            .arg(folder.path().join("data"));
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self::spawn(command, address, folder)
    }

    /// Ends fnctl and starts it again on the same data.
    pub(crate) fn restart(mut self, program: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        process::run("kill", &[&self.process.id().to_string()])?;
        self.process.wait()?;
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir()?);
        drop(self);
        Self::fnctl_in(program, settings, folder)
    }

    /// `wasmtime serve` of the echo example.
    pub(crate) fn wasmtime(program: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let address = Self::free_address()?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--addr", &address, "-Scli"])
            .args(flags)
            .arg(crate::root().join("examples/echo/echo.wasm"));
        Self::spawn(command, address, tempfile::tempdir()?)
    }

    /// fastify with onnxruntime-node on the fraud model.
    pub(crate) fn node() -> anyhow::Result<Self> {
        let address = Self::free_address()?;
        let folder = crate::root().join("bench/peers/fastify");
        if !folder.join("node_modules").is_dir() {
            process::check(
                Command::new("npm")
                    .args(["install", "--no-audit", "--no-fund"])
                    .current_dir(&folder),
            )?;
        }
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.to_owned())
            .context("a port")?;
        let mut command = Command::new("node");
        command
            .arg(folder.join("server.js"))
            .arg(port)
            .arg(crate::root().join("examples/fraud/models/fraud_mlp16.onnx"));
        Self::spawn(command, address, tempfile::tempdir()?)
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn spawn(
        mut command: Command,
        address: String,
        folder: TempDir,
    ) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let mut server = Self {
            process,
            address,
            folder,
        };
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(&server.address).is_err() {
            if let Some(status) = server.process.try_wait()? {
                bail!("{name} ended with {status}");
            }
            if Instant::now() > until {
                bail!("{name} does not listen after 30 seconds");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Deploys to fnctl.
    pub(crate) fn deploy(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        let url = self.url("");
        let arguments = [&["--server", &url, "deploy"], arguments].concat();
        process::output(&program.display().to_string(), &arguments)?;
        Ok(())
    }
}
