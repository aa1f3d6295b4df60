//! How far the work is, and whether it goes on.

use std::ops::ControlFlow;

use tensorpress_tensor::{Error, Result};

/// How far packing, unpacking or verifying has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the unpacked files that are done.
    pub done: u64,
    /// Bytes of the unpacked files.
    pub total: u64,
    /// Bytes they take in the packed file so far.
    pub stored: u64,
}

/// Is told how far the work is; `Break` stops it with `Interrupted`, and leaves nothing behind.
pub type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + Send + 'a;

/// Tells the watch.
pub(super) fn tell(watch: &mut Option<&mut Watch<'_>>, progress: Progress) -> Result<()> {
    match watch.as_mut().map(|watch| watch(progress)) {
        Some(ControlFlow::Break(())) => Err(Error::interrupted("stopped as asked")),
        _ => Ok(()),
    }
}
