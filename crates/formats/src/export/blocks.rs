//! Blocks of ggml out of a node.

use tensorpress_tensor::half::f16;
use tensorpress_tensor::node::{Dense, SymbolBuf, Symbols, as_node};
use tensorpress_tensor::{DType, Node, PartSink, Result, Storage};

use super::{Grids, refuse};
use crate::float::{Scaling, Small, SmallFloats};
use crate::ggml::{GgmlBlocks, Type};

/// The type of ggml that holds a node as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fit {
    /// A block type, also F16 and BF16.
    Blocks(Type),
    /// Floats of 32 bits.
    F32,
}

impl Fit {
    /// Its number in files.
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Blocks(ty) => ty.id(),
            Self::F32 => 0,
        }
    }

    /// Bytes of a matrix whose rows are whole blocks.
    #[must_use]
    pub fn bytes(self, [rows, cols]: [usize; 2]) -> u64 {
        let (rows, cols) = (rows as u64, cols as u64);
        match self {
            Self::Blocks(ty) => rows * (cols / ty.block_len() as u64) * ty.block_bytes() as u64,
            Self::F32 => 4 * rows * cols,
        }
    }

    /// Its name, as ggml writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks(ty) => ty.name(),
            Self::F32 => "F32",
        }
    }
}

/// The type that rows of a width take instead, where blocks do not divide them: what llama.cpp's own converter takes.
#[must_use]
pub fn fallback(ty: Type, cols: usize) -> Fit {
    if cols.is_multiple_of(ty.block_len()) {
        return Fit::Blocks(ty);
    }
    let instead = match ty {
        Type::TQ1_0 | Type::TQ2_0 => Type::Q4_0,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        Type::Q6_K => Type::Q8_0,
        Type::Q2_K
        | Type::Q3_K
        | Type::IQ1_S
        | Type::IQ1_M
        | Type::IQ2_XXS
        | Type::IQ2_XS
        | Type::IQ2_S
        | Type::IQ3_XXS
        | Type::IQ3_S
        | Type::IQ4_XS => Type::IQ4_NL,
        _ => Type::F16,
    };
    match cols.is_multiple_of(instead.block_len()) {
        true => Fit::Blocks(instead),
        false => Fit::Blocks(Type::F16),
    }
}

/// The stored bytes of a node of one part.
fn stored(node: &dyn Node) -> Result<Vec<u8>> {
    struct One(Vec<u8>);
    impl PartSink for One {
        fn part(&mut self, part: tensorpress_tensor::Part<'_>) -> Result<()> {
            self.0.extend_from_slice(&part.bytes);
            Ok(())
        }
    }
    let mut one = One(Vec::with_capacity(Storage::of(node)?.bytes() as usize));
    node.parts("", &mut one)?;
    Ok(one.0)
}

/// The node as blocks of the type that holds it to the bit, and that type.
///
/// # Errors
/// `Unsupported`, with the nearest thing that would do, if none does; those of reading the node.
pub fn as_blocks(node: &dyn Node) -> Result<(Fit, Vec<u8>)> {
    if let Some(blocks) = as_node::<GgmlBlocks>(node) {
        let ty = blocks.format().ty();
        let bytes = match blocks.codes().as_packed().and_then(|packed| packed.bytes()) {
            Some(bytes) => bytes.to_vec(),
            None => {
                let mut symbols = SymbolBuf::of(blocks.codes());
                match symbols.read(blocks.codes(), 0..node.shape()[0])? {
                    Symbols::U8(bytes) => bytes.to_vec(),
                    Symbols::U16(_) => return Err(refuse("blocks of wide codes", "decode them")),
                }
            }
        };
        return Ok((Fit::Blocks(ty), bytes));
    }
    if let Some(dense) = as_node::<Dense>(node).filter(|dense| !dense.is_masked()) {
        let fit = match dense.dtype() {
            DType::F16 => Fit::Blocks(Type::F16),
            DType::BF16 => Fit::Blocks(Type::BF16),
            _ => Fit::F32,
        };
        if dense.dtype() != DType::F64 {
            return Ok((fit, stored(node)?));
        }
    }
    if let Some(floats) = as_node::<SmallFloats>(node)
        && let Some(bytes) = mxfp4(floats)?
    {
        return Ok((Fit::Blocks(Type::MXFP4), bytes));
    }
    if let Some(grids) = Grids::of(node)? {
        return of_grids(&grids);
    }
    let what = node.describe()["node"].as_str().unwrap_or("a node").to_owned();
    Err(refuse(format!("no type of ggml holds a {what}"), "name a type and requantise"))
}

/// The type that holds a node as it is.
///
/// # Errors
/// As [`as_blocks`].
pub fn fitting(node: &dyn Node) -> Result<Fit> {
    if let Some(blocks) = as_node::<GgmlBlocks>(node) {
        return Ok(Fit::Blocks(blocks.format().ty()));
    }
    match as_node::<Dense>(node).filter(|dense| !dense.is_masked()).map(Dense::dtype) {
        Some(DType::F16) => Ok(Fit::Blocks(Type::F16)),
        Some(DType::BF16) => Ok(Fit::Blocks(Type::BF16)),
        Some(DType::F32) => Ok(Fit::F32),
        _ => as_blocks(node).map(|(fit, _)| fit),
    }
}

/// Types of integers on grids: bits, inputs of a block, and the code of zero; none where a minimum is stored.
const GRIDS: [(Type, u8, Option<u16>); 6] = [
    (Type::Q2_0, 2, Some(1)),
    (Type::Q4_0, 4, Some(8)),
    (Type::Q4_1, 4, None),
    (Type::Q5_0, 5, Some(16)),
    (Type::Q5_1, 5, None),
    (Type::Q8_0, 8, Some(128)),
];

fn of_grids(grids: &Grids) -> Result<(Fit, Vec<u8>)> {
    if grids.group_of.is_some() {
        return Err(refuse("types of ggml have no order of inputs", "gptq has one; requantise"));
    }
    if !grids.exact_in(DType::F16) {
        let why = format!("scales in {}, which are not exact in F16", grids.dtype.name());
        return Err(refuse(why, "requantise"));
    }
    for (ty, bits, zero) in GRIDS {
        // A code of fewer bits is one of more.
        let holds = match zero {
            Some(zero) => grids.zero() == Some(zero) && grids.bits <= bits,
            None => grids.bits <= bits,
        };
        // A last group may be shorter than the others, a last block not.
        if !holds || !grids.codes.ncols().is_multiple_of(ty.block_len()) {
            continue;
        }
        let Some(grids) = grids.in_groups(ty.block_len()) else { continue };
        if zero.is_none() && !minima_are_exact(&grids) {
            continue;
        }
        return Ok((Fit::Blocks(ty), blocks_of(ty, &grids)));
    }
    let (bits, group, zero) = (grids.bits, grids.group, grids.zero());
    let about = zero.map_or("zero points of their own".to_owned(), |zero| format!("{zero}"));
    let why = format!("no type of ggml holds {bits} bits in groups of {group} about {about}");
    let nearest = match bits {
        _ if !grids.codes.ncols().is_multiple_of(32) => "rows of whole blocks of 32 do",
        ..=4 if !group.is_multiple_of(32) => "groups of 32, 64, 128 do",
        ..=4 => {
            "symmetric grids are Q4_0; zero points are Q4_1 where -scale x zero is exact in F16"
        }
        _ => "symmetric grids of 8 bits are Q8_0",
    };
    Err(refuse(why, nearest))
}

/// `-scale * zero` of each group, as f16 holds it.
fn minimum(scale: f32, zero: u16) -> f32 {
    -(scale * f32::from(zero))
}

fn minima_are_exact(grids: &Grids) -> bool {
    let pairs = grids.scales.iter().zip(&grids.zeros);
    pairs.into_iter().all(|(scale, zero)| {
        let minimum = minimum(*scale, *zero);
        f16::from_f32(minimum).to_f32() == minimum
    })
}

/// Blocks of codes on grids that fit the type exactly.
fn blocks_of(ty: Type, grids: &Grids) -> Vec<u8> {
    let len = ty.block_len();
    let mut bytes = Vec::with_capacity(grids.scales.len() * ty.block_bytes());
    for (row, codes) in grids.codes.rows().into_iter().enumerate() {
        for group in 0..grids.scales.ncols() {
            let code = |i: usize| codes[group * len + i];
            let scale = grids.scales[[row, group]];
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            if matches!(ty, Type::Q4_1 | Type::Q5_1) {
                let minimum = minimum(scale, grids.zeros[[row, group]]);
                bytes.extend(f16::from_f32(minimum).to_le_bytes());
            }
            if matches!(ty, Type::Q5_0 | Type::Q5_1) {
                let high = (0..32).fold(0u32, |all, i| all | u32::from(code(i) >> 4 & 1) << i);
                bytes.extend(high.to_le_bytes());
            }
            match ty {
                Type::Q8_0 => bytes.extend((0..len).map(|i| code(i) ^ 0x80)),
                Type::Q2_0 => bytes.extend(
                    (0..len / 4)
                        .map(|byte| (0..4).fold(0, |all, i| all | code(4 * byte + i) << (2 * i))),
                ),
                _ => bytes.extend((0..16).map(|i| code(i) & 15 | (code(16 + i) & 15) << 4)),
            }
        }
    }
    bytes
}

/// Blocks of 32 small floats with scales that are powers of two: each block's first half lies in the low halves of its
/// bytes.
fn mxfp4(floats: &SmallFloats) -> Result<Option<Vec<u8>>> {
    let format = floats.format();
    let [rows, cols] = floats.shape();
    let fits = format.element() == Small::E2m1Fn
        && format.tile() == [1, 32]
        && format.scaling() == Scaling::Multiply
        && cols.is_multiple_of(32);
    let tensorpress_tensor::node::Child::Node(scales) = floats.child(0) else { return Ok(None) };
    let Some(scales) = as_node::<SmallFloats>(&**scales).filter(|_| fits) else { return Ok(None) };
    let powers = scales.format();
    if powers.element() != Small::E8m0FnU || powers.scaling() != Scaling::None {
        return Ok(None);
    }
    let (mut symbols, mut exponents) =
        (SymbolBuf::of(floats.codes()), SymbolBuf::of(scales.codes()));
    let codes = symbols.read(floats.codes(), 0..rows)?;
    let exponents = exponents.read(scales.codes(), 0..rows)?;
    let mut bytes = Vec::with_capacity(rows * cols / 32 * 17);
    for block in 0..rows * cols / 32 {
        let code = |i: usize| codes.at(32 * block + i) as u8;
        bytes.push(exponents.at(block) as u8);
        bytes.extend((0..16).map(|i| code(i) | code(16 + i) << 4));
    }
    Ok(Some(bytes))
}
