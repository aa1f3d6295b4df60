//! What is fuzzed: each function takes any bytes and must neither panic nor allocate what no bytes back. The
//! program `all` calls them under libFuzzer, `crates/tensorpress/tests/seeds.rs` on the committed seeds.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorpress::entropy::chunk;
use tensorpress::entropy::container::{Base, PackedFile, Stored};
use tensorpress::entropy::frame::{Frame, FrameReader};
use tensorpress::formats::gguf::model::GgufFolder;
use tensorpress::formats::gguf::{Gguf, Header};
use tensorpress::formats::import;
use tensorpress::kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress::kvcache::stream::Chunk;
use tensorpress::kvcache::{Cache, Caches, Causal, KvRecipe, KvRegistry, KvStore, Layer};
use tensorpress::model::Config;
use tensorpress::recipe::Recipe;
use tensorpress::tensor::checkpoint::{ByteSource, Files};
use tensorpress::tensor::ndarray::Array3;
use tensorpress::tensor::node::decode;
use tensorpress::tensor::{Bytes, Checkpoint, Scratch, Tensor};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// A name, and what is done with data.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; its seeds lie in `fuzz/seeds`, in the folder of its name.
pub const ALL: [Target; 13] = [
    ("node", node),
    ("checkpoint", checkpoint),
    ("recipe", recipe),
    ("config", config),
    ("tpk", tpk),
    ("kv", kv),
    ("gguf", gguf),
    ("gptq_awq", theirs),
    ("compressed_tensors", theirs),
    ("bnb", theirs),
    ("imatrix", imatrix),
    ("page", page),
    ("stream", stream),
];

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

/// Reads every node of a checkpoint, and every tensor that is none.
fn nodes_of(checkpoint: &Checkpoint) {
    let Ok(trees) = checkpoint.trees() else { return };
    for (name, tree) in &trees {
        let Ok(node) = tensorpress::registry().read(tree, name, checkpoint) else { continue };
        let [out, inp] = node.shape();
        if out.saturating_mul(inp) <= MOST_VALUES {
            let _ = decode(&*node);
            let _ = import_again(node);
        }
    }
    for name in checkpoint.names() {
        let values: usize = checkpoint.shape(name).unwrap_or_default().iter().product();
        if values <= MOST_VALUES {
            let _ = checkpoint.tensor(name);
        }
    }
}

/// Codes packed anew are the same codes.
fn import_again(node: Box<dyn tensorpress::tensor::Node>) -> Option<()> {
    let before = decode(&*node).ok()?;
    let after = decode(&*tensorpress::formats::repacked(node).ok()?).ok()?;
    let bits = |values: &tensorpress::tensor::ndarray::Array2<f32>| {
        values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(&before), bits(&after), "repacked codes differ");
    Some(())
}

/// A GGUF file, seen as a model's folder.
pub fn gguf(data: &[u8]) {
    let Ok(file) = Gguf::from_bytes(data.to_vec()) else { return };
    let header = file.header().bytes();
    let again = Header::read_alone(&header.clone().into()).expect("a header that was read");
    // By bytes: a NaN is not equal to itself.
    assert_eq!(again.bytes(), header, "headers are read as they are written");
    let Ok(folder) = GgufFolder::of_file(Path::new("fuzzed"), file) else { return };
    for name in folder.names().expect("names") {
        if !name.ends_with(".safetensors") {
            let _ = folder.read(&name);
        }
    }
    if let Ok(checkpoint) = Checkpoint::open_in(&folder) {
        nodes_of(&checkpoint);
    }
}

/// An importance matrix in either form.
pub fn imatrix(data: &[u8]) {
    use tensorpress::formats::imatrix::Imatrix;
    let Ok(read) = Imatrix::read(data.to_vec()) else { return };
    // Too many matrices for a file of today's form are an error.
    let Ok(written) = read.write() else { return };
    let again = Imatrix::read(written).expect("what was written is read");
    assert_eq!(again.matrices, read.matrices, "importance is read as it is written");
    let _ = read.write_old();
}

/// A folder that others quantised: a safetensors file whose metadata are its `quantization_config`.
pub fn theirs(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzzed", Bytes::from(data.to_vec())) else {
        return;
    };
    let said =
        checkpoint.metadata().next().and_then(|metadata| metadata.get("quantization_config"));
    let Some(Ok(said)) = said.map(|text| serde_json::from_str::<serde_json::Value>(text)) else {
        return;
    };
    let config = serde_json::json!({"model_type": "llama", "quantization_config": said});
    let folder = InMemory { config: config.to_string().into_bytes(), weights: data.to_vec() };
    let Ok(seen) = import::as_ours(Arc::new(folder)) else { return };
    if let Ok(checkpoint) = Checkpoint::open_in(&*seen) {
        nodes_of(&checkpoint);
    }
}

/// A folder of a config and weights.
#[derive(Debug)]
struct InMemory {
    config: Vec<u8>,
    weights: Vec<u8>,
}

impl Files for InMemory {
    fn names(&self) -> tensorpress::Result<Vec<String>> {
        Ok(vec!["config.json".to_owned(), "model.safetensors".to_owned()])
    }

    fn contains(&self, name: &str) -> bool {
        matches!(name, "config.json" | "model.safetensors")
    }

    fn open(&self, name: &str) -> tensorpress::Result<Arc<dyn ByteSource>> {
        let bytes = if name == "config.json" { &self.config } else { &self.weights };
        Ok(Arc::new(Bytes::from(bytes.clone())))
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

/// A KV cache, with or without a policy: a safetensors file whose metadata describe it.
pub fn kv(data: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzzed", Bytes::from(data.to_vec())) else {
        return;
    };
    let described = checkpoint.metadata().next().and_then(|metadata| metadata.get("kv"));
    let Some(Ok(json)) = described.map(|text| serde_json::from_str(text)) else { return };
    if let Ok(cache) = Cache::read(&json, "kv", &checkpoint) {
        return kv_with_policy(cache);
    }
    if let Ok(caches) = Caches::read(&json, "kv", &checkpoint, &KvRegistry::default()) {
        return kv_together(caches);
    }
    let Ok(mut layer) = Layer::read(&json, "kv", &checkpoint) else { return };
    let shape = layer.shape();
    let size = shape.heads.saturating_mul(shape.head_dim.max(shape.value_dim));
    if size.saturating_mul(layer.len().max(1)) > MOST_VALUES {
        return;
    }
    let queries = Array3::zeros((1, shape.heads, shape.head_dim));
    let mut out = Array3::zeros((1, shape.heads, shape.value_dim));
    let causal = Causal::from(layer.len());
    let mut scratch = Scratch::default();
    let _ = layer.attend(queries.view(), causal, out.view_mut(), &mut scratch, None);
    let _ = layer.truncate(layer.earliest());
}

/// A cache goes on, whatever was in the file, or says why not.
fn kv_with_policy(mut cache: Cache) {
    let shape = cache.shape();
    let size = shape.heads.saturating_mul(shape.head_dim.max(shape.value_dim));
    if size.saturating_mul(cache.len().max(1)) > MOST_VALUES {
        return;
    }
    let keys = Array3::from_elem((3, shape.kv_heads, shape.head_dim), 0.5);
    let values = Array3::from_elem((3, shape.kv_heads, shape.value_dim), 0.5);
    let queries = Array3::from_elem((3, shape.heads, shape.head_dim), 0.5);
    let mut out = Array3::zeros((3, shape.heads, shape.value_dim));
    let _ = cache.append(keys.view(), values.view());
    let _ = cache.attend(queries.view(), None, out.view_mut(), &mut Scratch::default());
    let _ = cache.truncate(cache.earliest());
    let _ = cache.describe();
}

/// Caches of several layers go on, or say why not.
fn kv_together(mut caches: Caches) {
    for layer in 0..caches.layers().min(4) {
        let shape = caches.layer(layer).shape();
        let size = shape.heads.saturating_mul(shape.head_dim.max(shape.value_dim));
        if size.saturating_mul(caches.len().max(1)) > MOST_VALUES {
            return;
        }
        let keys = Array3::from_elem((3, shape.kv_heads, shape.head_dim), 0.5);
        let values = Array3::from_elem((3, shape.kv_heads, shape.value_dim), 0.5);
        let queries = Array3::from_elem((3, shape.heads, shape.head_dim), 0.5);
        let mut out = Array3::zeros((3, shape.heads, shape.value_dim));
        let scratch = &mut Scratch::default();
        let _ = caches.append(layer, keys.view(), values.view());
        let _ = caches.attend(layer, queries.view(), None, None, out.view_mut(), scratch);
    }
    let _ = caches.truncate(caches.earliest());
    let _ = caches.describe();
}

/// Keys and values as a stream.
pub fn stream(data: &[u8]) {
    let Ok(chunk) = Chunk::read(data, None) else { return };
    let (keys, _) = chunk.dequantise();
    assert!(!keys.is_empty(), "a chunk has layers");
    assert!(chunk.write(None).is_ok(), "what is read can be written");
}

/// A page of keys and values, as it is and with its checksum mended.
pub fn page(data: &[u8]) {
    page_of(data);
    let mut mended = data.to_vec();
    if let Some((rest, sum)) = mended.split_last_chunk_mut::<8>() {
        *sum = xxh3_64(rest).to_le_bytes();
        page_of(&mended);
    }
}

fn page_of(data: &[u8]) {
    // Whole pages alone: what they declare lies in them.
    let Ok(config) = PageConfig::of(data) else { return };
    let codec = PageCodec::new(config).expect("what is read is allowed");
    let room = |dim| Array3::<f32>::zeros((config.tokens, config.kv_heads, dim));
    let (mut keys, mut values) = (room(config.head_dim), room(config.value_dim));
    let mut scratch = PageScratch::default();
    let decoded = codec.decode(data, keys.view_mut(), values.view_mut(), &mut scratch);
    if decoded.is_ok() {
        let mut again = vec![0; codec.page_bytes()];
        let _ = codec.encode(keys.view(), values.view(), &mut again, &mut scratch);
    }
}

/// A recipe, as a line and as TOML; a recipe of caches.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(recipe) = text.parse::<KvRecipe>() {
        let again: KvRecipe = recipe.to_string().parse().expect("what is printed parses");
        assert_eq!(again, recipe, "recipes of caches are read as they are printed");
        let _ = recipe.caches(2, 4, 2, 16);
    }
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

/// Packed files that say they unpack to more are not unpacked: a few bytes may truthfully describe many zeros.
const MOST_BYTES: u64 = 16 << 20;

/// A packed file or a frame of numbers, as it is and with its checksums mended, so that what they guard is reached too.
pub fn tpk(data: &[u8]) {
    frame(data);
    if let Some(mended) = mend_frame(data) {
        frame(&mended);
    }
    packed(data);
    if let Some(mended) = mend(data) {
        packed(&mended);
    }
}

/// Slices and streams say the same of a frame.
fn frame(data: &[u8]) {
    let Ok(opened) = Frame::open(data) else { return };
    if opened.byte_len() > MOST_BYTES {
        return;
    }
    let decoded = opened.decode::<u8>();
    let mut bytes = Vec::new();
    let read = FrameReader::new(data).expect("opened").read_to_end(&mut bytes);
    assert_eq!(decoded.ok(), read.ok().map(|_| bytes), "slices and streams disagree");
}

/// The same records with checksums that fit.
fn mend_frame(data: &[u8]) -> Option<Vec<u8>> {
    let mut mended = data.to_vec();
    let mut at = 6;
    data.get(..at)?;
    mended[..5].copy_from_slice(b"\x89TPF\x01");
    while let Some(head) = data.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        at += 8 + u32::from_le_bytes(head[4..].try_into().ok()?) as usize;
        let sum = xxh3_64(mended.get(..at)?);
        mended.get_mut(at..at + 8)?.copy_from_slice(&sum.to_le_bytes());
        at += 8;
    }
    Some(mended)
}

fn packed(data: &[u8]) {
    let Ok(packed) = PackedFile::from_bytes("fuzzed", Bytes::from(data.to_vec())) else { return };
    if packed.unpacked_bytes() > MOST_BYTES {
        return;
    }
    chunks(data, &packed);
    for packed in [packed.clone(), packed.with_base(tpk_base())] {
        let whole = packed.verify(None).is_ok_and(|verified| verified.damages.is_empty());
        for number in 0..packed.index().segments.len() {
            let segment = packed.segment(number);
            assert!(segment.is_ok() || !whole, "verified, but a segment cannot be read");
        }
        if let Ok(checkpoint) = Checkpoint::open_in(&packed) {
            for name in checkpoint.names() {
                let _ = checkpoint.tensor(name);
            }
        }
    }
}

/// Decodes chunks whatever their checksums say.
fn chunks(data: &[u8], packed: &PackedFile) {
    for segment in &packed.index().segments {
        let Stored::Chunks { chunks, .. } = &segment.stored else { continue };
        for (i, chunk) in chunks.iter().enumerate() {
            let from = i as u64 * chunk::CHUNK_BYTES as u64;
            let mut out = vec![0; (segment.len - from).min(chunk::CHUNK_BYTES as u64) as usize];
            let stored = &data[chunk.offset as usize..][..chunk.len as usize];
            let base = vec![7; out.len()];
            let base = chunk.delta.then_some(&base[..]);
            let _ = chunk::decode(segment.values, stored, base, &mut out);
        }
    }
}

/// The same bytes with a header that fits their length and its index.
fn mend(data: &[u8]) -> Option<Vec<u8>> {
    let mut mended = data.to_vec();
    let offset = u64::from_le_bytes(data.get(16..24)?.try_into().ok()?);
    let offset = offset.clamp(64, data.len().max(64) as u64);
    let index = data.get(offset as usize..)?;
    mended[..16].copy_from_slice(b"\x89TPK\r\n\x1a\n\x01\0\0\0\0\0\0\0");
    mended[16..24].copy_from_slice(&offset.to_le_bytes());
    mended[24..32].copy_from_slice(&(index.len() as u64).to_le_bytes());
    mended[32..48].copy_from_slice(&xxh3_128(index).to_le_bytes());
    mended[48..56].copy_from_slice(&(data.len() as u64).to_le_bytes());
    let sum = xxh3_64(&mended[..56]);
    mended[56..64].copy_from_slice(&sum.to_le_bytes());
    Some(mended)
}

/// What the seed that is a difference was packed against.
pub fn tpk_base() -> Base {
    let header = br#"{"w":{"dtype":"BF16","shape":[8,20],"data_offsets":[0,320]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend((0..320u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    Base::from_bytes("base", bytes).expect("bytes in memory")
}
