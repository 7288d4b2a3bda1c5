//! Reads what a ring has stored: a snapshot of its segments, line by line, through a query.

use crate::ring::Snapshot;
use fnctl_core::log::{LogItem, LogLine, LogQuery};
use std::io::{self, BufRead, BufReader, Read, Seek};
use tokio::sync::mpsc;

/// Longest stored line that is read; a ring is a file that anybody may have edited.
const MAX_STORED_LINE: u64 = 256 << 10;

/// Sends the stored lines that the query wants. Blocks while the reader is busy; ends early when it is gone.
pub(crate) fn send_stored(
    mut snapshot: Snapshot,
    query: &LogQuery,
    out: &mpsc::Sender<LogItem>,
) -> io::Result<()> {
    // The last lines are found by counting first: two passes over the files need no memory, a window of lines would.
    let mut skip = match query.tail {
        Some(tail) => {
            let mut wanted = 0usize;
            each_wanted(&mut snapshot, query, |_| {
                wanted += 1;
                true
            })?;
            wanted.saturating_sub(tail)
        }
        None => 0,
    };
    each_wanted(&mut snapshot, query, |line| {
        if skip > 0 {
            skip -= 1;
            return !out.is_closed();
        }
        out.blocking_send(LogItem::Line(Box::new(line))).is_ok()
    })
}

/// Calls `visit` with each wanted line, oldest first, until it says false. What is no line is passed over.
fn each_wanted(
    snapshot: &mut Snapshot,
    query: &LogQuery,
    mut visit: impl FnMut(LogLine) -> bool,
) -> io::Result<()> {
    for (file, bytes) in snapshot {
        file.rewind()?;
        let mut reader = BufReader::with_capacity(64 << 10, file.take(*bytes));
        let mut text = Vec::new();
        loop {
            text.clear();
            let read = (&mut reader)
                .take(MAX_STORED_LINE)
                .read_until(b'\n', &mut text)?;
            if read == 0 {
                break;
            }
            if let Ok(line) = serde_json::from_slice::<LogLine>(&text)
                && query.wants(&line)
                && !visit(line)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}
