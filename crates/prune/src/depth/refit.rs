//! The head, refitted to what it reads now (Lu, Cheng, Fang, Wang, Wei, Xu, Xuan, Yang, Zhu: "Reassessing Layer Pruning in
//! LLMs: New Insights and Methods", 2024, which fine-tunes it; here by regularised least squares).

use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::rewrite::{
    BlockView, Change, Decision, Edit, HeadView, Judgement, ModelLayout, Outputs, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, RawTensor, Result, Rewrite, Tensor, Usable};

/// Refits the head to what the rewrites before left of the model: [`refit`].
///
/// A rewrite that leaves all blocks as they are, and comes behind those that do not. Where the table of embeddings makes
/// the logits too, the head becomes a matrix of its own, which is stored beside the table; that is said in a note. Never
/// fails on outputs that cannot be used: the head stays, and the reason is said.
///
/// ```
/// use tensorpress_prune::depth::RefitHead;
/// use tensorpress_tensor::stage::canonical;
///
/// let mut rewrite = RefitHead::default().with_damp(0.1);
/// assert_eq!(canonical("refit_head", &mut rewrite)?, "refit_head(damp=0.1)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RefitHead {
    /// What holds the head where it was: added to the diagonal of the second moments, as a fraction of its mean. Default
    /// 0.01.
    pub damp: f64,
}

impl Default for RefitHead {
    fn default() -> Self {
        Self { damp: 0.01 }
    }
}

impl RefitHead {
    /// Sets the damping.
    #[must_use]
    pub fn with_damp(mut self, damp: f64) -> Self {
        self.damp = damp;
        self
    }
}

/// The head W' `[vocabulary, width]` for which Σ_t ‖W' x'_t - W x_t‖² + λ ‖W' - W‖² is least, where x is what the head W read
/// and x' what it reads now, over the tokens where both are finite: W' = W (Σ x x'ᵀ + λ I) (Σ x' x'ᵀ + λ I)⁻¹, with λ `damp`
/// times the mean of the diagonal. The vocabulary does not enter the system. Directions that no x' has stay as they were.
/// In f64.
///
/// Not usable without a token, where all x' are zero, or where the solution leads beyond f32.
///
/// ```
/// use tensorpress_prune::depth::refit;
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::rewrite::Outputs;
/// use tensorpress_tensor::Usable;
///
/// // All that is read is half of what it was.
/// let (before, now) = (array![[2.0, 0.0], [0.0, 4.0]], array![[1.0, 0.0], [0.0, 2.0]]);
/// let head = array![[1.0, 2.0]];
/// let found = refit(head.view(), Outputs::new(before.view(), now.view()), 0.0)?;
/// assert_eq!(found, Usable::Yes(array![[2.0, 4.0]]));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `ShapeMismatch` where the head reads another width; `InvalidArgument` for a damping that is negative or not finite.
pub fn refit(
    head: ArrayView2<'_, f32>,
    outputs: Outputs<'_>,
    damp: f64,
) -> Result<Usable<Array2<f32>>> {
    const ROWS: usize = 512;
    check(damp)?;
    let width = outputs.changed.ncols();
    if head.ncols() != width {
        let message = format!("a head that reads {} channels of outputs of {width}", head.ncols());
        return Err(Error::shape(message));
    }
    let mut gram = Array2::<f64>::zeros((width, width));
    // Σ x' xᵀ.
    let (mut cross, mut tokens) = (gram.clone(), 0);
    outputs.for_each_chunk(|reference, changed| {
        linalg::gram_lower(changed, gram.view_mut(), true, Par::Rayon);
        linalg::matmul_tn(changed, reference, cross.view_mut(), true, Par::Rayon);
        tokens += changed.nrows();
    });
    if tokens == 0 {
        return Ok(Usable::no("no token with finite outputs"));
    }
    let size = gram.diag().sum() / width as f64;
    if size == 0.0 {
        return Ok(Usable::no("all that the head reads is zero"));
    }
    // Rounding errors make a factor of what is singular fail.
    let attempt = |lambda: f64| linalg::cholesky_damped(gram.clone(), lambda, Par::Rayon);
    let attempt = |lambda: f64| attempt(lambda).map(|factor| (factor, lambda));
    let found = attempt(damp * size).or_else(|_| attempt((damp + 1e-10) * size));
    let (factor, lambda) = match Usable::of(found)? {
        Usable::Yes(found) => found,
        Usable::No(reason) => return Ok(Usable::No(reason)),
    };
    cross.diag_mut().mapv_inplace(|v| v + lambda);
    linalg::solve_triangular(factor.view(), Triangle::Lower, cross.view_mut(), Par::Rayon)?;
    linalg::solve_triangular(factor.t(), Triangle::Upper, cross.view_mut(), Par::Rayon)?;
    let mut fitted = Array2::zeros(head.dim());
    for first in (0..head.nrows()).step_by(ROWS) {
        let rows = s![first..(first + ROWS).min(head.nrows()), ..];
        let band = head.slice(rows).mapv(f64::from);
        let mut product = Array2::zeros(band.dim());
        linalg::matmul_nt(band.view(), cross.view(), product.view_mut(), false, Par::Rayon);
        fitted.slice_mut(rows).assign(&product.mapv(|w| w as f32));
    }
    Ok(match fitted.iter().all(|w| w.is_finite()) {
        true => Usable::Yes(fitted),
        false => Usable::no("least squares lead beyond f32"),
    })
}

fn check(damp: f64) -> Result<()> {
    if damp.is_finite() && damp >= 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("damp = {damp}: allowed are 0 and more")))
}

impl Knobs for RefitHead {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "what holds the head where it was, as a fraction of the mean of the diagonal";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }

    fn check(&self) -> Result<()> {
        check(self.damp)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "refit_head",
        "refits the head to what is left of the model, by least squares to the logits of all of it",
        RefitHead::default,
    )
}

impl Method for RefitHead {
    fn id(&self) -> &'static str {
        "refit_head"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Rewrite for RefitHead {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn changes_head(&self) -> bool {
        true
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        check(self.damp).map_err(|e| Error::invalid(format!("{}: {}", self.id(), e.message())))?;
        if model.head.is_some() {
            return Ok(());
        }
        let message = format!("{}: {} makes no logits", self.id(), model.architecture);
        Err(Error::unsupported(message))
    }

    fn judge(&self, _: &ModelLayout, _: &BlockView<'_>) -> Result<Judgement> {
        Ok(Judgement::new())
    }

    fn settle(&self, _: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        Ok(vec![Decision::new(); judgements.len()])
    }

    fn edit(
        &self,
        _: &ModelLayout,
        _: &BlockView<'_>,
        _: &Judgement,
        _: &Decision,
    ) -> Result<Edit> {
        Ok(Edit::new())
    }

    fn edit_head(&self, _: &ModelLayout, head: &HeadView<'_>) -> Result<Edit> {
        let (name, edit) = (&head.layout().name, Edit::new());
        let leave =
            |reason: &str| Edit::new().with_note(name, &format!("{reason}: left as it was"));
        let stored = head.tensor()?;
        let fitted = match refit(head.matrix()?.view(), head.outputs(), self.damp)? {
            Usable::Yes(fitted) => fitted,
            Usable::No(reason) => return Ok(leave(&reason)),
        };
        let new = RawTensor::from_f32(fitted.view().into_dyn(), stored.dtype())?;
        if new.to_matrix()?.iter().any(|w| !w.is_finite()) {
            return Ok(leave("least squares lead beyond the type it is stored in"));
        }
        let edit = edit.with_change(name, Change::New(new));
        Ok(match head.layout().tied {
            true => {
                let text = "was the table of embeddings, and is a matrix of its own now";
                edit.with_note(name, text)
            }
            false => edit,
        })
    }
}
