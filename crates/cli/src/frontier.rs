//! `tensorpress frontier`

use std::path::Path;

use serde::Serialize;
use tensorpress::pipeline::{Frontier, Mix, Outlook, Point, Points, Target, partial_of};
use tensorpress::recipe::Recipe;
use tensorpress::{Error, Result};

use crate::args::Frontier as Args;
use crate::compress::{failed, segments, with_choice, within};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::open::open;
use crate::output::{bytes, print, print_json, say, table};
use crate::page;
use crate::progress::Bar;
use crate::{calibration, open::Opened};

/// The file of a frontier: the same after any number of stops.
#[derive(Serialize)]
struct Curve<'a> {
    bytes_before: u64,
    points: &'a [Point],
    notes: &'a [String],
    outlook: &'a Outlook,
}

/// Its name.
const FILE: &str = "frontier.json";

pub(crate) fn run(args: &Args) -> Outcome {
    let points = match &args.sizes {
        None => Points::new(args.points).with_judged(args.judged),
        Some(sizes) => Points::of(sizes.clone()),
    };
    check(args)?;
    let recipe = args.recipe.as_deref().map(Recipe::read).transpose();
    let recipe = recipe.map_err(|e| Failure::of_argument("--recipe", e))?;
    let compressor = within(with_choice(Mix::along(points), &args.choice)?, recipe)?;
    let opened = open(&args.model, args.base.as_deref())?;
    let text = calibration::read(&args.calibration, &opened)?;
    let format = args.format.as_deref().map(str::parse::<Target>).transpose();
    let format = format.map_err(|e| Failure::of_argument("--format", e))?;
    let judged = judged(args, &opened)?;
    let mut bar = Bar::new();
    let mut compressor = compressor
        .with_judged_on(judged)
        .with_inputs(args.calib_inputs.into())
        .with_seed(args.seed)
        .with_force(args.force)
        .with_from_quantized(args.from_quantized)
        .with_cancel(interrupt::asked())
        .with_progress(&mut bar);
    if let Some(text) = text {
        compressor = compressor.with_calibration(text);
    }
    if let Some(format) = format {
        compressor = compressor.with_format(format);
    }
    let mut publish = |frontier: &Frontier| write(args, frontier);
    let made = compressor.frontier(&opened.source, &args.out, &mut publish);
    let frontier =
        made.map_err(|e| failed(e, &opened, args.from_quantized, &partial_of(&args.out)))?;
    frontier.notes.iter().for_each(|note| say!("note: {note}"));
    if args.json { print_json(&frontier) } else { show(args, &frontier) }
}

fn judged(args: &Args, opened: &Opened) -> Outcome<Vec<Vec<u32>>> {
    let bos = args.calibration.bos;
    segments("--eval", args.eval.as_ref(), bos, args.limits, opened)
}

/// That the folder may be written, which is better said before the work. One without a curve is none yet: its last run was
/// stopped as it wrote.
fn check(args: &Args) -> Result<()> {
    let out = args.out.as_path();
    if !args.force && out.join(FILE).exists() {
        return Err(Error::exists("exists already").in_file(out));
    }
    let there = std::fs::symlink_metadata(out).ok();
    if there.is_some_and(|found| !found.is_dir()) {
        return Err(Error::invalid("is in the way: it is no folder").in_file(out));
    }
    if out.join("config.json").exists() {
        return Err(Error::invalid("holds a model; write elsewhere").in_file(out));
    }
    Ok(())
}

/// Writes the folder: it appears whole. Into one that is there already its files go one by one, the curve last.
fn write(args: &Args, frontier: &Frontier) -> Result<()> {
    let out = args.out.as_path();
    if out.is_dir() {
        return write_into(out, args, frontier);
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    // What a stopped run has left there is written over.
    let unfinished = out.with_file_name(format!(".{name}.unfinished"));
    let fail = |e| Error::io("make the folder", out, e);
    std::fs::create_dir_all(&unfinished).map_err(fail)?;
    write_into(&unfinished, args, frontier)?;
    std::fs::rename(&unfinished, out).map_err(fail)
}

fn write_into(out: &Path, args: &Args, frontier: &Frontier) -> Result<()> {
    let Frontier { bytes_before, points, notes, outlook, .. } = frontier;
    let curve = Curve { bytes_before: *bytes_before, points, notes, outlook };
    let text = serde_json::to_vec_pretty(&curve).expect("a curve is JSON");
    let page = args.rivals.on(frontier.page(&args.model));
    let plot = page.curve.as_ref().and_then(|curve| curve.svg().ok().flatten());
    page::write(page, &out.join("report.html"))?;
    if let Some(svg) = plot {
        page::write_file(svg.as_bytes(), &out.join("curve.svg"))?;
    }
    page::write_file(&text, &out.join(FILE))
}

fn show(args: &Args, frontier: &Frontier) -> Outcome {
    let head = ["size", "of the source", "bits per weight", "KL divergence", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for point in &frontier.points {
        let share = point.bytes as f64 / frontier.bytes_before.max(1) as f64;
        let (divergence, how) = match point.divergence {
            Some(divergence) => (divergence, "judged"),
            None => (point.expected, "expected"),
        };
        rows.push(vec![
            bytes(point.bytes),
            format!("{:.1} %", 100.0 * share),
            format!("{:.4}", point.bits_per_weight),
            format!("{divergence:.6}"),
            how.to_owned(),
        ]);
    }
    let (file, seconds) = (args.out.join(FILE), frontier.seconds);
    print(&format!("{}\n{} in {seconds:.1} s\n", table(&rows), file.display()))
}
