//! The text that commands calibrate on.

use tensorpress::pipeline::CalibrationText;

use crate::args::Calibration;
use crate::eval;
use crate::failure::Outcome;
use crate::open::Opened;

/// What to calibrate on, if something is given.
pub(crate) fn read(args: &Calibration, opened: &Opened) -> Outcome<Option<CalibrationText>> {
    let text = match (&args.calib, &opened.texts) {
        (Some(file), _) => eval::read(file)?,
        (None, Some(texts)) => texts.calibration.into(),
        (None, None) => return Ok(None),
    };
    let text = CalibrationText::new(text)
        .with_chars(args.calib_chars)
        .with_windows(args.calib_windows)
        .with_bos(args.bos.into());
    Ok(Some(match args.calib_length {
        Some(length) => text.with_length(length),
        None => text,
    }))
}
