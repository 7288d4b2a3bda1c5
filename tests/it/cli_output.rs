//! What the real `fnctl` prints: formats, terminals and pipes, errors, exit codes, help and man pages.

use crate::cli::{fnctl, program, stderr, stdout};
use fnctl_tests::{TestPlatform, root};
use serde_json::Value;
use std::process::{Command, Output, Stdio};

/// The escape character, by which colours and bars are made.
const ESC: char = '\u{1b}';

fn address(platform: &TestPlatform) -> String {
    format!("http://{}", platform.platform().address())
}

/// A line of shell with `fnctl` on the path, on a terminal of its own.
async fn on_a_terminal(server: &str, line: &str, environment: &[(&str, &str)]) -> String {
    let mut shell = Command::new("script");
    shell
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .env_clear()
        .env(
            "PATH",
            std::env::join_paths([
                program().parent().unwrap(),
                "/usr/bin".as_ref(),
                "/bin".as_ref(),
            ])
            .unwrap(),
        )
        .env("FNCTL_SERVER", server)
        .env("TERM", "xterm-256color")
        .env("LANG", "C.UTF-8")
        .env("COLUMNS", "60")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .current_dir(root());
    let output = tokio::task::spawn_blocking(move || shell.output().unwrap())
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{line}: {}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

/// Runs a prepared command.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_speaks_json_and_yaml_and_both_say_the_same() {
    let platform = TestPlatform::start().await;
    let server = address(&platform);
    let deployed = fnctl(&server, &["deploy", "examples/echo", "-o", "json"]).await;
    let events: Vec<Value> = stdout(&deployed)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.last().unwrap()["event"], "deployed");
    assert!(stderr(&deployed).is_empty(), "{}", stderr(&deployed));
    let again = stdout(&fnctl(&server, &["deploy", "examples/echo", "-o", "yaml"]).await);
    let documents: Vec<_> = again
        .split("---\n")
        .filter(|text| !text.is_empty())
        .map(yaml)
        .collect();
    assert_eq!(
        (
            &documents.last().unwrap()["event"],
            &documents.last().unwrap()["version"]
        ),
        (&"deployed".into(), &2.into())
    );

    for arguments in [
        vec!["ls"],
        vec!["get", "echo"],
        vec!["versions", "echo"],
        vec!["config", "show"],
        vec!["config", "check"],
        vec!["context", "show"],
        vec!["rollback", "echo", "--to", "1"],
        vec!["alias", "echo", "canary", "2", "--split", "1=90"],
        vec!["alias", "echo", "canary", "--remove"],
    ] {
        let json = fnctl(&server, &[&arguments[..], &["--json"]].concat()).await;
        assert!(json.status.success(), "{arguments:?}: {}", stderr(&json));
        let json: Value = serde_json::from_slice(&json.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        // The alias is gone after the second of two removals.
        if arguments.contains(&"--remove") {
            continue;
        }
        let text = stdout(&fnctl(&server, &[&arguments[..], &["-o", "yaml"]].concat()).await);
        assert_eq!(yaml(&text), json, "{arguments:?}");
        let plain = stdout(&fnctl(&server, &arguments).await);
        assert!(
            !plain.is_empty() && serde_json::from_str::<Value>(&plain).is_err(),
            "{arguments:?}: {plain}"
        );
    }

    let invoked = fnctl(&server, &["invoke", "echo", "-d", "{\"a\":[1]}", "--json"]).await;
    let invoked: Value = serde_json::from_slice(&invoked.stdout).unwrap();
    assert_eq!(
        (
            &invoked["status"],
            &invoked["body"]["a"][0],
            &invoked["version"]
        ),
        (&200.into(), &1.into(), &1.into())
    );
    assert!(invoked["timing"]["run"].as_f64().unwrap() > 0.0 && invoked["request_id"].is_string());
    let removed = stdout(&fnctl(&server, &["rm", "echo", "-o", "yaml"]).await);
    assert_eq!(yaml(&removed)["removed"][0], "echo");

    let failed = fnctl(&server, &["get", "nobody", "--json"]).await;
    let error: Value = serde_json::from_slice(&failed.stderr).unwrap();
    assert_eq!(
        (&error["error"]["code"], &error["error"]["exit_code"]),
        (&"not_found".into(), &3.into())
    );
    assert!(failed.stdout.is_empty());
    let failed = fnctl(&server, &["get", "nobody", "-o", "yaml"]).await;
    assert_eq!(yaml(&stderr(&failed))["error"]["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_colours_bars_and_tables_that_fit_and_no_color_takes_them_away() {
    let platform = TestPlatform::start().await;
    let server = address(&platform);
    let deploy = "fnctl deploy examples/fraud";
    let shown = on_a_terminal(&server, deploy, &[]).await;
    let erases = |text: &str| {
        text.contains("\u{1b}[2K") || text.contains("\u{1b}[1A") || text.contains("\u{1b}[J")
    };
    assert!(
        erases(&shown) && shown.contains("✓"),
        "a bar was drawn and erased: {shown:?}"
    );
    let plain = on_a_terminal(&server, deploy, &[("NO_COLOR", "1")]).await;
    assert!(
        !plain.contains(ESC) && plain.contains("compile"),
        "{plain:?}"
    );
    for line in [
        format!("{deploy} --json"),
        format!("{deploy} -q"),
        format!("{deploy} -o yaml"),
    ] {
        let quiet = on_a_terminal(&server, &line, &[]).await;
        assert!(
            !erases(&quiet) && !quiet.contains(" ms  "),
            "{line}: {quiet:?}"
        );
    }
    let ascii = on_a_terminal(&server, deploy, &[("LC_ALL", "C")]).await;
    assert!(ascii.is_ascii(), "{ascii:?}");

    let long = "a-function-whose-name-is-so-long-that-it-does-not-fit-anywhere";
    on_a_terminal(
        &server,
        &format!("fnctl deploy examples/fraud --name {long}"),
        &[],
    )
    .await;
    let table = on_a_terminal(&server, "fnctl ls", &[("NO_COLOR", "1")]).await;
    assert_eq!(
        table.lines().count(),
        3,
        "a header and a line for each function: {table}"
    );
    assert!(
        table
            .lines()
            .all(|line| line.trim_end().chars().count() <= 60),
        "{table}"
    );
    assert!(table.contains('…') && !table.contains(long), "{table}");
    let wide = on_a_terminal(&server, "fnctl ls", &[("COLUMNS", "200")]).await;
    assert!(wide.contains(long) && wide.contains(ESC), "{wide:?}");
    // The same through a pipe on the same terminal: plain and whole.
    let piped = on_a_terminal(&server, "fnctl ls | cat", &[]).await;
    assert!(
        piped.contains(long) && !piped.contains(ESC) && !piped.contains('…'),
        "{piped:?}"
    );
    let forced = on_a_terminal(&server, "fnctl ls | cat", &[("CLICOLOR_FORCE", "1")]).await;
    assert!(forced.contains(ESC) && forced.contains(long), "{forced:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_for_each_kind_of_end() {
    let guarded =
        TestPlatform::start_with(|config| config.gateway.token = Some("s3cret".into())).await;
    let platform = TestPlatform::start().await;
    let server = address(&platform);
    let probe = [
        "deploy",
        "tests/fixtures/guests/probe.wasm",
        "--name",
        "probe",
    ];
    assert_eq!(fnctl(&server, &probe).await.status.code(), Some(0));
    let (closed, guarded) = ("http://127.0.0.1:1", address(&guarded));
    for (server, arguments, code, told) in [
        (
            server.as_str(),
            vec!["deploy", "no/such/place"],
            1,
            "function.toml",
        ),
        (
            &server,
            vec!["config", "check", "--set", "gateway.listn=x:1"],
            1,
            "gateway.listen",
        ),
        (&server, vec!["lss"], 2, "'ls'"),
        (&server, vec!["ls", "--json", "-o", "yaml"], 2, "--json"),
        (&server, vec!["--server", "ftp://x", "ls"], 2, "https://"),
        (
            &server,
            vec!["deploy", "examples/echo/echo.wasm"],
            2,
            "--name",
        ),
        (
            &server,
            vec!["alias", "probe", "a", "1", "--split", "x=1"],
            2,
            "--split",
        ),
        (
            &server,
            vec!["invoke", "probe", "-H", "nocolon"],
            2,
            "Accept:",
        ),
        (&server, vec!["get", "nobody"], 3, "not_found"),
        (&server, vec!["invoke", "probe:9"], 3, "request "),
        (
            &server,
            vec!["invoke", "probe:canary"],
            3,
            "'probe' has version 1",
        ),
        (&guarded, vec!["ls"], 4, "--token-stdin"),
        (&server, vec!["rollback", "probe"], 4, "conflict"),
        (
            &server,
            vec!["deploy", "examples/echo", "--memory", "1B"],
            4,
            "invalid_config",
        ),
        (closed, vec!["ls"], 5, "fnctl serve"),
        (
            &server,
            vec!["invoke", "probe", "--path", "/trap"],
            6,
            "[trap, request ",
        ),
        (
            &server,
            vec!["invoke", "probe", "--path", "/status?503"],
            6,
            "status 503",
        ),
        (
            &server,
            vec!["deploy", "README.md", "--name", "readme"],
            6,
            "invalid_artifact",
        ),
    ] {
        let output = fnctl(server, &arguments).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(told),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    // The function's own error answer is printed: it is what the caller asked for.
    let answer = fnctl(&server, &["invoke", "probe", "--path", "/status?404"]).await;
    assert_eq!(
        (answer.status.code(), stdout(&answer).as_str()),
        (Some(6), "as asked\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_name_is_suggested_and_an_absent_one_is_not() {
    let platform = TestPlatform::start().await;
    let server = address(&platform);
    let empty = stderr(&fnctl(&server, &["get", "frad"]).await);
    assert!(empty.contains("fnctl deploy"), "{empty}");
    for name in ["fraud", "fruits"] {
        assert!(
            fnctl(&server, &["deploy", "examples/echo", "--name", name])
                .await
                .status
                .success()
        );
    }
    fnctl(&server, &["alias", "fraud", "canary", "1"]).await;
    for (arguments, hint) in [
        (vec!["get", "frad"], "did you mean 'fraud'?"),
        (vec!["versions", "fraund"], "did you mean 'fraud'?"),
        (vec!["rm", "fraud2"], "did you mean 'fraud'?"),
        (vec!["rollback", "fruit"], "did you mean 'fruits'?"),
        (vec!["invoke", "frad:canary"], "did you mean 'fraud'?"),
        (
            vec!["invoke", "fraud:canry"],
            "did you mean 'fraud:canary'?",
        ),
        (
            vec!["invoke", "fraud:lastest"],
            "did you mean 'fraud:latest'?",
        ),
        (
            vec!["invoke", "fraud:7"],
            "'fraud' has version 1 and the alias",
        ),
    ] {
        let output = fnctl(&server, &arguments).await;
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        assert!(
            stderr(&output).contains(hint),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let other = stderr(&fnctl(&server, &["get", "sentiment"]).await);
    assert!(
        !other.contains("did you mean") && other.contains("fnctl ls"),
        "{other}"
    );
    let as_json: Value =
        serde_json::from_str(&stderr(&fnctl(&server, &["get", "frad", "--json"]).await)).unwrap();
    assert_eq!(as_json["error"]["suggestion"], "did you mean 'fraud'?");
}

#[tokio::test]
async fn a_platform_that_says_escapes_does_not_steer_the_terminal() {
    // Whoever answers at the address is not trusted.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let hostile = r#"[{"name":"a\u001b]0;owned\u0007\u009b2J\nb","live":1,"versions":1,"instances":0,"busy":0,"memory":"\u202e1MiB","keep_alive":"1s","models":[]}]"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{hostile}",
        hostile.len()
    );
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let read = socket.read(&mut head).await.unwrap();
        assert!(read > 0);
        socket.write_all(answer.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
    });
    let mut command = Command::new(program());
    command
        .arg("ls")
        .env("FNCTL_SERVER", server)
        .env("CLICOLOR_FORCE", "0");
    let text = stdout(&run(command).await);
    serving.await.unwrap();
    assert_eq!(text.lines().count(), 2, "{text:?}");
    assert!(
        text.chars()
            .all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')),
        "{text:?}"
    );
}

/// The names of the commands, as the help lists them.
fn commands() -> Vec<String> {
    let help = stdout(&Command::new(program()).arg("--help").output().unwrap());
    let listed = help.split("Options:").next().unwrap().lines();
    let names: Vec<_> = listed
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(names.len() > 10, "{help}");
    names
}

#[test]
fn every_listed_command_has_examples_and_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(program()).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    };
    run(&["man", "--dir", folder.path().to_str().unwrap()]);
    let main = std::fs::read_to_string(folder.path().join("fnctl.1")).unwrap();
    for command in commands() {
        let page =
            std::fs::read_to_string(folder.path().join(format!("fnctl-{command}.1"))).unwrap();
        assert!(page.starts_with(".ie") || page.contains(".TH"), "{page}");
        assert!(page.contains("Examples:"), "{command}");
        assert!(
            main.contains(&format!("fnctl\\-{command}(1)")),
            "fnctl.1 names {command}"
        );
        assert!(
            run(&[&command, "--help"]).contains("Examples:"),
            "{command}"
        );
        for shell in ["bash", "zsh", "fish"] {
            assert!(
                run(&["completions", shell]).contains(&command),
                "{shell} completes {command}"
            );
        }
    }
    assert!(folder.path().join("fnctl-context-add.1").is_file());
    assert!(run(&["man", "deploy"]).contains("fnctl\\-deploy"));
    let install = run(&["completions", "--help"]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            install.contains(&format!("fnctl completions {shell}")),
            "{install}"
        );
    }
}
