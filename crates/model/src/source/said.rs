//! What the config of an edited model says.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tensorpress_tensor::rewrite::{BlockShape, Change, Edit, Experts, Role};
use tensorpress_tensor::{Error, Result};

use super::Source;
use crate::config::{Config, shape};

/// What configs call the number of experts that a router chooses from.
const EXPERTS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];

/// What configs call the width of an expert, where that is not the width of any feed-forward network.
const EXPERT_WIDTH: &str = "moe_intermediate_size";

const CHOSEN_TOO: &str = "experts_per_token";

/// What a plain config says.
pub(super) struct Said {
    shape: BlockShape,
    /// Experts of a block that has any, if others than before.
    experts: Option<usize>,
    /// To how many of them a token goes, and how wide they are, where that is another.
    chosen: Option<usize>,
    expert_width: Option<usize>,
    /// If the architecture has a key for it.
    head_dim: Option<usize>,
    /// All matrices of the attention have biases that they did not have before.
    attention_bias: bool,
    /// All matrices of the feed-forward network have biases that they did not have before.
    mlp_bias: bool,
}

impl Said {
    /// `shapes` of the blocks that stay.
    pub(super) fn by_config(
        source: &Source,
        edits: &[Edit],
        shapes: &[BlockShape],
    ) -> Result<Self> {
        let config = source.config();
        let kind = config.architecture;
        let shape = shapes[0].without_experts();
        let refuse = |what: String| {
            Err(Error::unsupported(format!("{what}: config.json has no key for that in {kind:?}")))
        };
        if shapes.iter().any(|other| other.without_experts() != shape) {
            return refuse("blocks of different shapes".to_owned());
        }
        if config.shapes.is_some() {
            return refuse("a model whose blocks were given shapes of their own".to_owned());
        }
        if !kind.has_head_dim() && shape.heads != config.heads {
            return refuse(format!("{} heads of width {}", shape.heads, config.head_dim));
        }
        let added = |attention: bool| {
            let of = |block: usize, edit: &Edit| {
                let specs = source.linears(block).into_iter();
                let mut new = specs.filter(|spec| {
                    is_attention(spec.role) == attention
                        && !source.checkpoint().contains(&spec.bias)
                });
                let gains = |name: &str| {
                    let change = edit.changes().get(name);
                    matches!(change, Some(Change::Added(_) | Change::New(_)))
                };
                !edit.is_dropped() && new.any(|spec| gains(&spec.bias))
            };
            edits.iter().enumerate().any(|(block, edit)| of(block, edit))
        };
        let (attention_bias, mlp_bias) = (added(true), added(false));
        if attention_bias && !kind.has_output_bias() {
            return refuse("a bias of the attention's output matrix".to_owned());
        }
        if mlp_bias && !kind.has_mlp_bias() {
            return refuse("biases of the feed-forward network".to_owned());
        }
        // A number of each block that has experts: what edits say, or what it was; nothing, if no edit says any.
        let one = |own: &dyn Fn(&BlockShape) -> Vec<usize>, was: &dyn Fn(usize) -> Vec<usize>| {
            let said = |block: usize| edits[block].shape().map(own).filter(|own| !own.is_empty());
            let left = (0..edits.len()).filter(|block| !edits[*block].is_dropped());
            let mixed = left.filter(|block| source.experts(*block).is_some());
            let all: Vec<(usize, Option<Vec<usize>>)> = mixed.map(|b| (b, said(b))).collect();
            let edited = all.iter().any(|(_, said)| said.is_some());
            let all = all.into_iter().flat_map(|(b, said)| said.unwrap_or_else(|| was(b)));
            if edited { all.collect::<BTreeSet<usize>>() } else { BTreeSet::new() }
        };
        let number = |number: usize| Vec::from_iter((number > 0).then_some(number));
        let of = |block: usize, which: fn(&Experts) -> usize| {
            Vec::from_iter(source.experts(block).as_ref().map(which))
        };
        let counts = one(&|shape| number(shape.experts), &|block| of(block, |all| all.count));
        let chosen = one(&|shape| number(shape.chosen), &|block| of(block, |all| all.chosen));
        let widths = one(&|shape| shape.expert_widths.clone(), &|block| {
            source.layout(true).blocks[block].expert_widths()
        });
        for (what, all) in [
            ("blocks of different numbers of experts", &counts),
            ("tokens that go to different numbers of experts", &chosen),
            ("experts of different widths", &widths),
        ] {
            if all.len() > 1 {
                return refuse(what.to_owned());
            }
        }
        if !widths.is_empty() && !kind.has_expert_width() {
            return refuse("the width of experts alone".to_owned());
        }
        let [experts, chosen, expert_width] =
            [counts, chosen, widths].map(|all| all.first().copied());
        let head_dim = kind.has_head_dim().then_some(config.head_dim);
        Ok(Self { shape, experts, chosen, expert_width, head_dim, attention_bias, mlp_bias })
    }

    /// The config implies biases of matrices of this role, that are new.
    pub(super) fn implies(&self, role: Role) -> bool {
        if is_attention(role) { self.attention_bias } else { self.mlp_bias }
    }

    /// `shaped`: heads and widths of the blocks are not what the config says.
    pub(super) fn write(&self, mut raw: Value, shaped: bool) -> Value {
        if let (Some(raw), Value::Object(shape)) =
            (raw.as_object_mut(), shape::to_json(&self.shape))
        {
            let known =
                |(key, _): &(String, Value)| self.head_dim.is_some() || key == "intermediate_size";
            if shaped {
                raw.extend(shape.into_iter().filter(known));
                raw.extend(self.head_dim.map(|dim| ("head_dim".to_owned(), json!(dim))));
            }
            for (key, set) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)]
            {
                raw.extend(set.then(|| (key.to_owned(), json!(true))));
            }
            for key in EXPERTS.iter().filter(|key| raw.contains_key(**key)).collect::<Vec<_>>() {
                raw.extend(self.experts.map(|experts| ((*key).to_owned(), json!(experts))));
            }
            raw.extend(self.chosen.map(|chosen| (shape::CHOSEN.to_owned(), json!(chosen))));
            // The same number once more, in configs of gpt-oss.
            if raw.contains_key(CHOSEN_TOO) {
                raw.extend(self.chosen.map(|chosen| (CHOSEN_TOO.to_owned(), json!(chosen))));
            }
            if let Some(width) = self.expert_width {
                let own = raw.contains_key(EXPERT_WIDTH);
                let key = if own { EXPERT_WIDTH } else { "intermediate_size" };
                raw.insert(key.to_owned(), json!(width));
            }
            raw.remove("quantization_config");
        }
        raw
    }
}

fn is_attention(role: Role) -> bool {
    matches!(role, Role::Q | Role::K | Role::V | Role::O)
}

/// The config with the shape of each block.
pub(super) fn with_shapes(mut raw: Value, shapes: &[BlockShape]) -> Value {
    let blocks: Vec<Value> = shapes.iter().map(shape::to_json).collect();
    raw["quantization_config"]["quant_method"] = json!("tensorpress");
    raw["quantization_config"]["blocks"] = json!(blocks);
    raw
}

/// The config with other heads of its state-space layers. There are keys for one number of them in all blocks.
pub(super) fn with_scans(mut raw: Value, config: &Config, shapes: &[BlockShape]) -> Result<Value> {
    let shape = &shapes[0];
    if shapes.iter().any(|other| other != shape) {
        let kind = config.architecture;
        let what = "state-space layers of different sizes";
        return Err(Error::unsupported(format!(
            "{what}: config.json has no key for that in {kind:?}"
        )));
    }
    raw["num_heads"] = json!(shape.scan_heads);
    raw["head_dim"] = json!(shape.intermediate / shape.scan_heads);
    if raw.get("intermediate_size").is_some() {
        raw["intermediate_size"] = json!(shape.intermediate);
    }
    // Readers round the product down, and compare it with heads times width.
    let exact = |times: &f64| times * config.hidden as f64 == shape.intermediate as f64;
    let times = shape.intermediate as f64 / config.hidden as f64;
    let near = [times, times.next_up(), times.next_down()];
    let times = near.into_iter().find(exact).unwrap_or(times.next_up());
    raw["expand"] = match times.fract() == 0.0 {
        true => json!(times as u64),
        false => json!(times),
    };
    Ok(raw)
}

/// Lists in configs with an entry a block.
const LISTS: [&str; 4] = ["layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers"];

/// The config with these of its blocks.
pub(super) fn with_blocks(mut raw: Value, config: &Config, left: &[usize]) -> Value {
    if left.len() == config.blocks {
        return raw;
    }
    raw["num_hidden_layers"] = json!(left.len());
    for key in LISTS {
        if let Some(Value::Array(list)) = raw.get_mut(key)
            && list.len() == config.blocks
        {
            *list = left.iter().map(|block| list[*block].take()).collect();
        }
    }
    // Where no list says which blocks have windows, a number does: all from there on.
    let qwen = matches!(config.architecture.name(), "qwen2" | "qwen3");
    if qwen && config.windows.iter().any(Option::is_some) {
        let full = left.iter().filter(|block| config.windows[**block].is_none()).count();
        raw["max_window_layers"] = json!(full);
    }
    raw
}
