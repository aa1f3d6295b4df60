use tensorpress_tensor::{Registry, Result};

use crate::compose;
use crate::recipe::{PLANNED, presets};

/// Readers of every node and plane of this version, and the stages of its recipes: what opens any compressed folder, and
/// what a registry with nodes and stages of your own starts from.
///
/// ```
/// use tensorpress::prelude::*;
///
/// let registry = tensorpress::registry();
/// assert!(registry.stages().find("gptq").is_ok());
/// assert!(registry.stages().find("gtpq").unwrap_err().to_string().contains("gptq"));
/// ```
#[must_use]
pub fn registry() -> Registry {
    complete().expect("the names of this workspace differ")
}

/// The order of the lists is that of help and pages.
fn complete() -> Result<Registry> {
    let mut registry = Registry::default();
    tensorpress_entropy::register(&mut registry)?;
    #[cfg(feature = "formats")]
    tensorpress_formats::register(&mut registry)?;
    let stages = registry.stages_mut();
    stages.extend(tensorpress_prune::stages())?;
    stages.extend(tensorpress_quant::stages())?;
    #[cfg(feature = "formats")]
    stages.extend(tensorpress_formats::stages())?;
    stages.extend(tensorpress_lowrank::stages())?;
    stages.extend(compose::stages())?;
    stages.extend(tensorpress_entropy::stages())?;
    stages.plan(PLANNED);
    presets().into_iter().try_for_each(|preset| stages.add_preset(preset))?;
    Ok(registry)
}
