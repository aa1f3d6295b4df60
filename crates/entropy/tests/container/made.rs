//! What the tests pack.

use tensorpress_entropy::container::{PackedFile, Packer};
use tensorpress_tensor::Bytes;
use tensorpress_tensor::linalg::gaussian;

/// A tensor of a made file: name, type, shape, bytes.
pub type Made = (&'static str, &'static str, Vec<u64>, Vec<u8>);

/// A safetensors file of these tensors, in this order.
pub fn safetensors(tensors: &[Made]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let (mut at, mut data) = (0, Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        let json = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        header.insert((*name).to_owned(), json);
        data.extend_from_slice(bytes);
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes(), &data].concat()
}

/// Weights as f32.
pub fn weights(count: usize, seed: u64) -> Vec<f32> {
    (0..count).map(|i| 0.02 * gaussian(seed, i as u64) as f32).collect()
}

/// Weights as bf16, little-endian.
pub fn bf16(count: usize, seed: u64) -> Vec<u8> {
    weights(count, seed).iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Weights as f32, little-endian.
pub fn f32s(count: usize, seed: u64) -> Vec<u8> {
    weights(count, seed).iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Packs one file in memory.
pub fn pack(name: &str, bytes: &[u8]) -> Vec<u8> {
    let files = vec![(name.to_owned(), Bytes::from(bytes.to_vec()))];
    Packer::new().pack_bytes(files, false).expect("packs")
}

/// Opens a packed file in memory.
pub fn open(bytes: &[u8]) -> PackedFile {
    PackedFile::from_bytes("memory.tpk", bytes.to_vec()).expect("opens")
}

/// All bytes of a file inside.
pub fn unpack(packed: &PackedFile, path: &str) -> Vec<u8> {
    use tensorpress_tensor::checkpoint::ByteSource;
    let file = packed.file(path).expect("is there");
    let all = file.read(0..file.size()).expect("reads");
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().join("out");
    packed.unpack(&to, false, None).expect("unpacks");
    let to = if packed.index().is_folder { to.join(path) } else { to };
    assert!(std::fs::read(to).expect("a file") == all[..], "unpacked and read differ");
    all.to_vec()
}
