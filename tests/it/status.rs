//! `fnctl status` and the token file, with the real program: what the image's health check and compose.yaml rely on.

use crate::cli::program;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // SIGKILL, to this very process.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn command(token_file: Option<&Path>) -> Command {
    let mut command = Command::new(program());
    command.env_remove("FNCTL_TOKEN").env_remove("FNCTL_SERVER");
    match token_file {
        Some(path) => command.env("FNCTL_TOKEN_FILE", path),
        None => command.env_remove("FNCTL_TOKEN_FILE"),
    };
    command
}

fn serve(address: &str, data: &Path, token_file: &Path) -> Serving {
    let mut command = command(Some(token_file));
    command
        .args(["serve", "--listen", address, "--data"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Serving(command.spawn().unwrap())
}

fn fnctl(address: &str, token_file: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = command(token_file);
    command.args(["--server", address]).args(arguments);
    command.output().unwrap()
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap().trim()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn nobody_there_is_exit_code_5_and_waiting_for_it_ends() {
    let address = free_address();
    assert_eq!(fnctl(&address, None, &["status"]).status.code(), Some(5));
    let started = Instant::now();
    let waited = fnctl(&address, None, &["status", "--json", "--wait", "700ms"]);
    let took = started.elapsed();
    assert_eq!(waited.status.code(), Some(5));
    assert_eq!(json(&waited)["state"], "unreachable");
    assert!(took >= Duration::from_millis(700), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn something_that_accepts_and_says_nothing_is_not_waited_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let started = Instant::now();
    let output = fnctl(&address, None, &["status"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn wait_ends_when_the_platform_is_ready_and_the_token_file_opens_its_admin_api() {
    let folder = tempfile::tempdir().unwrap();
    let (data, token_file) = (folder.path().join("data"), folder.path().join("data/token"));
    let address = free_address();
    let waiting = command(None)
        .args(["--server", &address, "status", "--wait", "30s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let serving = serve(&address, &data, &token_file);
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(text(&waited), format!("http://{address} is ready"));

    let stranger = fnctl(&address, None, &["status", "--json"]);
    assert!(stranger.status.success());
    assert_eq!(json(&stranger)["state"], "ready");
    assert!(json(&stranger)["version"].is_null());
    assert_eq!(fnctl(&address, None, &["ls"]).status.code(), Some(4));
    assert_eq!(fnctl(&address, None, &["token"]).status.code(), Some(1));

    let owner = fnctl(&address, Some(&token_file), &["status", "--json"]);
    assert_eq!(json(&owner)["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json(&owner)["functions"], 0);
    let token = text(&fnctl(&address, Some(&token_file), &["token"])).to_owned();
    assert_eq!(token.len(), 48);
    let by_token = fnctl(&address, None, &["--token", &token, "ls"]);
    assert!(by_token.status.success(), "{by_token:?}");

    drop(serving);
    let _again = serve(&address, &data, &token_file);
    let waited = fnctl(&address, None, &["status", "--wait", "30s"]);
    assert!(waited.status.success(), "{waited:?}");
    let by_old_token = fnctl(&address, None, &["--token", &token, "ls"]);
    assert!(by_old_token.status.success(), "{by_old_token:?}");
}
