//! The types that have a kernel, and a matrix of them.

/// A block type of ggml that products are made with as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)] // ggml's own names
pub enum BlockType {
    /// 32 codes of 4 bits: `d (q - 8)`.
    Q4_0,
    /// 32 codes of 4 bits: `d q + m`.
    Q4_1,
    /// 32 codes of 5 bits: `d (q - 16)`.
    Q5_0,
    /// 32 codes of 5 bits: `d q + m`.
    Q5_1,
    /// 32 signed codes of 8 bits: `d q`.
    Q8_0,
    /// 256 codes of 2 bits, scales and minima by 16: `d s q - dmin m`.
    Q2_K,
    /// 256 codes of 3 bits, scales by 16: `d (s - 32) (q - 4)`.
    Q3_K,
    /// 256 codes of 4 bits, scales and minima by 32: `d s q - dmin m`.
    Q4_K,
    /// 256 codes of 5 bits, scales and minima by 32: `d s q - dmin m`.
    Q5_K,
    /// 256 codes of 6 bits, scales by 16: `d s (q - 32)`.
    Q6_K,
    /// 32 indices into 16 uneven levels: `d level`.
    IQ4_NL,
    /// 256 indices into 16 uneven levels, scales by 32: `d (s - 32) level`.
    IQ4_XS,
    /// 32 E2M1 and an E8M0: `2^(e - 127) E2M1`.
    MXFP4,
}

impl BlockType {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
    ];

    /// Weights of a block.
    pub fn block_len(self) -> usize {
        use BlockType::*;
        match self {
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_XS => 256,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL | MXFP4 => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        use BlockType::*;
        match self {
            MXFP4 => 17,
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            IQ4_XS => 136,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }
}

/// A matrix `[rows, cols]` in blocks, row after row without gaps.
#[derive(Clone, Copy, Debug)]
pub struct BlockRows<'a> {
    /// What the blocks are.
    pub kind: BlockType,
    /// The blocks, little-endian, at any alignment.
    pub bytes: &'a [u8],
    /// Output size.
    pub rows: usize,
    /// Input size, a multiple of [`BlockType::block_len`].
    pub cols: usize,
}

impl BlockRows<'_> {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.kind.block_len() * self.kind.block_bytes()
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    pub(super) fn check(&self) {
        assert!(self.cols.is_multiple_of(self.kind.block_len()), "block rows: parts of blocks");
        let bytes = self.row_bytes().checked_mul(self.rows);
        assert_eq!(Some(self.bytes.len()), bytes, "block rows: size of the blocks");
    }

    pub(super) fn row(&self, r: usize) -> &[u8] {
        &self.bytes[r * self.row_bytes()..(r + 1) * self.row_bytes()]
    }
}
