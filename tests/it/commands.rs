//! WASI p1 command modules: stdin, stdout, CGI variables, exit codes, and `wasi_ephemeral_nn`.

use fnctl_tests::{Deployment, TestPlatform, file};
use http::Method;

async fn command() -> TestPlatform {
    let platform = TestPlatform::start().await;
    let model = file("examples/fraud/models/fraud_mlp16.onnx");
    let guest = file("tests/fixtures/guests/nn-command.wasm");
    platform
        .deploy(
            Deployment::new("command", guest)
                .model("fraud", model)
                .with("timeout", "1s"),
        )
        .await;
    platform
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_to_stdout_with_cgi_variables() {
    let platform = command().await;
    let body = vec![b'x'; 300_000];
    assert_eq!(
        platform
            .client
            .post("/fn/command?echo=", body.clone())
            .await
            .ok()
            .body,
        body
    );
    let headers = [
        ("x-thing", "some"),
        ("proxy", "evil"),
        ("authorization", "Bearer x"),
        ("content-type", "text/x"),
    ];
    let reply = platform
        .client
        .send(Method::POST, "/fn/command/a/b?env=", &headers, "12345")
        .await
        .ok();
    let text = reply.text();
    for line in [
        "REQUEST_METHOD=POST",
        "PATH_INFO=/a/b",
        "QUERY_STRING=env=",
        "SCRIPT_NAME=/fn/command",
        "CONTENT_LENGTH=5",
        "CONTENT_TYPE=text/x",
        "HTTP_X_THING=some",
        "GATEWAY_INTERFACE=CGI/1.1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(
        !text.contains("HTTP_PROXY") && !text.contains("Bearer"),
        "{text}"
    );
    assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_before_the_answer_sets_status_and_headers() {
    let platform = command().await;
    let ask = async |output: &str| {
        let output = output.to_owned();
        platform.client.post("/fn/command?echo=", output).await
    };
    let reply = ask("Status: 404 Not Found\r\nContent-Type: application/json\r\nX-Own: a\r\nContent-Length: 1\r\n\r\n{\"error\":\"none\"}").await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("x-own"), "a");
    assert_eq!(reply.text(), "{\"error\":\"none\"}");
    // An answer of its own is no failure of the function.
    let failed =
        "fnctl_invocation_errors_total{function=\"command\",kind=\"bad_response\",version=\"1\"}";
    assert_eq!(platform.metric(failed).await, 0.0);
    for body in [
        "Status: 700\n\nx",
        "Status: 404\nno end",
        "status: 404\n\nx",
    ] {
        let reply = ask(body).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_deadlines() {
    let platform = command().await;
    assert_eq!(platform.call("command?exit=0").await.status, 200);
    let failed = platform.call("command?exit=3").await;
    assert_eq!(
        (failed.status.as_u16(), failed.code().as_str()),
        (502, "bad_response")
    );
    assert!(failed.text().contains("code 3"));
    let spun = platform.call("command?spin=").await;
    assert_eq!(
        (spun.status.as_u16(), spun.code().as_str()),
        (504, "timeout")
    );
    let trapped = platform.call("command?nonsense=").await;
    assert_eq!(
        (trapped.status.as_u16(), trapped.code().as_str()),
        (502, "trap")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_ephemeral_nn_computes() {
    let platform = command().await;
    let features = "4.0209107,0.7902846,-0.5677886,6.1367888,1.0,6.0,2.8863897,2.7686369,0.241155,1.0,0.0,0.5379491,4.8986049,2.0,0.0,2.403054";
    for _ in 0..3 {
        assert_eq!(
            platform
                .client
                .post("/fn/command?model=fraud", features)
                .await
                .ok()
                .text(),
            "Ok([0.9962928])\n"
        );
    }
    assert_eq!(
        platform.metric("fnctl_inference_load_seconds_count").await,
        1.0,
        "the model stays between runs"
    );
    // 8: not found.
    assert_eq!(
        platform
            .client
            .post("/fn/command?model=nobody", features)
            .await
            .ok()
            .text(),
        "Err(8)\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_to_wasi_ephemeral_nn_are_errnos() {
    let platform = command().await;
    for (lie, errno) in [
        ("undeclared", 8),
        ("name-out-of-bounds", 1),
        ("result-out-of-bounds", 1),
        ("no-such-graph", 1),
        ("no-such-context", 1),
        ("no-such-input", 1),
        ("tensor-out-of-bounds", 1),
        ("data-out-of-bounds", 1),
        ("absurd-rank", 1),
        ("unknown-type", 1),
        ("wrong-length", 1),
        ("no-input", 1),
        ("no-output", 1),
    ] {
        assert_eq!(
            platform
                .call(&format!("command?lie={lie}"))
                .await
                .ok()
                .text(),
            format!("errno {errno}\n"),
            "{lie}"
        );
    }
}

/// A degenerate module, as text.
fn module(body: &str) -> Vec<u8> {
    let memory = "(memory (export \"memory\") 1)";
    let text = if body.starts_with("(import") {
        format!("(module {body} {memory})")
    } else {
        format!("(module {memory} {body})")
    };
    wat::parse_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn degenerate_modules_are_refused_or_fail_clearly() {
    let platform = TestPlatform::start().await;
    for (name, body) in [
        ("no start", "(func (export \"other\"))"),
        (
            "start is no function",
            "(global (export \"_start\") i32 (i32.const 0))",
        ),
        (
            "unknown import",
            "(import \"env\" \"magic\" (func)) (func (export \"_start\"))",
        ),
    ] {
        let event = platform
            .try_deploy(&Deployment::new("odd", module(body)))
            .await;
        assert_eq!(
            (&event["event"], &event["code"]),
            (&"failed".into(), &"invalid_artifact".into()),
            "{name}: {event}"
        );
    }
    platform
        .deploy(Deployment::new(
            "silent",
            module("(func (export \"_start\"))"),
        ))
        .await;
    assert_eq!(platform.call("silent").await.ok().text(), "");
    platform
        .deploy(Deployment::new(
            "trap",
            module("(func (export \"_start\") unreachable)"),
        ))
        .await;
    assert_eq!(platform.call("trap").await.code(), "trap");
    let grow = "(func (export \"_start\") (loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable)";
    platform
        .deploy(Deployment::new("grow", module(grow)).with("memory", "4MiB"))
        .await;
    assert_eq!(platform.call("grow").await.code(), "out_of_memory");
}
