//! Matrices of small floats as nodes.

use tensorpress_tensor::node::{Encoding, Format, Json, Leaf, Slot, Symbols, registry};
use tensorpress_tensor::{Error, PartKind, Result};

use super::Small;

/// Small floats in tiles that share a scale: `w = float[code] * scale[tile]`.
pub type SmallFloats = Leaf<SmallFormat>;

/// What the scale of a tile does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scaling {
    /// There is none: the floats are the weights.
    None,
    /// Weights are floats times their scale.
    Multiply,
    /// Weights are floats over their scale.
    Divide,
}

const SCALINGS: [(&str, Scaling); 3] =
    [("none", Scaling::None), ("multiply", Scaling::Multiply), ("divide", Scaling::Divide)];

/// The format of [`SmallFloats`]: what a code stands for, and which weights share a scale. Its child are the scales, any
/// node `[ceil(out / rows), ceil(in / columns)]`; small floats in turn, for one.
///
/// Each product or quotient is rounded to f32 once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmallFormat {
    element: Small,
    tile: [usize; 2],
    scaling: Scaling,
}

impl SmallFormat {
    /// Floats without scales.
    #[must_use]
    pub fn new(element: Small) -> Self {
        Self { element, tile: [1, 1], scaling: Scaling::None }
    }

    /// Floats in tiles of so many rows and columns, cut off at the matrix's ends.
    ///
    /// # Errors
    /// `InvalidArgument` for empty tiles.
    pub fn with_scales(mut self, tile: [usize; 2], scaling: Scaling) -> Result<Self> {
        if tile.contains(&0) {
            return Err(Error::invalid(format!("tiles of {tile:?}: allowed are 1 and more")));
        }
        (self.tile, self.scaling) = (tile, scaling);
        Ok(self)
    }

    /// What a code stands for.
    #[must_use]
    pub fn element(&self) -> Small {
        self.element
    }

    /// Rows and columns that share a scale.
    #[must_use]
    pub fn tile(&self) -> [usize; 2] {
        self.tile
    }

    /// What scales do.
    #[must_use]
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    fn grid(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        [rows.div_ceil(self.tile[0]), cols.div_ceil(self.tile[1])]
    }
}

impl Format for SmallFormat {
    const ID: &'static str = "small_floats.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let bad = |key: &str, name: &str| Error::corruption(format!("`{key}` = {name} is unknown"));
        let name = registry::field::<String>(json, "element")?;
        let element = Small::ALL.into_iter().find(|small| small.name() == name);
        let element = element.ok_or_else(|| bad("element", &name))?;
        let name = registry::field::<String>(json, "scaling")?;
        let scaling = SCALINGS.into_iter().find(|(known, _)| *known == name);
        let (_, scaling) = scaling.ok_or_else(|| bad("scaling", &name))?;
        let format = Self::new(element).with_scales(registry::field(json, "tile")?, scaling);
        format.map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["element"] = self.element.name().into();
        json["tile"] = self.tile.into();
        let name = SCALINGS.into_iter().find(|(_, scaling)| *scaling == self.scaling);
        json["scaling"] = name.expect("all are there").0.into();
    }

    fn slots(&self, shape: [usize; 2]) -> Vec<Slot> {
        let (name, kind, encoding) = ("scales", PartKind::Scales, Encoding::Node);
        let slot = Slot { name, kind, shape: self.grid(shape), encoding };
        if self.scaling == Scaling::None { Vec::new() } else { vec![slot] }
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        if alphabet <= 1 << self.element.bits() {
            return Ok(());
        }
        let name = self.element.name();
        Err(Error::invalid(format!("{alphabet} codes of {name}, which has fewer")))
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let table = self.element.table();
        match codes {
            Symbols::U8(codes) => {
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = table[usize::from(*code)]);
            }
            Symbols::U16(codes) => {
                let at = |code: u16| table[usize::from(code & 0xff)];
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = at(*code));
            }
        }
        if self.scaling == Scaling::None {
            return;
        }
        let tiles = out.len().div_ceil(self.tile[1]);
        let scales = &beside[0][row / self.tile[0] * tiles..][..tiles];
        for (out, scale) in out.chunks_mut(self.tile[1]).zip(scales) {
            match self.scaling {
                Scaling::Divide => out.iter_mut().for_each(|out| *out /= scale),
                _ => out.iter_mut().for_each(|out| *out *= scale),
            }
        }
    }
}
