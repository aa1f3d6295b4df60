//! What the best recipe owes to each of its parts, and how it stands beside the types of GGUF, on real models.

mod caches;
mod lists;
mod mixes;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Outcome, cargo, execute, root, shared};
pub use caches::caches;
use lists::{LINES, Line, METHODS, TYPES};
pub use mixes::mixes;

/// A model, what it is calibrated on and judged by.
#[derive(Clone)]
struct Judge {
    model: PathBuf,
    calibration: PathBuf,
    text: PathBuf,
    /// How a text is read for calibration, and for judging.
    reading: &'static [&'static str],
    judging: &'static [&'static str],
}

/// Prints the table of a model: `stories3m`, or a folder that `tools/smollm2.py` made; of all lines or of those whose words
/// hold one of `only`.
pub fn ablation(model: &str, only: &[&str]) -> Outcome {
    let program = program()?;
    let judge = judge(model)?;
    println!("| the best recipe at 3 bits, with | bits | KLD | x 4^bits | seconds | MB |");
    println!("|---|---|---|---|---|---|");
    let chosen = |line: &&Line| only.is_empty() || only.iter().any(|o| line.without.contains(o));
    for line in LINES.iter().filter(chosen) {
        let (report, kld) = run(&program, &judge, line.recipe, line.windows, line.inputs)?;
        let of = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
        let bits = of("bits_per_weight");
        println!(
            "| {} | {bits:.3} | {kld:.4} | {:.1} | {:.0} | {:.0} |",
            line.without,
            kld * 4f64.powf(bits),
            of("seconds"),
            of("peak_rss_bytes") / 1e6
        );
    }
    Ok(())
}

/// Prints what each method makes of a model.
pub fn methods(model: &str) -> Outcome {
    let program = program()?;
    let judge = judge(model)?;
    println!("| recipe | bits | KLD | x 4^bits | seconds |");
    println!("|---|---|---|---|---|");
    for recipe in METHODS {
        let (report, kld) = run(&program, &judge, recipe, 64, "compressed")?;
        let of = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
        let (bits, recipe) = (of("bits_per_weight"), recipe.replace('|', "\\|"));
        let scaled = kld * 4f64.powf(bits);
        println!("| `{recipe}` | {bits:.3} | {kld:.4} | {scaled:.1} | {:.0} |", of("seconds"));
    }
    Ok(())
}

/// Prints bytes of the whole file against the divergence, matrices by the best recipe at 3 bits: the table of embeddings (and
/// head) as it was, rounded to nearest, and coded by the same loss.
pub fn embeddings(model: &str) -> Outcome {
    const MATRICES: &str = "stage = ['drift', 'watersic(bits=3)', 'coded(rans)']\n";
    let program = program()?;
    let judge = judge(model)?;
    let recipe = root().join("target/quality/recipe.toml");
    println!("| embeddings | bytes of the file | KLD |\n|---|---|---|");
    let rounded = [8, 6, 5, 4].map(|bits| vec![format!("rtn(bits={bits}, group=64, clip=mse)")]);
    let coded =
        [6, 5, 4, 3, 2].map(|b| vec![format!("watersic(bits={b})"), "coded(rans)".to_owned()]);
    for stages in std::iter::once(Vec::new()).chain(rounded).chain(coded) {
        let named: Vec<String> = stages.iter().map(|stage| format!("'{stage}'")).collect();
        let rule = match named.is_empty() {
            true => String::new(),
            false => {
                let stages = named.join(", ");
                format!("[[layer]]\nmatch = '*embed_tokens*'\nstage = [{stages}]\n")
            }
        };
        std::fs::write(&recipe, format!("{MATRICES}{rule}"))
            .map_err(|e| format!("{}: {e}", recipe.display()))?;
        let (report, kld) = run(&program, &judge, &recipe.to_string_lossy(), 64, "compressed")?;
        let name = if stages.is_empty() { "as they were".to_owned() } else { stages.join(" | ") };
        println!("| {} | {} | {kld:.4} |", name.replace('|', "\\|"), report["bytes_after"]);
    }
    Ok(())
}

/// Prints how types of GGUF do on the matrices of a folder that `tools/smollm2.py` made, filled by ggml's own code
/// (libggml-base of a wheel of PyPI) and by feedback, beside coded grids and a fixed trellis of no more bits. Rows that
/// blocks of 256 do not divide are padded with zeros, which count for nothing.
pub fn rivals(model: &str, types: &[&str]) -> Outcome {
    if let Some(unknown) = types.iter().find(|of| !TYPES.iter().any(|(name, ..)| name == *of)) {
        let names: Vec<&str> = TYPES.iter().map(|(name, ..)| *name).collect();
        return Err(format!("no type `{unknown}`: there are {}", names.join(", ")));
    }
    let program = program()?;
    let judge = judge(model)?;
    let folder = root().join("target/rivals");
    let [made, padded] = ["made", "padded"].map(|name| folder.join(name));
    for folder in [&made, &padded] {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let script = root().join("xtask/src/quality/rivals.py");
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
    }
    // Every time: a run may have been stopped between the two.
    execute(Command::new(&python).args(["-m", "pip", "install", "-q", "numpy"]))?;
    let importance = folder.join("importance.gguf");
    let mut imatrix = Command::new(&program);
    imatrix.arg("imatrix").arg(&judge.model).arg("--out").arg(&importance).arg("--force");
    imatrix.arg("--calib").arg(&judge.calibration).args(judge.reading);
    execute(imatrix.stdout(Stdio::null()))?;
    execute(Command::new(&python).arg(&script).arg("padded").args([&judge.model, &padded]))?;
    let wide = Judge { model: padded, ..judge.clone() };
    println!("| type | bits | ggml's | of | KLD | to ggml's |\n|---|---|---|---|---|---|");
    for (name, bytes, values) in TYPES {
        if !types.is_empty() && !types.contains(&name) {
            continue;
        }
        let bits = (8 * bytes) as f64 / values as f64;
        let mut ggml = Command::new(&python);
        ggml.arg(&script).arg("ggml").args([&judge.model, &folder]).arg(name);
        execute(ggml.args([&importance, &made]))?;
        let of_ggml = judged(&program, &judge, &made)?;
        let plain = name.trim_end_matches('+');
        let mut ours = vec![
            (&judge, format!("drift | watersic(bits={:.2}) | coded(rans)", bits - 0.01)),
            (&judge, format!("drift | yaqa | qtip(bits={})", bits as usize)),
        ];
        if plain != "IQ3_XXS" {
            let model = if values == 256 { &wide } else { &judge };
            ours.push((model, format!("drift | yaqa | ggml(type={plain})")));
        }
        for (judge, recipe) in ours {
            let (report, kld) = run(&program, judge, &recipe, 64, "compressed")?;
            let made_bits = match std::ptr::eq(judge, &wide) {
                true => bits,
                false => report["bits_per_weight"].as_f64().unwrap_or(f64::NAN),
            };
            let recipe = recipe.replace('|', "\\|");
            let ratio = kld / of_ggml;
            println!(
                "| {name} | {bits:.4} | {of_ggml:.5} | `{recipe}`, {made_bits:.3} bits | {kld:.5} | {ratio:.2} |"
            );
        }
    }
    Ok(())
}

fn program() -> Outcome<PathBuf> {
    // One that is built already, for a look at two versions side by side.
    if let Ok(path) = std::env::var("TENSORPRESS_PROGRAM") {
        return Ok(PathBuf::from(path));
    }
    execute(&mut cargo(&["build", "--release", "-p", "tensorpress-cli"]))?;
    Ok(crate::tools::target().join("release/tensorpress"))
}

fn judge(model: &str) -> Outcome<Judge> {
    let texts = shared().join("data/text");
    if model == "stories3m" {
        return Ok(Judge {
            model: shared().join("data/models/stories3m"),
            calibration: texts.join("tinystories_train_2MB_calib.txt"),
            text: texts.join("tinystories_val_250stories.jsonl"),
            reading: &["--calib-chars", "500000"],
            judging: &["--max-segments", "60", "--max-tokens", "400"],
        });
    }
    // The protocol of SmolLM2: judged on the first 60,000 bytes of a text, calibrated on 800,000 far behind them.
    let path = texts.join("wikitext2_test.txt");
    let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let folder = root().join("target/quality");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let part = |name: &str, bytes: std::ops::Range<usize>| -> Outcome<PathBuf> {
        let path = folder.join(name);
        let bytes = text.get(bytes).ok_or("the text is too short")?;
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    };
    Ok(Judge {
        model: PathBuf::from(model),
        calibration: part("calibration.txt", 400_000..1_200_000)?,
        text: part("judge.txt", 0..60_000)?,
        reading: &["--calib-chars", "800000", "--calib-length", "256", "--bos", "always"],
        judging: &["--max-segments", "16", "--max-tokens", "512", "--bos", "always"],
    })
}

/// The report of a run, and the divergence of what came of it.
fn run(
    program: &Path,
    judge: &Judge,
    recipe: &str,
    windows: usize,
    inputs: &str,
) -> Outcome<(Value, f64)> {
    let out = root().join("target/quality/out");
    let mut compress = Command::new(program);
    compress.arg("compress").arg(&judge.model).args(["--recipe", recipe, "--json", "--force"]);
    compress.arg("--out").arg(&out).arg("--calib").arg(&judge.calibration).args(judge.reading);
    compress.args(["--calib-windows", &windows.to_string(), "--calib-inputs", inputs]);
    let report = json(&mut compress)?;
    Ok((report, judged(program, judge, &out)?))
}

/// The divergence of a model from the original.
fn judged(program: &Path, judge: &Judge, made: &Path) -> Outcome<f64> {
    let mut eval = Command::new(program);
    eval.arg("eval").arg(made).arg("--reference").arg(&judge.model).arg("--text").arg(&judge.text);
    let judged = json(eval.args(judge.judging).arg("--json"))?;
    judged["kld_mean"].as_f64().ok_or_else(|| "no divergence was found".to_owned())
}

fn json(command: &mut Command) -> Outcome<Value> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("{command:?}: {e}"))
}
