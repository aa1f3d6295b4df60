use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};
use serde_json::json;
use tensorpress_tensor::cluster;
use tensorpress_tensor::kernels::{self, packed_len};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, PartKind, Result, ndarray};

use crate::store::coded::{Code, Coded, Stream, floats, put_codes, put_floats, take_codes};
use crate::store::{product, read_bytes};

/// Codebooks of a head's keys or values: the channels are cut into subvectors, each with centroids of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebooks {
    /// `[subvectors, centroids, channels of one]`.
    centroids: Array3<f32>,
}

impl Codebooks {
    /// These centroids, `[subvectors, centroids, channels of one]`.
    ///
    /// # Errors
    /// `InvalidArgument` unless the centroids are 2 to 256 and a power of two; `Numerical` for what f16 does not hold.
    pub fn new(centroids: Array3<f32>) -> Result<Self> {
        let (_, count, _) = centroids.dim();
        if !(2..=256).contains(&count) || !count.is_power_of_two() || centroids.is_empty() {
            return Err(Error::invalid(format!("{count} centroids: allowed are 2, 4, ... 256")));
        }
        if let Some(bad) = centroids.iter().find(|x| !DType::F16.round(**x).is_finite()) {
            return Err(Error::numerical(format!("{bad} in a codebook: f16 holds up to 65504")));
        }
        Ok(Self { centroids: centroids.mapv(|x| DType::F16.round(x)) })
    }

    /// Learns them from rows `[tokens, channels]`: k-means of each subvector of `sub` channels.
    ///
    /// # Errors
    /// `InvalidArgument` unless `sub` divides the channels and `bits` is 1 to 8; `Numerical` for what is not finite.
    pub fn of(rows: ArrayView2<'_, f32>, sub: usize, bits: u32, seed: u64) -> Result<Self> {
        let dim = rows.ncols();
        if sub == 0 || !dim.is_multiple_of(sub) {
            return Err(Error::invalid(format!("sub = {sub}: must divide {dim} channels")));
        }
        if !(1..=8).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 1 to 8")));
        }
        if let Some(bad) = rows.iter().find(|x| !x.is_finite()) {
            return Err(Error::numerical(format!("{bad} among what codebooks are learnt from")));
        }
        let mut centroids = Array3::zeros((dim / sub, 1 << bits, sub));
        for (m, mut to) in centroids.outer_iter_mut().enumerate() {
            let vectors =
                rows.slice(s![.., m * sub..(m + 1) * sub]).as_standard_layout().into_owned();
            let mut random = SplitMix::new(SplitMix::new(seed).at(m as u64));
            to.assign(&cluster::means(&vectors, None, 1 << bits, &mut random, Par::Seq));
        }
        Self::new(centroids)
    }

    /// `[subvectors, centroids, channels of one]`.
    #[must_use]
    pub fn centroids(&self) -> ndarray::ArrayView3<'_, f32> {
        self.centroids.view()
    }
}

/// A code for each subvector of a row.
#[derive(Debug, Clone)]
pub(crate) struct PqCode {
    pub(crate) dim: usize,
    /// Channels of a subvector.
    pub(crate) sub: usize,
    pub(crate) bits: u32,
    /// Tokens that are learnt from; 0 where codebooks are given.
    pub(crate) fit: usize,
    pub(crate) seed: u64,
    pub(crate) books: Option<Arc<Codebooks>>,
}

const CODES: [Stream; 1] = [("codes", PartKind::Codes)];
const CENTROIDS: Stream = ("centroids", PartKind::Tables);

impl PqCode {
    fn subvectors(&self) -> usize {
        self.dim / self.sub
    }

    fn known(&self) -> &Array3<f32> {
        &self.books.as_ref().expect("rows are packed once codebooks are known").centroids
    }
}

impl Code for PqCode {
    fn dim(&self) -> usize {
        self.dim
    }

    fn fit(&self) -> usize {
        // Nothing is known and nothing will be learnt: no row is packed.
        if self.fit == 0 && self.books.is_none() { usize::MAX } else { self.fit }
    }

    fn given(&self) -> bool {
        self.fit == 0
    }

    fn streams(&self) -> &'static [Stream] {
        &CODES
    }

    fn bytes(&self, _: &[&[u8]]) -> usize {
        packed_len(self.subvectors(), self.bits)
    }

    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]) {
        let books = self.known();
        let mut codes = Array2::zeros((rows.nrows(), self.subvectors()));
        for (m, book) in books.outer_iter().enumerate() {
            let vectors = rows.slice(s![.., m * self.sub..(m + 1) * self.sub]);
            let vectors = vectors.as_standard_layout();
            let nearest = cluster::assign(vectors.view(), &book.to_owned(), Par::Seq);
            codes.column_mut(m).iter_mut().zip(nearest).for_each(|(to, code)| *to = code as u8);
        }
        for row in codes.rows() {
            put_codes(row.as_slice().expect("standard layout"), self.bits, &mut streams[0]);
        }
    }

    fn decode(&self, unit: &[&[u8]], out: &mut [f32]) {
        let books = self.known();
        let codes = take_codes(unit[0], self.bits, self.subvectors());
        for ((out, code), book) in out.chunks_exact_mut(self.sub).zip(codes).zip(books.outer_iter())
        {
            let row = book.index_axis_move(Axis(0), usize::from(code));
            out.copy_from_slice(row.as_slice().expect("standard layout"));
        }
    }

    fn learn(&mut self, rows: ArrayView2<'_, f32>) {
        let books = Codebooks::of(rows, self.sub, self.bits, self.seed);
        self.books = Some(Arc::new(books.expect("rows and numbers were checked")));
    }

    fn forget(&mut self) {
        self.books = None;
    }

    fn model(&self) -> Vec<(Stream, Vec<u8>)> {
        let Some(books) = &self.books else { return Vec::new() };
        let mut bytes = Vec::new();
        let centroids = books.centroids.as_slice().expect("standard layout");
        put_floats(DType::F16, centroids, &mut bytes);
        vec![(CENTROIDS, bytes)]
    }

    fn read_model(&mut self, prefix: &str, source: &dyn PartSource) -> Result<()> {
        let shape = (self.subvectors(), 1 << self.bits, self.sub);
        let bytes =
            read_bytes(source, prefix, CENTROIDS.0, product(&[shape.0, shape.1, shape.2, 2])?)?;
        let centroids = Array3::from_shape_vec(shape, floats(DType::F16, &bytes));
        self.books = Some(Arc::new(Codebooks { centroids: centroids.expect("as many as read") }));
        Ok(())
    }

    fn describe(&self) -> Json {
        let Self { sub, bits, fit, seed, .. } = self;
        json!({ "form": "pq", "sub": sub, "bits": bits, "fit": fit, "seed": seed })
    }

    /// Products of a query with all centroids first; a token's is the sum of those its codes name.
    fn dots(
        rows: &Coded<Self>,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let code = &rows.code;
        if tokens.is_empty() {
            return;
        }
        let (books, sub) = (code.known(), code.sub);
        let count = books.dim().1;
        let mut tables = Vec::with_capacity(queries.nrows() * books.dim().0 * count);
        for q in queries.rows() {
            let q = q.to_slice().expect("contiguous");
            for (book, q) in books.outer_iter().zip(q.chunks_exact(sub)) {
                let book = book.to_slice().expect("standard layout");
                tables.extend(book.chunks_exact(sub).map(|c| kernels::dot(c, q)));
            }
        }
        let of_query = books.dim().0 * count;
        rows.each_unit(tokens, |t, unit| {
            let codes = take_codes(unit[0], code.bits, code.subvectors());
            for (i, table) in tables.chunks_exact(of_query).enumerate() {
                let products = table.chunks_exact(count).zip(&codes);
                out[i * stride + t] = products.map(|(table, code)| table[usize::from(*code)]).sum();
            }
        });
    }

    /// How much weight falls on each centroid first; then their sums by these weights.
    fn mix(
        rows: &Coded<Self>,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let code = &rows.code;
        if tokens.is_empty() {
            return;
        }
        let (books, sub) = (code.known(), code.sub);
        let count = books.dim().1;
        let of_query = books.dim().0 * count;
        let mut sums = vec![0.0f32; out.nrows() * of_query];
        rows.each_unit(tokens, |t, unit| {
            let codes = take_codes(unit[0], code.bits, code.subvectors());
            for (i, sums) in sums.chunks_exact_mut(of_query).enumerate() {
                let weight = weights[i * stride + t];
                for (sums, code) in sums.chunks_exact_mut(count).zip(&codes) {
                    sums[usize::from(*code)] += weight;
                }
            }
        });
        for (sums, mut out) in sums.chunks_exact(of_query).zip(out.rows_mut()) {
            let out = out.as_slice_mut().expect("contiguous");
            let parts =
                out.chunks_exact_mut(sub).zip(sums.chunks_exact(count)).zip(books.outer_iter());
            for ((out, sums), book) in parts {
                let book = book.to_slice().expect("standard layout");
                for (weight, centroid) in sums.iter().zip(book.chunks_exact(sub)) {
                    kernels::axpy(*weight, centroid, out);
                }
            }
        }
    }
}
