//! The allocator that ONNX Runtime gets for all its tensors: counted per session, and bounded by one budget.
//!
//! A model's file says nothing about the memory it needs (light_vgg19: 9 KB on disk, 635 MB resident), so the budget is
//! enforced where the memory is asked for. Past it, an allocation fails the way ONNX Runtime's own does, with
//! `std::bad_alloc`, which its C API turns into an error status.
//!
//! Not everything goes through it: while ONNX Runtime optimises a graph it folds constants with an allocator of its own,
//! and the graph itself is on the C++ heap. `inference.constant_folding = false` closes the first gap for models that are
//! not trusted; only a process of its own closes both.

use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use ort::sys::{OrtAllocator, OrtMemoryInfo};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Alignment of every block; MLAS wants 64 for its widest vectors.
const ALIGNMENT: usize = 64;
/// Room for the header before the block, which keeps the block aligned.
const HEADER: usize = ALIGNMENT;

static LIVE: AtomicU64 = AtomicU64::new(0);
static BUDGET: AtomicU64 = AtomicU64::new(u64::MAX);
static MEMORY_INFO: AtomicPtr<OrtMemoryInfo> = AtomicPtr::new(ptr::null_mut());
/// Address of libstdc++'s `std::__throw_bad_alloc`, or 0 where it is not to be found.
static THROW_BAD_ALLOC: AtomicUsize = AtomicUsize::new(0);

static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// Allocations refused so far, whoever asked: tells whether a load that failed met the budget.
pub(crate) fn refusals() -> u64 {
    REFUSALS.load(Ordering::Relaxed)
}

/// Bytes that ONNX Runtime holds now.
pub(crate) fn live_bytes() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// What one session holds.
#[derive(Debug, Default)]
pub(crate) struct Account {
    live: AtomicU64,
}

impl Account {
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}

/// What was missing when an allocation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shortage {
    /// Bytes by which it was over what the process may have. Less would not have helped; as much may not be enough.
    pub(crate) missing: u64,
    /// Bytes that the session would have held with it.
    pub(crate) wanted: u64,
}

thread_local! {
    /// The first refusal in the work that is charged on this thread.
    static SHORTAGE: Cell<Option<Shortage>> = const { Cell::new(None) };
    /// Whom this thread allocates for. Worker threads of ONNX Runtime's pool allocate for nobody: that counts towards
    /// the budget only.
    static CURRENT: Cell<*const Account> = const { Cell::new(ptr::null()) };
}

/// Runs `work` with every allocation of this thread charged to `account`.
pub(crate) fn charged<T>(account: &Arc<Account>, work: impl FnOnce() -> T) -> T {
    struct Restore(*const Account);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.with(|current| current.set(self.0));
        }
    }
    SHORTAGE.with(|shortage| shortage.set(None));
    let _restore = Restore(CURRENT.with(|current| current.replace(Arc::as_ptr(account))));
    work()
}

/// What was missing in the last [`charged`] work of this thread, if it was refused anything here. Threads of ONNX
/// Runtime's own pool, and what does not go through this allocator, leave no trace.
pub(crate) fn shortage() -> Option<Shortage> {
    SHORTAGE.with(Cell::get)
}

/// The same for an error of that work; what is not known in detail is taken for `at_least` so many bytes.
pub(crate) fn shortage_of(error: &InferenceError, at_least: u64) -> Option<Shortage> {
    let unknown = Shortage {
        missing: at_least,
        wanted: 0,
    };
    (error.kind == InferenceErrorKind::TooLarge).then(|| shortage().unwrap_or(unknown))
}

struct Header {
    size: usize,
    /// An owned count of an `Arc<Account>`, or null.
    account: *const Account,
}

/// Makes the allocator; it lives as long as the process, as the environment it is registered with does.
pub(crate) fn install(
    budget: u64,
    memory_info: *mut OrtMemoryInfo,
    version: u32,
) -> *mut OrtAllocator {
    BUDGET.store(budget, Ordering::Relaxed);
    MEMORY_INFO.store(memory_info, Ordering::Release);
    THROW_BAD_ALLOC.store(find_throw_bad_alloc(), Ordering::Relaxed);
    // SAFETY: `OrtAllocator::default` only fills in "no function"; every member is set right below.
    let mut allocator = unsafe { OrtAllocator::default() };
    allocator.version = version;
    // SAFETY: the two types differ only in that ours may unwind. ONNX Runtime calls them from C++ compiled with
    // exceptions, where `bad_alloc` out of an allocator is what its own allocator does too.
    allocator.Alloc = Some(unsafe {
        std::mem::transmute::<
            unsafe extern "system-unwind" fn(*mut OrtAllocator, usize) -> *mut c_void,
            unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void,
        >(allocate)
    });
    // SAFETY: as above.
    allocator.Reserve = Some(unsafe {
        std::mem::transmute::<
            unsafe extern "system-unwind" fn(*const OrtAllocator, usize) -> *mut c_void,
            unsafe extern "system" fn(*const OrtAllocator, usize) -> *mut c_void,
        >(reserve)
    });
    allocator.Free = Some(free);
    allocator.Info = Some(info);
    Box::leak(Box::new(allocator))
}

fn find_throw_bad_alloc() -> usize {
    // SAFETY: looks up libraries that are loaded already (RTLD_NOLOAD) and a symbol by name; both may be absent.
    unsafe {
        let library = libc::dlopen(
            c"libstdc++.so.6".as_ptr(),
            libc::RTLD_LAZY | libc::RTLD_NOLOAD,
        );
        let library = if library.is_null() {
            libc::RTLD_DEFAULT
        } else {
            library
        };
        libc::dlsym(library, c"_ZSt17__throw_bad_allocv".as_ptr()) as usize
    }
}

unsafe extern "system-unwind" fn allocate(_this: *mut OrtAllocator, size: usize) -> *mut c_void {
    let account = CURRENT.with(Cell::get);
    let after = LIVE
        .fetch_add(size as u64, Ordering::Relaxed)
        .saturating_add(size as u64);
    let room = size
        .checked_add(HEADER)
        .filter(|_| after <= BUDGET.load(Ordering::Relaxed));
    let block = match room {
        // SAFETY: the alignment is a power of two and a multiple of a pointer's size; null is checked below.
        Some(bytes) => unsafe { libc::memalign(ALIGNMENT, bytes) }.cast::<u8>(),
        None => ptr::null_mut(),
    };
    if block.is_null() {
        LIVE.fetch_sub(size as u64, Ordering::Relaxed);
        REFUSALS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `CURRENT` is null or points into an `Arc` that `charged` borrows for as long as it is set.
        if let Some(account) = unsafe { account.as_ref() } {
            let over = after.saturating_sub(BUDGET.load(Ordering::Relaxed));
            let shortage = Shortage {
                // Within the budget, and yet refused by the system: all of it is missing.
                missing: if over == 0 { size as u64 } else { over },
                wanted: account.live().saturating_add(size as u64),
            };
            SHORTAGE.with(|known| known.set(known.get().or(Some(shortage))));
        }
        let throw = THROW_BAD_ALLOC.load(Ordering::Relaxed);
        if throw != 0 {
            // SAFETY: the address is that of `std::__throw_bad_alloc()`, which takes nothing and never returns. The
            // C++ exception leaves through this frame, which is declared to let it and holds nothing to drop.
            let throw: unsafe extern "C-unwind" fn() -> ! = unsafe { std::mem::transmute(throw) };
            // SAFETY: as above.
            unsafe { throw() }
        }
        return ptr::null_mut();
    }
    if !account.is_null() {
        // SAFETY: see above; the count taken here is given back in `free`.
        unsafe {
            Arc::increment_strong_count(account);
            (*account).live.fetch_add(size as u64, Ordering::Relaxed);
        }
    }
    // SAFETY: the block has HEADER bytes before the part that is handed out, and is aligned for a `Header`.
    unsafe {
        block.cast::<Header>().write(Header { size, account });
        block.add(HEADER).cast()
    }
}

unsafe extern "system-unwind" fn reserve(_this: *const OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: `allocate` ignores its first argument.
    unsafe { allocate(ptr::null_mut(), size) }
}

unsafe extern "system" fn free(_this: *mut OrtAllocator, pointer: *mut c_void) {
    if pointer.is_null() {
        return;
    }
    // SAFETY: ONNX Runtime only frees what `allocate` handed out, so a header stands before it, and frees it once, so
    // the account's count is given back once.
    unsafe {
        let block = pointer.cast::<u8>().sub(HEADER);
        let Header { size, account } = block.cast::<Header>().read();
        LIVE.fetch_sub(size as u64, Ordering::Relaxed);
        if !account.is_null() {
            (*account).live.fetch_sub(size as u64, Ordering::Relaxed);
            Arc::decrement_strong_count(account);
        }
        libc::free(block.cast());
    }
}

unsafe extern "system" fn info(_this: *const OrtAllocator) -> *const OrtMemoryInfo {
    MEMORY_INFO.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_are_aligned_counted_and_given_back() {
        let _turn = crate::tests::turn_alone().await;
        let account = Arc::new(Account::default());
        let before = live_bytes();
        // SAFETY: allocate and free are called as ONNX Runtime does: free gets each block once.
        unsafe {
            let blocks = charged(&account, || {
                [1, 100, 4096].map(|size| allocate(ptr::null_mut(), size))
            });
            assert!(
                blocks
                    .iter()
                    .all(|block| !block.is_null() && (*block as usize).is_multiple_of(ALIGNMENT))
            );
            assert_eq!(account.live(), 4197);
            assert_eq!(Arc::strong_count(&account), 4);
            for block in blocks {
                block.cast::<u8>().write(7);
                free(ptr::null_mut(), block);
            }
        }
        assert_eq!(account.live(), 0);
        assert_eq!(Arc::strong_count(&account), 1);
        assert_eq!(live_bytes(), before);
        assert_eq!(charged(&account, shortage), None);
    }
}
