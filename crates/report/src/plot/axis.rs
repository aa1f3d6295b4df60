//! Axes: what they span, and where their ticks are.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::text::{number, trimmed};

/// How far apart numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As far as they differ.
    Linear,
    /// As far as their logarithms do.
    Log,
}

/// One of the two axes.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it measures.
    pub name: &'static str,
    scale: Scale,
    from_zero: bool,
    whole: bool,
}

/// What an axis spans for some numbers, all as [`Axis::at`] says.
#[derive(Debug, Clone)]
pub struct Span {
    pub low: f64,
    pub high: f64,
    /// Where a tick is, and what it says.
    pub ticks: Vec<(f64, String)>,
}

/// Its own ticks at its own places: those of `plotters` do not know logarithms that are less than a decade apart.
impl Ranged for Span {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Every tick has a bold line, and there is no other.
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(at, _)| *at).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Span {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(at, _)| at == value);
        tick.map(|(_, shown)| shown.clone()).unwrap_or_default()
    }
}

impl Axis {
    pub fn new(name: &'static str, scale: Scale) -> Self {
        Self { name, scale, from_zero: false, whole: false }
    }

    /// Begins at 0.
    pub fn with_zero(mut self) -> Self {
        self.from_zero = true;
        self
    }

    /// Has ticks at whole numbers only.
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Where a number lies: `plotters` draws linear axes alone.
    pub fn at(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.log10(),
        }
    }

    /// What holds all of these numbers.
    pub fn span(&self, values: impl Iterator<Item = f64>) -> Span {
        let (low, high) = values
            .map(|value| self.at(value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        match self.scale {
            Scale::Linear => self.linear(low, high),
            Scale::Log => log(low, high),
        }
    }

    fn linear(&self, low: f64, high: f64) -> Span {
        let near_zero = self.from_zero || (!self.whole && low >= 0.0 && low < 0.3 * high);
        let low = if near_zero { 0.0 } else { low };
        // One number needs room around it; where that is the largest f64, there is none above.
        let room = match high > low {
            true => 0.05 * (high - low),
            false if self.whole => 0.5,
            false if high == 0.0 => 1.0,
            false => 0.1 * high.abs(),
        };
        let high = (high + room).min(f64::MAX);
        let low = if near_zero { low } else { low - room };
        let step = nice_step(high / 6.0 - low / 6.0, self.whole);
        Span { low, high, ticks: linear_ticks(low, high, step) }
    }
}

/// The least of 1, 2 and 5 times a power of ten that is no less than `rough`.
fn nice_step(rough: f64, whole: bool) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    if whole { step.max(1.0) } else { step }
}

fn linear_ticks(low: f64, high: f64, step: f64) -> Vec<(f64, String)> {
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    // A step too small for numbers of this size would not move on.
    let first = (low / step).ceil();
    (0..12)
        .map(|at| (first + f64::from(at)) * step)
        .take_while(|tick| *tick <= high)
        .map(|tick| {
            let plain = format!("{tick:.decimals$}");
            let tiny = tick != 0.0 && step < 1e-6;
            let shown = if plain.len() > 8 || tiny { number(tick) } else { plain };
            (tick, shown)
        })
        .collect()
}

/// `low` and `high` are logarithms.
fn log(low: f64, high: f64) -> Span {
    let room = (0.06 * (high - low)).max(0.1);
    let (low, high) = (low - room, high + room);
    let decades = high - low;
    let ticks = if decades < 0.6 {
        // Less than a factor of four: evenly spaced numbers are fine.
        let (low, high) = (10f64.powf(low), 10f64.powf(high));
        linear_ticks(low, high, nice_step((high - low) / 5.0, false))
            .into_iter()
            .filter(|(tick, _)| *tick > 0.0)
            .map(|(tick, shown)| (tick.log10(), zeros_off(&shown)))
            .collect()
    } else {
        let digits: &[f64] = match decades {
            ..2.5 => &[1.0, 2.0, 5.0],
            ..4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let every = (decades / 9.0).ceil().max(1.0) as i32;
        (low.floor() as i32..=high.ceil() as i32)
            .filter(|power| power.rem_euclid(every) == 0)
            .flat_map(|power| digits.iter().map(move |digit| (*digit, power)))
            .map(|(digit, power)| (digit.log10() + f64::from(power), power_of_ten(digit, power)))
            .filter(|(tick, _)| (low..=high).contains(tick))
            .collect()
    };
    Span { low, high, ticks }
}

fn zeros_off(shown: &str) -> String {
    trimmed(shown).to_owned()
}

fn power_of_ten(digit: f64, power: i32) -> String {
    match power {
        // Not 0.30000000000000004.
        -4..=5 => number(digit * 10f64.powi(power)),
        _ => format!("{digit}e{power}"),
    }
}
