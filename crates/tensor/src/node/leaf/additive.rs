//! Sums of entries of several codebooks.

use std::ops::Range;

use super::{Child, Encoding, Format, Fused, Leaf, Slot};
use crate::error::{Error, Result};
use crate::kernels::{CodebookPanels, CodebookRows, Isa};
use crate::linalg::Par;
use crate::node::plane::bands;
use crate::node::registry::field;
use crate::node::{Input, Json, Node, PackedPlane, Scratch, Symbol, Symbols, SymbolsMut};
use crate::storage::PartKind;

/// Every `size` consecutive weights of a row are a sum of vectors, one of each of `books` codebooks, times a scale of the row:
/// `scale[r] * (book_1[code_1] + book_2[code_2] + ...)`, sum and product each rounded to f32.
///
/// Codes of a vector lie side by side; the last vector of a row may be shorter. Codebooks `[books * entries, size]` and scales
/// `[rows, 1]` are any nodes. Once prepacked, those of up to 256 entries of up to 64 weights are multiplied with few tokens
/// (on AVX-512: with up to a quarter of the rows) by looking up what a token makes of each entry, without decoding.
pub type Additive = Leaf<AdditiveFormat>;

/// The format of an [`Additive`].
///
/// ```
/// use tensorpress_tensor::node::{Additive, AdditiveFormat, Dense, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let books = array![[1.0, 2.0], [3.0, 4.0], [0.5, 0.0], [0.0, 0.5]];
/// let books = Dense::from_f32(books.view(), DType::F16)?.boxed();
/// let scales = Dense::from_f32(array![[2.0]].view(), DType::F16)?.boxed();
/// let node = Additive::sums(AdditiveFormat::new(2, 2, 2)?, [1, 3], 1, &[1u8, 0, 0, 1], books, scales)?;
/// assert_eq!(decode(&node)?, array![[7.0, 8.0, 2.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdditiveFormat {
    size: usize,
    books: usize,
    entries: usize,
}

/// Places of the slots.
const BOOKS: usize = 0;
const SCALES: usize = 1;

impl AdditiveFormat {
    /// Vectors of `size` weights, summed of `books` codebooks of `entries` each.
    ///
    /// # Errors
    /// `InvalidArgument` unless `size` is 1 to 4096, `books` 1 to 64 and `entries` 1 to 65536.
    pub fn new(size: usize, books: usize, entries: usize) -> Result<Self> {
        let all = [("size", size, 1 << 12), ("books", books, 64), ("entries", entries, 1 << 16)];
        for (name, value, most) in all {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 1 to {most}")));
            }
        }
        Ok(Self { size, books, entries })
    }

    /// Weights of a vector.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of codebooks.
    #[must_use]
    pub fn books(&self) -> usize {
        self.books
    }

    /// Vectors of each codebook.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn decode<S: Symbol>(&self, codes: &[S], values: &[f32], scale: f32, out: &mut [f32]) {
        for (codes, out) in codes.chunks(self.books).zip(out.chunks_mut(self.size)) {
            out.fill(0.0);
            for (book, code) in codes.iter().enumerate() {
                let code: usize = (*code).into();
                let entry = &values[(book * self.entries + code) * self.size..][..out.len()];
                out.iter_mut().zip(entry).for_each(|(out, value)| *out += value);
            }
            out.iter_mut().for_each(|out| *out *= scale);
        }
    }
}

impl Format for AdditiveFormat {
    const ID: &'static str = "additive.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let format =
            Self::new(field(json, "size")?, field(json, "books")?, field(json, "entries")?);
        format.map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["size"] = self.size.into();
        json["books"] = self.books.into();
        json["entries"] = self.entries.into();
    }

    fn slots(&self, [rows, _]: [usize; 2]) -> Vec<Slot> {
        let node = |name, kind, shape| Slot { name, kind, shape, encoding: Encoding::Node };
        vec![
            node("codebooks", PartKind::Tables, [self.books * self.entries, self.size]),
            node("scales", PartKind::Scales, [rows, 1]),
        ]
    }

    fn codes(&self, cols: usize) -> usize {
        cols.div_ceil(self.size).saturating_mul(self.books)
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        if alphabet as usize > self.entries {
            return Err(Error::invalid(format!("{alphabet} codes for {} entries", self.entries)));
        }
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let (values, scale) = (beside[BOOKS], beside[SCALES][row]);
        match codes {
            Symbols::U8(codes) => self.decode(codes, values, scale, out),
            Symbols::U16(codes) => self.decode(codes, values, scale, out),
        }
    }

    /// In panels where codebooks have up to 256 entries of up to 64 weights, all of them finite, and no code was dropped.
    fn prepacked(leaf: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        let (&Self { size, books, entries }, [rows, cols]) = (leaf.format(), leaf.shape());
        let kept = leaf.codes().as_kept().is_some();
        if kept || rows * cols == 0 || !CodebookPanels::supports(size, books, entries) {
            return Ok(None);
        }
        let beside = leaf.beside()?;
        let (codebooks, scales) = (beside[BOOKS], beside[SCALES]);
        if !codebooks.iter().all(|value| value.is_finite()) {
            return Ok(None);
        }
        let width = leaf.format().codes(cols);
        let mut codes = vec![0u8; rows * width];
        for range in bands(rows, width) {
            let read = &mut codes[range.start * width..range.end * width];
            leaf.codes().read(range, SymbolsMut::U8(read))?;
        }
        let codes = &codes[..];
        let w = CodebookRows { codes, rows, cols, size, books, entries, codebooks, scales };
        let panels = CodebookPanels::new(&w, Par::Seq);
        Ok(panels.map(|panels| Box::new(panels) as Box<dyn Fused>))
    }
}

impl Fused for CodebookPanels {
    fn matmul(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        y: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) {
        self.matmul(rows, x.as_slice(), x.tokens(), y, add, scratch.work());
    }

    /// Tables are made for each token, whatever the rows: the fewer these are, the sooner decoding once is worth it.
    fn most_tokens(&self) -> usize {
        match Isa::detect() {
            Isa::Avx512 => (self.rows() / 4).max(1),
            _ => (self.rows() / 64).clamp(1, 12),
        }
    }
}

impl Additive {
    /// A node from unpacked codes (row by row, vector by vector, book by book) of `bits` bits, and its children.
    ///
    /// # Errors
    /// `ShapeMismatch` if something does not fit the shape, `InvalidArgument` for codes that do not fit `bits` or the format.
    pub fn sums<S: Symbol>(
        format: AdditiveFormat,
        shape: [usize; 2],
        bits: u8,
        codes: &[S],
        codebooks: Box<dyn Node>,
        scales: Box<dyn Node>,
    ) -> Result<Self> {
        let codes = PackedPlane::pack(codes, shape[0], format.codes(shape[1]), bits)?;
        let beside = vec![Child::Node(codebooks), Child::Node(scales)];
        Self::new(format, shape, Box::new(codes), beside)
    }
}
