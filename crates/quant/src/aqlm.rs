mod codes;
mod fit;
mod start;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Result, Target,
    Usable,
};

use tensorpress_tensor::node::Additive;

pub use codes::AdditiveCodes;

/// AQLM (Egiazarian et al., 2024): every few consecutive weights of a row are a sum of vectors of several codebooks. Starts
/// from k-means of what is left, book by book; then, round by round, codes are chosen anew by a beam search on the error of
/// the outputs, and codebooks and scales refitted to it.
///
/// Codebooks cost 16 x `books` x 2^`bits` x `size` bits a matrix: nothing for large ones, much for small ones. Without
/// statistics the error of the weights takes the place of that of the outputs, and `fallback` says so. Refuses a mask.
///
/// ```
/// use tensorpress_quant::Aqlm;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Aqlm::new(1, 4).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Aqlm {
    /// Codebooks, 1 to 16. Default 2.
    pub books: usize,
    /// Bits of a code, 1 to 12. Default 8.
    pub bits: u8,
    /// Consecutive inputs of a vector, 1 to 64. Default 8.
    pub size: usize,
    /// Ways of coding a row that are followed at a time, 1 to 64. Default 4.
    pub beam: usize,
    /// Rounds of search and fit, 0 and more. Default 4.
    pub rounds: usize,
    /// Stored type of codebooks and scales. Default f16.
    pub floats: DType,
}

impl Default for Aqlm {
    fn default() -> Self {
        Self { books: 2, bits: 8, size: 8, beam: 4, rounds: 4, floats: DType::F16 }
    }
}

impl Aqlm {
    /// AQLM of `books` codebooks of 2^`bits` vectors.
    #[must_use]
    pub fn new(books: usize, bits: u8) -> Self {
        Self { books, bits, ..Self::default() }
    }

    /// Sets how many consecutive inputs are a vector.
    #[must_use]
    pub fn with_size(mut self, size: usize) -> Self {
        self.size = size;
        self
    }

    /// Sets how many ways of coding a row are followed.
    #[must_use]
    pub fn with_beam(mut self, beam: usize) -> Self {
        self.beam = beam;
        self
    }

    /// Sets how often codes are searched and codebooks fitted.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets the stored type of floats.
    #[must_use]
    pub fn with_floats(mut self, floats: DType) -> Self {
        self.floats = floats;
        self
    }

    fn check(&self) -> Result<()> {
        let all = [
            ("books", self.books, 1, 16),
            ("bits", self.bits.into(), 1, 12),
            ("size", self.size, 1, 64),
            ("beam", self.beam, 1, 64),
            ("rounds", self.rounds, 0, 1000),
        ];
        for (name, value, least, most) in all {
            if !(least..=most).contains(&value) {
                let message = format!("{name} = {value}: allowed are {least} to {most}");
                return Err(Error::invalid(message));
            }
        }
        match self.floats.is_float() {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "floats = {:?}: allowed are f16, bf16 and f32",
                self.floats
            ))),
        }
    }

    fn quantize(
        &self,
        target: &Target<'_>,
        gram: ArrayView2<'_, f64>,
        seed: u64,
        par: Par,
    ) -> Result<Additive> {
        if target.mask.is_some() {
            return Err(Error::unsupported("vectors of a matrix of which only a support is kept"));
        }
        target.check_finite()?;
        let weight = target.weight;
        let mut codes = AdditiveCodes::start(weight, self.books, self.bits, self.size, seed, par);
        let mut best = codes.loss(weight, gram, par);
        for _ in 0..self.rounds {
            let mut next = codes.clone();
            next.search(weight, gram, self.beam, par);
            next.fit(weight, gram, par);
            let loss = next.loss(weight, gram, par);
            if loss >= best {
                break;
            }
            (codes, best) = (next, loss);
        }
        codes.node(self.floats)
    }
}

impl Knobs for Aqlm {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("books", &mut self.books, 1..=16, "codebooks whose vectors are summed")?;
        keys.int("bits", &mut self.bits, 1..=12, "bits of a code")?;
        keys.int("size", &mut self.size, 1..=64, "consecutive inputs of a vector")?;
        let about = "ways of coding a row that are followed at a time";
        keys.int("beam", &mut self.beam, 1..=64, about)?;
        let about = "rounds of choosing codes and fitting codebooks";
        keys.int("rounds", &mut self.rounds, 0..=1000, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("floats", &mut self.floats, &types, "stored type of codebooks and scales")
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "aqlm",
        "sums vectors of several codebooks, chosen and fitted by what the outputs lose",
        Aqlm::default,
    )
}

impl Method for Aqlm {
    fn id(&self) -> &'static str {
        "aqlm"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.true_sequentially()
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl Compress for Aqlm {
    type Node = Additive;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<Additive>> {
        self.check()?;
        let cols = group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let gram = Usable::of(usable_gram(&mut group))?;
        let (gram, note) = gram.or_else(|_| Array2::eye(cols));
        let note = note.map(|reason| format!("{reason}: by the error of the weights instead"));
        let layers = group.targets.iter().zip(0u64..).map(|(target, at)| {
            let seed = group.seed.wrapping_add(at);
            let node = self.quantize(target, gram.view(), seed, group.par);
            Ok(Compressed::new(node.in_tensor(target.name)?).with_fallback(note.clone()))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

/// The Gram matrix over its mean diagonal, in f64; all that makes it unusable is a numerical error.
pub(crate) fn usable_gram(group: &mut Group<'_>) -> Result<Array2<f64>> {
    if let Usable::No(reason) = group.calibration.seen() {
        return Err(Error::numerical(reason));
    }
    let cols = group.channels()?;
    let gram = group.calibration.take_gram()?.mapv(f64::from);
    if gram.dim() != (cols, cols) {
        return Err(Error::shape(format!("Gram matrix {:?} for {cols} inputs", gram.dim())));
    }
    if !gram.iter().all(|v| v.is_finite()) {
        return Err(Error::numerical("its Gram matrix is not finite"));
    }
    let mean = gram.diag().sum() / cols.max(1) as f64;
    if mean <= 0.0 {
        return Err(Error::numerical("all its inputs were zero"));
    }
    Ok(gram / mean)
}
