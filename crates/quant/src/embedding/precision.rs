use tensorpress_tensor::DType;

/// How the coordinates of stored embeddings are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EmbeddingPrecision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit floats of 4 exponent bits, up to 448, without infinities ("e4m3fn"); one scale for the store.
    E4M3,
    /// 8-bit floats of 5 exponent bits, up to 57,344; one scale for the store.
    E5M2,
    /// Signed bytes, a scale for each vector.
    Int8,
    /// Signs.
    Binary,
}

impl EmbeddingPrecision {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::F16, Self::E4M3, Self::E5M2, Self::Int8, Self::Binary];

    /// Bytes of a vector of so many coordinates.
    #[must_use]
    pub fn bytes(self, dims: usize) -> usize {
        match self {
            Self::F32 => 4 * dims,
            Self::F16 => 2 * dims,
            Self::E4M3 | Self::E5M2 => dims,
            Self::Int8 => dims + 4,
            Self::Binary => dims.div_ceil(8),
        }
    }

    /// The 8-bit float, if it is one.
    pub(super) fn small(self) -> Option<Small> {
        match self {
            Self::E4M3 => Some(Small::new(3, 7, 0x7e)),
            Self::E5M2 => Some(Small::new(2, 15, 0x7b)),
            _ => None,
        }
    }

    pub(super) fn dtype(self) -> DType {
        if self == Self::F16 { DType::F16 } else { DType::F32 }
    }
}

/// The finite numbers of an 8-bit float: a sign, exponent and mantissa, subnormal below.
pub(super) struct Small {
    /// Those that are not negative, rising with their codes.
    values: Vec<f32>,
}

impl Small {
    fn new(mantissa: u32, bias: i32, last: u8) -> Self {
        let value = |code: u8| {
            let exponent = i32::from(code >> mantissa);
            let fraction = f32::from(code & ((1 << mantissa) - 1)) / (1u32 << mantissa) as f32;
            match exponent {
                0 => fraction * 2f32.powi(1 - bias),
                _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
            }
        };
        Self { values: (0..=last).map(value).collect() }
    }

    /// The largest number.
    pub(super) fn most(&self) -> f32 {
        *self.values.last().expect("there are numbers")
    }

    /// The nearest number's code, of two the even one; the largest for what lies beyond.
    pub(super) fn encode(&self, x: f32) -> u8 {
        let size = x.abs();
        let above = self.values.partition_point(|v| *v < size).min(self.values.len() - 1);
        let below = above.saturating_sub(1);
        let (up, down) = (self.values[above] - size, size - self.values[below]);
        let code = if up < down || (up == down && above.is_multiple_of(2)) || up < 0.0 {
            above
        } else {
            below
        };
        code as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
    }

    pub(super) fn decode(&self, code: u8) -> f32 {
        let size = self.values[usize::from(code & 0x7f).min(self.values.len() - 1)];
        if code & 0x80 == 0 { size } else { -size }
    }
}
