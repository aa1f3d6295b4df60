//! What only the caller knows: gradients, and what is made of them.

use std::fmt;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Axis};

use super::{Calibration, gram};
use crate::error::{Context, Error, Result};
use crate::linalg::Par;
use crate::method::Target;
use crate::node::{Channels, Map, Side, map};

/// A quantity of every weight of a matrix that a caller supplies, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Supply {
    name: &'static str,
    order: Order,
    groups: usize,
}

/// How a quantity changes with the weights it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Order {
    /// As a first derivative by the weights: with W = A T it goes through a map as D Tᵀ.
    First,
    /// As a diagonal of second derivatives or of squares: through scales and permutations only, with the scales' squares.
    Second,
    /// Of the matrix's outputs, not of its weights: G = E[g gᵀ] `[out, out]` of some vector g that changes with the
    /// outputs as a first derivative, or its diagonal `[1, out]`. Maps on inputs leave it as it is; with W = Tᵀ A it
    /// becomes T G Tᵀ, a diagonal through scales and permutations only.
    Outputs,
    /// Of the matrix's inputs, one for each group of its rows ([`Supply::rows`]): symmetric matrices `[in, in]`, one above
    /// the other, each of which goes through a map on inputs as a Gram matrix does: with W = A T it becomes T H Tᵀ. Maps on
    /// outputs change what the groups are of: what is behind them has none.
    Inputs,
}

impl Supply {
    /// dL/dW `[out, in]`, of the loss the caller has in mind, averaged over the calibration.
    pub const GRADIENT: Self = Self::new("gradient", Order::First);
    /// The diagonal of the (empirical) Fisher matrix `[out, in]`: the mean of squared gradients.
    pub const FISHER: Self = Self::new("fisher", Order::Second);
    /// E[g gᵀ] `[out, out]` of the gradients g of a token's loss by the matrix's outputs, or its diagonal `[1, out]`, in
    /// nats a token: the mean over tokens, with labels drawn from the model itself (Fisher), so that half the sum of
    /// gᵀ E x over tokens, squared, is the divergence that an error E of the weights makes to second order.
    pub const OUTPUT_FISHER: Self = Self::new("output_fisher", Order::Outputs);
    /// The diagonal of [`Supply::OUTPUT_FISHER`] `[1, out]`, for methods that want no more of it.
    pub const OUTPUT_FISHER_DIAGONAL: Self = Self::new("output_fisher_diagonal", Order::Outputs);

    /// For each of so many groups of consecutive rows the weighted mean of x xᵀ over tokens, `[groups in, in]`: a token counts
    /// by the mean square of the gradients of its loss by the group's outputs, with labels as for
    /// [`Supply::OUTPUT_FISHER`]. All 0 for a group that nothing depends on.
    #[must_use]
    pub const fn guided_gram(groups: usize) -> Self {
        Self { name: "guided_gram", order: Order::Inputs, groups }
    }

    /// A quantity of one's own, of one group of rows: all of them.
    #[must_use]
    pub const fn new(name: &'static str, order: Order) -> Self {
        Self { name, order, groups: 1 }
    }

    /// The groups of rows that a matrix of `out` rows is cut into, as even as can be: of one row each, if there are fewer
    /// rows than groups.
    pub fn rows(self, out: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
        let groups = self.groups.clamp(1, out.max(1));
        (0..groups).map(move |group| group * out / groups..(group + 1) * out / groups)
    }

    /// Groups of rows that there is one of it for.
    #[must_use]
    pub const fn groups(self) -> usize {
        self.groups
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// A caller that knows something of every weight: handed to [`Calibration::with_supplied`].
///
/// Asked for one matrix at a time, when a method wants it, so that nothing needs to be held for a whole model.
///
/// ```
/// # use std::{hash::Hasher, sync::Arc};
/// # use tensorpress_tensor::stats::{Calibration, Supplied, Supply};
/// # use tensorpress_tensor::{Result, Target, linalg::Par, ndarray::{Array2, array}};
/// #[derive(Debug)]
/// struct Ones;
///
/// impl Supplied for Ones {
///     fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
///         Ok((supply == Supply::GRADIENT).then(|| Array2::ones((1, 2))))
///     }
///     fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
///         hash.write(b"ones");
///         Ok(())
///     }
/// }
/// let (weight, calibration) = (array![[0.5, 1.0]], Calibration::none(2).with_supplied(Arc::new(Ones)));
/// let target = Target::new("w", weight.view());
/// assert_eq!(calibration.supplied(Supply::GRADIENT, &target, Par::Seq)?, array![[1.0, 1.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Supplied: fmt::Debug + Send + Sync {
    /// The quantity of the matrix with this name, `[out, in]` (of [`Order::Outputs`]: `[out, out]` or `[1, out]`; of
    /// [`Order::Inputs`]: `[groups in, in]`); `None` if the caller has none.
    ///
    /// # Errors
    /// Any the caller has.
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>>;

    /// Writes into `hash` all that tells what is supplied here from anything else: the names and bytes of what is held,
    /// or what it is computed from. Work that was interrupted goes on only with what hashes alike, so nothing may go in
    /// that differs from run to run, such as addresses.
    ///
    /// # Errors
    /// Any the caller has.
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()>;
}

/// A supplier, and the maps that stand before the matrices that are compressed now.
#[derive(Debug, Clone, Default)]
pub(super) struct Supplies {
    by: Option<Arc<dyn Supplied>>,
    maps: Vec<Before>,
}

/// A map, and the matrix it stands at; all, if it is on the inputs.
#[derive(Debug, Clone)]
struct Before {
    map: Arc<dyn Map>,
    side: Side,
    tensor: Option<String>,
}

impl Supplies {
    pub(super) fn through(&self, map: Arc<dyn Map>, side: Side, tensor: Option<&str>) -> Self {
        let mut supplies = self.clone();
        if supplies.by.is_some() {
            supplies.maps.push(Before { map, side, tensor: tensor.map(str::to_owned) });
        }
        supplies
    }
}

impl Calibration {
    /// The same with a caller's gradients or other quantities of the weights.
    #[must_use]
    pub fn with_supplied(mut self, by: Arc<dyn Supplied>) -> Self {
        self.supplies = Supplies { by: Some(by), maps: Vec::new() };
        self
    }

    /// What the caller supplies of a matrix, `[out, in]` as the matrix is now: behind the maps of transforms. Of
    /// [`Order::Outputs`] `[out, out]`, symmetric, or `[1, out]`; of [`Order::Inputs`] `[groups in, in]`.
    ///
    /// # Errors
    /// `MissingCalibration` if the caller has none, `ShapeMismatch`, `Numerical` if an entry is not finite or the
    /// quantity does not go through a map; those of the caller. All name the tensor.
    pub fn supplied(&self, supply: Supply, target: &Target<'_>, par: Par) -> Result<Array2<f32>> {
        self.supplied_of(supply, target, par).in_tensor(target.name)
    }

    fn supplied_of(&self, supply: Supply, target: &Target<'_>, par: Par) -> Result<Array2<f32>> {
        let what = supply.name;
        let by = self.supplies.by.as_ref();
        let found = by.map(|by| by.of_weights(supply, target.name)).transpose()?.flatten();
        let mut value =
            found.ok_or_else(|| Error::missing_calibration(format!("no {what} was supplied")))?;
        if let Some(((i, j), v)) = value.indexed_iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::numerical(format!("the {what}'s entry [{i}, {j}] is {v}")));
        }
        let concerns =
            |before: &&Before| before.tensor.as_ref().is_none_or(|tensor| tensor == target.name);
        for Before { map, side, .. } in self.supplies.maps.iter().filter(concerns) {
            value = through(supply, value, &**map, *side, par)?;
        }
        let (rows, cols) = target.weight.dim();
        let fits = match supply.order {
            Order::Outputs => value.ncols() == rows && [1, rows].contains(&value.nrows()),
            Order::Inputs => value.dim() == (supply.rows(rows).len() * cols, cols),
            Order::First | Order::Second => value.dim() == (rows, cols),
        };
        if !fits {
            let message =
                format!("the {what} is {:?}, the matrix {:?}", value.dim(), target.weight.dim());
            return Err(Error::shape(message));
        }
        Ok(value)
    }
}

/// The quantity of A with W = A T (inputs) or W = Tᵀ A (outputs).
fn through(
    supply: Supply,
    value: Array2<f32>,
    map: &dyn Map,
    side: Side,
    par: Par,
) -> Result<Array2<f32>> {
    let what = supply.name;
    let outputs = supply.order == Order::Outputs;
    match (supply.order, side) {
        (Order::Outputs, Side::In) => return Ok(value),
        (Order::Inputs, Side::In) => return grams_through(supply, &value, map, par),
        (Order::Inputs, Side::Out) => {
            let message = format!("the {what} does not go through a map on outputs");
            return Err(Error::numerical(message));
        }
        _ => {}
    }
    // What is of outputs has them as columns.
    let axis = Axis(if outputs || side == Side::In { 1 } else { 0 });
    if value.len_of(axis) != map.outer() {
        let (dim, outer) = (value.dim(), map.outer());
        return Err(Error::shape(format!("{what} {dim:?} before a map of {outer}")));
    }
    let transposed = |value: &Array2<f32>, side| {
        map::on_side(value.view(), side, map.inner(), par, |x, y| map.apply_transposed(x, y))
    };
    let matrix = outputs && value.is_square() && value.nrows() > 1;
    match (supply.order, map.channels()) {
        (Order::First, _) => Ok(transposed(&value, side)),
        (Order::Outputs, _) if matrix => {
            let mut both = transposed(&transposed(&value, Side::In), Side::Out);
            crate::linalg::mirror_lower(both.view_mut());
            Ok(both)
        }
        (_, Channels::Mixed) => {
            let message = format!("the {what} does not go through a map that mixes channels");
            Err(Error::numerical(message))
        }
        (_, Channels::Scaled(divisors)) => {
            let mut value = value;
            for (mut lane, d) in value.axis_iter_mut(axis).zip(divisors) {
                lane.iter_mut().for_each(|v| *v /= d * d);
            }
            Ok(value)
        }
        (_, Channels::Moved(index)) => {
            let index: Vec<usize> = index.iter().map(|i| *i as usize).collect();
            Ok(value.select(axis, &index))
        }
    }
}

/// Each of the symmetric matrices `[in, in]` that stand one above the other as it is behind a map on inputs.
fn grams_through(
    supply: Supply,
    stack: &Array2<f32>,
    map: &dyn Map,
    par: Par,
) -> Result<Array2<f32>> {
    let (n, inner) = (stack.ncols(), map.inner());
    if n != map.outer() || !stack.nrows().is_multiple_of(n.max(1)) {
        let (dim, outer, what) = (stack.dim(), map.outer(), supply.name);
        return Err(Error::shape(format!("{what} {dim:?} before a map of {outer}")));
    }
    let matrices = stack.nrows() / n.max(1);
    let mut through = Array2::zeros((matrices * inner, inner));
    let places = through.axis_chunks_iter_mut(Axis(0), inner.max(1));
    for (matrix, mut place) in stack.axis_chunks_iter(Axis(0), n.max(1)).zip(places) {
        place.assign(&gram::through(matrix, map, par));
    }
    Ok(through)
}
