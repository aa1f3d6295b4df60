use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Result, Usable};

use crate::dobi::Batches;
use crate::drift::Drift;
use crate::metric::Root;
use crate::project::Solver;
use crate::rank::Rank;

/// What is factored in the place of a matrix W, and which directions of its outputs stay.
///
/// Whatever it is, the factors are U = P, V = Pᵀ W' with orthonormal P: an aim says what W' is and what P are the leading
/// left singular vectors of.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Aim {
    /// W' = W, P of W S.
    #[default]
    Weight,
    /// W' = W + b W M, P of W' S: outputs on the inputs that compressed layers make are drawn to the original ones
    /// (SAES-SVD).
    Drift(Drift),
    /// W' = W, P the directions that batches of outputs agree on (Dobi-SVD).
    Batches(Batches),
}

/// How a decomposition is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) rank: Rank,
    pub(crate) solver: Solver,
    pub(crate) seed: u64,
    pub(crate) par: Par,
}

/// W' where it is not W, and what P are so many directions of where that is not W' S.
pub(crate) struct Aimed {
    pub(crate) weight: Option<Array2<f32>>,
    pub(crate) seen: Option<Array2<f32>>,
    pub(crate) rank: Rank,
}

impl Aim {
    /// What becomes of a matrix.
    pub(crate) fn at(&self, weight: &Array2<f32>, root: &Root, ask: Ask) -> Result<Usable<Aimed>> {
        let rank = ask.rank;
        Ok(match self {
            Self::Weight => Usable::Yes(Aimed { weight: None, seen: None, rank }),
            Self::Drift(drift) => drift.moved(weight, root, ask)?.map(|moved| Aimed {
                weight: Some(moved),
                seen: None,
                rank,
            }),
            Self::Batches(batches) => batches.directions(weight, root, ask)?.map(|(seen, rank)| {
                Aimed { weight: None, seen: Some(seen), rank: Rank::Number(rank) }
            }),
        })
    }
}
