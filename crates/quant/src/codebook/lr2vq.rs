use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, s};
use tensorpress_tensor::node::{Additive, AdditiveFormat, Dense, Product};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Node, Result,
    Target,
};

use super::{assign, lloyd, means, seeds};

/// LR2VQ (Zhu et al., 2022): subvectors of `size` weights, each a codeword of `dims` numbers times a basis `[dims, size]` that
/// all share: `dims` principal directions, and k-means among the coordinates.
///
/// Rows are divided by their norms first and have a factor each, fitted last. How many weights a code stands for is `size`'s to
/// say, how well codewords can follow them is `dims`'s.
///
/// ```
/// use tensorpress_quant::Lr2Vq;
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Lr2Vq::new(6, 8).with_dims(3).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lr2Vq {
    /// Bits of a code, 1 to 12. Default 8.
    pub bits: u8,
    /// Weights of a subvector, 1 to 256. Default 8.
    pub size: usize,
    /// Numbers of a codeword, at most `size`; 0: as many as lose least, by [`Lr2Vq::estimate`]. Default 0.
    pub dims: usize,
    /// Stored type of codewords, basis and factors. Default f16.
    pub floats: DType,
}

impl Default for Lr2Vq {
    fn default() -> Self {
        Self { bits: 8, size: 8, dims: 0, floats: DType::F16 }
    }
}

/// Subvectors that dimensions are judged on.
const JUDGED: usize = 1 << 13;
/// Steps of k-means for each.
const STEPS: usize = 8;

impl Lr2Vq {
    /// `bits` bits for every `size` weights.
    #[must_use]
    pub fn new(bits: u8, size: usize) -> Self {
        Self { bits, size, ..Self::default() }
    }

    /// Sets the numbers of a codeword; 0: as many as lose least.
    #[must_use]
    pub fn with_dims(mut self, dims: usize) -> Self {
        self.dims = dims;
        self
    }

    /// Sets the stored type of codewords, basis and factors.
    #[must_use]
    pub fn with_floats(mut self, floats: DType) -> Self {
        self.floats = floats;
        self
    }

    fn checked(&self) -> Result<AdditiveFormat> {
        let Self { bits, size, dims, floats } = *self;
        for (name, value, least, most) in
            [("bits", bits.into(), 1, 12), ("size", size, 1, 256), ("dims", dims, 0, size)]
        {
            if !(least..=most).contains(&value) {
                let message = format!("{name} = {value}: allowed are {least} to {most}");
                return Err(Error::invalid(message));
            }
        }
        if !floats.is_float() {
            return Err(Error::invalid(format!("floats = {floats:?}: allowed are float types")));
        }
        AdditiveFormat::new(size, 1, 1 << bits)
    }

    /// What codewords of 1 to `size` numbers lose of vectors `[vectors, size]`, as shares of their squares: by truncation, and by
    /// clustering what is left (a few steps of k-means on 8,192 of them at most). Truncation falls with the numbers, clustering
    /// grows.
    ///
    /// # Errors
    /// `ShapeMismatch` for vectors of another size, `InvalidArgument` for parameters out of their range, `Numerical` for vectors
    /// that are not finite.
    pub fn estimate(
        &self,
        vectors: ArrayView2<'_, f32>,
        seed: u64,
        par: Par,
    ) -> Result<Vec<(f64, f64)>> {
        self.checked()?;
        if vectors.ncols() != self.size {
            let message = format!("vectors of {}, not of {}", vectors.ncols(), self.size);
            return Err(Error::shape(message));
        }
        Target::new("vectors", vectors).check_finite()?;
        let step = vectors.nrows().div_ceil(JUDGED).max(1);
        let some = vectors.slice(s![..;step, ..]).as_standard_layout().into_owned();
        let power: f64 = some.iter().map(|v| f64::from(*v).powi(2)).sum();
        if power == 0.0 {
            return Ok(vec![(0.0, 0.0); self.size]);
        }
        let directions = principal(&some, self.size, par)?;
        let all = coordinates(&some, &directions, par);
        let energy = |m: &Array2<f32>| m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let of = |dims: usize| {
            let own = all.slice(s![.., ..dims]).as_standard_layout().into_owned();
            let mut random = SplitMix::new(seed);
            let mut book = seeds(&own, 1 << self.bits, &mut random);
            lloyd(&own, &own, None, &mut book, STEPS, &mut random, par);
            let chosen = assign(own.view(), &book, par);
            let rows: Vec<usize> = chosen.into_iter().map(usize::from).collect();
            let left = &own - &book.select(Axis(0), &rows);
            ((1.0 - energy(&own) / power).max(0.0), energy(&left) / power)
        };
        Ok((1..=self.size).map(of).collect())
    }

    fn round(&self, target: &Target<'_>, seed: u64, par: Par) -> Result<Additive> {
        let format = self.checked()?;
        target.check_finite()?;
        let weight = target.kept_weight();
        let (rows, cols) = weight.dim();
        let places = cols.div_ceil(self.size);
        let norm = |row: usize| {
            let square: f64 = weight.row(row).iter().map(|w| f64::from(*w).powi(2)).sum();
            let norm = square.sqrt() as f32;
            if norm > 0.0 && norm.is_finite() { norm } else { 1.0 }
        };
        let norms: Vec<f32> = (0..rows).map(norm).collect();
        // The last subvector of a row is filled up with zeros; of unit rows, entries are about 1.
        let unit = (cols.max(1) as f32).sqrt();
        let mut vectors = Array2::<f32>::zeros((rows * places, self.size));
        for ((row, column), w) in weight.indexed_iter() {
            vectors[[row * places + column / self.size, column % self.size]] =
                w / norms[row] * unit;
        }
        let dims = match self.dims {
            0 => {
                let losses = self.estimate(vectors.view(), seed, par).in_tensor(target.name)?;
                let total = |(truncated, clustered): &(f64, f64)| truncated + clustered;
                let least = losses.iter().map(total).fold(f64::INFINITY, f64::min);
                // Of equally good ones the smallest: its codebook is too.
                1 + losses.iter().position(|loss| total(loss) <= least * 1.001).unwrap_or(0)
            }
            dims => dims,
        };
        let basis = principal(&vectors, dims, par)?.mapv(|v| self.floats.round(v));
        let own = coordinates(&vectors, &basis, par);
        let mut random = SplitMix::new(seed);
        let book = means(&own, None, 1 << self.bits, &mut random, par);
        let book = book.mapv(|v| self.floats.round(v));
        let codes = assign(own.view(), &book, par);
        let mut words = Array2::<f32>::zeros((book.nrows(), self.size));
        linalg::matmul_nt(book.view(), basis.view(), words.view_mut(), false, Par::Seq);
        let factor = |row: usize| {
            let (mut along, mut square) = (0f64, 0f64);
            for (column, w) in weight.row(row).iter().enumerate() {
                let code = codes[row * places + column / self.size];
                let word = f64::from(words[[usize::from(code), column % self.size]]);
                along += f64::from(*w) * word;
                square += word * word;
            }
            if square > 0.0 { (along / square) as f32 } else { 0.0 }
        };
        let factors: Vec<f32> = (0..rows).map(factor).collect();
        // As wide a type as the factors need.
        let fits = factors.iter().all(|f| {
            let rounded = self.floats.round(*f);
            rounded.is_finite() && (rounded - f).abs() <= 0.01 * f.abs()
        });
        let dtype = if fits { self.floats } else { DType::F32 };
        let factors = Array2::from_shape_vec((rows, 1), factors).expect("one a row");
        let book = Dense::from_f32(book.view(), self.floats)?.boxed();
        let basis = Dense::from_f32(basis.t(), self.floats)?.boxed();
        let words = Product::new(book, basis)?.boxed();
        let factors = Dense::from_f32(factors.view(), dtype)?.boxed();
        let shape = [rows, cols];
        let node = if self.bits <= 8 {
            let codes: Vec<u8> = codes.into_iter().map(|code| code as u8).collect();
            Additive::sums(format, shape, self.bits, &codes, words, factors)
        } else {
            Additive::sums(format, shape, self.bits, &codes, words, factors)
        };
        node.in_tensor(target.name)
    }
}

/// The directions in which vectors are longest, `[size, dims]`.
fn principal(vectors: &Array2<f32>, dims: usize, par: Par) -> Result<Array2<f32>> {
    let size = vectors.ncols();
    let wide = vectors.mapv(f64::from);
    let mut gram = Array2::zeros((size, size));
    linalg::matmul_tn(wide.view(), wide.view(), gram.view_mut(), false, par);
    let eigen = linalg::symmetric_eigen(gram.view())?;
    Ok(Array2::from_shape_fn((size, dims), |(i, j)| eigen.vectors[[i, size - 1 - j]] as f32))
}

fn coordinates(vectors: &Array2<f32>, directions: &Array2<f32>, par: Par) -> Array2<f32> {
    let mut out = Array2::zeros((vectors.nrows(), directions.ncols()));
    linalg::matmul(vectors.view(), directions.view(), out.view_mut(), false, par);
    out
}

impl Knobs for Lr2Vq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=12, "bits of a code")?;
        keys.int("size", &mut self.size, 1..=256, "weights that a code stands for")?;
        let about = "numbers of a codeword, at most size; 0: as many as lose least";
        keys.int("dims", &mut self.dims, 0..=256, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("floats", &mut self.floats, &types, "stored type of codewords, basis, factors")
    }

    fn check(&self) -> Result<()> {
        self.checked().map(drop)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    let about = "codewords of few numbers times a shared basis; needs no calibration";
    Row::method("lr2vq", about, Lr2Vq::default)
}

impl Method for Lr2Vq {
    fn id(&self) -> &'static str {
        "lr2vq"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for Lr2Vq {
    type Node = Additive;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Additive>> {
        let round = |t: &Target<'_>| Ok(Compressed::new(self.round(t, group.seed, group.par)?));
        Ok(CompressedGroup::new(group.targets.iter().map(round).collect::<Result<_>>()?))
    }
}
