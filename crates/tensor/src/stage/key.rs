use super::value::{Takes, Value};

/// A key of a stage: what is said of a knob, and the value it has in one recipe.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub takes: Takes,
    /// What it does.
    pub about: &'static str,
    /// The value where none is given; absent where that stands for "not used".
    pub default: Option<Value>,
    /// The value in this recipe.
    pub value: Option<Value>,
    /// The recipe says so itself.
    pub given: bool,
    /// A later stage decides instead: the value counts for nothing and is not written.
    pub decided: bool,
}

/// A knob that may be left to the method, which then derives it from others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Auto<T> {
    /// Derived.
    #[default]
    Auto,
    /// As said.
    Set(T),
}

impl<T> Auto<T> {
    /// The value that was set, or else this one.
    pub fn or(self, derived: T) -> T {
        match self {
            Self::Auto => derived,
            Self::Set(value) => value,
        }
    }
}

impl<T> From<T> for Auto<T> {
    fn from(value: T) -> Self {
        Self::Set(value)
    }
}
