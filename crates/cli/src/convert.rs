//! `tensorpress convert`

use serde::Serialize;
use tensorpress::formats::imatrix::Imatrix;
use tensorpress::pipeline::{ConversionReport, Convert, float_type, partial_of};
use tensorpress::{Error, ErrorKind};

use crate::args;
use crate::calibration;
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::open::open;
use crate::output::{bytes, print, print_json, say, shown, table};
use crate::progress::Bar;

#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: ConversionReport,
    lossless: bool,
}

pub(crate) fn run(args: &args::Convert) -> Outcome {
    let target = args.to.parse().map_err(|e| Failure::of_argument("--to", e))?;
    let dtype = args.dtype.as_deref().map(float_type).transpose();
    let dtype = dtype.map_err(|e| Failure::of_argument("--dtype", e))?;
    let opened = open(&args.model, args.base.as_deref())?;
    let mut bar = Bar::new();
    let asked = interrupt::asked();
    let mut job = Convert::new(target)
        .with_requantize(args.requantize)
        .with_force(args.force)
        .with_cancel(asked.clone())
        .with_progress(&mut bar);
    if let Some(path) = &args.imatrix {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read the file", path, e))?;
        job = job.with_importance(Imatrix::read(bytes).map_err(|e| e.in_file(path))?);
    }
    if let Some(bytes) = args.shard_size {
        job = job.with_shard_size(bytes);
    }
    // Only what is asked for: importance changes what the types hold.
    if args.calibration.calib.is_some()
        && let Some(text) = calibration::read(&args.calibration, &opened)?
    {
        job = job.with_calibration(text);
    }
    if let Some(dtype) = dtype {
        job = job.with_dtype(dtype);
    }
    let partial = partial_of(&args.out);
    let report = opened.unmoved(job.run(&opened.source, &args.out).map_err(|e| {
        let curable = matches!(e.kind(), ErrorKind::Io | ErrorKind::Interrupted);
        if curable && partial.exists() {
            say!("unfinished work is kept in {}; the same command resumes it", partial.display());
        }
        Failure::Failed(e)
    }))?;
    interrupt::no_more(&asked);
    report.notes.iter().for_each(|note| say!("note: {note}"));
    let done = Done { lossless: report.tensors.iter().all(|tensor| tensor.lossless), report };
    if args.json { print_json(&done) } else { print(&describe(args, &done)) }
}

fn describe(args: &args::Convert, done: &Done) -> String {
    let report = &done.report;
    let mut rows = vec![["tensor", "was", "is", "error"].map(str::to_owned).to_vec()];
    for tensor in &report.tensors {
        let error = match (tensor.lossless, tensor.error) {
            (true, _) => "0".to_owned(),
            (false, Some(error)) => format!("{error:.5}"),
            (false, None) => "?".to_owned(),
        };
        rows.push(vec![shown(&tensor.name), tensor.from.clone(), tensor.to.clone(), error]);
    }
    let mut text = table(&rows);
    text.push('\n');
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row =
        |name: &str, value: String| rows.push(vec![name.to_owned(), format!("  {value}")]);
    row("size", format!("{} -> {}", bytes(report.bytes_before), bytes(report.bytes_after)));
    let kept = report.tensors.iter().filter(|tensor| tensor.lossless).count();
    let all = report.tensors.len();
    row("values kept", format!("{kept} of {all} tensors that changed their form"));
    row("time", format!("{:.1} s", report.seconds));
    if let Some(peak) = report.peak_rss_bytes {
        row("peak memory", bytes(peak));
    }
    row(
        if report.target.starts_with("gguf") { "file" } else { "folder" },
        args.out.display().to_string(),
    );
    text + &table(&rows)
}
