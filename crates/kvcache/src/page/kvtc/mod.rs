//! Pages for the disk: components across heads, bits where the variance is, entropy-coded (KVTC, Staniszewski and Łańcucki,
//! 2025).

mod plane;
#[cfg(test)]
mod tests;
mod wire;

use ndarray::{Array3, ArrayView3};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::{Error, Result, ndarray};
use xxhash_rust::xxh3::xxh3_64;

use plane::Plane;

/// How many bits a number of a page has before entropy coding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KvtcConfig {
    /// Of keys, on average: above 0 and up to 8.
    pub key_bits: f64,
    /// Of values.
    pub value_bits: f64,
    /// The most that a component has, 1 to 8.
    pub most: u32,
}

impl Default for KvtcConfig {
    /// 2 bits a number, at most 8 of a component.
    fn default() -> Self {
        Self { key_bits: 2.0, value_bits: 2.0, most: 8 }
    }
}

impl KvtcConfig {
    /// Sets the bits of keys and of values.
    #[must_use]
    pub fn with_bits(mut self, keys: f64, values: f64) -> Self {
        (self.key_bits, self.value_bits) = (keys, values);
        self
    }

    fn check(&self) -> Result<()> {
        for (key, bits) in [("key_bits", self.key_bits), ("value_bits", self.value_bits)] {
            if !(bits > 0.0 && bits <= 8.0) {
                return Err(Error::invalid(format!("{key} = {bits}: above 0, up to 8")));
            }
        }
        if !(1..=8).contains(&self.most) {
            return Err(Error::invalid(format!("most = {}: allowed are 1 to 8", self.most)));
        }
        Ok(())
    }
}

/// A codec of pages, fitted to keys and values of a layer.
///
/// The channels of all heads of a token are one vector; it is held by its principal components, each of which has as many bits
/// as serve the sum of squares best within the budget (dynamic programming over what a normal number of that variance loses at
/// each number of bits), on an even grid, and those codes by an arithmetic coder with the frequencies of what the codec was
/// fitted to. Pages have no fixed size: they are for where they are stored, not for where they are attended to (see
/// [`PageCodec`](super::PageCodec)). Keys have fewer components before rotary embedding than after it.
///
/// ```
/// use tensorpress_kvcache::page::{Kvtc, KvtcConfig};
/// use tensorpress_tensor::ndarray::{Array3, s};
///
/// let x = Array3::from_shape_fn((400, 2, 8), |(t, h, c)| ((t * (h + 3)) as f32 * 0.1).sin() * (c + 1) as f32);
/// let codec = Kvtc::fit(x.slice(s![..300, .., ..]), x.slice(s![..300, .., ..]), KvtcConfig::default())?;
/// let page = codec.encode(x.slice(s![300.., .., ..]), x.slice(s![300.., .., ..]))?;
/// assert!(page.len() < 100 * 2 * 16 * 2 / 6, "a sixth of f16, header and all");
/// let (k, _) = codec.decode(&page)?;
/// assert!(k.iter().zip(x.slice(s![300.., .., ..])).all(|(a, b)| (a - b).abs() < 0.5));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Kvtc {
    /// Of keys and of values.
    planes: [Plane; 2],
    /// What pages name it by.
    print: u64,
}

impl Kvtc {
    /// Fits to keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]`: some thousand tokens serve.
    ///
    /// # Errors
    /// `InvalidArgument` for a number outside of what its field allows, fewer than two tokens, or more than 65535 channels of
    /// all heads; `Numerical` for what is not finite.
    pub fn fit(
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        config: KvtcConfig,
    ) -> Result<Self> {
        config.check()?;
        let keys = Plane::fit(keys, config.key_bits, config.most)?;
        let values = Plane::fit(values, config.value_bits, config.most)?;
        Ok(Self::of([keys, values]))
    }

    fn of(planes: [Plane; 2]) -> Self {
        let mut codec = Self { planes, print: 0 };
        codec.print = xxh3_64(&codec.to_bytes()[16..]);
        codec
    }

    /// Bits of each component of keys and of values before entropy coding, those of most variance first.
    #[must_use]
    pub fn bits(&self) -> [&[u32]; 2] {
        self.planes.each_ref().map(|plane| &*plane.bits)
    }

    /// Writes a page of as many tokens as `keys` and `values` have, none to 65535.
    ///
    /// # Errors
    /// `ShapeMismatch` if a shape is not the codec's; `Numerical` for what is not finite.
    pub fn encode(
        &self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<Vec<u8>> {
        if keys.dim().0 != values.dim().0 || keys.dim().0 > 0xffff {
            let (k, v) = (keys.dim().0, values.dim().0);
            return Err(Error::shape(format!(
                "keys of {k} tokens, values of {v}: as many, up to 65535"
            )));
        }
        let mut body = Vec::new();
        for (plane, x) in self.planes.iter().zip([keys, values]) {
            plane.encode(x, &mut body)?;
        }
        Ok(wire::seal(keys.dim().0, self.print, &body))
    }

    /// Keys and values of a page.
    ///
    /// # Errors
    /// `InsufficientData` for a page that is cut, `Corruption` for one that is damaged, `Version` for one of a later version,
    /// `InvalidArgument` for one of another codec.
    pub fn decode(&self, page: &[u8]) -> Result<(Array3<f32>, Array3<f32>)> {
        let (tokens, print, mut body) = wire::open(page)?;
        if print != self.print {
            return Err(Error::invalid("a page of another codec: it was fitted to something else"));
        }
        let keys = self.planes[0].decode(tokens, &mut body)?;
        let values = self.planes[1].decode(tokens, &mut body)?;
        if !body.is_empty() {
            return Err(Error::corruption(format!("{} bytes behind a page", body.len())));
        }
        Ok((keys, values))
    }
}
