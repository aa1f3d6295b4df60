//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tensorpress::pipeline::{DEFAULT_CHARS, DEFAULT_WINDOWS};

/// What MODEL may be; the same for every command.
const MODEL: &str = "A Hugging Face folder, a compressed folder, hf://owner/name, or `demo`, a small model that is built in";

/// Compress neural networks on CPUs, and judge what is left.
#[derive(Debug, Parser)]
#[command(name = "tensorpress", version, about, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what a model is made of: sizes, tensors, compressed weights and their bits
    Inspect(Inspect),
    /// Compress a model by a recipe into a new folder
    Compress(Compress),
    /// Judge a model: perplexity, and its distance from a reference
    Eval(Eval),
    /// Continue a text
    Run(Run),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = recipes_help())]
pub(crate) struct Compress {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// A preset, a line of stages, or a .toml file
    #[arg(long, short)]
    pub(crate) recipe: String,
    /// The new folder
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Text to calibrate on (`demo` brings its own)
    #[arg(long, value_name = "TEXT")]
    pub(crate) calib: Option<PathBuf>,
    /// Characters of the calibration text that are used
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHARS)]
    pub(crate) calib_chars: usize,
    /// Windows of the calibration text that are used
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WINDOWS)]
    pub(crate) calib_windows: usize,
    /// Tokens of a calibration window, BOS included [default: 256, or the model's context]
    #[arg(long, value_name = "N")]
    pub(crate) calib_length: Option<usize>,
    /// Judge before and after on this text (`demo` brings its own)
    #[arg(long, value_name = "TEXT", num_args = 0..=1)]
    pub(crate) eval: Option<Option<PathBuf>>,
    /// Replace the folder if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// The model whose predictions are the measure, usually the uncompressed one
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<String>,
    /// Text to judge on: .jsonl line by line, any other in windows (`demo` brings its own)
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Judge at most this many lines or windows
    #[arg(long, value_name = "N")]
    pub(crate) max_segments: Option<usize>,
    /// Judge at most this many tokens of each, BOS included
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    /// The text to continue
    #[arg(long, short)]
    pub(crate) prompt: String,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) max_tokens: usize,
    /// 0 takes the most probable token, more makes it livelier
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("allowed are finite numbers from 0".to_owned()),
    }
}

/// Presets and stages, from the tables of the library.
fn recipes_help() -> String {
    let mut text = "Presets:\n".to_owned();
    for preset in tensorpress::recipe::PRESETS {
        text += &format!("  {:6}{:38}{}\n", preset.name, preset.line, preset.about);
    }
    text += "\nStages, joined by `|`:\n";
    for stage in tensorpress::recipe::known_stages() {
        text += &format!("  {:6}{}\n", stage.name, stage.about);
        for key in stage.keys {
            let takes = key.takes.to_string();
            text += &format!("    {:14}{takes} [{}]: {}\n", key.name, key.default, key.about);
        }
    }
    text + "\nExample: --recipe 'awq | gptq(bits=3, group=64, clip=mse)'"
}
