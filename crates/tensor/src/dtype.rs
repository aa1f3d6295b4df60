//! Element types of stored tensors.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::kernels::{self, FloatType};

/// Element type of a stored tensor. Names and widths are those of safetensors.
///
/// ```
/// use tensorpress_tensor::DType;
///
/// assert_eq!((DType::BF16.size(), DType::BF16.is_float()), (2, true));
/// assert_eq!(DType::F16.round(1.0 / 3.0), 0.333_251_95);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
}

impl DType {
    /// Every type.
    pub const ALL: [Self; 13] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::BOOL,
    ];

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::BOOL => 1,
        }
    }

    /// Whether elements are floating-point numbers.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The type as kernels know it; they know no integers and no f64.
    #[must_use]
    pub fn float_type(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::BF16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// Reads little-endian elements of a float type as f32 (f64 is rounded).
    ///
    /// # Errors
    /// `Unsupported` for integer types.
    ///
    /// # Panics
    /// If `bytes.len() != out.len() * self.size()`.
    pub fn read_f32(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        assert_eq!(bytes.len(), out.len() * self.size(), "bytes and elements disagree");
        match self {
            Self::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Self::F64 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *o = f64::from_le_bytes(*b) as f32;
                }
            }
            Self::BF16 => kernels::bf16_bytes_to_f32(bytes, out),
            Self::F16 => kernels::f16_bytes_to_f32(bytes, out),
            other => {
                return Err(Error::unsupported(format!(
                    "{other:?} elements cannot be read as floats"
                )));
            }
        }
        Ok(())
    }

    /// Appends `values`, rounded to this float type, as little-endian bytes.
    ///
    /// # Errors
    /// `Unsupported` for integer types.
    pub fn write_f32(self, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
        out.reserve(values.len() * self.size());
        match self {
            Self::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
            Self::F64 => values.iter().for_each(|v| out.extend(f64::from(*v).to_le_bytes())),
            Self::BF16 | Self::F16 => {
                let start = out.len();
                out.resize(start + 2 * values.len(), 0);
                if self == Self::BF16 {
                    kernels::f32_to_bf16_bytes(values, &mut out[start..]);
                } else {
                    kernels::f32_to_f16_bytes(values, &mut out[start..]);
                }
            }
            other => {
                return Err(Error::unsupported(format!("floats cannot be stored as {other:?}")));
            }
        }
        Ok(())
    }

    /// Rounds one value to this float type and back (identity for F32, F64 and integers).
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::BF16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
            _ => value,
        }
    }

    /// The type of this name: [`DType::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The name in safetensors files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::BOOL => "BOOL",
        }
    }
}
