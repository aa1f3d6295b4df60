//! What the stages of a room say of themselves, for editors and for pages.

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

/// The stages of a room for a page: a heading and a sentence each, and a table of keys.
#[must_use]
pub fn reference<P: Part>(stages: &Stages<P>) -> String {
    let mut text = String::new();
    for row in stages.rows() {
        let inside = stages.names_of(row.inside().roles());
        let inside = match inside.is_empty() {
            true => String::new(),
            false => format!(" Inside: {inside}."),
        };
        text += &format!("### `{}`\n", row.name());
        text += &wrapped(&format!("{}: {}.{inside}", row.role(), row.about()));
        let keys = row.keys();
        if !keys.is_empty() {
            text += "\n| key | default | allowed | meaning |\n|---|---|---|---|\n";
        }
        for key in keys {
            let default = key.default.as_ref().map_or("none".to_owned(), ToString::to_string);
            let Key { name, takes, about, .. } = key;
            text += &format!("| `{name}` | {default} | {takes} | {about} |\n");
        }
        text.push('\n');
    }
    text
}

/// A paragraph in lines of at most 120 columns.
fn wrapped(paragraph: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split(' ') {
        if column > 0 && column + 1 + word.len() > 120 {
            text.push('\n');
            column = 0;
        }
        if column > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += word.len();
    }
    text + "\n"
}
