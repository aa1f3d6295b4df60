use half::{bf16, f16};
use tensorpress_tensor::ndarray::{ArrayView3, ArrayViewMut3, Axis};
use tensorpress_tensor::{DType, Element, Error, Result, kernels};

use super::grid::write_f32;

/// Keys or values to read, `[tokens, heads, channels]`: an array of f32, f16 or bf16 with any strides (`view.into()`), or an
/// engine's bytes.
#[derive(Debug, Clone, Copy)]
pub struct PageRows<'a>(Source<'a>);

/// Keys or values to write, as [`PageRows`].
#[derive(Debug)]
pub struct PageRowsMut<'a>(Target<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    F32(ArrayView3<'a, f32>),
    F16(ArrayView3<'a, f16>),
    Bf16(ArrayView3<'a, bf16>),
    Bytes(Raw, &'a [u8]),
}

#[derive(Debug)]
enum Target<'a> {
    F32(ArrayViewMut3<'a, f32>),
    F16(ArrayViewMut3<'a, f16>),
    Bf16(ArrayViewMut3<'a, bf16>),
    Bytes(Raw, &'a mut [u8]),
}

/// Where rows of channels lie in bytes.
#[derive(Debug, Clone, Copy)]
struct Raw {
    dtype: DType,
    shape: [usize; 3],
    /// Of tokens and heads, in numbers.
    strides: [usize; 2],
}

impl<'a> PageRows<'a> {
    /// Little-endian numbers of f32, f16 or bf16, one token after the other: of any alignment.
    ///
    /// # Errors
    /// `Unsupported` for another type; `ShapeMismatch` unless the bytes are those of the shape.
    pub fn bytes(dtype: DType, bytes: &'a [u8], shape: [usize; 3]) -> Result<Self> {
        Ok(Self(Source::Bytes(Raw::whole(dtype, bytes.len(), shape)?, bytes)))
    }

    /// [`PageRows::bytes`] where channels lie side by side, and tokens and heads these many numbers apart: so heads may come
    /// before tokens, or keys and values by turns.
    ///
    /// # Errors
    /// `Unsupported` for another type; `ShapeMismatch` if the bytes end before the last row does.
    pub fn strided_bytes(
        dtype: DType,
        bytes: &'a [u8],
        shape: [usize; 3],
        strides: [usize; 2],
    ) -> Result<Self> {
        Ok(Self(Source::Bytes(Raw::new(dtype, bytes.len(), shape, strides)?, bytes)))
    }

    pub(super) fn shape(&self) -> [usize; 3] {
        match &self.0 {
            Source::F32(view) => view.dim().into(),
            Source::F16(view) => view.dim().into(),
            Source::Bf16(view) => view.dim().into(),
            Source::Bytes(raw, _) => raw.shape,
        }
    }

    /// All heads of a token as f32.
    pub(super) fn read(&self, token: usize, out: &mut [f32]) {
        match &self.0 {
            Source::F32(view) => read(*view, token, out),
            Source::F16(view) => read(*view, token, out),
            Source::Bf16(view) => read(*view, token, out),
            Source::Bytes(raw, bytes) => {
                for (range, out) in raw.runs(token).zip(out.chunks_exact_mut(raw.run())) {
                    raw.dtype.read_f32(&bytes[range], out).expect("a float type");
                }
            }
        }
    }
}

impl<'a> PageRowsMut<'a> {
    /// As [`PageRows::bytes`].
    ///
    /// # Errors
    /// `Unsupported` for another type; `ShapeMismatch` unless the bytes are those of the shape.
    pub fn bytes(dtype: DType, bytes: &'a mut [u8], shape: [usize; 3]) -> Result<Self> {
        Ok(Self(Target::Bytes(Raw::whole(dtype, bytes.len(), shape)?, bytes)))
    }

    /// As [`PageRows::strided_bytes`]; what lies between the rows is left as it is.
    ///
    /// # Errors
    /// `Unsupported` for another type; `ShapeMismatch` if the bytes end before the last row does.
    pub fn strided_bytes(
        dtype: DType,
        bytes: &'a mut [u8],
        shape: [usize; 3],
        strides: [usize; 2],
    ) -> Result<Self> {
        Ok(Self(Target::Bytes(Raw::new(dtype, bytes.len(), shape, strides)?, bytes)))
    }

    pub(super) fn shape(&self) -> [usize; 3] {
        match &self.0 {
            Target::F32(view) => view.dim().into(),
            Target::F16(view) => view.dim().into(),
            Target::Bf16(view) => view.dim().into(),
            Target::Bytes(raw, _) => raw.shape,
        }
    }

    /// All heads of a token, rounded; `x` is at most what the type holds afterwards.
    pub(super) fn write(&mut self, token: usize, x: &mut [f32]) {
        let half = match &self.0 {
            Target::F16(_) => true,
            Target::Bytes(raw, _) => raw.dtype == DType::F16,
            _ => false,
        };
        if half {
            // What was rounded may lie beyond the largest f16 that went in; infinity would reach every score.
            let most = f16::MAX.to_f32();
            x.iter_mut().for_each(|x| *x = x.clamp(-most, most));
        }
        match &mut self.0 {
            Target::F32(view) => write(view, token, x),
            Target::F16(view) => write(view, token, x),
            Target::Bf16(view) => write(view, token, x),
            Target::Bytes(raw, bytes) => {
                for (range, x) in raw.runs(token).zip(x.chunks_exact(raw.run())) {
                    write_f32(raw.dtype, x, &mut bytes[range]);
                }
            }
        }
    }
}

impl Raw {
    fn whole(dtype: DType, len: usize, shape: [usize; 3]) -> Result<Self> {
        let [_, heads, dim] = shape;
        let raw = Self::new(dtype, len, shape, [heads.saturating_mul(dim), dim])?;
        let numbers = shape.into_iter().try_fold(1usize, |n, side| n.checked_mul(side));
        if numbers.and_then(|n| n.checked_mul(dtype.size())) != Some(len) {
            let name = dtype.name();
            return Err(Error::shape(format!("{len} bytes for {shape:?} numbers of {name}")));
        }
        Ok(raw)
    }

    fn new(dtype: DType, len: usize, shape: [usize; 3], strides: [usize; 2]) -> Result<Self> {
        if dtype.float_type().is_none() {
            let name = dtype.name();
            return Err(Error::unsupported(format!("rows of {name}: allowed are F32, F16, BF16")));
        }
        let [tokens, heads, dim] = shape;
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let end = || {
            let first = last(tokens, strides[0])?.checked_add(last(heads, strides[1])?)?;
            first.checked_add(dim)?.checked_mul(dtype.size())
        };
        let empty = shape.contains(&0);
        if !empty && end().is_none_or(|end| end > len) {
            let message = format!("{shape:?} numbers, strides {strides:?}, end behind {len} bytes");
            return Err(Error::shape(message));
        }
        Ok(Self { dtype, shape, strides })
    }

    /// Numbers that lie side by side: a head, or all of a token.
    fn run(&self) -> usize {
        let [_, heads, dim] = self.shape;
        if self.strides[1] == dim { heads * dim } else { dim }
    }

    /// The bytes of each run of a token.
    fn runs(&self, token: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (run, size, [by_token, by_head]) = (self.run(), self.dtype.size(), self.strides);
        let runs = if run == self.shape[2] { self.shape[1] } else { 1 };
        (0..runs).map(move |head| {
            let first = (token * by_token + head * by_head) * size;
            first..first + run * size
        })
    }
}

/// A number as an engine holds it.
trait Held: Element {
    fn read(from: &[Self], to: &mut [f32]);
    fn write(from: &[f32], to: &mut [Self]);
}

impl Held for f32 {
    fn read(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn write(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Held for f16 {
    fn read(from: &[Self], to: &mut [f32]) {
        kernels::f16_to_f32(from, to);
    }

    fn write(from: &[f32], to: &mut [Self]) {
        kernels::f32_to_f16(from, to);
    }
}

impl Held for bf16 {
    fn read(from: &[Self], to: &mut [f32]) {
        kernels::bf16_to_f32(from, to);
    }

    fn write(from: &[f32], to: &mut [Self]) {
        kernels::f32_to_bf16(from, to);
    }
}

fn read<T: Held>(view: ArrayView3<'_, T>, token: usize, out: &mut [f32]) {
    let token = view.index_axis(Axis(0), token);
    if let Some(all) = token.as_slice() {
        return T::read(all, out);
    }
    for (row, out) in token.rows().into_iter().zip(out.chunks_exact_mut(view.dim().2)) {
        match row.as_slice() {
            Some(row) => T::read(row, out),
            None => out.iter_mut().zip(row).for_each(|(out, v)| *out = v.to_f32()),
        }
    }
}

fn write<T: Held>(view: &mut ArrayViewMut3<'_, T>, token: usize, x: &[f32]) {
    let dim = view.dim().2;
    let mut token = view.index_axis_mut(Axis(0), token);
    if let Some(all) = token.as_slice_mut() {
        return T::write(x, all);
    }
    for (mut row, x) in token.rows_mut().into_iter().zip(x.chunks_exact(dim)) {
        match row.as_slice_mut() {
            Some(row) => T::write(x, row),
            None => row.iter_mut().zip(x).for_each(|(out, v)| {
                T::write(std::slice::from_ref(v), std::slice::from_mut(out));
            }),
        }
    }
}

macro_rules! from_views {
    ($($t:ty, $kind:ident;)*) => {$(
        impl<'a> From<ArrayView3<'a, $t>> for PageRows<'a> {
            fn from(view: ArrayView3<'a, $t>) -> Self {
                Self(Source::$kind(view))
            }
        }

        impl<'a> From<ArrayViewMut3<'a, $t>> for PageRowsMut<'a> {
            fn from(view: ArrayViewMut3<'a, $t>) -> Self {
                Self(Target::$kind(view))
            }
        }
    )*};
}
from_views! {
    f32, F32;
    f16, F16;
    bf16, Bf16;
}
