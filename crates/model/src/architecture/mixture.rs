//! Mixtures of experts around the usual attention: Mixtral, Qwen 2 and 3 MoE, OLMoE.

use tensorpress_tensor::Result;
use tensorpress_tensor::rewrite::{Expert, LinearSpec, Role};

use super::llama::{head_norms, qwen_windows, qwen3_biases};
use super::olmo::wide_norms;
use super::plan::{BlockPlan, MixerPlan, MoePlan, Plan, Rule, Score};
use super::row::{Draft, Row, everywhere};
use crate::config::MAX_SIZE;

pub(super) const ROWS: &[Row] = &[
    Row { kinds: &["mixtral"], windows: everywhere, eps: 1e-5, plan: mixtral, ..Row::DECODER },
    Row {
        kinds: &["qwen2_moe"],
        biases: |keys| Ok([keys.or("qkv_bias", true)?, false, false]),
        windows: qwen_windows,
        plan: |draft| qwen(draft, false),
        ..Row::DECODER
    },
    Row {
        kinds: &["qwen3_moe"],
        biases: qwen3_biases,
        head_dim: Some(128),
        windows: qwen_windows,
        plan: |draft| qwen(draft, true),
        ..Row::DECODER
    },
    Row { kinds: &["olmoe"], biases: qwen3_biases, eps: 1e-5, plan: olmoe, ..Row::DECODER },
];

impl Draft<'_> {
    /// How many experts there are, and how many a token goes to.
    pub(super) fn experts(&self, names: &[&str]) -> Result<(usize, usize)> {
        let keys = self.keys;
        let there = names.iter().find(|name| keys.present(name).is_some());
        let experts = keys.size(there.copied().unwrap_or(names[0]), 1 << 16)?;
        Ok((experts, keys.size("num_experts_per_tok", experts)?))
    }

    /// How many there are in a block, which may have fewer than the config says, and how many a token goes to.
    pub(super) fn experts_of(
        &self,
        block: usize,
        (experts, chosen): (usize, usize),
    ) -> Result<(usize, usize)> {
        let shape = self.config.shape(block);
        let chosen = match shape.chosen {
            0 => chosen,
            own if own <= chosen => own,
            own => {
                return Err(self.keys.bad(format!(
                    "a token goes to {own} experts of block {block}: allowed are 1 to {chosen}"
                )));
            }
        };
        let experts = match shape.experts {
            0 => experts,
            own if (chosen..=experts).contains(&own) => own,
            own => {
                return Err(self.keys.bad(format!(
                    "block {block} has {own} experts: allowed are {chosen} (a token goes to) to {experts}"
                )));
            }
        };
        let widths = &shape.expert_widths;
        let sized = widths.iter().all(|width| (1..=MAX_SIZE).contains(width));
        if !widths.is_empty() && (widths.len() != experts || !sized) {
            return Err(self.keys.bad(format!(
                "`expert_widths` of block {block}: allowed is one for each of {experts} experts, 1 to {MAX_SIZE}"
            )));
        }
        Ok((experts, chosen))
    }

    /// How wide an expert of a block is, where the config says `inner`.
    pub(super) fn expert_width(&self, block: usize, index: usize, inner: usize) -> usize {
        self.config.shape(block).expert_widths.get(index).copied().unwrap_or(inner)
    }

    /// The matrix that scores experts.
    pub(super) fn router(&self, name: &str, experts: usize) -> LinearSpec {
        LinearSpec::new(Role::Router, format!("{name}.weight"), [experts, self.config.hidden])
    }

    /// A mixture of experts of a block named `PREFIXexperts.N.`, gated as usual.
    pub(super) fn mixture(
        &self,
        block: usize,
        prefix: &str,
        (experts, chosen): (usize, usize),
        inner: usize,
        renormalised: bool,
    ) -> MoePlan {
        let expert = |index| {
            let inner = self.expert_width(block, index, inner);
            self.gated_in(&format!("{prefix}experts.{index}."), inner, Some(Expert::Routed(index)))
        };
        MoePlan {
            router: self.router(&format!("{prefix}gate"), experts),
            correction: None,
            rule: Rule { score: Score::Softmax, chosen, renormalised, scale: 1.0, groups: None },
            experts: (0..experts).map(expert).collect(),
            shared: None,
            weighs_input: false,
        }
    }
}

fn mixtral(draft: &Draft<'_>) -> Result<Plan> {
    let counts = draft.experts(&["num_local_experts"])?;
    draft.decoder(|block| {
        let (mut plan, prefix) = (draft.usual(block)?, draft.prefix(block));
        let prefix = format!("{prefix}block_sparse_moe.");
        let inner = draft.config.shape(block).intermediate;
        let counts = draft.experts_of(block, counts)?;
        let mut moe = draft.mixture(block, &prefix, counts, inner, true);
        for (index, expert) in moe.experts.iter_mut().enumerate() {
            let names = ["w1", "w3", "w2"].map(|n| format!("{prefix}experts.{index}.{n}.weight"));
            let inner = draft.expert_width(block, index, inner);
            *expert = draft.gated_of(names, inner, Some(Expert::Routed(index)));
        }
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok(plan)
    })
}

fn qwen(draft: &Draft<'_>, three: bool) -> Result<Plan> {
    let keys = draft.keys;
    let counts = draft.experts(&["num_experts", "num_local_experts"])?;
    let dense: Vec<usize> = keys.or("mlp_only_layers", Vec::new())?;
    let step = keys.or("decoder_sparse_step", 1usize)?.max(1);
    let renormalised = keys.or("norm_topk_prob", false)?;
    let inner = keys.size("moe_intermediate_size", 1 << 28)?;
    draft.decoder(|block| {
        let (mut plan, prefix) = (draft.usual(block)?, draft.prefix(block));
        if let MixerPlan::Attention(attention) = &mut plan.parts[0].mixer
            && three
        {
            let [q, k] = head_norms(draft, block);
            (attention.q_norm, attention.k_norm) = (Some(q), Some(k));
        }
        if dense.contains(&block) || !(block + 1).is_multiple_of(step) {
            return Ok(plan);
        }
        let prefix = format!("{prefix}mlp.");
        let counts = draft.experts_of(block, counts)?;
        let mut moe = draft.mixture(block, &prefix, counts, inner, renormalised);
        if !three {
            let width = keys.size("shared_expert_intermediate_size", 1 << 28)?;
            let shared = format!("{prefix}shared_expert.");
            let gate = format!("{prefix}shared_expert_gate.weight");
            let gate = LinearSpec::new(Role::SharedGate, gate, [1, draft.config.hidden]);
            moe.shared = Some((draft.gated_in(&shared, width, Some(Expert::Shared)), Some(gate)));
        }
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok(plan)
    })
}

fn olmoe(draft: &Draft<'_>) -> Result<Plan> {
    let keys = draft.keys;
    if keys.present("clip_qkv").is_some() {
        return Err(keys.unsupported("`clip_qkv`"));
    }
    let counts = draft.experts(&["num_experts", "num_local_experts"])?;
    let renormalised = keys.or("norm_topk_prob", false)?;
    draft.decoder(|block| {
        let mut plan = draft.usual(block)?;
        plan.parts[0].mixer = MixerPlan::Attention(Box::new(wide_norms(draft, block)));
        let inner = draft.config.shape(block).intermediate;
        let prefix = format!("{}mlp.", draft.prefix(block));
        let counts = draft.experts_of(block, counts)?;
        let moe = draft.mixture(block, &prefix, counts, inner, renormalised);
        plan.parts[1].mixer = MixerPlan::Moe(Box::new(moe));
        Ok::<BlockPlan, _>(plan)
    })
}
