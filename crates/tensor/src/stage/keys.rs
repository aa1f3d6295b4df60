use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::key::{Auto, Key};
use super::value::{Takes, Value};
use crate::error::{Error, Result};

/// A type whose knobs can be turned by the keys of a recipe.
///
/// ```
/// use tensorpress_tensor::Result;
/// use tensorpress_tensor::stage::{Keys, Knobs, canonical};
///
/// struct Soft {
///     lambda: f32,
/// }
///
/// impl Knobs for Soft {
///     fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
///         keys.float("lambda", &mut self.lambda, 0.0..=10.0, "how much is taken off each weight")
///     }
/// }
/// assert_eq!(canonical("soft", &mut Soft { lambda: 0.1 })?, "soft(lambda=0.1)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Knobs {
    /// Shows every knob to `keys`, which sets those that a recipe gives. Called on the default value; must name the same
    /// knobs whatever they are set to.
    ///
    /// # Errors
    /// Those of `keys`, passed on; `InvalidArgument` for values that do not go together.
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()>;

    /// Whether the values go together.
    ///
    /// # Errors
    /// `InvalidArgument`, naming key, value and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Nothing to turn.
impl Knobs for () {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

/// Where a stage stands, as far as its knobs depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// A later stage that decides what this one would decide alone.
    pub follows: Option<&'static str>,
    /// Stands inside a stage that makes good for what others left over.
    pub corrects: bool,
}

/// What visits the knobs of a stage: it sets what a recipe gives, and notes what there is.
#[derive(Debug)]
pub struct Keys<'a> {
    stage: &'static str,
    given: &'a [(String, Value)],
    place: Place,
    /// Within [`Keys::alone`].
    alone: bool,
    pub(super) seen: Vec<Key>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(stage: &'static str, given: &'a [(String, Value)], place: Place) -> Self {
        Self { stage, given, place, alone: false, seen: Vec::new() }
    }

    /// The value that the recipe gives for a key, not yet checked.
    #[must_use]
    pub fn peek(&self, name: &str) -> Option<&'a Value> {
        self.given.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// A later stage of the recipe decides what this one would decide alone.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.place.follows.is_some()
    }

    /// The stage stands where it makes good for what another left over.
    #[must_use]
    pub fn corrects(&self) -> bool {
        self.place.corrects
    }

    /// Knobs that count only where no later stage decides; there they are refused.
    ///
    /// # Errors
    /// Those of `knobs`.
    pub fn alone(&mut self, knobs: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let before = std::mem::replace(&mut self.alone, true);
        let result = knobs(self);
        self.alone = before;
        result
    }

    /// An integer in a range.
    ///
    /// # Errors
    /// `InvalidArgument`, naming stage, key, value and what is allowed; so in all methods below.
    pub fn int<T>(
        &mut self,
        name: &'static str,
        knob: &mut T,
        range: RangeInclusive<i64>,
        about: &'static str,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let takes = Takes::Int(*range.start(), *range.end());
        let default = (*knob).try_into().map_or(i64::MAX, |v| v);
        if let Some(Value::Int(v)) = self.see(name, takes, Some(Value::Int(default)), about)? {
            *knob = fits(name, v)?;
        }
        Ok(())
    }

    /// One of a few integers.
    pub fn one_of<T>(
        &mut self,
        name: &'static str,
        knob: &mut T,
        allowed: &[i64],
        about: &'static str,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let default = (*knob).try_into().map_or(i64::MAX, |v| v);
        let takes = Takes::Ints(allowed.to_vec());
        if let Some(Value::Int(v)) = self.see(name, takes, Some(Value::Int(default)), about)? {
            *knob = fits(name, v)?;
        }
        Ok(())
    }

    /// An integer that is `derived` from other knobs unless it is given.
    pub fn auto<T>(
        &mut self,
        name: &'static str,
        knob: &mut Auto<T>,
        derived: T,
        range: RangeInclusive<i64>,
        about: &'static str,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let mut value = (*knob).or(derived);
        self.int(name, &mut value, range, about)?;
        if self.peek(name).is_some() {
            *knob = Auto::Set(value);
        }
        Ok(())
    }

    /// An integer, or nothing.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        knob: &mut Option<T>,
        range: RangeInclusive<i64>,
        about: &'static str,
    ) -> Result<()>
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let takes = Takes::Int(*range.start(), *range.end());
        let default = knob.and_then(|v| v.try_into().ok()).map(Value::Int);
        if let Some(Value::Int(v)) = self.see(name, takes, default, about)? {
            *knob = Some(fits(name, v)?);
        }
        Ok(())
    }

    /// A number in a range.
    pub fn float<T: Real>(
        &mut self,
        name: &'static str,
        knob: &mut T,
        range: RangeInclusive<f64>,
        about: &'static str,
    ) -> Result<()> {
        let takes = Takes::Float(*range.start(), *range.end());
        let default = Some(Value::Float(knob.shortest()));
        if let Some(Value::Float(v)) = self.see(name, takes, default, about)? {
            *knob = T::from_f64(v);
        }
        Ok(())
    }

    /// A number in a range, or nothing.
    pub fn optional_float<T: Real>(
        &mut self,
        name: &'static str,
        knob: &mut Option<T>,
        range: RangeInclusive<f64>,
        about: &'static str,
    ) -> Result<()> {
        let takes = Takes::Float(*range.start(), *range.end());
        let default = knob.map(|v| Value::Float(v.shortest()));
        if let Some(Value::Float(v)) = self.see(name, takes, default, about)? {
            *knob = Some(T::from_f64(v));
        }
        Ok(())
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str, knob: &mut bool, about: &'static str) -> Result<()> {
        if let Some(Value::Bool(v)) =
            self.see(name, Takes::Bool, Some(Value::Bool(*knob)), about)?
        {
            *knob = v;
        }
        Ok(())
    }

    /// One of a few values, each with its name. A default without a name is written as nothing.
    pub fn choice<T: Clone + PartialEq>(
        &mut self,
        name: &'static str,
        knob: &mut T,
        names: &[(&'static str, T)],
        about: &'static str,
    ) -> Result<()> {
        let takes = Takes::Choice(names.iter().map(|(name, _)| *name).collect());
        let default = names.iter().find(|(_, value)| value == knob);
        let default = default.map(|(name, _)| Value::Word((*name).into()));
        if let Some(Value::Word(word)) = self.see(name, takes, default, about)? {
            let chosen = names.iter().find(|(name, _)| *name == word);
            *knob = chosen.expect("accepted").1.clone();
        }
        Ok(())
    }

    /// Anything that can be read from a text and written as one; `allowed` says what, in words.
    pub fn text<T: FromStr + Display>(
        &mut self,
        name: &'static str,
        knob: &mut T,
        allowed: &'static str,
        about: &'static str,
    ) -> Result<()> {
        let default = Some(Value::Word(knob.to_string().into()));
        if let Some(Value::Word(word)) = self.see(name, Takes::Text(allowed), default, about)? {
            *knob = word.parse().map_err(|_| refused(name, &Value::Word(word), allowed))?;
        }
        Ok(())
    }

    /// Notes a key; its checked value, if one is given.
    fn see(
        &mut self,
        name: &'static str,
        takes: Takes,
        default: Option<Value>,
        about: &'static str,
    ) -> Result<Option<Value>> {
        let decided = self.alone && self.is_followed();
        let given = match self.peek(name) {
            None => None,
            Some(value) => {
                let checked = takes.accept(value);
                Some(checked.ok_or_else(|| refused(name, value, &takes.to_string()))?)
            }
        };
        if let (Some(value), Some(later)) = (&given, self.place.follows.filter(|_| decided)) {
            return Err(Error::invalid(format!(
                "{name} = {value}: allowed only in `{later}`, which follows and decides it"
            )));
        }
        let value = given.clone().or_else(|| default.clone());
        let key = Key { name, takes, about, default, value, given: given.is_some(), decided };
        self.seen.push(key);
        Ok(given)
    }

    /// Refuses what no knob has asked for.
    pub(super) fn refuse_unknown(&self) -> Result<()> {
        let unknown = |(key, _): &&(String, Value)| self.seen.iter().all(|k| k.name != key);
        let Some((key, value)) = self.given.iter().find(unknown) else { return Ok(()) };
        let names: Vec<&str> = self.seen.iter().map(|k| k.name).collect();
        let allowed = match names.is_empty() {
            true => format!("{} takes no keys", self.stage),
            false => format!("allowed are {}", names.join(", ")),
        };
        Err(Error::invalid(format!("unknown key `{key}` (= {value}); {allowed}")))
    }
}

fn fits<T: TryFrom<i64>>(name: &str, value: i64) -> Result<T> {
    T::try_from(value).map_err(|_| Error::invalid(format!("{name} = {value}: too large")))
}

fn refused(name: &str, value: &Value, allowed: &str) -> Error {
    Error::invalid(format!("{name} = {value}: allowed are {allowed}"))
}

/// f32 and f64.
pub trait Real: Copy {
    /// Rounded to this type.
    fn from_f64(value: f64) -> Self;
    /// The number with the fewest digits that rounds to this one: 0.1, not 0.10000000149.
    fn shortest(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn shortest(self) -> f64 {
        self.to_string().parse().unwrap_or_else(|_| f64::from(self))
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn shortest(self) -> f64 {
        self
    }
}
