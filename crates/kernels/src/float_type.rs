/// The type of stored numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    /// Bytes of a number.
    #[must_use]
    pub fn size(self) -> usize {
        if self == FloatType::F32 { 4 } else { 2 }
    }
}
