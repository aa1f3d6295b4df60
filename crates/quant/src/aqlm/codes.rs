use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Additive, AdditiveFormat, Dense};
use tensorpress_tensor::{DType, Error, Node, Result};

/// A matrix whose vectors are sums of codebook entries, as [`super::Aqlm`] works on it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdditiveCodes {
    /// Inputs.
    pub cols: usize,
    /// Bits of a code.
    pub bits: u8,
    /// Number of codebooks.
    pub books: usize,
    /// Vectors, 2^bits a codebook, one codebook after another: `[books * 2^bits, size]`.
    pub codebooks: Array2<f32>,
    /// For each vector of a row its code in each codebook: `[rows, vectors * books]`.
    pub codes: Array2<u16>,
    /// A factor a row.
    pub scales: Vec<f32>,
}

/// One way of coding a row up to here.
#[derive(Clone)]
struct Way {
    loss: f64,
    codes: Vec<u16>,
    /// Weights less what they are coded as.
    rest: Vec<f64>,
    /// That times the Gram matrix, over the vector at hand.
    slope: Vec<f64>,
}

/// What depends on a vector's place alone: the Gram matrix within it.
struct Within {
    /// `[size, size]`, smaller for the last.
    gram: Array2<f64>,
    /// c G cᵀ of every entry of every codebook.
    squares: Vec<f64>,
}

impl AdditiveCodes {
    /// Weights of a vector.
    #[must_use]
    pub fn size(&self) -> usize {
        self.codebooks.ncols()
    }

    pub(super) fn entries(&self) -> usize {
        1 << self.bits
    }

    /// What a row is coded as, before its scale.
    pub(super) fn unscaled(&self, row: usize, out: &mut [f32]) {
        let (size, entries) = (self.size(), self.entries());
        out.fill(0.0);
        let codes = self.codes.row(row);
        let codes = codes.as_slice().expect("standard layout").chunks(self.books);
        for (out, codes) in out.chunks_mut(size).zip(codes) {
            for (book, code) in codes.iter().enumerate() {
                let entry = self.codebooks.row(book * entries + usize::from(*code));
                out.iter_mut().zip(entry).for_each(|(out, value)| *out += value);
            }
        }
    }

    /// The matrix.
    #[must_use]
    pub fn decode(&self) -> Array2<f32> {
        let mut out = Array2::zeros((self.codes.nrows(), self.cols));
        for (row, mut out) in out.rows_mut().into_iter().enumerate() {
            self.unscaled(row, out.as_slice_mut().expect("standard layout"));
            out *= self.scales[row];
        }
        out
    }

    /// tr(D H Dᵀ) for the error D.
    #[must_use]
    pub fn loss(&self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) -> f64 {
        let rest = (&weight - &self.decode()).mapv(f64::from);
        let mut slope = Array2::zeros(rest.dim());
        tensorpress_tensor::linalg::matmul(rest.view(), gram, slope.view_mut(), false, par);
        rest.iter().zip(&slope).map(|(a, b)| a * b).sum()
    }

    /// Chooses all codes anew, row by row: vector after vector and book after book, each code is replaced by what loses
    /// least, and the `beam` best ways of coding the row so far are followed. No row loses more than before.
    ///
    /// # Panics
    /// If the shapes differ, or `beam` is 0.
    pub fn search(
        &mut self,
        weight: ArrayView2<'_, f32>,
        gram: ArrayView2<'_, f64>,
        beam: usize,
        par: Par,
    ) {
        assert!(beam > 0 && weight.dim() == (self.codes.nrows(), self.cols), "shapes or beam");
        let within: Vec<Within> =
            (0..self.cols.div_ceil(self.size())).map(|at| self.within(gram, at)).collect();
        let mut codes = std::mem::take(&mut self.codes);
        let this = &*self;
        par.for_each(codes.rows_mut().into_iter().enumerate(), |(row, mut codes)| {
            let before = codes.to_vec();
            let way = this.search_row(
                weight.row(row).to_vec(),
                before,
                this.scales[row],
                gram,
                &within,
                beam,
            );
            codes.iter_mut().zip(way).for_each(|(to, code)| *to = code);
        });
        self.codes = codes;
    }

    /// Columns of a vector.
    fn span(&self, at: usize) -> std::ops::Range<usize> {
        at * self.size()..((at + 1) * self.size()).min(self.cols)
    }

    fn within(&self, gram: ArrayView2<'_, f64>, at: usize) -> Within {
        let gram = gram.slice(s![self.span(at), self.span(at)]).to_owned();
        let square = |entry: ArrayView2<'_, f32>| -> f64 {
            let entry: Vec<f64> = entry.iter().map(|v| f64::from(*v)).collect();
            quadratic(&gram, &entry)
        };
        let width = gram.nrows();
        let entries = 0..self.codebooks.nrows();
        let squares =
            entries.map(|e| square(self.codebooks.slice(s![e..e + 1, ..width]))).collect();
        Within { gram, squares }
    }

    fn search_row(
        &self,
        weight: Vec<f32>,
        codes: Vec<u16>,
        scale: f32,
        gram: ArrayView2<'_, f64>,
        within: &[Within],
        beam: usize,
    ) -> Vec<u16> {
        let scale = f64::from(scale);
        let mut rest: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        for (vector, rest) in rest.chunks_mut(self.size()).enumerate() {
            for (book, code) in codes[vector * self.books..][..self.books].iter().enumerate() {
                let entry = self.entry(book, *code);
                rest.iter_mut().zip(entry).for_each(|(r, v)| *r -= scale * f64::from(*v));
            }
        }
        let mut ways = vec![Way { loss: 0.0, codes, rest, slope: Vec::new() }];
        let mut scores: Vec<f64> = Vec::new();
        for (vector, within) in within.iter().enumerate() {
            let span = self.span(vector);
            for way in &mut ways {
                way.slope = vec![0.0; span.len()];
                for (rest, gram) in way.rest.iter().zip(gram.rows()) {
                    let gram = gram.slice(s![span.clone()]);
                    way.slope.iter_mut().zip(gram).for_each(|(to, g)| *to += rest * g);
                }
            }
            for book in 0..self.books {
                let place = vector * self.books + book;
                let mut best: Vec<(f64, usize, u16)> = Vec::with_capacity(beam + 1);
                for (at, way) in ways.iter().enumerate() {
                    self.losses(way, within, book, way.codes[place], scale, &mut scores);
                    for (code, loss) in scores.iter().enumerate() {
                        if best.len() < beam || *loss < best[beam - 1].0 {
                            let after = best.partition_point(|(kept, ..)| kept <= loss);
                            best.insert(after, (*loss, at, code as u16));
                            best.truncate(beam);
                        }
                    }
                }
                let next = best.into_iter().map(|(loss, at, code)| {
                    let mut way = Way { loss, ..ways[at].clone() };
                    self.replace(&mut way, within, span.clone(), [place, book], code, scale);
                    way
                });
                ways = next.collect();
            }
        }
        ways.swap_remove(0).codes
    }

    fn entry(&self, book: usize, code: u16) -> &[f32] {
        let all = self.codebooks.as_slice().expect("standard layout");
        &all[(book * self.entries() + usize::from(code)) * self.size()..][..self.size()]
    }

    /// What a way would lose (less a constant) with each code in the place of `old`: with the error d, the Gram matrix G within
    /// the vector and a change δ of what is coded, - 2 δ·(dG) + δGδ.
    fn losses(
        &self,
        way: &Way,
        within: &Within,
        book: usize,
        old: u16,
        scale: f64,
        scores: &mut Vec<f64>,
    ) {
        let width = way.slope.len();
        let old: Vec<f64> = self.entry(book, old)[..width].iter().map(|v| f64::from(*v)).collect();
        let mut slope = way.slope.clone();
        for (to, gram) in slope.iter_mut().zip(within.gram.rows()) {
            *to += scale * gram.iter().zip(&old).map(|(g, v)| g * v).sum::<f64>();
        }
        let dot = |entry: &[f64]| -> f64 { entry.iter().zip(&slope).map(|(a, b)| a * b).sum() };
        let constant =
            way.loss + 2.0 * scale * dot(&old) - scale * scale * quadratic(&within.gram, &old);
        let entries = self.entries();
        let all = self.codebooks.as_slice().expect("standard layout");
        let book = book * entries;
        let vectors = all[book * self.size()..][..entries * self.size()].chunks(self.size());
        scores.clear();
        scores.extend(vectors.zip(&within.squares[book..]).map(|(vector, square)| {
            let along: f64 = vector.iter().zip(&slope).map(|(v, s)| f64::from(*v) * s).sum();
            constant + scale * (scale * square - 2.0 * along)
        }));
    }

    /// Puts a code in its place.
    fn replace(
        &self,
        way: &mut Way,
        within: &Within,
        span: std::ops::Range<usize>,
        [place, book]: [usize; 2],
        code: u16,
        scale: f64,
    ) {
        let old = std::mem::replace(&mut way.codes[place], code);
        if old == code {
            return;
        }
        let entries = self.entry(book, code).iter().zip(self.entry(book, old));
        let change = entries.map(|(new, old)| scale * (f64::from(*new) - f64::from(*old)));
        let change: Vec<f64> = change.take(span.len()).collect();
        way.rest[span].iter_mut().zip(&change).for_each(|(rest, by)| *rest -= by);
        for (slope, gram) in way.slope.iter_mut().zip(within.gram.rows()) {
            *slope -= gram.iter().zip(&change).map(|(g, by)| g * by).sum::<f64>();
        }
    }

    /// The node, codebooks and scales rounded to a type.
    ///
    /// # Errors
    /// `InvalidArgument` for codes or a type that do not fit.
    pub fn node(&self, floats: DType) -> Result<Additive> {
        let rows = self.codes.nrows();
        if self.scales.len() != rows || self.books == 0 {
            return Err(Error::shape(format!("{} scales of {rows} rows", self.scales.len())));
        }
        let format = AdditiveFormat::new(self.size(), self.books, self.entries())?;
        let largest = self.codebooks.iter().chain(&self.scales).fold(0.0f32, |a, v| a.max(v.abs()));
        let floats = if floats == DType::F16 && largest > 65504.0 { DType::F32 } else { floats };
        let books = Dense::from_f32(self.codebooks.view(), floats)?.boxed();
        let scales = ArrayView2::from_shape((rows, 1), &self.scales).expect("one a row");
        let scales = Dense::from_f32(scales, floats)?.boxed();
        let (shape, codes) = ([rows, self.cols], self.codes.as_slice().expect("standard layout"));
        match self.bits {
            0..=8 => {
                let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                Additive::sums(format, shape, self.bits, &codes, books, scales)
            }
            bits => Additive::sums(format, shape, bits, codes, books, scales),
        }
    }
}

fn quadratic(gram: &Array2<f64>, v: &[f64]) -> f64 {
    let rows = gram.rows().into_iter().zip(v);
    rows.map(|(row, a)| a * row.iter().zip(v).map(|(g, b)| g * b).sum::<f64>()).sum()
}
