//! Which parts of the shared heap are taken. Kept by the platform, in memory that a host cannot reach.

use super::shared::PAGE;

/// First fit over a sorted list of free ranges: the pages at the beginning are used again and again, those at the end
/// never come into being unless they are needed.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Offset and length, sorted, never touching each other.
    free: Vec<(usize, usize)>,
    size: usize,
    /// Whether anything was taken since the heap was cleared.
    pub(crate) touched: bool,
}

impl Arena {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            free: vec![(0, size)],
            size,
            touched: false,
        }
    }

    /// Whether nothing is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.free == [(0, self.size)]
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.size - self.free.iter().map(|(_, length)| length).sum::<usize>()
    }

    /// What a request of this length takes: whole pages.
    pub(crate) fn rounded(length: usize) -> Option<usize> {
        length.max(1).checked_next_multiple_of(PAGE)
    }

    /// Takes a range.
    pub(crate) fn take(&mut self, length: usize) -> Option<usize> {
        let length = Self::rounded(length)?;
        let index = self.free.iter().position(|(_, have)| *have >= length)?;
        let (offset, have) = self.free.get_mut(index)?;
        let taken = *offset;
        *offset += length;
        *have -= length;
        if *have == 0 {
            self.free.remove(index);
        }
        self.touched = true;
        Some(taken)
    }

    /// Gives a range back that [`Arena::take`] handed out for this length.
    pub(crate) fn give_back(&mut self, offset: usize, length: usize) {
        let Some(length) = Self::rounded(length) else {
            return;
        };
        let index = self.free.partition_point(|(start, _)| *start < offset);
        self.free.insert(index, (offset, length));
        for index in [index, index.saturating_sub(1)] {
            if let (Some((start, have)), Some((next, more))) = (
                self.free.get(index).copied(),
                self.free.get(index + 1).copied(),
            ) && start + have == next
            {
                if let Some(range) = self.free.get_mut(index) {
                    range.1 = have + more;
                }
                self.free.remove(index + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_all_comes_back() {
        let mut arena = Arena::new(64 * PAGE);
        let mut taken: Vec<(usize, usize)> = Vec::new();
        // A fixed walk of takes and returns in changing order.
        let mut state = 7_usize;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let length = 1 + (state >> 20) % (9 * PAGE);
            if state >> 60 & 1 == 0
                && let Some(offset) = arena.take(length)
            {
                let end = offset + Arena::rounded(length).unwrap();
                assert!(end <= arena.size);
                assert!(
                    taken.iter().all(|(start, have)| end <= *start
                        || offset >= start + Arena::rounded(*have).unwrap()),
                    "{offset} + {length} overlaps one of {taken:?}"
                );
                taken.push((offset, length));
            } else if !taken.is_empty() {
                let (offset, length) = taken.swap_remove((state >> 30) % taken.len());
                arena.give_back(offset, length);
            }
        }
        for (offset, length) in taken {
            arena.give_back(offset, length);
        }
        assert!(arena.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_not_given() {
        let mut arena = Arena::new(2 * PAGE);
        assert_eq!(arena.take(usize::MAX), None);
        assert_eq!(arena.take(2 * PAGE + 1), None);
        assert_eq!(arena.take(PAGE), Some(0));
        assert_eq!(arena.take(1), Some(PAGE));
        assert_eq!(arena.take(1), None);
        arena.give_back(0, PAGE);
        assert_eq!(arena.take(1), Some(0));
    }
}
