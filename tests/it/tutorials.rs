//! Every command of docs/tutorials, typed in the order of its page with the real `fnctl` at a platform that the page's own
//! `fnctl serve` has started, and every output that a page shows.

use crate::cli::program;
use fnctl_tests::document::{self, Block};
use fnctl_tests::{Reader, file, root};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(
            #[test]
            fn $test() {
                walk_through($page);
            }
        )*
    };
}

pages! {
    sentiment_api: "sentiment-api",
    model_folder: "model-folder",
    batch_folder: "batch-folder",
    two_models: "two-models",
    provisioned_concurrency: "provisioned-concurrency",
    cold_starts: "cold-starts",
}

fn folder() -> PathBuf {
    root().join("docs/tutorials")
}

#[test]
fn the_index_leads_to_every_page_and_every_page_is_walked_through() {
    let index = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let page = name.strip_suffix(".md").unwrap().to_owned();
        if page != "README" {
            assert!(
                index.contains(&format!("({name})")),
                "{name} is missing in the index"
            );
            pages.push(page);
        }
    }
    pages.sort();
    let mut walked = PAGES.to_vec();
    walked.sort_unstable();
    assert_eq!(pages, walked);
}

/// A platform as the page starts it, on a free port and with data of its own.
struct Serving {
    process: Child,
    address: String,
    folder: TempDir,
}

impl Serving {
    fn start(command: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut words = command.split_whitespace();
        assert_eq!(
            (words.next(), words.next()),
            (Some("fnctl"), Some("serve")),
            "{command}"
        );
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut process = Command::new(program())
            .arg("serve")
            .args(words)
            .args(["--listen", "127.0.0.1:0", "--log-format", "json", "--data"])
            .arg(folder.path().join("data"))
            .current_dir(folder.path())
            .env_remove("FNCTL_TOKEN")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // The platform says that it is ready, or ends and closes its side.
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("fnctl is ready on http://")
            .and_then(|rest| rest.split_whitespace().next());
        Self {
            address: address
                .unwrap_or_else(|| panic!("{command}: {line}"))
                .to_owned(),
            process,
            folder,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // SIGKILL, to this very process.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn walk_through(page: &str) {
    let text = std::fs::read_to_string(folder().join(format!("{page}.md"))).unwrap();
    let blocks = document::blocks(&text);
    let mut starts = blocks.iter().filter(|block| block.info == "sh serve");
    let serving = Serving::start(&starts.next().unwrap().text);
    assert!(starts.next().is_none(), "{page}: one platform is enough");
    let reader = Reader::new(program().parent().unwrap(), &serving.address);
    let mut seen = None;
    let mut compared = 0;
    for block in &blocks {
        let Block { info, text, line } = block;
        let place = format!("docs/tutorials/{page}.md:{line}");
        match info.as_str() {
            "sh" | "sh fails" => {
                let output = reader.sees(text);
                let output_text = String::from_utf8_lossy(&output.stdout).into_owned();
                let should = info == "sh";
                assert_eq!(
                    output.status.success(),
                    should,
                    "{place}\n{text}\n{output_text}"
                );
                seen = Some(output_text);
            }
            "text" => {
                let output = seen
                    .take()
                    .unwrap_or_else(|| panic!("{place}: no command stands before this output"));
                if let Some(line) = document::missing_line(text, &output) {
                    panic!("{place}: '{line}' is missing in\n{output}");
                }
                compared += 1;
            }
            "sh serve" | "sh no-test" | "promql" | "toml" => seen = None,
            other => panic!("{place}: nothing is known of blocks '{other}'"),
        }
    }
    assert!(compared >= 4, "{page} shows only {compared} outputs");
    assert!(
        text.contains("```sh no-test") == text.contains("No test runs"),
        "{page}: a page with commands that no test runs says so"
    );
    let log = serving.log();
    let error = log
        .lines()
        .find(|line| line.contains("\"level\":\"ERROR\""));
    assert_eq!(error, None, "{page}");
}

#[test]
fn the_panels_and_queries_that_a_page_explains_are_those_of_the_dashboard() {
    let text = std::fs::read_to_string(folder().join("cold-starts.md")).unwrap();
    let dashboard = file("deploy/grafana/dashboards/overview.json");
    let dashboard: serde_json::Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut explained = 0;
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| panel |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for row in rows {
        let title = row.split('*').nth(1).unwrap();
        assert!(
            panels.iter().any(|panel| panel["title"] == title),
            "there is no panel '{title}'"
        );
        explained += 1;
    }
    assert!(explained >= 5, "the page explains {explained} panels");

    let documented = String::from_utf8(file("docs/metrics.md")).unwrap();
    let queries: Vec<Block> = document::blocks(&text)
        .into_iter()
        .filter(|block| block.info == "promql")
        .collect();
    assert_eq!(queries.len(), 2);
    for query in queries {
        let query = query.text.trim();
        let drawn = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
            .any(|target| target["expr"] == query);
        assert!(
            drawn || documented.contains(query),
            "no panel and no document has {query}"
        );
    }
}
