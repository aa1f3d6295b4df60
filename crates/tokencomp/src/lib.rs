//! Fewer tokens: states merged or dropped inside a model, and prompts made shorter before it.
//!
//! A method is a score x a selection or matching x a [`TokenMap`]. A [`TokenReduce`] looks at the states of one sequence
//! and makes a plan; applying the plan to states, positions, keys and values is common code. No type of any engine
//! appears: states are ndarray views, sizes and attention are slices.
//!
//! ```
//! use tensorpress_tokencomp::{TokenHints, TokenReduce, ToMe};
//! use tensorpress_tensor::ndarray::Array2;
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! let states = Array2::from_shape_fn((6, 4), |(t, c)| ((t / 2 * 5 + c) % 7) as f32); // three pairs of equals
//! let map = ToMe::new().plan(states.view(), &TokenHints::default(), 3)?;
//! let merged = map.merge(states.view(), None)?;
//! assert_eq!(merged.dim(), (3, 4));
//! assert_eq!(map.counts(), [2, 2, 2]);
//! assert_eq!(map.unmerge(merged.view())?, states); // nothing was lost here
//! # Ok(())
//! # }
//! ```
//!
//! By the kinds of the survey *When Tokens Talk Too Much* (2025), each a row of [`stages`]:
//!
//! | kind | methods |
//! |---|---|
//! | transformation | [`Pooling`], [`pool_windows`], [`layers::SpaceToChannel`] |
//! | similarity | [`ToMe`], [`DivPrune`], [`SubmodularSelect`], [`ConceptChunk`], [`GeometryMerge`], [`TemporalMerge`], [`MaskGuidedToMe`] |
//! | attention | [`AttentionTopK`], [`GlobalCom2`]; with similarity [`DiffRate`], [`TokenCorr`] |
//! | query | [`QueryPooling`]; with similarity [`EfficientVla`], [`MigMerge`] |
//!
//! What a method asks for beside states is in [`TokenHints`]. How many tokens: [`fewest_tokens`], [`density_budgets`]; what
//! they hold of a context: [`measure`]. Prompts are in [`text`].

mod baseline;
mod budget;
mod divprune;
mod grid;
mod hints;
pub mod layers;
mod map;
pub mod measure;
mod merge;
mod recover;
mod reduce;
mod reuse;
mod schedule;
mod screen;
mod select;
mod share;
mod similarity;
mod solve;
mod stage;
pub mod text;
mod tome;

pub use baseline::{AttentionTopK, Pooling, RandomKeep};
pub use budget::{density_budgets, fewest_tokens, reconstruction_error, semantic_density};
pub use divprune::DivPrune;
pub use grid::{grid, pixel_gradient, pool_windows, relevance};
pub use hints::{Crops, Place, TokenHints};
pub use map::TokenMap;
pub use merge::{
    ConceptChunk, DiffRate, GeometryMerge, MaskGuidedToMe, MigMerge, QueryPooling, TemporalMerge,
};
pub use reduce::{ReducedStates, TokenReduce};
pub use reuse::Reuse;
pub use schedule::Schedule;
pub use select::{EfficientVla, GlobalCom2, KnnGraph, SubmodularSelect, TokenCorr, knn_graph};
pub use stage::{
    Choose, MakeRate, MakeRelevance, MakeWords, PromptModels, TokenPart, TokenRole, reducer, stages,
};
pub use tome::{Matching, ToMe, kth_matching, match_tokens};
