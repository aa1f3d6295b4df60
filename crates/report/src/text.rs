//! Numbers and texts as a page shows them.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Deserializer};

/// What stands for a number that is unknown, NaN or infinite.
pub const UNKNOWN: &str = "–";

/// Four digits, with a power of ten where it would be longer than that is worth.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    if !(1e-4..1e6).contains(&size) {
        let shown = format!("{value:.2e}");
        return match shown.split_once('e') {
            Some((digits, power)) => format!("{}e{power}", trimmed(digits)),
            None => shown,
        };
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    trimmed(&format!("{value:.decimals$}")).into()
}

/// Without the zeros that end a fraction.
pub fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// A whole number in groups of three digits.
pub fn grouped(value: u128) -> String {
    let digits = value.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// `1 point`, `2 points`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(count as u128), if count == 1 { "" } else { "s" })
}

/// A character as it can stand in HTML and XML: controls, a line's end among them, are shown by their picture.
fn visible(character: char) -> char {
    match character {
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        // No characters either, at the end of every further plane.
        _ if u32::from(character) & 0xfffe == 0xfffe => '\u{fffd}',
        _ => character,
    }
}

/// A text of at most so many characters, none of them a control; what draws it escapes the rest.
pub fn cut(text: &str, most: usize) -> String {
    let long = text.chars().nth(most).is_some();
    let kept = text.chars().take(if long { most.saturating_sub(1) } else { most }).map(visible);
    kept.chain(long.then_some('…')).collect()
}

/// A text between tags or within quotes.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(visible(other))?,
            }
        }
        Ok(())
    }
}

/// A text whose lines stay lines.
pub struct Lines<'a>(pub &'a str);

impl Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in self.0.lines().enumerate() {
            if at > 0 {
                f.write_char('\n')?;
            }
            Escaped(line).fmt(f)?;
        }
        Ok(())
    }
}

/// JSON has no NaN: it is written as null.
pub fn nan_for_null<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}
