//! Room for a compute's tensors: its slot's own, or some of the heap that all computes of a host share.

use super::asked::{Asked, Gone, refused};
use super::computes::{Computes, Lease};
use super::shared::INLINE;
use fnctl_core::inference::InferenceErrorKind;
use std::sync::atomic::Ordering;

impl Computes {
    /// As much room as is expected to be needed, if it is there at once, and else the least. Earlier outputs were large,
    /// perhaps somebody else's; these may not be, and if they are the host asks for room of their own. Says where, and how
    /// much.
    pub(super) async fn place_some(
        &self,
        lease: &mut Lease,
        least: usize,
        most: usize,
    ) -> Asked<(usize, usize)> {
        let most = most.max(INLINE);
        if most > INLINE
            && let Some(offset) = self.take(lease, most)
        {
            return Ok(Ok((offset, most)));
        }
        let length = least.max(INLINE);
        let placed = self.place(lease, length).await?;
        Ok(placed.map(|offset| (offset, length)))
    }

    /// Room of `length` bytes: the slot's own, or some of the heap.
    pub(super) async fn place(&self, lease: &mut Lease, length: usize) -> Asked<usize> {
        lease.drop_block();
        if length <= INLINE {
            return Ok(Ok(self.shared.layout.inline_offset(lease.slot)));
        }
        if length > self.shared.layout.heap {
            return refused(
                InferenceErrorKind::TooLarge,
                format!(
                    "inputs and outputs of {length} bytes do not fit inference.shared_memory ({} bytes); raise it",
                    self.shared.layout.heap
                ),
            );
        }
        loop {
            // Registered before the look, so that what comes back in between is not missed.
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.over.load(Ordering::Acquire) {
                return Err(Gone);
            }
            if let Some(offset) = self.take(lease, length) {
                return Ok(Ok(offset));
            }
            room.await;
        }
    }

    /// Some of the heap, if it is there now.
    fn take(&self, lease: &mut Lease, length: usize) -> Option<usize> {
        let taken = self.arena.lock().take(length)?;
        let offset = self.shared.layout.heap_offset() + taken;
        lease.block = Some((offset, length));
        Some(offset)
    }
}
