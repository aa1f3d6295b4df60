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
//! Prompts are in [`text`].

mod baseline;
mod divprune;
mod map;
mod reduce;
mod schedule;
mod screen;
mod similarity;
mod stage;
pub mod text;
mod tome;

pub use baseline::{AttentionTopK, Pooling, RandomKeep};
pub use divprune::DivPrune;
pub use map::TokenMap;
pub use reduce::{TokenHints, TokenReduce};
pub use schedule::Schedule;
pub use stage::{
    Choose, MakeRate, MakeRelevance, MakeWords, PromptModels, TokenPart, TokenRole, reducer, stages,
};
pub use tome::{Matching, ToMe, kth_matching, match_tokens};
