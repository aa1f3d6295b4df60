//! The block types and their sizes.

/// A block type of ggml: so many values in so many bytes, decoded by themselves.
///
/// Values are f32; `d`, `m`, `dmin` f16 unless said otherwise; everything is little-endian. [`Type::block_len`] values
/// take [`Type::block_bytes`] bytes. A row is a run of whole blocks, rows follow each other without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // ggml's own names
pub enum Type {
    /// IEEE half.
    F16,
    /// d, 16 bytes of two 4-bit codes: `d (q - 8)`.
    Q4_0,
    /// d, m, 16 bytes of two 4-bit codes: `d q + m`.
    Q4_1,
    /// d, 32 fifth bits, 16 bytes of two 4-bit codes: `d (q - 16)`.
    Q5_0,
    /// d, m, 32 fifth bits, 16 bytes of two 4-bit codes: `d q + m`.
    Q5_1,
    /// d, 32 signed codes: `d q`.
    Q8_0,
    /// d, `d Σq`, 32 signed codes: `d q`. For activations, never in files.
    Q8_1,
    /// 16 groups of 16 with 4-bit scales and minima, 64 bytes of four 2-bit codes, d, dmin: `d s q - dmin m`.
    Q2_K,
    /// 256 third bits, 64 bytes of four 2-bit codes, 16 groups with 6-bit scales, d: `d (s - 32) (q - 4)`.
    Q3_K,
    /// d, dmin, 8 groups of 32 with 6-bit scales and minima, 128 bytes of two 4-bit codes: `d s q - dmin m`.
    Q4_K,
    /// As Q4_K, with 256 fifth bits.
    Q5_K,
    /// 4 low bits, 2 high bits of 256 codes, 16 signed scales, d: `d s (q - 32)`.
    Q6_K,
    /// d (f32), 256 signed codes, their sums by 16 (i16): `d q`. For activations, never in files.
    Q8_K,
    /// d, 32 points of 256 with even signs, 8 scales of 4 bits: `d (s + 1/2) / 4 · point`.
    IQ2_XXS,
    /// d, 32 points of 512 with even signs, 16 scales of 4 bits: `d (s + 1/2) / 4 · point`.
    IQ2_XS,
    /// d, 64 points of 256 (four values each) with even signs, 8 scales of 4 bits: `d (s + 1/2) / 2 · point`.
    IQ3_XXS,
    /// d, 32 ternary points of 2048, 8 scales of 3 bits and shifts: `d (2 s + 1) (point ± 1/8)`.
    IQ1_S,
    /// d, 16 bytes of two indices into 16 uneven levels: `d level`.
    IQ4_NL,
    /// d, 64 points of 512 (four values each), signs, 8 scales of 4 bits: `d (2 s + 1) · point`.
    IQ3_S,
    /// d, 32 points of 1024, signs, 16 scales of 4 bits: `d (s + 1/2) / 4 · point`.
    IQ2_S,
    /// d, 8 scales of 6 bits, 128 bytes of two indices into the levels of IQ4_NL: `d (s - 32) level`.
    IQ4_XS,
    /// 32 ternary points of 2048 with a shift each, 16 scales of 3 bits, d in the bits between: as IQ1_S.
    IQ1_M,
    /// The upper half of an f32.
    BF16,
    /// 256 trits, five to a byte, d: `d (q - 1)`.
    TQ1_0,
    /// 64 bytes of four 2-bit codes, d: `d (q - 1)`.
    TQ2_0,
    /// An E8M0 scale, 16 bytes of two E2M1: `2^(e - 127) E2M1`.
    MXFP4,
    /// 4 scales (E4M3 without sign) of 16 values each, 32 bytes of two E2M1: `s E2M1`.
    NVFP4,
    /// d, 128 signs: `±d`.
    Q1_0,
    /// d, 16 bytes of four neighbouring 2-bit codes: `d (q - 1)`.
    Q2_0,
}

/// Number in files, name, values and bytes of a block.
const ROWS: [(Type, u32, &str, usize, usize); 29] = [
    (Type::F16, 1, "F16", 1, 2),
    (Type::Q4_0, 2, "Q4_0", 32, 18),
    (Type::Q4_1, 3, "Q4_1", 32, 20),
    (Type::Q5_0, 6, "Q5_0", 32, 22),
    (Type::Q5_1, 7, "Q5_1", 32, 24),
    (Type::Q8_0, 8, "Q8_0", 32, 34),
    (Type::Q8_1, 9, "Q8_1", 32, 36),
    (Type::Q2_K, 10, "Q2_K", 256, 84),
    (Type::Q3_K, 11, "Q3_K", 256, 110),
    (Type::Q4_K, 12, "Q4_K", 256, 144),
    (Type::Q5_K, 13, "Q5_K", 256, 176),
    (Type::Q6_K, 14, "Q6_K", 256, 210),
    (Type::Q8_K, 15, "Q8_K", 256, 292),
    (Type::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (Type::IQ2_XS, 17, "IQ2_XS", 256, 74),
    (Type::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (Type::IQ1_S, 19, "IQ1_S", 256, 50),
    (Type::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (Type::IQ3_S, 21, "IQ3_S", 256, 110),
    (Type::IQ2_S, 22, "IQ2_S", 256, 82),
    (Type::IQ4_XS, 23, "IQ4_XS", 256, 136),
    (Type::IQ1_M, 29, "IQ1_M", 256, 56),
    (Type::BF16, 30, "BF16", 1, 2),
    (Type::TQ1_0, 34, "TQ1_0", 256, 54),
    (Type::TQ2_0, 35, "TQ2_0", 256, 66),
    (Type::MXFP4, 39, "MXFP4", 32, 17),
    (Type::NVFP4, 40, "NVFP4", 64, 36),
    (Type::Q1_0, 41, "Q1_0", 128, 18),
    (Type::Q2_0, 42, "Q2_0", 64, 18),
];

impl Type {
    /// Every type, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.0)
    }

    /// The type with this number in files, if it is a block type.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        ROWS.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The type of this name, as ggml writes it: "Q4_K".
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        // The rows are in the order of the variants, as a test says.
        &ROWS[self as usize]
    }

    /// Its number in GGUF files.
    #[must_use]
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values in a block.
    #[must_use]
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.row().4
    }
}
