use super::report::LayerReport;

/// What happens in a run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The work begins.
    Begun {
        /// Blocks of the model.
        blocks: usize,
        /// Blocks that an earlier run has finished.
        resumed: usize,
    },
    /// A rewrite (a stage that changes what the model is built of) judges a block, of the model as its predecessors left
    /// it; all rewrites are done before the work on the blocks begins. Blocks that an earlier run has judged are not told.
    Judged {
        /// The stage.
        stage: &'a str,
        /// Its number, from 0.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A backward pass through the model, for methods that want gradients; before the work on the blocks begins.
    Backward {
        /// Steps done: a group of windows through a block, forth or back.
        done: usize,
        /// Steps of the pass.
        steps: usize,
    },
    /// How many bits a block's matrices take by the step is being found, for methods whose matrices share bits; before the
    /// work on the blocks begins.
    Rated {
        /// Its number, from 0.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A block begins.
    Block {
        /// Its number, from 0.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// A layer is compressed and on disk.
    Layer(&'a LayerReport),
    /// A model was made and judged, in search of the smallest that keeps a divergence.
    Tried {
        /// Length of its weight files.
        bytes: u64,
        /// Its mean KL divergence.
        divergence: f64,
    },
    /// The folder is there.
    Finished,
}

/// Watches a run.
pub trait Progress {
    /// Something happened.
    fn event(&mut self, event: Event<'_>);
}
