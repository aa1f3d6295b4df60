//! Trainer of the demo model that is embedded in tensorpress, and of a small mixture of experts
//! (`train --experts 8`) that the pruning of experts is judged on.
//!
//! A maintainer runs it once, in the background, never in CI:
//!
//! ```sh
//! cargo run --release -p tensorpress-trainer -- sample              # stories from stories3m
//! cargo run --release -p tensorpress-trainer -- train               # goes on where it stopped
//! cargo run --release -p tensorpress-trainer -- export              # writes crates/model/demo
//! cargo run --release -p tensorpress-trainer -- eval FOLDER         # judges a model folder
//! cargo run --release -p tensorpress-trainer -- tell FOLDER         # prints a few of its stories
//! ```
//!
//! The shared models and texts are read from `$TENSORPRESS_SHARED`, or from `../shared` beside the
//! workspace. `RUSTFLAGS="-C target-cpu=native"` makes it faster. Training by
//! `--steps` instead of `--minutes` gives the same bits on every run of one machine.

mod attention;
mod checkpoint;
mod data;
mod eval;
mod export;
mod llama;
mod math;
mod mixture;
mod model;
mod optim;
mod paths;
mod rng;
mod sampler;
mod tokenizer;
mod train;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand};
use rayon::prelude::*;

/// Trains the demo model of tensorpress.
#[derive(Parser, Debug)]
struct Cli {
    /// Folder of the run's corpus, tokenizer and checkpoint [default: target/demo-training]
    #[arg(long, global = true)]
    work: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Sample training stories from stories3m
    Sample(SampleOptions),
    /// Train, or go on from the checkpoint
    Train(train::Options),
    /// Bits per byte of a model folder and of the shared models on the judging stories
    Eval {
        /// Hugging Face folder of a Llama or Mixtral [default: the demo model]
        folder: Option<PathBuf>,
    },
    /// Print stories that a model folder makes up
    Tell {
        /// Hugging Face folder of a Llama or Mixtral [default: the demo model]
        folder: Option<PathBuf>,
        /// Seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write the model's folder from the checkpoint
    Export {
        /// Folder to write [default: crates/model/demo, or trainer/models/moe for a mixture]
        folder: Option<PathBuf>,
    },
}

#[derive(Args, Debug)]
struct SampleOptions {
    /// Megabytes of stories
    #[arg(long, default_value_t = 30.0)]
    megabytes: f64,
    /// Sampling temperature; at 1 the stories follow the model's own distribution
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let work = cli.work.unwrap_or_else(|| paths::workspace_root().join("target/demo-training"));
    std::fs::create_dir_all(&work)?;
    match cli.command {
        Command::Sample(options) => sample(&work, &options),
        Command::Train(options) => train::run(&work, &options),
        Command::Eval { folder } => judge(&folder.unwrap_or_else(paths::demo)),
        Command::Tell { folder, seed } => {
            let stories = export::sample_stories(&folder.unwrap_or_else(paths::demo), seed, 3000)?;
            println!("{}", stories.join("\n\n----\n\n"));
            Ok(())
        }
        Command::Export { folder } => export::run(&work, folder),
    }
}

/// Samples the training stories into the work folder.
fn sample(work: &Path, options: &SampleOptions) -> Result<()> {
    let folder = paths::shared_model("stories3m");
    let model = llama::Llama::load(&folder)?;
    let tokenizer = tokenizer::load(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let sampling =
        sampler::Sampling { lanes: 64, temperature: options.temperature, max_tokens: 480 };
    let workers = rayon::current_num_threads();
    let target = options.megabytes * 1e6 / workers as f64;
    let file = std::fs::File::create(train::Files::new(work).corpus)?;
    let file = Mutex::new(BufWriter::new(file));
    // Each worker stops at its own share, so that what is sampled does not depend on their pace.
    let results: Result<Vec<()>> = (0..workers)
        .into_par_iter()
        .map(|worker| {
            let mut rng = rng::Rng::new(options.seed, 1 + worker as u64);
            let mut written = 0.0;
            let mut result = Ok(());
            sampler::sample(&model, &sampling, rng::Rng::new(rng.next_u64(), 0), |ids| {
                let store = || -> Result<usize> {
                    let text = tokenizer.decode(ids, true).map_err(|e| anyhow!(e))?;
                    let mut file = file.lock().map_err(|_| anyhow!("another worker failed"))?;
                    writeln!(file, "{}\n{}", text.trim(), data::END_OF_STORY)?;
                    Ok(text.len())
                };
                match store() {
                    Ok(bytes) => written += bytes as f64,
                    Err(e) => result = Err(e),
                }
                written < target && result.is_ok()
            });
            result
        })
        .collect();
    results?;
    let mut file = file.into_inner().map_err(|_| anyhow!("a worker failed"))?;
    Ok(file.flush()?)
}

/// Prints the figures of a model and of the shared models by the judging protocol.
fn judge(folder: &Path) -> Result<()> {
    let stories = data::read_jsonl(&paths::shared_text("tinystories_val_250stories.jsonl"))?;
    let shared = ["stories260k", "stories3m"].map(paths::shared_model);
    for folder in [folder, &shared[0], &shared[1]] {
        if !folder.join("model.safetensors").exists() {
            println!("{}: no model", folder.display());
            continue;
        }
        let score = eval::score_folder(folder, &stories, 400)?;
        println!(
            "{}: {:.4} bits per byte, perplexity {:.4}, {} predictions over {} bytes",
            folder.display(),
            score.bits_per_byte(),
            score.perplexity(),
            score.predictions,
            score.bytes,
        );
    }
    Ok(())
}
