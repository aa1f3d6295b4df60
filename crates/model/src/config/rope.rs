use tensorpress_tensor::Result;

use super::keys::Keys;

/// Parameters of rotary position embeddings.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// How the wavelengths are stretched for a longer context.
    pub scaling: RopeScaling,
}

/// Stretching of rotary embeddings beyond the context a model was trained with.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    #[default]
    Default,
    /// All wavelengths are `factor` times longer.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3: long wavelengths are stretched, short ones kept, those between are blended.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length in tokens before the stretch.
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023): wavelengths that turn seldom within the original context are stretched, those that turn
    /// often are kept, those between are blended by their index; cos and sin are multiplied.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Context length in tokens before the stretch.
        original_context: f64,
        /// Turns within the original context from which on a wavelength is kept.
        beta_fast: f64,
        /// Turns up to which it is stretched.
        beta_slow: f64,
        /// The ends of the blend are rounded to whole indices.
        truncate: bool,
        /// What cos and sin are multiplied by, if it is given.
        attention_factor: Option<f64>,
        /// Weights of ln(factor) in what cos and sin are multiplied by, over those in `mscale_all_dim`.
        mscale: Option<f64>,
        /// See `mscale`; DeepSeek scales its scores by it as well.
        mscale_all_dim: Option<f64>,
    },
    /// The base grows with the length of the sequence, once that exceeds the original context ("NTK-aware").
    Dynamic {
        /// How fast.
        factor: f64,
        /// Context length in tokens from which on it grows.
        original_context: f64,
    },
    /// LongRoPE (Ding et al. 2024): each wavelength has a stretch of its own, other ones once the sequence exceeds the
    /// original context; cos and sin are multiplied.
    Longrope {
        /// Stretches within the original context.
        short: Vec<f64>,
        /// Stretches beyond it.
        long: Vec<f64>,
        /// Context length in tokens before the stretch.
        original_context: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
    },
    /// One that is unknown here: everything that turns nothing can be done.
    Unknown {
        /// What the config calls it.
        name: String,
    },
}

/// 0.1 m ln(s) + 1: the temperature of YaRN for a stretch s.
pub(crate) fn mscale(stretch: f64, m: f64) -> f64 {
    if stretch > 1.0 { 0.1 * m * stretch.ln() + 1.0 } else { 1.0 }
}

impl RopeConfig {
    /// Reads both spellings: `rope_parameters`, or `rope_theta` with `rope_scaling`. Where blocks with and without windows
    /// have their own parameters: those without.
    pub(crate) fn read(keys: &Keys<'_>, context: usize) -> Result<Self> {
        let base =
            ["rope_theta", "rotary_emb_base"].into_iter().find(|k| keys.present(k).is_some());
        let base = keys.positive(base.unwrap_or("rope_theta"), Some(10_000.0))?;
        let child = match keys.child("rope_parameters")? {
            Some(child) => Some(child.child("full_attention")?.unwrap_or(child)),
            None => keys.child("rope_scaling")?,
        };
        match child {
            None => Ok(Self { theta: base, scaling: RopeScaling::Default }),
            Some(child) => Self::read_in(&child, keys, base, context),
        }
    }

    /// The parameters of blocks with windows, where they have their own.
    pub(crate) fn read_local(keys: &Keys<'_>, context: usize) -> Result<Self> {
        let theta = keys.positive("rope_local_base_freq", Some(10_000.0))?;
        let child = match keys.child("rope_parameters")? {
            Some(child) => child.child("sliding_attention")?,
            None => None,
        };
        match child {
            None => Ok(Self { theta, scaling: RopeScaling::Default }),
            Some(child) => Self::read_in(&child, keys, theta, context),
        }
    }

    fn read_in(child: &Keys<'_>, outer: &Keys<'_>, base: f64, context: usize) -> Result<Self> {
        let theta = child.positive("rope_theta", Some(base))?;
        let key = if child.present("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = child.or(key, "default".to_owned())?;
        let original = || {
            let key = "original_max_position_embeddings";
            let outside = outer.positive(key, Some(context as f64))?;
            child.positive(key, Some(outside))
        };
        let scaling = match kind.as_str() {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: child.positive("factor", None)? },
            "llama3" => {
                let low = child.positive("low_freq_factor", None)?;
                let high = child.positive("high_freq_factor", None)?;
                if high <= low {
                    return Err(child.bad(format!(
                        "rope scaling: high_freq_factor {high} must exceed low_freq_factor {low}"
                    )));
                }
                RopeScaling::Llama3 {
                    factor: child.positive("factor", None)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: original()?,
                }
            }
            "yarn" => RopeScaling::Yarn {
                factor: child.positive("factor", Some(context as f64 / original()?))?,
                original_context: original()?,
                beta_fast: child.positive("beta_fast", Some(32.0))?,
                beta_slow: child.positive("beta_slow", Some(1.0))?,
                truncate: child.or("truncate", true)?,
                attention_factor: child.get("attention_factor")?,
                mscale: child.get("mscale")?,
                mscale_all_dim: child.get("mscale_all_dim")?,
            },
            "dynamic" => RopeScaling::Dynamic {
                factor: child.positive("factor", None)?,
                original_context: context as f64,
            },
            "longrope" | "su" => Self::longrope(child, original()?, context)?,
            other => RopeScaling::Unknown { name: other.to_owned() },
        };
        Ok(Self { theta, scaling })
    }

    fn longrope(child: &Keys<'_>, original: f64, context: usize) -> Result<RopeScaling> {
        let list = |key| -> Result<Vec<f64>> {
            let list: Vec<f64> = child.require(key)?;
            match list.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
                true => Ok(list),
                false => Err(child.bad(format!("{} must be positive and finite", child.name(key)))),
            }
        };
        let stretch = context as f64 / original;
        let usual = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
        Ok(RopeScaling::Longrope {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original_context: original,
            attention_factor: child.positive("attention_factor", Some(usual))?,
        })
    }
}
