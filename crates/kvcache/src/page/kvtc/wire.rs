//! Bytes of pages and of the codec itself.

use ndarray::Array2;
use tensorpress_tensor::{DType, Error, Result, ndarray};
use xxhash_rust::xxh3::xxh3_64;

use super::Kvtc;
use super::plane::{Plane, tables};
use crate::store::{floats, put_floats};

const PAGE: [u8; 4] = *b"\x89TPK";
const CODEC: [u8; 4] = *b"\x89TPL";
const VERSION: u32 = 1;
/// The largest count that is written.
const MOST: u64 = (1 << 28) - 1;

/// Appends a count: seven bits a byte, the lowest first.
pub(super) fn put_count(mut count: usize, to: &mut Vec<u8>) {
    while count > 0x7f {
        to.push(count as u8 | 0x80);
        count >>= 7;
    }
    to.push(count as u8);
}

/// Bytes that are read one after another.
pub(super) struct Read<'a>(&'a [u8]);

fn early() -> Error {
    Error::insufficient("the page ends early")
}

impl<'a> Read<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        self.0.split_off(..bytes).ok_or_else(early)
    }

    pub(super) fn count(&mut self) -> Result<usize> {
        let mut count = 0usize;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            count |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(count);
            }
        }
        Err(Error::corruption("a count of more than 28 bits"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(*self.take(4)?.first_chunk().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(*self.take(8)?.first_chunk().expect("eight bytes")))
    }
}

/// Magic, version and the sum of what follows; then that.
fn sealed(magic: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut all = magic.to_vec();
    all.extend(VERSION.to_le_bytes());
    all.extend(xxh3_64(body).to_le_bytes());
    all.extend(body);
    all
}

fn opened<'a>(magic: [u8; 4], what: &str, all: &'a [u8]) -> Result<Read<'a>> {
    let mut read = Read(all);
    if read.take(4)? != magic {
        return Err(Error::corruption(format!("this is no {what}")));
    }
    let version = read.u32()?;
    if version != VERSION {
        let message = format!("a {what} of version {version}; this build reads {VERSION}");
        return Err(Error::version(message));
    }
    if read.u64()? != xxh3_64(read.0) {
        return Err(Error::corruption(format!("the checksum of the {what} does not match")));
    }
    Ok(read)
}

/// A page of so many tokens.
pub(super) fn seal(tokens: usize, print: u64, streams: &[u8]) -> Vec<u8> {
    let mut body = print.to_le_bytes().to_vec();
    put_count(tokens, &mut body);
    body.extend(streams);
    sealed(PAGE, &body)
}

/// Tokens, the codec's print, and streams.
pub(super) fn open(page: &[u8]) -> Result<(usize, u64, Read<'_>)> {
    let mut read = opened(PAGE, "page", page)?;
    let print = read.u64()?;
    let tokens = read.count()?;
    if tokens > 0xffff {
        return Err(Error::corruption(format!("{tokens} tokens in a page")));
    }
    Ok((tokens, print, read))
}

impl Kvtc {
    /// The codec as bytes: what a reader of its pages needs.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for plane in &self.planes {
            for count in [plane.heads, plane.dim, plane.bits.len()] {
                put_count(count, &mut body);
            }
            body.extend(plane.bits.iter().map(|bits| *bits as u8));
            put_floats(DType::F32, &plane.mean, &mut body);
            put_floats(DType::F32, &plane.spread, &mut body);
            let basis: Vec<f32> = plane.basis.iter().copied().collect();
            put_floats(DType::F16, &basis, &mut body);
            for count in plane.counts.iter().flatten() {
                put_count((*count).min(MOST) as usize, &mut body);
            }
        }
        sealed(CODEC, &body)
    }

    /// The codec of [`Kvtc::to_bytes`].
    ///
    /// # Errors
    /// `InsufficientData`, `Corruption` or `Version`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut read = opened(CODEC, "codec of pages", bytes)?;
        let (keys, values) = (read_plane(&mut read)?, read_plane(&mut read)?);
        if !read.is_empty() {
            return Err(Error::corruption(format!("{} bytes behind a codec", read.len())));
        }
        Ok(Self::of([keys, values]))
    }
}

fn read_plane(read: &mut Read<'_>) -> Result<Plane> {
    let bad = |why: String| Error::corruption(format!("a codec of pages: {why}"));
    let (heads, dim, held) = (read.count()?, read.count()?, read.count()?);
    let width = heads.checked_mul(dim).filter(|width| (1..=0xffff).contains(width));
    let Some(width) = width.filter(|width| held <= *width) else {
        return Err(bad(format!("{held} components of {heads} heads of {dim} channels")));
    };
    let bits: Vec<u32> = read.take(held)?.iter().map(|bits| u32::from(*bits)).collect();
    if bits.iter().any(|bits| !(1..=8).contains(bits)) {
        return Err(bad("components of 0 or more than 8 bits".into()));
    }
    let mean = floats(DType::F32, read.take(4 * width)?);
    let spread = floats(DType::F32, read.take(4 * held)?);
    let basis = floats(DType::F16, read.take(2 * held * width)?);
    if mean.iter().chain(&spread).chain(&basis).any(|x| !x.is_finite()) {
        return Err(bad("numbers that are not finite".into()));
    }
    let basis = Array2::from_shape_vec((held, width), basis).expect("as many as were read");
    let mut count = |_| read.count().map(|count| count as u64);
    let mut of = |bits: &u32| (0..1usize << bits).map(&mut count).collect::<Result<Vec<u64>>>();
    let counts = bits.iter().map(&mut of).collect::<Result<Vec<_>>>()?;
    let tables = tables(&counts)?;
    Ok(Plane { heads, dim, mean, basis, spread, bits, counts, tables })
}
