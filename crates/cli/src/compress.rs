//! `tensorpress compress`

use std::path::{Path, PathBuf};

use serde::Serialize;
use tensorpress::bill::Bill;
use tensorpress::model::{Source, compare};
use tensorpress::pipeline::{Budget, Compressor, Mix, Report, Target, partial_of, peak_rss_bytes};
use tensorpress::recipe::Recipe;
use tensorpress::{Error, ErrorKind, open_model};

use crate::args::{Bos, Choice, Compress, Limits};
use crate::calibration;
use crate::eval::{Verdict, decoder, text_of};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::open::{Opened, open};
use crate::output::{bytes, itemised, print, print_json, say, shown, table};
use crate::page;
use crate::progress::{Bar, judging};

/// The report, and the judgements if they were asked for.
#[derive(Serialize)]
struct Result {
    #[serde(flatten)]
    report: Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Verdict>,
}

pub(crate) fn run(args: &Compress) -> Outcome {
    let compressor = compressor(args)?;
    match &args.report {
        Some(path) => page::check(path, args.force)?,
        None if !args.rivals.all.is_empty() => {
            return Err(Failure::Usage("--rival is for the page of --report".to_owned()));
        }
        None => {}
    }
    let opened = open(&args.model, args.base.as_deref())?;
    let text = calibration::read(&args.calibration, &opened)?;
    let format = args.format.as_deref().map(str::parse::<Target>).transpose();
    let format = format.map_err(|e| Failure::of_argument("--format", e))?;
    // A text that cannot be read or encoded is better found before the work.
    let mut judged = match &args.eval {
        None => None,
        Some(file) => {
            let bos = args.calibration.bos;
            Some(segments("--eval", file.as_ref(), bos, args.limits, &opened)?)
        }
    };
    let sought = args.max_kld.and(judged.as_mut()).map(alternate).transpose()?;
    let mut bar = Bar::new();
    let asked = interrupt::asked();
    let mut compressor = compressor
        .with_inputs(args.calib_inputs.into())
        .with_seed(args.seed)
        .with_force(args.force)
        .with_from_quantized(args.from_quantized)
        .with_cancel(asked.clone())
        .with_progress(&mut bar);
    if let Some(text) = text {
        compressor = compressor.with_calibration(text);
    }
    if let Some(segments) = sought {
        compressor = compressor.with_judged_on(segments);
    }
    if let Some(format) = format {
        compressor = compressor.with_format(format);
    }
    let made = compressor.run(&opened.source, &args.out);
    let report =
        made.map_err(|e| failed(e, &opened, args.from_quantized, &partial_of(&args.out)))?;
    let stopped = interrupt::no_more(&asked);
    report.notes.iter().for_each(|note| say!("note: {note}"));
    let mut result = Result { report, before: None, after: None };
    if let Some(segments) = judged {
        if stopped {
            return Err(Failure::Stopped);
        }
        judge(args, &opened.source, &segments, &mut result)?;
        result.report.peak_rss_bytes = peak_rss_bytes();
    }
    if let Some(path) = &args.report {
        let judged = result.after.as_ref().and_then(|after| after.kld_mean);
        page::write(args.rivals.on(result.report.page(&args.model, judged)), path)?;
    }
    if args.json { print_json(&result) } else { show(args, &result) }
}

/// What a person is to know of an error: what would help, and what is kept.
pub(crate) fn failed(e: Error, opened: &Opened, from_quantized: bool, partial: &Path) -> Failure {
    if e.kind() == ErrorKind::Unsupported && !opened.source.trees().is_empty() && !from_quantized {
        return Failure::Failed(
            Error::unsupported(format!("{}, or say --from-quantized", e.message()))
                .in_tensor(e.tensor().unwrap_or_default()),
        );
    }
    if e.kind() == ErrorKind::MissingCalibration {
        return Failure::Usage(format!("{e}: give one with --calib"));
    }
    let curable = matches!(e.kind(), ErrorKind::Io | ErrorKind::Interrupted);
    if curable && partial.exists() {
        say!("unfinished work is kept in {}; the same command resumes it", partial.display());
    }
    Failure::Failed(e)
}

/// Takes every second segment out, from the first on.
fn alternate(segments: &mut Vec<Vec<u32>>) -> Outcome<Vec<Vec<u32>>> {
    if segments.len() < 2 {
        let message = "--max-kld: one half of the segments of --eval is to find a size, the other to judge it; there is \
                       only one";
        return Err(Failure::Usage(message.to_owned()));
    }
    let (sought, kept): (Vec<_>, Vec<_>) =
        std::mem::take(segments).into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    *segments = kept.into_iter().map(|(_, segment)| segment).collect();
    Ok(sought.into_iter().map(|(_, segment)| segment).collect())
}

/// By the recipe, or within the target.
fn compressor<'a>(args: &Compress) -> Outcome<Compressor<'a>> {
    let recipe = args.recipe.as_deref().map(Recipe::read).transpose();
    let recipe = recipe.map_err(|e| Failure::of_argument("--recipe", e))?;
    let budget = match (args.target_size, args.target_bpw, args.max_kld) {
        (Some(bytes), ..) => Some(Budget::FileBytes(bytes)),
        (_, Some(bits), _) => Some(Budget::BitsPerWeight(bits)),
        (.., limit) => limit.map(Budget::Divergence),
    };
    let Some(budget) = budget else {
        let Choice { levels, measured, max_time, max_token_ms } = &args.choice;
        if levels.is_some() || *measured || max_time.is_some() || max_token_ms.is_some() {
            let message = "--levels, --measured, --max-time and --max-token-ms are for targets, not for a --recipe";
            return Err(Failure::Usage(message.to_owned()));
        }
        return Ok(Compressor::new(recipe.unwrap_or_default()));
    };
    within(with_choice(Mix::new(budget), &args.choice)?, recipe)
}

/// A mix, behind the stages of a recipe that change whole blocks.
pub(crate) fn within<'a>(mix: Mix, recipe: Option<Recipe>) -> Outcome<Compressor<'a>> {
    let compressor = Compressor::within(mix);
    match recipe {
        None => Ok(compressor),
        Some(recipe) => {
            compressor.with_rewrites_of(recipe).map_err(|e| Failure::of_argument("--recipe", e))
        }
    }
}

/// A mix of these levels, looked for so.
pub(crate) fn with_choice(mut mix: Mix, choice: &Choice) -> Outcome<Mix> {
    mix = mix.with_measured(choice.measured);
    if let Some(max_time) = choice.max_time {
        mix = mix.with_max_time(max_time);
    }
    if let Some(token_time) = choice.max_token_ms {
        mix = mix.with_token_time(token_time);
    }
    if let Some(levels) = &choice.levels {
        let levels = levels.split(';').map(str::trim).filter(|level| !level.is_empty());
        mix = mix.with_levels(levels).map_err(|e| Failure::of_argument("--levels", e))?;
    }
    Ok(mix)
}

/// What is to be judged on.
pub(crate) fn segments(
    flag: &str,
    file: Option<&PathBuf>,
    bos: Bos,
    limits: Limits,
    opened: &Opened,
) -> Outcome<Vec<Vec<u32>>> {
    let text = text_of(flag, file.map(PathBuf::as_path), opened)?;
    let source = &opened.source;
    source.need_forward()?;
    if !source.config().architecture.is_decoder() {
        let message = format!("{flag}: an encoder predicts no tokens");
        return Err(Failure::Usage(message));
    }
    source.need_head()?;
    Ok(text.segments(source, bos.into(), limits.into())?)
}

fn judge(args: &Compress, source: &Source, segments: &[Vec<u32>], result: &mut Result) -> Outcome {
    let compressed = open_model(&args.out)?;
    let (bar, tell) = judging("judging");
    let judgement = compare(&decoder(source)?, &decoder(&compressed)?, segments, &tell)?;
    bar.finish_and_clear();
    let (was, is) = (Bill::of(source)?, &result.report.bill);
    let after = Verdict::new(&judgement, is.bits_per_weight, is.file_bytes);
    result.before = Some(Verdict {
        perplexity: judgement.reference_perplexity.unwrap_or(f64::NAN),
        reference_perplexity: None,
        kld_mean: None,
        kld_p99: None,
        top1_agreement: None,
        bits_per_weight: was.bits_per_weight,
        file_bytes: was.file_bytes,
        tokens: judgement.tokens,
        kv: None,
    });
    result.after = Some(after);
    Ok(())
}

fn show(args: &Compress, result: &Result) -> Outcome {
    let Result { report, before, after } = result;
    let bill = &report.bill;
    let mut rows = vec![["layer", "method", "bits", "error"].map(str::to_owned).to_vec()];
    for layer in &report.layers {
        let error = layer.error.map_or("-".to_owned(), |e| format!("{e:.5}"));
        let bits = format!("{:.3}", layer.bits_per_weight);
        rows.push(vec![shown(&layer.name), layer.method.clone(), bits, error]);
    }
    let mut text = table(&rows);
    text.push('\n');
    if !report.blocks.is_empty() {
        let head = ["block", "heads", "for keys and values", "feed-forward"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(report.blocks.iter().map(|block| {
            let (was, is) = (&block.before, &block.after);
            let change = |was: usize, is: usize| format!("{was} -> {is}");
            vec![
                block.block.to_string(),
                change(was.heads, is.heads),
                change(was.kv_heads, is.kv_heads),
                change(was.intermediate, is.intermediate),
            ]
        }));
        text += &table(&rows);
        text.push('\n');
    }
    let share = report.bytes_after as f64 / report.bytes_before.max(1) as f64;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row =
        |name: &str, value: String| rows.push(vec![name.to_owned(), format!("  {value}")]);
    row(
        "size",
        format!(
            "{} -> {} ({:.1} %)",
            bytes(report.bytes_before),
            bytes(report.bytes_after),
            100.0 * share
        ),
    );
    row(
        "bits per weight",
        format!("{:.4} ({})", report.bits_per_weight, itemised(&bill.storage, bill.weights)),
    );
    row(
        "the rest",
        format!(
            "{} of other tensors, {} of headers",
            bytes(bill.uncompressed_bytes),
            bytes(bill.container_bytes)
        ),
    );
    if let (Some(before), Some(after)) = (before, after) {
        row("perplexity", format!("{:.4} -> {:.4}", before.perplexity, after.perplexity));
        if let (Some(kld), Some(p99), Some(top1)) =
            (after.kld_mean, after.kld_p99, after.top1_agreement)
        {
            row("mean KL divergence", format!("0 -> {kld:.6} (99th percentile {p99:.6})"));
            row("top-1 agreement", format!("100 % -> {:.2} %", 100.0 * top1));
        }
        row("predictions", after.tokens.to_string());
    }
    row("time", format!("{:.1} s", report.seconds));
    if let Some(peak) = report.peak_rss_bytes {
        row("peak memory", bytes(peak));
    }
    let file = args.out.is_file();
    row(if file { "file" } else { "folder" }, args.out.display().to_string());
    let fallbacks = report.layers.iter().filter(|layer| layer.fallback.is_some()).count();
    if fallbacks > 0 {
        row("fallbacks", format!("{fallbacks} layers:"));
    }
    text += &table(&rows);
    for layer in report.layers.iter() {
        if let Some(reason) = &layer.fallback {
            text += &format!("  {}: {reason}\n", shown(&layer.name));
        }
    }
    print(&text)
}
