//! The parts of a block out of their plans.

use std::sync::Arc;

use tensorpress_kvcache::Scoring;
use tensorpress_tensor::{Error, Result};

use super::Source;
use super::names::bias_of;
use crate::architecture::{
    AttentionPlan, Before, MixerPlan, MlpKind, MlpPlan, MoePlan, NormPlan, PartPlan, Project,
    RelativePlan, RopePlan, ScanKind, ScanPlan,
};
use crate::block::{Block, Mixer, Part};
use crate::config::RopeScaling;
use crate::layers::{
    Attention, Conv, Latent, Mlp, MlpLinears, Moe, Norm, Projection, Relative, Rope, Scan,
    Scanning, alibi_slopes,
};

impl Source {
    pub(super) fn norm(&self, plan: &NormPlan) -> Result<Norm> {
        let NormPlan { weights, len, width, centred, bias, offset, eps } = plan;
        let mut weight = Vec::new();
        for name in weights {
            weight.extend(self.values(name, len / weights.len())?);
        }
        let name = weights.first().cloned().unwrap_or_default();
        let bias = if *bias { Some(self.vector(&bias_of(&name), *len)?) } else { None };
        let (width, centred, offset, eps) = (*width, *centred, *offset, *eps);
        Ok(Norm { name, weight, bias, width, centred, offset, eps })
    }

    pub(super) fn norm_if(&self, plan: Option<&NormPlan>) -> Result<Option<Norm>> {
        plan.map(|plan| self.norm(plan)).transpose()
    }

    /// Loads a block; its matrices stay in the memory map, or compressed.
    ///
    /// # Errors
    /// `InsufficientData` for a missing weight, `ShapeMismatch` with the config, `Numerical` for NaN in a norm or
    /// bias; those of reading compressed weights; each names tensor and file.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Result<Block> {
        let config = &self.config;
        assert!(block < config.blocks, "block {block} of {}", config.blocks);
        let plan = &self.plan.blocks[block];
        let part = |part: &PartPlan| -> Result<Part> {
            let mixer = match &part.mixer {
                MixerPlan::Attention(plan) => Mixer::Attention(Box::new(self.attention(plan)?)),
                MixerPlan::Mlp(plan) => Mixer::Mlp(Box::new(self.mlp(plan)?)),
                MixerPlan::Moe(plan) => Mixer::Moe(Box::new(self.moe(plan)?)),
                MixerPlan::Scan(plan) => Mixer::Scan(Box::new(self.scan(plan)?)),
                MixerPlan::Other(specs) => {
                    Mixer::Other(specs.iter().map(|spec| self.linear(spec)).collect::<Result<_>>()?)
                }
            };
            let norm = match &part.norm {
                Before::Norm(norm) => Some(self.norm(norm)?),
                Before::Nothing | Before::Same => None,
            };
            Ok(Part {
                norm,
                same: part.norm == Before::Same,
                mixer,
                after: self.norm_if(part.after.as_ref())?,
                scale: part.scale,
                then: self.norm_if(part.then.as_ref())?,
            })
        };
        let parts = plan.parts.iter().map(part).collect::<Result<_>>()?;
        Ok(Block { index: block, parts, parallel: plan.parallel })
    }

    pub(super) fn attention(&self, plan: &AttentionPlan) -> Result<Attention> {
        let project = match &plan.project {
            Project::Separate { q, k, v } => {
                Projection::Separate { q: self.linear(q)?, k: self.linear(k)?, v: self.linear(v)? }
            }
            Project::Fused { qkv, order } => {
                Projection::Fused { qkv: self.linear(qkv)?, order: *order }
            }
            Project::Latent(plan) => Projection::Latent(Box::new(Latent {
                q_down: match &plan.q_down {
                    Some((down, norm)) => Some((self.linear(down)?, self.norm(norm)?)),
                    None => None,
                },
                q_up: self.linear(&plan.q_up)?,
                kv_down: self.linear(&plan.kv_down)?,
                kv_norm: self.norm(&plan.kv_norm)?,
                kv_up: self.linear(&plan.kv_up)?,
                rank: plan.latent,
                turned: plan.turned,
            })),
        };
        let sinks = plan.sinks.as_ref().map(|name| self.vector(name, plan.heads)).transpose()?;
        let slopes = if plan.alibi { alibi_slopes(plan.heads) } else { Vec::new() };
        let relative = |plan: &RelativePlan| -> Result<Relative> {
            let table = self.table(&plan.table, [plan.buckets, self.config.heads])?;
            Ok(Relative { table, most: plan.most })
        };
        let mut scoring = Scoring::default().with_sinks(sinks.unwrap_or_default());
        scoring = scoring.with_slopes(slopes.iter().map(|slope| slope * plan.scale).collect());
        scoring.softcap = plan.softcap;
        scoring.chunk = plan.chunk;
        // The usual one goes without saying.
        scoring.scale =
            Some(plan.scale).filter(|s| *s != Scoring::default().scale_of(plan.head_dim));
        let rope = plan.rope.as_ref().map(|rope| self.rope(rope, plan.head_dim)).transpose()?;
        Ok(Attention {
            project,
            o: self.linear(&plan.o)?,
            q_norm: self.norm_if(plan.q_norm.as_ref())?,
            k_norm: self.norm_if(plan.k_norm.as_ref())?,
            norm_last: plan.norm_last,
            rope,
            temperature: plan.temperature,
            heads: plan.heads,
            kv_heads: plan.kv_heads,
            head_dim: plan.head_dim,
            value_dim: plan.value_dim,
            causal: plan.causal,
            window: plan.window,
            scoring,
            relative: plan.relative.as_ref().map(relative).transpose()?,
        })
    }

    pub(super) fn mlp(&self, plan: &MlpPlan) -> Result<Mlp> {
        let kind = match &plan.kind {
            MlpKind::Plain { up } => MlpLinears::Plain { up: self.linear(up)? },
            MlpKind::Gated { gate, up } => {
                MlpLinears::Gated { gate: self.linear(gate)?, up: self.linear(up)? }
            }
            MlpKind::Fused { both, alternating } => {
                MlpLinears::Fused { both: self.linear(both)?, alternating: *alternating }
            }
        };
        let (activation, clamp) = (plan.activation, plan.clamp);
        Ok(Mlp { kind, down: self.linear(&plan.down)?, activation, clamp })
    }

    pub(super) fn moe(&self, plan: &MoePlan) -> Result<Moe> {
        let experts = plan.experts.len();
        let correction = plan.correction.as_ref();
        let shared = match &plan.shared {
            None => None,
            Some((mlp, gate)) => {
                Some((self.mlp(mlp)?, gate.as_ref().map(|gate| self.linear(gate)).transpose()?))
            }
        };
        Ok(Moe {
            router: self.linear(&plan.router)?,
            correction: correction.map(|name| self.vector(name, experts)).transpose()?,
            rule: plan.rule,
            experts: plan.experts.iter().map(|mlp| self.mlp(mlp)).collect::<Result<_>>()?,
            shared,
            weighs_input: plan.weighs_input,
        })
    }

    pub(super) fn scan(&self, plan: &ScanPlan) -> Result<Scan> {
        let (channels, kernel) = (plan.channels(), plan.kernel);
        let stored = self.array(&plan.conv, &[channels, 1, kernel])?;
        let weight = (0..kernel * channels).map(|i| stored[i % channels * kernel + i / channels]);
        let bias = plan.conv_bias.as_ref().map(|name| self.vector(name, channels)).transpose()?;
        let conv = Conv { weight: weight.collect(), bias, channels };
        let (mut decay, past) = match plan.kind {
            ScanKind::Selective { .. } => (
                self.array(&plan.decay, &[plan.inner, plan.state])?,
                self.vector(&plan.past, plan.inner)?,
            ),
            ScanKind::Heads { heads, .. } => {
                (self.vector(&plan.decay, heads)?, self.vector(&plan.past, heads)?)
            }
        };
        decay.iter_mut().for_each(|v| *v = -v.exp());
        let kind = match &plan.kind {
            ScanKind::Selective { parameters, step, rank } => Scanning::Selective {
                parameters: self.linear(parameters)?,
                step: self.linear(step)?,
                rank: *rank,
            },
            ScanKind::Heads { heads, groups, step_bias, limits, norm } => Scanning::Heads {
                heads: *heads,
                groups: *groups,
                step_bias: self.vector(step_bias, *heads)?,
                limits: *limits,
                norm: self.norm(norm)?,
            },
        };
        Ok(Scan {
            input: self.linear(&plan.input)?,
            conv,
            kind,
            inner: plan.inner,
            state: plan.state,
            decay,
            past,
            activation: plan.activation,
            output: self.linear(&plan.output)?,
        })
    }

    pub(super) fn rope(&self, plan: &RopePlan, head_dim: usize) -> Result<Arc<Rope>> {
        if let RopeScaling::Unknown { name } = &plan.config.scaling {
            let message = format!("rope scaling `{name}` is unknown: the model cannot be run here");
            return Err(Error::unsupported(message).in_file(self.config_file()));
        }
        let mut ropes = self.ropes.lock().expect("nothing panics while it is held");
        if let Some((_, rope)) = ropes.iter().find(|(known, _)| known == plan) {
            return Ok(rope.clone());
        }
        let rope = Arc::new(Rope::of(plan, head_dim, self.config.context));
        ropes.push((plan.clone(), rope.clone()));
        Ok(rope)
    }
}
