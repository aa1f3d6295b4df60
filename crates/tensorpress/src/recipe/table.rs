//! The stages that exist: a row each. A new method is a row here, and a few lines in `build`.

use std::fmt;

use tensorpress_tensor::{Error, Result};

use super::build::{self, Build};
use super::stage::Stage;
use super::value::{KeySpec, Type, Value, n_of_m};

/// Where a stage may stand; the order is that of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Removes whole heads and channels: what comes after works on a smaller model.
    Structured,
    /// Changes the space a matrix is compressed in.
    Transform,
    /// Chooses which weights are kept.
    Selector,
    /// Rounds or factors what is kept.
    Quantiser,
    /// Compresses what the stages before left over.
    Residual,
    /// Codes the integers without loss.
    Coded,
    /// Stands inside a residual: compresses what is left over.
    Correction,
    /// Stands inside `coded`.
    Coder,
}

impl Kind {
    pub(super) const ORDER: &'static str = "at most one structured pruner, transforms, at most one selector, one quantiser or factoriser, residuals, at most one coding";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Structured => "structured pruner",
            Self::Transform => "transform",
            Self::Selector => "selector",
            Self::Quantiser => "quantiser or factoriser",
            Self::Residual => "residual",
            Self::Coded => "coding",
            Self::Correction => "correction",
            Self::Coder => "entropy coder",
        })
    }
}

/// A stage that exists.
#[derive(Debug)]
#[non_exhaustive]
pub struct StageSpec {
    /// Its name in recipes.
    pub name: &'static str,
    /// Where it may stand.
    pub kind: Kind,
    /// What it does.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [KeySpec],
    /// It may end a recipe without a quantiser: it has the keys of a grid and rounds to nearest.
    pub alone: bool,
    /// What may stand in its parentheses.
    pub inside: Inside,
    pub(super) build: Build,
    /// Whether the values of its keys go together.
    pub(super) check: fn(&Stage) -> Result<()>,
}

/// Stages in the parentheses of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inside {
    /// None.
    Nothing,
    /// One of these kinds.
    One(&'static [Kind]),
    /// One of these kinds, or none.
    Maybe(&'static [Kind]),
}

const BITS: KeySpec = KeySpec::new("bits", Type::Int(2, 8), Value::Int(4), "bits of a code");
const GROUP: KeySpec = KeySpec::new(
    "group",
    Type::Int(0, 1 << 20),
    Value::Int(128),
    "consecutive inputs that share a scale; 0: a whole row",
);
const SYMMETRIC: KeySpec = KeySpec::new(
    "symmetric",
    Type::Bool,
    Value::Bool(false),
    "zero point fixed in the middle, not stored",
);
const CLIP: KeySpec = KeySpec::new(
    "clip",
    Type::Choice(&["minmax", "mse"]),
    Value::word("minmax"),
    "range of a group: all of it, or the one with the least error",
);
const SCALE: KeySpec = KeySpec::new(
    "scale",
    Type::Choice(&["f16", "bf16", "f32"]),
    Value::word("f16"),
    "stored type of scales",
);
const DAMP: KeySpec = KeySpec::new(
    "damp",
    Type::Float(0.0, 1e6),
    Value::Float(0.01),
    "added to the diagonal, as a fraction of its mean",
);
const SPARSITY: KeySpec =
    KeySpec::new("sparsity", Type::Float(0.0, 1.0), Value::Float(0.5), "fraction that goes")
        .derived(sparsity_of);

/// What a pattern n:m leaves no choice about.
fn sparsity_of(stage: &Stage) -> Value {
    let pattern = n_of_m(&stage.word("pattern"));
    Value::Float(pattern.map_or(0.5, |(n, m)| 1.0 - n as f64 / m as f64))
}
const PATTERN: KeySpec = KeySpec::new(
    "pattern",
    Type::Support,
    Value::word("any"),
    "n:m: n of every m inputs stay, in the place of a sparsity; RxC: blocks of outputs x inputs",
);
const BLOCK: KeySpec = KeySpec::new(
    "block",
    Type::Int(1, 1 << 16),
    Value::Int(128),
    "columns between two updates of the rest; where codes are chosen a smaller group, so that its grid is fitted to the \
     weights as they stand when it begins",
)
.derived(block_of);
const NEVER: fn(&Value) -> bool = |_| false;

/// Groups are fitted when their block begins: no block is longer than a group, unless that would make it tiny.
fn block_of(stage: &Stage) -> Value {
    let group = stage.int("group");
    let rounds = stage.int("bits") > 0;
    Value::Int(if rounds && (16..128).contains(&group) { group as i64 } else { 128 })
}

const RATIO: KeySpec = KeySpec::new(
    "ratio",
    Type::Float(0.0, 0.999),
    Value::Float(0.2),
    "fraction of the parameters that goes",
)
.derived(ratio_of);
const RANK: KeySpec = KeySpec::new(
    "rank",
    Type::Int(0, 1 << 20),
    Value::Int(0),
    "inner size, in the place of a ratio; 0: by ratio",
);
const ENERGY: KeySpec = KeySpec::new(
    "energy",
    Type::Float(0.0, 1.0),
    Value::Float(0.0),
    "fraction of the squared singular values that stays, in the place of a ratio; 0: by ratio",
);
const FACTORS: KeySpec = KeySpec::new(
    "factors",
    Type::Choice(&["source", "f16", "bf16", "f32"]),
    Value::word("source"),
    "stored type of the factors, where no quantiser stands inside",
);

/// What another choice of the rank leaves no choice about.
fn ratio_of(stage: &Stage) -> Value {
    let other = stage.int("rank") > 0 || stage.float("energy") > 0.0;
    Value::Float(if other { 0.0 } else { 0.2 })
}

const BY_RANK: &[KeySpec] = &[RATIO, RANK, ENERGY, FACTORS];
const SCALED_BY_RANK: &[KeySpec] = &[
    RATIO,
    RANK,
    ENERGY,
    FACTORS,
    KeySpec::new("alpha", Type::Float(0.0, 4.0), Value::Float(0.5), "how much activity counts"),
];

/// A factoriser: a row of the table.
const fn factoriser(
    name: &'static str,
    about: &'static str,
    keys: &'static [KeySpec],
) -> StageSpec {
    StageSpec {
        name,
        kind: Kind::Quantiser,
        about,
        keys,
        alone: false,
        inside: Inside::Maybe(&[Kind::Quantiser]),
        build: Build::Method(build::factoriser),
        check: build::check_factoriser,
    }
}

static STAGES: &[StageSpec] = &[
    StageSpec {
        name: "flap",
        kind: Kind::Structured,
        about: "removes the attention heads and feed-forward channels that fluctuate least; their mean goes into biases",
        keys: &[
            KeySpec::new(
                "sparsity",
                Type::Float(0.0, 1.0),
                Value::Float(0.2),
                "fraction that goes, below 1",
            ),
            KeySpec::new(
                "uniform",
                Type::Bool,
                Value::Bool(false),
                "every block loses as much: alone, it gives a plain folder; else one threshold for the whole model",
            ),
            KeySpec::new(
                "metric",
                Type::Choice(&["wifv", "ifv", "wifn"]),
                Value::word("wifv"),
                "a channel's score: weighted variance, variance, weighted norm",
            ),
        ],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Structure(build::flap),
        check: build::check_structured,
    },
    StageSpec {
        name: "rtn",
        kind: Kind::Quantiser,
        about: "rounds each weight to the nearest level; needs no calibration",
        keys: &[BITS, GROUP, SYMMETRIC, CLIP, SCALE],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Method(build::rtn),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "gptq",
        kind: Kind::Quantiser,
        about: "rounds column by column and spreads each error over the columns still to come",
        keys: &[
            BITS,
            GROUP,
            SYMMETRIC,
            CLIP,
            SCALE,
            KeySpec::new(
                "act_order",
                Type::Bool,
                Value::Bool(false),
                "columns in the order of falling input energy",
            ),
            KeySpec::new(
                "static_groups",
                Type::Bool,
                Value::Bool(false),
                "all groups are fitted before the first column is rounded",
            ),
            DAMP,
            BLOCK,
        ],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Method(build::gptq),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "awq",
        kind: Kind::Transform,
        about: "scales input channels up by how active they are, before a quantiser (alone: rtn)",
        keys: &[
            BITS.before_quantiser(NEVER),
            GROUP.before_quantiser(NEVER),
            SYMMETRIC.before_quantiser(NEVER),
            KeySpec::new(
                "clip",
                Type::Choice(&["minmax", "mse", "output"]),
                Value::word("minmax"),
                "as of the quantiser; output: weights are clamped by output error",
            )
            .before_quantiser(|value| *value == Value::word("output")),
            SCALE.before_quantiser(NEVER),
            KeySpec::new("ratios", Type::Int(1, 1000), Value::Int(20), "exponents tried"),
            KeySpec::new(
                "samples",
                Type::Int(1, 1 << 20),
                Value::Int(4096),
                "tokens that judge an exponent",
            ),
        ],
        alone: true,
        inside: Inside::Nothing,
        build: Build::Wrap(build::awq),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "magnitude",
        kind: Kind::Selector,
        about: "keeps the largest weights of each row; needs no calibration",
        keys: &[SPARSITY, PATTERN],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Wrap(build::selector),
        check: build::check_selector,
    },
    StageSpec {
        name: "wanda",
        kind: Kind::Selector,
        about: "keeps the weights that are largest times the norm of their input",
        keys: &[SPARSITY, PATTERN],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Wrap(build::selector),
        check: build::check_selector,
    },
    StageSpec {
        name: "sparsegpt",
        kind: Kind::Selector,
        about: "prunes column by column and spreads each error over the columns still to come",
        keys: &[
            SPARSITY,
            PATTERN,
            KeySpec::new(
                "bits",
                Type::Int(0, 8),
                Value::Int(0),
                "bits of a code, rounded to in the same sweep; 0: weights that stay are not rounded",
            )
            .before_quantiser(NEVER),
            GROUP.before_quantiser(NEVER),
            SYMMETRIC.before_quantiser(NEVER),
            CLIP.before_quantiser(NEVER),
            SCALE.before_quantiser(NEVER),
            DAMP,
            BLOCK,
        ],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Wrap(build::selector),
        check: build::check_selector,
    },
    factoriser(
        "svd",
        "factors of the closest matrix of a rank; needs no calibration",
        BY_RANK,
    ),
    factoriser(
        "asvd",
        "factors after inputs were scaled by how active they are",
        SCALED_BY_RANK,
    ),
    factoriser(
        "svd_llm",
        "factors that lose least of the outputs",
        BY_RANK,
    ),
    factoriser(
        "lord",
        "projects outputs on their leading directions: the product of svd_llm",
        BY_RANK,
    ),
    factoriser(
        "feature_mimicking",
        "projects outputs less their mean, which a bias carries",
        BY_RANK,
    ),
    StageSpec {
        name: "residual",
        kind: Kind::Residual,
        about: "compresses what the stages before left over; the result is the sum",
        keys: &[],
        alone: false,
        inside: Inside::One(&[Kind::Correction, Kind::Quantiser]),
        build: Build::Wrap(build::residual),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "eora",
        kind: Kind::Correction,
        about: "in `residual`: the factors of a rank that make good most of the outputs",
        keys: &[
            KeySpec::new("rank", Type::Int(1, 1 << 20), Value::Int(16), "inner size"),
            KeySpec::new(
                "factors",
                Type::Choice(&["source", "f16", "bf16", "f32"]),
                Value::word("f32"),
                "stored type of the factors, where no quantiser stands inside",
            ),
        ],
        alone: false,
        inside: Inside::Maybe(&[Kind::Quantiser]),
        build: Build::Method(build::factoriser),
        check: build::check_factoriser,
    },
    StageSpec {
        name: "coded",
        kind: Kind::Coded,
        about: "entropy-codes the integers without loss; matrices are decoded tile by tile, or once for generation",
        keys: &[],
        alone: false,
        inside: Inside::One(&[Kind::Coder]),
        build: Build::Wrap(build::coded),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "rans",
        kind: Kind::Coder,
        about: "in `coded`: interleaved rANS, fastest; range coding where a matrix is too small for it",
        keys: &[],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Method(build::inner_only),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "huffman",
        kind: Kind::Coder,
        about: "in `coded`: Huffman codes",
        keys: &[],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Method(build::inner_only),
        check: |_| Ok(()),
    },
    StageSpec {
        name: "range",
        kind: Kind::Coder,
        about: "in `coded`: range coding, nearest to the entropy and slowest",
        keys: &[],
        alone: false,
        inside: Inside::Nothing,
        build: Build::Method(build::inner_only),
        check: |_| Ok(()),
    },
];

/// Names that later versions will have, so that an error can say so.
const PLANNED: &[&str] = &["smoothquant", "hadamard", "quip", "nf4", "aqlm", "spqr", "lqer"];

/// The stages of this version.
#[must_use]
pub fn known_stages() -> &'static [StageSpec] {
    STAGES
}

/// Names of stages that later versions will have.
#[must_use]
pub fn planned_stages() -> &'static [&'static str] {
    PLANNED
}

pub(super) fn find(name: &str) -> Result<&'static StageSpec> {
    if let Some(spec) = STAGES.iter().find(|s| s.name == name) {
        return Ok(spec);
    }
    let known: Vec<&str> = STAGES.iter().map(|s| s.name).collect();
    let known = known.join(", ");
    if PLANNED.contains(&name) {
        return Err(Error::unsupported(format!(
            "stage `{name}` is planned, but not in this version; allowed are {known}"
        )));
    }
    let presets: Vec<&str> = super::PRESETS.iter().map(|p| p.name).collect();
    Err(Error::invalid(format!(
        "unknown stage `{name}`; allowed are {known} (and the presets {})",
        presets.join(", ")
    )))
}

/// Names of the stages of some kinds.
pub(super) fn names_of(kinds: &[Kind]) -> Vec<&'static str> {
    STAGES.iter().filter(|s| kinds.contains(&s.kind)).map(|s| s.name).collect()
}
