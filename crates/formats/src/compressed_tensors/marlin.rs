use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result, Tensor};

use super::integers::Integers;
use super::order::{RUN, SCALES, TILE, codes, meta};
use super::scales::{Granularity, Scales};
use crate::parts::{
    Fields, Stored, expect, float_matrix, group_length, shape, store_floats, store_words, words,
};

/// `marlin-24`: a layer of symmetric integers of 4 or 8 bits of which each four inputs keep two, as stored. N is a
/// multiple of 64, K of 32. (Written by version 0.11 of the package and before; the order is that of the Sparse-Marlin
/// kernel, and of CUTLASS for `meta`.)
#[derive(Debug, Clone)]
pub struct Marlin24 {
    /// Codes, value plus 2^(bits - 1), of tiles of 16 kept inputs and 16 outputs, permuted in runs of 1024: i32
    /// `[K / 32, N bits / 2]`.
    pub weight_packed: RawTensor,
    /// Scales, f16 `[G, N]`; where groups are shorter than K / 2, each eight are in the order 0, 4, 1, 5, 2, 6, 3, 7.
    pub scale_packed: RawTensor,
    /// The places of the two that are kept, two bits each, of four fours to an i16: `[K / 32, 2 N]`, a name for the
    /// same number of elements: they lie in an order of their own.
    pub meta: RawTensor,
}

/// The places of the two that are kept; where fewer are not zero, those that the official package keeps.
fn kept(four: [i8; 4]) -> Option<[usize; 2]> {
    let mut nonzero = (0..4).filter(|at| four[*at] != 0);
    let pair = match (nonzero.next(), nonzero.next()) {
        (Some(first), Some(second)) => [first, second],
        (Some(first @ 0..=1), None) => [first, 2],
        _ => [2, 3],
    };
    nonzero.next().is_none().then_some(pair)
}

fn check_bits(bits: u8) -> Result<()> {
    match bits {
        4 | 8 => Ok(()),
        _ => Err(Error::invalid(format!("bits = {bits}: allowed are 4, 8"))),
    }
}

/// Each place of the stored codes: its number, and the output and kept input whose code lies there.
fn each_place(bits: u8, outputs: usize, tiles: usize, mut f: impl FnMut(usize, usize, usize)) {
    let order = codes(bits);
    for place in 0..tiles * TILE * outputs {
        let (tile, within) = (place / (TILE * outputs), place % (TILE * outputs));
        let source = within / RUN * RUN + order[within % RUN];
        let output = source / (TILE * TILE) * TILE + source % TILE;
        f(place, output, tile * TILE + source / TILE % TILE);
    }
}

/// Where scales of a group lie in its row: as they are, or each eight in another order.
fn scale_place(output: usize, permuted: bool) -> usize {
    if permuted { output / 8 * 8 + SCALES[output % 8] } else { output }
}

impl Marlin24 {
    /// Reads `<layer>.weight_packed`, `.scale_packed` and `.meta`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing; those of reading.
    pub fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer };
        Ok(Self {
            weight_packed: stored.part("weight_packed")?,
            scale_packed: stored.part("scale_packed")?,
            meta: stored.part("meta")?,
        })
    }

    /// Integers `[N, K]` with zeros where inputs are dropped, and their scales.
    ///
    /// # Errors
    /// `InvalidArgument` for other widths; `ShapeMismatch`, `Unsupported` (an element type) and `Corruption` (places
    /// that no two of four have) name the part.
    pub fn unpack(&self, bits: u8) -> Result<Integers> {
        check_bits(bits)?;
        let [groups, outputs] = shape(&self.scale_packed, "scale_packed", &[DType::F16])?;
        let [tiles, width] = shape(&self.weight_packed, "weight_packed", &[DType::I32])?;
        let inputs = tiles.checked_mul(2 * TILE).filter(|_| outputs.is_multiple_of(64));
        let Some(inputs) = inputs else {
            let what = format!("{outputs} outputs are no multiple of 64");
            return Err(Error::shape(what).in_tensor("scale_packed"));
        };
        let group = group_length("scale_packed", inputs, groups)?;
        expect("weight_packed", [tiles, width], [tiles, outputs / 2 * usize::from(bits)])?;
        expect("meta", shape(&self.meta, "meta", &[DType::I16])?, [tiles, 2 * outputs])?;

        let places = self.meta.bytes().as_chunks().0;
        let pair = |output: usize, four: usize| {
            let word = u16::from_le_bytes(places[meta(outputs, output, four / 4)]);
            let nibble = usize::from(word >> (four % 4 * 4) & 15);
            [nibble & 3, nibble >> 2]
        };
        for output in 0..outputs {
            if let Some(four) = (0..inputs / 4).find(|four| {
                let [first, second] = pair(output, *four);
                first >= second
            }) {
                let what =
                    format!("{:?} for the four at [{output}, {}]", pair(output, four), 4 * four);
                return Err(Error::corruption(what).in_tensor("meta"));
            }
        }
        let (stored, fields, half) =
            (words(&self.weight_packed), Fields::dense(bits), 1 << (bits - 1));
        let mut values = Array2::zeros((outputs, inputs));
        each_place(bits, outputs, tiles, |place, output, kept| {
            let code = fields.get(place, |word| stored[word]);
            let input = kept / 2 * 4 + pair(output, kept / 2)[kept % 2];
            values[[output, input]] = code.wrapping_sub(half) as i8;
        });
        let packed = float_matrix(&self.scale_packed, "scale_packed")?;
        let permuted = group < inputs / 2;
        let mut scales = Array2::zeros((outputs, groups));
        for ((group, place), scale) in packed.indexed_iter() {
            scales[[scale_place(place, permuted), group]] = *scale;
        }
        let granularity = Granularity::Group;
        let scales = Scales { values: scales, dtype: self.scale_packed.dtype(), granularity };
        Ok(Integers { values, zeros: None, scales })
    }

    /// The layer as stored, bit for bit as the package packs it.
    ///
    /// # Errors
    /// `InvalidArgument` for other widths, zero points, scales of other granularities or types, and fours of which more
    /// than two are not zero; `ShapeMismatch` if outputs, inputs or groups do not divide as they must.
    pub fn pack(integers: &Integers, bits: u8) -> Result<Self> {
        check_bits(bits)?;
        let [outputs, inputs] = integers.check()?;
        let Integers { values, zeros, scales } = integers;
        if zeros.is_some() {
            return Err(Error::invalid("zero points, where there are none"));
        }
        if scales.granularity != Granularity::Group || scales.dtype != DType::F16 {
            let what = "scales must be f16, of outputs or of groups";
            return Err(Error::invalid(what).in_tensor("scale_packed"));
        }
        if !outputs.is_multiple_of(64) || !inputs.is_multiple_of(2 * TILE) {
            let what = format!("[{outputs}, {inputs}] are no multiples of 64 and 32");
            return Err(Error::shape(what).in_tensor("weight_packed"));
        }
        let half = 1i16 << (bits - 1);
        let mut compressed = Array2::zeros((outputs, inputs / 2));
        let mut places = vec![0u16; outputs * inputs / 16];
        for output in 0..outputs {
            for four in 0..inputs / 4 {
                let of_four: [i8; 4] = std::array::from_fn(|at| values[[output, 4 * four + at]]);
                let at = format!("the four at [{output}, {}]", 4 * four);
                let Some(pair) = kept(of_four) else {
                    let what = format!("{at}: more than two are not zero");
                    return Err(Error::invalid(what).in_tensor("weight_packed"));
                };
                for (kept, place) in pair.into_iter().enumerate() {
                    let value = i16::from(of_four[place]);
                    if !(-half..half).contains(&value) {
                        let what = format!("{at}: {value} does not have {bits} bits");
                        return Err(Error::invalid(what).in_tensor("weight_packed"));
                    }
                    compressed[[output, 2 * four + kept]] = (value + half) as u8;
                }
                let nibble = (pair[0] | pair[1] << 2) as u16;
                places[meta(outputs, output, four / 4)] |= nibble << (four % 4 * 4);
            }
        }
        let (tiles, width) = (inputs / (2 * TILE), outputs / 2 * usize::from(bits));
        let (mut packed, fields) = (vec![0; tiles * width], Fields::dense(bits));
        each_place(bits, outputs, tiles, |place, output, kept| {
            fields.put(place, compressed[[output, kept]], |word, bits| packed[word] |= bits);
        });
        let groups = scales.values.ncols();
        let permuted = inputs / groups < inputs / 2;
        let scales = Array2::from_shape_fn((groups, outputs), |(group, place)| {
            scales.values[[scale_place(place, permuted), group]]
        });
        let places: Vec<u8> = places.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Self {
            weight_packed: store_words(&packed, vec![tiles, width])?,
            scale_packed: store_floats(&scales, DType::F16)?,
            meta: RawTensor::new(DType::I16, vec![tiles, 2 * outputs], places.into())?,
        })
    }
}
