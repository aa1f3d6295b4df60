//! Heads and channels of state-space layers (Taghibakhshi and others: "Efficient Hybrid Language Model Compression through
//! Group-Aware SSM Pruning", 2025).

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::rewrite::{
    BlockView, Change, Decision, Edit, Judgement, ModelLayout, ScanLayout, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Gram, Moments, Needs};
use tensorpress_tensor::{Error, Method, RawTensor, Result, Rewrite, Tensor, Usable};

/// Removes heads of state-space layers, as many of every group, and channels, the same of all heads.
///
/// A channel is judged by the norm, over all calibration tokens, of what the matrix into the layer makes for it (its part x,
/// before the convolution); a channel of all heads together by the norm over heads, and then a head by the norm over those
/// of its channels that stay. Heads share B and C in groups, so they are compared and removed within a group only.
/// Matrices, convolution, decays, steps and the norm behind the scan are cut alike; the weight of that norm, which divides
/// by a mean over what is left, takes the square root of how many channels there were for one, so that the layer computes
/// what the whole one computes without the channels that went.
///
/// All blocks lose as many. Never fails on statistics that cannot be used: a channel is judged by the norm of its row then,
/// and that is said.
///
/// ```
/// use tensorpress_prune::DropScanHeads;
///
/// // Two groups of two heads, of two channels each: the lowest heads are those of the first group.
/// let half = DropScanHeads::default().with_heads(0.5);
/// assert_eq!(half.kept(&[1.0, 1.0, 0.5, 0.5, 7.0, 9.0, 8.0, 9.0], 4, 2), (vec![0, 3], vec![0, 1]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DropScanHeads {
    /// Fraction of the heads of each group that goes, 0 to below 1; rounded down to whole heads. Default 0.25.
    pub heads: f64,
    /// Fraction of the channels of each head that goes, 0 to below 1; rounded down. Default 0.
    pub channels: f64,
}

impl Default for DropScanHeads {
    fn default() -> Self {
        Self { heads: 0.25, channels: 0.0 }
    }
}

impl DropScanHeads {
    /// Sets the fraction of heads that goes.
    #[must_use]
    pub fn with_heads(mut self, heads: f64) -> Self {
        self.heads = heads;
        self
    }

    /// Sets the fraction of channels that goes.
    #[must_use]
    pub fn with_channels(mut self, channels: f64) -> Self {
        self.channels = channels;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("heads", self.heads), ("channels", self.channels)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::invalid(format!(
                    "{name} = {value}: allowed are 0 to below 1, for something must stay"
                )));
            }
        }
        Ok(())
    }

    /// The heads that stay and the channels of each head that stay, ascending, of scores of all channels: those of the first
    /// head, of the second, and so on. Of equal scores, later ones go first.
    ///
    /// # Panics
    /// Unless the groups divide the heads, and the heads the scores.
    #[must_use]
    pub fn kept(&self, scores: &[f64], heads: usize, groups: usize) -> (Vec<usize>, Vec<usize>) {
        let whole =
            groups > 0 && heads.is_multiple_of(groups) && scores.len().is_multiple_of(heads);
        assert!(whole && heads > 0, "scores of heads in groups");
        let scores = ArrayView2::from_shape((heads, scores.len() / heads), scores);
        let squares = scores.expect("rows of one length").mapv(|score| score * score);
        let stay = |count: usize, share: f64| count - crate::pattern::count(count, share);
        let width = squares.ncols();
        let channels = highest(squares.sum_axis(Axis(0)).view(), 0, stay(width, self.channels));
        let of_heads = squares.select(Axis(1), &channels).sum_axis(Axis(1));
        let size = heads / groups;
        let group = |group: usize| {
            let of = of_heads.slice_axis(Axis(0), (group * size..(group + 1) * size).into());
            highest(of, group * size, stay(size, self.heads))
        };
        ((0..groups).flat_map(group).collect(), channels)
    }
}

/// Places of the highest, counted from `first` and ascending; of equal ones the earlier.
fn highest(scores: ArrayView1<'_, f64>, first: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|at| first + at).collect()
}

/// The root of the mean square of each output y = W x + b over the tokens of which G = Σ x xᵀ and μ, the mean, are known:
/// the activations' norms but for a factor that is the same for all. In f64.
fn norms(
    weight: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    gram: ArrayView2<'_, f32>,
    moments: &Moments,
) -> Vec<f64> {
    let (weight, gram) = (weight.mapv(f64::from), gram.mapv(f64::from));
    let mut product = Array2::zeros(weight.dim());
    linalg::matmul(weight.view(), gram.view(), product.view_mut(), false, Par::Rayon);
    let tokens = moments.tokens() as f64;
    let square = |(at, (w, p)): (usize, (ArrayView1<'_, f64>, ArrayView1<'_, f64>))| {
        let bias = bias.map_or(0.0, |bias| f64::from(bias[at]));
        let square = w.dot(&p) / tokens + 2.0 * bias * w.dot(&moments.mean()) + bias * bias;
        square.max(0.0).sqrt()
    };
    weight.rows().into_iter().zip(product.rows()).enumerate().map(square).collect()
}

impl Knobs for DropScanHeads {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "fraction of the heads of each group that goes, below 1";
        keys.float("heads", &mut self.heads, 0.0..=1.0, about)?;
        let about = "fraction of the channels of each head that goes, below 1";
        keys.float("channels", &mut self.channels, 0.0..=1.0, about)
    }

    fn check(&self) -> Result<()> {
        DropScanHeads::check(self)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "drop_scan_heads",
        "removes heads of state-space layers (Mamba 2), as many of each group, and channels of all heads",
        DropScanHeads::default,
    )
}

/// Names of what is remembered.
const SCORES: &str = "scores";
const KEPT: [&str; 2] = ["heads", "channels"];

impl Method for DropScanHeads {
    fn id(&self) -> &'static str {
        "drop_scan_heads"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.union(Needs::MOMENTS)
    }
}

impl DropScanHeads {
    fn layout<'a>(&self, block: &BlockView<'a>) -> Result<&'a ScanLayout> {
        let layout = block.layout();
        layout.scan.as_ref().ok_or_else(|| {
            let block = layout.block;
            Error::unsupported(format!(
                "{}: block {block} has no heads of a state-space layer",
                self.id()
            ))
        })
    }
}

impl Rewrite for DropScanHeads {
    fn inputs(&self) -> &[SharedInput] {
        &[SharedInput::Scan]
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        self.check().map_err(|e| Error::invalid(format!("{}: {}", self.id(), e.message())))?;
        match model.blocks.iter().find(|block| block.scan.is_none()) {
            None => Ok(()),
            Some(block) => Err(Error::unsupported(format!(
                "{}: block {} of {} has no heads of a state-space layer",
                self.id(),
                block.block,
                model.architecture
            ))),
        }
    }

    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let scan = self.layout(block)?;
        let weight = block.matrix(&scan.input)?;
        let channels = scan.channels();
        let rows = weight.slice_axis(Axis(0), (channels..2 * channels).into());
        let bias = match block.tensor(&scan.input_bias) {
            Ok(bias) => Some(bias.to_matrix()?.into_raw_vec_and_offset().0),
            Err(_) => None,
        };
        let bias = bias.as_ref().map(|bias| &bias[channels..2 * channels]);
        let seen = match block.input(SharedInput::Scan).filter(|seen| seen.tokens() > 0) {
            None => Usable::no("saw no calibration token"),
            Some(seen) => seen.usable::<Gram>()?.and(seen.usable::<Moments>()?),
        };
        let judgement = Judgement::new();
        let (scores, note) = match seen {
            Usable::Yes((gram, moments)) => (norms(rows, bias, gram.view(), moments), None),
            Usable::No(reason) => {
                let square = |row: ArrayView1<'_, f32>| {
                    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
                };
                let scores = rows.rows().into_iter().map(|row| square(row).sqrt()).collect();
                (scores, Some(format!("{reason}: heads are judged by the norms of their rows")))
            }
        };
        if scores.iter().any(|score: &f64| !score.is_finite()) {
            return Err(Error::numerical("rows are not finite").in_tensor(&scan.input));
        }
        let judgement = judgement.with_values(SCORES, &scores);
        Ok(note.iter().fold(judgement, |judgement, note| judgement.with_note(&scan.input, note)))
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        self.fits(model)?;
        let scans = model.blocks.iter().filter_map(|block| block.scan.as_ref());
        let decide = |(scan, judgement): (&ScanLayout, &Judgement)| {
            let scores = judgement.values(SCORES)?;
            if scores.len() != scan.channels() {
                let message = format!("{} scores of {} channels", scores.len(), scan.channels());
                return Err(Error::shape(message));
            }
            let (heads, channels) = self.kept(&scores, scan.heads, scan.groups);
            Ok(Decision::new().with_kept(KEPT[0], heads).with_kept(KEPT[1], channels))
        };
        scans.zip(judgements).map(decide).collect()
    }

    fn edit(
        &self,
        _: &ModelLayout,
        block: &BlockView<'_>,
        _: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let scan = self.layout(block)?;
        let [heads, channels] = KEPT.map(|name| decision.kept(name));
        let (heads, channels) = (heads?, channels?);
        let mut edit = Edit::scan(block.layout(), heads, channels)?;
        let kept = scan.kept(heads, channels);
        if kept.len() == scan.channels() {
            return Ok(edit);
        }
        if let Some(name) = &scan.norm {
            let stored = block.tensor(name)?;
            let weight = stored.to_matrix()?;
            // The norm divides by the root of the mean square of fewer channels.
            let factor = (scan.channels() as f64 / kept.len() as f64).sqrt();
            let scaled = weight.select(Axis(1), &kept).mapv(|w| (f64::from(w) * factor) as f32);
            let scaled = scaled.into_shape_with_order(kept.len()).expect("one row");
            let new = RawTensor::from_f32(scaled.view().into_dyn(), stored.dtype())?;
            edit = edit.with_change(name, Change::New(new));
        }
        Ok(edit)
    }
}
