use crate::ggml::Type;

/// How the elements of a type are stored: whole blocks of so many elements, of so many bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Elements of a block.
    pub elements: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

/// Blocks of a type by its number in files: the block types of ggml, f32 and f64, and integers of 8 to 64 bits; none
/// for numbers that no type has, or none any more.
#[must_use]
pub fn extent(id: u32) -> Option<Extent> {
    let bytes = match id {
        // i8, i16, i32 and f32, i64 and f64.
        24 => 1,
        25 => 2,
        0 | 26 => 4,
        27 | 28 => 8,
        _ => {
            let of = Type::from_id(id)?;
            return Some(Extent {
                elements: of.block_len() as u64,
                bytes: of.block_bytes() as u64,
            });
        }
    };
    Some(Extent { elements: 1, bytes })
}
