//! What an instance keeps from its init to its last request.

use crate::error::Error;
use std::any::{Any, TypeId};
use std::cell::RefCell;

/// A type that `#[init]` makes.
pub trait State: Sized + 'static {
    /// Makes it.
    fn init() -> Result<Self, Error>;
}

thread_local! {
    /// One value per type; a component has one thread and one state, a test binary may have more of both.
    static STATES: RefCell<Vec<(TypeId, &'static dyn Any)>> = const { RefCell::new(Vec::new()) };
}

/// The instance's state: made with the first call, the same value ever after.
///
/// The platform makes the first call before the first request; a host that knows nothing of fnctl has it made by the
/// first request.
pub fn state<S: State>() -> Result<&'static S, Error> {
    let known = STATES.with_borrow(|states| {
        states
            .iter()
            .find(|(id, _)| *id == TypeId::of::<S>())
            .map(|(_, state)| *state)
    });
    let state = match known {
        Some(state) => state,
        None => {
            // Lives as long as the instance, which ends by being dropped whole.
            let made: &'static dyn Any = Box::leak(Box::new(S::init()?));
            STATES.with_borrow_mut(|states| states.push((TypeId::of::<S>(), made)));
            made
        }
    };
    state
        .downcast_ref()
        .ok_or_else(|| Error::internal("the state is of another type"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local!(static INITS: Cell<u32> = const { Cell::new(0) });

    struct Counted(u32);

    impl State for Counted {
        fn init() -> Result<Self, Error> {
            INITS.set(INITS.get() + 1);
            Ok(Self(INITS.get()))
        }
    }

    #[test]
    fn init_runs_once() {
        assert_eq!(state::<Counted>().unwrap().0, 1);
        assert_eq!(state::<Counted>().unwrap().0, 1);
        assert_eq!(INITS.get(), 1);
    }
}
