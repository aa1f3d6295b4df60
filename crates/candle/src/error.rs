//! Errors of tensorpress as those of candle.

use candle_core::Error;

/// The error of tensorpress, which already names tensor and file.
pub(crate) fn wrapped(error: tensorpress_tensor::Error) -> Error {
    Error::wrap(error)
}

/// What `bail!` makes of a message.
pub(crate) fn message(message: impl Into<String>) -> Error {
    Error::Msg(message.into()).bt()
}
