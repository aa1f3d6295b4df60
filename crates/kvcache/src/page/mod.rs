//! Pages of keys and values between tiers of memory (GPU, host, disk): every page of a codec takes the same, declared bytes.
//!
//! An engine that keeps its cache in pages hands one over as it lies there and gets bytes, and the other way round. What a page
//! costs is known before it is made ([`PageConfig::page_bytes`]), so that tiers can be laid out; what it says of itself
//! (version, parameters, checksum) keeps a page of another codec, or a damaged one, from passing for keys. There is no global
//! state: a [`PageCodec`] is shared between threads, each of which has a [`PageScratch`].
//!
//! `docs/methods/page.md` states the bytes.

mod config;
mod grid;
mod kvtc;
mod rotate;
mod rows;
mod scratch;
mod wire;

use tensorpress_tensor::{DType, Error, Result, kernels};

use grid::{Plane, Row};
pub(crate) use rotate::Rotation;
use scratch::LARGEST_INPUT;
use wire::{HEAD, SUM};

pub use config::PageConfig;
pub use kvtc::{Kvtc, KvtcConfig};
pub use rows::{PageRows, PageRowsMut};
pub use scratch::PageScratch;

/// Encodes and decodes pages: rotates each head by signs and a Hadamard matrix, so that no channel stands out, and rounds groups
/// of channels to integers.
///
/// Keys and values are `[tokens, heads, channels]`: arrays of f32, f16 or bf16 with any strides, or an engine's bytes
/// ([`PageRows`]). The same input gives the same bytes, and a page the same numbers, on every instruction set. Nothing is
/// allocated after the first page of a scratch.
///
/// ```
/// use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
/// use tensorpress_tensor::half::f16;
/// use tensorpress_tensor::ndarray::Array3;
/// use tensorpress_tensor::DType;
///
/// // 16 tokens of 2 heads of 64 channels: keys of 5 bits, values of 4.
/// let codec = PageCodec::new(PageConfig::new(16, 2, 64).with_bits(5, 4))?;
/// assert_eq!(codec.page_bytes(), 56 + 16 * 2 * ((64 * 5 + 64 * 4) / 8 + 2 * 4));
/// assert!(codec.ratio(DType::F16) > 3.1);
///
/// let keys = Array3::from_shape_fn((16, 2, 64), |(t, h, c)| f16::from_f32(((t * 7 + h + c) as f32).sin()));
/// let (mut page, mut scratch) = (vec![0; codec.page_bytes()], PageScratch::default());
/// codec.encode(keys.view(), keys.view(), &mut page, &mut scratch)?;
///
/// let [mut k, mut v] = [(); 2].map(|()| Array3::from_elem((16, 2, 64), f16::ZERO));
/// let held = codec.decode(&page, k.view_mut(), v.view_mut(), &mut scratch)?;
/// assert_eq!(held, 16);
/// assert!(k.iter().zip(&keys).all(|(a, b)| (a.to_f32() - b.to_f32()).abs() < 0.25));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PageCodec {
    config: PageConfig,
    bytes: usize,
    /// Of keys and of values.
    planes: [Plane; 2],
    rotations: Option<[Rotation; 2]>,
}

impl Default for PageCodec {
    fn default() -> Self {
        Self::new(PageConfig::default()).expect("the default is allowed")
    }
}

const NAMES: [&str; 2] = ["keys", "values"];

impl PageCodec {
    /// A codec of this configuration: draws the signs.
    ///
    /// # Errors
    /// Those of [`PageConfig::page_bytes`].
    pub fn new(config: PageConfig) -> Result<Self> {
        let (bytes, planes) = (config.page_bytes()?, config.planes());
        let rotations = config.rotate.then(|| {
            let [keys, values] = planes;
            let words = (keys.heads * keys.dim.div_ceil(64)) as u64;
            [
                Rotation::new(keys.heads, keys.dim, config.seed, 0),
                Rotation::new(values.heads, values.dim, config.seed, words),
            ]
        });
        Ok(Self { config, bytes, planes, rotations })
    }

    /// What it was made of.
    #[must_use]
    pub fn config(&self) -> &PageConfig {
        &self.config
    }

    /// Bytes of every page: [`PageConfig::page_bytes`].
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.bytes
    }

    /// How many times larger keys and values of a full page are in this type.
    #[must_use]
    pub fn ratio(&self, dtype: DType) -> f64 {
        self.config.raw_bytes(dtype) as f64 / self.bytes as f64
    }

    /// Writes a page of as many tokens as `keys` `[tokens, kv_heads, head_dim]` and `values` `[tokens, kv_heads, value_dim]`
    /// have: a full page or fewer, or none.
    ///
    /// # Errors
    /// `ShapeMismatch` if a shape or the length of `page` is not the codec's, or the tokens are more than a page holds.
    /// `Numerical` for NaN, infinity, numbers beyond 2^96 or beyond what the type of the scales takes, naming keys or values,
    /// token and head; then `page` holds nothing that decodes.
    pub fn encode<'a>(
        &self,
        keys: impl Into<PageRows<'a>>,
        values: impl Into<PageRows<'a>>,
        page: &mut [u8],
        scratch: &mut PageScratch,
    ) -> Result<()> {
        let rows = [keys.into(), values.into()];
        let held = self.check_shapes([rows[0].shape(), rows[1].shape()])?;
        if held > self.config.tokens {
            let tokens = self.config.tokens;
            return Err(Error::shape(format!("{held} tokens for a page of {tokens}")));
        }
        if page.len() != self.bytes {
            let (len, bytes) = (page.len(), self.bytes);
            return Err(Error::shape(format!("{len} bytes for a page of {bytes}")));
        }
        page.fill(0);
        let mut body = &mut page[HEAD..self.bytes - SUM];
        for (i, plane) in self.planes.iter().enumerate() {
            let parts = plane.parts();
            let [codes, scales, mins] = parts.map(|bytes| {
                body.split_off_mut(..bytes * self.config.tokens).expect("the page is that long")
            });
            if plane.width() == 0 {
                continue;
            }
            for token in 0..held {
                let row = Row {
                    codes: part_mut(codes, parts[0], token),
                    scales: part_mut(scales, parts[1], token),
                    mins: part_mut(mins, parts[2], token),
                };
                let buffers = scratch.room(plane);
                rows[i].read(token, buffers.x);
                check_numbers(buffers.x, plane.dim).map_err(|e| {
                    Error::numerical(format!("token {token}, {e}")).in_tensor(NAMES[i])
                })?;
                if let Some(rotations) = &self.rotations {
                    rotations[i].apply(buffers.x);
                }
                plane.encode(buffers, row).map_err(|head| {
                    let scales = plane.scales.name();
                    let message =
                        format!("token {token}, head {head}: too large for {scales} scales");
                    Error::numerical(message).in_tensor(NAMES[i])
                })?;
            }
        }
        wire::seal(&self.config, held, page);
        Ok(())
    }

    /// Reads a page into the first tokens of `keys` and `values`, and returns how many it holds; other tokens are left as they
    /// are. The outputs may be of another type than what was encoded; f16 takes what is beyond it as its largest number.
    ///
    /// # Errors
    /// `InsufficientData` for a page that is cut, `Corruption` for one that is damaged, `Version` for one of a later version,
    /// `InvalidArgument` for one of another configuration. `ShapeMismatch` if a shape is not the codec's, or has fewer tokens
    /// than the page. All of this is checked before anything is written. `Corruption` also for scales that no encoder writes,
    /// under a checksum that fits; what stood before them is written then.
    pub fn decode<'a>(
        &self,
        page: &[u8],
        keys: impl Into<PageRowsMut<'a>>,
        values: impl Into<PageRowsMut<'a>>,
        scratch: &mut PageScratch,
    ) -> Result<usize> {
        let mut rows = [keys.into(), values.into()];
        let held = self.held(page)?;
        let room = self.check_shapes([rows[0].shape(), rows[1].shape()])?;
        if held > room {
            return Err(Error::shape(format!("room for {room} tokens of a page of {held}")));
        }
        let mut body = &page[HEAD..self.bytes - SUM];
        for (i, plane) in self.planes.iter().enumerate() {
            let parts = plane.parts();
            let [codes, scales, mins] = parts.map(|bytes| {
                body.split_off(..bytes * self.config.tokens).expect("the page is that long")
            });
            if plane.width() == 0 {
                continue;
            }
            for token in 0..held {
                let row = Row {
                    codes: part(codes, parts[0], token),
                    scales: part(scales, parts[1], token),
                    mins: part(mins, parts[2], token),
                };
                plane.decode(row, scratch.room(plane)).map_err(|head| {
                    let message = format!("token {token}, head {head}: no scale of a page");
                    Error::corruption(message).in_tensor(NAMES[i])
                })?;
                let x = scratch.room(plane).x;
                if let Some(rotations) = &self.rotations {
                    rotations[i].invert(x);
                }
                rows[i].write(token, x);
            }
        }
        Ok(held)
    }

    /// How many tokens a page of this codec holds, once it is seen to be whole.
    ///
    /// # Errors
    /// `InsufficientData`, `Corruption`, `Version` or `InvalidArgument`, as [`PageCodec::decode`].
    pub fn held(&self, page: &[u8]) -> Result<usize> {
        let (config, held) = wire::open(page)?;
        if let Some(difference) = self.config.difference(&config) {
            return Err(Error::invalid(format!("a page of another codec: {difference}")));
        }
        if page.len() != self.bytes {
            let (len, bytes) = (page.len(), self.bytes);
            return Err(Error::corruption(format!("a page of {bytes} bytes in {len}")));
        }
        Ok(held)
    }

    /// The number of tokens, where both shapes are the codec's.
    fn check_shapes(&self, shapes: [[usize; 3]; 2]) -> Result<usize> {
        let tokens = shapes[0][0];
        for ((shape, plane), name) in shapes.into_iter().zip(&self.planes).zip(NAMES) {
            let expected = [tokens, plane.heads, plane.dim];
            if shape != expected {
                let message = format!("{shape:?} where the page has {expected:?}");
                return Err(Error::shape(message).in_tensor(name));
            }
        }
        Ok(tokens)
    }
}

fn part(all: &[u8], bytes: usize, token: usize) -> &[u8] {
    &all[token * bytes..][..bytes]
}

fn part_mut(all: &mut [u8], bytes: usize, token: usize) -> &mut [u8] {
    &mut all[token * bytes..][..bytes]
}

/// The first number of a token that no page holds, in words.
fn check_numbers(x: &[f32], dim: usize) -> Result<(), String> {
    // Two quick looks; the slow one only where there is something to name.
    if !kernels::has_non_finite(x) && kernels::abs_max(x) <= LARGEST_INPUT {
        return Ok(());
    }
    let fits = |x: &f32| x.abs() <= LARGEST_INPUT;
    let at = x.iter().position(|x| !fits(x)).expect("one was seen");
    let (head, channel, value) = (at / dim, at % dim, x[at]);
    Err(format!("head {head}, channel {channel} is {value}: allowed are numbers up to 2^96"))
}
