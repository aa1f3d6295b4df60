//! What stands behind flags.

use std::time::Duration;

use tensorpress::model::text::Limits;
use tensorpress::model::tokenizer;
use tensorpress::pipeline;
use tensorpress::report::Point;

/// Whether texts begin with BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Bos {
    /// As the tokenizer's template or its `add_bos_token` says
    #[default]
    Auto,
    /// They do
    Always,
    /// They do not
    Never,
}

impl From<Bos> for tokenizer::Bos {
    fn from(bos: Bos) -> Self {
        match bos {
            Bos::Auto => Self::Auto,
            Bos::Always => Self::Always,
            Bos::Never => Self::Never,
        }
    }
}

impl From<super::Limits> for Limits {
    fn from(limits: super::Limits) -> Self {
        Self { max_segments: limits.max_segments, max_tokens: limits.max_tokens }
    }
}

/// Whose inputs calibrate a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Inputs {
    /// What the compressed blocks before it make
    #[default]
    Compressed,
    /// What the original model makes
    Original,
}

impl From<Inputs> for pipeline::Inputs {
    fn from(inputs: Inputs) -> Self {
        match inputs {
            Inputs::Compressed => Self::Compressed,
            Inputs::Original => Self::Original,
        }
    }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("allowed are whole numbers from 0 to {}", usize::MAX))
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("allowed are whole numbers from 1 to {}", usize::MAX)),
    }
}

pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("allowed are whole numbers from 0 to {}", u64::MAX))
}

/// A file by others: its name, its size, and what it loses.
pub(super) fn rival(text: &str) -> Result<Point, String> {
    let parts = text.rsplit_once('=').and_then(|(name, rest)| Some((name, rest.rsplit_once(':')?)));
    let Some((name, (bytes, loss))) = parts.filter(|(name, _)| !name.is_empty()) else {
        return Err("such as 'IQ4_NL=91.7MB:0.107': a name, a size, a KL divergence".to_owned());
    };
    let loss = loss.trim().parse().ok().filter(|loss: &f64| *loss > 0.0 && loss.is_finite());
    let loss = loss.ok_or_else(|| "the KL divergence is a number above 0".to_owned())?;
    Ok(Point::new(size(bytes.trim())?, f64::NAN, loss).with_label(name.trim()))
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    duration(text, 1.0).ok_or_else(|| "allowed are seconds above 0".to_owned())
}

pub(super) fn milliseconds(text: &str) -> Result<Duration, String> {
    duration(text, 1e3).ok_or_else(|| "allowed are milliseconds above 0".to_owned())
}

/// A time above 0, of so many parts of a second.
fn duration(text: &str, parts: f64) -> Option<Duration> {
    let parts = text.parse::<f64>().ok().filter(|time| *time > 0.0)? / parts;
    Duration::try_from_secs_f64(parts).ok().filter(|time| !time.is_zero())
}

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("allowed are finite numbers from 0".to_owned()),
    }
}

/// Bytes: a number, and what it counts.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = found.unwrap_or((text, 1));
    let bytes = number.trim().parse::<f64>().ok().map(|number| number * unit as f64);
    match bytes {
        Some(bytes) if (1.0..=u64::MAX as f64).contains(&bytes) => Ok(bytes as u64),
        _ => Err("allowed are bytes from 1, such as 5GB, 500MB, 1.5GiB or 4096".to_owned()),
    }
}
