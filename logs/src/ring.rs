//! The ring of one function: a folder of numbered segments, each a file of JSON lines that `jq` can read. The newest
//! segment is appended to; the oldest are removed once the ring is too large or they are too old.
//!
//! Lines are not fsynced: a power cut may lose the last seconds of a log, a killed process only what it had queued.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// In how many steps the ring forgets.
const SEGMENTS: u64 = 8;

pub(crate) struct Ring {
    folder: PathBuf,
    max_bytes: u64,
    segments: VecDeque<Segment>,
    /// The newest segment, open for appending.
    open: Option<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    number: u64,
    bytes: u64,
    /// When its newest line was written, in milliseconds since 1970.
    newest_ms: u64,
}

/// What a reader starts from: the segments as they were, oldest first, and how much of each was written.
pub(crate) type Snapshot = Vec<(File, u64)>;

impl Ring {
    /// Opens the ring that lies in `folder`, or an empty one.
    pub(crate) fn open(folder: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let mut segments = Vec::new();
        match std::fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry?;
                    let name = entry.file_name();
                    let number = name
                        .to_str()
                        .and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
                    let (Some(number), metadata) = (number, entry.metadata()?) else {
                        continue;
                    };
                    let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
                    segments.push(Segment {
                        number,
                        bytes: metadata.len(),
                        newest_ms: millis(modified.unwrap_or_default()),
                    });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        segments.sort_unstable_by_key(|segment| segment.number);
        Ok(Self {
            folder,
            max_bytes,
            segments: segments.into(),
            open: None,
        })
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends whole lines, and makes room for them.
    pub(crate) fn append(&mut self, mut lines: &[u8], now_ms: u64) -> io::Result<()> {
        let full = (self.max_bytes / SEGMENTS).max(1);
        while !lines.is_empty() {
            let (piece, rest) = split(lines, usize::try_from(full).unwrap_or(usize::MAX));
            self.append_piece(piece, full, now_ms)?;
            lines = rest;
        }
        Ok(())
    }

    /// Appends what is no larger than a segment, unless a single line is.
    fn append_piece(&mut self, lines: &[u8], full: u64, now_ms: u64) -> io::Result<()> {
        if self
            .segments
            .back()
            .is_none_or(|segment| segment.bytes >= full)
        {
            self.begin_segment()?;
        }
        let mut file = match self.open.take() {
            Some(file) => file,
            None => match self.reopen() {
                // Somebody removed it, to free the disk perhaps.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.begin_segment()?;
                    self.open
                        .take()
                        .ok_or_else(|| io::Error::other("a new segment is open"))?
                }
                other => other?,
            },
        };
        let written = file.write_all(lines);
        // What was written of a failed write is counted, and ended by the repair of the next `reopen`.
        let bytes = file.metadata().map(|metadata| metadata.len());
        if let (Some(segment), Ok(bytes)) = (self.segments.back_mut(), bytes) {
            segment.bytes = bytes;
            segment.newest_ms = now_ms;
        }
        written?;
        self.open = Some(file);
        while self.bytes() > self.max_bytes && self.segments.len() > 1 {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Removes what is older than `max_age_ms`.
    pub(crate) fn expire(&mut self, now_ms: u64, max_age_ms: u64) -> io::Result<()> {
        while self
            .segments
            .front()
            .is_some_and(|oldest| oldest.newest_ms.saturating_add(max_age_ms) < now_ms)
        {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// The stored lines, open for reading.
    pub(crate) fn snapshot(&self) -> io::Result<Snapshot> {
        let mut files = Vec::new();
        for segment in &self.segments {
            match File::open(self.path(segment.number)) {
                Ok(file) => files.push((file, segment.bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let path = self.path(number);
        self.open = Some(
            OpenOptions::new()
                .create_new(true)
                .append(true)
                .open(path)?,
        );
        self.segments.push_back(Segment {
            number,
            bytes: 0,
            newest_ms: 0,
        });
        Ok(())
    }

    /// Opens the newest segment again. A line that a killed process left half-written is ended, so that it spoils no
    /// other.
    fn reopen(&mut self) -> io::Result<File> {
        let Some(newest) = self.segments.back() else {
            return Err(io::Error::other("a ring without segments"));
        };
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(self.path(newest.number))?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(file)
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.segments.pop_front() else {
            return Ok(());
        };
        if self.segments.is_empty() {
            self.open = None;
        }
        match std::fs::remove_file(self.path(oldest.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        // Padded, so that a plain listing shows them in order.
        self.folder.join(format!("{number:012}.jsonl"))
    }

    /// Gives the file handle back; the next append opens it again.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The lines that fit into `full` bytes, at least one, and the rest.
fn split(lines: &[u8], full: usize) -> (&[u8], &[u8]) {
    let fitting = lines.get(..full).unwrap_or(lines);
    let end = if fitting.len() == lines.len() {
        lines.len()
    } else {
        fitting
            .iter()
            .rposition(|byte| *byte == b'\n')
            .or_else(|| lines.iter().position(|byte| *byte == b'\n'))
            .map_or(lines.len(), |at| at + 1)
    };
    lines.split_at(end)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn text(ring: &Ring) -> String {
        let mut all = String::new();
        for (file, bytes) in ring.snapshot().unwrap() {
            file.take(bytes).read_to_string(&mut all).unwrap();
        }
        all
    }

    #[test]
    fn the_newest_lines_are_kept_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().join("a"), 800).unwrap();
        for number in 0..1_000 {
            ring.append(format!("line {number:04}\n").as_bytes(), number)
                .unwrap();
            assert!(ring.bytes() <= 800, "{} bytes", ring.bytes());
        }
        let text = text(&ring);
        assert!(text.ends_with("line 0999\n"));
        // At most one segment of eight less than the limit.
        assert!(text.len() >= 800 - 110, "{} bytes kept", text.len());
        let on_disk: u64 = std::fs::read_dir(folder.path().join("a"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, ring.bytes());
    }

    #[test]
    fn a_ring_is_found_again_and_a_half_written_line_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().to_owned(), 1 << 20).unwrap();
        ring.append(b"one\ntwo\nthr", 1).unwrap();
        drop(ring);
        let mut ring = Ring::open(folder.path().to_owned(), 1 << 20).unwrap();
        ring.append(b"four\n", 2).unwrap();
        assert_eq!(text(&ring), "one\ntwo\nthr\nfour\n");
    }

    #[test]
    fn a_burst_larger_than_the_ring_leaves_its_newest_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().to_owned(), 800).unwrap();
        let burst: String = (0..1_000)
            .map(|number| format!("line {number:04}\n"))
            .collect();
        ring.append(burst.as_bytes(), 1).unwrap();
        assert!(ring.bytes() <= 800, "{} bytes", ring.bytes());
        let text = text(&ring);
        assert!(text.ends_with("line 0999\n") && text.len() > 600, "{text}");
        let long = "x".repeat(300) + "\n";
        ring.append(long.as_bytes(), 2).unwrap();
        ring.append(b"after\n", 3).unwrap();
        assert!(self::text(&ring).ends_with("x\nafter\n"));
    }

    #[test]
    fn a_segment_that_somebody_removed_costs_only_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().to_owned(), 800).unwrap();
        for number in 0..30 {
            ring.append(format!("line {number:04}\n").as_bytes(), 1)
                .unwrap();
        }
        ring.close();
        for segment in ["000000000001.jsonl", "000000000003.jsonl"] {
            std::fs::remove_file(folder.path().join(segment)).unwrap();
        }
        ring.append(b"after\n", 2).unwrap();
        let text = text(&ring);
        assert!(
            text.starts_with("line 0010\n") && text.ends_with("after\n"),
            "{text}"
        );
    }

    #[test]
    fn old_segments_expire() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().to_owned(), 80).unwrap();
        ring.append(b"1234567890\n", 1_000).unwrap();
        ring.append(b"abcdefghij\n", 2_000).unwrap();
        ring.expire(2_500, 1_000).unwrap();
        assert_eq!(text(&ring), "abcdefghij\n");
        ring.expire(4_000, 1_000).unwrap();
        assert_eq!(text(&ring), "");
        ring.append(b"again\n", 5_000).unwrap();
        assert_eq!(text(&ring), "again\n");
    }

    #[test]
    fn a_snapshot_outlives_the_removal_of_its_segments() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path().to_owned(), 1 << 20).unwrap();
        ring.append(b"kept\n", 1).unwrap();
        let snapshot = ring.snapshot().unwrap();
        ring.append(b"later\n", 2).unwrap();
        ring.expire(10_000, 1).unwrap();
        let mut all = String::new();
        for (file, bytes) in snapshot {
            file.take(bytes).read_to_string(&mut all).unwrap();
        }
        assert_eq!(all, "kept\n");
    }
}
