//! What tells small floats apart, and the values of their codes.

/// What stands for NaN and infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// Neither.
    Finite,
    /// The last exponent, as in IEEE 754.
    Ieee,
    /// NaN is all ones below the sign; no infinity.
    NanOnes,
    /// NaN is what would be -0; no infinity.
    NanZero,
    /// Unsigned exponents alone; NaN is all ones.
    Scale,
}

#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) exponent: u32,
    pub(super) mantissa: u32,
    pub(super) bias: i32,
    pub(super) special: Special,
}

impl Spec {
    pub(super) const fn new(exponent: u32, mantissa: u32, bias: i32, special: Special) -> Self {
        Self { exponent, mantissa, bias, special }
    }

    pub(super) const fn bits(self) -> u32 {
        match self.special {
            Special::Scale => 8,
            _ => 1 + self.exponent + self.mantissa,
        }
    }

    /// The sign's bit; 0 where there is none.
    pub(super) const fn sign(self) -> u8 {
        match self.special {
            Special::Scale => 0,
            _ => 1 << (self.exponent + self.mantissa),
        }
    }

    /// The code of the largest finite value.
    pub(super) const fn largest(self) -> u8 {
        let ones = ((1_u32 << (self.exponent + self.mantissa)) - 1) as u8;
        match self.special {
            Special::Finite | Special::NanZero => ones,
            Special::NanOnes | Special::Scale => ones - 1,
            Special::Ieee => ones - (1 << self.mantissa),
        }
    }

    /// The code of a positive NaN; 0 where there is none.
    pub(super) const fn nan(self) -> u8 {
        match self.special {
            Special::Finite => 0,
            Special::NanZero => 0x80,
            Special::NanOnes | Special::Scale => self.largest() + 1,
            // The quiet one.
            Special::Ieee => self.largest() + 1 + (1 << (self.mantissa - 1)),
        }
    }

    pub(super) const fn table(self) -> [f32; 256] {
        let mut values = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            values[code] = self.value((code as u32 & ((1 << self.bits()) - 1)) as u8);
            code += 1;
        }
        values
    }

    const fn value(self, code: u8) -> f32 {
        let magnitude = code & !self.sign();
        let negative = code & self.sign() != 0;
        let value = match self.special {
            Special::Scale if code == 0xff => f32::NAN,
            Special::Scale if code == 0 => f32::from_bits(1 << 22),
            Special::Scale => power_of_two(code as i32 - 127),
            Special::NanZero if code == 0x80 => f32::NAN,
            Special::Ieee if magnitude == self.largest() + 1 => f32::INFINITY,
            Special::Ieee | Special::NanOnes if magnitude > self.largest() => f32::NAN,
            _ => self.finite(magnitude),
        };
        if negative { -value } else { value }
    }

    const fn finite(self, magnitude: u8) -> f32 {
        let exponent = (magnitude >> self.mantissa) as i32;
        let fraction = magnitude as i32 & ((1 << self.mantissa) - 1);
        let (hidden, power) = if exponent == 0 {
            (0, 1 - self.bias)
        } else {
            (1 << self.mantissa, exponent - self.bias)
        };
        (hidden + fraction) as f32 * power_of_two(power - self.mantissa as i32)
    }
}

/// 2^`power`, for -126..=127.
const fn power_of_two(power: i32) -> f32 {
    f32::from_bits(((power + 127) as u32) << 23)
}
