//! A function's way from `fnctl new` to a redeploy at a save, with the real program and the real compiler.

use crate::cli::program;
use crate::languages::cache;
use fnctl_tests::{Client, TestPlatform, probe};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// How long a compiler may take on a machine that does other things as well.
const COMPILING: Duration = Duration::from_secs(600);

/// Where projects are made: one place, so that their dependencies are compiled once and kept between runs.
pub(crate) fn workshop() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("local-dev");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A command in a folder, with what cargo told these tests taken away.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", workshop().join("target"))
        .env("ZIG_GLOBAL_CACHE_DIR", cache().join("zig"))
        .stdin(Stdio::null());
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "FNCTL_TOKEN",
    ] {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs and asserts success.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

/// Makes a project anew.
fn project(name: &str, template: &str) -> PathBuf {
    let folder = workshop().join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let told = run(command(program(), &workshop()).args(["new", name, "--template", template]));
    for next in [&format!("cd {name}"), "cargo test", "fnctl dev"] {
        assert!(told.contains(next), "{told}");
    }
    folder
}

/// Tests, builds and deploys a project, and returns what it answers to its own request.json.
fn to_an_answer(folder: &Path, server: &str) -> String {
    let tested = run(command("cargo", folder).args(["test", "--quiet"]));
    assert!(
        tested.contains("test result: ok. ") && !tested.contains("ok. 0 passed"),
        "{tested}"
    );
    built_to_an_answer(folder, server)
}

/// Builds and deploys a project, and returns what it answers to its own request.json.
pub(crate) fn built_to_an_answer(folder: &Path, server: &str) -> String {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let unbuilt = command(program(), folder)
        .args(["deploy", "--server", server])
        .output()
        .unwrap();
    assert_eq!(unbuilt.status.code(), Some(1));
    assert!(text(&unbuilt).contains("fnctl build"), "{}", text(&unbuilt));
    let built = run(command(program(), folder).arg("build"));
    assert!(
        built.contains("built ") && built.contains(".wasm"),
        "{built}"
    );
    let deployed = run(command(program(), folder).args(["deploy", "--server", server]));
    assert!(
        deployed.contains(&format!("{name} version 1 is live")),
        "{deployed}"
    );
    run(command(program(), folder).args([
        "invoke",
        name,
        "-d",
        "@request.json",
        "--server",
        server,
    ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_with_a_model_works_as_it_is_made() {
    let platform = TestPlatform::start().await;
    let server = format!("http://{}", platform.platform().address());
    let folder = project("iris-of-a-test", "rust-inference");
    let answer = tokio::task::spawn_blocking(move || {
        // What exists is never touched.
        let again = command(program(), &workshop())
            .args(["new", "iris-of-a-test"])
            .output()
            .unwrap();
        assert_eq!(again.status.code(), Some(1));
        assert!(text(&again).contains("exists already"), "{}", text(&again));
        to_an_answer(&folder, &server)
    })
    .await
    .unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["species"], "virginica");
    // The expected probability was computed with ONNX Runtime from Python.
    let probability = answer["probability"].as_f64().unwrap();
    assert!((probability - 0.963_851).abs() < 1e-5, "{probability}");
}

/// `fnctl dev`, ended with the test.
struct Dev {
    child: Child,
    lines: Receiver<String>,
}

impl Dev {
    fn start(folder: &Path, temporary: &Path) -> Self {
        let mut child = command(program(), folder)
            .args(["dev", "--listen", "127.0.0.1:0", "--log", "warn"])
            .env("TMPDIR", temporary)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = sync_channel(1000);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = tx.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for a line that contains a text.
    #[track_caller]
    fn line(&self, wanted: &str) -> String {
        let until = Instant::now() + COMPILING;
        let mut seen = Vec::new();
        while let Ok(line) = self
            .lines
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            if line.contains(wanted) {
                return line;
            }
            seen.push(line);
        }
        panic!("no '{wanted}' in {seen:?}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_is_redeployed_and_a_broken_one_is_not() {
    let platform = TestPlatform::start().await;
    let server = format!("http://{}", platform.platform().address());
    let folder = project("greeter-of-a-test", "rust-http");
    let here = folder.clone();
    let answer = tokio::task::spawn_blocking(move || to_an_answer(&here, &server))
        .await
        .unwrap();
    assert_eq!(answer, "{\"words\":6,\"most_frequent\":\"to\"}");

    let temporary = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(&folder, temporary.path());
    let live = dev.line("is live at http://");
    let url = live.split_whitespace().last().unwrap().to_owned();
    let address = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    dev.line("curl -d @request.json http://");
    dev.line("version 1 is live");
    let client = Client::new(address);
    let greeted = async || {
        client
            .get("/fn/greeter-of-a-test/hello/Ada")
            .await
            .ok()
            .text()
    };
    assert_eq!(greeted().await, "Hello, Ada!\n");

    let source = folder.join("src/lib.rs");
    let original = std::fs::read_to_string(&source).unwrap();
    let changed = original.replace("{greeting}, {name}!\\n", "{greeting} again, {name}!\\n");
    assert_ne!(changed, original);
    std::fs::write(&source, &changed).unwrap();
    let told = dev.line("saved -> live in ");
    assert!(
        told.contains("compiler ") && told.contains("deploy ") && told.ends_with("version 2"),
        "{told}"
    );
    assert_eq!(greeted().await, "Hello again, Ada!\n");

    // What does not compile leaves the version before it serving.
    std::fs::write(&source, format!("{changed}\nfn broken( {{")).unwrap();
    let told = dev.line("not redeployed");
    assert!(told.contains("version 2"), "{told}");
    assert_eq!(greeted().await, "Hello again, Ada!\n");

    // A setting is a save as well, and mends it together with the source.
    std::fs::write(&source, &changed).unwrap();
    let settings = folder.join("function.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, text.replace("\"Hello\"", "\"Salve\"")).unwrap();
    let until = Instant::now() + COMPILING;
    while greeted().await != "Salve again, Ada!\n" {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let pid = dev.child.id().to_string();
    run(Command::new("kill").args(["-TERM", &pid]));
    let status = dev.child.wait().unwrap();
    assert!(status.success(), "{status}");
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The terminal is closed while a build runs: nothing of it is left, neither data nor compiler.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_dev_and_its_build_and_leaves_nothing() {
    let (project, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = project.path();
    std::fs::write(folder.join("seed.wasm"), probe()).unwrap();
    let settings = |command: &str| {
        let text =
            format!("name = 'hung-up'\nartifact = 'probe.wasm'\n[build]\ncommand = '{command}'\n");
        std::fs::write(folder.join("function.toml"), text).unwrap();
    };
    settings("cp seed.wasm probe.wasm");
    let mut dev = Dev::start(folder, temporary.path());
    dev.line("version 1 is live");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);

    // A save begins a build that takes its time.
    settings("echo $$ > building && exec sleep 600");
    let building = folder.join("building");
    let until = Instant::now() + Duration::from_secs(20);
    let compiler = loop {
        let told = std::fs::read_to_string(&building).unwrap_or_default();
        match told.trim().parse::<u32>() {
            Ok(pid) => break pid,
            Err(_) => assert!(Instant::now() < until, "the build does not begin"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let pid = dev.child.id().to_string();
    run(Command::new("kill").args(["-HUP", &pid]));
    let status = dev.child.wait().unwrap();
    assert!(status.success(), "{status}");
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{compiler}/stat"));
        // One that nobody has waited for yet is over all the same.
        stat.is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
    };
    let until = Instant::now() + Duration::from_secs(10);
    while runs() {
        assert!(Instant::now() < until, "the build goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn doctor_names_the_fix_of_a_broken_library() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("libonnxruntime.so");
    std::fs::write(&broken, "no library").unwrap();
    let doctor = |library: Option<&Path>, arguments: &[&str]| {
        let mut command = command(program(), folder.path());
        command.args([
            "doctor",
            "--server",
            "http://127.0.0.1:1",
            "--set",
            "gateway.listen=127.0.0.1:0",
        ]);
        if let Some(library) = library {
            command.env("FNCTL_INFERENCE_LIBRARY", library);
        }
        command.args(arguments).output().unwrap()
    };
    let output = doctor(Some(&broken), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let told = text(&output);
    let line = told
        .lines()
        .position(|line| line.starts_with("fail  onnxruntime"))
        .unwrap();
    assert!(
        told.lines()
            .nth(line)
            .unwrap()
            .contains(broken.to_str().unwrap()),
        "{told}"
    );
    assert!(
        told.lines().nth(line + 1).unwrap().contains("fix: ") && told.contains("ORT_DYLIB_PATH"),
        "{told}"
    );

    let output = doctor(Some(&broken), &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);

    // Everything this test suite needs is here, so nothing else fails.
    let output = doctor(None, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["status"] == "fail")
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(
        (&report["ok"], output.status.code()),
        (&true.into(), Some(0))
    );
    for (check, status) in [
        ("onnxruntime", "ok"),
        ("port", "ok"),
        ("platform", "warn"),
        ("rust", "ok"),
    ] {
        let found = checks.iter().find(|one| one["check"] == check).unwrap();
        assert_eq!(found["status"], status, "{found}");
        assert_eq!(found.get("fix").is_some(), status != "ok", "{found}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "doctor leaves nothing behind: {left:?}");
}
