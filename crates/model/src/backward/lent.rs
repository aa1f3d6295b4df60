//! Where the parts of a model come from.

use std::ops::Deref;

use rayon::prelude::*;
use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;

use crate::block::Block;
use crate::config::Config;
use crate::decoder::{Decoder, Embedding, Head};
use crate::layers::Linear;
use crate::source::Source;

/// A decoder whose parts are had one at a time: a [`Decoder`], or a [`Source`] that makes each when it is asked for, so that
/// no more than one is held. Every block is asked for three times.
pub trait Model: Sync {
    /// The configuration, which says how many blocks there are.
    fn config(&self) -> &Config;

    /// What makes hidden states of tokens.
    ///
    /// # Errors
    /// Those of reading it.
    fn embedding(&self) -> Result<Lent<'_, Embedding>>;

    /// A block.
    ///
    /// # Errors
    /// Those of reading it.
    fn block(&self, index: usize) -> Result<Lent<'_, Block>>;

    /// The final norm and the matrix over the vocabulary.
    ///
    /// # Errors
    /// Those of reading it; `Unsupported` if there is none.
    fn head(&self) -> Result<Lent<'_, Head>>;
}

/// A part of a model.
#[derive(Debug)]
pub enum Lent<'a, T> {
    /// Of a model that has it.
    Borrowed(&'a T),
    /// Made for the occasion.
    Made(Box<T>),
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Borrowed(part) => part,
            Self::Made(part) => part,
        }
    }
}

/// Weights of a head that is decoded for the occasion: 256 MiB; larger ones are multiplied as they are stored.
const HEAD: usize = 1 << 26;

impl Lent<'_, Block> {
    /// With every weight decoded, if it is nobody else's.
    pub(super) fn decoded(mut self, par: Par) -> Result<Self> {
        if let Self::Made(block) = &mut self {
            if par.threads() < 2 {
                block.materialise()?;
            } else {
                let all: Vec<&mut Linear> = block.linears_mut().collect();
                all.into_par_iter().try_for_each(Linear::materialise)?;
            }
        }
        Ok(self)
    }
}

impl Lent<'_, Head> {
    /// With the matrix decoded, if it is nobody else's and not too large.
    pub(super) fn decoded(mut self) -> Result<Self> {
        if let Self::Made(head) = &mut self {
            let [vocab, width] = head.linear.shape();
            if vocab * width <= HEAD {
                head.linear.materialise()?;
            }
        }
        Ok(self)
    }
}

impl Model for Decoder {
    fn config(&self) -> &Config {
        self.config()
    }

    fn embedding(&self) -> Result<Lent<'_, Embedding>> {
        Ok(Lent::Borrowed(self.embedding()))
    }

    fn block(&self, index: usize) -> Result<Lent<'_, Block>> {
        Ok(Lent::Borrowed(&self.blocks()[index]))
    }

    fn head(&self) -> Result<Lent<'_, Head>> {
        Ok(Lent::Borrowed(self.head()))
    }
}

impl Model for Source {
    fn config(&self) -> &Config {
        self.config()
    }

    fn embedding(&self) -> Result<Lent<'_, Embedding>> {
        self.embedding().map(Box::new).map(Lent::Made)
    }

    fn block(&self, index: usize) -> Result<Lent<'_, Block>> {
        self.block(index).map(Box::new).map(Lent::Made)
    }

    fn head(&self) -> Result<Lent<'_, Head>> {
        self.need_head()?;
        self.head().map(Box::new).map(Lent::Made)
    }
}
