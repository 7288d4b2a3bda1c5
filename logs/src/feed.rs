//! The way of live lines from the writer to one follower: a buffer of bounded size that the follower takes as a whole, so
//! that a fast log costs one hand-over for many lines. The writer never waits; what finds no room is counted.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// Most bytes that wait for one follower.
const MAX_WAITING: usize = 1 << 20;

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Lines that found no room, after those in `lines`.
    skipped: u64,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Notify,
}

/// The writer's end.
pub(crate) struct Feed {
    shared: Arc<Shared>,
    /// Whether something was put in that the follower was not told of.
    untold: bool,
}

/// The follower's end.
pub(crate) struct FeedEnd(Arc<Shared>);

/// What a follower takes at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Whole lines.
    pub(crate) lines: Bytes,
    /// How many were left out behind them.
    pub(crate) skipped: u64,
}

pub(crate) fn pair() -> (Feed, FeedEnd) {
    let shared = Arc::new(Shared::default());
    let feed = Feed {
        shared: shared.clone(),
        untold: false,
    };
    (feed, FeedEnd(shared))
}

impl Feed {
    /// Puts a line in, or counts it. The follower hears of it with `deliver`.
    pub(crate) fn offer(&mut self, line: &[u8]) {
        let mut state = self.shared.state.lock();
        // Once a line is left out, the next ones are too, until the follower has been told where.
        if state.skipped > 0 || state.lines.len() + line.len() > MAX_WAITING {
            state.skipped += 1;
        } else {
            state.lines.extend_from_slice(line);
        }
        self.untold = true;
    }

    /// Wakes the follower if there is something for it. Says whether it is still there.
    pub(crate) fn deliver(&mut self) -> bool {
        if std::mem::take(&mut self.untold) {
            self.shared.filled.notify_one();
        }
        !self.is_closed()
    }

    /// Whether the follower has gone.
    pub(crate) fn is_closed(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.filled.notify_one();
    }
}

impl FeedEnd {
    /// What has come since the last time, once there is something; nothing after the writer's end is gone.
    pub(crate) async fn take(&mut self) -> Option<Taken> {
        loop {
            {
                let mut state = self.0.state.lock();
                if !state.lines.is_empty() || state.skipped > 0 {
                    return Some(Taken {
                        lines: Bytes::from(std::mem::take(&mut state.lines)),
                        skipped: std::mem::take(&mut state.skipped),
                    });
                }
                if state.ended {
                    return None;
                }
            }
            // A notice that came before this is kept for it.
            self.0.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_together_what_has_no_room_is_counted_and_the_end_comes_last() {
        let (mut feed, mut end) = pair();
        feed.offer(b"one\n");
        feed.offer(b"two\n");
        assert!(feed.deliver());
        let taken = end.take().await.unwrap();
        assert_eq!((&taken.lines[..], taken.skipped), (&b"one\ntwo\n"[..], 0));
        let long = vec![b'x'; MAX_WAITING];
        feed.offer(&long);
        feed.offer(b"a");
        feed.offer(b"b");
        let taken = end.take().await.unwrap();
        assert_eq!((taken.lines.len(), taken.skipped), (MAX_WAITING, 2));
        feed.offer(b"last\n");
        drop(feed);
        assert_eq!(&end.take().await.unwrap().lines[..], b"last\n");
        assert_eq!(end.take().await, None);
    }

    #[test]
    fn a_follower_that_left_is_noticed() {
        let (mut feed, end) = pair();
        assert!(feed.deliver() && !feed.is_closed());
        drop(end);
        assert!(!feed.deliver());
    }
}
