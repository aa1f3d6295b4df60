//! What a stored chunk is made of.

use std::borrow::Cow;

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::kernels::planes::split_planes;
use tensorpress_tensor::{Error, Result};

use super::form::Form;
use super::plane::{Coded, entropy};
use super::{CONSTANT, PALETTE, PLANES, RAW, SPLIT, early, split};
use crate::coder::blocks::count;
use crate::value::ValueType;
use crate::varint::read_varint;

/// A byte plane of a chunk.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlaneReport {
    /// `byte 1` (0 is the lowest, after the sign was moved to the lowest bit of floats), `palette`, `groups`.
    pub plane: Cow<'static, str>,
    /// How it is coded: `raw`, `constant`, `packed`, `huffman`, `rans`, `classes`, `range`.
    pub coding: &'static str,
    /// Symbols in it.
    pub symbols: usize,
    /// Bytes it takes, without headers.
    pub stored: usize,
    /// Bits its symbols take at least under one table for the chunk (order-0 entropy, the table free).
    pub entropy_bits: f64,
}

/// Says how a chunk of `len` bytes of values is coded, plane by plane.
///
/// # Errors
/// As [`super::decode`].
pub fn describe(values: ValueType, stored: &[u8], len: usize) -> Result<Vec<PlaneReport>> {
    let (scheme, mut rest) = stored.split_first().ok_or_else(|| early("chunk"))?;
    let whole = len / values.width() * values.width();
    let mut planes = Vec::new();
    match *scheme {
        RAW => {
            let mut split = vec![Vec::new(); values.width()];
            let body = rest.get(..whole).ok_or_else(|| early("chunk"))?;
            split_planes(body, values.is_float(), &mut split);
            for (byte, plane) in split.iter().enumerate() {
                let stored = plane.len();
                planes.push(report(name(byte), "raw", plane, stored));
            }
        }
        CONSTANT => {
            for byte in 0..values.width() {
                let symbols = whole / values.width();
                let (plane, coding) = (name(byte), "constant");
                planes.push(PlaneReport { plane, coding, symbols, stored: 1, entropy_bits: 0.0 });
            }
        }
        scheme => varying(values, scheme, &mut rest, whole, &mut planes)?,
    }
    Ok(planes)
}

fn varying(
    values: ValueType,
    scheme: u8,
    rest: &mut &[u8],
    len: usize,
    planes: &mut Vec<PlaneReport>,
) -> Result<()> {
    let width = values.width();
    match scheme {
        PALETTE => {
            let (count, after) = rest.split_first().ok_or_else(|| early("palette"))?;
            let palette = (usize::from(*count) + 1) * width;
            *rest = after.get(palette..).ok_or_else(|| early("palette"))?;
            planes.push(coded("palette".into(), rest, len / width)?);
        }
        PLANES => {
            let (form, after) = rest.split_first().ok_or_else(|| early("form"))?;
            *rest = after;
            Form::from_id(*form)?.take_window(rest, width, len / width)?;
            for byte in 0..width {
                planes.push(coded(name(byte), rest, len / width)?);
            }
        }
        SPLIT => {
            let mut flags = vec![0; split::flag_bytes(values, len)];
            let flag_plane = Coded::take(rest, flags.len())?;
            flag_plane.decode(Isa::detect(), &mut flags)?;
            planes.push(report("groups".into(), flag_plane.coding.name(), &flags, flag_plane.len));
            let first = usize::try_from(read_varint(rest)?).unwrap_or(usize::MAX);
            let parts = rest.split_at_checked(first).ok_or_else(|| early("first part"))?;
            let lengths = split::lengths(values, &flags, len);
            for (part, len) in [parts.0, parts.1].into_iter().zip(lengths) {
                let (scheme, mut body) = part.split_first().ok_or_else(|| early("part"))?;
                if *scheme == SPLIT {
                    return Err(Error::corruption("parts within parts"));
                }
                varying(values, *scheme, &mut body, len, planes)?;
            }
        }
        scheme => return Err(Error::version(format!("unknown chunk scheme {scheme}"))),
    }
    Ok(())
}

fn name(byte: usize) -> Cow<'static, str> {
    format!("byte {byte}").into()
}

fn coded(name: Cow<'static, str>, rest: &mut &[u8], symbols: usize) -> Result<PlaneReport> {
    let plane = Coded::take(rest, symbols)?;
    let mut decoded = vec![0; symbols];
    plane.decode(Isa::detect(), &mut decoded)?;
    Ok(report(name, plane.coding.name(), &decoded, plane.len))
}

fn report(
    plane: Cow<'static, str>,
    coding: &'static str,
    symbols: &[u8],
    stored: usize,
) -> PlaneReport {
    let entropy_bits = entropy(&count(symbols));
    PlaneReport { plane, coding, symbols: symbols.len(), stored, entropy_bits }
}
