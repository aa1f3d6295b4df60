//! Floats of eight bits and fewer, decoded by table and encoded by named rounding rules.
//!
//! A code sits in the low bits of a byte: sign, exponent, mantissa from the top; the bits above it are ignored.
//!
//! Sources: OCP 8-bit Floating Point Specification and Microscaling Formats v1.0; the variants of ml_dtypes and torch.
//!
//! ```
//! use tensorpress_formats::float::{Rounding, Small};
//!
//! assert_eq!(Small::E4m3Fn.encode(464.1, Rounding::Saturate), 0x7e);
//! assert_eq!(Small::E4m3Fn.decode(0x7e), 448.0);
//! assert!(Small::E4m3Fn.decode(Small::E4m3Fn.encode(464.1, Rounding::NearestEven)).is_nan());
//! ```

mod encode;
pub mod mx;
mod node;
mod spec;

pub use encode::Rounding;
pub use node::{Scaling, SmallFloats, SmallFormat};
use spec::{Spec, Special};

/// A float format of at most eight bits; e, m: bits of exponent and mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Small {
    /// Two exponent bits, one of mantissa: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}; no infinity, no NaN.
    E2m1Fn,
    /// e2m3, bias 1, at most 7.5; no infinity, no NaN.
    E2m3Fn,
    /// e3m2, bias 3, at most 28; no infinity, no NaN.
    E3m2Fn,
    /// e3m4 with IEEE's infinities and NaNs, bias 3, at most 15.5.
    E3m4,
    /// e4m3 with IEEE's infinities and NaNs, bias 7, at most 240.
    E4m3,
    /// e4m3, bias 7, at most 448; no infinity, NaN is 0x7f and 0xff. What is called "fp8 e4m3".
    E4m3Fn,
    /// e4m3, bias 8, at most 240; no infinity, no -0, NaN is 0x80.
    E4m3FnUz,
    /// e4m3, bias 11, at most 30; no infinity, no -0, NaN is 0x80.
    E4m3B11FnUz,
    /// e5m2 with IEEE's infinities and NaNs, bias 15, at most 57344.
    E5m2,
    /// e5m2, bias 16, at most 57344; no infinity, no -0, NaN is 0x80.
    E5m2FnUz,
    /// Powers of two from 2^-127 (0x00) to 2^127 (0xfe); no sign, no zero, NaN is 0xff. The scale of MX blocks.
    E8m0FnU,
}

impl Small {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::E2m1Fn,
        Self::E2m3Fn,
        Self::E3m2Fn,
        Self::E3m4,
        Self::E4m3,
        Self::E4m3Fn,
        Self::E4m3FnUz,
        Self::E4m3B11FnUz,
        Self::E5m2,
        Self::E5m2FnUz,
        Self::E8m0FnU,
    ];

    /// The name ml_dtypes and torch give it, less `float8_` and the like: "e4m3fn".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::E2m1Fn => "e2m1fn",
            Self::E2m3Fn => "e2m3fn",
            Self::E3m2Fn => "e3m2fn",
            Self::E3m4 => "e3m4",
            Self::E4m3 => "e4m3",
            Self::E4m3Fn => "e4m3fn",
            Self::E4m3FnUz => "e4m3fnuz",
            Self::E4m3B11FnUz => "e4m3b11fnuz",
            Self::E5m2 => "e5m2",
            Self::E5m2FnUz => "e5m2fnuz",
            Self::E8m0FnU => "e8m0fnu",
        }
    }

    const fn spec(self) -> Spec {
        use Special::{Finite, Ieee, NanOnes, NanZero};
        match self {
            Self::E2m1Fn => Spec::new(2, 1, 1, Finite),
            Self::E2m3Fn => Spec::new(2, 3, 1, Finite),
            Self::E3m2Fn => Spec::new(3, 2, 3, Finite),
            Self::E3m4 => Spec::new(3, 4, 3, Ieee),
            Self::E4m3 => Spec::new(4, 3, 7, Ieee),
            Self::E4m3Fn => Spec::new(4, 3, 7, NanOnes),
            Self::E4m3FnUz => Spec::new(4, 3, 8, NanZero),
            Self::E4m3B11FnUz => Spec::new(4, 3, 11, NanZero),
            Self::E5m2 => Spec::new(5, 2, 15, Ieee),
            Self::E5m2FnUz => Spec::new(5, 2, 16, NanZero),
            Self::E8m0FnU => Spec::new(8, 0, 127, Special::Scale),
        }
    }

    /// Bits of a code: 4, 6 or 8.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.spec().bits()
    }

    /// The largest finite value.
    #[must_use]
    pub fn max(self) -> f32 {
        self.decode(self.spec().largest())
    }

    /// The values of all codes; above 2^bits they repeat.
    #[must_use]
    pub const fn table(self) -> &'static [f32; 256] {
        const fn of(format: Small) -> [f32; 256] {
            format.spec().table()
        }
        // One constant each: a table is made when the crate is compiled.
        match self {
            Self::E2m1Fn => const { &of(Self::E2m1Fn) },
            Self::E2m3Fn => const { &of(Self::E2m3Fn) },
            Self::E3m2Fn => const { &of(Self::E3m2Fn) },
            Self::E3m4 => const { &of(Self::E3m4) },
            Self::E4m3 => const { &of(Self::E4m3) },
            Self::E4m3Fn => const { &of(Self::E4m3Fn) },
            Self::E4m3FnUz => const { &of(Self::E4m3FnUz) },
            Self::E4m3B11FnUz => const { &of(Self::E4m3B11FnUz) },
            Self::E5m2 => const { &of(Self::E5m2) },
            Self::E5m2FnUz => const { &of(Self::E5m2FnUz) },
            Self::E8m0FnU => const { &of(Self::E8m0FnU) },
        }
    }

    /// The value of a code; bits above [`Small::bits`] are ignored. Exact: every value is an f32.
    #[must_use]
    pub const fn decode(self, code: u8) -> f32 {
        self.table()[code as usize]
    }

    /// The code of `value` under a rounding rule.
    ///
    /// A NaN becomes the format's NaN, with the sign of `value` where the format has one, and 0 where the format has
    /// no NaN.
    #[must_use]
    pub fn encode(self, value: f32, rounding: Rounding) -> u8 {
        self.spec().encode(value, rounding, self)
    }
}
