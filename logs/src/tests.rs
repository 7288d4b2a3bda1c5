//! The rings behind their ports, with a real thread and real files.

use super::*;
use fnctl_core::ids::RequestId;
use fnctl_core::log::{LogLevel, LogSource};
use fnctl_core::units::ByteSize;

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn line(function: &str, text: &str) -> LogLine {
    LogLine {
        time_ms: fnctl_core::log::now_ms(),
        level: LogLevel::Info,
        source: LogSource::Stdout,
        function: name(function),
        version: fnctl_core::VersionNumber(1),
        request_id: RequestId::from_caller("r1"),
        context: String::new(),
        text: text.to_owned(),
        report: None,
    }
}

fn start(folder: &std::path::Path, max_bytes: u64) -> Logs {
    let config = Config {
        folder: folder.to_owned(),
        max_bytes: ByteSize(max_bytes),
        ..Config::default()
    };
    Logs::start(config, &Registry::new(), Tasks::default()).unwrap()
}

/// The texts of encoded lines.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    assert_eq!(bytes.last(), Some(&b'\n'), "whole lines");
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice::<LogLine>(line).unwrap().text)
        .collect()
}

async fn texts(rx: &mut mpsc::Receiver<LogItem>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let item = tokio::time::timeout(Duration::from_secs(10), rx.recv())
            .await
            .expect("a line in time");
        match item {
            Some(LogItem::Lines(lines)) => texts.extend(lines_of(&lines)),
            Some(LogItem::Alive) => {}
            Some(LogItem::Skipped(count)) => texts.push(format!("skipped {count}")),
            None => break,
        }
    }
    texts
}

#[tokio::test]
async fn lines_are_stored_in_order_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 1 << 20);
    for number in 0..100 {
        logs.write(line("a", &format!("{number}")));
        logs.write(line("b", "other"));
    }
    logs.stop().await;
    let logs = start(folder.path(), 1 << 20);
    let mut rx = logs.read(LogQuery::all(name("a"))).await.unwrap();
    let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(texts(&mut rx, usize::MAX).await, expected);

    let last = LogQuery {
        tail: Some(3),
        ..LogQuery::all(name("a"))
    };
    let mut rx = logs.read(last).await.unwrap();
    assert_eq!(texts(&mut rx, usize::MAX).await, ["97", "98", "99"]);
    let mut none = logs.read(LogQuery::all(name("unknown"))).await.unwrap();
    assert!(texts(&mut none, usize::MAX).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_gets_every_line_once_while_others_write() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 1 << 20);
    let writing = logs.clone();
    let writer = tokio::spawn(async move {
        for number in 0..500 {
            writing.write(line("a", &number.to_string()));
            tokio::task::yield_now().await;
        }
    });
    let query = LogQuery {
        follow: true,
        ..LogQuery::all(name("a"))
    };
    let mut rx = logs.read(query).await.unwrap();
    let expected: Vec<_> = (0..500).map(|number| number.to_string()).collect();
    assert_eq!(texts(&mut rx, 500).await, expected);
    writer.await.unwrap();
    logs.end_followers().await;
    assert!(texts(&mut rx, 1).await.is_empty(), "the stream ends");
}

#[tokio::test]
async fn a_slow_follower_is_told_what_it_missed_and_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 64 << 20);
    let query = LogQuery {
        follow: true,
        ..LogQuery::all(name("a"))
    };
    let mut slow = logs.read(query).await.unwrap();
    let mut written = 0;
    // More than the queues between writer and follower hold, at a pace the writer keeps up with.
    for _ in 0..40 {
        for _ in 0..100 {
            logs.write(line("a", &"x".repeat(1_500)));
            written += 1;
        }
        while logs.shared.metrics.written.get() < written as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let mut stored = logs.read(LogQuery::all(name("a"))).await.unwrap();
    assert_eq!(texts(&mut stored, usize::MAX).await.len(), written);
    logs.end_followers().await;
    let (mut seen, mut left_out) = (0, 0);
    while let Some(item) = slow.recv().await {
        match item {
            LogItem::Lines(lines) => seen += lines_of(&lines).len(),
            LogItem::Skipped(count) => left_out += usize::try_from(count).unwrap(),
            LogItem::Alive => {}
        }
    }
    assert!(left_out > 0, "{seen} of {written}");
    assert_eq!(seen + left_out, written, "{seen} seen, {left_out} left out");
}

#[tokio::test]
async fn one_functions_flood_costs_only_its_own_lines() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 1 << 20);
    // Keeps the writer busy for a moment, so that the queue fills.
    for _ in 0..50_000 {
        logs.write(line("flood", &"x".repeat(200)));
    }
    logs.write(line("quiet", "still here"));
    let dropped = logs.shared.metrics.dropped.get();
    assert!(dropped > 0, "the flood was faster than the writer");
    let mut rx = logs.read(LogQuery::all(name("quiet"))).await.unwrap();
    assert_eq!(texts(&mut rx, usize::MAX).await, ["still here"]);
    // The next line says what is missing.
    logs.write(line("flood", "after"));
    let mut rx = logs.read(LogQuery::all(name("flood"))).await.unwrap();
    let texts = texts(&mut rx, usize::MAX).await;
    assert!(
        texts.iter().any(|text| text.contains("were dropped")),
        "no word of {dropped} lost lines in {} lines",
        texts.len()
    );
}

#[tokio::test]
async fn a_removed_function_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 1 << 20);
    logs.write(line("a", "x"));
    logs.forget(&name("a"), VersionNumber(1));
    let mut rx = logs.read(LogQuery::all(name("a"))).await.unwrap();
    assert!(texts(&mut rx, usize::MAX).await.is_empty());
    assert!(!folder.path().join("a").exists());
    // An invocation that ends after its function was removed leaves nothing; the next deploy has the next number.
    logs.write(line("a", "late"));
    let mut rx = logs.read(LogQuery::all(name("a"))).await.unwrap();
    assert!(texts(&mut rx, usize::MAX).await.is_empty());
    assert!(!folder.path().join("a").exists());
    logs.write(LogLine {
        version: VersionNumber(2),
        ..line("a", "again")
    });
    let mut rx = logs.read(LogQuery::all(name("a"))).await.unwrap();
    assert_eq!(texts(&mut rx, usize::MAX).await, ["again"]);
}

#[tokio::test]
async fn readers_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let logs = start(folder.path(), 1 << 20);
    let query = LogQuery {
        follow: true,
        ..LogQuery::all(name("a"))
    };
    let mut open = Vec::new();
    for _ in 0..MAX_READERS {
        open.push(logs.read(query.clone()).await.unwrap());
    }
    let refused = logs.read(query.clone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    open.clear();
    tokio::time::timeout(Duration::from_secs(5), async {
        while logs.read(query.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("places come free");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_is_alive_and_ends_when_nobody_takes_that() {
    let (_feed, end) = feed::pair();
    let (tx, mut rx) = mpsc::channel(READER_QUEUE);
    let started = tokio::time::Instant::now();
    let following = tokio::spawn(async move { follow(end, &tx).await });
    assert_eq!(rx.recv().await, Some(LogItem::Alive));
    assert_eq!(started.elapsed(), HEARTBEAT);
    // Nothing is taken any more: the queue fills, and the next one waits until the reader is given up.
    following.await.unwrap();
    let count = u32::try_from(READER_QUEUE).unwrap();
    assert_eq!(started.elapsed(), HEARTBEAT * (count + 2) + STALLED);
}
