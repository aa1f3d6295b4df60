//! Convolutions of signs.

use tensorpress_tensor::ndarray::{Array2, Array3, ArrayView3, ArrayView4};
use tensorpress_tensor::{Error, Result};

/// A 1-bit convolution of BI-DiffSR (Chen et al., 2024): signs of the inputs, shifted by a bias of the diffusion step's group,
/// with signs of the weights, counted by XOR and popcount; then a scale an output channel and an activation of the group.
///
/// `y_o = rprelu_g(scale_o sum(sign(x_c + bias_g,c) sign(w_o,c)))`, the sum over kernel and input channels, what lies beyond the
/// edges left out; `scale_o` is the mean magnitude of the channel's weights (XNOR-Net). Steps are divided evenly into groups
/// (TaR, TaA in the paper); biases are minus the means of each group's inputs, so that signs are balanced.
///
/// ```
/// use tensorpress_quant::BinaryConv;
/// use tensorpress_tensor::ndarray::{Array3, Array4, array};
///
/// let weights = Array4::from_shape_vec((1, 2, 1, 1), vec![0.5, -1.5]).unwrap();
/// let conv = BinaryConv::new(weights.view(), 1, 0)?;
/// let x = Array3::from_shape_vec((2, 1, 2), vec![3.0, -1.0, -2.0, -4.0]).unwrap();
/// assert_eq!(conv.forward(x.view(), 0)?, array![[[2.0, 0.0]]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BinaryConv {
    /// Output and input channels, height and width of the kernel.
    shape: [usize; 4],
    stride: usize,
    padding: usize,
    /// Bit c % 64 of word c / 64: the weight is negative; `[out, height, width, words]`.
    weights: Vec<u64>,
    scales: Vec<f32>,
    steps: usize,
    /// `[groups, in]`.
    biases: Array2<f32>,
    /// Of each group and output channel.
    activations: Vec<RPRelu>,
}

/// `x - shift` where that is positive, `slope (x - shift)` elsewhere, plus `lift`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RPRelu {
    /// Where the bend is.
    pub shift: f32,
    /// The slope below it.
    pub slope: f32,
    /// The value there.
    pub lift: f32,
}

impl RPRelu {
    /// Nothing is changed.
    pub const IDENTITY: Self = Self { shift: 0.0, slope: 1.0, lift: 0.0 };

    /// The value for x.
    #[must_use]
    pub fn of(self, x: f32) -> f32 {
        let x = x - self.shift;
        (if x > 0.0 { x } else { self.slope * x }) + self.lift
    }
}

impl BinaryConv {
    /// The convolution with the signs of `weights` `[out, in, height, width]`, for one group of steps, without biases; 0 counts as
    /// positive.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty kernel, no input channels, or a stride of 0; `Numerical` for weights that are not finite.
    pub fn new(weights: ArrayView4<'_, f32>, stride: usize, padding: usize) -> Result<Self> {
        let (out, inp, height, width) = weights.dim();
        if inp == 0 || height == 0 || width == 0 {
            return Err(Error::invalid(format!("a kernel of {inp} x {height} x {width}")));
        }
        if stride == 0 {
            return Err(Error::invalid("stride = 0: allowed are 1 and more"));
        }
        if let Some((at, w)) = weights.indexed_iter().find(|(_, w)| !w.is_finite()) {
            return Err(Error::numerical(format!("weight {at:?} is {w}")));
        }
        let words = inp.div_ceil(64);
        let mut packed = vec![0u64; out * height * width * words];
        for ((o, c, y, x), w) in weights.indexed_iter() {
            let place = ((o * height + y) * width + x) * words + c / 64;
            packed[place] |= u64::from(*w < 0.0) << (c % 64);
        }
        let count = (inp * height * width) as f64;
        let scale = |channel: ArrayView3<'_, f32>| {
            (channel.iter().map(|w| f64::from(w.abs())).sum::<f64>() / count) as f32
        };
        let scales = weights.outer_iter().map(scale).collect();
        Ok(Self {
            shape: [out, inp, height, width],
            stride,
            padding,
            weights: packed,
            scales,
            steps: 1,
            biases: Array2::zeros((1, inp)),
            activations: vec![RPRelu::IDENTITY; out],
        })
    }

    /// The same for `steps` diffusion steps in so many groups, biases fitted to what was seen: `(step, inputs [in, height,
    /// width])`. A group of which nothing was seen has the means of all.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are 1 to `steps` groups, and for steps that are not there; `ShapeMismatch` for inputs of other
    /// channels, `Numerical` for those that are not finite.
    pub fn with_steps(
        mut self,
        steps: usize,
        groups: usize,
        seen: &[(usize, ArrayView3<'_, f32>)],
    ) -> Result<Self> {
        let [out, inp, ..] = self.shape;
        if groups == 0 || groups > steps {
            return Err(Error::invalid(format!("{groups} groups of {steps} steps")));
        }
        self.steps = steps;
        // One row more for all.
        let (mut sums, mut counts) =
            (Array2::<f64>::zeros((groups + 1, inp)), vec![0f64; groups + 1]);
        for (step, x) in seen {
            self.check(x.view(), *step)?;
            let group = step * groups / steps;
            for row in [group, groups] {
                counts[row] += (x.dim().1 * x.dim().2) as f64;
                for (sum, channel) in sums.row_mut(row).iter_mut().zip(x.outer_iter()) {
                    *sum += channel.iter().map(|v| f64::from(*v)).sum::<f64>();
                }
            }
        }
        self.biases = Array2::from_shape_fn((groups, inp), |(group, c)| {
            let row = if counts[group] > 0.0 { group } else { groups };
            if counts[row] > 0.0 { (-sums[[row, c]] / counts[row]) as f32 } else { 0.0 }
        });
        self.activations = vec![RPRelu::IDENTITY; groups * out];
        Ok(self)
    }

    /// Sets the activation of an output channel in a group of steps.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such group or channel, `Numerical` for parameters that are not finite.
    pub fn set_activation(&mut self, group: usize, channel: usize, to: RPRelu) -> Result<()> {
        let out = self.shape[0];
        if group >= self.groups() || channel >= out {
            let message =
                format!("channel {channel} of {out} in group {group} of {}", self.groups());
            return Err(Error::invalid(message));
        }
        if ![to.shift, to.slope, to.lift].iter().all(|v| v.is_finite()) {
            return Err(Error::numerical(format!("activation {to:?}")));
        }
        self.activations[group * out + channel] = to;
        Ok(())
    }

    /// Groups of steps.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.biases.nrows()
    }

    /// The group of a step.
    #[must_use]
    pub fn group_of(&self, step: usize) -> usize {
        step * self.groups() / self.steps
    }

    /// Biases `[groups, in]`.
    #[must_use]
    pub fn biases(&self) -> &Array2<f32> {
        &self.biases
    }

    /// The scale of each output channel.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Bytes of signs (a bit each), scales, biases and activations in f32.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let signs = self.shape.iter().product::<usize>().div_ceil(8);
        signs + 4 * (self.scales.len() + self.biases.len() + 3 * self.activations.len())
    }

    fn check(&self, x: ArrayView3<'_, f32>, step: usize) -> Result<()> {
        if step >= self.steps {
            return Err(Error::invalid(format!("step {step} of {}", self.steps)));
        }
        if x.dim().0 != self.shape[1] {
            let message = format!("inputs of {} channels, not {}", x.dim().0, self.shape[1]);
            return Err(Error::shape(message));
        }
        match x.indexed_iter().find(|(_, v)| !v.is_finite()) {
            Some((at, v)) => Err(Error::numerical(format!("input {at:?} is {v}"))),
            None => Ok(()),
        }
    }

    /// Outputs `[out, height, width]` for inputs `[in, height, width]` at a step.
    ///
    /// # Errors
    /// `InvalidArgument` for a step that is not there, and inputs smaller than the kernel; `ShapeMismatch` for other channels,
    /// `Numerical` for inputs that are not finite.
    pub fn forward(&self, x: ArrayView3<'_, f32>, step: usize) -> Result<Array3<f32>> {
        self.check(x, step)?;
        let [out, inp, kernel_height, kernel_width] = self.shape;
        let (_, height, width) = x.dim();
        let size = |n: usize, kernel: usize| {
            let over = (n + 2 * self.padding).checked_sub(kernel);
            let small = || Error::invalid(format!("inputs {height} x {width} under the kernel"));
            over.map(|over| over / self.stride + 1).ok_or_else(small)
        };
        let shape = (out, size(height, kernel_height)?, size(width, kernel_width)?);
        let (group, words) = (self.group_of(step), inp.div_ceil(64));
        let mut signs = vec![0u64; height * width * words];
        for ((c, row, column), v) in x.indexed_iter() {
            let negative = v + self.biases[[group, c]] < 0.0;
            signs[(row * width + column) * words + c / 64] |= u64::from(negative) << (c % 64);
        }
        let at = |output: usize, kernel: usize, n: usize| {
            (output * self.stride + kernel).checked_sub(self.padding).filter(|i| *i < n)
        };
        Ok(Array3::from_shape_fn(shape, |(o, row, column)| {
            let (mut differ, mut seen) = (0u32, 0usize);
            for ky in 0..kernel_height {
                let Some(y) = at(row, ky, height) else { continue };
                for kx in 0..kernel_width {
                    let Some(x) = at(column, kx, width) else { continue };
                    let inputs = &signs[(y * width + x) * words..][..words];
                    let place = ((o * kernel_height + ky) * kernel_width + kx) * words;
                    let weights = &self.weights[place..][..words];
                    differ +=
                        inputs.iter().zip(weights).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
                    seen += inp;
                }
            }
            let sum = (seen as i64 - 2 * i64::from(differ)) as f32;
            self.activations[group * out + o].of(self.scales[o] * sum)
        }))
    }
}
