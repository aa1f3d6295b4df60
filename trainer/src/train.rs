//! The training run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::checkpoint::{self, Progress};
use crate::data::{self, Documents};
use crate::llama::{Config, Experts, Llama};
use crate::model::{Batch, Workspace};
use crate::optim::{AdamW, schedule};
use crate::{eval, paths, tokenizer};

/// Parts of a batch that are computed side by side. Fixed, rather than the number of cores, so
/// that the sums, and with them the whole run, do not depend on how many there are.
const SHARDS: usize = 2;
/// Predictions computed at a time: large products that still fit the caches.
const MICRO_BATCH: usize = 1024;
/// Stories of the real text that are kept for watching the run.
const HELD_OUT: usize = 100;

/// Options of the training run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Length of the run in minutes of training; the learning rate follows the elapsed fraction
    #[arg(long, default_value_t = 70.0)]
    minutes: f64,
    /// Length of the run in steps instead: then the run is reproducible to the bit
    #[arg(long)]
    steps: Option<u64>,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    rate: f32,
    /// Weight decay
    #[arg(long, default_value_t = 0.05)]
    decay: f32,
    /// Predictions per step
    #[arg(long, default_value_t = 6144)]
    step_tokens: usize,
    /// Tokens of the vocabulary
    #[arg(long, default_value_t = 1024)]
    vocab: usize,
    /// How many times a round the real stories come
    #[arg(long, default_value_t = 2)]
    real_weight: usize,
    /// Share of the text that comes a second time as running text
    #[arg(long, default_value_t = 0.12)]
    window_share: f32,
    /// Seed of initialisation and order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Train the small mixture, with so many experts in a block, in place of the demo model
    #[arg(long)]
    experts: Option<usize>,
    /// Experts that a token goes to
    #[arg(long, default_value_t = 2, requires = "experts")]
    chosen: usize,
    /// Coefficient of the balance loss
    #[arg(long, default_value_t = 0.01, requires = "experts")]
    balance: f32,
}

impl Options {
    /// Shape of the model to train.
    fn config(&self, vocab: usize) -> Result<Config> {
        let Some(count) = self.experts else { return Ok(Config::demo(vocab)) };
        let (chosen, balance) = (self.chosen, self.balance);
        ensure!(
            (1..=count).contains(&chosen),
            "--chosen {chosen} of --experts {count}: a token goes to 1 of them up to all"
        );
        ensure!(
            balance.is_finite() && balance >= 0.0,
            "--balance {balance}: allowed are finite values from 0"
        );
        Ok(Config::mixture(vocab, Experts { count, chosen, balance }))
    }
}

/// Files of a run.
#[derive(Clone, Debug)]
pub struct Files {
    /// Sampled stories.
    pub corpus: PathBuf,
    /// The tokenizer: trained by the first run; the demo model's where a mixture is trained.
    pub tokenizer: PathBuf,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

impl Files {
    /// The files in a work folder.
    pub fn new(work: &Path) -> Self {
        Files {
            corpus: work.join("corpus.txt"),
            tokenizer: work.join("tokenizer.json"),
            checkpoint: work.join("checkpoint.safetensors"),
        }
    }
}

/// Trains, or goes on from the checkpoint.
pub fn run(work: &Path, options: &Options) -> Result<()> {
    let files = Files::new(work);
    let real = data::read_stories(&paths::shared_text("tinystories_train_2MB_calib.txt"))?;
    let (watch, real) = real.split_at(HELD_OUT);
    // The mixture, smaller and sooner done, does with the real stories where none are sampled.
    let sampled = match options.experts.is_some() && !files.corpus.exists() {
        true => vec![],
        false => data::read_stories(&files.corpus).context("run `sample` first")?,
    };
    if options.experts.is_some() && !files.tokenizer.exists() {
        std::fs::copy(paths::demo().join("tokenizer.json"), &files.tokenizer)?;
    }
    let tokenizer = obtain_tokenizer(&files.tokenizer, real, &sampled, options.vocab)?;
    let config = options.config(tokenizer.get_vocab_size(true))?;
    let (mut model, mut optimiser, mut progress) = match files.checkpoint.exists() {
        true => {
            let found = checkpoint::load(&files.checkpoint, options.decay)?;
            ensure!(
                found.0.config == config,
                "{} is of another model; --work says where this one's is to lie",
                files.checkpoint.display()
            );
            found
        }
        false => {
            let model = Llama::init(config, options.seed);
            let optimiser = AdamW::new(&model, options.decay);
            (model, optimiser, Progress::default())
        }
    };
    let mut documents = Documents::new(
        &[(real, options.real_weight), (&sampled, 1)],
        options.window_share,
        &tokenizer,
        model.config.max_position_embeddings,
        options.seed,
    )?;
    eprintln!(
        "{} parameters, {} real and {} sampled stories, {:.1} M tokens a round",
        model.layout.len,
        real.len(),
        sampled.len(),
        documents.tokens() as f64 / 1e6,
    );
    documents.seek(progress.epoch, progress.position);

    let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::new(&model)).collect();
    let start = Instant::now();
    let before = progress.seconds;
    let (mut shown, mut saved, mut loss, mut losses) = (before, before, 0.0, 0.0);
    loop {
        progress.seconds = before + start.elapsed().as_secs_f64();
        let fraction = match options.steps {
            Some(steps) => progress.steps as f64 / steps as f64,
            None => progress.seconds / (60.0 * options.minutes),
        };
        let ended = fraction >= 1.0;
        if ended || progress.seconds - shown > 60.0 {
            shown = progress.seconds;
            let score = eval::score(&model, &tokenizer, watch, 400)?;
            eprintln!(
                "{:5.1} min, step {}, {:.1} M tokens, {:.0} % done: loss {:.4}, held out {:.4} bits per byte",
                progress.seconds / 60.0,
                progress.steps,
                progress.tokens as f64 / 1e6,
                100.0 * fraction,
                loss / losses,
                score.bits_per_byte(),
            );
            if let Some(least) = score.shares().into_iter().flatten().reduce(f64::min) {
                eprintln!(
                    "           the least busy expert gets {:.1} % of its block",
                    100.0 * least
                );
            }
            (loss, losses) = (0.0, 0.0);
        }
        if ended || progress.seconds - saved > 150.0 {
            saved = progress.seconds;
            checkpoint::save(&files.checkpoint, &model, &optimiser, &progress)?;
        }
        if ended {
            return Ok(());
        }
        let batches = documents.deal(options.step_tokens, MICRO_BATCH);
        let count: usize = batches.iter().map(|b| b.inputs.len()).sum();
        loss += gradient(&mut shards, &model, &batches, 1.0 / count as f32);
        losses += count as f64;
        let rate = options.rate * schedule(fraction);
        optimiser.step(&mut model.params, &shards[0].grad, rate);
        progress.steps = optimiser.steps;
        progress.tokens += count as u64;
        (progress.epoch, progress.position) = (documents.epoch, documents.position);
    }
}

/// The run's tokenizer; trained and written where there is none yet.
fn obtain_tokenizer(
    path: &Path,
    real: &[String],
    sampled: &[String],
    vocab: usize,
) -> Result<Tokenizer> {
    if !path.exists() {
        let texts = [real, &sampled[..sampled.len().min(real.len())]].concat();
        let json = tokenizer::train(&texts, vocab)?;
        checkpoint::write_atomically(path, json.to_string().as_bytes())?;
    }
    tokenizer::load(&std::fs::read(path)?)
}

/// What one thread of the gradient's computation needs.
#[derive(Debug)]
struct Shard {
    workspace: Workspace,
    grad: Vec<f32>,
}

impl Shard {
    fn new(model: &Llama) -> Self {
        Shard { workspace: Workspace::new(model), grad: vec![0.0; model.layout.len] }
    }
}

/// Leaves the gradient of `scale` x (summed loss) in the first shard; returns the summed loss.
fn gradient(shards: &mut [Shard], model: &Llama, batches: &[Batch], scale: f32) -> f64 {
    let parts: Vec<f64> = (shards.par_iter_mut().enumerate())
        .map(|(i, shard)| {
            shard.grad.fill(0.0);
            let mine = batches.iter().skip(i).step_by(SHARDS);
            mine.map(|b| shard.workspace.backward(model, b, scale, &mut shard.grad)).sum()
        })
        .collect();
    if let Some((first, rest)) = shards.split_first_mut() {
        for other in rest {
            crate::math::axpy(&mut first.grad, 1.0, &other.grad);
        }
    }
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Learns a repeating sequence, twice to the same bits.
    #[test]
    fn learns_and_repeats() {
        check_learning(&Config::demo(12));
    }

    #[test]
    fn a_mixture_learns_and_repeats() {
        let experts = Experts { count: 4, chosen: 2, balance: 0.01 };
        check_learning(&Config::mixture(12, experts));
    }

    fn check_learning(config: &Config) {
        let train = || {
            let mut config = config.clone();
            (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (32, 32, 1);
            let mut model = Llama::init(config, 1);
            let mut optimiser = AdamW::new(&model, 0.01);
            let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::new(&model)).collect();
            let mut rng = Rng::new(2, 0);
            let mut last = 0.0;
            for _ in 0..60 {
                let mut batches = vec![Batch::default(); 3];
                for batch in &mut batches {
                    let from = rng.below(12) as u32;
                    batch
                        .push((0..40).map(|i| (from + 5 * i) % 12).collect::<Vec<_>>().into_iter());
                }
                last = gradient(&mut shards, &model, &batches, 1.0 / 117.0) / 117.0;
                optimiser.step(&mut model.params, &shards[0].grad, 1e-2);
            }
            (last, model.params)
        };
        let (loss, params) = train();
        assert!(loss < 0.3, "loss {loss}");
        assert_eq!(params, train().1);
    }
}
