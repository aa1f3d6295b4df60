mod search;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stage::{Keys, Knobs, Row, Value, WeightPart};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DynCompress, Error, ErrorKind, Group, Method, Node,
    Result, Target,
};

use crate::Clip;
use crate::GridSpec;
use crate::rtn::Rtn;
use crate::scaled::solve_scaled;
use search::{Inputs, best_scale, clip_to_outputs};

/// AWQ (Lin et al., 2024): input channels are scaled up by how active they are before rounding, and scaled back
/// inside the product, which keeps salient weights exact.
///
/// The scale is `mean|x|^ratio` with the ratio searched on a grid, scored by the squared output error of
/// round-to-nearest on sampled tokens. Matrices that share an input share one scale; it is folded into what stands before
/// them (a norm, the values' matrix, the matrix up) where the [`Group`] offers it, else stored (and counted) as f16. The scaled weights then go to a solver:
/// [`Rtn`] in the paper, or any other, such as [`crate::Gptq`].
///
/// ```
/// use tensorpress_quant::{Awq, Gptq, GridSpec};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Awq::with_solver(GridSpec::new(4, 32), Gptq::new(GridSpec::new(4, 32))).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Awq<S = Rtn> {
    /// The grid that the search assumes; give the solver the same.
    pub grid: GridSpec,
    /// Search ratios `i / ratios` for i below this. Default 20.
    pub ratios: usize,
    /// Sampled tokens that score a ratio. Default 4096.
    pub samples: usize,
    /// Whether weights are clipped by output error before they are rounded.
    pub clip: AwqClip,
    /// Rounds the scaled weights.
    pub solver: S,
}

/// AWQ's own clipping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AwqClip {
    /// None but the grid's.
    #[default]
    Off,
    /// Each group's weights are clamped to the best of ten shrunken ranges (down to a half) by output error; not those
    /// of queries and keys ([`Target::scores`]), whose products it would shrink twice, as in the official code.
    Output,
}

impl Default for Awq<Rtn> {
    fn default() -> Self {
        Self::new(GridSpec::default())
    }
}

impl Awq<Rtn> {
    /// The method of the paper on the given grid.
    #[must_use]
    pub fn new(grid: GridSpec) -> Self {
        Self::with_solver(grid, Rtn::new(grid))
    }
}

impl<S> Awq<S> {
    /// The search on `grid`, rounding by `solver` (which should use the same grid).
    #[must_use]
    pub fn with_solver(grid: GridSpec, solver: S) -> Self {
        Self { grid, ratios: 20, samples: 4096, clip: AwqClip::Off, solver }
    }

    /// Sets the clipping.
    #[must_use]
    pub fn with_clip(mut self, clip: AwqClip) -> Self {
        self.clip = clip;
        self
    }

    /// Sets the number of ratios tried.
    #[must_use]
    pub fn with_ratios(mut self, ratios: usize) -> Self {
        self.ratios = ratios;
        self
    }

    /// Sets the number of tokens that score a ratio.
    #[must_use]
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// The scale that the search finds for matrices sharing one input, and each ratio's loss (mean squared output
    /// error, summed over the matrices).
    ///
    /// # Errors
    /// `MissingCalibration`, `Numerical`, `InvalidArgument`.
    pub fn search(
        &self,
        targets: &[Target<'_>],
        calibration: &Calibration,
        par: Par,
    ) -> Result<(Vec<f32>, Vec<f64>)> {
        if self.ratios == 0 {
            return Err(Error::invalid("ratios = 0: allowed are 1 and more"));
        }
        let mean_abs = calibration.moments()?.mean_abs().mapv(|v| v as f32).to_vec();
        let inputs = Inputs::new(calibration.samples()?.view(), par);
        best_scale(&self.grid, self.ratios, targets, &mean_abs, &inputs, par)
    }
}

/// The grid counts only where no quantiser follows, whose own decides.
impl Knobs for Awq<Rtn> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.alone(|keys| self.grid.codes(keys))?;
        let clips = [
            ("minmax", (Clip::MinMax, AwqClip::Off)),
            ("mse", (Clip::Mse, AwqClip::Off)),
            ("output", (Clip::MinMax, AwqClip::Output)),
        ];
        let mut clip = (self.grid.clip, self.clip);
        let about = "as of the quantiser; output: weights are clamped by output error";
        match keys.peek("clip") {
            Some(Value::Word(word)) if word == "output" => {
                keys.choice("clip", &mut clip, &clips, about)?;
            }
            _ => keys.alone(|keys| keys.choice("clip", &mut clip, &clips, about))?,
        }
        (self.grid.clip, self.clip) = clip;
        keys.alone(|keys| self.grid.scales(keys))?;
        keys.int("ratios", &mut self.ratios, 1..=1000, "exponents tried")?;
        keys.int("samples", &mut self.samples, 1..=1 << 20, "tokens that judge an exponent")?;
        self.solver = Rtn::new(self.grid);
        Ok(())
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "scales input channels up by how active they are, before a quantiser (alone: rounds to nearest)";
    Row::transform("awq", about, Awq::default, |awq, solver| {
        let Some(solver) = solver else { return Ok(Some(Box::new(awq))) };
        let Some(grid) = solver.grid() else {
            let message =
                format!("`awq` before `{}`: it needs a quantiser with a grid", solver.id());
            return Err(Error::unsupported(message));
        };
        let Awq { ratios, samples, clip, .. } = awq;
        let awq: Box<dyn DynCompress> = Box::new(Awq { grid, ratios, samples, clip, solver });
        Ok(Some(awq))
    })
}

impl<S: Method> Method for Awq<S> {
    fn id(&self) -> &'static str {
        "awq"
    }

    fn grid(&self) -> Option<GridSpec> {
        self.solver.grid()
    }

    fn takes_mask(&self) -> bool {
        self.solver.takes_mask()
    }

    fn corrects_bias(&self) -> bool {
        self.solver.corrects_bias()
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS | Needs::samples(self.samples) | self.solver.needs()
    }
}

impl<S: Compress> Compress for Awq<S> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let channels = group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let blind = match group.calibration.moments() {
            _ if group.calibration.tokens() == 0 => Some("saw no calibration token".to_owned()),
            Err(e) if e.kind() == ErrorKind::Numerical => Some(e.message().to_owned()),
            _ => None,
        };
        if let Some(reason) = blind {
            return self.without_scales(group, &reason);
        }
        let (scale, _) = self.search(&group.targets, &group.calibration, group.par)?;
        debug_assert_eq!(scale.len(), channels);
        solve_scaled(group, scale, |group| self.solve(group))
    }
}

impl<S: Compress> Awq<S> {
    /// Clips if asked, and rounds.
    fn solve(&self, group: Group<'_>) -> Result<CompressedGroup<S::Node>> {
        if self.clip == AwqClip::Off {
            return self.solver.compress_group(group);
        }
        let samples = group.calibration.samples()?;
        let clip = |target: &Target<'_>| {
            let mut weight = target.kept_weight().into_owned();
            if !target.scores {
                clip_to_outputs(&self.grid, &mut weight, samples.view(), group.par)?;
            }
            Ok(weight)
        };
        let weights = group.targets.iter().map(clip).collect::<Result<Vec<Array2<f32>>>>()?;
        let clipped = group.targets.iter().zip(&weights);
        let targets = clipped.map(|(t, w)| Target { weight: w.view(), ..t.clone() }).collect();
        let Group { calibration, fold, seed, par, .. } = group;
        self.solver.compress_group(Group { targets, calibration, fold, seed, par })
    }

    fn without_scales(&self, group: Group<'_>, reason: &str) -> Result<CompressedGroup> {
        let solved = self.solver.compress_group(Group { fold: None, ..group })?;
        let note = format!("{reason}: channels not scaled");
        let mark = |layer: Compressed<S::Node>| {
            let layer = layer.boxed();
            let note = match &layer.fallback {
                Some(inner) => format!("{note}; {inner}"),
                None => note.clone(),
            };
            layer.with_fallback(Some(note))
        };
        Ok(CompressedGroup::new(solved.layers.into_iter().map(mark).collect()))
    }
}
