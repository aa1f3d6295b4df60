use std::fmt;

use super::key::Key;
use super::keys::{Keys, Knobs, Place};
use super::line::{self, RawStage};
use super::row::{Inside, Part, Role, Row};
use super::table::Stages;
use super::value::Value;
use crate::error::{Error, Result};

/// One step of a recipe: a row, with values for its keys.
#[derive(Debug)]
pub struct Stage<P: Part> {
    row: Row<P>,
    given: Vec<(String, Value)>,
    inner: Option<Box<Stage<P>>>,
    place: Place,
    keys: Vec<Key>,
}

impl<P: Part> Stage<P> {
    fn resolve(raw: RawStage, stages: &Stages<P>, place: Place) -> Result<Self> {
        if let Some(preset) = stages.preset(&raw.name) {
            let message = "a preset stands in a line, not inside of a stage: it is";
            return Err(Error::invalid(format!("`{}`: {message} `{}`", raw.name, preset.line)));
        }
        let row = stages.find(&raw.name)?.clone();
        let name = row.name();
        for (at, (key, _)) in raw.args.iter().enumerate() {
            if raw.args[..at].iter().any(|(before, _)| before == key) {
                return Err(Error::invalid(format!("{name}: `{key}` is given twice")));
            }
        }
        let keys = row.keys_of(&raw.args, place)?;
        let mut inside = raw.inner.into_iter();
        let roles = row.inside().roles();
        let one_of = || match stages.names_of(roles) {
            names if names.is_empty() => "a stage of a later version".to_owned(),
            names => names,
        };
        let inner = match (row.inside(), inside.next()) {
            (Inside::Nothing | Inside::Maybe(_), None) => None,
            (Inside::Nothing, Some(inner)) => {
                let inner = inner.name;
                let names: Vec<&str> = row.keys().iter().map(|k| k.name).collect();
                let allowed = match names.is_empty() {
                    true => format!("{name} takes no keys"),
                    false => format!("allowed are {}", names.join(", ")),
                };
                let message =
                    format!("{name}: `{inner}` has no value: write `{inner}=...`; {allowed}");
                return Err(Error::invalid(message));
            }
            (_, Some(inner)) if inside.len() == 0 => {
                let place = Place { follows: None, corrects: row.corrects() };
                let inner = Self::resolve(inner, stages, place)?;
                if !roles.contains(&inner.role()) {
                    return Err(Error::invalid(format!("{name}({inner}): needs {}", one_of())));
                }
                Some(Box::new(inner))
            }
            _ => {
                let message = format!("{name}(...): needs one stage inside: {}", one_of());
                return Err(Error::invalid(message));
            }
        };
        Ok(Self { row, given: raw.args, inner, place, keys })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.row.name()
    }

    /// Where it may stand.
    #[must_use]
    pub fn role(&self) -> P::Role {
        self.row.role()
    }

    /// The stage inside the parentheses, if there is one.
    #[must_use]
    pub fn inner(&self) -> Option<&Stage<P>> {
        self.inner.as_deref()
    }

    /// Its keys, with the values they have in this recipe.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// What it stands for.
    ///
    /// # Errors
    /// Those of the method's constructor.
    pub fn build(&self) -> Result<P> {
        let inner = self.inner.as_ref().map(|inner| inner.build()).transpose()?;
        self.row.build(&self.given, self.place, inner)
    }

    /// The text with every key that counts spelled out.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.written(|stage| stage.canonical(), |key| !key.decided)
    }

    fn written(&self, inner: impl Fn(&Self) -> String, shows: impl Fn(&Key) -> bool) -> String {
        let shown = self.keys.iter().filter(|key| shows(key));
        written(self.name(), self.inner().map(inner), shown)
    }
}

fn written<'k>(name: &str, inner: Option<String>, keys: impl Iterator<Item = &'k Key>) -> String {
    let args = keys.filter_map(|key| Some(format!("{}={}", key.name, key.value.as_ref()?)));
    let args: Vec<String> = inner.into_iter().chain(args).collect();
    match args.is_empty() {
        true => name.to_owned(),
        false => format!("{name}({})", args.join(", ")),
    }
}

/// What [`Stage::canonical`] says of a stage whose knobs stand as these do: for a method that was built in Rust.
///
/// # Errors
/// As [`Knobs::check`].
pub fn canonical(name: &'static str, knobs: &mut impl Knobs) -> Result<String> {
    let mut keys = Keys::new(name, &[], Place::default());
    knobs.knobs(&mut keys)?;
    knobs.check()?;
    Ok(written(name, None, keys.seen.iter()))
}

/// Only the keys that were given.
impl<P: Part> fmt::Display for Stage<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written(Stage::to_string, |key| key.given))
    }
}

impl<P: Part> Clone for Stage<P> {
    fn clone(&self) -> Self {
        let (given, keys) = (self.given.clone(), self.keys.clone());
        Self { row: self.row.clone(), given, inner: self.inner.clone(), keys, ..*self }
    }
}

/// Stages in the order of a recipe.
#[derive(Debug)]
pub struct Chain<P: Part> {
    stages: Vec<Stage<P>>,
}

impl<P: Part> Chain<P> {
    /// Reads a line of stages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no recipe, names and values that do not exist, and a wrong order; the message names
    /// what is allowed.
    pub fn parse(text: &str, stages: &Stages<P>) -> Result<Self> {
        Self::resolve(line::parse(text)?, stages)
    }

    /// Looks names and keys up. The name of a preset stands for its stages.
    ///
    /// # Errors
    /// As [`Chain::parse`].
    pub fn resolve(raw: Vec<RawStage>, stages: &Stages<P>) -> Result<Self> {
        let raw = raw.into_iter().map(|raw| match stages.preset(&raw.name) {
            Some(preset) if raw.args.is_empty() && raw.inner.is_empty() => line::parse(preset.line),
            Some(preset) => Err(Error::invalid(format!(
                "preset `{}` has no keys: it is `{}`",
                preset.name, preset.line
            ))),
            None => Ok(vec![raw]),
        });
        let raw = raw.collect::<Result<Vec<_>>>()?.concat();
        let rows = raw.iter().map(|raw| stages.find(&raw.name)).collect::<Result<Vec<_>>>()?;
        check_order(&rows)?;
        let decider = rows.iter().position(|row| row.role().decides());
        let resolve = |(at, raw)| {
            let later = decider.filter(|decider| at < *decider);
            let place = Place { follows: later.map(|at| rows[at].name()), corrects: false };
            Stage::resolve(raw, stages, place)
        };
        let stages = raw.into_iter().enumerate().map(resolve).collect::<Result<Vec<_>>>()?;
        Ok(Self { stages })
    }

    /// The stages.
    #[must_use]
    pub fn stages(&self) -> &[Stage<P>] {
        &self.stages
    }

    /// The first stage of a role.
    #[must_use]
    pub fn find(&self, role: P::Role) -> Option<&Stage<P>> {
        self.stages.iter().find(|stage| stage.role() == role)
    }

    /// The chain with every key spelled out: equal texts mean equal results.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.stages.iter().map(Stage::canonical).collect::<Vec<_>>().join(" | ")
    }
}

fn check_order<P: Part>(rows: &[&Row<P>]) -> Result<()> {
    for pair in rows.windows(2) {
        let [(first, a), (second, b)] = [0, 1].map(|at| (pair[at].name(), pair[at].role()));
        if a > b {
            return Err(Error::invalid(format!(
                "`{first}` ({a}) cannot come before `{second}` ({b}): the order is {}",
                P::Role::ORDER
            )));
        }
        if a == b && a.is_single() {
            let message = format!("`{first}` and `{second}`: a recipe has at most one {a}");
            return Err(Error::invalid(message));
        }
    }
    match rows.iter().find(|row| row.role().is_inner()) {
        Some(row) => {
            let name = row.name();
            Err(Error::invalid(format!("`{name}` stands inside another stage only")))
        }
        None => Ok(()),
    }
}

impl<P: Part> Clone for Chain<P> {
    fn clone(&self) -> Self {
        Self { stages: self.stages.clone() }
    }
}

/// Equal chains have equal results.
impl<P: Part> PartialEq for Chain<P> {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

/// Only the keys that were given; can be read again.
impl<P: Part> fmt::Display for Chain<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, stage) in self.stages.iter().enumerate() {
            let separator = if i == 0 { "" } else { " | " };
            write!(f, "{separator}{stage}")?;
        }
        Ok(())
    }
}
