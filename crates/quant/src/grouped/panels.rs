use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::kernels::{Activations, AffinePanels};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::{
    FUSED_TOKENS, Json, Mask, Multiply, PlaneMap, check_matmul, with_slices,
};
use tensorpress_tensor::{Accum, Node, PartSink, Result, Scratch};

use super::GroupedAffine;

/// A [`GroupedAffine`] with its codes repacked in panels of 16 rows for fast products; all else is the original's.
///
/// The original stays: where it was read from a file its codes are mapped pages that the system can drop.
#[derive(Debug)]
pub(super) struct PanelAffine {
    original: GroupedAffine,
    panels: AffinePanels,
}

impl PanelAffine {
    /// Repacks where the kernels support it, else hands the node back.
    pub(super) fn prepack(original: GroupedAffine) -> Result<Box<dyn Node>> {
        // Dropped codes are put back as zeros: integer products of whole panels outrun those of kept codes.
        let filled = original.filled()?;
        let repacked = original.repacked(0..original.shape[0])?;
        let rows = match (&filled, &repacked) {
            (Some((packed, scales)), _) => original.affine_rows_of(packed, scales)?,
            (None, Some(packed)) => original.affine_rows_of(packed, &original.scales)?,
            (None, None) => original.affine_rows()?,
        };
        let panels = rows.and_then(|rows| AffinePanels::new(&rows, Par::Seq));
        Ok(match panels {
            Some(panels) => Box::new(Self { original, panels }),
            None => Box::new(original),
        })
    }
}

impl Node for PanelAffine {
    fn shape(&self) -> [usize; 2] {
        self.original.shape()
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.original.decode_rows(rows, out, accum, scratch)
    }

    fn matmul(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &x, &y);
        if x.nrows() > FUSED_TOKENS {
            return self.original.matmul(x, y, accum, scratch);
        }
        let par = scratch.par();
        with_slices(x, y, |x, y, tokens| {
            let accumulate = accum == Accum::Add;
            self.panels.matmul(x, tokens, y, accumulate, Activations::default(), par);
        });
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        Multiply::Fused
    }

    fn zero_outside(&self) -> bool {
        self.original.zero_outside()
    }

    fn describe(&self) -> Json {
        self.original.describe()
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.original.parts(prefix, sink)
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Box::new(self.original).map_planes(f)
    }

    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Box::new(self.original).keep(mask)
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}
