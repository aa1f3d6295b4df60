//! Merging rules as JSON.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::{Compensation, EvictThenMerge, GaussianMerge, Merge, NearestValues, ResidualMerge};

/// `id` beside the parameters.
pub(super) fn described(id: &str, parameters: &impl Serialize) -> Json {
    let mut json = serde_json::to_value(parameters).unwrap_or_default();
    json["id"] = id.into();
    json
}

/// What [`read`] knows.
pub(crate) const IDS: [&str; 5] =
    ["compensation", "evict_then_merge", "gaussian", "nearest_values", "residual"];

/// A rule of this crate from its [`Merge::describe`].
pub(crate) fn read(json: &Json) -> Result<Arc<dyn Merge>> {
    let bad = |why: String| Error::corruption(format!("merging rule {json}: {why}"));
    let rule = match json["id"].as_str() {
        Some("compensation") => of::<Compensation>(json),
        Some("evict_then_merge") => of::<EvictThenMerge>(json),
        Some("gaussian") => of::<GaussianMerge>(json),
        Some("nearest_values") => of::<NearestValues>(json),
        Some("residual") => of::<ResidualMerge>(json),
        _ => return Err(bad("`id`".into())),
    };
    let rule = rule.map_err(|e| bad(e.to_string()))?;
    rule.check().map_err(|e| bad(e.message().into()))?;
    Ok(rule)
}

fn of<M: Merge + DeserializeOwned + 'static>(json: &Json) -> serde_json::Result<Arc<dyn Merge>> {
    Ok(Arc::new(M::deserialize(json)?))
}
