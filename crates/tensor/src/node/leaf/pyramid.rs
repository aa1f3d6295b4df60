//! Points of pyramids: directions without a codebook.

use super::{Child, Encoding, Format, Leaf, Slot};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Node, PackedPlane, Symbols};
use crate::storage::PartKind;

/// Every `size` consecutive weights of a row point in the direction of a vector of integers z with Σ|z| = `pulses`, and have
/// a length of their own: `w = (length / ||z||) z`, each operation rounded to f32.
///
/// A vector's number among all of its kind ([`PyramidFormat::number`]) is stored, so there is no codebook. The last vector
/// of a row may be shorter. Lengths `[rows, ceil(columns / size)]` are any node.
pub type Pyramid = Leaf<PyramidFormat>;

/// The format of a [`Pyramid`].
///
/// ```
/// use tensorpress_tensor::node::{Dense, Pyramid, PyramidFormat, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let format = PyramidFormat::new(2, 7)?;
/// assert_eq!(format.points(2), 28);
/// let lengths = Dense::from_f32(array![[10.0]].view(), DType::F16)?.boxed();
/// let node = Pyramid::vectors(format, [1, 2], &[3, -4], lengths)?;
/// assert_eq!(decode(&node)?, array![[6.0, -8.0]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PyramidFormat {
    size: usize,
    pulses: usize,
    /// Symbols of a vector's number, and bits of each.
    symbols: usize,
    bits: u32,
    /// Points of n numbers and k pulses, `[n * (pulses + 1) + k]`.
    table: Vec<u128>,
}

/// The most numbers of a vector, and the most pulses.
const MOST_NUMBERS: usize = 64;
const MOST_PULSES: usize = 127;

/// Place of the slot.
const LENGTHS: usize = 0;

impl PyramidFormat {
    /// Vectors of `size` numbers whose magnitudes sum to `pulses`.
    ///
    /// # Errors
    /// `InvalidArgument` unless `size` is 1 to 64 and `pulses` 1 to 127, and where there are more than 2^127 such vectors.
    pub fn new(size: usize, pulses: usize) -> Result<Self> {
        let all = [("size", size, MOST_NUMBERS), ("pulses", pulses, MOST_PULSES)];
        for (name, value, most) in all {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 1 to {most}")));
            }
        }
        let width = pulses + 1;
        let mut table = vec![0u128; (size + 1) * width];
        table[0] = 1;
        for n in 1..=size {
            table[n * width] = 1;
            for k in 1..width {
                // A first number of 0; or of more, with a pulse of it taken away: then the sign is free where none is left.
                let terms = [(n - 1) * width + k, n * width + k - 1, (n - 1) * width + k - 1];
                table[n * width + k] =
                    terms.iter().fold(0u128, |sum, at| sum.saturating_add(table[*at]));
            }
        }
        let points = table[size * width + pulses];
        if points > 1 << 127 {
            return Err(Error::invalid(format!(
                "size = {size} with pulses = {pulses}: allowed are at most 2^127 vectors"
            )));
        }
        let needed = 128 - (points - 1).leading_zeros();
        let symbols = needed.div_ceil(16).max(1);
        let bits = needed.div_ceil(symbols).max(1);
        Ok(Self { size, pulses, symbols: symbols as usize, bits, table })
    }

    /// The most pulses whose vectors' numbers take at most so many bits; none if not even one pulse's do.
    ///
    /// # Errors
    /// As [`PyramidFormat::new`] for the size.
    pub fn within(size: usize, bits: usize) -> Result<Option<Self>> {
        Self::new(size, 1)?;
        let mut best = None;
        for pulses in 1..=MOST_PULSES {
            match Self::new(size, pulses) {
                Ok(format) if format.stored_bits() <= bits => best = Some(format),
                _ => break,
            }
        }
        Ok(best)
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Sum of their magnitudes.
    #[must_use]
    pub fn pulses(&self) -> usize {
        self.pulses
    }

    /// Bits that a vector's number takes.
    #[must_use]
    pub fn stored_bits(&self) -> usize {
        self.symbols * self.bits as usize
    }

    /// Vectors of `numbers` numbers, at most [`Self::size`], with all pulses.
    #[must_use]
    pub fn points(&self, numbers: usize) -> u128 {
        self.at(numbers, self.pulses)
    }

    #[inline(always)]
    fn at(&self, numbers: usize, pulses: usize) -> u128 {
        self.table[numbers * (self.pulses + 1) + pulses]
    }

    /// The number of a vector of [`Self::size`] numbers or fewer among all of as many. Vectors are in the order of their
    /// first numbers, these in the order 0, 1, -1, 2, -2 ...; then of their second ones, and so on.
    ///
    /// # Panics
    /// If magnitudes do not sum to the pulses.
    #[must_use]
    pub fn number(&self, vector: &[i8]) -> u128 {
        let (mut number, mut left) = (0, self.pulses);
        for (i, value) in vector.iter().enumerate() {
            let (rest, size) = (vector.len() - i - 1, usize::from(value.unsigned_abs()));
            let before = |k: usize| self.at(rest, left - k) * if k == 0 { 1 } else { 2 };
            number += (0..size).map(before).sum::<u128>();
            number += if *value < 0 { self.at(rest, left - size) } else { 0 };
            left -= size;
        }
        assert!(left == 0, "magnitudes that sum to {}", self.pulses);
        number
    }

    /// The vector with a number; that of the last one for those beyond it.
    pub fn vector(&self, number: u128, out: &mut [i8]) {
        let (count, mut left) = (out.len(), self.pulses);
        let mut number = number.min(self.points(count).saturating_sub(1));
        for (i, out) in out.iter_mut().enumerate() {
            let rest = count - i - 1;
            let mut size = 0;
            loop {
                let each = self.at(rest, left - size);
                let all = each * if size == 0 { 1 } else { 2 };
                if number < all || size == left {
                    let negative = size > 0 && number >= each;
                    number -= if negative { each } else { 0 };
                    *out = if negative { -(size as i8) } else { size as i8 };
                    break;
                }
                number -= all;
                size += 1;
            }
            left -= size;
        }
    }

    fn decode(&self, codes: &mut dyn Iterator<Item = u16>, lengths: &[f32], out: &mut [f32]) {
        let mut vector = [0i8; MOST_NUMBERS];
        for (out, length) in out.chunks_mut(self.size).zip(lengths) {
            let word = |at: usize, code: u16| u128::from(code) << (at as u32 * self.bits);
            let codes = (&mut *codes).take(self.symbols).enumerate();
            let number = codes.map(|(at, code)| word(at, code)).fold(0, |a, b| a | b);
            let vector = &mut vector[..out.len()];
            self.vector(number, vector);
            let step = length / Self::length(vector);
            out.iter_mut().zip(&*vector).for_each(|(out, z)| *out = step * f32::from(*z));
        }
    }

    /// ||z|| as readers know it.
    #[must_use]
    pub fn length(vector: &[i8]) -> f32 {
        let square: i32 = vector.iter().map(|z| i32::from(*z) * i32::from(*z)).sum();
        (square as f32).sqrt()
    }
}

impl Format for PyramidFormat {
    const ID: &'static str = "pyramid.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let format = Self::new(field(json, "size")?, field(json, "pulses")?);
        format.map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["size"] = self.size.into();
        json["pulses"] = self.pulses.into();
    }

    fn slots(&self, [rows, cols]: [usize; 2]) -> Vec<Slot> {
        let shape = [rows, cols.div_ceil(self.size)];
        vec![Slot { name: "lengths", kind: PartKind::Scales, shape, encoding: Encoding::Node }]
    }

    fn codes(&self, cols: usize) -> usize {
        cols.div_ceil(self.size).saturating_mul(self.symbols)
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        if alphabet > 1 << self.bits {
            let bits = self.bits;
            return Err(Error::invalid(format!("{alphabet} codes: allowed are {bits} bits")));
        }
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let vectors = out.len().div_ceil(self.size);
        let lengths = &beside[LENGTHS][row * vectors..(row + 1) * vectors];
        self.decode(&mut codes.iter(), lengths, out);
    }
}

impl Pyramid {
    /// A node of vectors (row after row; those of a row side by side), and their lengths.
    ///
    /// # Errors
    /// `ShapeMismatch` if something does not fit the shape, `InvalidArgument` for vectors that are none of the format.
    pub fn vectors(
        format: PyramidFormat,
        shape @ [rows, cols]: [usize; 2],
        vectors: &[i8],
        lengths: Box<dyn Node>,
    ) -> Result<Self> {
        if vectors.len() != rows * cols {
            return Err(Error::shape(format!("{} numbers for {shape:?}", vectors.len())));
        }
        let mut codes: Vec<u16> = Vec::with_capacity(rows * format.codes(cols));
        let mask = (1u128 << format.bits) - 1;
        for vector in vectors.chunks(cols.max(1)).flat_map(|row| row.chunks(format.size)) {
            let sum: usize = vector.iter().map(|z| usize::from(z.unsigned_abs())).sum();
            if sum != format.pulses {
                let pulses = format.pulses;
                return Err(Error::invalid(format!("a vector of {sum} pulses, not {pulses}")));
            }
            let number = format.number(vector);
            let symbol = |at: usize| (number >> (at as u32 * format.bits) & mask) as u16;
            codes.extend((0..format.symbols).map(symbol));
        }
        let (width, bits) = (format.codes(cols), format.bits as u8);
        let codes = match bits {
            ..=8 => {
                let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                PackedPlane::pack(&codes, rows, width, bits)?
            }
            _ => PackedPlane::pack(&codes, rows, width, bits)?,
        };
        Self::new(format, shape, Box::new(codes), vec![Child::Node(lengths)])
    }
}
