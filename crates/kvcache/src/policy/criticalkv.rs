use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Error, ndarray};

use super::Policy;
use super::paper::row_made;
use super::snapkv::{paper, snapkv};
use crate::budget::Budget;
use crate::score::{Critical, QueryWindow, Score};
use crate::stage::KvPart;

/// CriticalKV (Feng et al., 2025) over SnapKV: half of the budget by what the newest queries look at, the rest by that times
/// what the value does to the layer's output; `output` is the projection `[hidden, heads * value_dim]`.
#[must_use]
pub fn criticalkv(window: usize, pool: usize, output: Arc<Array2<f32>>, budget: Budget) -> Policy {
    let inner = Arc::new(QueryWindow::new(window, pool));
    Policy::new(Critical::new(inner, output), budget).with_protected(0, window)
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the newest queries look at and what changes the layer's output most";
    let default = || paper(snapkv);
    row_made("criticalkv", about, default, |paper, model| {
        paper.score.check()?;
        let output = model.output.clone().ok_or_else(|| {
            Error::missing_calibration("the layer's output projection is needed: it was not told")
        })?;
        Ok(paper.with_score(Arc::new(Critical::new(Arc::new(paper.score), output))))
    })
}
