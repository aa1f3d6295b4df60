use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;

/// Tokens as the signs of their channels: look-up-free quantisation (Yu et al., *Language Model Beats Diffusion: Tokenizer is
/// Key to Visual Generation*, 2024), as MergeVQ (*A Unified Framework for Visual Generation and Representation with
/// Disentangled Token Merging and Quantization*, 2025) stores merged tokens. The codebook is all vectors of +1 and -1:
/// nothing is looked up, and a code is an index of as many bits as there are channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignCodes {
    codes: Vec<u64>,
    channels: usize,
}

impl SignCodes {
    /// The signs of z `[tokens, channels]`: bit c of a code is set where channel c is above 0.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 64 channels; `Numerical` for values that are not finite.
    pub fn new(z: ArrayView2<'_, f32>) -> Result<Self> {
        let channels = z.ncols();
        if channels > 64 {
            return Err(Error::invalid(format!("{channels} channels; allowed are up to 64")));
        }
        check_finite(z)?;
        let code = |code: u64, (c, v): (usize, &f32)| code | u64::from(*v > 0.0) << c;
        let codes = z.rows().into_iter().map(|row| row.iter().enumerate().fold(0, code));
        Ok(Self { codes: codes.collect(), channels })
    }

    /// Codes from elsewhere.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 64 channels, and for a code of more bits than channels.
    pub fn from_codes(codes: Vec<u64>, channels: usize) -> Result<Self> {
        let over = |code: &u64| channels < 64 && code >> channels != 0;
        if channels > 64 || codes.iter().any(over) {
            return Err(Error::invalid(format!("codes of {channels} bits; allowed are up to 64")));
        }
        Ok(Self { codes, channels })
    }

    /// The index of each token.
    #[must_use]
    pub fn codes(&self) -> &[u64] {
        &self.codes
    }

    /// The vectors of +1 and -1, `[tokens, channels]`.
    #[must_use]
    pub fn decode(&self) -> Array2<f32> {
        Array2::from_shape_fn((self.codes.len(), self.channels), |(token, c)| {
            if self.codes[token] >> c & 1 == 1 { 1.0 } else { -1.0 }
        })
    }

    /// Bits of all codes: a bit a channel.
    #[must_use]
    pub fn bits(&self) -> u64 {
        (self.codes.len() * self.channels) as u64
    }
}
