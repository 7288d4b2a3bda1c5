//! Reads what a ring has stored: a snapshot of its segments, line by line, through a query.

use crate::ring::Snapshot;
use bytes::Bytes;
use fnctl_core::log::{LogLine, LogQuery};
use std::io::{self, BufRead, BufReader, Read, Seek};

/// Longest stored line that is read; a ring is a file that anybody may have edited.
const MAX_STORED_LINE: u64 = 256 << 10;
/// Lines are sent on together once they have so many bytes.
const CHUNK: usize = 64 << 10;

/// Sends the stored lines that the query wants, as they are stored and many at once, until `send` says that nobody reads
/// them. Blocks while `send` does.
pub(crate) fn send_stored(
    mut snapshot: Snapshot,
    query: &LogQuery,
    mut send: impl FnMut(Bytes) -> bool,
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
    let mut chunk = Vec::new();
    let mut is_read = true;
    each_wanted(&mut snapshot, query, |line| {
        if skip > 0 {
            skip -= 1;
            return true;
        }
        chunk.extend_from_slice(line.trim_ascii_end());
        chunk.push(b'\n');
        if chunk.len() >= CHUNK {
            is_read = send(Bytes::from(std::mem::take(&mut chunk)));
        }
        is_read
    })?;
    if is_read && !chunk.is_empty() {
        send(Bytes::from(chunk));
    }
    Ok(())
}

/// Calls `visit` with each wanted line, oldest first, until it says false. What is no line is passed over.
fn each_wanted(
    snapshot: &mut Snapshot,
    query: &LogQuery,
    mut visit: impl FnMut(&[u8]) -> bool,
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
                && !visit(&text)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}
