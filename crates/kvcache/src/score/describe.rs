//! Scores as JSON.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::{
    Accumulated, Capacity, Chunked, Compactor, Decayed, ExpectedAttention, GlobalLocal,
    KeyDifference, KeyNorm, LagRelative, LastQuery, Leverages, Probes, QueryFilter, QueryWindow,
    Question, Random, Recency, Repetition, RetrievalWindow, Rungs, Score,
};

/// `id` beside the parameters.
pub(super) fn described(id: &str, parameters: &impl Serialize) -> Json {
    let mut json = serde_json::to_value(parameters).unwrap_or_default();
    json["id"] = id.into();
    json
}

/// What [`read`] knows.
pub(crate) const IDS: [&str; 21] = [
    "accumulated_attention",
    "window_attention",
    "last_query_attention",
    "knorm",
    "keydiff",
    "recency",
    "expected_attention",
    "random",
    "lag_relative",
    "norm_leverages",
    "capacity",
    "query_filter",
    "question",
    "leverage_blend",
    "decayed_attention",
    "global_local",
    "rungs",
    "retrieval_window",
    "chunked",
    "probed_attention",
    "reconstruction",
];

/// A score of this crate from its [`Score::describe`].
///
/// # Errors
/// `Corruption` for parameters that cannot be, `Unsupported` for a score that is not of this crate.
pub fn read(json: &Json) -> Result<Arc<dyn Score>> {
    let bad = |why: String| Error::corruption(format!("score {json}: {why}"));
    let Some(id) = json["id"].as_str() else { return Err(bad("`id`".into())) };
    let score = match id {
        "accumulated_attention" => of::<Accumulated>(json),
        "window_attention" => of::<QueryWindow>(json),
        "last_query_attention" => Ok(Arc::new(LastQuery) as Arc<dyn Score>),
        "knorm" => Ok(Arc::new(KeyNorm) as _),
        "keydiff" => Ok(Arc::new(KeyDifference) as _),
        "recency" => Ok(Arc::new(Recency) as _),
        "expected_attention" => of::<ExpectedAttention>(json),
        "random" => of::<Random>(json),
        "lag_relative" => of::<LagRelative>(json),
        "norm_leverages" => of::<Leverages>(json),
        "capacity" => of::<Capacity>(json),
        "query_filter" => of::<QueryFilter>(json),
        "question" => of::<Question>(json),
        "leverage_blend" => of::<Compactor>(json),
        "decayed_attention" => of::<Decayed>(json),
        "global_local" => of::<GlobalLocal>(json),
        "rungs" => of::<Rungs>(json),
        "retrieval_window" => of::<RetrievalWindow>(json),
        "chunked" => chunked(json),
        "probed_attention" => of::<Probes>(json),
        "reconstruction" => of::<Repetition>(json),
        other => return Err(Error::unsupported(format!("score `{other}` is not of this crate"))),
    };
    let score = score.map_err(|e| bad(e.to_string()))?;
    score.check().map_err(|e| bad(e.message().into()))?;
    Ok(score)
}

fn of<S: Score + DeserializeOwned + 'static>(json: &Json) -> serde_json::Result<Arc<dyn Score>> {
    Ok(Arc::new(S::deserialize(json)?))
}

/// Scores around another know those of this crate.
fn chunked(json: &Json) -> serde_json::Result<Arc<dyn Score>> {
    let inner = read(&json["of"]).map_err(serde::de::Error::custom)?;
    Ok(Arc::new(Chunked::new(inner, usize::deserialize(&json["length"])?)))
}
