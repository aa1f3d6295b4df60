//! Mamba and Mamba 2: decoders of state-space layers, without attention.

use serde_json::Value;
use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{LinearSpec, Role};

use super::plan::{Before, BlockPlan, MixerPlan, NormPlan, PartPlan, Plan, ScanKind, ScanPlan};
use super::row::{Draft, Row};
use crate::config::MAX_SIZE;
use crate::config::keys::Keys;

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["mamba"], tied: true, plan: |draft| mamba(draft, selective), ..MAMBA },
    Row { kinds: &["mamba2"], plan: |draft| mamba(draft, heads), ..MAMBA },
];

const MAMBA: Row = Row {
    eps: 1e-5,
    turns: false,
    inner: Some(inner),
    // Of the matrices into and out of the scan.
    biases: |keys| Ok([keys.or("use_bias", false)?; 3]),
    ..Row::DECODER
};

fn inner(keys: &Keys<'_>, hidden: usize) -> Result<usize> {
    if let Some(inner) = keys.get("intermediate_size")? {
        return Ok(inner);
    }
    let times: f64 = keys.or("expand", 2.0)?;
    Ok((times * hidden as f64) as usize)
}

fn mamba(draft: &Draft<'_>, scan: fn(&Draft<'_>, &str, Sizes) -> Result<ScanPlan>) -> Result<Plan> {
    let (keys, config) = (draft.keys, draft.config);
    let size = |key, default| keys.check_size(key, keys.or(key, default)?, MAX_SIZE);
    let second = config.architecture.name() == "mamba2";
    let sizes = Sizes {
        kernel: size("conv_kernel", 4)?,
        state: size("state_size", if second { 128 } else { 16 })?,
    };
    let block = |block: usize| {
        let prefix = format!("backbone.layers.{block}.");
        let scan = MixerPlan::Scan(Box::new(scan(draft, &format!("{prefix}mixer."), sizes)?));
        let parts = vec![PartPlan::new(Before::Norm(draft.norm(&format!("{prefix}norm"))), scan)];
        Ok(BlockPlan { prefix, parts, parallel: false })
    };
    let mut plan = draft.decoder_in("backbone.", "layers.", "embeddings", "norm_f", block)?;
    plan.prefixes = &["", "backbone."];
    Ok(plan)
}

#[derive(Clone, Copy)]
struct Sizes {
    kernel: usize,
    state: usize,
}

impl Draft<'_> {
    /// What both have in common; `wide`: rows of the matrix into the layer.
    fn scan(&self, prefix: &str, sizes: Sizes, wide: usize, kind: ScanKind) -> Result<ScanPlan> {
        let (hidden, inner) = (self.config.hidden, self.config.intermediate);
        let bias = self.config.mlp_bias;
        let linear = |role, name: &str, shape| {
            LinearSpec::new(role, format!("{prefix}{name}.weight"), shape).with_bias(bias)
        };
        let conv_bias = self.keys.or("use_conv_bias", true)?;
        Ok(ScanPlan {
            input: linear(Role::ScanIn, "in_proj", [wide, hidden]),
            conv: format!("{prefix}conv1d.weight"),
            conv_bias: conv_bias.then(|| format!("{prefix}conv1d.bias")),
            kernel: sizes.kernel,
            inner,
            state: sizes.state,
            kind,
            decay: format!("{prefix}A_log"),
            past: format!("{prefix}D"),
            activation: self.config.activation,
            output: linear(Role::ScanOut, "out_proj", [hidden, inner]),
        })
    }
}

fn selective(draft: &Draft<'_>, prefix: &str, sizes: Sizes) -> Result<ScanPlan> {
    let (keys, hidden) = (draft.keys, draft.config.hidden);
    let inner = draft.config.intermediate;
    let rank = match keys.present("time_step_rank") {
        None => hidden.div_ceil(16),
        Some(Value::String(auto)) if auto == "auto" => hidden.div_ceil(16),
        Some(_) => keys.size("time_step_rank", MAX_SIZE)?,
    };
    let linear =
        |role, name: &str, shape| LinearSpec::new(role, format!("{prefix}{name}.weight"), shape);
    let parameters = linear(Role::ScanParameters, "x_proj", [rank + 2 * sizes.state, inner]);
    let step = linear(Role::ScanStep, "dt_proj", [inner, rank]).with_bias(true);
    draft.scan(prefix, sizes, 2 * inner, ScanKind::Selective { parameters, step, rank })
}

fn heads(draft: &Draft<'_>, prefix: &str, sizes: Sizes) -> Result<ScanPlan> {
    let (keys, inner) = (draft.keys, draft.config.intermediate);
    let size = |key, default| keys.check_size(key, keys.or(key, default)?, MAX_SIZE);
    let (heads, groups) = (size("num_heads", 128)?, size("n_groups", 8)?);
    let width = size("head_dim", 64)?;
    if heads.checked_mul(width) != Some(inner) {
        return Err(keys.bad(format!(
            "`num_heads` x `head_dim` = {heads} x {width}; `expand` x `hidden_size` is {inner}"
        )));
    }
    if heads % groups != 0 {
        let message = format!("`num_heads` = {heads} is no multiple of `n_groups` = {groups}");
        return Err(keys.bad(message));
    }
    let name = format!("{prefix}norm");
    let kind = ScanKind::Heads {
        heads,
        groups,
        step_bias: format!("{prefix}dt_bias"),
        limits: limits(keys)?,
        norm: NormPlan {
            width: inner / groups,
            ..NormPlan::new(&name, inner, draft.config.norm_eps)
        },
    };
    let wide = 2 * inner + 2 * groups * sizes.state + heads;
    draft.scan(prefix, sizes, wide, kind)
}

/// What steps are kept within; one end is infinite as a rule, which configs spell in several ways.
fn limits(keys: &Keys<'_>) -> Result<(f32, f32)> {
    let key = "time_step_limit";
    let Some(value) = keys.present(key) else { return Ok((0.0, f32::INFINITY)) };
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::Object(object) => float(object.get("__float__")?.as_str()?),
        Value::String(text) => float(text),
        _ => None,
    };
    let ends = value.as_array().map(|ends| ends.iter().map(number).collect::<Vec<_>>());
    match ends.as_deref() {
        Some([Some(low), Some(high)]) if low <= high => Ok((*low as f32, *high as f32)),
        _ => Err(keys.bad(format!(
            "{} = {value}: allowed are two numbers, the second not below the first",
            keys.name(key)
        ))),
    }
}

fn float(text: &str) -> Option<f64> {
    match text {
        "Infinity" | "inf" => Some(f64::INFINITY),
        "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}
