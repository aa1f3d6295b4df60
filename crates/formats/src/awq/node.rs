//! Integers on grids whose zero is given as what it comes to.

use tensorpress_tensor::node::{Encoding, Format, Json, Leaf, Slot, Symbols, registry};
use tensorpress_tensor::{Error, PartKind, Result};

/// Integer codes with a scale and an offset for each group of consecutive inputs of a row:
/// `w[r, c] = scale[r, c / group] * code[r, c] + offset[r, c / group]`, rounded after the product and after the sum.
pub type OffsetGrids = Leaf<OffsetFormat>;

/// The format of [`OffsetGrids`]: its slots are `scales` and `offsets`, floats `[out, groups]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetFormat {
    group: usize,
}

impl OffsetFormat {
    /// Groups of so many inputs.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    pub fn new(group: usize) -> Result<Self> {
        match group {
            0 => Err(Error::invalid("group = 0: allowed are 1 and more")),
            group => Ok(Self { group }),
        }
    }

    /// Inputs of a group.
    #[must_use]
    pub fn group(&self) -> usize {
        self.group
    }
}

impl Format for OffsetFormat {
    const ID: &'static str = "offset_grids.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let format = Self::new(registry::field(json, "group")?);
        format.map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["group"] = self.group.into();
    }

    fn slots(&self, [rows, cols]: [usize; 2]) -> Vec<Slot> {
        let shape = [rows, cols.div_ceil(self.group)];
        let slot = |name, kind| Slot { name, kind, shape, encoding: Encoding::Floats };
        vec![slot("scales", PartKind::Scales), slot("offsets", PartKind::Zeros)]
    }

    fn check(&self, _: [usize; 2], _: u32) -> Result<()> {
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let groups = out.len().div_ceil(self.group);
        let grids = row * groups..(row + 1) * groups;
        let (scales, offsets) = (&beside[0][grids.clone()], &beside[1][grids]);
        let mut at = 0;
        for (out, (scale, offset)) in out.chunks_mut(self.group).zip(scales.iter().zip(offsets)) {
            for out in out {
                *out = scale * f32::from(codes.at(at)) + offset;
                at += 1;
            }
        }
    }
}
