//! What the image is built from is in the build's context: .dockerignore leaves out nothing that a file embeds, that
//! deploy/Dockerfile copies, or that the examples of the image are built from.

use fnctl_tests::root;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// A pattern of .dockerignore, and whether it takes back an exclusion.
struct Rule {
    parts: Vec<String>,
    includes: bool,
}

/// The file as Docker reads it: patterns are anchored at the root, and the last one that fits decides.
fn rules(text: &str) -> Vec<Rule> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| Rule {
            parts: line
                .trim_start_matches('!')
                .split('/')
                .map(str::to_owned)
                .collect(),
            includes: line.starts_with('!'),
        })
        .collect()
}

fn is_excluded(rules: &[Rule], path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    let fits = |rule: &Rule| (1..=parts.len()).any(|count| fits(&rule.parts, &parts[..count]));
    rules
        .iter()
        .rev()
        .find(|rule| fits(rule))
        .is_some_and(|rule| !rule.includes)
}

fn fits(pattern: &[String], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((part, rest)), _) if part == "**" => {
            fits(rest, path)
                || path
                    .split_first()
                    .is_some_and(|(_, path)| fits(pattern, path))
        }
        (Some((part, rest)), Some((name, path))) => matches(part, name) && fits(rest, path),
        _ => false,
    }
}

/// A name with any number of `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len())
                .filter(|at| name.is_char_boundary(*at))
                .any(|at| matches(rest, &name[at..]))
        }),
    }
}

/// The repository's files below a path, or the file itself.
fn tracked(path: &str) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--", path])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A path without `..`, below the repository's root.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{}", path.display()),
            other => plain.push(other),
        }
    }
    plain.to_str().unwrap().to_owned()
}

/// What the sources of a crate embed or generate code from, below the repository's root.
fn embedded(krate: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for file in tracked(krate) {
        if !file.ends_with(".rs") || file.contains("/templates/") || file.contains("tests") {
            continue;
        }
        let text = std::fs::read_to_string(root().join(&file)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let folder = Path::new(&file).parent().unwrap();
        for (start, base) in [
            ("include_str!(\"", folder),
            ("include_bytes!(\"", folder),
            ("include_dir!(\"$CARGO_MANIFEST_DIR/", Path::new(krate)),
            ("path: \"..", Path::new(krate)),
        ] {
            for rest in code.split(start).skip(1) {
                let path = rest.split('"').next().unwrap();
                let path = if start.ends_with("..") {
                    base.join(format!("..{path}"))
                } else {
                    base.join(path)
                };
                paths.push(plain(&path));
            }
        }
    }
    paths
}

/// What deploy/Dockerfile copies out of the context.
fn copied() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.contains("--from="))
        .flat_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let (_, sources) = words.split_last().unwrap();
            sources
                .iter()
                .map(|word| word.trim_end_matches('/').to_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn nothing_that_the_image_is_made_of_is_left_out_of_its_context() {
    let text = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let rules = rules(&text);
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = workspace.parse().unwrap();
    let crates = workspace["workspace"]["members"].as_array().unwrap();
    let mut needed = vec!["Cargo.toml".to_owned(), "Cargo.lock".to_owned()];
    for krate in crates.iter().map(|member| member.as_str().unwrap()) {
        needed.push(format!("{krate}/Cargo.toml"));
        if krate == "tests" || krate == "xtask" {
            continue;
        }
        needed.extend(tracked(&format!("{krate}/src")));
        needed.extend(tracked(&format!("{krate}/build.rs")));
        for path in embedded(krate) {
            let files = tracked(&path);
            assert!(!files.is_empty(), "{krate} embeds {path}, which is empty");
            needed.extend(files);
        }
    }
    for path in copied() {
        let files = tracked(&path);
        assert!(
            files.iter().any(|file| !is_excluded(&rules, file)),
            "deploy/Dockerfile copies {path}, of which nothing is in the context"
        );
    }
    // The examples of the image, and the manifests and sources of their neighbours, which cargo looks at.
    for example in ["examples/echo", "examples/fraud"] {
        needed.extend(tracked(example));
        needed.push(format!("deploy/dist/{example}/{example}.wasm"));
    }
    let neighbours = tracked("examples");
    needed.extend(neighbours.into_iter().filter(|file| {
        file.ends_with("Cargo.toml") || file.ends_with("Cargo.lock") || file.ends_with("src/lib.rs")
    }));
    for embedded in [
        "cli/templates/python/models/iris_logreg.onnx",
        "examples/Cargo.lock",
        "examples/echo/src/lib.rs",
        "sdk/c/fnctl.h",
        "wit/nn/wasi-nn.wit",
    ] {
        assert!(needed.iter().any(|path| path == embedded), "{embedded}");
    }
    let missing: Vec<_> = needed
        .iter()
        .filter(|path| is_excluded(&rules, path))
        .collect();
    assert!(missing.is_empty(), ".dockerignore leaves out {missing:?}");
}

#[test]
fn the_context_is_small_and_the_ignore_file_is_read_as_docker_reads_it() {
    let text = "*.md\n**/target\nexamples/*/models\n!examples/fraud/models\n";
    let rules = rules(text);
    for (path, excluded) in [
        ("README.md", true),
        ("cli/templates/c/README.md", false),
        ("target/debug/x", true),
        ("examples/target/x", true),
        ("examples/speech/models/a.onnx", true),
        ("examples/fraud/models/a.onnx", false),
        ("examples/fraud/src/models.rs", false),
    ] {
        assert_eq!(is_excluded(&rules, path), excluded, "{path}");
    }
    let text = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let own = self::rules(&text);
    for path in [
        "target/release/fnctl",
        "examples/embeddings/models/vocab.txt",
        "examples/fraud/fraud.wasm",
        ".env",
        ".git/config",
        "tests/it/main.rs",
        "docs/deploy.md",
    ] {
        assert!(is_excluded(&own, path), "{path}");
    }
}

#[test]
fn every_target_of_a_manifest_names_its_file_so_that_the_image_can_stand_in_for_it() {
    let listed = Command::new("git")
        .args(["ls-files", "*Cargo.toml"])
        .current_dir(root())
        .output()
        .unwrap();
    let mut seen = 0;
    for manifest in String::from_utf8(listed.stdout).unwrap().lines() {
        let text = std::fs::read_to_string(root().join(manifest)).unwrap();
        let mut blocks = text.split("\n[[").skip(1);
        for target in &mut blocks {
            let block = target.split("\n[").next().unwrap();
            seen += 1;
            assert!(
                block.lines().any(|line| line.starts_with("path = ")),
                "{manifest}: [[{block}\nhas no path; deploy/Dockerfile compiles the dependencies without our code, from files named here"
            );
        }
    }
    assert!(seen >= 3, "{seen} targets");
}
