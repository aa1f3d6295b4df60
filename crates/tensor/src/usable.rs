//! What can be used, or why not.

use crate::error::{ErrorKind, Result};

/// A thing that a method can do without: there, or the reason why it is not.
///
/// Statistics of no token, of a stream with NaN, a matrix that cannot be factored: none of these is an error of the
/// caller. A method that meets them does less than asked, and says so with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Usable<T> {
    /// It can be used.
    Yes(T),
    /// It cannot be used, because ...
    No(String),
}

impl<T> Usable<T> {
    /// A reason not to use it.
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No(reason.into())
    }

    /// A numerical error as a reason; all other errors stay errors.
    ///
    /// # Errors
    /// Those that are not numerical.
    pub fn of(result: Result<T>) -> Result<Self> {
        match result {
            Ok(value) => Ok(Self::Yes(value)),
            Err(e) if e.kind() == ErrorKind::Numerical => Ok(Self::No(e.message().to_owned())),
            Err(e) => Err(e),
        }
    }

    /// The same of what `f` makes of it.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Usable<U> {
        match self {
            Self::Yes(value) => Usable::Yes(f(value)),
            Self::No(reason) => Usable::No(reason),
        }
    }

    /// What `f` makes of it, which may be unusable too.
    pub fn and_then<U>(self, f: impl FnOnce(T) -> Usable<U>) -> Usable<U> {
        match self {
            Self::Yes(value) => f(value),
            Self::No(reason) => Usable::No(reason),
        }
    }

    /// Both, or the first reason.
    pub fn and<U>(self, other: Usable<U>) -> Usable<(T, U)> {
        self.and_then(|value| other.map(|other| (value, other)))
    }

    /// It, or what `f` puts in its place, and the reason.
    pub fn or_else(self, f: impl FnOnce(&str) -> T) -> (T, Option<String>) {
        match self {
            Self::Yes(value) => (value, None),
            Self::No(reason) => (f(&reason), Some(reason)),
        }
    }
}
