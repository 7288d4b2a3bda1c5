//! The templates in Python, JavaScript and C, from `fnctl new` to an answer: what their page says, with their own
//! compilers. Only their installation is done here without the registries: `cargo xtask` has the compilers already.

use crate::cli::program;
use crate::languages::cache;
use crate::local_dev::{built_to_an_answer, command, run, workshop};
use fnctl_tests::TestPlatform;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler in the cache folder, by its package and the version that a project pins.
fn tool(package: &str, version: &str) -> PathBuf {
    let tool = cache().join(format!("tools/{package}-{version}"));
    assert!(
        tool.is_dir(),
        "{} is missing: run `cargo xtask test` once, and let xtask and the template pin one version",
        tool.display()
    );
    tool
}

/// Stands for `python3 -m venv .venv && .venv/bin/pip install -r requirements.txt`: the package that is pinned there, and
/// the program of it that the project calls, if any.
fn virtual_environment(folder: &Path, program: Option<&str>) {
    let requirements = std::fs::read_to_string(folder.join("requirements.txt")).unwrap();
    let (package, version) = requirements.trim().split_once("==").unwrap();
    let tool = tool(package, version);
    run(command("python3", folder).args(["-m", "venv", "--without-pip", ".venv"]));
    let python = folder.join(".venv/bin/python");
    let packages = run(command(&python, folder).args([
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]));
    let packages = Path::new(packages.trim());
    std::fs::write(packages.join("tool.pth"), tool.to_str().unwrap()).unwrap();
    let Some(program) = program else { return };
    // As pip does it: the program runs with the environment's Python.
    let text = std::fs::read_to_string(tool.join("bin").join(program)).unwrap();
    let (_, text) = text.split_once('\n').unwrap();
    let place = folder.join(".venv/bin").join(program);
    std::fs::write(&place, format!("#!{}\n{text}", python.display())).unwrap();
    run(Command::new("chmod").arg("+x").arg(&place));
}

/// Stands for `npm install`.
fn node_modules(folder: &Path) {
    let package = std::fs::read(folder.join("package.json")).unwrap();
    let package: serde_json::Value = serde_json::from_slice(&package).unwrap();
    let version = package["devDependencies"]["@bytecodealliance/componentize-js"]
        .as_str()
        .unwrap();
    let modules = tool("componentize-js", version).join("node_modules");
    std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
}

/// Makes a project, installs its compiler, runs its unit test, builds, deploys, and asks what its page asks.
async fn from_new_to_an_answer(template: &'static str, install: fn(&Path), tested: &'static str) {
    let compiled = tempfile::tempdir().unwrap();
    // No two builds of a component are the same, so there is no use in keeping what is compiled from it.
    let platform =
        TestPlatform::start_with(|config| config.worker.cache = compiled.path().to_owned()).await;
    let server = format!("http://{}", platform.platform().address());
    let answer = tokio::task::spawn_blocking(move || {
        let name = format!("iris-in-{template}");
        let folder = workshop().join(&name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let told = run(command(program(), &workshop()).args([
            "new",
            &name,
            "--template",
            template,
            "--json",
        ]));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let [_, setup, test, _] = told["next"].as_array().unwrap().as_slice() else {
            panic!("{told}")
        };
        // Before its compiler is there, the build says how to get it.
        let output = command(program(), &folder).arg("build").output().unwrap();
        let error = crate::local_dev::text(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(setup.as_str().unwrap()), "{error}");
        install(&folder);
        let outcome = run(command("sh", &folder).args(["-c", test.as_str().unwrap()]));
        assert!(outcome.contains(tested), "{outcome}");
        built_to_an_answer(&folder, &server)
    })
    .await
    .unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["species"], "virginica");
    // The expected probability was computed with ONNX Runtime from Python.
    let probability = answer["probability"].as_f64().unwrap();
    assert!((probability - 0.963_851).abs() < 1e-5, "{probability}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    let install = |folder: &Path| virtual_environment(folder, Some("componentize-py"));
    from_new_to_an_answer("python", install, "Ran 2 tests").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript() {
    from_new_to_an_answer("javascript", node_modules, "# pass 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c() {
    let install = |folder: &Path| virtual_environment(folder, None);
    from_new_to_an_answer("c", install, "ok").await;
}
