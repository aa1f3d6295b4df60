use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Additive, Child, Dense, Node, SymbolBuf, as_node, decode};
use tensorpress_tensor::{DType, Error, Result};

use super::{Proposal, Representation};
use crate::AdditiveCodes;

/// Sums of codebooks as they are tuned.
#[derive(Debug, Clone)]
pub struct VectorCodes {
    sums: AdditiveCodes,
    floats: DType,
}

impl VectorCodes {
    /// Of a node.
    ///
    /// # Errors
    /// `Unsupported` for codebooks and scales that are not stored as floats of one type, `Corruption` as reading it.
    pub fn of(node: &Additive) -> Result<Self> {
        let dense = |slot: usize| match node.child(slot) {
            Child::Node(child) => as_node::<Dense>(&**child),
            _ => None,
        };
        let (Some(books), Some(scales)) = (dense(0), dense(1)) else {
            return Err(Error::unsupported("tuning of codebooks that are not stored"));
        };
        if books.dtype() != scales.dtype() || !node.format().entries().is_power_of_two() {
            return Err(Error::unsupported(
                "tuning of codebooks of another type than their scales",
            ));
        }
        let ([rows, cols], format) = (node.shape(), node.format());
        let mut symbols = SymbolBuf::of(node.codes());
        let codes: Vec<u16> = symbols.read(node.codes(), 0..rows)?.iter().collect();
        let wide = cols.div_ceil(format.size()) * format.books();
        let sums = AdditiveCodes {
            cols,
            bits: format.entries().ilog2() as u8,
            books: format.books(),
            codebooks: decode(books)?,
            codes: Array2::from_shape_vec((rows, wide), codes).expect("a code each"),
            scales: decode(scales)?.into_raw_vec_and_offset().0,
        };
        Ok(Self { sums, floats: books.dtype() })
    }

    fn span(&self, place: usize) -> std::ops::Range<usize> {
        let (size, vector) = (self.sums.size(), place / self.sums.books);
        vector * size..((vector + 1) * size).min(self.sums.cols)
    }

    /// What an entry's numbers become, for another code in a place.
    fn difference(&self, row: usize, place: usize, code: u16) -> impl Iterator<Item = f64> {
        let (books, entries) = (self.sums.books, 1usize << self.sums.bits);
        let [old, new] = [self.sums.codes[[row, place]], code]
            .map(|code| self.sums.codebooks.row(place % books * entries + usize::from(code)));
        let scale = f64::from(self.sums.scales[row]);
        let change = move |(new, old): (&f32, &f32)| scale * (f64::from(*new) - f64::from(*old));
        new.into_iter().zip(old).take(self.span(place).len()).map(change)
    }
}

impl Representation for VectorCodes {
    fn decode(&self) -> Array2<f32> {
        self.sums.decode()
    }

    fn fit(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) {
        self.sums.fit(weight, gram, par);
        let stored = |value: &mut f32| {
            let rounded = self.floats.round(*value);
            *value = if rounded.is_finite() { rounded } else { *value };
        };
        self.sums.codebooks.iter_mut().chain(&mut self.sums.scales).for_each(stored);
    }

    fn proposals(&self, row: usize, slope: &[f64], gram: ArrayView2<'_, f64>) -> Vec<Proposal> {
        let entries = 1usize << self.sums.bits;
        let one = |place: usize| {
            let span = self.span(place);
            let (slope, gram) = (&slope[span.clone()], gram.slice(s![span.clone(), span.clone()]));
            let mut best = Proposal { place, code: 0, gain: 0.0 };
            let mut change = vec![0.0; span.len()];
            for code in 0..entries as u32 {
                let code = code as u16;
                change
                    .iter_mut()
                    .zip(self.difference(row, place, code))
                    .for_each(|(to, by)| *to = by);
                let along: f64 = change.iter().zip(slope).map(|(a, b)| a * b).sum();
                // Most gain nothing even along the slope.
                if along <= 0.0 || 2.0 * along <= best.gain {
                    continue;
                }
                let rows = gram.rows().into_iter().zip(&change);
                let curved: f64 = rows
                    .map(|(row, a)| a * row.iter().zip(&change).map(|(h, b)| h * b).sum::<f64>())
                    .sum();
                let gain = 2.0 * along - curved;
                if gain > best.gain {
                    best = Proposal { place, code, gain };
                }
            }
            best
        };
        let books = self.sums.books;
        // One code of each vector.
        let vector = |at: usize| {
            let all = (at * books..(at + 1) * books).map(one);
            all.reduce(|best, next| if next.gain > best.gain { next } else { best })
        };
        let all = (0..self.sums.codes.ncols() / books).filter_map(vector);
        all.filter(|proposal| proposal.gain > 0.0).collect()
    }

    fn change(&self, row: usize, proposal: &Proposal, change: &mut [f64]) {
        let by = self.difference(row, proposal.place, proposal.code);
        change[self.span(proposal.place)].iter_mut().zip(by).for_each(|(to, by)| *to += by);
    }

    fn take(&mut self, row: usize, proposal: &Proposal) {
        self.sums.codes[[row, proposal.place]] = proposal.code;
    }

    fn units(&self) -> usize {
        self.sums.codes.ncols() / self.sums.books
    }

    fn copy(&self) -> Box<dyn Representation> {
        Box::new(self.clone())
    }

    fn node(&self) -> Result<Box<dyn Node>> {
        Ok(self.sums.node(self.floats)?.boxed())
    }
}
