//! What a host writes to its standard error, as lines of the platform's log: so many, so long, and nothing but text.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// Most bytes of one line.
const LINE: usize = 1024;
/// Most lines in one second; a hostile model can make ONNX Runtime warn as often as it likes.
const LINES_PER_SECOND: u32 = 20;

/// Forwards lines until the host is gone.
pub(crate) fn forward(stderr: OwnedFd, pid: u32) -> io::Result<()> {
    let mut pipe = pipe::Receiver::from_owned_fd(stderr)?;
    tokio::spawn(async move {
        let mut lines = Lines::new(Instant::now());
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let bytes = buffer.get(..count).unwrap_or_default();
            lines.take(bytes, Instant::now(), |line| {
                tracing::warn!(target: "onnxruntime", pid, "{line}");
            });
        }
        if lines.dropped > 0 {
            tracing::warn!(target: "onnxruntime", pid, lines = lines.dropped, "the inference host said more than is logged");
        }
    });
    Ok(())
}

struct Lines {
    line: Vec<u8>,
    second: Instant,
    this_second: u32,
    dropped: u64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self {
            line: Vec::new(),
            second: now,
            this_second: 0,
            dropped: 0,
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant, mut each: impl FnMut(&str)) {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < LINE {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
                self.second = now;
                self.this_second = 0;
            }
            self.this_second += 1;
            if self.this_second > LINES_PER_SECOND {
                self.dropped += 1;
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            let printable: String = text
                .trim_end()
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            if !printable.is_empty() {
                each(&printable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_cleaned_and_counted() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let mut seen = Vec::new();
        lines.take(b"one\x1b[31m\ntw", now, |line| seen.push(line.to_owned()));
        lines.take(b"o\n", now, |line| seen.push(line.to_owned()));
        assert_eq!(seen, ["one [31m", "two"]);
        lines.take(&[b'x'; 10_000], now, |_| {});
        lines.take(b"\n", now, |line| assert_eq!(line.len(), LINE));
        let mut count = 0;
        lines.take(&b"a\n".repeat(1000), now, |_| count += 1);
        assert_eq!((count, lines.dropped), (LINES_PER_SECOND - 3, 983));
        lines.take(b"b\n", now + Duration::from_secs(1), |_| count += 1);
        assert_eq!(count, LINES_PER_SECOND - 2);
    }
}
