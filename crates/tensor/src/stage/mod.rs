//! Stages: how a method says once what it is called, what its knobs are, and where it may stand in a recipe.
//!
//! A **knob** is said in one place, the method's own [`Knobs::knobs`]: name, allowed values, meaning; its default is the
//! value that the method's type has by default. From that one statement come the key of recipes and its check, the text
//! of help and documentation, and the canonical form of a recipe, so that none of them can disagree with the Rust type.
//!
//! A **row** ([`Row`]) is a name, a sentence, and the constructor, whose signature says where the stage may stand. A crate
//! lists its rows in a function `stages()`; whoever reads recipes puts such lists together ([`Stages`]). A crate outside
//! this workspace does the same: nothing here names a method.
//!
//! A **chain** ([`Chain`]) is a line of stages, `stage ('|' stage)*`. The grammar is the same in every room; what a stage
//! builds ([`Part`]) and in what order stages may stand ([`Role`]) is the room's. That of weights is here
//! ([`WeightPart`]), for many crates have such stages.
//!
//! ```
//! use tensorpress_tensor::Result;
//! use tensorpress_tensor::stage::{Keys, Knobs};
//!
//! #[derive(Debug, Clone)]
//! struct Soft {
//!     lambda: f32,
//! }
//!
//! impl Knobs for Soft {
//!     fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
//!         keys.float("lambda", &mut self.lambda, 0.0..=10.0, "how much is taken off each weight")
//!     }
//! }
//! ```

mod chain;
mod key;
mod keys;
mod line;
mod row;
mod table;
mod value;
mod weights;

pub use chain::{Chain, Stage, canonical};
pub use key::{Auto, Key};
pub use keys::{Keys, Knobs, Real};
pub use line::{RawStage, parse};
pub use row::{Inside, Part, Role, Row};
pub use table::{Preset, Stages};
pub use value::{Takes, Value};
pub use weights::{After, Before, WeightPart, WeightRole};
