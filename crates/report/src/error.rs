//! What can go wrong: little, as data of any kind makes a page.

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no page or no plot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plot could not be drawn.
    #[error("cannot draw {plot}: {message}")]
    Plot {
        /// Its title.
        plot: String,
        /// What the drawing said.
        message: String,
    },
    /// A text could not be written.
    #[error("cannot write the page: {0}")]
    Write(#[from] std::fmt::Error),
}
