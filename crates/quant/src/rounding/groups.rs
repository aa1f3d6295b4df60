use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{ArrayView2, s};
use tensorpress_tensor::node::Mask;

/// Rows whose groups a thread fits at a time.
const FEW: usize = 16;

/// Something for each group of consecutive columns of each row.
#[derive(Debug)]
pub(crate) struct Grouped<P> {
    size: usize,
    rows: usize,
    cols: usize,
    /// Group after group, so that those of one group lie side by side.
    all: Vec<P>,
}

impl<P: Clone + Send> Grouped<P> {
    /// The same for all groups of `size` columns, 0 standing for whole rows.
    pub(crate) fn new([rows, cols]: [usize; 2], size: usize, all: P) -> Self {
        let size = if size == 0 { cols.max(1) } else { size.min(cols.max(1)) };
        Self { size, rows, cols, all: vec![all; rows * cols.div_ceil(size)] }
    }

    /// Those of `[rows, groups]`.
    pub(crate) fn from_rows(shape: [usize; 2], size: usize, all: &[P]) -> Self
    where
        P: Default,
    {
        let mut grouped = Self::new(shape, size, P::default());
        let groups = grouped.cols.div_ceil(grouped.size);
        for (i, value) in all.iter().enumerate() {
            grouped.all[i % groups * grouped.rows + i / groups] = value.clone();
        }
        grouped
    }

    /// Columns of a group.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// That of the group of a column.
    #[inline(always)]
    pub(crate) fn of(&self, row: usize, column: usize) -> &P {
        &self.all[column / self.size * self.rows + row]
    }

    /// All, `[rows, groups]`.
    pub(crate) fn by_rows(&self) -> Vec<P> {
        let groups = self.cols.div_ceil(self.size);
        let at = |i: usize| self.all[i % groups * self.rows + i / groups].clone();
        (0..self.rows * groups).map(at).collect()
    }

    /// Sets those of the groups that begin among `columns` to what `fit` finds for the weights that may be kept and what
    /// each costs.
    pub(crate) fn fit(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        (costs, mask): (&[f32], Option<&Mask>),
        par: Par,
        fit: impl Fn(&[f32], &[f32]) -> P + Sync,
    ) {
        let (size, rows, cols) = (self.size, self.rows, self.cols);
        if rows == 0 {
            return;
        }
        for group in columns.start.div_ceil(size)..columns.end.div_ceil(size) {
            let columns = group * size..((group + 1) * size).min(cols);
            let weight = weight.slice(s![.., columns.clone()]);
            let costs = &costs[columns.clone()];
            let all = &mut self.all[group * rows..(group + 1) * rows];
            par.for_each(all.chunks_mut(FEW).enumerate(), |(piece, all)| {
                for (row, to) in (piece * FEW..).zip(all) {
                    let w = weight.row(row);
                    let w = w.as_slice().expect("rows lie whole");
                    *to = match mask {
                        None => fit(w, costs),
                        Some(mask) => {
                            let all = w.iter().zip(costs).zip(columns.clone());
                            let kept = all.filter(|(_, c)| mask.keeps(row, *c));
                            let (w, costs): (Vec<f32>, Vec<f32>) =
                                kept.map(|((w, cost), _)| (*w, *cost)).unzip();
                            fit(&w, &costs)
                        }
                    };
                }
            });
        }
    }
}
