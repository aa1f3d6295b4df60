//! From f32 to small floats.

use super::Small;
use super::spec::{Spec, Special};

/// How [`Small::encode`] rounds, and what becomes of values above the largest.
///
/// All round to the nearest value, ties to the even code, except into [`Small::E8m0FnU`]: there ties go up
/// (1.5 becomes 2, 3 becomes 4), and whatever lies between the two smallest, 2^-127 and 2^-126, goes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rounding {
    /// ml_dtypes (`rne`). What rounds above the largest becomes infinity, else NaN, else the largest, whichever the
    /// format has first. E8M0: zero and negative values become NaN.
    NearestEven,
    /// As `NearestEven` after clamping to the finite range (`sat`): infinities become the largest value too.
    Saturate,
    /// torch's `.to()` (`torch_to`, torch 2.12 and later): `Saturate` for [`Small::E4m3Fn`], `NearestEven` for the
    /// others. E8M0: the sign is dropped and zero becomes 2^-127.
    TorchTo,
}

impl Spec {
    pub(super) fn encode(self, value: f32, rounding: Rounding, format: Small) -> u8 {
        if self.special == Special::Scale {
            return scale(value, rounding);
        }
        if value.is_nan() && self.special == Special::Finite {
            return 0;
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let code = if value.is_nan() {
            self.nan()
        } else {
            match self.magnitude(value.abs()) {
                code if code <= u32::from(self.largest()) => code as u8,
                _ => self.overflow(rounding, format),
            }
        };
        // No -0 where that code is NaN.
        if self.special == Special::NanZero && code == 0 { 0 } else { code | sign }
    }

    /// The code of a positive value as if exponents had no end.
    fn magnitude(self, value: f32) -> u32 {
        if value.is_infinite() {
            return u32::MAX;
        }
        // Exact: an f64 holds every f32 times a power of two.
        let exponent = ((value.to_bits() >> 23) as i32 - 127).max(1 - self.bias);
        let steps = f64::from(value) * 2_f64.powi(self.mantissa as i32 - exponent);
        // A mantissa that rounds up to the next power of two carries into the exponent by itself.
        (((exponent + self.bias - 1) as u32) << self.mantissa) + steps.round_ties_even() as u32
    }

    fn overflow(self, rounding: Rounding, format: Small) -> u8 {
        let saturates = match rounding {
            Rounding::Saturate => true,
            Rounding::TorchTo => format == Small::E4m3Fn,
            Rounding::NearestEven => false,
        };
        match self.special {
            Special::Finite => self.largest(),
            _ if saturates => self.largest(),
            Special::Ieee => self.largest() + 1,
            _ => self.nan(),
        }
    }
}

/// E8M0: the nearest power of two, ties up.
fn scale(value: f32, rounding: Rounding) -> u8 {
    const NAN: u8 = 0xff;
    let value = if rounding == Rounding::TorchTo { value.abs() } else { value };
    if value.is_nan() || value < 0.0 {
        return NAN;
    }
    if value == 0.0 {
        return if rounding == Rounding::TorchTo { 0 } else { NAN };
    }
    let bits = value.to_bits();
    let (exponent, fraction) = (bits >> 23, bits & ((1 << 23) - 1));
    // The first code is itself half of a binade: only what exceeds it goes up.
    let up = fraction > 1 << 22 || (fraction == 1 << 22 && exponent > 0);
    let code = exponent + u32::from(up);
    match rounding {
        Rounding::Saturate => code.min(0xfe) as u8,
        _ => code as u8,
    }
}
