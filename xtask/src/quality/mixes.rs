//! Targets beside what one level for all comes to.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Judge, json, judge, judged, program, run};
use crate::{Outcome, root};

/// Bits a weight that are asked for.
const RATES: [f64; 6] = [2.25, 2.6, 3.0, 3.5, 4.25, 4.5];

/// Recipes of one fixed rate for all matrices, about as many bits or a few more.
const FIXED: [&str; 12] = [
    "drift | yaqa | qtip(bits=2)",
    "gptq(bits=2, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=2, group=32, clip=mse)",
    "drift | yaqa | qtip(bits=3)",
    "gptq(bits=3, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=3, group=32, clip=mse)",
    "drift | yaqa | qtip(bits=4)",
    "gptq(bits=4, group=64, clip=mse)",
    "awq(bits=4, group=64, clip=mse)",
    "kmeans(bits=4, rows=16)",
    "drift | yaqa | ggml(type=IQ4_NL)",
    "drift | yaqa | qtip(bits=5)",
];

/// Types of a file, for all matrices: as ggml fills them, and by feedback.
const TYPES: [&str; 5] = ["IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q8_0"];

/// Prints what targets come to, of bits and of files, and beside them one level for all.
pub fn mixes(model: &str) -> Outcome {
    let program = program()?;
    let judge = judge(model)?;
    println!("| matrices | bits | KLD | seconds | MB |\n|---|---|---|---|---|");
    for rate in RATES {
        let (report, kld) = target(&program, &judge, &["--target-bpw", &rate.to_string()], "out")?;
        row(&format!("--target-bpw {rate}"), &report, kld);
    }
    for recipe in FIXED {
        match run(&program, &judge, recipe, 64, "compressed") {
            Ok((report, kld)) => row(recipe, &report, kld),
            Err(error) => println!("| `{}` | {error} |", recipe.replace('|', "\\|")),
        }
    }
    println!("\n| file | bytes | KLD |\n|---|---|---|");
    let out = root().join("target/quality/mixed.gguf");
    for ty in TYPES {
        let mut convert = Command::new(&program);
        convert.arg("convert").arg(&judge.model).args(["--to", &format!("gguf({ty})")]);
        convert.arg("--out").arg(&out).args(["--json", "--force"]);
        convert.arg("--calib").arg(&judge.calibration).args(judge.reading);
        let report = json(convert.args(["--calib-windows", "64"]))?;
        let (bytes, kld) = (&report["bytes_after"], judged(&program, &judge, &out)?);
        println!("| {ty} by ggml's own code | {bytes} | {kld:.6} |");
        let (size, file) = (bytes.to_string(), ["--format", "gguf"]);
        let same = [&["--target-size", size.as_str()][..], &file].concat();
        let (report, kld) = target(&program, &judge, &same, "mixed.gguf")?;
        println!("| types mixed, of no more bytes | {} | {kld:.6} |", report["bytes_after"]);
    }
    Ok(())
}

fn row(name: &str, report: &Value, kld: f64) {
    let of = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    println!(
        "| `{}` | {:.4} | {kld:.6} | {:.0} | {:.0} |",
        name.replace('|', "\\|"),
        of("bits_per_weight"),
        of("seconds"),
        of("peak_rss_bytes") / 1e6
    );
}

/// The report of a target, and the divergence of what came of it.
fn target(program: &Path, judge: &Judge, words: &[&str], name: &str) -> Outcome<(Value, f64)> {
    let out = root().join("target/quality").join(name);
    let mut compress = Command::new(program);
    compress.arg("compress").arg(&judge.model).args(words).args(["--json", "--force"]);
    compress.arg("--out").arg(&out).arg("--calib").arg(&judge.calibration).args(judge.reading);
    let report = json(compress.args(["--calib-windows", "64"]))?;
    Ok((report, judged(program, judge, &out)?))
}
