//! A chunk: up to [`CHUNK_BYTES`] of one tensor, coded on its own by whatever makes it smallest.
//!
//! A stored chunk begins with the id of its scheme; chunks do not know their own length, which the container keeps
//! and checks. Decoding the same bytes gives the same values on every machine, whatever coded them.

mod form;
pub(crate) mod plane;
mod report;
mod split;
mod window;

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::{Error, ErrorKind, Result};

use crate::value::ValueType;
use crate::varint::{read_varint, write_varint};
use form::Form;
use plane::Coded;

pub use report::{PlaneReport, describe};

/// Bytes of a chunk before coding; only a tensor's last chunk is shorter.
pub const CHUNK_BYTES: usize = 1 << 20;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Effort {
    /// Static tables per block: decodes at a good part of the speed of copying.
    #[default]
    Fast,
    /// Exponents together with the first bits of mantissas, and tables for classes of rows as well: smaller, slow to
    /// encode, a quarter of the speed to decode.
    Best,
}

/// Schemes of chunks; ids of the format.
const RAW: u8 = 0;
const CONSTANT: u8 = 1;
const PALETTE: u8 = 2;
const PLANES: u8 = 3;
const SPLIT: u8 = 4;

/// Codes `data`, which need not be a whole number of values. With `base` (as long as `data`), what is coded is the
/// difference from it. Equal inputs give equal bytes, at most one more than `data` has. (Data of any length:
/// [`compress`](crate::compress()).)
///
/// # Errors
/// `InvalidArgument` if `data` is longer than [`CHUNK_BYTES`], `ShapeMismatch` if `base` has another length.
pub fn encode(
    values: ValueType,
    data: &[u8],
    base: Option<&[u8]>,
    effort: Effort,
) -> Result<Vec<u8>> {
    let len = data.len();
    if len > CHUNK_BYTES {
        return Err(Error::invalid(format!("{len} bytes in a chunk, at most {CHUNK_BYTES}")));
    }
    check_base(len, base)?;
    Ok(encode_whole(values, data, base, effort))
}

fn check_base(len: usize, base: Option<&[u8]>) -> Result<()> {
    match base {
        Some(base) if base.len() != len => {
            Err(Error::shape(format!("a base of {} bytes for a chunk of {len}", base.len())))
        }
        _ => Ok(()),
    }
}

/// [`encode`] for callers that cut their data into chunks themselves.
pub(crate) fn encode_whole(
    values: ValueType,
    data: &[u8],
    base: Option<&[u8]>,
    effort: Effort,
) -> Vec<u8> {
    debug_assert!(data.len() <= CHUNK_BYTES && check_base(data.len(), base).is_ok());
    let width = values.width();
    let whole = data.len() / width * width;
    let (body, tail) = data.split_at(whole);
    let mut stored = Vec::new();
    if whole > 0 {
        if base.is_none() && body.chunks_exact(width).all(|v| v == &body[..width]) {
            stored.push(CONSTANT);
            stored.extend_from_slice(&body[..width]);
        } else {
            stored = encode_varying(values, body, base.map(|b| &b[..whole]), effort);
            if let (None, Some(flags)) = (base, split::flags(values, body)) {
                let parted = encode_split(values, &flags, body, effort);
                stored = if parted.len() < stored.len() { parted } else { stored };
            }
        }
        stored.extend_from_slice(tail);
    }
    if whole == 0 || stored.len() > data.len() {
        stored.clear();
        stored.push(RAW);
        stored.extend_from_slice(data);
    }
    stored
}

fn encode_varying(values: ValueType, body: &[u8], base: Option<&[u8]>, effort: Effort) -> Vec<u8> {
    let candidates = Form::candidates(values, base.is_some(), effort);
    let by_planes = candidates.into_iter().filter_map(|form| {
        let mut stored = vec![PLANES, form.id()];
        let planes = form.planes(values, body, base, &mut stored)?;
        planes.iter().for_each(|p| plane::encode(p, effort, &mut stored));
        Some(stored)
    });
    let palette = if base.is_none() { encode_palette(values, body, effort) } else { None };
    by_planes.chain(palette).min_by_key(Vec::len).expect("at least one form")
}

/// Two parts, each coded as a chunk of its own: flags as a plane, the length of the first part's code, both codes.
fn encode_split(values: ValueType, flags: &[u8], body: &[u8], effort: Effort) -> Vec<u8> {
    let mut stored = vec![SPLIT];
    plane::encode(flags, Effort::Best, &mut stored);
    let [first, second] =
        split::part(values, flags, body).map(|part| encode_varying(values, &part, None, effort));
    write_varint(first.len() as u64, &mut stored);
    stored.extend_from_slice(&first);
    stored.extend_from_slice(&second);
    stored
}

/// At most this many values have a palette.
const PALETTE_VALUES: usize = 256;

/// Values as indices, where there are few different ones: number of values less 1, the values ascending, the plane of
/// indices.
fn encode_palette(values: ValueType, body: &[u8], effort: Effort) -> Option<Vec<u8>> {
    let width = values.width();
    if width == 1 {
        return None;
    }
    let mut index = std::collections::BTreeMap::new();
    let mut last: &[u8] = &[];
    for value in body.chunks_exact(width) {
        if value != last {
            index.insert(value, 0u8);
            if index.len() > PALETTE_VALUES {
                return None;
            }
            last = value;
        }
    }
    let mut stored = vec![PALETTE, (index.len() - 1) as u8];
    for (i, (value, number)) in index.iter_mut().enumerate() {
        *number = i as u8;
        stored.extend_from_slice(value);
    }
    let indices: Vec<u8> = body.chunks_exact(width).map(|value| index[value]).collect();
    plane::encode(&indices, effort, &mut stored);
    Some(stored)
}

/// Decodes a chunk into `out`, whose length the container knows.
///
/// # Errors
/// `Corruption` or `InsufficientData` if the bytes contradict themselves or that length, `Version` for a scheme
/// that this version does not know, `InvalidArgument` if it is a difference and there is no base, `ShapeMismatch` if the
/// base has another length than `out`. Whatever the bytes, memory stays within a few times `out` plus 2 MiB.
pub fn decode(values: ValueType, stored: &[u8], base: Option<&[u8]>, out: &mut [u8]) -> Result<()> {
    decode_on(Isa::detect(), values, stored, base, out)
}

/// [`decode`] on a given instruction set.
///
/// # Errors
/// As [`decode`].
pub fn decode_on(
    isa: Isa,
    values: ValueType,
    stored: &[u8],
    base: Option<&[u8]>,
    out: &mut [u8],
) -> Result<()> {
    check_base(out.len(), base)?;
    let (scheme, mut rest) = stored.split_first().ok_or_else(|| early("chunk"))?;
    let width = values.width();
    let whole = if *scheme == RAW { 0 } else { out.len() / width * width };
    let (body, tail) = out.split_at_mut(whole);
    match *scheme {
        RAW => {}
        CONSTANT => {
            let (value, after) = rest.split_at_checked(width).ok_or_else(|| early("value"))?;
            body.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(value));
            rest = after;
        }
        SPLIT => decode_split(isa, values, &mut rest, body)?,
        scheme => decode_varying(isa, values, scheme, &mut rest, base.map(|b| &b[..whole]), body)?,
    }
    if rest.len() != tail.len() {
        let expected = tail.len();
        return Err(Error::corruption(format!(
            "{} bytes at the end, {expected} expected",
            rest.len()
        )));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

fn decode_varying(
    isa: Isa,
    values: ValueType,
    scheme: u8,
    rest: &mut &[u8],
    base: Option<&[u8]>,
    out: &mut [u8],
) -> Result<()> {
    match scheme {
        PALETTE => decode_palette(isa, values.width(), rest, out),
        PLANES => {
            let (form, after) = rest.split_first().ok_or_else(|| early("form"))?;
            *rest = after;
            decode_planes(isa, values, Form::from_id(*form)?, rest, base, out)
        }
        scheme => Err(Error::version(format!("unknown chunk scheme {scheme}"))),
    }
}

fn decode_split(isa: Isa, values: ValueType, rest: &mut &[u8], out: &mut [u8]) -> Result<()> {
    let mut flags = vec![0; split::flag_bytes(values, out.len())];
    Coded::take(rest, flags.len())?.decode(isa, &mut flags)?;
    let first = usize::try_from(read_varint(rest)?).unwrap_or(usize::MAX);
    let (first, second) = rest.split_at_checked(first).ok_or_else(|| early("first part"))?;
    let mut parts = split::lengths(values, &flags, out.len()).map(|len| vec![0; len]);
    let mut after = &[][..];
    for (part, coded) in parts.iter_mut().zip([first, second]) {
        let (scheme, body) = coded.split_first().ok_or_else(|| early("part"))?;
        if !after.is_empty() {
            return Err(Error::corruption("bytes behind the first part"));
        }
        after = body;
        // No part is a difference from a base.
        decode_varying(isa, values, *scheme, &mut after, None, part).map_err(|e| {
            if e.kind() == ErrorKind::InvalidArgument { Error::corruption(e.message()) } else { e }
        })?;
    }
    *rest = after;
    split::unite(values, &flags, [&parts[0], &parts[1]], out)
}

fn decode_palette(isa: Isa, width: usize, rest: &mut &[u8], out: &mut [u8]) -> Result<()> {
    let (count, after) = rest.split_first().ok_or_else(|| early("palette"))?;
    let size = (usize::from(*count) + 1) * width;
    let (palette, after) = after.split_at_checked(size).ok_or_else(|| early("palette"))?;
    *rest = after;
    let mut indices = vec![0; out.len() / width];
    Coded::take(rest, indices.len())?.decode(isa, &mut indices)?;
    for (out, index) in out.chunks_exact_mut(width).zip(indices) {
        let at = usize::from(index) * width;
        let value = palette.get(at..at + width);
        out.copy_from_slice(value.ok_or_else(|| Error::corruption("index beyond the palette"))?);
    }
    Ok(())
}

fn decode_planes(
    isa: Isa,
    values: ValueType,
    form: Form,
    rest: &mut &[u8],
    base: Option<&[u8]>,
    out: &mut [u8],
) -> Result<()> {
    let width = values.width();
    let window = form.take_window(rest, width, out.len() / width)?;
    let planes: Vec<Coded<'_>> =
        (0..width).map(|_| Coded::take(rest, out.len() / width)).collect::<Result<_>>()?;
    if let ([low, high], true) = (&planes[..], form.is_plain_float()) {
        // The common case in one pass: exponents by rANS, signs and mantissas as they are.
        if let (Some(raw), Some(blocks)) = (low.raw()?, high.blocks()?) {
            return blocks.decode_bf16(isa, raw, out);
        }
    }
    let mut buffers: Vec<Vec<u8>> = Vec::with_capacity(width);
    for plane in &planes {
        let mut buffer = Vec::new();
        if plane.raw()?.is_none() {
            buffer.resize(plane.count, 0);
            plane.decode(isa, &mut buffer)?;
        }
        buffers.push(buffer);
    }
    let mut whole: Vec<&[u8]> = Vec::with_capacity(width);
    for (plane, buffer) in planes.iter().zip(&buffers) {
        whole.push(plane.raw()?.unwrap_or(buffer));
    }
    form.join(values, &whole, base, window.as_ref(), out)
}

fn early(what: &str) -> Error {
    Error::insufficient(format!("{what} ends early"))
}
