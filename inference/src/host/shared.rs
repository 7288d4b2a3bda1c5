//! The memory that a platform and one inference host share: its layout, and the only code that touches it.
//!
//! Both sides take every byte in it for hostile: what is read is copied out first and checked afterwards, offsets are
//! checked on every access, and nothing but atomics is ever borrowed from it. The descriptor is sealed against shrinking
//! and growing, so that an access inside the mapping cannot fault.

use super::lanes::Lane;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes of a page, and the granule of the heap.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a slot's message area: a submission, later its answer.
pub(crate) const MESSAGE: usize = 8 << 10;
/// Bytes of a slot's own room for tensors: small inferences need no allocation.
pub(crate) const INLINE: usize = 64 << 10;
/// Most slots: the rings fit a page each.
pub(crate) const MAX_SLOTS: u32 = 1024;
/// Bytes of the words before a slot's message.
const SLOT_WORDS: usize = 16;
/// Most bytes of one message.
pub(crate) const MAX_MESSAGE: usize = MESSAGE - SLOT_WORDS;

/// How the memory is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Inferences that can be in the host at once; a power of two.
    pub(crate) slots: u32,
    /// Bytes for tensors that do not fit a slot's own room; a multiple of a page.
    pub(crate) heap: usize,
}

impl Layout {
    /// Room for `computes` at once, and as much again so that the next ones lie ready.
    pub(crate) fn new(computes: usize, bytes: u64) -> Self {
        let slots = u32::try_from(computes.saturating_mul(2))
            .unwrap_or(MAX_SLOTS)
            .clamp(8, MAX_SLOTS)
            .next_power_of_two();
        let heap = usize::try_from(bytes)
            .unwrap_or(usize::MAX >> 2)
            .min(1 << 40);
        Self {
            slots,
            heap: heap.next_multiple_of(PAGE),
        }
    }

    /// Whether a layout that came in a message is one that [`Layout::new`] could have made.
    pub(crate) fn is_valid(&self) -> bool {
        self.slots.is_power_of_two()
            && (8..=MAX_SLOTS).contains(&self.slots)
            && self.heap.is_multiple_of(PAGE)
            && self.heap <= 1 << 40
    }

    fn messages(&self) -> usize {
        4 * PAGE
    }

    fn inlines(&self) -> usize {
        self.messages() + self.slots as usize * MESSAGE
    }

    /// Where the heap begins.
    pub(crate) fn heap_offset(&self) -> usize {
        self.inlines() + self.slots as usize * INLINE
    }

    /// Bytes of the whole.
    pub(crate) fn length(&self) -> usize {
        self.heap_offset() + self.heap
    }

    /// Where a slot's own room begins.
    pub(crate) fn inline_offset(&self, slot: u32) -> usize {
        self.inlines() + slot as usize * INLINE
    }

    fn message_offset(&self, slot: u32) -> usize {
        self.messages() + slot as usize * MESSAGE
    }
}

/// The words of the first page. Each has a cache line of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Word {
    /// Submissions so far; the host's threads sleep on it.
    Submitted = 64,
    /// Threads that sleep, or are about to.
    Sleepers = 128,
    /// Both again, of the express lane.
    ExpressSubmitted = 384,
    ExpressSleepers = 448,
    /// Answers so far.
    Completed = 192,
    /// 1 while the platform wants a signal for the next answer.
    Armed = 256,
}

impl Word {
    /// Submissions and sleepers of a lane.
    pub(crate) fn of(lane: Lane) -> (Self, Self) {
        match lane {
            Lane::Bulk => (Self::Submitted, Self::Sleepers),
            Lane::Express => (Self::ExpressSubmitted, Self::ExpressSleepers),
        }
    }
}

/// The figures a host keeps up to date for the platform to look at. Shown, never relied on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Figure {
    /// Bytes ONNX Runtime has allocated.
    Live = 320,
    /// Inferences done.
    Computes = 328,
}

/// A slot's words.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SlotWord {
    /// The run that is not wanted any more.
    Cancelled = 0,
    /// Length of the message.
    Length = 4,
    /// What the compute took of its thread's CPU time, in nanoseconds.
    Took = 8,
}

/// One mapping of the shared memory.
pub(crate) struct Shared {
    base: NonNull<u8>,
    pub(crate) layout: Layout,
    descriptor: OwnedFd,
}

// SAFETY: the mapping belongs to this value and lives as long; it is only reached through atomics and bounded copies.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nothing borrowed from it outlives the value.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.layout.length()) };
    }
}

/// A copy would leave the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfBounds;

impl Shared {
    /// New memory. Its pages come into being as they are touched.
    pub(crate) fn create(layout: Layout) -> io::Result<Self> {
        let descriptor = rustix::fs::memfd_create(
            "fnctl-inference",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        rustix::fs::ftruncate(&descriptor, layout.length() as u64)?;
        rustix::fs::fcntl_add_seals(
            &descriptor,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Self::map(descriptor, layout)
    }

    /// Maps memory that the other side made.
    pub(crate) fn open(descriptor: OwnedFd, layout: Layout) -> io::Result<Self> {
        let invalid = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()));
        if !layout.is_valid() {
            return invalid("the layout of the shared memory is not valid");
        }
        let seals = rustix::fs::fcntl_get_seals(&descriptor)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return invalid("the shared memory is not sealed");
        }
        if rustix::fs::fstat(&descriptor)?.st_size != i64::try_from(layout.length()).unwrap_or(-1) {
            return invalid("the shared memory has another size than its layout says");
        }
        Self::map(descriptor, layout)
    }

    fn map(descriptor: OwnedFd, layout: Layout) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the system's choice replaces nothing.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                layout.length(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &descriptor,
                0,
            )?
        };
        let base = NonNull::new(base.cast())
            .ok_or_else(|| io::Error::other("the system mapped memory at address zero"))?;
        Ok(Self {
            base,
            layout,
            descriptor,
        })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn word_at(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= self.layout.heap_offset());
        // SAFETY: every caller passes an offset before the heap that is a multiple of four, and the mapping begins at a
        // page. An atomic may be shared with another process.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    pub(crate) fn word(&self, word: Word) -> &AtomicU32 {
        self.word_at(word as usize)
    }

    pub(crate) fn figure(&self, figure: Figure) -> &AtomicU64 {
        // SAFETY: as for `word_at`: constants, multiples of eight, in the first page.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(figure as usize).cast()) }
    }

    /// An entry of a lane's ring of submissions; the index is taken modulo the ring.
    pub(crate) fn submission(&self, lane: Lane, index: u32) -> &AtomicU32 {
        let page = match lane {
            Lane::Bulk => 1,
            Lane::Express => 3,
        };
        self.word_at(page * PAGE + (index & (self.layout.slots - 1)) as usize * 4)
    }

    /// An entry of the ring of answers.
    pub(crate) fn completion(&self, index: u32) -> &AtomicU32 {
        self.word_at(2 * PAGE + (index & (self.layout.slots - 1)) as usize * 4)
    }

    pub(crate) fn slot_word(&self, slot: u32, word: SlotWord) -> &AtomicU32 {
        let slot = slot & (self.layout.slots - 1);
        self.word_at(self.layout.message_offset(slot) + word as usize)
    }

    /// Writes a slot's message.
    pub(crate) fn write_message(&self, slot: u32, message: &[u8]) -> Result<(), OutOfBounds> {
        if message.len() > MAX_MESSAGE {
            return Err(OutOfBounds);
        }
        self.write(self.layout.message_offset(slot) + SLOT_WORDS, message)?;
        self.slot_word(slot, SlotWord::Length).store(
            u32::try_from(message.len()).map_err(|_| OutOfBounds)?,
            std::sync::atomic::Ordering::Release,
        );
        Ok(())
    }

    /// Copies a slot's message out.
    pub(crate) fn read_message(&self, slot: u32, to: &mut Vec<u8>) -> Result<(), OutOfBounds> {
        let length = self
            .slot_word(slot, SlotWord::Length)
            .load(std::sync::atomic::Ordering::Acquire) as usize;
        if length > MAX_MESSAGE {
            return Err(OutOfBounds);
        }
        to.resize(length, 0);
        self.read(self.layout.message_offset(slot) + SLOT_WORDS, to)
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), OutOfBounds> {
        match offset.checked_add(length) {
            Some(end) if end <= self.layout.length() => Ok(()),
            _ => Err(OutOfBounds),
        }
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check(offset, from.len())?;
        // SAFETY: the range lies in the mapping, and `from` is memory of this process, so the two do not overlap. The other
        // process may read or write the range meanwhile: bytes have no invalid value, and it is told when to look.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), from.len());
        }
        Ok(())
    }

    /// Copies bytes out. Whatever they are by then, they do not change any more.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(offset, to.len())?;
        // SAFETY: as for `write`, in the other direction.
        unsafe {
            ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    /// Copies a range out.
    pub(crate) fn read_bytes(&self, offset: usize, length: usize) -> Result<Bytes, OutOfBounds> {
        self.check(offset, length)?;
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: the range lies in the mapping, the vector has room for it, and all of it is written before its length is
        // set.
        unsafe {
            ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Ok(bytes.into())
    }

    /// The range itself, for the host: ONNX Runtime reads inputs where the platform wrote them. The platform leaves them
    /// alone until it has the answer; it is the side that is trusted.
    pub(crate) fn borrow(
        self: &Arc<Self>,
        offset: usize,
        length: usize,
    ) -> Result<Bytes, OutOfBounds> {
        self.check(offset, length)?;
        Ok(Bytes::from_owner(Range {
            shared: self.clone(),
            offset,
            length,
        }))
    }

    /// Where a range lies, for the host: ONNX Runtime writes outputs where the platform will read them. The platform leaves
    /// them alone until it has the answer. The address is good for as long as this value lives.
    pub(crate) fn address(&self, offset: usize, length: usize) -> Result<NonNull<u8>, OutOfBounds> {
        self.check(offset, length)?;
        // SAFETY: the range lies in the mapping.
        Ok(unsafe { self.base.add(offset) })
    }

    /// Gives the pages of the heap back to the system; what is read there afterwards is zero.
    pub(crate) fn clear_heap(&self) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = (self.layout.heap_offset(), self.layout.heap);
        if length == 0 {
            return Ok(());
        }
        rustix::fs::fallocate(&self.descriptor, mode, offset as u64, length as u64)?;
        Ok(())
    }
}

struct Range {
    shared: Arc<Shared>,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for Range {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was checked, and the mapping lives as long as `shared`. The platform does not write to it before
        // it has the answer.
        unsafe {
            std::slice::from_raw_parts(self.shared.base.as_ptr().add(self.offset), self.length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn layout() -> Layout {
        Layout::new(4, 1 << 20)
    }

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let ours = Shared::create(layout()).unwrap();
        let theirs =
            Shared::open(ours.descriptor().try_clone_to_owned().unwrap(), ours.layout).unwrap();
        ours.write_message(3, b"hello").unwrap();
        let mut message = Vec::new();
        theirs.read_message(3, &mut message).unwrap();
        assert_eq!(message, b"hello");
        theirs.word(Word::Armed).store(1, Ordering::Release);
        assert_eq!(ours.word(Word::Armed).load(Ordering::Acquire), 1);
        let end = ours.layout.length();
        ours.write(end - 3, &[1, 2, 3]).unwrap();
        assert_eq!(theirs.read_bytes(end - 3, 3).unwrap().as_ref(), [1, 2, 3]);
        ours.clear_heap().unwrap();
        assert_eq!(theirs.read_bytes(end - 3, 3).unwrap().as_ref(), [0, 0, 0]);
    }

    #[test]
    fn nothing_is_read_or_written_outside() {
        let shared = Arc::new(Shared::create(layout()).unwrap());
        let end = shared.layout.length();
        assert_eq!(shared.write(end - 1, &[0; 2]), Err(OutOfBounds));
        assert_eq!(shared.read(usize::MAX, &mut [0; 2]), Err(OutOfBounds));
        assert!(shared.read_bytes(end, 1).is_err());
        assert!(shared.borrow(end - 4, 5).is_err());
        assert!(shared.address(end - 4, 5).is_err());
        assert!(shared.address(usize::MAX, 2).is_err());
        assert!(shared.address(end - 4, 4).is_ok());
        assert_eq!(shared.borrow(end - 4, 4).unwrap().as_ref(), [0; 4]);
        assert!(shared.write_message(0, &[0; MAX_MESSAGE + 1]).is_err());
        shared
            .slot_word(0, SlotWord::Length)
            .store(u32::MAX, Ordering::Release);
        assert_eq!(shared.read_message(0, &mut Vec::new()), Err(OutOfBounds));
    }

    #[test]
    fn memory_that_could_shrink_or_lies_about_its_size_is_refused() {
        let ours = Shared::create(layout()).unwrap();
        let descriptor = || ours.descriptor().try_clone_to_owned().unwrap();
        assert!(rustix::fs::ftruncate(descriptor(), 1).is_err(), "sealed");
        let other = Layout {
            heap: ours.layout.heap + PAGE,
            ..ours.layout
        };
        assert!(Shared::open(descriptor(), other).is_err());
        let odd = Layout {
            slots: 9,
            ..ours.layout
        };
        assert!(Shared::open(descriptor(), odd).is_err());
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&unsealed, ours.layout.length() as u64).unwrap();
        assert!(Shared::open(unsealed, ours.layout).is_err());
    }
}
