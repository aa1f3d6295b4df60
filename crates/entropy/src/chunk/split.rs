//! Groups of values that end in zeros, apart from those that do not: rows that were once rounded to a narrower type
//! keep their low bits empty, and statistics over both kinds serve neither.

use tensorpress_tensor::{Error, Result};

use crate::value::ValueType;

/// Values of a group.
const GROUP: usize = 64;

/// Bits that must be zero at the end of every value of a group: more than an accident would leave.
const ZEROS: u32 = 8;

/// A bit for each group, set where all values end in zeros, least significant bit first.
pub(crate) fn flags(values: ValueType, body: &[u8]) -> Option<Vec<u8>> {
    let width = values.width();
    if width < 4 {
        return None;
    }
    let groups = body.chunks(GROUP * width);
    let count = groups.len();
    let mut flags = vec![0; count.div_ceil(8)];
    let mut set = 0;
    for (i, group) in groups.enumerate() {
        let low = |bits: u64| bits & ((1 << ZEROS) - 1) == 0;
        let zeros = match width {
            4 => low(group
                .as_chunks::<4>()
                .0
                .iter()
                .fold(0, |or, v| or | u32::from_le_bytes(*v))
                .into()),
            _ => low(group.as_chunks::<8>().0.iter().fold(0, |or, v| or | u64::from_le_bytes(*v))),
        };
        flags[i / 8] |= u8::from(zeros) << (i % 8);
        set += usize::from(zeros);
    }
    // A part of a handful of groups is not worth its headers.
    (set.min(count - set) > count / 256).then_some(flags)
}

/// Ranges of groups in `len` bytes, each with its flag.
fn groups(
    values: ValueType,
    flags: &[u8],
    len: usize,
) -> impl Iterator<Item = (std::ops::Range<usize>, bool)> {
    let size = GROUP * values.width();
    (0..len.div_ceil(size))
        .map(move |i| (i * size..((i + 1) * size).min(len), flags[i / 8] >> (i % 8) & 1 == 1))
}

/// Flags of how many bytes there are for `len` bytes of values.
pub(crate) fn flag_bytes(values: ValueType, len: usize) -> usize {
    len.div_ceil(GROUP * values.width()).div_ceil(8)
}

/// The groups whose flag is set, and the others.
pub(crate) fn part(values: ValueType, flags: &[u8], body: &[u8]) -> [Vec<u8>; 2] {
    let mut parts = [Vec::new(), Vec::new()];
    for (range, flag) in groups(values, flags, body.len()) {
        parts[usize::from(!flag)].extend_from_slice(&body[range]);
    }
    parts
}

/// Bytes of both parts.
pub(crate) fn lengths(values: ValueType, flags: &[u8], len: usize) -> [usize; 2] {
    let set = groups(values, flags, len).filter(|(_, flag)| *flag).map(|(r, _)| r.len()).sum();
    [set, len - set]
}

/// Puts the parts together again.
///
/// # Errors
/// `Corruption` if their lengths are not those of [`lengths`].
pub(crate) fn unite(
    values: ValueType,
    flags: &[u8],
    parts: [&[u8]; 2],
    out: &mut [u8],
) -> Result<()> {
    let mut rest = parts;
    for (range, flag) in groups(values, flags, out.len()) {
        let part = &mut rest[usize::from(!flag)];
        let (now, after) = part
            .split_at_checked(range.len())
            .ok_or_else(|| Error::corruption("parts and flags disagree"))?;
        out[range].copy_from_slice(now);
        *part = after;
    }
    Ok(())
}
