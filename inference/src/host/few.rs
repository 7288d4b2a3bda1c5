//! None, one, or more than one: as much as has to be known of who was somewhere.

/// What was added, as long as it is always the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Few<T> {
    #[default]
    None,
    One(T),
    Many,
}

impl<T: Clone + PartialEq> Few<T> {
    pub(crate) fn add(&mut self, one: &T) {
        match self {
            Self::None => *self = Self::One(one.clone()),
            Self::One(known) if known == one => {}
            Self::One(_) | Self::Many => *self = Self::Many,
        }
    }

    /// The only one that was ever added.
    pub(crate) fn only(&self) -> Option<&T> {
        match self {
            Self::One(one) => Some(one),
            Self::None | Self::Many => None,
        }
    }
}
