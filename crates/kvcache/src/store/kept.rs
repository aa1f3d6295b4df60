//! What comes into a layer: the next tokens, or some of them.

use ndarray::{ArrayView3, s};
use tensorpress_tensor::{Error, Result, ndarray};

use super::layer::check_finite;
use super::{KvStore, Layer};

/// Some of the next tokens: where they stand, and how many each stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<'a> {
    positions: &'a [usize],
    weights: &'a [f32],
}

/// Whether positions can be those of the next tokens.
fn check_positions(positions: &[usize], len: usize) -> Result<()> {
    let ascend = positions.windows(2).all(|pair| pair[0] < pair[1]);
    match positions.first() {
        Some(first) if *first < len => {
            let message = format!("position {first}: there are {len} tokens already");
            Err(Error::invalid(message))
        }
        _ if !ascend => Err(Error::invalid("positions: must ascend")),
        _ => Ok(()),
    }
}

impl Layer {
    /// Takes keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of some of the next tokens, which
    /// stand at `positions`, ascending from [`KvStore::len`] on; each weighs as `weights` tokens do. Those in between are
    /// as if they had come and been evicted; the length is then one more than the last position. There is no going back
    /// into what came so.
    ///
    /// # Errors
    /// As [`KvStore::append`]; `ShapeMismatch` unless there is a position and a weight a token; `InvalidArgument` for positions
    /// that do not ascend or are taken, or weights that are not positive and finite. The store is then as it was.
    pub fn append_at(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        let tokens = keys.dim().0;
        for (what, given) in [("positions", positions.len()), ("weights", weights.len())] {
            if given != tokens {
                return Err(Error::shape(format!("{given} {what} of {tokens} tokens")));
            }
        }
        check_positions(positions, self.len)?;
        if let Some(w) = weights.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
            return Err(Error::invalid(format!(
                "weights: {w}: allowed are positive, finite numbers"
            )));
        }
        let next = positions.iter().copied().eq(self.len..self.len + tokens);
        if next && weights.iter().all(|w| *w == 1.0) {
            return self.append(keys, values);
        }
        self.take(keys, values, Some(Kept { positions, weights }))?;
        self.settled = self.len;
        Ok(())
    }

    /// Takes the next tokens, or some of them.
    pub(super) fn take(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        kept: Option<Kept<'_>>,
    ) -> Result<()> {
        self.shape.check_keys(keys.dim())?;
        self.shape.check_values(values.dim())?;
        if keys.dim().0 != values.dim().0 {
            let (k, v) = (keys.dim().0, values.dim().0);
            return Err(Error::shape(format!("keys of {k} tokens, values of {v}")));
        }
        let last = kept.map(|kept| kept.positions.last().map_or(self.len, |last| last + 1));
        let len = last.unwrap_or(self.len + keys.dim().0);
        if len > u32::MAX as usize {
            return Err(Error::unsupported(format!("{len} tokens: at most {}", u32::MAX)));
        }
        for form in std::iter::once(&self.form).chain(&self.low) {
            check_finite(form, &keys, "keys")?;
            check_finite(form, &values, "values")?;
        }
        if self.values_in_keys && keys.slice(s![.., .., ..self.shape.value_dim]) != values {
            return Err(Error::invalid("values: allowed are the first channels of the keys"));
        }
        let turned = self.rope.as_ref().filter(|_| self.turned).map(|rope| {
            let mut plain = keys.to_owned();
            for (row, mut token) in plain.outer_iter_mut().enumerate() {
                let token = token.as_slice_mut().expect("contiguous");
                let position = kept.map_or(self.len + row, |kept| kept.positions[row]);
                rope.rotate_back(token, position);
            }
            plain
        });
        let keys = turned.as_ref().map_or(keys, |plain| plain.view());
        for (h, head) in self.heads.iter_mut().enumerate() {
            let (keys, values) = (keys.slice(s![.., h, ..]), values.slice(s![.., h, ..]));
            match kept {
                None => head.main.push(keys, values, self.len),
                Some(kept) => head.main.push_kept(keys, values, kept.positions, kept.weights),
            }
        }
        self.len = len;
        Ok(())
    }
}
