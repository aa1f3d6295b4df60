//! What there is to see of a run, as a page.

use std::collections::BTreeMap;

use tensorpress_report::{Curve, Fact, Page, Point as Mark, Series, SeriesKind, Unit};

use super::mix::{Decision, Outlook, Point};
use super::report::{Frontier, Report};

impl Report {
    /// A page of this title: sizes, time and memory, what each matrix became and why, and, of a budget, where the result
    /// lies on the curve. `judged` is its mean KL divergence from the source, where that is known. Facts and the command
    /// that does the same again are the caller's to add.
    #[must_use]
    pub fn page(&self, title: &str, judged: Option<f64>) -> Page {
        let share = 100.0 * self.bytes_after as f64 / self.bytes_before.max(1) as f64;
        let mut facts = vec![
            Fact::new("before", megabytes(self.bytes_before)),
            Fact::new("after", format!("{} ({share:.1} %)", megabytes(self.bytes_after))),
            Fact::new("bits a weight", format!("{:.4}", self.bits_per_weight)),
        ];
        facts.extend(judged.map(|kld| Fact::new("mean KL divergence", format!("{kld:.6}"))));
        facts.push(Fact::new("time", format!("{:.1} s", self.seconds)));
        facts.extend(self.peak_rss_bytes.map(|peak| Fact::new("peak memory", megabytes(peak))));
        let mut page = Page::new(title).with_notes(self.notes.clone());
        page = page.with_units(self.units());
        if let Some(outlook) = &self.outlook {
            let here = judged.map(|kld| Mark::new(self.bytes_after, self.bits_per_weight, kld));
            page = page.with_curve(outlook.curve(here.as_slice()));
            let expected: f64 = outlook.decisions.iter().map(|it| it.expected).sum();
            facts.push(Fact::new("expected to lose", format!("{expected:.6}")));
            let nanos = outlook.decisions.iter().filter_map(|it| it.token_nanos).sum::<u64>();
            if nanos > 0 {
                let time = format!("{:.3} ms in these matrices, one thread", nanos as f64 / 1e6);
                facts.push(Fact::new("a token", time));
            }
        }
        let fallbacks = self.layers.iter().filter(|layer| layer.fallback.is_some()).count();
        facts.push(Fact::new("matrices", self.layers.len().to_string()));
        facts.push(Fact::new("fallbacks", fallbacks.to_string()));
        page.with_facts(facts)
    }

    fn units(&self) -> Vec<Unit> {
        let decisions = self.outlook.iter().flat_map(|outlook| &outlook.decisions);
        let decided: BTreeMap<&str, &Decision> = decisions
            .flat_map(|decision| decision.names.iter().map(move |name| (name.as_str(), decision)))
            .collect();
        let compressed: BTreeMap<&str, u64> = self
            .bill
            .layers
            .iter()
            .map(|layer| (layer.name.as_str(), layer.storage.bytes()))
            .collect();
        let unit = |layer: &super::LayerReport| {
            let stored = compressed.get(layer.name.as_str()).or(self.floats.get(&layer.name));
            let bytes = stored.copied().unwrap_or_default();
            let mut unit = Unit::new(&layer.name, &layer.method, layer.bits_per_weight, bytes);
            if let Some(error) = layer.error {
                unit = unit.with_relative_error(error);
            }
            if let Some(reason) = &layer.fallback {
                unit = unit.with_fallback(reason);
            }
            if let Some(decision) = decided.get(layer.name.as_str()) {
                // Of matrices that are one tensor, each with its part.
                let expected = decision.expected / decision.names.len().max(1) as f64;
                unit = unit.with_expected_loss(expected).with_why(decision.why());
            }
            unit
        };
        self.layers.iter().map(unit).collect()
    }
}

impl Frontier {
    /// A page of this title: the curve, what of it was judged, and one level for all beside it. It says nothing of time and
    /// memory, so that it is the same after any number of stops. The command that does the same again is the caller's to
    /// add.
    #[must_use]
    pub fn page(&self, title: &str) -> Page {
        let judged = self.points.iter().filter(|point| point.divergence.is_some()).count();
        let mut facts = vec![Fact::new("source", megabytes(self.bytes_before))];
        let count = format!("{} ({judged} judged)", self.points.len());
        facts.push(Fact::new("sizes", count));
        Page::new(title)
            .with_facts(facts)
            .with_notes(self.notes.clone())
            .with_curve(self.outlook.curve(&[]))
    }
}

impl Outlook {
    /// The curve, with what was made and judged, and one level for all; `here` are models more that were judged. Where
    /// nothing else was, what is expected is in proportion to the first of them.
    fn curve(&self, here: &[Mark]) -> Curve {
        let judged = self.frontier.iter();
        let judged = judged.filter_map(|point| Some((point, point.divergence?)));
        let mut judged: Vec<Mark> =
            judged.map(|(at, kld)| Mark::new(at.bytes, at.bits_per_weight, kld)).collect();
        let ratio = match here.first().filter(|_| judged.is_empty()) {
            Some(here) => here.divergence / self.expected_at(here.bytes).unwrap_or(here.divergence),
            None => 1.0,
        };
        let ratio = if ratio.is_finite() && ratio > 0.0 { ratio } else { 1.0 };
        judged.extend_from_slice(here);
        let mark = |at: &Point| Mark::new(at.bytes, at.bits_per_weight, ratio * at.expected);
        let expected: Vec<Mark> = self.frontier.iter().map(mark).collect();
        let uniform = self.uniform.iter();
        let uniform: Vec<Mark> =
            uniform.map(|one| mark(&one.point).with_label(&one.level)).collect();
        let all = [
            Series::new("best mix, expected", SeriesKind::Predicted, expected),
            Series::new("made and judged", SeriesKind::Judged, judged),
            Series::new("one level for all, expected", SeriesKind::Rivals, uniform),
        ];
        Curve::new(all.into_iter().filter(|series| !series.points.is_empty()).collect::<Vec<_>>())
    }
}

impl Outlook {
    /// What the best mix of a size is expected to lose: between two of the curve along the line through their logarithms.
    fn expected_at(&self, bytes: u64) -> Option<f64> {
        let after = self.frontier.iter().position(|point| point.bytes >= bytes)?;
        let above = &self.frontier[after];
        let Some(below) = after.checked_sub(1).map(|at| &self.frontier[at]) else {
            return Some(above.expected);
        };
        let share = (bytes - below.bytes) as f64 / (above.bytes - below.bytes).max(1) as f64;
        let (low, high) = (below.expected.ln(), above.expected.ln());
        Some((low + share * (high - low)).exp())
    }
}

impl Decision {
    /// Why this level: what a MB more would gain here, and a MB less cost.
    fn why(&self) -> String {
        let price = |(bytes, loss): (u64, f64)| format!("{:.2e}", 1e6 * loss / bytes.max(1) as f64);
        let better =
            self.better.map(|step| format!("a better one would gain {} a MB", price(step)));
        let smaller = self.smaller.map(|step| format!("a smaller one lose {} a MB", price(step)));
        match (better, smaller) {
            (Some(better), Some(smaller)) => format!("{better}, {smaller}"),
            (Some(better), None) => format!("the smallest; {better}"),
            (None, Some(smaller)) => format!("the best; {smaller}"),
            (None, None) if self.bytes == 0 => "goes with its sublayer".to_owned(),
            (None, None) => "the only one".to_owned(),
        }
    }
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        ..10_000_000 => format!("{bytes} bytes"),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
