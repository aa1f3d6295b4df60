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
}

impl RopeConfig {
    /// Reads both spellings: `rope_parameters`, or `rope_theta` with `rope_scaling`.
    pub(super) fn read(keys: &Keys<'_>, context: usize) -> Result<Self> {
        let base = keys.positive("rope_theta", Some(10_000.0))?;
        let child = match keys.child("rope_parameters")? {
            Some(child) => Some(child),
            None => keys.child("rope_scaling")?,
        };
        let Some(child) = child else {
            return Ok(Self { theta: base, scaling: RopeScaling::Default });
        };
        let theta = child.positive("rope_theta", Some(base))?;
        let key = if child.present("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = child.or(key, "default".to_owned())?;
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
                    original_context: child
                        .positive("original_max_position_embeddings", Some(context as f64))?,
                }
            }
            other => {
                return Err(child.unsupported(format!(
                    "rope scaling `{other}`; known are default, linear and llama3"
                )));
            }
        };
        Ok(Self { theta, scaling })
    }
}
