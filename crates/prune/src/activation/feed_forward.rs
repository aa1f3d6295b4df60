use tensorpress_tensor::kernels::{self, StoredRows, Work, picked_matmul, picked_sum};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, Zip};
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::{DType, Error, Result, Scratch};

use super::check_columns;

/// What lies between the matrices of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activation {
    /// x / (1 + e⁻ˣ).
    #[default]
    Silu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Applies it in place.
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => kernels::swish(values, 1.0),
            // A NaN stays one.
            Self::Relu => values.iter_mut().filter(|v| **v < 0.0).for_each(|v| *v = 0.0),
        }
    }
}

/// A feed-forward network of which products read some channels alone.
///
/// Its channels make h = a(G x) ⊙ U x, or a(U x) without a gate, and y = D h. Rows of G and U are channels already; D is
/// stored turned, `[channels, hidden]`, so that the weights of a channel that is skipped are never read. Products are those
/// of [`picked_matmul`] and [`picked_sum`].
///
/// ```
/// use tensorpress_prune::activation::{Activation, FeedForward};
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::{DType, Scratch};
///
/// let (up, down) = (array![[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], array![[1.0, 2.0, 3.0]]);
/// let network = FeedForward::new(None, up.view(), down.view(), Activation::Relu, DType::F32)?;
/// let x = array![[1.0, -5.0]];
/// let mut scratch = Scratch::default();
/// // Channel 0 alone is not 0 behind its ReLU.
/// let hidden = network.hidden(x.view(), &[0], &mut scratch)?;
/// assert_eq!(network.output(hidden.view(), &[0], &mut scratch)?, array![[1.0]]);
/// assert_eq!(network.apply(x.view(), &mut scratch)?, array![[1.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct FeedForward {
    gate: Option<Dense>,
    up: Dense,
    /// `[channels, outputs]`.
    down: Dense,
    activation: Activation,
    all: Vec<usize>,
    /// Norm of each channel's outgoing weights.
    reach: Vec<f32>,
}

/// What a few tokens were answered, and what was read for it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// `[tokens, outputs]`.
    pub output: Array2<f32>,
    /// The channels (inputs, of a linear) whose weights were read: those that one of the tokens at least needed, ascending.
    pub channels: Vec<usize>,
}

impl FeedForward {
    /// From G and U `[channels, inputs]` and D `[outputs, channels]`, rounded to `dtype`.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Unsupported` for a type that is none of f32, f16 and bf16.
    pub fn new(
        gate: Option<ArrayView2<'_, f32>>,
        up: ArrayView2<'_, f32>,
        down: ArrayView2<'_, f32>,
        activation: Activation,
        dtype: DType,
    ) -> Result<Self> {
        if let Some(gate) = gate.filter(|gate| gate.dim() != up.dim()) {
            let (gate, up) = (gate.shape(), up.shape());
            return Err(Error::shape(format!("feed-forward gate {gate:?} beside {up:?}")));
        }
        check_columns("feed-forward output matrix", down, up.nrows())?;
        let norm = |column: ArrayView2<'_, f32>| {
            column.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() as f32
        };
        Ok(Self {
            gate: gate.map(|gate| stored(gate, dtype)).transpose()?,
            up: stored(up, dtype)?,
            down: stored(down.t().as_standard_layout().view(), dtype)?,
            activation,
            all: (0..up.nrows()).collect(),
            reach: down.axis_chunks_iter(Axis(1), 1).map(norm).collect(),
        })
    }

    /// Number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.all.len()
    }

    /// Whether there is a gate.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// a(G x) of all channels, `[tokens, channels]`.
    ///
    /// # Errors
    /// `Unsupported` without a gate; `ShapeMismatch`.
    pub fn gates(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
        self.gates_of(x, &self.all, scratch)
    }

    fn gates_of(
        &self,
        x: ArrayView2<'_, f32>,
        channels: &[usize],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let gate = self.gate.as_ref();
        let gate =
            gate.ok_or_else(|| Error::unsupported("a feed-forward network without a gate"))?;
        let mut gates = rows_product(gate, channels, x, scratch)?;
        self.activation.apply(gates.as_slice_mut().expect("made in one piece"));
        Ok(gates)
    }

    /// U x of some channels, `[tokens, channels.len()]`.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a channel that is not there.
    pub fn ups(
        &self,
        x: ArrayView2<'_, f32>,
        channels: &[usize],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        rows_product(&self.up, channels, x, scratch)
    }

    /// h of some channels, `[tokens, channels.len()]`.
    ///
    /// # Errors
    /// As [`FeedForward::ups`].
    pub fn hidden(
        &self,
        x: ArrayView2<'_, f32>,
        channels: &[usize],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let mut hidden = self.ups(x, channels, scratch)?;
        match self.gate {
            Some(_) => hidden *= &self.gates_of(x, channels, scratch)?,
            None => self.activation.apply(hidden.as_slice_mut().expect("made in one piece")),
        }
        Ok(hidden)
    }

    /// D h of what some channels hold, `[tokens, channels.len()]`; the others are taken to be 0.
    ///
    /// # Errors
    /// As [`FeedForward::ups`].
    pub fn output(
        &self,
        hidden: ArrayView2<'_, f32>,
        channels: &[usize],
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        inputs_product(&self.down, channels, hidden, scratch)
    }

    /// The whole network: every channel.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
        let hidden = self.hidden(x, &self.all, scratch)?;
        self.output(hidden.view(), &self.all, scratch)
    }

    /// What each channel adds to the output at most, |h_i| ‖D_:i‖, of `hidden [tokens, channels]`.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn contributions(&self, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        check_columns("hidden channels", hidden, self.channels())?;
        let reach = ArrayView2::from_shape((1, self.channels()), &self.reach).expect("a row");
        let reach = reach.broadcast(hidden.dim()).expect("one row for all");
        Ok(Zip::from(hidden).and(reach).map_collect(|h, reach| h.abs() * reach))
    }
}

/// A matrix that kernels multiply.
pub(super) fn stored(matrix: ArrayView2<'_, f32>, dtype: DType) -> Result<Dense> {
    // Beside a channel of 0 a weight that became infinite would make what is no number.
    if let Some(((row, col), w)) =
        matrix.indexed_iter().find(|(_, w)| w.is_finite() && !dtype.round(**w).is_finite())
    {
        return Err(Error::numerical(format!("weight [{row}, {col}] is {w}, in {dtype:?}")));
    }
    let dense = Dense::from_f32(matrix, dtype)?;
    match dense.stored_rows() {
        Some(_) => Ok(dense),
        None => Err(Error::unsupported(format!("products that skip, of {dtype:?}"))),
    }
}

fn check_channels(w: &StoredRows<'_>, channels: &[usize]) -> Result<()> {
    match channels.iter().find(|channel| **channel >= w.rows) {
        None => Ok(()),
        Some(beyond) => {
            let rows = w.rows;
            Err(Error::invalid(format!("channel = {beyond}: allowed are those below {rows}")))
        }
    }
}

type Product = fn(&StoredRows<'_>, &[usize], &[f32], usize, &mut [f32], bool, &mut Work);

fn product(
    by: Product,
    w: &StoredRows<'_>,
    channels: &[usize],
    x: ArrayView2<'_, f32>,
    outputs: usize,
    scratch: &mut Scratch,
) -> Result<Array2<f32>> {
    check_channels(w, channels)?;
    let (x, mut y) = (x.as_standard_layout(), Array2::zeros((x.nrows(), outputs)));
    let (from, to) = (x.as_slice().expect("standard"), y.as_slice_mut().expect("just made"));
    by(w, channels, from, x.nrows(), to, false, scratch.work());
    Ok(y)
}

/// X W\[channels\]ᵀ, `[tokens, channels.len()]`.
fn rows_product(
    w: &Dense,
    channels: &[usize],
    x: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
) -> Result<Array2<f32>> {
    let w = w.stored_rows().expect("made of a type that kernels know");
    check_columns("input of a feed-forward network", x, w.cols)?;
    product(picked_matmul, &w, channels, x, channels.len(), scratch)
}

/// A W\[channels\], `[tokens, outputs]`.
pub(super) fn inputs_product(
    w: &Dense,
    channels: &[usize],
    a: ArrayView2<'_, f32>,
    scratch: &mut Scratch,
) -> Result<Array2<f32>> {
    let w = w.stored_rows().expect("made of a type that kernels know");
    check_columns("values of channels", a, channels.len())?;
    product(picked_sum, &w, channels, a, w.cols, scratch)
}
