//! What a micro-expert is worth.

use std::fmt::Debug;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::rewrite::{BlockView, LinearSpec, Role};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{ChannelSeen, Needs, Supply};
use tensorpress_tensor::{Error, ErrorKind, Result, Target, Usable};

/// A score for every micro-expert of an expert; the least go first.
pub trait MicroScore: Debug + Send + Sync {
    /// What only a caller, or a backward pass, knows. Default: nothing.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// It looks at what experts made of their tokens. Default: yes.
    fn needs_experts(&self) -> bool {
        true
    }

    /// The matrices of an expert, by role, of which it asks what only a caller knows. Default: all.
    fn asks_of(&self, role: Role) -> bool {
        let _ = role;
        true
    }

    /// Its parameters, beside the fraction; none by default.
    ///
    /// # Errors
    /// Those of the keys.
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let _ = keys;
        Ok(())
    }

    /// Checks its parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// One score a micro-expert, 0 and more, if what it is made of can be used.
    ///
    /// # Errors
    /// `Numerical` for weights that are not finite, naming the tensor; those of reading them and of the caller.
    fn scores(&self, expert: &OneExpert<'_>) -> Result<Usable<Vec<f64>>>;
}

/// An expert of a block, its weights, and what was seen of it.
#[derive(Debug, Clone, Copy)]
pub struct OneExpert<'a> {
    block: BlockView<'a>,
    index: usize,
    down: &'a LinearSpec,
}

impl<'a> OneExpert<'a> {
    /// An expert of a block.
    ///
    /// # Errors
    /// `Unsupported` if it has no matrix out of its channels.
    pub fn new(block: BlockView<'a>, index: usize) -> Result<Self> {
        let down = block.layout().of_expert(index).find(|spec| spec.role == Role::Down);
        let missing = || {
            let number = block.layout().block;
            Error::unsupported(format!("expert {index} of block {number} has no matrix Down"))
        };
        Ok(Self { block, index, down: down.ok_or_else(missing)? })
    }

    /// How many micro-experts it has.
    #[must_use]
    pub fn width(&self) -> usize {
        self.down.shape[1]
    }

    /// The matrix whose columns are micro-experts.
    #[must_use]
    pub fn down(&self) -> &'a LinearSpec {
        self.down
    }

    /// All its matrices.
    pub fn linears(&self) -> impl Iterator<Item = &'a LinearSpec> + use<'a> {
        self.block.layout().of_expert(self.index)
    }

    /// Weights `[out, in]` of one of them.
    ///
    /// # Errors
    /// `Numerical` for one that is not finite, naming the tensor; those of reading them.
    pub fn weight(&self, spec: &LinearSpec) -> Result<Array2<f32>> {
        let weight = self.block.weight(spec)?;
        match weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            None => Ok(weight),
            Some(((row, col), w)) => {
                let message = format!("weight [{row}, {col}] is {w}");
                Err(Error::numerical(message).in_tensor(&spec.name))
            }
        }
    }

    /// Adds `f` of every entry of a matrix to the sum of its micro-expert.
    pub fn add_up(&self, spec: &LinearSpec, of: &Array2<f64>, sums: &mut [f64]) {
        let experts = self.block.layout().experts.as_ref();
        let lines = of.sum_axis(Axis(if spec.role == Role::Down { 0 } else { 1 }));
        for (channel, sum) in sums.iter_mut().enumerate() {
            let places = experts.map(|experts| experts.places(spec, &[channel]));
            *sum += places.into_iter().flatten().map(|place| lines[place]).sum::<f64>();
        }
    }

    /// Tokens that went to it, and what its channels did with them.
    pub fn seen(&self) -> Usable<(u64, &'a [ChannelSeen])> {
        let Some(activity) = self.block.experts().filter(|activity| activity.is_usable()) else {
            return Usable::no("no finite tokens were seen");
        };
        let (tokens, channels) =
            (activity.seen()[self.index].tokens, activity.channels(self.index));
        match tokens == 0 || channels.len() == self.width() {
            true => Usable::Yes((tokens, channels)),
            false => Usable::no("channels inside experts were not seen"),
        }
    }

    /// What a caller supplies of one of its matrices.
    ///
    /// # Errors
    /// `ShapeMismatch`; those of the caller.
    pub fn supplied(
        &self,
        supply: Supply,
        spec: &LinearSpec,
        weight: &Array2<f32>,
    ) -> Result<Usable<Array2<f32>>> {
        let none = || Ok(Usable::no(format!("no {} was supplied", supply.name())));
        let Some(seen) = self.block.input(spec.input) else { return none() };
        match seen.supplied(supply, &Target::new(&spec.name, weight.view()), Par::Rayon) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => none(),
            found => Usable::of(found),
        }
    }

    /// The squared norm of all that a micro-expert is made of: what is left to judge by where nothing else is known.
    ///
    /// # Errors
    /// As [`OneExpert::weight`].
    pub fn norms(&self) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; self.width()];
        for spec in self.linears() {
            let squares = self.weight(spec)?.mapv(|w| f64::from(w) * f64::from(w));
            self.add_up(spec, &squares, &mut sums);
        }
        Ok(sums)
    }
}
