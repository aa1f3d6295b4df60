use std::ops::Range;

use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes};

use super::Rule;

/// A rule as a sweep takes it. A vector is rounded when its first column has its turn: later columns of it get what was
/// decided then, whatever the errors before them made of them meanwhile.
pub(super) struct Columns<'a, R> {
    pub(super) rule: &'a mut R,
    pub(super) costs: &'a [f32],
    pub(super) rows: usize,
    pub(super) mask: Option<&'a Mask>,
}

/// What is decided of a vector of each row of a tile.
#[derive(Debug, Default)]
pub(super) struct Vector {
    values: Vec<Lanes>,
    codes: Vec<[u8; LANES]>,
    /// A row's.
    weight: Vec<f32>,
    rounded: Vec<f32>,
    code: Vec<u8>,
}

impl Vector {
    fn resize(&mut self, width: usize) {
        self.values.resize(width, [0.0; LANES]);
        self.codes.resize(width, [0; LANES]);
        self.weight.resize(width, 0.0);
        self.rounded.resize(width, 0.0);
        self.code.resize(width, 0);
    }
}

impl<R: Rule> ColumnRule for Columns<'_, R> {
    type Tile = Vector;

    fn begin_block(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        _: &[f32],
        par: Par,
    ) -> Result<()> {
        self.rule.begin(weight, columns, self.costs, par)
    }

    fn decide(
        &self,
        vector: &mut Vector,
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        let at = column % self.rule.width();
        if at == 0 {
            let width = self.rule.width().min(ahead.len());
            vector.resize(width);
            for lane in 0..LANES.min(self.rows - row) {
                let Vector { values, codes, weight, rounded, code } = &mut *vector;
                for (w, ahead) in weight.iter_mut().zip(ahead) {
                    *w = ahead[lane];
                }
                self.rule.round(row + lane, column, weight, rounded, code);
                for (to, from) in values.iter_mut().zip(&*rounded) {
                    to[lane] = *from;
                }
                for (to, from) in codes.iter_mut().zip(&*code) {
                    to[lane] = *from;
                }
            }
        }
        decision.value = vector.values[at];
        decision.code = vector.codes[at];
        if let Some(mask) = self.mask {
            for lane in 0..LANES.min(self.rows - row) {
                if !mask.keeps(row + lane, column) {
                    decision.value[lane] = 0.0;
                }
            }
        }
        for lane in (self.rows - row).min(LANES)..LANES {
            decision.value[lane] = 0.0;
        }
    }
}
