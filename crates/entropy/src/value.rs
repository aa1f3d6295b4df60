//! How the bytes of a tensor are laid out, as far as coding cares.

/// The layout of a value: where its exponent is, if it has one. Wire names are those of [`ValueType::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ValueType {
    /// Anything: text, packed codes, unsigned and signed bytes.
    Bytes,
    /// 8-bit floats (E4M3, E5M2), sign first.
    F8,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Integers of two bytes.
    I16,
    /// Integers of four bytes.
    I32,
    /// Integers of eight bytes.
    I64,
}

impl ValueType {
    /// Every layout.
    pub const ALL: [Self; 9] = [
        Self::Bytes,
        Self::F8,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
        Self::I16,
        Self::I32,
        Self::I64,
    ];

    /// Bytes of a value.
    #[must_use]
    pub const fn width(self) -> usize {
        match self {
            Self::Bytes | Self::F8 => 1,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// Whether the first bit is a sign, followed by an exponent.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F8 | Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// The number in frames: the place in [`ValueType::ALL`].
    pub(crate) fn id(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// The name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::F8 => "f8",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// The layout with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.name() == name)
    }

    /// The layout of a safetensors element type, by its name there (`BF16`, `F8_E4M3` ...); unknown types are
    /// bytes.
    #[must_use]
    pub fn of_safetensors(dtype: &str) -> Self {
        match dtype {
            "F64" => Self::F64,
            // Complex numbers are pairs of floats.
            "F32" | "C64" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "I64" | "U64" => Self::I64,
            "I32" | "U32" => Self::I32,
            "I16" | "U16" => Self::I16,
            name if name.starts_with("F8_E4M3") || name.starts_with("F8_E5M2") => Self::F8,
            _ => Self::Bytes,
        }
    }
}
