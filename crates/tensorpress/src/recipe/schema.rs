//! What the stages of a room say of themselves, for editors and for pages.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};
use tensorpress_tensor::stage::{Key, Part, Row, Stages, Takes, Value, WeightPart};

/// A JSON schema of recipes in TOML.
#[must_use]
pub fn schema(stages: &Stages<WeightPart>) -> Json {
    let tables: Vec<Json> = stages.rows().iter().map(|row| stage(row, stages)).collect();
    let list = json!({ "type": "array", "items": { "anyOf": [{ "type": "string" }, { "oneOf": tables }] } });
    let rule = json!({
        "type": "object",
        "properties": {
            "match": { "type": "string", "description": "pattern of weight names" },
            "stage": { "$ref": "#/properties/stage" },
            "skip": { "type": "boolean" },
        },
        "required": ["match"],
        "additionalProperties": false,
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tensorpress recipe",
        "type": "object",
        "properties": { "stage": list, "layer": { "type": "array", "items": rule } },
        "additionalProperties": false,
    })
}

fn stage(row: &Row<WeightPart>, stages: &Stages<WeightPart>) -> Json {
    let mut properties = Map::new();
    properties.insert("method".into(), json!({ "const": row.name() }));
    for key in row.keys() {
        properties.insert(key.name.into(), value(&key));
    }
    let roles = row.inside().roles();
    if !roles.is_empty() {
        let inner = stages.rows().iter().filter(|inner| roles.contains(&inner.role()));
        let names: Vec<&str> = inner.map(Row::name).collect();
        let method =
            json!({ "properties": { "method": { "enum": names } }, "required": ["method"] });
        properties.insert("stage".into(), method);
    }
    json!({
        "type": "object",
        "description": row.about(),
        "properties": properties,
        "required": ["method"],
        "additionalProperties": false,
    })
}

fn value(key: &Key) -> Json {
    let mut json = match &key.takes {
        Takes::Int(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Takes::Ints(allowed) => json!({ "enum": allowed }),
        Takes::Float(least, most) => json!({ "type": "number", "minimum": least, "maximum": most }),
        Takes::Bool => json!({ "type": "boolean" }),
        Takes::Choice(words) => json!({ "enum": words }),
        other => json!({ "type": "string", "description": other.to_string() }),
    };
    json["description"] = key.about.into();
    json["default"] = match &key.default {
        Some(Value::Int(value)) => json!(value),
        Some(Value::Float(value)) => json!(value),
        Some(Value::Bool(value)) => json!(value),
        Some(Value::Word(word)) => json!(word),
        _ => Json::Null,
    };
    json
}

/// The stages of a room as a table for pages: a row a stage, its keys with defaults and what is allowed.
#[must_use]
pub fn table<P: Part>(stages: &Stages<P>) -> String {
    let mut text =
        "| stage | what it does | keys: default (allowed) meaning |\n|---|---|---|\n".to_owned();
    for row in stages.rows() {
        let keys: Vec<String> = row.keys().iter().map(described).collect();
        let keys = keys.join("<br>").replace('|', "\\|");
        writeln!(text, "| `{}` | {}; {} | {keys} |", row.name(), row.role(), row.about())
            .expect("a string grows");
    }
    text
}

fn described(key: &Key) -> String {
    let default = key.default.as_ref().map_or("none".to_owned(), ToString::to_string);
    format!("`{}`: {default} ({}) {}", key.name, key.takes, key.about)
}
