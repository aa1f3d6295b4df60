//! Keys that several stages share, and defaults that depend on other keys.

use super::stage::Stage;
use super::value::{KeySpec, Type, Value, n_of_m};

pub(super) const BITS: KeySpec =
    KeySpec::new("bits", Type::Int(2, 8), Value::Int(4), "bits of a code");
pub(super) const GROUP: KeySpec = KeySpec::new(
    "group",
    Type::Int(0, 1 << 20),
    Value::Int(128),
    "consecutive inputs that share a scale; 0: a whole row",
);
pub(super) const SYMMETRIC: KeySpec = KeySpec::new(
    "symmetric",
    Type::Bool,
    Value::Bool(false),
    "zero point fixed in the middle, not stored",
);
pub(super) const CLIP: KeySpec = KeySpec::new(
    "clip",
    Type::Choice(&["minmax", "mse"]),
    Value::word("minmax"),
    "range of a group: all of it, or the one with the least error",
);
pub(super) const SCALE: KeySpec = KeySpec::new(
    "scale",
    Type::Choice(&["f16", "bf16", "f32"]),
    Value::word("f16"),
    "stored type of scales",
);
pub(super) const DAMP: KeySpec = KeySpec::new(
    "damp",
    Type::Float(0.0, 1e6),
    Value::Float(0.01),
    "added to the diagonal, as a fraction of its mean",
);
pub(super) const SPARSITY: KeySpec =
    KeySpec::new("sparsity", Type::Float(0.0, 1.0), Value::Float(0.5), "fraction that goes")
        .derived(sparsity_of);

/// What a pattern n:m leaves no choice about.
fn sparsity_of(stage: &Stage) -> Value {
    let pattern = n_of_m(&stage.word("pattern"));
    Value::Float(pattern.map_or(0.5, |(n, m)| 1.0 - n as f64 / m as f64))
}
pub(super) const PATTERN: KeySpec = KeySpec::new(
    "pattern",
    Type::Support,
    Value::word("any"),
    "n:m: n of every m inputs stay, in the place of a sparsity; RxC: blocks of outputs x inputs",
);
pub(super) const BLOCK: KeySpec = KeySpec::new(
    "block",
    Type::Int(1, 1 << 16),
    Value::Int(128),
    "columns between two updates of the rest; where codes are chosen a smaller group, so that its grid is fitted to the \
     weights as they stand when it begins",
)
.derived(block_of);
pub(super) const NEVER: fn(&Value) -> bool = |_| false;

/// Groups are fitted when their block begins: no block is longer than a group, unless that would make it tiny.
fn block_of(stage: &Stage) -> Value {
    let group = stage.int("group");
    let rounds = stage.int("bits") > 0;
    Value::Int(if rounds && (16..128).contains(&group) { group as i64 } else { 128 })
}

pub(super) const RATIO: KeySpec = KeySpec::new(
    "ratio",
    Type::Float(0.0, 0.999),
    Value::Float(0.2),
    "fraction of the parameters that goes",
)
.derived(ratio_of);
pub(super) const RANK: KeySpec = KeySpec::new(
    "rank",
    Type::Int(0, 1 << 20),
    Value::Int(0),
    "inner size, in the place of a ratio; 0: by ratio",
);
pub(super) const ENERGY: KeySpec = KeySpec::new(
    "energy",
    Type::Float(0.0, 1.0),
    Value::Float(0.0),
    "fraction of the squared singular values that stays, in the place of a ratio; 0: by ratio",
);
pub(super) const FACTORS: KeySpec = KeySpec::new(
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

pub(super) const BY_RANK: &[KeySpec] = &[RATIO, RANK, ENERGY, FACTORS];
pub(super) const SCALED_BY_RANK: &[KeySpec] = &[
    RATIO,
    RANK,
    ENERGY,
    FACTORS,
    KeySpec::new("alpha", Type::Float(0.0, 4.0), Value::Float(0.5), "how much activity counts"),
];
