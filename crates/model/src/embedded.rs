//! The demo model: a small language model of children's stories, part of this crate.

use serde_json::Value;
use tensorpress_tensor::{Bytes, Checkpoint, Error, Registry, Result};

use crate::source::Source;

const CONFIG: &[u8] = include_bytes!("../demo/config.json");
const WEIGHTS: &[u8] = include_bytes!("../demo/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../demo/tokenizer_config.json");

/// Text to calibrate the demo model with.
pub const CALIBRATION: &str = include_str!("../demo/calib.txt");

/// Texts the demo model was not trained on, one `{"text": ...}` a line.
pub const HELD_OUT: &str = include_str!("../demo/heldout.jsonl");

impl Source {
    /// The demo model, which is part of this crate.
    ///
    /// # Errors
    /// None in practice: the model is checked by the tests.
    pub fn demo(registry: &Registry) -> Result<Self> {
        let config: Value = serde_json::from_slice(CONFIG)
            .map_err(|e| Error::corruption(format!("demo model: {e}")))?;
        let weights = Bytes::new(std::sync::Arc::new(WEIGHTS));
        let checkpoint = Checkpoint::from_bytes("demo/model.safetensors", weights)?;
        let (tokenizer, extra) = (TOKENIZER.to_vec(), TOKENIZER_CONFIG.to_vec());
        Self::from_parts(config, checkpoint, Some(tokenizer), Some(extra), registry)
    }
}
