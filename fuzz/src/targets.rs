//! What is fuzzed: each function takes any bytes and must neither panic nor allocate what no bytes back. The fuzz
//! targets call them under libFuzzer, `crates/tensorpress/tests/seeds.rs` on the committed seeds.

use std::path::Path;

use tensorpress::model::Config;
use tensorpress::recipe::Recipe;
use tensorpress::tensor::node::decode;
use tensorpress::tensor::{Bytes, Checkpoint, Tensor};

/// Weights larger than this are not decoded: a few bytes may truthfully describe a large, empty matrix.
const MOST_VALUES: usize = 1 << 20;

/// A safetensors file.
pub fn checkpoint(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzzed", Bytes::from(data.to_vec())) else {
        return;
    };
    for name in checkpoint.names() {
        if let Ok(tensor) = checkpoint.tensor(name) {
            let [rows, cols] = tensor.matrix_shape();
            if rows.saturating_mul(cols) <= MOST_VALUES {
                let _ = tensor.to_matrix();
            }
        }
    }
}

/// A safetensors file with trees of compressed weights in its metadata.
pub fn node(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzzed", Bytes::from(data.to_vec())) else {
        return;
    };
    let Ok(trees) = checkpoint.trees() else { return };
    for (name, tree) in &trees {
        if let Ok(node) = tensorpress::registry().read(tree, name, &checkpoint) {
            let [out, inp] = node.shape();
            if out.saturating_mul(inp) <= MOST_VALUES {
                let _ = decode(&*node);
                let _ = node.prepack();
            }
        }
    }
}

/// A recipe, as a line and as TOML.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(recipe) = Recipe::parse(text) {
        let canonical = recipe.canonical();
        let again = Recipe::parse(&canonical).expect("a canonical text parses");
        assert_eq!(again.canonical(), canonical, "canonical texts are fixed points");
    }
    let _ = Recipe::from_toml(text);
}

/// A config.json.
pub fn config(data: &[u8]) {
    if let Ok(json) = serde_json::from_slice(data) {
        let _ = Config::from_json(&json, Path::new("config.json"));
    }
}
