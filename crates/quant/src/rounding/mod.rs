//! How weights get the codes of a rule that rounds them as they stand: each to the nearest, or column by column with the
//! error of each spread over the columns still to come.

mod columns;
mod groups;

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compressed, CompressedGroup, Context, Error, Group, Node, Result, Target, Usable,
};

use columns::Columns;
pub(crate) use groups::Grouped;

/// How weights get their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rounding {
    /// Each becomes what is nearest. Needs no calibration.
    #[default]
    Nearest,
    /// Column by column, the error of each spread over the columns still to come, as in GPTQ; what a group shares (scales,
    /// tables) is fitted when its turn comes, on the weights as they stand then, each counting by what its rounding
    /// costs (groups of fewer than 16 columns are fitted several at a time). Needs the Gram matrix.
    Feedback,
}

/// Rounding, and the damping of its statistics: what methods hold that can do both.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Codes {
    /// How weights get their codes. Default nearest.
    pub rounding: Rounding,
    /// What feedback adds to each entry of the Gram matrix's diagonal, as a fraction of it. Default 0.01.
    pub damp: f32,
}

impl Default for Codes {
    fn default() -> Self {
        Self { rounding: Rounding::Nearest, damp: 0.01 }
    }
}

impl Codes {
    /// By feedback.
    #[must_use]
    pub fn feedback() -> Self {
        Self { rounding: Rounding::Feedback, ..Self::default() }
    }

    /// Sets the damping, a fraction of each entry of the diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    pub(crate) fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let ways = [("nearest", Rounding::Nearest), ("feedback", Rounding::Feedback)];
        let about = "each weight to the nearest, or with errors spread over the columns to come";
        keys.choice("rounding", &mut self.rounding, &ways, about)?;
        let about = "feedback: added to each entry of the diagonal, as a fraction of it";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }

    pub(crate) fn needs(self) -> Needs {
        match self.rounding {
            Rounding::Nearest => Needs::default(),
            Rounding::Feedback => Needs::GRAM.true_sequentially(),
        }
    }

    /// What `one` makes of every target, handed what fills it with codes. Statistics that are missing or singular lead to
    /// the nearest codes, and results say so.
    pub(crate) fn each<N: Node + 'static>(
        self,
        mut group: Group<'_>,
        one: impl Fn(&Target<'_>, Filler<'_>) -> Result<N>,
    ) -> Result<CompressedGroup<N>> {
        if !self.damp.is_finite() || self.damp < 0.0 {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        for target in &group.targets {
            target.check_finite()?;
        }
        let (mut prepared, mut note) = (None, None);
        if self.rounding == Rounding::Feedback {
            group.channels()?;
            match Prepared::in_proportion(&mut group, self.damp.into())? {
                Usable::Yes(made) => {
                    note.clone_from(&made.note);
                    prepared = Some(made);
                }
                Usable::No(reason) => {
                    note = Some(format!("{reason}: rounded to nearest instead"));
                }
            }
        }
        let filler = Filler { prepared: prepared.as_ref(), par: group.par };
        let one = |t: &Target<'_>| {
            let made = one(t, filler).in_tensor(t.name)?;
            Ok(Compressed::new(made).with_fallback(note.clone()))
        };
        Ok(CompressedGroup::new(group.targets.iter().map(one).collect::<Result<_>>()?))
    }
}

/// A rule that rounds weights as they stand.
pub(crate) trait Rule: Sync {
    /// Consecutive columns that are rounded together.
    fn width(&self) -> usize {
        1
    }

    /// Consecutive columns that share what is fitted, a multiple of the width.
    fn group(&self) -> usize;

    /// Fits what the columns of the groups share that begin among `columns`: on weights as they stand, each column
    /// counting by its entry of `costs`.
    fn begin(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: std::ops::Range<usize>,
        costs: &[f32],
        par: Par,
    ) -> Result<()>;

    /// Rounds the weights `w` of a row, `width` of them or what is left of it: their values and codes.
    fn round(&self, row: usize, column: usize, w: &[f32], values: &mut [f32], codes: &mut [u8]);
}

/// Fills a matrix with codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filler<'a> {
    prepared: Option<&'a Prepared>,
    pub(crate) par: Par,
}

/// The most columns of a block of a sweep, and the fewest, where groups allow it.
const BLOCK: usize = 128;
const LEAST_BLOCK: usize = 16;

impl Filler<'_> {
    /// Decides all codes. What lies outside the target's mask counts as 0, and has any code.
    pub(crate) fn fill(&self, target: &Target<'_>, rule: &mut impl Rule) -> Result<Array2<u8>> {
        let mut weight = target.kept_weight().into_owned();
        let (rows, cols) = weight.dim();
        let Some(prepared) = self.prepared.filter(|_| rows * cols > 0) else {
            return self.round_all(&weight, rule);
        };
        prepared.dead.iter().for_each(|dead| weight.column_mut(*dead).fill(0.0));
        let costs = costs(prepared);
        let block = block_of(rule.group().min(cols), rule.width());
        let mut columns = Columns { rule, costs: &costs, rows, mask: target.mask };
        let swept = prepared.sweep(target, weight, block, &mut columns, self.par)?;
        Ok(swept.codes)
    }

    fn round_all(&self, weight: &Array2<f32>, rule: &mut impl Rule) -> Result<Array2<u8>> {
        let (rows, cols) = weight.dim();
        rule.begin(weight.view(), 0..cols, &vec![1.0; cols], self.par)?;
        let mut codes = Array2::zeros((rows, cols));
        let (rule, width) = (&*rule, rule.width());
        let pieces = weight.rows().into_iter().zip(codes.rows_mut()).enumerate();
        self.par.for_each_init(
            pieces,
            || vec![0.0; width],
            |values, (row, (w, mut codes))| {
                let w = w.to_slice().expect("standard layout").chunks(width);
                let codes = codes.as_slice_mut().expect("standard layout").chunks_mut(width);
                for (i, (w, codes)) in w.zip(codes).enumerate() {
                    rule.round(row, i * width, w, &mut values[..w.len()], codes);
                }
            },
        );
        Ok(codes)
    }
}

/// What rounding each column costs, the largest being 1; 0 where its input was always 0.
fn costs(prepared: &Prepared) -> Vec<f32> {
    let mut costs: Vec<f64> =
        prepared.factor.diag().iter().map(|u| f64::from(*u).powi(-2)).collect();
    prepared.dead.iter().for_each(|dead| costs[*dead] = 0.0);
    let most = costs.iter().fold(0.0, |most: f64, cost| most.max(*cost));
    costs.iter().map(|cost| (cost / most) as f32).collect()
}

/// Columns of a block: a group, so that it is fitted on weights with all earlier errors spread; several, if they are tiny;
/// or an even part of one, of whole vectors.
fn block_of(group: usize, width: usize) -> usize {
    if group <= BLOCK {
        return LEAST_BLOCK.div_ceil(group) * group;
    }
    let fits = |block: &usize| group.is_multiple_of(*block) && block.is_multiple_of(width);
    (BLOCK / 4..=BLOCK).rev().find(fits).unwrap_or(group)
}
