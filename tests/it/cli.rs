//! The real `fnctl`, as its user runs it.

use fnctl_tests::{TestPlatform, root};
use std::process::{Command, Output};

/// The program that `cargo xtask test` has built.
pub(crate) use fnctl_tests::program;

pub(crate) async fn fnctl(server: &str, arguments: &[&str]) -> Output {
    let (server, arguments) = (
        server.to_owned(),
        arguments
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>(),
    );
    tokio::task::spawn_blocking(move || {
        Command::new(program())
            .args(arguments)
            .env("FNCTL_SERVER", server)
            .env_remove("FNCTL_TOKEN")
            .current_dir(root())
            .output()
            .unwrap()
    })
    .await
    .unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_invoke_look_and_remove() {
    let platform = TestPlatform::start().await;
    let server = format!("http://{}", platform.platform().address());
    let deployed = fnctl(&server, &["deploy", "examples/fraud"]).await;
    assert!(deployed.status.success(), "{}", stderr(&deployed));
    assert_eq!(
        stdout(&deployed),
        format!("fraud version 1 is live at {server}/fn/fraud\n")
    );
    for step in [
        "upload",
        "validate",
        "compile",
        "load model",
        "warm up",
        "activate",
    ] {
        assert!(
            stderr(&deployed).contains(step),
            "{step} in {}",
            stderr(&deployed)
        );
    }
    assert!(
        !stderr(&deployed).contains('\u{1b}'),
        "no colours and no bars in a pipe"
    );

    let invoked = fnctl(
        &server,
        &[
            "invoke",
            "fraud",
            "-d",
            "@examples/fraud/request.json",
            "-v",
        ],
    )
    .await;
    assert_eq!(
        stdout(&invoked),
        "{\"probability\":0.9962928,\"fraud\":true}"
    );
    assert!(
        stderr(&invoked).contains("x-fnctl-start  cold"),
        "{}",
        stderr(&invoked)
    );

    // Flags win over function.toml; the same artifacts are not sent again.
    let again = fnctl(
        &server,
        &[
            "deploy",
            "examples/fraud",
            "--env",
            "THRESHOLD=0.999",
            "--memory",
            "48MiB",
            "--concurrency",
            "3",
        ],
    )
    .await;
    assert!(stderr(&again).contains("0 new"), "{}", stderr(&again));
    let strict = fnctl(
        &server,
        &["invoke", "fraud", "-d", "@examples/fraud/request.json"],
    )
    .await;
    assert_eq!(
        stdout(&strict),
        "{\"probability\":0.9962928,\"fraud\":false}"
    );
    let shown = fnctl(&server, &["get", "fraud", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        (
            &shown["version"]["config"]["memory"],
            &shown["version"]["config"]["concurrency"]
        ),
        (&"48MiB".into(), &3.into())
    );

    let listed = fnctl(&server, &["ls"]).await;
    assert!(stdout(&listed).contains("NAME") && stdout(&listed).contains("fraud"));
    let versions = fnctl(&server, &["versions", "fraud", "--json"]).await;
    let versions: serde_json::Value = serde_json::from_slice(&versions.stdout).unwrap();
    assert_eq!(
        (&versions[0]["version"], &versions[0]["live"]),
        (&2.into(), &true.into())
    );
    assert_eq!(
        stdout(&fnctl(&server, &["rollback", "fraud"]).await),
        "fraud version 1 is live\n"
    );
    assert_eq!(
        stdout(
            &fnctl(
                &server,
                &["alias", "fraud", "canary", "2", "--split", "1=90"]
            )
            .await
        ),
        "fraud:canary points to version 2\n"
    );
    let one = fnctl(
        &server,
        &["invoke", "fraud:2", "-d", "@examples/fraud/request.json"],
    )
    .await;
    assert!(stdout(&one).contains("\"fraud\":false"));
    assert_eq!(
        stdout(&fnctl(&server, &["rm", "fraud"]).await),
        "fraud is removed\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_artifact_is_deployed_by_flags() {
    let platform = TestPlatform::start().await;
    let server = format!("http://{}", platform.platform().address());
    let arguments = [
        "deploy",
        "examples/fraud/fraud.wasm",
        "--name",
        "scorer",
        "--model",
        "fraud=examples/fraud/models/fraud_mlp16.onnx",
        "--memory",
        "128MiB",
        "--timeout",
        "30s",
        "--concurrency",
        "50",
        "--provisioned",
        "0",
        "--keep-alive",
        "60s",
        "--isolation",
        "instance",
        "--env",
        "THRESHOLD=0.1",
    ];
    let deployed = fnctl(&server, &arguments).await;
    assert!(deployed.status.success(), "{}", stderr(&deployed));
    assert!(
        stdout(
            &fnctl(
                &server,
                &["invoke", "scorer", "-d", "@examples/fraud/request.json"]
            )
            .await
        )
        .contains("true")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_and_exit_codes_tell_them_apart() {
    let platform = TestPlatform::start().await;
    let server = format!("http://{}", platform.platform().address());
    let missing = fnctl(&server, &["get", "nobody"]).await;
    assert_eq!(missing.status.code(), Some(3));
    assert!(
        stderr(&missing).contains("fnctl ls") && stderr(&missing).contains("not_found"),
        "{}",
        stderr(&missing)
    );
    let unreachable = fnctl("http://127.0.0.1:1", &["ls"]).await;
    assert_eq!(unreachable.status.code(), Some(5));
    assert!(
        stderr(&unreachable).contains("fnctl serve"),
        "{}",
        stderr(&unreachable)
    );
    let usage = fnctl(&server, &["deploy", "examples/echo", "--memory", "lots"]).await;
    assert_eq!(usage.status.code(), Some(2));
    let nameless = fnctl(&server, &["deploy", "examples/echo/echo.wasm"]).await;
    assert!(
        stderr(&nameless).contains("--name"),
        "{}",
        stderr(&nameless)
    );
    let nowhere = fnctl(&server, &["deploy", "no/such/place"]).await;
    assert!(
        stderr(&nowhere).contains("function.toml"),
        "{}",
        stderr(&nowhere)
    );
    let config = fnctl(
        &server,
        &[
            "config",
            "check",
            "--set",
            "gateway.listn=x:1",
            "--set",
            "worker.max_memory=9GiB",
        ],
    )
    .await;
    assert_eq!(config.status.code(), Some(1));
    assert!(
        stderr(&config).contains("2 problem(s)") && stderr(&config).contains("gateway.listen?"),
        "{}",
        stderr(&config)
    );
}

#[test]
fn every_command_has_help_with_examples_and_there_are_completions() {
    let run =
        |arguments: &[&str]| stdout(&Command::new(program()).args(arguments).output().unwrap());
    for command in [
        "serve",
        "deploy",
        "invoke",
        "ls",
        "get",
        "versions",
        "rollback",
        "alias",
        "rm",
        "status",
        "token",
        "config",
        "context",
        "completions",
        "man",
    ] {
        assert!(run(&[command, "--help"]).contains("Examples:"), "{command}");
    }
    assert!(run(&["completions", "bash"]).contains("complete"));
    assert!(run(&["config", "show"]).contains("gateway.listen"));
}
