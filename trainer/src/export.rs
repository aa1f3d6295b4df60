//! The product: the demo model's folder, or the small mixture's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::{Value, json};

use crate::checkpoint::{self, Progress};
use crate::data::{clean, read_jsonl};
use crate::llama::{Config, Experts, Llama};
use crate::rng::Rng;
use crate::sampler::{Sampling, sample};
use crate::train::Files;
use crate::{eval, paths, tokenizer};

/// Seeds of the two texts; the training text has others.
const CALIBRATION_SEED: u64 = 1001;
const HELD_OUT_SEED: u64 = 2002;
const CALIBRATION_BYTES: usize = 60_000;
const HELD_OUT_BYTES: usize = 30_000;
/// Largest size of the folder.
const LIMIT: u64 = 4_000_000;
/// Tokens of each judging story that count, begin token included.
const JUDGED_TOKENS: usize = 400;

/// Writes a run's checkpoint to a folder, that of its kind of model where none is given.
pub fn run(work: &Path, folder: Option<PathBuf>) -> Result<()> {
    let files = Files::new(work);
    let (mut model, _, progress) = checkpoint::load(&files.checkpoint, 0.0)?;
    for p in &mut model.params {
        *p = bf16::from_f32(*p).to_f32();
    }
    let folder = folder.unwrap_or_else(|| match model.config.experts {
        None => paths::demo(),
        Some(_) => paths::mixture(),
    });
    std::fs::create_dir_all(&folder)?;
    write_model(&folder, &model, &files)?;
    match model.config.experts {
        None => describe_demo(&folder, &model, &progress)?,
        Some(experts) => describe_mixture(&folder, &model, experts, &progress)?,
    }

    let mut size = 0;
    for entry in std::fs::read_dir(&folder)? {
        size += entry?.metadata()?.len();
    }
    println!("{}: {} parameters, {size} bytes", folder.display(), model.layout.len);
    ensure!(size < LIMIT, "the folder is larger than {LIMIT} bytes");
    Ok(())
}

/// Weights, configuration and tokenizer.
fn write_model(folder: &Path, model: &Llama, files: &Files) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| checkpoint::write_atomically(&folder.join(name), bytes);
    let pretty = |value: &Value| -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        Ok(bytes)
    };
    write("config.json", &pretty(&config_json(&model.config))?)?;
    write("model.safetensors", &model.to_safetensors()?)?;
    write("tokenizer.json", &std::fs::read(&files.tokenizer)?)?;
    let limit = model.config.max_position_embeddings;
    write("tokenizer_config.json", &pretty(&tokenizer::config(limit))?)
}

/// The demo model's texts and figures.
fn describe_demo(folder: &Path, model: &Llama, progress: &Progress) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| checkpoint::write_atomically(&folder.join(name), bytes);
    // The texts stay as they are once written: they do not depend on the model.
    if !folder.join("heldout.jsonl").exists() {
        let teacher = paths::shared_model("stories3m");
        let calibration = sample_stories(&teacher, CALIBRATION_SEED, CALIBRATION_BYTES)?;
        write("calib.txt", (calibration.join("\n\n") + "\n").as_bytes())?;
        let held_out = sample_stories(&teacher, HELD_OUT_SEED, HELD_OUT_BYTES)?;
        let lines: String =
            held_out.iter().map(|s| json!({"text": s}).to_string() + "\n").collect();
        write("heldout.jsonl", lines.as_bytes())?;
    }

    let texts = paths::shared_text("tinystories_val_250stories.jsonl");
    let stories = read_jsonl(&texts)?;
    let demo = eval::score_folder(folder, &stories, JUDGED_TOKENS)?;
    let small = eval::score_folder(&paths::shared_model("stories260k"), &stories, JUDGED_TOKENS)?;
    let large = eval::score_folder(&paths::shared_model("stories3m"), &stories, JUDGED_TOKENS)?;
    let limit = model.config.max_position_embeddings;
    let held_out = eval::score_folder(folder, &read_jsonl(&folder.join("heldout.jsonl"))?, limit)?;
    let readme = include_str!("readme.md")
        .replace("{parameters}", &model.layout.len.to_string())
        .replace("{steps}", &progress.steps.to_string())
        .replace("{tokens}", &format!("{:.0}", progress.tokens as f64 / 1e6))
        .replace("{minutes}", &format!("{:.0}", progress.seconds / 60.0))
        .replace("{demo}", &format!("{:.4}", demo.bits_per_byte()))
        .replace("{demo_perplexity}", &format!("{:.3}", demo.perplexity()))
        .replace("{small}", &format!("{:.4}", small.bits_per_byte()))
        .replace("{small_perplexity}", &format!("{:.3}", small.perplexity()))
        .replace("{large}", &format!("{:.4}", large.bits_per_byte()))
        .replace("{large_perplexity}", &format!("{:.3}", large.perplexity()))
        .replace("{ratio}", &format!("{:.3}", demo.bits_per_byte() / small.bits_per_byte()))
        .replace("{held_out}", &format!("{:.4}", held_out.bits_per_byte()))
        .replace("{held_out_perplexity}", &format!("{:.3}", held_out.perplexity()));
    write("README.md", readme.as_bytes())?;
    println!(
        "demo {:.4} bits per byte, stories260k {:.4}, ratio {:.3}",
        demo.bits_per_byte(),
        small.bits_per_byte(),
        demo.bits_per_byte() / small.bits_per_byte(),
    );
    Ok(())
}

/// The mixture's figures.
fn describe_mixture(
    folder: &Path,
    model: &Llama,
    experts: Experts,
    progress: &Progress,
) -> Result<()> {
    let stories = read_jsonl(&paths::shared_text("tinystories_val_250stories.jsonl"))?;
    let score = eval::score_folder(folder, &stories, JUDGED_TOKENS)?;
    let tokenizer = tokenizer::load(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let unigram = eval::unigram_perplexity(&tokenizer, &stories, JUDGED_TOKENS)?;
    let percent = |shares: Vec<f64>| -> String {
        let shares = shares.into_iter().map(|s| format!("{:.1}", 100.0 * s));
        shares.collect::<Vec<_>>().join(", ")
    };
    let blocks = score.shares().into_iter().enumerate();
    let shares: Vec<_> = blocks.map(|(i, s)| format!("- block {i}: {}", percent(s))).collect();
    let readme = include_str!("mixture.md")
        .replace("{parameters}", &model.layout.len.to_string())
        .replace("{experts}", &experts.count.to_string())
        .replace("{chosen}", &experts.chosen.to_string())
        .replace("{balance}", &experts.balance.to_string())
        .replace("{steps}", &progress.steps.to_string())
        .replace("{tokens}", &format!("{:.1}", progress.tokens as f64 / 1e6))
        .replace("{minutes}", &format!("{:.0}", progress.seconds / 60.0))
        .replace("{perplexity}", &format!("{:.3}", score.perplexity()))
        .replace("{bits}", &format!("{:.4}", score.bits_per_byte()))
        .replace("{unigram}", &format!("{unigram:.1}"))
        .replace("{shares}", &shares.join("\n"));
    checkpoint::write_atomically(&folder.join("README.md"), readme.as_bytes())?;
    print!("{readme}");
    Ok(())
}

/// The Hugging Face configuration.
fn config_json(c: &Config) -> Value {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "rms_norm_eps": decimal(c.rms_norm_eps),
        "rope_theta": c.rope_theta,
        "rope_scaling": null,
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
        "use_cache": true,
    });
    if let Some(experts) = c.experts {
        json["architectures"] = json!(["MixtralForCausalLM"]);
        json["model_type"] = json!("mixtral");
        json["num_local_experts"] = json!(experts.count);
        json["num_experts_per_tok"] = json!(experts.chosen);
        json["router_aux_loss_coef"] = decimal(experts.balance);
        json["sliding_window"] = Value::Null;
    }
    json
}

/// An f32 as it is written: as f64 it would show its rounding.
fn decimal(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(value as f64))
}

/// Stories of together at least `bytes` that the model in `folder` makes up.
pub fn sample_stories(folder: &Path, seed: u64, bytes: usize) -> Result<Vec<String>> {
    let model = Llama::load(folder)?;
    let tokenizer = tokenizer::load(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let sampling = Sampling { lanes: 16, temperature: 0.8, max_tokens: 480 };
    let (mut stories, mut total, mut failed) = (vec![], 0, None);
    sample(&model, &sampling, Rng::new(seed, 0), |ids| {
        match tokenizer.decode(ids, true) {
            Ok(text) => {
                let story = clean(&text);
                if story.len() > 200 {
                    total += story.len();
                    stories.push(story);
                }
            }
            Err(e) => failed = Some(e.to_string()),
        }
        total < bytes && failed.is_none()
    });
    match failed {
        Some(message) => Err(anyhow::anyhow!(message)).context("decoding a sampled story"),
        None => Ok(stories),
    }
}
