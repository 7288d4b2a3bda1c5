//! The shape of the workspace: who may use whom, and documents that must agree with the code.

use fnctl_tests::root;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

#[test]
fn crates_use_only_whom_the_architecture_allows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("fnctl-core", &[][..]),
        ("fnctl-store", &["fnctl-core"]),
        ("fnctl-logs", &["fnctl-core"]),
        ("fnctl-scheduler", &["fnctl-core"]),
        ("fnctl-worker", &["fnctl-core"]),
        ("fnctl-inference", &["fnctl-core"]),
        ("fnctl-gateway", &["fnctl-core"]),
        (
            "fnctl-platform",
            &[
                "fnctl-core",
                "fnctl-gateway",
                "fnctl-inference",
                "fnctl-logs",
                "fnctl-scheduler",
                "fnctl-store",
                "fnctl-worker",
            ],
        ),
        ("fnctl-cli", &["fnctl-core", "fnctl-platform"]),
        ("fnctl-sdk", &["fnctl-sdk-macros"]),
        ("fnctl-sdk-macros", &[]),
        ("fnctl-tests", &["fnctl-core", "fnctl-platform"]),
        ("xtask", &[]),
    ]);
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let may = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the architecture; add it there first"));
        seen.insert(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            let ours = dependency.starts_with("fnctl-") || dependency == "xtask";
            assert!(
                !ours || may.contains(&dependency),
                "{name} may not use {dependency}"
            );
        }
    }
    assert_eq!(
        seen.len(),
        allowed.len(),
        "the architecture names a crate that is gone"
    );
}

#[test]
fn the_documented_settings_are_the_real_ones() {
    let documented = std::fs::read_to_string(root().join("docs/config.md")).unwrap();
    let real = fnctl_platform::settings::documentation();
    assert!(
        documented.contains(&real),
        "docs/config.md must contain this table:\n{real}"
    );
}
