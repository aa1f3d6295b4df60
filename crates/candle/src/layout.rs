//! Rows of tensors of candle, whatever their strides are.

use std::ops::Range;

use candle_core::{Layout, Result};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};

use crate::error::message;
use crate::workspace::claim;

/// Values that are computed with as f32.
pub(crate) trait Float: Copy {
    /// As many of them, one after the other.
    fn widen(from: &[Self], to: &mut [f32]);

    /// One.
    fn wide(self) -> f32;

    /// Some as they lie, if they are f32.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    /// So many values that `fill` writes as f32, into `buffer` where they are to be narrowed.
    fn collect(
        len: usize,
        buffer: &mut Vec<f32>,
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Vec<Self>>;
}

impl Float for f32 {
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn wide(self) -> f32 {
        self
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn collect(
        len: usize,
        _: &mut Vec<f32>,
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Vec<Self>> {
        let mut own = Vec::new();
        fill(claim(&mut own, len)?)?;
        Ok(own)
    }
}

macro_rules! halves {
    ($($t:ty),*) => {$(
        impl Float for $t {
            fn widen(from: &[Self], to: &mut [f32]) {
                from.convert_to_f32_slice(to);
            }

            fn wide(self) -> f32 {
                self.to_f32()
            }

            fn collect(
                len: usize,
                buffer: &mut Vec<f32>,
                fill: impl FnOnce(&mut [f32]) -> Result<()>,
            ) -> Result<Vec<Self>> {
                let wide = claim(buffer, len)?;
                fill(wide)?;
                Ok(Vec::from_f32_slice(wide))
            }
        }
    )*};
}
halves!(f16, bf16);

/// Rows and their width; a scalar has none.
pub(crate) fn rows(layout: &Layout) -> Result<Option<(usize, usize)>> {
    let Some((&width, leading)) = layout.dims().split_last() else { return Ok(None) };
    let count = leading.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
    let count = count.filter(|n| n.checked_mul(width.max(1)).is_some());
    let too_large = || message(format!("a tensor of shape {:?} is too large", layout.shape()));
    Ok(Some((count.ok_or_else(too_large)?, width)))
}

/// All values in order as f32: those of the tensor where they lie so, else a copy in `buffer`.
pub(crate) fn values<'a, T: Float>(
    data: &'a [T],
    layout: &Layout,
    buffer: &'a mut Vec<f32>,
) -> Result<&'a [f32]> {
    let Some((count, width)) = rows(layout)? else { return Ok(&[]) };
    if let Some((start, end)) = layout.contiguous_offsets() {
        let data = &data[start..end];
        if let Some(values) = T::as_f32(data) {
            return Ok(values);
        }
        let copy = claim(buffer, data.len())?;
        T::widen(data, copy);
        return Ok(copy);
    }
    let copy = claim(buffer, count * width)?;
    let (steps, step) = strides(layout);
    let mut to = copy.chunks_exact_mut(width.max(1));
    for_each_row(layout, steps, |start| {
        let Some(to) = to.next() else { return };
        if step == 1 {
            return T::widen(&data[start..start + width], to);
        }
        to.iter_mut().enumerate().for_each(|(i, to)| *to = data[start + i * step].wide());
    });
    Ok(copy)
}

/// Calls `f` with the place of every value, in order.
pub(crate) fn for_each_place(
    layout: &Layout,
    mut f: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    if let Some((start, end)) = layout.contiguous_offsets() {
        return Range { start, end }.try_for_each(f);
    }
    let (steps, step) = strides(layout);
    let width = layout.dims().last().copied().unwrap_or(0);
    let mut result = Ok(());
    for_each_row(layout, steps, |start| {
        if result.is_ok() {
            result = (0..width).try_for_each(|i| f(start + i * step));
        }
    });
    result
}

/// Steps between rows, and within them.
fn strides(layout: &Layout) -> (&[usize], usize) {
    layout.stride().split_last().map_or((&[], 1), |(step, steps)| (steps, *step))
}

/// Calls `f` with the place of the first value of every row, in order; of none if there are no values.
fn for_each_row(layout: &Layout, steps: &[usize], mut f: impl FnMut(usize)) {
    let dims = &layout.dims()[..steps.len()];
    if layout.dims().contains(&0) {
        return;
    }
    let (mut at, mut place) = (vec![0; dims.len()], layout.start_offset());
    loop {
        f(place);
        // The last axis that has a next one is moved on, those behind it begin again.
        let Some(axis) = (0..dims.len()).rev().find(|axis| at[*axis] + 1 < dims[*axis]) else {
            return;
        };
        for behind in axis + 1..dims.len() {
            place -= at[behind] * steps[behind];
            at[behind] = 0;
        }
        at[axis] += 1;
        place += steps[axis];
    }
}
