use tensorpress_tensor::linalg::{self, gaussian};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

/// The operator that PAT puts behind each linear that writes to the residual stream (Liu et al., "PAT: Pruning-Aware
/// Tuning for Large Language Models", 2024): D = I + L₁ diag(v) L₀, L₀ `[rank, channels]`, L₁ `[channels, rank]`. It
/// moves what the channels that will be masked know into those that stay; one mask of [`super::Annealing`] is behind
/// all of them.
///
/// After training it folds: [`HybridIdentity::fold`] into the linear before, with the masked rows gone; [`keep_inputs`]
/// and [`fold_rms_norm`] cut what reads the stream.
///
/// ```
/// use tensorpress_prune::train::HybridIdentity;
/// use tensorpress_tensor::ndarray::Array2;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let operator = HybridIdentity::new(8, 2, 1)?;
/// let x = Array2::from_shape_fn((3, 8), |(t, c)| (t * 8 + c) as f32);
/// assert_eq!(operator.apply(x.view())?, x);
/// assert!(operator.identity_loss().value < 1e-10);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HybridIdentity {
    /// L₀, `[rank, channels]`.
    pub down: Array2<f32>,
    /// v, `[rank]`.
    pub scale: Array1<f32>,
    /// L₁, `[channels, rank]`.
    pub up: Array2<f32>,
}

/// Gradients by the parts of a [`HybridIdentity`], of their shapes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HybridGradients {
    /// By L₀.
    pub down: Array2<f32>,
    /// By v.
    pub scale: Array1<f32>,
    /// By L₁.
    pub up: Array2<f32>,
    /// By what was put in, `[tokens, channels]`.
    pub input: Array2<f32>,
}

/// The identity loss and its gradients.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct IdentityLoss {
    /// ‖L₀ L₀ᵀ - I‖² + ‖L₁ᵀ L₁ - I‖².
    pub value: f64,
    /// By L₀.
    pub down: Array2<f32>,
    /// By L₁.
    pub up: Array2<f32>,
}

impl HybridIdentity {
    /// The identity: L₀ and L₁ random with orthonormal rows and columns, v = 0.
    ///
    /// # Errors
    /// `InvalidArgument` for a rank of 0 or above the channels.
    pub fn new(channels: usize, rank: usize, seed: u64) -> Result<Self> {
        if rank == 0 || rank > channels {
            return Err(Error::invalid(format!("rank = {rank}: allowed are 1 to {channels}")));
        }
        let orthonormal = |first: u64| {
            let draw = |(r, c)| gaussian(seed, first + (r * rank + c) as u64);
            linalg::qr(Array2::from_shape_fn((channels, rank), draw).view())
        };
        let up = orthonormal(0)?.q.mapv(|v: f64| v as f32);
        let down = orthonormal((channels * rank) as u64)?.q.mapv(|v: f64| v as f32);
        Ok(Self { down: down.reversed_axes(), scale: Array1::zeros(rank), up })
    }

    fn check(&self, what: &str, channels: usize) -> Result<()> {
        let (rank, width) = self.down.dim();
        if self.up.dim() != (width, rank) || self.scale.len() != rank {
            let (up, scale) = (self.up.dim(), self.scale.len());
            return Err(Error::shape(format!("L0 {rank} x {width}, v {scale}, L1 {up:?}")));
        }
        match channels == width {
            true => Ok(()),
            false => Err(Error::shape(format!("{channels} {what} for an operator of {width}"))),
        }
    }

    /// D x of each row of x `[tokens, channels]`.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        self.check("channels", x.ncols())?;
        Ok(&x + &(x.dot(&self.down.t()) * &self.scale).dot(&self.up.t()))
    }

    /// The gradients of a loss, from what went in and the gradient by what came out, both `[tokens, channels]`.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn backward(
        &self,
        x: ArrayView2<'_, f32>,
        by_output: ArrayView2<'_, f32>,
    ) -> Result<HybridGradients> {
        self.check("channels", x.ncols())?;
        if by_output.dim() != x.dim() {
            let (input, output) = (x.dim(), by_output.dim());
            return Err(Error::shape(format!("gradients {output:?} of outputs {input:?}")));
        }
        let low = x.dot(&self.down.t());
        let by_scaled = by_output.dot(&self.up);
        let by_low = &by_scaled * &self.scale;
        Ok(HybridGradients {
            up: by_output.t().dot(&(&low * &self.scale)),
            scale: (&low * &by_scaled).sum_axis(Axis(0)),
            down: by_low.t().dot(&x),
            input: &by_output + &by_low.dot(&self.down),
        })
    }

    /// What keeps L₀ and L₁ orthogonal, so that v alone scales.
    #[must_use]
    pub fn identity_loss(&self) -> IdentityLoss {
        let off = |gram: Array2<f64>| {
            let rank = gram.nrows();
            gram - Array2::<f64>::eye(rank)
        };
        let (down, up) = (self.down.mapv(f64::from), self.up.mapv(f64::from));
        let (of_down, of_up) = (off(down.dot(&down.t())), off(up.t().dot(&up)));
        let square = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>();
        IdentityLoss {
            value: square(&of_down) + square(&of_up),
            down: of_down.dot(&down).mapv(|v| (4.0 * v) as f32),
            up: up.dot(&of_up).mapv(|v| (4.0 * v) as f32),
        }
    }

    /// The linear before with this operator and the mask in it: the kept rows of D W `[kept, in]`, and of D b.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn fold(
        &self,
        weight: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        keep: &[bool],
    ) -> Result<(Array2<f32>, Option<Vec<f32>>)> {
        self.check("outputs", weight.nrows())?;
        self.check("mask entries", keep.len())?;
        if let Some(bias) = bias {
            self.check("biases", bias.len())?;
        }
        let kept = kept(keep);
        // In f64: what is folded is stored once and used for ever.
        let (down, up) = (self.down.mapv(f64::from), self.up.mapv(f64::from));
        let through = |columns: Array2<f64>| {
            let low = down.dot(&columns) * &self.scale.mapv(f64::from).insert_axis(Axis(1));
            (&columns + &up.dot(&low)).select(Axis(0), &kept).mapv(|v| v as f32)
        };
        let bias = bias.map(|bias| {
            let column = Array1::from_iter(bias.iter().map(|b| f64::from(*b)));
            through(column.insert_axis(Axis(1))).into_raw_vec_and_offset().0
        });
        Ok((through(weight.mapv(f64::from)), bias))
    }
}

fn kept(keep: &[bool]) -> Vec<usize> {
    (0..keep.len()).filter(|channel| keep[*channel]).collect()
}

/// The columns of a weight `[out, channels]` that read kept channels: what is left of a linear behind the mask.
///
/// # Errors
/// `ShapeMismatch`.
pub fn keep_inputs(weight: ArrayView2<'_, f32>, keep: &[bool]) -> Result<Array2<f32>> {
    if weight.ncols() != keep.len() {
        let (inputs, keep) = (weight.ncols(), keep.len());
        return Err(Error::shape(format!("{inputs} inputs and {keep} mask entries")));
    }
    Ok(weight.select(Axis(1), &kept(keep)))
}

/// The gain and ε of an RMS norm of the kept channels alone that puts out what the norm of all does when the masked
/// ones are 0. Its mean is over fewer channels: with d channels of which k stay, the gain grows by √(d / k), and ε by d
/// / k.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` if no channel stays.
pub fn fold_rms_norm(gain: &[f32], epsilon: f64, keep: &[bool]) -> Result<(Vec<f32>, f64)> {
    if gain.len() != keep.len() {
        let (gains, keep) = (gain.len(), keep.len());
        return Err(Error::shape(format!("{gains} gains and {keep} mask entries")));
    }
    let places = kept(keep);
    if places.is_empty() {
        return Err(Error::invalid("no channel stays: allowed are 1 and more"));
    }
    let share = places.len() as f64 / keep.len() as f64;
    let gain = places.iter().map(|at| (f64::from(gain[*at]) / share.sqrt()) as f32).collect();
    Ok((gain, epsilon / share))
}
