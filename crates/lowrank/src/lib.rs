//! Low-rank factorisation: W is kept as U V, U `[out, rank]` and V `[rank, in]`.
//!
//! A method is a metric ([`metric`]: what an error costs) x an aim ([`Aim`]: what is factored, by which directions) x a
//! factorisation ([`Solver`]) x a choice of rank ([`Rank`]) x how the factors are stored ([`Factors`]). Whatever the
//! metric, the best factors are one projection: with H the second moments of the inputs and S any root of it (H = S Sᵀ),
//! ‖(W - U V) S‖ is least for U = P, V = Pᵀ W, where P are the leading left singular vectors of W S (Eckart and Young: the
//! best W S of that rank is P Pᵀ W S). Nothing is ever inverted, so nothing fails where H is singular, and inputs that
//! calibration never saw are projected like all others.
//!
//! Where a target asks for what errors of its outputs cost ([`Target::rows`](tensorpress_tensor::Target::rows)), G = T Tᵀ,
//! the same is done to Tᵀ W and T taken back: the least ‖Tᵀ (W - U V) S‖.
//!
//! [`svd`], [`asvd`], [`svd_llm`], [`lord`], [`rom`], [`feature_mimicking`] and [`eora`] are this projection with another
//! metric or another W; [`saes_svd`] and [`dobi_svd`] have aims of their own; [`BitStack`] stacks it on magnitudes, before
//! signs, [`Alds`] makes one for each group of inputs. [`DsFormer`] and [`Rocket`] factor into dense and sparse.
//!
//! Over several matrices: [`LowRank::bits`] for one price of all ranks, [`Spectrum`], [`welore`] and the levels of each
//! method for their ranks, [`Ranking`] for one order of the parts of all.

mod aim;
mod alds;
mod bitstack;
mod blocks;
mod dictionary;
mod dobi;
mod drift;
mod embedding;
mod factors;
mod levels;
mod lowrank;
mod made;
pub mod metric;
pub mod operator;
mod outputs;
mod project;
mod rank;
mod ranking;
mod saes;
mod share;
mod spectrum;
mod stage;

pub use aim::Aim;
pub use alds::Alds;
pub use bitstack::BitStack;
pub use blocks::{BlockBytes, first_blocks};
pub use dictionary::{Atoms, DsFormer, Rocket};
pub use dobi::{Batches, OutputBatches, SoftTruncation, dobi_svd};
pub use drift::Drift;
pub use embedding::embedding_factors;
pub use factors::Factors;
pub use levels::Level;
pub use lowrank::{LowRank, asvd, eora, feature_mimicking, lord, rom, svd, svd_llm};
pub use metric::{
    Activity, InputCovariance, InputGram, InputScale, Metric, Plain, Root, SequentialGram, Weighing,
};
pub use project::{Projection, Solver, project};
pub use rank::Rank;
pub use ranking::{Directions, Ranking};
pub use saes::{DriftedGram, saes_svd};
pub use spectrum::{NormalisedRanks, Spectrum, welore};
pub use stage::stages;
