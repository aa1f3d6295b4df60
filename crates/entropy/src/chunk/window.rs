//! Exponents in fewer bits, so that the top byte has room for the first bits of the mantissa: those depend on the
//! exponent (values thin out towards the end of a distribution), which one table for both makes use of.

use tensorpress_tensor::{Error, Result};

use crate::varint::{read_varint, write_varint};

/// Bits that move up: the window holds 2^(8 - SHIFT) exponents.
const SHIFT: u32 = 2;

/// Values outside the window are listed; more than one in this many are not worth it.
const RARE: usize = 512;

/// The exponents that stay, and the values that have others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// The first exponent that stays.
    first: u8,
    /// Places of values outside, ascending, and their bytes (rotated).
    outside: Vec<(usize, u64)>,
}

macro_rules! by_width {
    ($width:expr, $values:ident: $u:ident => $body:expr) => {
        match $width {
            1 => {
                type $u = u8;
                let $values = $values.as_chunks_mut::<1>().0;
                $body
            }
            2 => {
                type $u = u16;
                let $values = $values.as_chunks_mut::<2>().0;
                $body
            }
            4 => {
                type $u = u32;
                let $values = $values.as_chunks_mut::<4>().0;
                $body
            }
            _ => {
                type $u = u64;
                let $values = $values.as_chunks_mut::<8>().0;
                $body
            }
        }
    };
}

impl Window {
    /// The window over most of these exponents, if nearly all values are inside; `counts` is of the top bytes.
    fn choose(counts: &[u32; 256]) -> Option<u8> {
        let size = 256 >> SHIFT;
        let total: usize = counts.iter().map(|n| *n as usize).sum();
        let inside =
            |first: usize| counts[first..first + size].iter().map(|n| *n as usize).sum::<usize>();
        let first = (0..=256 - size).max_by_key(|first| inside(*first))?;
        (total - inside(first) <= total / RARE).then_some(first as u8)
    }

    /// Moves rotated values of `width` bytes into a window, in place; `None` (and nothing changed) if there is none.
    #[allow(clippy::unnecessary_cast)] // needed for all widths but one
    pub(crate) fn apply(width: usize, values: &mut [u8]) -> Option<Self> {
        let mut counts = [0; 256];
        values.iter().skip(width - 1).step_by(width).for_each(|top| counts[usize::from(*top)] += 1);
        let first = Self::choose(&counts)?;
        let mut outside = Vec::new();
        by_width!(width, values: Unsigned => {
            let base = Unsigned::from(first) << (Unsigned::BITS - 8);
            for (i, value) in values.iter_mut().enumerate() {
                let whole = Unsigned::from_le_bytes(*value);
                let inside = whole.wrapping_sub(base);
                if inside >> (Unsigned::BITS - SHIFT) == 0 {
                    *value = (inside << SHIFT).to_le_bytes();
                } else {
                    outside.push((i, whole as u64));
                    *value = [0; _];
                }
            }
        });
        Some(Self { first, outside })
    }

    /// Undoes [`Window::apply`].
    pub(crate) fn undo(&self, width: usize, values: &mut [u8]) {
        by_width!(width, values: Unsigned => {
            let base = Unsigned::from(self.first) << (Unsigned::BITS - 8);
            for value in values.iter_mut() {
                let inside = Unsigned::from_le_bytes(*value) >> SHIFT;
                *value = inside.wrapping_add(base).to_le_bytes();
            }
            for (i, whole) in &self.outside {
                values[*i] = (*whole as Unsigned).to_le_bytes();
            }
        });
    }

    /// Appends the first exponent, the number of values outside, and for each the gap from the one before and its bytes.
    pub(crate) fn write(&self, width: usize, out: &mut Vec<u8>) {
        out.push(self.first);
        write_varint(self.outside.len() as u64, out);
        let mut next = 0;
        for (i, value) in &self.outside {
            write_varint((i - next) as u64, out);
            out.extend_from_slice(&value.to_le_bytes()[..width]);
            next = i + 1;
        }
    }

    /// Takes a window of `count` values from the front of `bytes`.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn take(bytes: &mut &[u8], width: usize, count: usize) -> Result<Self> {
        let early = || Error::insufficient("window ends early");
        let (first, rest) = bytes.split_first().ok_or_else(early)?;
        *bytes = rest;
        let number = read_varint(bytes)?;
        if number > (count / RARE) as u64 {
            return Err(Error::corruption(format!("{number} of {count} values outside a window")));
        }
        let mut window = Self { first: *first, outside: Vec::new() };
        let mut next = 0u64;
        for _ in 0..number {
            let place = read_varint(bytes)?.checked_add(next).filter(|i| *i < count as u64);
            let place = place.ok_or_else(|| Error::corruption("a value beyond the chunk"))?;
            let (value, rest) = bytes.split_at_checked(width).ok_or_else(early)?;
            *bytes = rest;
            let mut whole = [0; 8];
            whole[..width].copy_from_slice(value);
            window.outside.push((place as usize, u64::from_le_bytes(whole)));
            next = place + 1;
        }
        Ok(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_off_again() {
        for width in [1, 2, 4, 8] {
            let values: Vec<u8> = (0..4000u64)
                .flat_map(|i| {
                    let value = (100 + i % 40) << 56 | i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8;
                    let value = if i % 1000 == 7 { value ^ 1 << 63 } else { value };
                    value.to_le_bytes()[8 - width..].to_vec()
                })
                .collect();
            let mut changed = values.clone();
            let window = Window::apply(width, &mut changed).expect("a window");
            assert_eq!(window.outside.len(), 4);
            let mut written = Vec::new();
            window.write(width, &mut written);
            let mut rest = &written[..];
            let read = Window::take(&mut rest, width, 4000).unwrap();
            assert_eq!((&read, rest.len()), (&window, 0));
            assert!(Window::take(&mut &written[..], width, 100).is_err());
            read.undo(width, &mut changed);
            assert!(changed == values, "{width}");
            let mut spread: Vec<u8> = (0..=255).collect();
            assert_eq!(Window::apply(1, &mut spread), None);
        }
    }
}
