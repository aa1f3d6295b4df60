//! The text of a `config.json`, which is JSON but for infinities.

use serde_json::Value;

/// What Python writes for numbers that JSON has not, as newer configs spell it.
const BARE: [(&str, &str); 3] = [
    ("-Infinity", r#"{"__float__": "-Infinity"}"#),
    ("Infinity", r#"{"__float__": "Infinity"}"#),
    ("NaN", r#"{"__float__": "NaN"}"#),
];

/// Parses it; bare `Infinity`, `-Infinity` and `NaN` become `{"__float__": ...}`.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text).or_else(|error| match spelt_out(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

/// The text with other spellings of what stands outside of its strings; nothing if there is none.
fn spelt_out(text: &[u8]) -> Option<String> {
    let mut rest = std::str::from_utf8(text).ok()?;
    let mut out = String::with_capacity(rest.len());
    let (mut inside, mut found) = (false, false);
    while let Some(next) = rest.chars().next() {
        let bare = BARE.iter().find(|(bare, _)| !inside && rest.starts_with(bare));
        let taken = match (bare, next) {
            (Some((bare, spelling)), _) => {
                out += spelling;
                found = true;
                bare.len()
            }
            // The character behind a backslash ends no string.
            (None, '\\') if inside => {
                let both = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                out += &rest[..both];
                both
            }
            _ => {
                inside ^= next == '"';
                out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn infinities_are_spelt_out_and_strings_stay() {
        let text = br#"{"a": [0.0, Infinity], "b": -Infinity, "s": "\"Infinity \\", "n": NaN}"#;
        let infinite = |text| json!({ "__float__": text });
        let expected = json!({
            "a": [0.0, infinite("Infinity")], "b": infinite("-Infinity"),
            "s": "\"Infinity \\", "n": infinite("NaN"),
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert!(parse(br#"{"a": Infinite}"#).is_err());
        assert!(parse(br#"{"a": "Infinity}"#).is_err());
        assert!(parse(b"{\"a\": 1, \xff}").is_err());
    }
}
