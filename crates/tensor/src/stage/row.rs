use std::fmt::{self, Debug, Display};
use std::sync::Arc;

use super::key::Key;
use super::keys::{Keys, Knobs, Place};
use super::value::Value;
use crate::error::{Error, Result};

/// What the stages of a room build.
pub trait Part: Debug + Sized + 'static {
    /// Where such a stage may stand.
    type Role: Role;
}

/// Where a stage may stand; the order of roles is that of a recipe.
pub trait Role: Copy + Ord + Debug + Display + Send + Sync + 'static {
    /// The order of a recipe, in words.
    const ORDER: &'static str;
    /// At most one such stage stands in a recipe.
    fn is_single(self) -> bool;
    /// Stands inside another stage only.
    fn is_inner(self) -> bool;
    /// Decides what stages before it would decide alone ([`Keys::alone`]).
    fn decides(self) -> bool {
        false
    }
}

/// Stages in the parentheses of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inside<R> {
    /// None.
    Nothing,
    /// One of these roles.
    One(Vec<R>),
    /// One of these roles, or none.
    Maybe(Vec<R>),
}

impl<R> Inside<R> {
    /// Roles that may stand inside.
    #[must_use]
    pub fn roles(&self) -> &[R] {
        match self {
            Self::Nothing => &[],
            Self::One(roles) | Self::Maybe(roles) => roles,
        }
    }
}

/// Sets the knobs; then builds the part, unless only the knobs are asked for.
type Make<P> = dyn Fn(&mut Keys<'_>, Want<P>) -> Result<Option<P>> + Send + Sync;

enum Want<P> {
    Keys,
    Part(Option<P>),
}

/// A stage that exists.
pub struct Row<P: Part> {
    name: &'static str,
    about: &'static str,
    role: P::Role,
    inside: Inside<P::Role>,
    corrects: bool,
    make: Arc<Make<P>>,
}

impl<P: Part> Row<P> {
    /// A stage of this name and role. `default` is what its knobs are turned on, `build` what becomes of it; it is handed
    /// the part of the stage inside the parentheses, if there is one.
    pub fn new<T: Knobs + 'static>(
        name: &'static str,
        role: P::Role,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
        build: impl Fn(T, Option<P>) -> Result<P> + Send + Sync + 'static,
    ) -> Self {
        let make = move |keys: &mut Keys<'_>, want: Want<P>| {
            let mut knobs = default();
            let turned = knobs.knobs(keys).and_then(|()| keys.refuse_unknown());
            let checked = turned.and_then(|()| knobs.check());
            checked.map_err(|e| Error::new(e.kind(), format!("{name}: {}", e.message())))?;
            match want {
                Want::Keys => Ok(None),
                Want::Part(inner) => build(knobs, inner).map(Some),
            }
        };
        let make: Arc<Make<P>> = Arc::new(make);
        Self { name, about, role, inside: Inside::Nothing, corrects: false, make }
    }

    /// Sets what may stand in its parentheses.
    #[must_use]
    pub fn with_inside(mut self, inside: Inside<P::Role>) -> Self {
        self.inside = inside;
        self
    }

    /// What stands inside makes good for what others left over.
    #[must_use]
    pub fn with_correction(mut self) -> Self {
        self.corrects = true;
        self
    }

    /// Its name in recipes.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// Where it may stand.
    #[must_use]
    pub fn role(&self) -> P::Role {
        self.role
    }

    /// What may stand in its parentheses.
    #[must_use]
    pub fn inside(&self) -> &Inside<P::Role> {
        &self.inside
    }

    pub(super) fn corrects(&self) -> bool {
        self.corrects
    }

    /// Its keys, with their defaults.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.keys_of(&[], Place::default()).unwrap_or_default()
    }

    /// Its keys with the values that a recipe gives.
    pub(super) fn keys_of(&self, given: &[(String, Value)], place: Place) -> Result<Vec<Key>> {
        let mut keys = Keys::new(self.name, given, place);
        (self.make)(&mut keys, Want::Keys)?;
        Ok(keys.seen)
    }

    pub(super) fn build(
        &self,
        given: &[(String, Value)],
        place: Place,
        inner: Option<P>,
    ) -> Result<P> {
        let part = (self.make)(&mut Keys::new(self.name, given, place), Want::Part(inner))?;
        Ok(part.expect("a part was asked for"))
    }
}

impl<P: Part> Clone for Row<P> {
    fn clone(&self) -> Self {
        Self { inside: self.inside.clone(), make: self.make.clone(), ..*self }
    }
}

impl<P: Part> Debug for Row<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, about, role, inside, .. } = self;
        f.debug_struct("Row")
            .field("name", name)
            .field("role", role)
            .field("about", about)
            .field("inside", inside)
            .finish_non_exhaustive()
    }
}
