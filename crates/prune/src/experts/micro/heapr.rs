//! HEAPr (Li, Yang, Zhou et al.: "HEAPr: Hessian-based Efficient Atomic Expert Pruning in Output Space", 2025).

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, Axis, s};
use tensorpress_tensor::rewrite::Role;
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::stats::{Needs, Supply};
use tensorpress_tensor::{Result, Usable};

use super::{Choice, MicroScore, OneExpert, SlimExperts};

/// ½ mean(φ²) wᵀ G w: what the loss grows by to second order when a micro-expert goes, with G = E[g gᵀ] of the gradients g by
/// the expert's output in the place of their Hessian ([`Supply::OUTPUT_FISHER`] of the down matrix; of its diagonal alone,
/// Σ G_ii w_i²). φ² is a mean over the expert's tokens, G one over all tokens, to which others add 0, so that an expert that
/// few tokens reach counts as little as they do. One that no token reached has 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputLoss;

/// Columns of down that are multiplied at once.
const COLUMNS: usize = 256;

/// wᵀ G w of every column.
fn forms(gradients: &Array2<f32>, down: &Array2<f32>) -> Vec<f64> {
    let diagonal = gradients.nrows() == 1 && down.nrows() != 1;
    let gradients = gradients.mapv(f64::from);
    if diagonal {
        let squares = down.mapv(|w| f64::from(w) * f64::from(w));
        return gradients.row(0).dot(&squares).to_vec();
    }
    let mut forms = Vec::with_capacity(down.ncols());
    for first in (0..down.ncols()).step_by(COLUMNS) {
        let last = (first + COLUMNS).min(down.ncols());
        let columns = down.slice(s![.., first..last]).mapv(f64::from);
        let mut product = Array2::zeros(columns.dim());
        linalg::matmul(gradients.view(), columns.view(), product.view_mut(), false, Par::Rayon);
        forms.extend((product * &columns).sum_axis(Axis(0)));
    }
    forms
}

impl MicroScore for OutputLoss {
    fn needs(&self) -> Needs {
        Needs::supplied(Supply::OUTPUT_FISHER)
    }

    fn asks_of(&self, role: Role) -> bool {
        role == Role::Down
    }

    fn scores(&self, expert: &OneExpert<'_>) -> Result<Usable<Vec<f64>>> {
        let (tokens, seen) = match expert.seen() {
            Usable::Yes(seen) => seen,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        if tokens == 0 {
            return Ok(Usable::Yes(vec![0.0; expert.width()]));
        }
        let down = expert.weight(expert.down())?;
        let gradients = match expert.supplied(Supply::OUTPUT_FISHER, expert.down(), &down)? {
            Usable::Yes(gradients) => gradients,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let share = 0.5 / tokens as f64;
        let scores = forms(&gradients, &down).into_iter().zip(seen);
        Ok(Usable::Yes(scores.map(|(form, seen)| share * seen.squares * form.max(0.0)).collect()))
    }
}

/// HEAPr: the micro-experts of the whole model that the loss grows least by go.
///
/// ```
/// use tensorpress_prune::experts::micro::heapr;
/// use tensorpress_tensor::stage::canonical;
///
/// assert_eq!(canonical("heapr", &mut heapr())?, "heapr(sparsity=0.25)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn heapr() -> SlimExperts<OutputLoss> {
    SlimExperts::new(NAME, OutputLoss, Choice::Model)
}

const NAME: &str = "heapr";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes the channels of experts that the loss grows least by, in the whole model";
    Row::rewrite(NAME, about, heapr)
}
