//! The command line.

mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tensorpress::pipeline::{DEFAULT_CHARS, DEFAULT_WINDOWS};
use tensorpress::report::Point;
use tensorpress::tensor::stage::Preset;

use crate::output::{listed, wrapped};

pub(crate) use values::{Bos, Inputs};
use values::{count, milliseconds, positive, rival, seconds, seed, size, temperature};

/// What MODEL may be; the same for every command.
const MODEL: &str = "A Hugging Face folder (also one quantised by GPTQ, AWQ, compressed-tensors or bitsandbytes), a compressed \
                     folder, a packed file (.tpk), a GGUF file, hf://owner/name, or `demo`, a small model that is built in";

/// What goes with a MODEL that is a packed difference.
const BASE: &str = "What a MODEL that is packed against a base was packed against";

/// What a TEXT may be; the same for every command.
const TEXT: &str = "plain text, JSON lines or a JSON array (text, messages or ids), or safetensors with ids; told by content";

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
    /// Say what a model loses by size: the curve of the best mixes, some of which are made and judged
    Frontier(Frontier),
    /// Write a model in another format; what the format cannot hold exactly is said, and refused unless asked for
    Convert(Convert),
    /// Say how much each input of each matrix matters, for the types of GGUF files: llama.cpp's importance matrix
    Imatrix(Imatrix),
    /// Judge a model: perplexity, and its distance from a reference
    Eval(Eval),
    /// Continue a text
    Run(Run),
    /// Make a prompt fit a budget of tokens
    Squeeze(Squeeze),
    /// Tell what recipes are made of: for weights, for caches and for prompts
    Stages(Stages),
    /// Make a file or folder smaller without losing a bit
    Pack(Pack),
    /// Restore what was packed, byte for byte
    Unpack(Unpack),
    /// Check every bit of a packed file; exit code 1 on any damage
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Folders are packed with every regular file below them. Symbolic links are refused; permissions and times are \
                        not kept.\nWith --json: bytes_before, bytes_after, ratio (packed over unpacked length), seconds, \
                        peak_rss_bytes, files, tensors, duplicate_bytes, delta_tensors, index_bytes"
)]
pub(crate) struct Pack {
    /// A file or folder; safetensors are coded tensor by tensor
    #[arg(value_name = "FILE_OR_FOLDER")]
    pub(crate) from: PathBuf,
    /// The packed file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Store tensors as differences from those of this file, folder or packed file
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,
    /// How hard to try
    #[arg(long, value_enum, default_value_t = Effort::Fast)]
    pub(crate) effort: Effort,
    /// Replace the packed file if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Effort {
    /// Decodes at a good part of the speed of copying
    Fast,
    /// Smaller, but slow both ways
    Best,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --json: bytes_before (packed), bytes_after (unpacked), ratio (packed over unpacked length), seconds, \
                        peak_rss_bytes, files, tensors"
)]
pub(crate) struct Unpack {
    /// A packed file
    #[arg(value_name = "PACKED")]
    pub(crate) packed: PathBuf,
    /// The file or folder to restore
    #[arg(long, short, value_name = "FILE_OR_FOLDER")]
    pub(crate) out: PathBuf,
    /// What it was packed against
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --json: ok, bytes_before (unpacked), bytes_after (packed), ratio, seconds, peak_rss_bytes, files, tensors, \
                        damages: [{file, tensor, message}]"
)]
pub(crate) struct Verify {
    /// A packed file
    #[arg(value_name = "PACKED")]
    pub(crate) packed: PathBuf,
    /// What it was packed against
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,
    /// Print one JSON object, also about damage
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What activations come of.
#[derive(Debug, clap::Args)]
pub(crate) struct Calibration {
    #[arg(long, value_name = "TEXT", help = format!("What to calibrate on: {TEXT} (`demo` brings its own)"))]
    pub(crate) calib: Option<PathBuf>,
    /// Characters of the calibration text that are used
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHARS, value_parser = count, allow_negative_numbers = true)]
    pub(crate) calib_chars: usize,
    /// Windows of the calibration text that are used
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WINDOWS, value_parser = count, allow_negative_numbers = true)]
    pub(crate) calib_windows: usize,
    /// Tokens of a calibration window, BOS included [default: 256, or the model's context]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub(crate) calib_length: Option<usize>,
    /// Whether texts begin with the begin-of-text token
    #[arg(long, value_enum, default_value_t)]
    pub(crate) bos: Bos,
}

#[derive(Debug, clap::Args)]
#[command(after_help = recipes_help())]
pub(crate) struct Compress {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// A preset, a line of stages, or a .toml file; before a target, stages that change whole blocks
    #[arg(long, short, required_unless_present_any = ["target_size", "target_bpw", "max_kld"])]
    pub(crate) recipe: Option<String>,
    /// In place of a recipe: the files that hold weights take no more than this, such as 60MB or 1.5GiB, headers and all;
    /// embeddings that are the head as well are compressed too
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "target_bpw")]
    pub(crate) target_size: Option<u64>,
    /// In place of a recipe: the linear layers take no more than so many bits a weight
    #[arg(long, value_name = "BITS")]
    pub(crate) target_bpw: Option<f64>,
    /// In place of a recipe: the smallest model found in a few runs whose mean KL divergence from the source is no more than
    /// this on every second segment of --eval; the others judge it
    #[arg(long, value_name = "NATS", requires = "eval", conflicts_with_all = ["target_bpw", "target_size"])]
    pub(crate) max_kld: Option<f64>,
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// The new folder, or the file of --format gguf
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Write the result as `convert --to` does, such as gguf, gguf(Q4_K) or compressed-tensors; what the format cannot hold
    /// is an error, but with a type of gguf all is rounded to it
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) calibration: Calibration,
    /// Whose inputs calibrate a block
    #[arg(long, value_enum, default_value_t)]
    pub(crate) calib_inputs: Inputs,
    /// Compress a model that is quantised already, from the values that its weights decode to
    #[arg(long)]
    pub(crate) from_quantized: bool,
    /// Judge before and after on this text, which may be what --calib may be (`demo` brings its own)
    #[arg(long, value_name = "TEXT", num_args = 0..=1)]
    pub(crate) eval: Option<Option<PathBuf>>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Write a page about what was done, in one file of HTML: sizes, each matrix and why it became what it is, fallbacks, and
    /// of a target the curve that it was found on
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rivals: Rivals,
    /// Replace the folder if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Files by others on a page.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Rivals {
    /// A file by others to be shown on the page, as NAME=SIZE:KLD, such as 'IQ4_NL=91.7MB:0.107'; may be said several times
    #[arg(long = "rival", value_name = "POINT", value_parser = rival)]
    pub(crate) all: Vec<Point>,
}

/// What each matrix may become within a target.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// What each matrix may become to reach the target: lines of stages, joined by `;` [default: the best coded grids; for
    /// gguf its types, filled by feedback]
    #[arg(long, value_name = "LIST")]
    pub(crate) levels: Option<String>,
    /// Try every level on every matrix, and not on those of some blocks alone
    #[arg(long)]
    pub(crate) measured: bool,
    /// Begin nothing more after so many seconds: no further model of a search, and after half of them no further block of
    /// --measured; what is best by then is taken, and depends on the machine
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) max_time: Option<Duration>,
    /// How many milliseconds a token may take in all these matrices on one thread of this machine, where each level is
    /// measured: a second limit
    #[arg(long, value_name = "MS", value_parser = milliseconds, allow_negative_numbers = true)]
    pub(crate) max_token_ms: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "OUT/report.html is a page with the curve, OUT/curve.svg its plot alone. OUT/frontier.json has bytes_before, points: [{bytes, bits_per_weight, expected, divergence}] (divergence where a \
                        model was made and judged), notes, outlook: the curve at other sizes, and one level for all.\nWith --json: \
                        the same, with seconds and peak_rss_bytes"
)]
pub(crate) struct Frontier {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// The new folder
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Sizes along the curve, from 2 to 8 bits a weight
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = positive, allow_negative_numbers = true)]
    pub(crate) points: usize,
    /// How many of them are made and judged; the others follow
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive, allow_negative_numbers = true)]
    pub(crate) judged: usize,
    /// These sizes, such as 45MB,60MB,80MB, all judged, in place of --points
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = size, conflicts_with_all = ["points", "judged"])]
    pub(crate) sizes: Option<Vec<u64>>,
    /// Stages that change whole blocks, to be run before: the curve is one of what they leave
    #[arg(long, short)]
    pub(crate) recipe: Option<String>,
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Count what files of this format take: gguf
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) calibration: Calibration,
    /// Whose inputs calibrate a block
    #[arg(long, value_enum, default_value_t)]
    pub(crate) calib_inputs: Inputs,
    /// Compress a model that is quantised already, from the values that its weights decode to
    #[arg(long)]
    pub(crate) from_quantized: bool,
    /// Judge on this text, which may be what --calib may be (`demo` brings its own)
    #[arg(long, value_name = "TEXT")]
    pub(crate) eval: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) rivals: Rivals,
    /// Replace the curve if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Formats: gguf (one file; every tensor keeps its values), gguf(TYPE) (matrices of floats are quantised, such as \
                        gguf(Q4_K)), gptq, gptq_v2, awq, compressed-tensors, bnb (folders that their engines load), tensorpress \
                        (our folder, codes kept), safetensors (floats).\nWith --json: target, bytes_before, bytes_after, \
                        lossless, tensors: [{name, from, to, lossless, error}], notes, seconds, peak_rss_bytes"
)]
pub(crate) struct Convert {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// The format
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: String,
    /// The new folder, or file
    #[arg(long, short)]
    pub(crate) out: PathBuf,
    /// Type of floats: f32, f16 or bf16 [default: as they are, or the narrowest that is exact]
    #[arg(long, value_name = "T")]
    pub(crate) dtype: Option<String>,
    /// Round anew what the format cannot hold
    #[arg(long)]
    pub(crate) requantize: bool,
    /// An importance matrix of llama.cpp, in either form, by which gguf(TYPE) weighs inputs; or --calib makes one
    #[arg(long, value_name = "FILE", conflicts_with = "calib")]
    pub(crate) imatrix: Option<PathBuf>,
    /// Length of a file of a folder at most, such as 5GB or 500MiB [default: a file for each block]
    #[arg(long, value_name = "N", value_parser = size)]
    pub(crate) shard_size: Option<u64>,
    #[command(flatten)]
    pub(crate) calibration: Calibration,
    /// Replace what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The file serves `convert --to gguf(TYPE) --imatrix FILE`, and llama.cpp.\nWith --json: matrices, tokens, \
                        unseen (experts that no token came to), seconds, peak_rss_bytes"
)]
pub(crate) struct Imatrix {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// The new file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) calibration: Calibration,
    /// Write llama.cpp's older form, which is no GGUF file
    #[arg(long)]
    pub(crate) old: bool,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stages {
    /// One stage: its keys, what they take and their defaults
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Print the JSON schema of recipes in TOML
    #[arg(long, conflicts_with_all = ["name", "markdown"])]
    pub(crate) schema: bool,
    /// Print tables for a page
    #[arg(long, conflicts_with = "name")]
    pub(crate) markdown: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// The model whose predictions are the measure, usually the uncompressed one
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<String>,
    #[arg(long, value_name = "FILE", help = format!("What to judge on: {TEXT}; plain text is judged in windows, all else one by one (`demo` brings its own)"))]
    pub(crate) text: Option<PathBuf>,
    /// Whether texts begin with the begin-of-text token
    #[arg(long, value_enum, default_value_t)]
    pub(crate) bos: Bos,
    /// How keys and values are held, token by token: `kivi(bits=4) | h2o(keep=0.5)`, see `tensorpress stages`
    #[arg(long, value_name = "RECIPE")]
    pub(crate) kv: Option<String>,
    /// With `--kv`: tokens of each text that are read at once, as a prompt is, and not judged
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        requires = "kv",
        allow_negative_numbers = true
    )]
    pub(crate) kv_prefix: usize,
    /// With `--kv`: tokens that are read at a time after that
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count, requires = "kv", allow_negative_numbers = true)]
    pub(crate) kv_step: usize,
    /// With `--kv`: tokens of a passage of the recall test
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count, requires = "kv", allow_negative_numbers = true)]
    pub(crate) kv_passage: usize,
    /// With `--kv`: passages of the recall test
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count, requires = "kv", allow_negative_numbers = true)]
    pub(crate) kv_passages: usize,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How much is judged.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Limits {
    /// Judge at most this many texts or windows
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub(crate) max_segments: Option<usize>,
    /// Judge at most this many tokens of each, BOS included
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<usize>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[arg(help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// The text to continue
    #[arg(long, short, allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Whether the text begins with the begin-of-text token
    #[arg(long, value_enum, default_value_t)]
    pub(crate) bos: Bos,
    /// How keys and values are held, token by token: `kivi(bits=4) | h2o(keep=0.5)`, see `tensorpress stages`
    #[arg(long, value_name = "RECIPE")]
    pub(crate) kv: Option<String>,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = count, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,
    /// 0 takes the most probable token, more makes it livelier
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints the compressed text and nothing else. No word is cut; code fences stay whole.\nDecoder models drop \
                        the words they find least surprising; with a question, sentences come first, ranked by the model and by \
                        BM25. Encoder models (such as all-MiniLM-L6-v2) rank whole sentences by similarity to the question, or \
                        to the whole text, and a little by BM25.\nWith --json: text, tokens, tokens_before, budget"
)]
pub(crate) struct Squeeze {
    /// The text, or - for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Tokens that the result has at most, special tokens not counted
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub(crate) budget: usize,
    /// Keep what is relevant to this
    #[arg(long, value_name = "Q", allow_hyphen_values = true)]
    pub(crate) question: Option<String>,
    /// What ranks sentences and words, such as `likelihood | bm25 | surprise`; see `tensorpress stages` [default: by the
    /// kind of model]
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<String>,
    /// Keep every word that contains this; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) keep: Vec<String>,
    #[arg(long, default_value = crate::open::DEMO, help = MODEL)]
    pub(crate) model: String,
    #[arg(long, value_name = "FILE", help = BASE)]
    pub(crate) base: Option<PathBuf>,
    /// A folder with the tokenizer.json that counts [default: the model's]
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// A folder with an encoder that compares sentences with the question, beside a language model
    #[arg(long, value_name = "DIR")]
    pub(crate) encoder: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Presets and the names of stages, from the tables of the library.
fn recipes_help() -> String {
    let registry = tensorpress::registry();
    let stages = registry.stages();
    let preset = |p: &Preset| [p.name.to_owned(), p.line.to_owned(), p.about.to_owned()];
    let presets: Vec<_> = stages.presets().iter().map(preset).collect();
    let names: Vec<&str> = stages.rows().iter().map(|row| row.name()).collect();
    format!(
        "Presets:\n{}\nStages, joined by `|` (`tensorpress stages` says what they do, `tensorpress stages NAME` what \
         keys one has):\n{}\nExample: --recipe 'awq | gptq(bits=3, group=64, clip=mse)'",
        listed(&presets),
        wrapped(&names)
    )
}
