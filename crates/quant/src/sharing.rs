//! Weights that share one small memory.

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2};
use tensorpress_tensor::{Error, Result, Target};

/// STABLE-RPS (Desai, Shrivastava, 2024): all weights of a model are numbers of one memory, through RandomFold.
///
/// The weights of all layers, one behind another, are cut into runs as long as the memory; each run is spread over it by a
/// permutation of its own, with random signs. So every place of the memory stands for as many weights as any other, to one,
/// and no two of a run share one; as large as the model, the memory is the model. A layer's weights are `scale * sign *
/// memory[place]`, its scale the root mean square of its weights at the beginning.
///
/// ```
/// use tensorpress_quant::RandomFold;
/// use tensorpress_tensor::ndarray::array;
///
/// let (a, b) = (array![[1.0, -2.0, 3.0]], array![[4.0], [5.0]]);
/// let exact = RandomFold::new(5, 7)?.fold(&[a.view(), b.view()])?;
/// assert!((&exact.layer(0)? - &a).iter().all(|d| d.abs() < 1e-6));
/// let half = RandomFold::new(3, 7)?.fold(&[a.view(), b.view()])?;
/// assert_eq!(half.memory().len(), 3);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomFold {
    memory: usize,
    seed: u64,
}

/// The places and signs of weights in the order of the model.
#[derive(Debug)]
struct Places {
    fold: RandomFold,
    run: usize,
    order: Vec<u32>,
}

impl RandomFold {
    /// A memory of so many numbers.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are 1 to 2^32 - 1.
    pub fn new(memory: usize, seed: u64) -> Result<Self> {
        if memory == 0 || u32::try_from(memory).is_err() {
            return Err(Error::invalid(format!("a memory of {memory}: allowed are 1 to 2^32 - 1")));
        }
        Ok(Self { memory, seed })
    }

    fn places(self) -> Places {
        Places { fold: self, run: usize::MAX, order: Vec::new() }
    }

    /// Weights that are to be shared: the memory that is nearest to all of them by least squares, `sum(scale sign w) / sum(scale²)`
    /// over the weights of each place.
    ///
    /// # Errors
    /// `Numerical` for weights that are not finite.
    pub fn fold(self, layers: &[ArrayView2<'_, f32>]) -> Result<FoldedWeights> {
        for (i, layer) in layers.iter().enumerate() {
            Target::new(&format!("layer {i}"), layer.view()).check_finite()?;
        }
        let scale = |layer: &ArrayView2<'_, f32>| {
            let square: f64 = layer.iter().map(|w| f64::from(*w).powi(2)).sum();
            let scale = (square / layer.len().max(1) as f64).sqrt() as f32;
            if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }
        };
        let scales: Vec<f32> = layers.iter().map(scale).collect();
        let shapes: Vec<[usize; 2]> = layers.iter().map(|l| l.dim().into()).collect();
        let mut folded =
            FoldedWeights { fold: self, memory: Array1::zeros(self.memory), scales, shapes };
        let (sums, squares) = folded.gathered(layers);
        let mean =
            |(sum, square): (&f64, &f64)| if *square > 0.0 { (sum / square) as f32 } else { 0.0 };
        folded.memory = sums.iter().zip(&squares).map(mean).collect();
        Ok(folded)
    }
}

impl Places {
    /// The place and the sign of weight `i` of the model.
    fn of(&mut self, i: usize) -> (usize, f32) {
        let RandomFold { memory, seed } = self.fold;
        let run = i / memory;
        if run != self.run {
            // Fisher and Yates, from a seed of the run's own.
            self.order = (0..memory as u32).collect();
            let mut random = SplitMix::new(SplitMix::new(seed).at(2 * run as u64));
            for last in (1..memory).rev() {
                let other = (random.next_f64() * (last + 1) as f64) as usize;
                self.order.swap(last, other.min(last));
            }
            self.run = run;
        }
        let negative = SplitMix::new(seed ^ 0x5167_4e73).at(i as u64) >> 63 == 1;
        (self.order[i % memory] as usize, if negative { -1.0 } else { 1.0 })
    }
}

/// Weights of layers in a shared memory.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldedWeights {
    fold: RandomFold,
    memory: Array1<f32>,
    scales: Vec<f32>,
    shapes: Vec<[usize; 2]>,
}

impl FoldedWeights {
    /// The numbers that are stored.
    #[must_use]
    pub fn memory(&self) -> &Array1<f32> {
        &self.memory
    }

    /// The numbers that are stored, to be trained.
    #[must_use]
    pub fn memory_mut(&mut self) -> &mut Array1<f32> {
        &mut self.memory
    }

    /// The scale of each layer.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Bytes of memory, scales and seed in f32 and u64.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.memory.len() + self.scales.len()) + 8
    }

    fn first(&self, layer: usize) -> usize {
        self.shapes[..layer].iter().map(|[rows, cols]| rows * cols).sum()
    }

    /// The weights of a layer.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<Array2<f32>> {
        let Some(shape) = self.shapes.get(layer) else {
            return Err(Error::invalid(format!("layer {layer} of {}", self.shapes.len())));
        };
        let (mut places, mut i) = (self.fold.places(), self.first(layer));
        Ok(Array2::from_shape_simple_fn(*shape, || {
            let (place, sign) = places.of(i);
            i += 1;
            self.scales[layer] * sign * self.memory[place]
        }))
    }

    /// The gradient of the memory, of those of all layers: `sum(scale sign g)` over the weights of each place; divided by
    /// `sum(scale²)`, if `balanced`, so that a step moves weights as far as one that are not shared (the paper's remedy for
    /// places that move too fast).
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is a gradient of its shape for every layer, `Numerical` if one is not finite.
    pub fn gradient(&self, layers: &[ArrayView2<'_, f32>], balanced: bool) -> Result<Array1<f32>> {
        let shapes: Vec<[usize; 2]> = layers.iter().map(|l| l.dim().into()).collect();
        if shapes != self.shapes {
            return Err(Error::shape(format!("gradients {shapes:?} of layers {:?}", self.shapes)));
        }
        for (i, layer) in layers.iter().enumerate() {
            Target::new(&format!("gradient {i}"), layer.view()).check_finite()?;
        }
        let (sums, squares) = self.gathered(layers);
        let one = |(sum, square): (&f64, &f64)| match balanced && *square > 0.0 {
            true => (sum / square) as f32,
            false => *sum as f32,
        };
        Ok(sums.iter().zip(&squares).map(one).collect())
    }

    /// Over the weights of each place: sums of scale x sign x value, and of squared scales.
    fn gathered(&self, layers: &[ArrayView2<'_, f32>]) -> (Vec<f64>, Vec<f64>) {
        let (mut sums, mut squares) =
            (vec![0f64; self.memory.len()], vec![0f64; self.memory.len()]);
        let (mut places, mut i) = (self.fold.places(), 0);
        for (layer, scale) in layers.iter().zip(&self.scales) {
            for value in layer {
                let (place, sign) = places.of(i);
                sums[place] += f64::from(*scale) * f64::from(sign) * f64::from(*value);
                squares[place] += f64::from(*scale).powi(2);
                i += 1;
            }
        }
        (sums, squares)
    }
}
