//! What a row would drop, one after another, and at what cost.

use tensorpress_tensor::obs::ExactRow;

/// What goes in one step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    /// A weight.
    Single,
    /// A weight, at most `most` of each group of `size`.
    Grouped { most: usize, size: usize },
    /// So many consecutive weights; the last block may be shorter.
    Blocks(usize),
}

impl Unit {
    /// Columns of a unit.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Blocks(width) => width,
            _ => 1,
        }
    }
}

/// Units in the order in which a row drops them, and what each costs.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    pub(super) order: Vec<u32>,
    losses: Vec<f64>,
}

impl Trace {
    /// The columns of all its units.
    pub(super) fn columns(&self, unit: Unit, cols: usize) -> impl Iterator<Item = usize> {
        let width = unit.width();
        let span = move |at: &u32| *at as usize * width..((*at as usize + 1) * width).min(cols);
        self.order.iter().flat_map(span)
    }
}

/// Drops the cheapest unit of a row up to `steps` times; in groups, all that they allow. Columns that are settled already
/// count as dropped in their group, and a block all of which is settled is none.
pub(super) fn trace(mut row: ExactRow<'_>, unit: Unit, steps: usize) -> Trace {
    match unit {
        Unit::Single => singles(&mut row, steps, |_| true, |_| ()),
        Unit::Grouped { most, size } => {
            let cols = row_length(&row, size);
            let mut dropped = vec![size; cols / size];
            row.columns().iter().for_each(|column| dropped[column / size] -= 1);
            let dropped = std::cell::RefCell::new(dropped);
            let may = |column: usize| dropped.borrow()[column / size] < most;
            let drops = |column: usize| dropped.borrow_mut()[column / size] += 1;
            singles(&mut row, usize::MAX, may, drops)
        }
        Unit::Blocks(width) => blocks(&mut row, width, steps),
    }
}

/// Columns up to the last open one, filled up to whole groups.
fn row_length(row: &ExactRow<'_>, size: usize) -> usize {
    row.columns().iter().map(|column| column + 1).max().unwrap_or(0).next_multiple_of(size)
}

fn singles(
    row: &mut ExactRow<'_>,
    steps: usize,
    may: impl Fn(usize) -> bool,
    drops: impl Fn(usize),
) -> Trace {
    let mut trace = Trace::default();
    while trace.order.len() < steps {
        let mut best: Option<(f64, usize)> = None;
        let places = row.columns().iter().zip(row.weight().iter().zip(row.diagonal()));
        for (column, (weight, diagonal)) in places.filter(|(column, _)| may(**column)) {
            offer(&mut best, weight * weight / diagonal, *column);
        }
        let Some((loss, column)) = best else { break };
        drops(column);
        row.settle(column, 0.0);
        trace.order.push(column as u32);
        trace.losses.push(loss);
    }
    trace
}

/// Keeps the lower loss; of equal ones the first column.
fn offer(best: &mut Option<(f64, usize)>, loss: f64, unit: usize) {
    if best.is_none_or(|(least, first)| loss < least || (loss == least && unit < first)) {
        *best = Some((loss, unit));
    }
}

/// A block of a row: its open columns, and the inverse of H over all open columns, restricted to these.
struct Block {
    columns: Vec<usize>,
    inverse: Vec<f64>,
}

impl Block {
    /// w_P (H⁻¹_PP)⁻¹ w_P, by elimination.
    fn loss(&self, row: &ExactRow<'_>) -> f64 {
        let size = self.columns.len();
        let place = |column: &usize| row.place(*column).expect("open");
        let mut rest: Vec<f64> = self.columns.iter().map(|c| row.weight()[place(c)]).collect();
        let mut inverse = self.inverse.clone();
        let mut loss = 0.0;
        for i in 0..size {
            let pivot = inverse[i * size + i].max(f64::MIN_POSITIVE);
            loss += rest[i] * rest[i] / pivot;
            for j in i + 1..size {
                let factor = inverse[j * size + i] / pivot;
                rest[j] -= factor * rest[i];
                for k in i + 1..size {
                    inverse[j * size + k] -= factor * inverse[i * size + k];
                }
            }
        }
        loss
    }
}

fn blocks(row: &mut ExactRow<'_>, width: usize, steps: usize) -> Trace {
    let mut open: Vec<Option<Block>> = Vec::new();
    let mut columns = row.columns().to_vec();
    columns.sort_unstable();
    for column in columns {
        let at = column / width;
        open.resize_with(open.len().max(at + 1), || None);
        let block =
            open[at].get_or_insert_with(|| Block { columns: Vec::new(), inverse: Vec::new() });
        block.columns.push(column);
    }
    for block in open.iter_mut().flatten() {
        let pairs = block.columns.iter().flat_map(|a| block.columns.iter().map(move |b| (*a, *b)));
        block.inverse = pairs.map(|(a, b)| row.entry(a, b)).collect();
    }
    let mut trace = Trace::default();
    while trace.order.len() < steps {
        let mut best = None;
        for (at, block) in open.iter().enumerate() {
            if let Some(block) = block {
                offer(&mut best, block.loss(row), at);
            }
        }
        let Some((loss, at)) = best else { break };
        let gone = open[at].take().expect("open");
        for column in gone.columns {
            row.settle(column, 0.0);
            // H⁻¹ of what is open has lost the outer product of the last step.
            for block in open.iter_mut().flatten() {
                let step: Vec<f64> = block.columns.iter().map(|c| row.last(*c)).collect();
                let size = step.len();
                for (at, inverse) in block.inverse.iter_mut().enumerate() {
                    *inverse -= step[at / size] * step[at % size];
                }
            }
        }
        trace.order.push(at as u32);
        trace.losses.push(loss);
    }
    trace
}

/// How many steps each row takes if `goes` are taken in all: as many as it has among the cheapest of all rows' steps, of
/// equal ones those of the first rows. A step that is cheaper than one before it takes that along in its place, as in the
/// official code.
pub(super) fn fewest(traces: &[Trace], goes: usize) -> Vec<usize> {
    let mut steps = vec![0usize; traces.len()];
    let of_row = |(row, trace): (usize, &Trace)| -> Vec<(f64, usize)> {
        trace.losses.iter().map(|loss| (*loss, row)).collect()
    };
    let mut all: Vec<(f64, usize)> = traces.iter().enumerate().flat_map(of_row).collect();
    let cheapest = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if goes < all.len() {
        all.select_nth_unstable_by(goes, cheapest);
        all.truncate(goes);
    }
    all.into_iter().for_each(|(_, row)| steps[row] += 1);
    steps
}
