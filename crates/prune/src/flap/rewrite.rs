//! FLAP as a rewrite: what the pieces beside this file compute, asked block by block.

use tensorpress_tensor::ndarray::ArrayView1;
use tensorpress_tensor::rewrite::{
    BlockCut, BlockLayout, BlockView, Change, Decision, Edit, Judgement, LinearSpec, ModelLayout,
    Role, SharedInput,
};
use tensorpress_tensor::stats::Moments;
use tensorpress_tensor::{Context, Error, Method, Result, Rewrite, Usable};

use super::allocation::unlike;
use super::{
    BlockScores, BlockSupport, ChannelMetric, Flap, HeadLayout, InputStatistics, compensation,
};
use crate::structured::can_lose_heads;

/// The matrices whose inputs are judged, and the names of their scores: the channels of one belong to heads, those of the
/// other are on their own.
const JUDGED: [(Role, &str); 2] = [(Role::O, "attention"), (Role::Down, "channels")];

/// Names of the means of the inputs, and of what stays.
const MEANS: [&str; 2] = ["attention.mean", "channels.mean"];
const KEPT: [&str; 3] = ["heads", "kv_heads", "channels"];

fn judged(layout: &BlockLayout, role: Role) -> Result<&LinearSpec> {
    layout.linear(role).ok_or_else(|| {
        Error::unsupported(format!(
            "flap: block {} has no matrix {role:?}, whose inputs are judged",
            layout.block
        ))
    })
}

impl Rewrite for Flap {
    fn inputs(&self) -> &[SharedInput] {
        &[SharedInput::AttentionOutput, SharedInput::MlpOutput]
    }

    fn keeps_blocks_alike(&self) -> bool {
        self.uniform
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        self.check()?;
        model.check_editable(self.id())?;
        for block in &model.blocks {
            JUDGED.iter().try_for_each(|(role, _)| judged(block, *role).map(drop))?;
            if self.uniform && block.shape != model.blocks[0].shape {
                return Err(unlike(block.block));
            }
        }
        Ok(())
    }

    /// Judges the channels of both inputs; by the weights alone where nothing is known of them.
    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let mut judgement = Judgement::new();
        for ((role, name), mean) in JUDGED.into_iter().zip(MEANS) {
            let spec = judged(block.layout(), role)?;
            let weight = block.matrix(&spec.name)?;
            let inputs = match block.input(spec.input).filter(|seen| seen.tokens() > 0) {
                None => Usable::no("saw no calibration token"),
                Some(seen) => seen.usable::<Moments>().in_tensor(&spec.name)?,
            };
            let inputs = inputs.map(InputStatistics::from);
            let scores = match &inputs {
                Usable::Yes(inputs) => self.metric.scores(weight.view(), inputs),
                Usable::No(reason) => {
                    let why =
                        format!("{reason}: judged by the norms of its columns, and no bias added");
                    judgement = judgement.with_note(&spec.name, &why);
                    ChannelMetric::by_weight(weight.view())
                }
            };
            judgement = judgement.with_values(name, &scores.in_tensor(&spec.name)?.to_vec());
            if let Usable::Yes(inputs) = inputs {
                judgement = judgement.with_values(mean, &inputs.mean.to_vec());
            }
        }
        Ok(judgement)
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        let whole = !can_lose_heads(model);
        let scores = |(layout, judgement): (&BlockLayout, &Judgement)| -> Result<BlockScores> {
            let shape = &layout.shape;
            let of_mlp = |spec: &&LinearSpec| {
                [SharedInput::Mlp, SharedInput::MlpOutput].contains(&spec.input)
            };
            let heads = HeadLayout::new(shape.heads, shape.kv_heads, model.head_dim)?;
            let [attention, channels] = JUDGED.map(|(_, name)| judgement.values(name));
            Ok(BlockScores::new(heads, attention?, channels?)
                .with_mlp_matrices(layout.linears.iter().filter(of_mlp).count())
                .with_whole_attention(whole))
        };
        let scores = model.blocks.iter().zip(judgements).map(scores).collect::<Result<Vec<_>>>()?;
        let decision = |kept: BlockSupport| {
            let lists = [kept.heads, kept.kv_heads, kept.channels];
            let said = KEPT.into_iter().zip(lists);
            said.fold(Decision::new(), |all, (name, list)| all.with_kept(name, list))
        };
        Ok(self.select(&scores)?.into_iter().map(decision).collect())
    }

    fn edit(
        &self,
        model: &ModelLayout,
        block: &BlockView<'_>,
        judgement: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let layout = block.layout();
        let [heads, kv_heads, channels] = KEPT.map(|name| decision.kept(name).map(<[_]>::to_vec));
        let cut = BlockCut::new(heads?, kv_heads?, channels?);
        let mut edit = Edit::cut(model, layout, &cut)?;
        let shape = &layout.shape;
        if self.uniform && self.sparsity > 0.0 && cut.heads.len() == shape.heads {
            let why = match can_lose_heads(model) {
                false => {
                    format!(
                        "config.json of {} has no key for the width of a head",
                        model.architecture
                    )
                }
                true => format!(
                    "{} of {} heads in {} groups is none that can go",
                    self.sparsity, shape.heads, shape.kv_heads
                ),
            };
            let name = &judged(layout, Role::O)?.name;
            edit = edit.with_note(name, &format!("all heads stay: {why}"));
        }
        let wide = |keep: bool| vec![keep; model.head_dim];
        let kept: [Vec<bool>; 2] = [
            flags(shape.heads, &cut.heads).into_iter().flat_map(wide).collect(),
            flags(shape.intermediate, &cut.channels),
        ];
        let can_be_said = [model.says.output_bias, model.says.mlp_bias];
        for (i, (role, _)) in JUDGED.into_iter().enumerate() {
            let keep = &kept[i];
            // Nothing is added if nothing goes, or nothing is known of what does.
            if !keep.contains(&false) || !judgement.has(MEANS[i]) {
                continue;
            }
            let spec = judged(layout, role)?;
            if !can_be_said[i] {
                let why = format!(
                    "no bias makes good for what goes: config.json of {} has no key for one (uniform = false keeps it)",
                    model.architecture
                );
                edit = edit.with_note(&spec.name, &why);
                continue;
            }
            let (weight, mean) = (block.matrix(&spec.name)?, judgement.values(MEANS[i])?);
            let bias = compensation(weight.view(), ArrayView1::from(&mean), keep).to_vec();
            edit = edit.with_change(&spec.bias, Change::Added(bias));
        }
        Ok(edit)
    }
}

fn flags(all: usize, kept: &[usize]) -> Vec<bool> {
    let mut flags = vec![false; all];
    kept.iter().for_each(|i| flags[*i] = true);
    flags
}
