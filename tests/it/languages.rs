//! The examples in Python, JavaScript and C, each with its sample request and the expected answer.

use fnctl_tests::{Deployment, TestPlatform, file};
use serde_json::Value;
use std::path::PathBuf;

/// The cache folder, where `cargo xtask` keeps compilers and what they made.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("FNCTL_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("XDG_CACHE_HOME")?).join("fnctl")))
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/fnctl")))
        .unwrap_or_else(std::env::temp_dir)
}

/// A platform with a compile cache that outlives the machine's temporary folder: these components take a test build of
/// the compiler a minute each. `cargo xtask` removes it when it builds them anew.
async fn platform() -> TestPlatform {
    TestPlatform::start_with(|config| config.worker.cache = cache().join("guests/compiled")).await
}

/// Deploys an example with its model, in the memory that its function.toml says.
async fn deploy(platform: &TestPlatform, name: &str, (model, path): (&str, &str)) {
    let folder = format!("examples/{name}");
    let settings: toml::Table = String::from_utf8(file(&format!("{folder}/function.toml")))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(settings["models"][model].as_str(), Some(path));
    let deployment = Deployment::new(name, file(&format!("{folder}/{name}.wasm")))
        .model(model, file(&format!("{folder}/{path}")))
        .with("memory", settings["memory"].as_str().unwrap());
    platform.deploy(deployment).await;
}

async fn ask(platform: &TestPlatform, name: &str, body: impl Into<bytes::Bytes>) -> (u16, String) {
    let reply = platform.client.post(&format!("/fn/{name}"), body).await;
    (reply.status.as_u16(), reply.text())
}

fn json((status, text): (u16, String)) -> Value {
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn close(value: &Value, expected: f64) -> bool {
    (value.as_f64().unwrap() - expected).abs() < 1e-5
}

#[tokio::test(flavor = "multi_thread")]
async fn python_iris() {
    let platform = platform().await;
    let name = "python-iris";
    deploy(&platform, name, ("iris", "models/iris_logreg.onnx")).await;
    // More than once: an instance is used again.
    for _ in 0..5 {
        let reply = json(ask(&platform, name, file("examples/python-iris/request.json")).await);
        assert_eq!(reply["species"], "virginica");
        let probabilities = &reply["probabilities"];
        assert!(
            close(&probabilities["virginica"], 0.963_851)
                && close(&probabilities["versicolor"], 0.035_845)
                && close(&probabilities["setosa"], 0.000_304),
            "{reply}"
        );
    }
    let (status, text) = ask(&platform, name, "{\"features\":[1]}").await;
    assert_eq!((status, text.contains("4 lengths")), (400, true), "{text}");
    // A body of several reads of the stream.
    let (status, text) = ask(&platform, name, vec![b' '; 300_000]).await;
    assert_eq!((status, text.contains("not JSON")), (400, true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_digits() {
    let platform = platform().await;
    let name = "javascript-digits";
    deploy(&platform, name, ("digits", "models/digits_mlp.onnx")).await;
    for _ in 0..5 {
        let request = file("examples/javascript-digits/request.json");
        let reply = json(ask(&platform, name, request).await);
        assert_eq!(reply["digit"], 1);
        assert!(close(&reply["probability"], 0.928_857), "{reply}");
    }
    // An instance holds a limited number of resources: a wrapper that leaves them to the garbage collector traps after
    // some 1,400 requests.
    for _ in 0..2_000 {
        let request = file("examples/javascript-digits/request.json");
        let (status, text) = ask(&platform, name, request).await;
        assert_eq!(status, 200, "{text}");
    }
    let (status, text) = ask(&platform, name, "{\"pixels\":[1]}").await;
    assert_eq!((status, text.contains("64 numbers")), (400, true), "{text}");
    let (status, text) = ask(&platform, name, vec![b' '; 300_000]).await;
    assert_eq!((status, text.contains("not JSON")), (400, true), "{text}");
    let (status, _) = ask(&platform, name, "null").await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn c_fraud() {
    let platform = platform().await;
    let name = "c-fraud";
    deploy(&platform, name, ("fraud", "models/fraud_mlp16.onnx")).await;
    for _ in 0..5 {
        let reply = json(ask(&platform, name, file("examples/c-fraud/request.json")).await);
        assert!(close(&reply["probability"], 0.996_293), "{reply}");
        assert_eq!(reply["fraud"], true);
    }
    let (status, text) = ask(&platform, name, "{\"features\":[1]}").await;
    assert_eq!((status, text.contains("16 numbers")), (400, true), "{text}");
    // Without the model, the wrapper says what to do.
    let bare = Deployment::new("bare", file("examples/c-fraud/c-fraud.wasm"));
    platform.deploy(bare).await;
    let (status, _) = ask(&platform, "bare", file("examples/c-fraud/request.json")).await;
    assert_eq!(status, 502);
    let lines = platform.guest_lines().join("\n");
    assert!(lines.contains("not-found: the model 'fraud'"), "{lines}");
    assert!(
        lines.contains("declare the model under [models]"),
        "{lines}"
    );
}

/// The interfaces that guests of other languages are built against are the platform's own.
#[test]
fn the_wit_of_the_sdks_is_the_platforms() {
    let text = |path: &str| String::from_utf8(file(path)).unwrap();
    // Without comments and blanks.
    let bare = |text: &str| -> String {
        text.lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .flat_map(str::split_whitespace)
            .collect()
    };
    let python = text("sdk/python/wit/function.wit");
    assert_eq!(python, text("sdk/javascript/wit/function.wit"));
    for (source, first) in [
        ("wit/nn/wasi-nn.wit", "interface tensor"),
        ("wit/guest/lifecycle.wit", "interface lifecycle"),
    ] {
        let own = text(source);
        let own = bare(&own);
        let from = own.find(&bare(first)).unwrap();
        let own = own.split_at(from).1;
        // The worlds are not part of it.
        let own = own.split("///").next().unwrap();
        let own = own.split("worldinitialised").next().unwrap();
        assert!(bare(&python).contains(own), "{source} differs");
    }
}
