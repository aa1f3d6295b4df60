//! Matrices of blocks as nodes.

use tensorpress_tensor::node::{Format, Fused, Json, Leaf, PackedPlane, Slot, Symbols, registry};
use tensorpress_tensor::{Bytes, Error, Node as _, Result, Scratch};

use super::{Type, decode, product};

/// A matrix of ggml's blocks, decoded and multiplied as it lies in a file: rows are runs of whole blocks.
///
/// ```
/// use tensorpress_formats::ggml::{self, Type, blocks};
/// use tensorpress_tensor::{Node, node::decode};
///
/// let mut bytes = vec![0; 3 * Type::Q4_0.block_bytes()];
/// ggml::encode(Type::Q4_0, &[0.5; 96], None, &mut bytes)?;
/// let node = blocks(Type::Q4_0, [3, 32], bytes.into())?;
/// assert_eq!(node.shape(), [3, 32]);
/// assert!(decode(&node)?.iter().all(|weight| *weight == 0.5));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub type GgmlBlocks = Leaf<GgmlFormat>;

/// The format of [`GgmlBlocks`]: bytes are its codes, and there is nothing beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlFormat {
    ty: Type,
}

impl GgmlFormat {
    /// Blocks of this type.
    #[must_use]
    pub fn new(ty: Type) -> Self {
        Self { ty }
    }

    /// The type of the blocks.
    #[must_use]
    pub fn ty(&self) -> Type {
        self.ty
    }

    fn check_width(self, cols: usize) -> Result<()> {
        if cols.is_multiple_of(self.ty.block_len()) {
            return Ok(());
        }
        let (name, len) = (self.ty.name(), self.ty.block_len());
        Err(Error::invalid(format!("rows of {cols} in {name}: allowed are multiples of {len}")))
    }
}

/// A matrix `[out, in]` of blocks of this type; nothing is copied.
///
/// # Errors
/// `InvalidArgument` if rows are not whole blocks, `ShapeMismatch` for another number of bytes.
pub fn blocks(ty: Type, shape: [usize; 2], bytes: Bytes) -> Result<GgmlBlocks> {
    let format = GgmlFormat::new(ty);
    format.check_width(shape[1])?;
    let codes = PackedPlane::from_bytes(bytes, shape[0], format.codes(shape[1]), 8)?;
    Leaf::new(format, shape, Box::new(codes), Vec::new())
}

impl Format for GgmlFormat {
    const ID: &'static str = "ggml.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let name = registry::field::<String>(json, "type")?;
        let ty = Type::from_name(&name);
        let unknown = || Error::corruption(format!("`type` = {name} is no block type of ggml"));
        Ok(Self { ty: ty.ok_or_else(unknown)? })
    }

    fn describe(&self, json: &mut Json) {
        json["type"] = self.ty.name().into();
    }

    fn slots(&self, _: [usize; 2]) -> Vec<Slot> {
        Vec::new()
    }

    /// Bytes of a row. (As many as there could be where it is not whole blocks, which the check refuses.)
    fn codes(&self, cols: usize) -> usize {
        (cols / self.ty.block_len()).saturating_mul(self.ty.block_bytes())
    }

    fn check(&self, [_, cols]: [usize; 2], _: u32) -> Result<()> {
        self.check_width(cols)
    }

    fn decode_row(&self, _: usize, codes: Symbols<'_>, _: &[&[f32]], out: &mut [f32]) {
        match codes {
            Symbols::U8(bytes) => {
                decode(self.ty, bytes, out).expect("whole blocks, as was checked");
            }
            // An alphabet of more than bytes, each of which is one all the same.
            Symbols::U16(wide) => {
                let bytes: Vec<u8> = wide.iter().map(|code| *code as u8).collect();
                decode(self.ty, &bytes, out).expect("whole blocks, as was checked");
            }
        }
    }

    /// From the bytes where they lie.
    fn decode_stored(
        leaf: &Leaf<Self>,
        row: usize,
        _: &[&[f32]],
        out: &mut [f32],
        add: bool,
        _: &mut Scratch,
    ) -> bool {
        let bytes = leaf.codes().as_packed().and_then(|packed| packed.row_bytes(row));
        let (false, Some(bytes)) = (add, bytes) else { return false };
        decode(leaf.format().ty, bytes, out).is_ok()
    }

    fn fused(leaf: &Leaf<Self>, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        let [rows, cols] = leaf.shape();
        let bytes = leaf.codes().as_packed().and_then(PackedPlane::bytes);
        let stored = bytes.and_then(|bytes| product::fused(leaf.format().ty, bytes, rows, cols));
        stored.iter().for_each(|stored| f(stored));
        Ok(())
    }

    fn prepacked(leaf: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        let [rows, cols] = leaf.shape();
        let bytes = leaf.codes().as_packed().and_then(PackedPlane::bytes);
        Ok(bytes.and_then(|bytes| product::prepacked(leaf.format().ty, bytes, rows, cols)))
    }
}
