//! Methods that change what a model is built of: heads, channels, experts and blocks that go, blocks that merge.
//!
//! A [`Rewrite`] works above a matrix. It judges block after block, with the statistics and hidden states it asks for; a
//! [`Judgement`] is what it remembers of a block, and may offer [`Level`]s with cost and error. One settlement over the
//! judgements of all blocks decides ([`Decision`]), and each decision becomes an [`Edit`]: named tensors that are cut,
//! changed or made, the shape that is left, or that the block goes as a whole. Whoever holds the model applies the edits as
//! a view on it; a rewrite never sees a file.
//!
//! Any number of rewrites may follow each other. Each sees the model that its predecessors left.

mod channels;
mod edit;
mod head;
mod judgement;
mod layout;
mod scan;
mod view;

use crate::error::Result;
use crate::method::Method;

pub use edit::{BlockCut, Change, Edit};
pub use head::{HeadLayout, HeadView, Outputs};
pub use judgement::{Decision, Judgement, Level};
pub use layout::{
    BlockLayout, BlockShape, Expert, Experts, LinearSpec, ModelLayout, Place, Role, Sayable,
    SharedInput,
};
pub use scan::ScanLayout;
pub use view::{BlockView, States};

/// A method that changes what a model is built of.
///
/// [`Method::needs`] are the statistics of the inputs that [`Rewrite::inputs`] names, of the model as the rewrites before
/// left it. Every call must give the same result for the same arguments: an interrupted run is taken up from stored
/// judgements, decisions and edits, and ends in the same bytes.
///
/// ```
/// # use tensorpress_tensor::rewrite::{BlockView, Decision, Edit, Judgement, ModelLayout};
/// # use tensorpress_tensor::{Method, Result, Rewrite, stats::Needs};
/// #
/// # #[derive(Debug)]
/// # struct EveryOther;
/// #
/// # impl Method for EveryOther {
/// #     fn id(&self) -> &'static str {
/// #         "every_other"
/// #     }
/// #     fn needs(&self) -> Needs {
/// #         Needs::NONE
/// #     }
/// # }
///
/// impl Rewrite for EveryOther {
/// #   fn keeps_blocks_alike(&self) -> bool {
/// #       true
/// #   }
/// #   fn fits(&self, _: &ModelLayout) -> Result<()> {
/// #       Ok(())
/// #   }
///     fn judge(&self, _: &ModelLayout, _: &BlockView<'_>) -> Result<Judgement> {
///         Ok(Judgement::new())
///     }
///     fn settle(&self, _: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
///         Ok((0..judgements.len()).map(|i| Decision::new().with_dropped(i % 2 == 1)).collect())
///     }
///     fn edit(
///         &self, _: &ModelLayout, _: &BlockView<'_>, _: &Judgement, decision: &Decision,
///     ) -> Result<Edit> {
///         Ok(if decision.dropped { Edit::dropped() } else { Edit::new() })
///     }
/// }
/// assert!(!EveryOther.needs_states() && EveryOther.inputs().len() > 1);
/// ```
pub trait Rewrite: Method {
    /// The inputs whose statistics it needs. Default: all.
    fn inputs(&self) -> &[SharedInput] {
        &SharedInput::ALL
    }

    /// It needs the hidden states before and after each block.
    fn needs_states(&self) -> bool {
        false
    }

    /// It needs what the head reads of the model with and without each block. That takes a pass through all that comes
    /// behind for every block.
    fn needs_outputs(&self) -> bool {
        false
    }

    /// It changes the head, [`Rewrite::edit_head`].
    fn changes_head(&self) -> bool {
        false
    }

    /// It needs to know what experts made of their tokens.
    fn needs_experts(&self) -> bool {
        false
    }

    /// It asks for this layer's share of what only a caller knows of weights, where [`Method::needs`] has any of that.
    /// Default: for every layer's.
    fn asks_of(&self, spec: &LinearSpec) -> bool {
        let _ = spec;
        true
    }

    /// Blocks that were alike stay alike, so that a config with one shape for all can say what is left.
    fn keeps_blocks_alike(&self) -> bool;

    /// A config that can say this much can say what is left, where blocks stay alike. Default: any can.
    fn is_sayable(&self, says: Sayable) -> bool {
        let _ = says;
        true
    }

    /// Refuses what is impossible in this model, before any work.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed; `Unsupported` for a kind of model.
    fn fits(&self, model: &ModelLayout) -> Result<()>;

    /// What there is to remember of a block.
    ///
    /// # Errors
    /// `Numerical` for weights that are not finite, naming the tensor. Statistics that cannot be used are no error: it
    /// falls back and says so in a note.
    fn judge(&self, model: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement>;

    /// Decides for all blocks at once: one decision for each judgement.
    ///
    /// # Errors
    /// As the method documents.
    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>>;

    /// What a decision does to its block. There are no statistics any more, but all the weights of the model.
    ///
    /// # Errors
    /// As [`Rewrite::judge`].
    fn edit(
        &self,
        model: &ModelLayout,
        block: &BlockView<'_>,
        judgement: &Judgement,
        decision: &Decision,
    ) -> Result<Edit>;

    /// What becomes of the head, once the edits of all blocks are made; `model` is the one with these edits. Asked if
    /// [`Rewrite::changes_head`]. All that an edit of a head can do is to change its matrix, and not its shape.
    ///
    /// # Errors
    /// As [`Rewrite::judge`].
    fn edit_head(&self, model: &ModelLayout, head: &HeadView<'_>) -> Result<Edit> {
        let _ = (model, head);
        Ok(Edit::new())
    }
}

/// Adds to the notes on a weight.
fn note(notes: &mut std::collections::BTreeMap<String, String>, weight: &str, text: &str) {
    let all = notes.entry(weight.to_owned()).or_default();
    if !all.is_empty() {
        all.push_str("; ");
    }
    all.push_str(text);
}
