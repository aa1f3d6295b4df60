//! What of a block goes as a whole: channels, and heads with all that belongs to them.

use std::ops::Range;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, concatenate};
use tensorpress_tensor::rewrite::{BlockLayout, BlockView, LinearSpec, ModelLayout, Role, States};
use tensorpress_tensor::stats::{Calibration, Statistic, Supply};
use tensorpress_tensor::{Context, DType, Error, ErrorKind, Result, Target, Tensor, Usable};

/// A part of a block that is made of units.
///
/// A unit is some columns of the matrix that reads it, and some rows of each matrix that writes it; both are consecutive,
/// and of as many for every unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Module {
    /// Heads: one unit for each key and value head, with all the query heads of its group.
    Attention,
    /// Channels of the feed-forward network.
    Channels,
}

impl Module {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Attention, Self::Channels];

    /// Its name in judgements and decisions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Channels => "channels",
        }
    }

    /// The matrix whose columns are units.
    #[must_use]
    pub fn reader(self) -> Role {
        match self {
            Self::Attention => Role::O,
            Self::Channels => Role::Down,
        }
    }

    /// The matrices whose rows are units.
    #[must_use]
    pub fn writers(self) -> &'static [Role] {
        match self {
            Self::Attention => &[Role::Q, Role::K, Role::V],
            Self::Channels => &[Role::Gate, Role::Up],
        }
    }

    /// How many units a block has.
    #[must_use]
    pub fn units(self, layout: &BlockLayout) -> usize {
        match self {
            Self::Attention => layout.shape.kv_heads,
            Self::Channels => layout.shape.intermediate,
        }
    }

    /// Weights of the block that lie in its units.
    #[must_use]
    pub fn weights(self, layout: &BlockLayout) -> usize {
        let of_it =
            |spec: &&LinearSpec| spec.role == self.reader() || self.writers().contains(&spec.role);
        layout.linears.iter().filter(of_it).map(|spec| spec.shape[0] * spec.shape[1]).sum()
    }
}

/// A module of a block, as scores and repairs see it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Part<'a> {
    /// Which.
    pub module: Module,
    /// How many units there are.
    pub units: usize,
    /// Columns of the reader that a unit is.
    pub width: usize,
    /// The share of the units that is to go, on average over the blocks; 0 where that is not known.
    pub share: f64,
    /// What is added to the diagonal of matrices that are solved with, as a fraction of its mean.
    pub damp: f64,
    block: BlockView<'a>,
    reader: &'a LinearSpec,
}

impl<'a> Part<'a> {
    /// A module of a block.
    ///
    /// # Errors
    /// `Unsupported` if the block has no such matrices.
    pub fn new(module: Module, block: BlockView<'a>) -> Result<Self> {
        let layout = block.layout();
        let role = module.reader();
        let missing = || {
            let block = layout.block;
            Error::unsupported(format!(
                "block {block} has no matrix {role:?} whose inputs are judged"
            ))
        };
        let reader = layout.linear(role).ok_or_else(missing)?;
        let units = module.units(layout);
        let width = reader.shape[1] / units.max(1);
        if units == 0 || units * width != reader.shape[1] {
            let message = format!("{units} units in {} inputs", reader.shape[1]);
            return Err(Error::shape(message).in_tensor(&reader.name));
        }
        Ok(Self { module, units, width, share: 0.0, damp: 0.01, block, reader })
    }

    /// Sets the share of units that is to go.
    #[must_use]
    pub fn with_share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Sets the damping.
    #[must_use]
    pub fn with_damp(mut self, damp: f64) -> Self {
        self.damp = damp;
        self
    }

    /// The stored type of a tensor.
    pub(super) fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.block.tensor(name)?.dtype())
    }

    /// The matrix whose columns are units.
    #[must_use]
    pub fn reader(&self) -> &'a LinearSpec {
        self.reader
    }

    /// Its weights `[out, units * width]`.
    ///
    /// # Errors
    /// `InsufficientData`, `Unsupported` for a tensor that is missing or is of no floats; `Numerical` for a weight that is
    /// not finite.
    pub fn weight(&self) -> Result<Array2<f32>> {
        self.finite(self.reader)
    }

    /// The matrices whose rows are units, as far as the block has them; and their weights `[units * rows, in]`.
    ///
    /// # Errors
    /// As [`Part::weight`].
    pub fn writers(&self) -> Result<Vec<(&'a LinearSpec, Array2<f32>)>> {
        let specs =
            self.module.writers().iter().filter_map(|role| self.block.layout().linear(*role));
        specs.map(|spec| Ok((spec, self.finite(spec)?))).collect()
    }

    /// A bias of one of the block's matrices, if it is stored.
    pub(super) fn bias(&self, spec: &LinearSpec) -> Option<Vec<f32>> {
        self.block.matrix(&spec.bias).ok().map(|bias| bias.into_raw_vec_and_offset().0)
    }

    fn finite(&self, spec: &LinearSpec) -> Result<Array2<f32>> {
        let weight = self.block.matrix(&spec.name)?;
        match weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            None => Ok(weight),
            Some(((row, col), w)) => {
                let message = format!("weight [{row}, {col}] is {w}");
                Err(Error::numerical(message).in_tensor(&spec.name))
            }
        }
    }

    /// All that a unit is made of, `[units, features]`: the rows of its writers, then the columns of its reader.
    ///
    /// # Errors
    /// As [`Part::weight`].
    pub fn features(&self) -> Result<Array2<f32>> {
        let mut parts: Vec<Array2<f32>> = Vec::new();
        for (_, weight) in self.writers()? {
            parts.push(by_unit(weight.view(), self.units));
        }
        parts.push(by_unit(self.weight()?.t(), self.units));
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        concatenate(Axis(1), &views).map_err(|e| Error::shape(e.to_string()))
    }

    /// Statistics of the reader's input.
    #[must_use]
    pub fn calibration(&self) -> Option<&'a Calibration> {
        self.block.input(self.reader.input)
    }

    /// One of the statistics of the reader's input, if it can be used.
    ///
    /// # Errors
    /// `MissingCalibration` if it was not collected.
    pub fn statistic<S: Statistic>(&self) -> Result<Usable<&'a S::Value>> {
        match self.calibration().filter(|seen| seen.tokens() > 0) {
            None => Ok(Usable::no("saw no calibration token")),
            Some(seen) => seen.usable::<S>().in_tensor(&self.reader.name),
        }
    }

    /// A quantity of one of the block's matrices that the caller supplies, if he does.
    ///
    /// # Errors
    /// `ShapeMismatch`; those of the caller.
    pub fn supplied(
        &self,
        supply: Supply,
        spec: &LinearSpec,
        weight: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<Usable<Array2<f32>>> {
        let none = || Ok(Usable::no(format!("no {} was supplied", supply.name())));
        let Some(seen) = self.calibration() else { return none() };
        match seen.supplied(supply, &Target::new(&spec.name, weight), par) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => none(),
            found => Usable::of(found),
        }
    }

    /// Hidden states around the block.
    #[must_use]
    pub fn states(&self) -> Option<States<'a>> {
        self.block.states()
    }

    /// Columns of the reader that are unit `unit`.
    #[must_use]
    pub fn columns(&self, unit: usize) -> Range<usize> {
        unit * self.width..(unit + 1) * self.width
    }

    /// Columns of the reader that are these units.
    pub(super) fn all_columns(&self, units: &[usize]) -> Vec<usize> {
        units.iter().flat_map(|unit| self.columns(*unit)).collect()
    }
}

/// Rows `[units * rows, in]` as `[units, rows * in]`.
pub(super) fn by_unit(rows: ArrayView2<'_, f32>, units: usize) -> Array2<f32> {
    let wide = rows.len() / units.max(1);
    let values: Vec<f32> = rows.iter().copied().collect();
    Array2::from_shape_vec((units, wide), values).expect("as many rows a unit")
}

/// The config of the result has a key for the width of a head, so that there may be any number of heads.
pub(crate) fn can_lose_heads(model: &ModelLayout) -> bool {
    model.says.head_dim
}
