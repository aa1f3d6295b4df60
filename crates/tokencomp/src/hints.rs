use ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;

/// A row and a column.
pub type Place = [usize; 2];

/// What is known about the tokens beside their states.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TokenHints<'a> {
    /// Tokens that stay as they are: class and distillation tokens, separators.
    pub protected: &'a [usize],
    /// Tokens of the text that each token stands for; 1 where absent.
    pub sizes: Option<&'a [f32]>,
    /// Attention that each token receives, a mean over heads and queries; any scale.
    pub attention: Option<&'a [f32]>,
    /// Attention that the class token (in crops, that of the same crop) pays to each token; any scale. Where it is absent,
    /// methods that ask for it take [`TokenHints::attention`].
    pub class_attention: Option<&'a [f32]>,
    /// How much each token has to do with a question or a task: [`relevance`](crate::relevance), or attention from the
    /// tokens of an instruction; any scale.
    pub relevance: Option<&'a [f32]>,
    /// What speaks for each token and is not in its state, such as [`pixel_gradient`](crate::pixel_gradient); any scale.
    pub saliency: Option<&'a [f32]>,
    /// Tokens that show what matters, as a mask: people before a background.
    pub foreground: Option<&'a [bool]>,
    /// Row and column of each token in its picture; nothing for tokens of no place. [`grid`](crate::grid) makes them.
    pub places: Option<&'a [Option<Place>]>,
    /// The frame of a video that each token is of, counted from 0.
    pub frames: Option<&'a [usize]>,
    /// The crop of a picture that each token is of.
    pub crops: Option<Crops<'a>>,
}

/// A picture of high resolution in crops, with the whole of it as a small one, the thumbnail.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Crops<'a> {
    /// The crop that each token is of, counted from 0.
    pub of: &'a [usize],
    /// The crop that is the thumbnail.
    pub thumbnail: Option<usize>,
    /// Rows and columns of crops that cover the thumbnail, in the order of their numbers, row by row.
    pub layout: Place,
}

impl<'a> Crops<'a> {
    /// Crops without a thumbnail.
    #[must_use]
    pub fn new(of: &'a [usize]) -> Self {
        Self { of, thumbnail: None, layout: [0, 0] }
    }

    /// One of them is the thumbnail; the others cover it, in so many rows and columns.
    #[must_use]
    pub fn with_thumbnail(mut self, crop: usize, layout: Place) -> Self {
        (self.thumbnail, self.layout) = (Some(crop), layout);
        self
    }

    /// How many crops there are: one more than the largest number.
    #[must_use]
    pub fn count(&self) -> usize {
        self.of.iter().max().map_or(0, |most| most + 1)
    }
}

impl<'a> TokenHints<'a> {
    /// Protects tokens.
    #[must_use]
    pub fn with_protected(mut self, protected: &'a [usize]) -> Self {
        self.protected = protected;
        self
    }

    /// Says how many tokens of the text each token stands for.
    #[must_use]
    pub fn with_sizes(mut self, sizes: &'a [f32]) -> Self {
        self.sizes = Some(sizes);
        self
    }

    /// Says how much attention each token receives.
    #[must_use]
    pub fn with_attention(mut self, attention: &'a [f32]) -> Self {
        self.attention = Some(attention);
        self
    }

    /// Says how much attention the class token pays to each token.
    #[must_use]
    pub fn with_class_attention(mut self, attention: &'a [f32]) -> Self {
        self.class_attention = Some(attention);
        self
    }

    /// Says how much each token has to do with a question.
    #[must_use]
    pub fn with_relevance(mut self, relevance: &'a [f32]) -> Self {
        self.relevance = Some(relevance);
        self
    }

    /// Says what speaks for each token beside its state.
    #[must_use]
    pub fn with_saliency(mut self, saliency: &'a [f32]) -> Self {
        self.saliency = Some(saliency);
        self
    }

    /// Says which tokens show what matters.
    #[must_use]
    pub fn with_foreground(mut self, foreground: &'a [bool]) -> Self {
        self.foreground = Some(foreground);
        self
    }

    /// Says where each token stands in its picture.
    #[must_use]
    pub fn with_places(mut self, places: &'a [Option<Place>]) -> Self {
        self.places = Some(places);
        self
    }

    /// Says which frame each token is of.
    #[must_use]
    pub fn with_frames(mut self, frames: &'a [usize]) -> Self {
        self.frames = Some(frames);
        self
    }

    /// Says which crop each token is of.
    #[must_use]
    pub fn with_crops(mut self, crops: Crops<'a>) -> Self {
        self.crops = Some(crops);
        self
    }

    /// Checks the hints against the states and `keep`; says which tokens are protected. For implementors of
    /// [`TokenReduce`](crate::TokenReduce).
    ///
    /// # Errors
    /// Those of [`TokenReduce::plan`](crate::TokenReduce::plan), `keep` included.
    pub fn check(&self, x: ArrayView2<'_, f32>, keep: usize) -> Result<Vec<bool>> {
        let tokens = x.nrows();
        if keep == 0 || keep > tokens {
            return Err(Error::invalid(format!(
                "keep = {keep} of {tokens} tokens; allowed are 1 to {tokens}"
            )));
        }
        let mut protected = vec![false; tokens];
        for &token in self.protected {
            let Some(mark) = protected.get_mut(token) else {
                return Err(Error::invalid(format!("protected token {token} of {tokens} tokens")));
            };
            *mark = true;
        }
        let count = protected.iter().filter(|p| **p).count();
        if count > keep {
            return Err(Error::invalid(format!("keep = {keep}, but {count} tokens are protected")));
        }
        self.check_values(tokens)?;
        check_finite(x)?;
        Ok(protected)
    }

    fn check_values(&self, tokens: usize) -> Result<()> {
        let one_each = |given: Option<usize>, what: &str| match given {
            Some(given) if given != tokens => {
                Err(Error::shape(format!("{given} values of {what} for {tokens} tokens")))
            }
            _ => Ok(()),
        };
        let numbers = [
            ("sizes", self.sizes),
            ("attention", self.attention),
            ("class attention", self.class_attention),
            ("relevance", self.relevance),
            ("saliency", self.saliency),
        ];
        for (what, values) in numbers {
            one_each(values.map(<[f32]>::len), what)?;
            let bad = values.unwrap_or_default().iter().enumerate().find(|(_, v)| !v.is_finite());
            if let Some((token, bad)) = bad {
                return Err(Error::numerical(format!("{what} of token {token} is {bad}")));
            }
        }
        if let Some(bad) = self.sizes.and_then(|sizes| sizes.iter().position(|s| *s <= 0.0)) {
            return Err(Error::invalid(format!(
                "token {bad} stands for no token: sizes are above 0"
            )));
        }
        one_each(self.foreground.map(<[bool]>::len), "foreground")?;
        one_each(self.places.map(<[_]>::len), "places")?;
        one_each(self.frames.map(<[usize]>::len), "frames")?;
        one_each(self.crops.map(|crops| crops.of.len()), "crops")?;
        let Some(Crops { of, thumbnail: Some(thumbnail), layout: [rows, cols] }) = self.crops
        else {
            return Ok(());
        };
        let others = rows.saturating_mul(cols);
        if others > 1 << 20 {
            return Err(Error::invalid(format!("{rows} x {cols} crops; allowed are 2^20")));
        }
        if thumbnail > others {
            return Err(Error::invalid(format!(
                "the thumbnail is crop {thumbnail} of {rows} x {cols} and itself"
            )));
        }
        match of.iter().find(|crop| **crop > others) {
            Some(bad) => Err(Error::invalid(format!(
                "crop {bad} of {rows} x {cols} and a thumbnail; allowed are 0 to {others}"
            ))),
            None => Ok(()),
        }
    }

    /// [`TokenHints::check`] for methods that merge: unprotected tokens do not vanish, they need one to merge into.
    ///
    /// # Errors
    /// As [`TokenHints::check`], and `InvalidArgument` if `keep` leaves place for the protected tokens alone.
    pub fn check_merging(&self, x: ArrayView2<'_, f32>, keep: usize) -> Result<Vec<bool>> {
        let protected = self.check(x, keep)?;
        let count = protected.iter().filter(|p| **p).count();
        if count == keep && count < protected.len() {
            return Err(Error::invalid(format!(
                "keep = {keep}, but {count} tokens are protected and the others need at least 1 to merge into"
            )));
        }
        Ok(protected)
    }

    /// What the class token attends to or, without it, what receives attention.
    pub(crate) fn class_or_received(&self, id: &str) -> Result<&'a [f32]> {
        need(self.class_attention.or(self.attention), id, "the attention each token receives")
    }
}

/// A hint that a method cannot do without.
pub(crate) fn need<T>(hint: Option<T>, id: &str, what: &str) -> Result<T> {
    hint.ok_or_else(|| Error::invalid(format!("{id} needs {what}")))
}
