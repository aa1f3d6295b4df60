//! `tensorpress pack`

use std::time::Instant;

use serde::Serialize;
use tensorpress::entropy::container::PackReport;
use tensorpress::entropy::{self, Base, Packer};
use tensorpress::pipeline::peak_rss_bytes;

use crate::args::{Effort, Pack};
use crate::failure::Outcome;
use crate::interrupt;
use crate::output::{bytes, print, print_json, ratio, table};
use crate::progress::packing;

#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: PackReport,
    ratio: f64,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
}

pub(crate) fn run(args: &Pack) -> Outcome {
    let begun = Instant::now();
    let effort = match args.effort {
        Effort::Fast => entropy::Effort::Fast,
        Effort::Best => entropy::Effort::Best,
    };
    let base = args.base.as_ref().map(Base::open).transpose()?;
    let (bar, mut tell) = packing("packing", interrupt::asked());
    let mut packer =
        Packer::new().with_effort(effort).with_force(args.force).with_progress(&mut tell);
    if let Some(base) = base {
        packer = packer.with_base(base);
    }
    let report = packer.pack(&args.from, &args.out)?;
    bar.finish_and_clear();
    let done = Done {
        ratio: ratio(report.bytes_after, report.bytes_before),
        report,
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
    };
    if args.json { print_json(&done) } else { print(&describe(args, &done)) }
}

fn describe(args: &Pack, done: &Done) -> String {
    let report = &done.report;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row =
        |name: &str, value: String| rows.push(vec![name.to_owned(), format!("  {value}")]);
    let (before, after) = (bytes(report.bytes_before), bytes(report.bytes_after));
    row("size", format!("{before} -> {after} ({:.2} %)", 100.0 * done.ratio));
    row("files", report.files.to_string());
    row("tensors", report.tensors.to_string());
    if report.duplicate_bytes > 0 {
        row("stored once", format!("{} that were there before", bytes(report.duplicate_bytes)));
    }
    if let Some(base) = &args.base {
        let what = format!("{} tensors, from {}", report.delta_tensors, base.display());
        row("differences", what);
    }
    row("index", bytes(report.index_bytes));
    row("time", format!("{:.1} s", done.seconds));
    if let Some(peak) = done.peak_rss_bytes {
        row("peak memory", bytes(peak));
    }
    row("file", args.out.display().to_string());
    table(&rows)
}
