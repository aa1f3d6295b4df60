//! What planes are made of: the values themselves, or their differences from something.

use tensorpress_tensor::{Error, Result};

use super::Effort;
use super::window::Window;
use crate::kernels::{join_planes, split_planes};
use crate::value::ValueType;

/// How values become the integers whose bytes are the planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    difference: Difference,
    /// The sign moves from the top bit to the lowest, so that the exponent starts at a byte's edge.
    rotate: bool,
    /// Exponents lie in a [`Window`].
    window: bool,
}

/// From what; ids of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    None = 0,
    /// Bit pattern less the base's, as a zigzag integer: near values have near patterns whatever their exponents.
    FromBase = 1,
    /// Exclusive or with the base (BitX in ZipLLM, 2025).
    XorBase = 2,
    /// Pattern less the previous value's, as a zigzag integer.
    FromPrevious = 3,
}

impl Form {
    pub(crate) fn id(self) -> u8 {
        self.difference as u8 | u8::from(self.window) << 6 | u8::from(self.rotate) << 7
    }

    pub(crate) fn from_id(id: u8) -> Result<Self> {
        use Difference::*;
        let difference = [None, FromBase, XorBase, FromPrevious]
            .into_iter()
            .find(|d| *d as u8 == id & 0x3f)
            .ok_or_else(|| Error::version(format!("unknown form {id} of planes")))?;
        Ok(Self { difference, rotate: id & 0x80 != 0, window: id & 0x40 != 0 })
    }

    /// Forms worth a try, the likeliest first.
    pub(crate) fn candidates(values: ValueType, base: bool, effort: Effort) -> Vec<Self> {
        use Difference::*;
        let plain = |difference| Self { difference, rotate: false, window: false };
        let own = Self { difference: None, rotate: values.is_float(), window: false };
        match (base, effort) {
            (true, Effort::Fast) => vec![plain(FromBase)],
            (true, Effort::Best) => vec![plain(FromBase), plain(XorBase)],
            // Sorted or slowly changing integers: positions, offsets.
            (false, _) if !values.is_float() && values.width() > 1 => {
                vec![own, plain(FromPrevious)]
            }
            (false, Effort::Best) if values.is_float() => vec![own, Self { window: true, ..own }],
            (false, _) => vec![own],
        }
    }

    /// Whether planes are the values' own bytes after rotation.
    pub(crate) fn is_plain_float(self) -> bool {
        self.difference == Difference::None && self.rotate && !self.window
    }

    /// Planes of `body`, a whole number of values; plane k holds byte k. Appends to `head` what undoing needs to know.
    /// `None` if this form does not suit the values.
    pub(crate) fn planes(
        self,
        values: ValueType,
        body: &[u8],
        base: Option<&[u8]>,
        head: &mut Vec<u8>,
    ) -> Option<Vec<Vec<u8>>> {
        let width = values.width();
        let mut planes = vec![Vec::new(); width];
        if self.window {
            let mut rotated = body.to_vec();
            rotate(width, &mut rotated, Way::There);
            Window::apply(width, &mut rotated)?.write(width, head);
            split_planes(&rotated, false, &mut planes);
        } else if self.difference == Difference::None {
            split_planes(body, self.rotate, &mut planes);
        } else {
            let mut changed = body.to_vec();
            change(width, self.difference, base, &mut changed, Way::There);
            split_planes(&changed, self.rotate, &mut planes);
        }
        Some(planes)
    }

    /// Takes the window of `count` values from the front of `bytes`, if this form has one.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn take_window(
        self,
        bytes: &mut &[u8],
        width: usize,
        count: usize,
    ) -> Result<Option<Window>> {
        if !self.window {
            return Ok(None);
        }
        Window::take(bytes, width, count).map(Some)
    }

    /// Puts values together again.
    ///
    /// # Errors
    /// `InvalidArgument` if a base is needed.
    pub(crate) fn join(
        self,
        values: ValueType,
        planes: &[&[u8]],
        base: Option<&[u8]>,
        window: Option<&Window>,
        out: &mut [u8],
    ) -> Result<()> {
        if matches!(self.difference, Difference::FromBase | Difference::XorBase) && base.is_none() {
            return Err(Error::invalid("this chunk is a difference: it needs its base"));
        }
        if let Some(window) = window {
            join_planes(planes, false, out);
            window.undo(values.width(), out);
            rotate(values.width(), out, Way::Back);
            return Ok(());
        }
        join_planes(planes, self.rotate, out);
        if self.difference != Difference::None {
            change(values.width(), self.difference, base, out, Way::Back);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// Moves the sign from the top bit to the lowest, or back.
fn rotate(width: usize, data: &mut [u8], way: Way) {
    macro_rules! by_width {
        ($($n:literal $u:ty;)*) => { match width { $($n => for v in data.as_chunks_mut::<$n>().0 {
            let value = <$u>::from_le_bytes(*v);
            let by = if way == Way::There { 1 } else { <$u>::BITS - 1 };
            *v = value.rotate_left(by).to_le_bytes();
        })* _ => unreachable!("widths are those of value types") } };
    }
    by_width! { 1 u8; 2 u16; 4 u32; 8 u64; }
}

/// Replaces values by differences, or differences by values, in place.
fn change(width: usize, difference: Difference, base: Option<&[u8]>, data: &mut [u8], way: Way) {
    macro_rules! by_width {
        ($($n:literal $u:ty, $i:ty;)*) => { match width { $($n => {
            const SIGN: u32 = <$u>::BITS - 1;
            let zigzag = |d: $u| (d << 1) ^ ((d as $i) >> SIGN) as $u;
            let unzigzag = |z: $u| (z >> 1) ^ (z & 1).wrapping_neg();
            let data = data.as_chunks_mut::<$n>().0;
            let base = base.unwrap_or_default().as_chunks::<$n>().0;
            let mut previous: $u = 0;
            match (difference, way) {
                (Difference::None, _) => {}
                (Difference::FromBase, Way::There) => for (v, b) in data.iter_mut().zip(base) {
                    let d = <$u>::from_le_bytes(*v).wrapping_sub(<$u>::from_le_bytes(*b));
                    *v = zigzag(d).to_le_bytes();
                },
                (Difference::FromBase, Way::Back) => for (v, b) in data.iter_mut().zip(base) {
                    let d = unzigzag(<$u>::from_le_bytes(*v));
                    *v = d.wrapping_add(<$u>::from_le_bytes(*b)).to_le_bytes();
                },
                (Difference::XorBase, _) => for (v, b) in data.iter_mut().zip(base) {
                    v.iter_mut().zip(b).for_each(|(v, b)| *v ^= b);
                },
                (Difference::FromPrevious, Way::There) => for v in data {
                    let value = <$u>::from_le_bytes(*v);
                    *v = zigzag(value.wrapping_sub(previous)).to_le_bytes();
                    previous = value;
                },
                (Difference::FromPrevious, Way::Back) => for v in data {
                    previous = previous.wrapping_add(unzigzag(<$u>::from_le_bytes(*v)));
                    *v = previous.to_le_bytes();
                },
            }
        })* _ => unreachable!("widths are those of value types") } };
    }
    by_width! { 1 u8, i8; 2 u16, i16; 4 u32, i32; 8 u64, i64; }
}
