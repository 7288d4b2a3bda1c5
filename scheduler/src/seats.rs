//! The seats of instances that serve several callers at once, as a pure state: which instance has a free one, and who may
//! still use it.
//!
//! An instance of one seat is handed over whole and never shows here. One of several stays here while anybody uses it;
//! its users have handles of it. Free seats of the instance that is used most go first, so that the others can go idle.

use std::num::NonZeroU32;

/// An instance of which there may be several handles. What is not said is that of one that serves one caller at a time.
pub trait Shareable: Sized {
    /// Which instance it is.
    fn id(&self) -> u64 {
        0
    }

    /// Another handle of the same instance; nothing if it serves one caller at a time.
    fn share(&self) -> Option<Self> {
        None
    }

    /// Callers that it has begun to serve so far.
    fn uses(&self) -> u64 {
        0
    }
}

#[derive(Debug)]
struct Open<S> {
    id: u64,
    root: S,
    used: usize,
    /// Callers that it has served or was lent to.
    lent: u64,
    /// Nobody new may use it.
    retired: bool,
}

/// The busy instances that have several seats.
#[derive(Debug)]
pub(crate) struct Seats<S> {
    each: usize,
    open: Vec<Open<S>>,
}

/// What became of a seat that was given back.
#[derive(Debug)]
pub(crate) enum Back<S> {
    /// The whole instance is free.
    Whole(S),
    /// The whole instance is free, and nobody may use it again.
    Retired(S),
    /// Others use it still. The handle may be dropped.
    Others(S),
}

impl<S> Seats<S> {
    pub(crate) const fn new() -> Self {
        Self {
            each: 1,
            open: Vec::new(),
        }
    }

    /// How many callers one instance serves at the same time.
    pub(crate) fn set_each(&mut self, each: usize) {
        self.each = each.max(1);
    }

    pub(crate) const fn each(&self) -> usize {
        self.each
    }

    /// Nobody new may use any of those that are in use now.
    pub(crate) fn retire_all(&mut self) {
        for open in &mut self.open {
            open.retired = true;
        }
    }

    /// Instances in use that nobody new may use.
    pub(crate) fn retired(&self) -> usize {
        self.open.iter().filter(|open| open.retired).count()
    }
}

impl<S: Shareable> Seats<S> {
    /// The first caller of an instance begins: the handle is for them.
    pub(crate) fn open(&mut self, instance: S) -> S {
        let handle = match self.each {
            1 => None,
            _ => instance.share(),
        };
        let Some(handle) = handle else {
            return instance;
        };
        self.open.push(Open {
            id: instance.id(),
            used: 1,
            lent: instance.uses().saturating_add(1),
            root: instance,
            retired: false,
        });
        handle
    }

    /// A handle of the most used instance with a free seat. `uses` is how many callers one serves in its life.
    pub(crate) fn take(&mut self, uses: Option<NonZeroU32>) -> Option<S> {
        let each = self.each;
        let open = self
            .open
            .iter_mut()
            .filter(|open| open.used < each && open.takes_more(uses))
            .max_by_key(|open| open.used)?;
        let handle = open.root.share()?;
        open.used += 1;
        open.lent = open.lent.saturating_add(1);
        Some(handle)
    }

    /// Whether the seat of this handle may go to another caller at once; it is counted as lent again.
    pub(crate) fn pass_on(&mut self, handle: &S, uses: Option<NonZeroU32>) -> bool {
        let Some(open) = self.find(handle).and_then(|at| self.open.get_mut(at)) else {
            return false;
        };
        let may = open.takes_more(uses);
        open.lent = open.lent.saturating_add(u64::from(may));
        may
    }

    /// A caller is done. With `retire` nobody new may use the instance.
    pub(crate) fn give_back(&mut self, handle: S, retire: bool) -> Back<S> {
        let Some(at) = self.find(&handle) else {
            return Back::Whole(handle);
        };
        let Some(open) = self.open.get_mut(at) else {
            return Back::Whole(handle);
        };
        open.retired |= retire;
        open.used = open.used.saturating_sub(1);
        if open.used > 0 {
            return Back::Others(handle);
        }
        let open = self.open.swap_remove(at);
        if open.retired {
            Back::Retired(handle)
        } else {
            Back::Whole(handle)
        }
    }

    fn find(&self, handle: &S) -> Option<usize> {
        if self.open.is_empty() {
            return None;
        }
        let id = handle.id();
        self.open.iter().position(|open| open.id == id)
    }
}

impl<S> Open<S> {
    fn takes_more(&self, uses: Option<NonZeroU32>) -> bool {
        !self.retired && uses.is_none_or(|uses| self.lent < u64::from(uses.get()))
    }
}

#[cfg(test)]
impl Shareable for u32 {}
