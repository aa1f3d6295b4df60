use ndarray::{Array2, ArrayView2, ArrayView3, s};
use tensorpress_tensor::{Error, Result, Scratch, linalg};

use super::Encoder;
use super::images::apply;
use crate::layers::Linear;

/// An encoder of texts and one of images into the same space (CLIP).
#[derive(Debug)]
pub struct TwoTowers {
    pub(crate) texts: Encoder,
    pub(crate) images: Encoder,
    /// Of texts and of images.
    pub(crate) project: [Linear; 2],
    pub(crate) scale: f32,
}

impl TwoTowers {
    /// The encoder of texts.
    #[must_use]
    pub fn texts(&self) -> &Encoder {
        &self.texts
    }

    /// The encoder of images.
    #[must_use]
    pub fn images(&self) -> &Encoder {
        &self.images
    }

    /// What similarities are multiplied by: exp of the stored value.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The place of a text in the space, of length 1: made of the state of its first end token (of its greatest token,
    /// where the config names token 2, as old ones do).
    ///
    /// # Errors
    /// As [`Encoder::last_hidden_state`]; `InvalidArgument` for a text without an end token.
    pub fn embed_text(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Vec<f32>> {
        let ends = &self.texts.config().eos;
        let end = match ends.as_slice() {
            [2] => (0..ids.len()).rev().max_by_key(|at| ids[*at]),
            _ => ids.iter().position(|id| ends.contains(id)),
        };
        let Some(end) = end else {
            return Err(Error::invalid(format!("a text without its end token, one of {ends:?}")));
        };
        let (mask, types) = (vec![1; ids.len()], vec![0; ids.len()]);
        let hidden = self.texts.last_hidden_state(ids, &mask, &types, scratch)?;
        let placed = apply(&self.project[0], hidden.slice(s![end..=end, ..]), scratch)?;
        Ok(of_length_one(placed))
    }

    /// The place of an image in the space, of length 1.
    ///
    /// # Errors
    /// As [`Encoder::image_hidden_state`].
    pub fn embed_image(
        &self,
        image: ArrayView3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>> {
        let hidden = self.images.image_hidden_state(image, scratch)?;
        let pooled = self.images.pooled(hidden.view(), scratch)?;
        let row = ArrayView2::from_shape((1, pooled.len()), &pooled).expect("one row");
        Ok(of_length_one(apply(&self.project[1], row, scratch)?))
    }

    /// How alike images `[images, width]` and texts `[texts, width]` in the space are, scaled: logits `[images, texts]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for rows of different widths.
    pub fn logits(
        &self,
        images: ArrayView2<'_, f32>,
        texts: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>> {
        if images.ncols() != texts.ncols() {
            let message = format!("images of width {}, texts of {}", images.ncols(), texts.ncols());
            return Err(Error::shape(message));
        }
        let mut logits = Array2::zeros((images.nrows(), texts.nrows()));
        linalg::matmul_nt(images, texts, logits.view_mut(), false, linalg::Par::Seq);
        logits *= self.scale;
        Ok(logits)
    }
}

fn of_length_one(mut values: Vec<f32>) -> Vec<f32> {
    let square: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    let factor = 1.0 / square.sqrt().max(1e-12);
    values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    values
}
