use std::borrow::Cow;
use std::fmt;

use tensorpress_tensor::{Error, ErrorKind, Result};

use super::line::RawStage;
use super::table::{self, Inside, Kind, StageSpec};
use super::value::{KeySpec, Value};

/// One step of a recipe: a name from the table, with values for its keys.
#[derive(Debug, Clone)]
pub struct Stage {
    spec: &'static StageSpec,
    /// One a key; nothing where the default holds.
    given: Vec<Option<Value>>,
    inner: Option<Box<Stage>>,
}

impl PartialEq for Stage {
    fn eq(&self, other: &Self) -> bool {
        self.canonical(false) == other.canonical(false)
    }
}

impl Stage {
    /// Looks name and keys up.
    pub(super) fn resolve(raw: RawStage) -> Result<Self> {
        let spec = table::find(&raw.name)?;
        let mut given = vec![None; spec.keys.len()];
        for (key, value) in &raw.args {
            let Some(at) = spec.keys.iter().position(|k| k.name == key) else {
                return Err(unknown_key(spec, key, value));
            };
            if given[at].is_some() {
                return Err(Error::invalid(format!("{}: `{key}` is given twice", spec.name)));
            }
            given[at] = Some(spec.keys[at].check(spec.name, value)?);
        }
        let mut inside = raw.inner.into_iter();
        let inner = match (spec.inside, inside.next()) {
            (Inside::Nothing | Inside::Maybe(_), None) => None,
            (Inside::Nothing, Some(inner)) => {
                let name = inner.name;
                let message = format!(
                    "{}: `{name}` has no value: write `{name}=...`{}",
                    spec.name,
                    keys(spec)
                );
                return Err(Error::invalid(message));
            }
            (Inside::One(kinds) | Inside::Maybe(kinds), Some(inner)) if inside.len() == 0 => {
                let inner = Self::resolve(inner)?;
                if !kinds.contains(&inner.spec.kind) {
                    let message = format!("{}({}): needs {}", spec.name, inner, one_of(kinds));
                    return Err(Error::invalid(message));
                }
                Some(Box::new(inner))
            }
            (Inside::One(kinds) | Inside::Maybe(kinds), _) => {
                let message =
                    format!("{}(...): needs one stage inside: {}", spec.name, one_of(kinds));
                return Err(Error::invalid(message));
            }
        };
        let stage = Self { spec, given, inner };
        (spec.check)(&stage)?;
        Ok(stage)
    }

    /// The row of the table.
    #[must_use]
    pub fn spec(&self) -> &'static StageSpec {
        self.spec
    }

    /// The stage inside the parentheses, as of `residual(...)` or `coded(...)`.
    #[must_use]
    pub fn inner(&self) -> Option<&Stage> {
        self.inner.as_deref()
    }

    /// Keys and their values, given or default.
    pub fn values(&self) -> impl Iterator<Item = (&'static KeySpec, Value)> {
        self.spec.keys.iter().enumerate().map(|(at, key)| (key, self.value_at(at)))
    }

    /// The value of a key; the table has it.
    fn value(&self, name: &str) -> Option<Value> {
        self.spec.keys.iter().position(|key| key.name == name).map(|at| self.value_at(at))
    }

    /// One key's value alone: a default may be derived from the other keys.
    fn value_at(&self, at: usize) -> Value {
        let key = &self.spec.keys[at];
        let default = || key.derived.map_or_else(|| key.default.clone(), |of| of(self));
        self.given[at].clone().unwrap_or_else(default)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn int(&self, key: &str) -> usize {
        match self.value(key) {
            Some(Value::Int(value)) => {
                usize::try_from(value).expect("the table allows no less than 0")
            }
            other => unreachable!("{}: {key} is {other:?}", self.spec.name),
        }
    }

    pub(super) fn float(&self, key: &str) -> f64 {
        match self.value(key) {
            Some(Value::Float(value)) => value,
            other => unreachable!("{}: {key} is {other:?}", self.spec.name),
        }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.value(key) == Some(Value::Bool(true))
    }

    pub(super) fn word(&self, key: &str) -> Cow<'static, str> {
        match self.value(key) {
            Some(Value::Word(word)) => word,
            other => unreachable!("{}: {key} is {other:?}", self.spec.name),
        }
    }

    /// Refuses values that a quantiser after this stage decides.
    pub(super) fn check_before(&self, quantiser: &Stage) -> Result<()> {
        for (key, given) in self.spec.keys.iter().zip(&self.given) {
            if let Some(value) = given.as_ref().filter(|value| !(key.before_quantiser)(value)) {
                return Err(Error::invalid(format!(
                    "{}: {} = {value}: allowed only in `{}`, which follows and decides it",
                    self.spec.name, key.name, quantiser.spec.name
                )));
            }
        }
        Ok(())
    }

    /// The text with every key that counts spelled out.
    pub(super) fn canonical(&self, before_quantiser: bool) -> String {
        let counts = |(k, v): &(&KeySpec, Value)| !before_quantiser || (k.before_quantiser)(v);
        let args = self.values().filter(counts).map(|(k, v)| format!("{}={v}", k.name));
        let inner = self.inner().map(|inner| inner.canonical(false));
        written(self.spec.name, inner.into_iter().chain(args).collect())
    }
}

/// Only the keys that were given.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.spec.keys.iter().zip(&self.given);
        let args = given.filter_map(|(k, v)| Some(format!("{}={}", k.name, v.as_ref()?)));
        let inner = self.inner().map(Stage::to_string);
        f.write_str(&written(self.spec.name, inner.into_iter().chain(args).collect()))
    }
}

fn written(name: &str, args: Vec<String>) -> String {
    if args.is_empty() { name.to_owned() } else { format!("{name}({})", args.join(", ")) }
}

fn one_of(kinds: &[Kind]) -> String {
    let names = table::names_of(kinds);
    if names.is_empty() { "a stage of a later version".to_owned() } else { names.join(", ") }
}

fn keys(spec: &StageSpec) -> String {
    let names: Vec<&str> = spec.keys.iter().map(|k| k.name).collect();
    if names.is_empty() {
        format!("; {} takes no keys", spec.name)
    } else {
        format!("; allowed are {}", names.join(", "))
    }
}

fn unknown_key(spec: &StageSpec, key: &str, value: &Value) -> Error {
    let message = format!("{}: unknown key `{key}` (= {value}){}", spec.name, keys(spec));
    Error::new(ErrorKind::InvalidArgument, message)
}
