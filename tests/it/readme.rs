//! Every command of the README's walkthrough, as it stands there.

use crate::cli::program;
use fnctl_tests::{Reader, TestPlatform, document, root};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_walkthrough_works() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = document::blocks(&readme)
        .into_iter()
        .find(|block| block.info == "sh walkthrough")
        .unwrap();
    let platform = TestPlatform::start().await;
    let address = platform.platform().address().to_string();
    let reader = Arc::new(Reader::new(program().parent().unwrap(), &address));
    let mut count = 0;
    for line in block.text.lines().filter(|line| !line.is_empty()) {
        let command = line.replace("curl ", "curl --fail ");
        let reader = Arc::clone(&reader);
        let output = tokio::task::spawn_blocking(move || reader.types(&command))
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{line}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stdout.is_empty(), "{line} printed nothing");
        count += 1;
    }
    assert!(count >= 10, "the walkthrough has {count} commands");
}

#[test]
fn the_first_commands_are_the_two_that_a_newcomer_runs() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let first: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with("cargo xtask"))
        .take(2)
        .collect();
    assert!(first[0].starts_with("cargo xtask demo") && first[1].starts_with("cargo xtask test"));
    for document in readme
        .split('(')
        .filter_map(|part| part.split(')').next())
        .filter(|part| {
            part.starts_with("docs/") || part.starts_with("examples/") || part.ends_with(".md")
        })
    {
        assert!(
            root().join(document).exists(),
            "the README links to {document}, which is not there"
        );
    }
}
