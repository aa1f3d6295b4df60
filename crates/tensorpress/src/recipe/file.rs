//! The TOML form.

use tensorpress_tensor::stage::{RawStage, Stages, Value, WeightPart, parse as parse_line};
use tensorpress_tensor::{Error, Result};
use toml::Value as Toml;

use super::LayerRule;
use super::chain::Chain;

pub(super) fn parse(
    text: &str,
    known: &Stages<WeightPart>,
) -> Result<(Option<Chain>, Vec<LayerRule>)> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        Error::invalid(format!("no valid TOML: {}", e.to_string().trim_end()))
    })?;
    only_keys(&table, "the recipe", &["stage", "layer"])?;
    let chain = table.get("stage").map(|stages| chain(stages, "stage", known)).transpose()?;
    let layers = match table.get("layer") {
        None => Vec::new(),
        Some(Toml::Array(layers)) => {
            layers.iter().map(|rule| layer(rule, known)).collect::<Result<_>>()?
        }
        Some(other) => return Err(unexpected("layer", other, "[[layer]] tables")),
    };
    Ok((chain, layers))
}

fn layer(json: &Toml, known: &Stages<WeightPart>) -> Result<LayerRule> {
    let Toml::Table(table) = json else {
        return Err(unexpected("layer", json, "[[layer]] tables"));
    };
    only_keys(table, "[[layer]]", &["match", "stage", "skip"])?;
    let pattern = match table.get("match") {
        Some(Toml::String(pattern)) => pattern,
        Some(other) => return Err(unexpected("layer: match", other, "patterns of weight names")),
        None => return Err(Error::invalid("[[layer]] without `match`, a pattern of weight names")),
    };
    let skip = match table.get("skip") {
        None => false,
        Some(Toml::Boolean(skip)) => *skip,
        Some(other) => return Err(unexpected("layer: skip", other, "true and false")),
    };
    let of = format!("layer `{pattern}`");
    let chain = match (skip, table.get("stage")) {
        (true, None) => None,
        (false, Some(stages)) => Some(chain(stages, &of, known)?),
        _ => {
            let message = format!("{of}: needs either `stage` or `skip = true`");
            return Err(Error::invalid(message));
        }
    };
    LayerRule::new(pattern, chain)
}

/// A list of stages, each a table or a piece of a line.
fn chain(stages: &Toml, of: &str, known: &Stages<WeightPart>) -> Result<Chain> {
    let Toml::Array(stages) = stages else {
        return Err(unexpected(of, stages, "a list of stages"));
    };
    let mut raw = Vec::new();
    for stage in stages {
        match stage {
            Toml::String(text) => raw.extend(parse_line(text)?),
            stage => raw.push(raw_stage(stage, of)?),
        }
    }
    Chain::resolve(raw, known).map_err(|e| Error::new(e.kind(), format!("{of}: {}", e.message())))
}

fn raw_stage(json: &Toml, of: &str) -> Result<RawStage> {
    let Toml::Table(table) = json else {
        return Err(unexpected(of, json, "a table with `method`, or the text of a stage"));
    };
    let name = match table.get("method") {
        Some(Toml::String(name)) => name.clone(),
        Some(other) => return Err(unexpected("method", other, "names of stages")),
        None => return Err(Error::invalid(format!("{of}: a stage without `method`"))),
    };
    let mut stage = RawStage { name, args: Vec::new(), inner: Vec::new() };
    for (key, value) in table.iter().filter(|(key, _)| *key != "method") {
        let value = match value {
            Toml::Integer(value) => Value::Int(*value),
            Toml::Float(value) => Value::Float(*value),
            Toml::Boolean(value) => Value::Bool(*value),
            Toml::String(value) => Value::Word(value.clone().into()),
            Toml::Table(_) if key == "stage" => {
                stage.inner.push(raw_stage(value, of)?);
                continue;
            }
            other => {
                let what = format!("{}: {key}", stage.name);
                return Err(unexpected(&what, other, "numbers, booleans and strings"));
            }
        };
        stage.args.push((key.clone(), value));
    }
    Ok(stage)
}

fn only_keys(table: &toml::Table, of: &str, known: &[&str]) -> Result<()> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Error::invalid(format!(
            "{of}: unknown key `{key}`: allowed are {}",
            known.join(", ")
        ))),
    }
}

fn unexpected(key: &str, value: &Toml, allowed: &str) -> Error {
    Error::invalid(format!("{key} = {value}: allowed are {allowed}"))
}
