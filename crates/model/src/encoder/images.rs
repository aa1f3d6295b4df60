use ndarray::{Array2, ArrayView2, ArrayView3, s};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::{Error, Result, Scratch};

use super::{Encoder, Reading};
use crate::config::Images;
use crate::layers::{Linear, Norm};

/// From an image to tokens: one for each patch, behind one that stands for all.
#[derive(Debug)]
pub(crate) struct Patches {
    pub(crate) images: Images,
    pub(crate) class: Vec<f32>,
    /// `[hidden, channels x side x side]`.
    pub(crate) project: Linear,
    /// `[1 + patches, hidden]`.
    pub(crate) positions: Array2<f32>,
    pub(crate) norm: Option<Norm>,
}

/// What is made of the class token's last state, of what there is.
#[derive(Debug, Default)]
pub(crate) struct ImageHead {
    pub(crate) norm: Option<Norm>,
    /// With tanh behind it.
    pub(crate) pooler: Option<Linear>,
    pub(crate) classifier: Option<Linear>,
}

impl Patches {
    fn embed(&self, image: ArrayView3<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
        let shape = self.images.shape();
        if image.shape() != shape {
            let message = format!("an image of {:?}, the model reads {shape:?}", image.shape());
            return Err(Error::shape(message));
        }
        if image.iter().any(|value| !value.is_finite()) {
            return Err(Error::numerical("an image has values that are not finite"));
        }
        let (side, [channels, size, _]) = (self.images.patch, shape);
        let across = size / side;
        let mut patches = Array2::zeros((across * across, channels * side * side));
        for (i, mut patch) in patches.rows_mut().into_iter().enumerate() {
            let (y, x) = (i / across * side, i % across * side);
            let seen = image.slice(s![.., y..y + side, x..x + side]);
            patch.iter_mut().zip(seen).for_each(|(to, value)| *to = *value);
        }
        let mut tokens = Array2::zeros((1 + patches.nrows(), self.class.len()));
        tokens.row_mut(0).iter_mut().zip(&self.class).for_each(|(to, value)| *to = *value);
        Input::with(patches.view(), scratch, |patches, scratch| {
            self.project.forward(patches, tokens.slice_mut(s![1.., ..]), scratch)
        })?;
        tokens += &self.positions;
        self.norm.iter().for_each(|norm| norm.apply(tokens.view_mut()));
        Ok(tokens)
    }
}

impl Encoder {
    /// What the first block reads of an image `[channels, height, width]`, as it was prepared for the model
    /// (`pixel_values`): `[1 + patches, hidden]`, the class token first, then the patches row by row. For calibration.
    ///
    /// # Errors
    /// `ShapeMismatch` for images of another size, `Numerical` for values that are not finite, `Unsupported` in an encoder
    /// of texts; those of decoding.
    pub fn image_embeddings(
        &self,
        image: ArrayView3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        match &self.reads {
            Reading::Images(patches) => patches.embed(image, scratch),
            Reading::Tokens(_) => Err(Error::unsupported("an image in an encoder of texts")),
        }
    }

    /// The last block's output `[1 + patches, hidden]` of one image, behind the norm that stands there, if one does.
    ///
    /// # Errors
    /// As [`Encoder::image_embeddings`].
    pub fn image_hidden_state(
        &self,
        image: ArrayView3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let mut hidden = self.image_embeddings(image, scratch)?;
        self.run(&mut hidden, scratch)?;
        Ok(hidden)
    }

    /// One vector `[hidden]` for an image, made of the first row of its last states `[1 + patches, hidden]` by what the
    /// model has for that: a norm, or a matrix and tanh.
    ///
    /// # Errors
    /// `Unsupported` where it has neither; `ShapeMismatch` for states of another width, or none; those of decoding.
    pub fn pooled(&self, hidden: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Vec<f32>> {
        let mut class = self.class_state(hidden)?;
        let ImageHead { norm, pooler, .. } = &self.image_head;
        norm.iter().for_each(|norm| norm.apply(class.view_mut()));
        match pooler {
            Some(pooler) => {
                let mut out = apply(pooler, class.view(), scratch)?;
                out.iter_mut().for_each(|value| *value = value.tanh());
                Ok(out)
            }
            None if norm.is_some() => Ok(class.into_raw_vec_and_offset().0),
            None => Err(Error::unsupported("a pooled state of an encoder without a pooler")),
        }
    }

    /// Logits over the classes of images, of an image's last states `[1 + patches, hidden]`.
    ///
    /// # Errors
    /// `Unsupported` where the checkpoint has no classifier; otherwise as [`Encoder::pooled`].
    pub fn classify(&self, hidden: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Vec<f32>> {
        let class = self.class_state(hidden)?;
        match &self.image_head.classifier {
            Some(classifier) => apply(classifier, class.view(), scratch),
            None => Err(Error::unsupported("classes of an encoder without a classifier")),
        }
    }

    fn class_state(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        if hidden.nrows() == 0 || hidden.ncols() != self.config.hidden {
            let (found, width) = (hidden.shape(), self.config.hidden);
            return Err(Error::shape(format!("states of {found:?} for a width of {width}")));
        }
        Ok(hidden.slice(s![..1, ..]).to_owned())
    }
}

/// A matrix and its bias times one row.
pub(super) fn apply(
    linear: &Linear,
    row: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
) -> Result<Vec<f32>> {
    let mut out = Array2::zeros((1, linear.shape()[0]));
    Input::with(row, scratch, |row, scratch| linear.forward(row, out.view_mut(), scratch))?;
    Ok(out.into_raw_vec_and_offset().0)
}
