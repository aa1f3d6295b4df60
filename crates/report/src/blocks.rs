//! Bits and sensitivity by block: a line for each kind of matrix.

use std::collections::BTreeMap;

use crate::kinds;
use crate::plot::{Axis, Line, Plot, Scale};
use crate::text::counted;
use crate::unit::Unit;

/// More lines than these cannot be told apart.
const LINES: usize = 12;

/// Bits a weight by block; the mean where a block has several matrices of a kind.
pub fn bits(units: &[Unit]) -> Plot {
    let axis = Axis::new("bits a weight", Scale::Linear).with_zero();
    let mut plot = Plot::new("Bits by block", blocks_axis(), axis);
    plot.beside = true;
    let value = |unit: &Unit| Some(unit.bits);
    draw(plot, units, value, |sum, count| sum / count as f64, |bits| bits >= 0.0)
}

/// Expected loss by block, summed where a block has several matrices of a kind.
pub fn sensitivity(units: &[Unit]) -> Plot {
    let axis = Axis::new("expected loss (log)", Scale::Log);
    let plot = Plot::new("Sensitivity by block", blocks_axis(), axis);
    draw(plot, units, |unit| unit.expected_loss, |sum, _| sum, |loss| loss > 0.0)
}

fn blocks_axis() -> Axis {
    Axis::new("block", Scale::Linear).whole()
}

/// A line a kind: what `value` says of a unit, brought together by `joined`, where that can be `drawn`.
fn draw(
    mut plot: Plot,
    units: &[Unit],
    value: impl Fn(&Unit) -> Option<f64>,
    joined: impl Fn(f64, usize) -> f64,
    drawn: impl Fn(f64) -> bool,
) -> Plot {
    let within: Vec<&Unit> = units.iter().filter(|u| u.block.is_some()).collect();
    let kinds = kinds::of(within.iter().copied());
    let of_kind: BTreeMap<&str, usize> =
        kinds.iter().take(LINES).enumerate().map(|(at, kind)| (kind.name, at)).collect();
    let mut sums = vec![BTreeMap::<u32, (f64, usize)>::new(); of_kind.len()];
    for unit in within {
        let (Some(at), Some(block)) = (of_kind.get(unit.kind.as_str()), unit.block) else {
            continue;
        };
        if let Some(value) = value(unit) {
            let (sum, count) = sums[*at].entry(block).or_default();
            *sum += value;
            *count += 1;
        }
    }
    let mut left_out = 0;
    for (name, sums) in kinds::short(&kinds).into_iter().zip(sums) {
        let all = sums.len();
        let points: Vec<(f64, f64)> = sums
            .into_iter()
            .map(|(block, (sum, count))| (f64::from(block), joined(sum, count)))
            .filter(|(_, value)| value.is_finite() && drawn(*value))
            .collect();
        left_out += all - points.len();
        plot.lines.push(Line { name, points, labels: Vec::new(), joined: true, marked: true });
    }
    if left_out > 0 {
        let points = counted(left_out, "point");
        plot.notes.push(format!("{points} left out: nothing that this axis can show."));
    }
    if kinds.len() > LINES {
        let more = counted(kinds.len() - LINES, "kind");
        plot.notes.push(format!("{more} left out: those of the fewest bytes."));
    }
    plot
}
