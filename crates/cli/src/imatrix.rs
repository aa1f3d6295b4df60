//! `tensorpress imatrix`

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use tensorpress::Error;
use tensorpress::formats::imatrix as made;
use tensorpress::pipeline::{Importance, peak_rss_bytes};
use tensorpress::tensor::checkpoint::{write_atomically, write_new};

use crate::args::Imatrix;
use crate::calibration;
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::open::open;
use crate::output::{print, print_json, say};
use crate::progress::Bar;

#[derive(Serialize)]
struct Done {
    matrices: usize,
    tokens: u64,
    unseen: usize,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
}

/// Nothing but an importance matrix is replaced: neither the model nor the text.
fn check_target(out: &Path, force: bool) -> Outcome {
    if std::fs::symlink_metadata(out).is_err() {
        return Ok(());
    }
    if !force {
        return Err(Failure::Failed(Error::exists("exists already").in_file(out)));
    }
    let found = std::fs::read(out).map_err(|e| Error::io("read the file", out, e))?;
    if made::Imatrix::read(found).is_err() {
        return Err(Failure::Failed(
            Error::invalid("is no importance matrix; not replaced").in_file(out),
        ));
    }
    Ok(())
}

pub(crate) fn run(args: &Imatrix) -> Outcome {
    let begun = Instant::now();
    let out = &args.out;
    check_target(out, args.force)?;
    let opened = open(&args.model, args.base.as_deref())?;
    let Some(text) = calibration::read(&args.calibration, &opened)? else {
        return Err(Failure::Usage(
            "an importance matrix is made of a text: give one with --calib".into(),
        ));
    };
    let mut bar = Bar::new();
    let asked = interrupt::asked();
    let job = Importance::new(text).with_cancel(asked.clone()).with_progress(&mut bar);
    let made = opened.unmoved(job.run(&opened.source).map_err(Failure::Failed))?;
    let bytes = if args.old { made.write_old()? } else { made.write()? };
    let write = |file: &mut dyn Write| {
        file.write_all(&bytes).map_err(|e| Error::io("write the file", out, e))
    };
    if args.force {
        write_atomically(out, &mut |file| write(file))?
    } else {
        write_new(out, &mut |file| write(file))?
    }
    interrupt::no_more(&asked);
    let counts = || made.matrices.values().flat_map(|squares| squares.counts.iter().copied());
    let done = Done {
        matrices: made.matrices.len(),
        tokens: counts().fold(0.0, f32::max) as u64,
        unseen: counts().filter(|count| *count == 0.0).count(),
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
    };
    if done.unseen > 0 {
        say!("note: no token of the text came to {} experts' matrices", done.unseen);
    }
    if args.json {
        return print_json(&done);
    }
    print(&format!("{} matrices, {} tokens: {}\n", done.matrices, done.tokens, out.display()))
}
