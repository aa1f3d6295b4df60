//! `tensorpress unpack`

use std::time::Instant;

use serde::Serialize;
use tensorpress::pipeline::peak_rss_bytes;

use crate::args::Unpack;
use crate::failure::Outcome;
use crate::interrupt;
use crate::open::open_packed;
use crate::output::{bytes, print, print_json, ratio};
use crate::progress::packing;

#[derive(Serialize)]
struct Done {
    bytes_before: u64,
    bytes_after: u64,
    ratio: f64,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
    files: usize,
    tensors: usize,
}

pub(crate) fn run(args: &Unpack) -> Outcome {
    let begun = Instant::now();
    let packed = open_packed(&args.packed, args.base.as_deref())?;
    let (bar, mut tell) = packing("unpacking", interrupt::asked());
    packed.unpack(&args.out, args.force, Some(&mut tell))?;
    bar.finish_and_clear();
    let (before, after) = (packed.stored_bytes(), packed.unpacked_bytes());
    let index = packed.index();
    let done = Done {
        bytes_before: before,
        bytes_after: after,
        ratio: ratio(before, after),
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        files: index.files.len(),
        tensors: index.segments.iter().filter(|s| s.tensor.is_some()).count(),
    };
    if args.json {
        return print_json(&done);
    }
    let (seconds, files) = (done.seconds, done.files);
    print(&format!(
        "{} -> {}, {files} files, checked, in {seconds:.1} s: {}\n",
        bytes(before),
        bytes(after),
        args.out.display()
    ))
}
