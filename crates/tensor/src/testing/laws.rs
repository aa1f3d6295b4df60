//! The laws of nodes, checked for any node by [`check_node`].

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2, s};

use crate::bytes::Bytes;
use crate::checkpoint::{Checkpoint, write_shard};
use crate::linalg::{self, SplitMix};
use crate::node::{Accum, Input, Node, Registry, Scratch, decode};
use crate::storage::Storage;

/// Checks the laws on one node: reading back what is written is bit-identical (1), bits written are bits claimed
/// (2), products agree with the decoded matrix to `tolerance` relative to |x||w|, whole and in parts (3), any partition of
/// the rows decodes to the same bits (4), `Accum::Add` adds (also in products), and prepacking changes neither values nor
/// bytes.
///
/// # Panics
/// If a law is broken.
pub fn check_node(node: Box<dyn Node>, registry: &Registry, tolerance: f32) {
    let dense = decode(&*node).expect("decodes");
    let [out, inp] = node.shape();
    assert_eq!(dense.dim(), (out, inp), "decoded shape");

    let (bytes, parts) = written(&*node);
    let claimed = Storage::of(&*node).expect("counts");
    assert_eq!(claimed.bytes(), parts, "law 2: bits written = bits claimed");

    let back = read_back(bytes, &node.describe(), registry);
    assert_bits(&decode(&*back).expect("decodes"), &dense, "law 1: read(write(node))");
    assert_eq!(back.describe(), node.describe(), "law 1: description");

    check_partitions(&*node, dense.view());
    check_products(&*node, dense.view(), tolerance);

    let describe = node.describe();
    let packed = node.prepack().expect("prepacks");
    assert_bits(&decode(&*packed).expect("decodes"), &dense, "prepacked values");
    assert_eq!(packed.describe(), describe, "prepacked description");
    assert_eq!(Storage::of(&*packed).expect("counts"), claimed, "prepacked bits");
    check_products(&*packed, dense.view(), tolerance);
}

/// The safetensors file of one node named `w`, and the bytes of its parts in it.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn written(node: &dyn Node) -> (Vec<u8>, u64) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("node.safetensors");
    let length =
        write_shard(&path, &BTreeMap::new(), &mut |sink| node.parts("w", sink)).expect("writes");
    let bytes = std::fs::read(&path).expect("reads");
    assert_eq!(bytes.len() as u64, length, "the writer's claim is the file's length");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    let parts = length - 8 - header;
    (bytes, parts)
}

fn read_back(
    bytes: Vec<u8>,
    description: &serde_json::Value,
    registry: &Registry,
) -> Box<dyn Node> {
    let checkpoint = Checkpoint::from_bytes("node", Bytes::from(bytes)).expect("valid file");
    let text = description.to_string();
    let description = serde_json::from_str(&text).expect("valid JSON");
    registry.read(&description, "w", &checkpoint).expect("reads back")
}

fn assert_bits(a: &Array2<f32>, b: &Array2<f32>, law: &str) {
    assert_eq!(a.dim(), b.dim(), "{law}: shape");
    for ((at, a), b) in a.indexed_iter().zip(b) {
        assert!(a.to_bits() == b.to_bits(), "{law}: {a} and {b} at {at:?}");
    }
}

fn check_partitions(node: &dyn Node, dense: ArrayView2<'_, f32>) {
    let [out, inp] = node.shape();
    let mut scratch = Scratch::default();
    for step in [1, 3, 7, 64] {
        let mut whole = Array2::from_elem((out, inp), f32::NAN);
        for start in (0..out).step_by(step) {
            let rows = start..(start + step).min(out);
            let part = whole.slice_mut(s![rows.clone(), ..]);
            node.decode_rows(rows, part, Accum::Replace, &mut scratch).expect("decodes");
        }
        assert_bits(&whole, &dense.to_owned(), "law 4: any partition of the rows");
    }
    let mut sum = Array2::from_elem((out, inp), 1.0);
    node.decode_rows(0..out, sum.view_mut(), Accum::Add, &mut scratch).expect("decodes");
    for ((at, sum), w) in sum.indexed_iter().zip(dense) {
        let error = (sum - (1.0 + w)).abs();
        assert!(error <= 1e-5 * (1.0 + w.abs()) || !w.is_finite(), "Accum::Add at {at:?}");
    }
}

fn check_products(node: &dyn Node, dense: ArrayView2<'_, f32>, tolerance: f32) {
    let [out, inp] = node.shape();
    let mut random = SplitMix::new(17);
    let mut scratch = Scratch::default();
    for tokens in [0usize, 1, 2, 5, 16, 33] {
        let x = Array2::from_shape_fn((tokens, inp), |_| random.next_f64() as f32 - 0.5);
        let mut expected = Array2::zeros((tokens, out));
        linalg::matmul_nt(x.view(), dense, expected.view_mut(), false, linalg::Par::Seq);
        let mut y = Array2::from_elem((tokens, out), f32::NAN);
        node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut scratch).expect("multiplies");
        let mut twice = expected.clone();
        let input = Input::new(x.view());
        for rows in [0..out / 3, out / 3..out] {
            let part = twice.slice_mut(s![.., rows.clone()]);
            node.matmul_rows(rows, &input, part, Accum::Add, &mut scratch).expect("multiplies");
        }
        let norm = |v: ndarray::ArrayView1<'_, f32>| v.dot(&v).sqrt();
        for t in 0..tokens {
            for r in 0..out {
                let bound = tolerance * norm(x.row(t)) * norm(dense.row(r)) + 1e-30;
                let error = (y[[t, r]] - expected[[t, r]]).abs();
                assert!(error <= bound, "law 3: {tokens} tokens, [{t}, {r}]: {error} > {bound}");
                let error = (twice[[t, r]] - 2.0 * expected[[t, r]]).abs();
                assert!(
                    error <= 2.0 * bound,
                    "law 3, adding in parts: {tokens} tokens, [{t}, {r}]: {error}"
                );
            }
        }
    }
}

/// Law 7 on one node: every prefix of its file and many flipped bits of file and description give an error or a
/// node that decodes to something, never a panic.
///
/// # Panics
/// If reading panics.
pub fn check_damage(node: &dyn Node, registry: &Registry) {
    let (bytes, _) = written(node);
    let description = node.describe();
    let read = |bytes: Vec<u8>, description: &serde_json::Value| {
        let Ok(checkpoint) = Checkpoint::from_bytes("node", Bytes::from(bytes)) else { return };
        let Ok(node) = registry.read(description, "w", &checkpoint) else { return };
        let [out, inp] = node.shape();
        if out.saturating_mul(inp) <= 1 << 20 {
            let _ = decode(&*node);
        }
    };
    let step = (bytes.len() / 200).max(1);
    for length in (0..bytes.len()).step_by(step) {
        read(bytes[..length].to_vec(), &description);
    }
    for at in (0..bytes.len()).step_by(step) {
        for bit in [0, 3, 7] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            read(flipped, &description);
        }
    }
    let text = description.to_string();
    for at in 0..text.len() {
        for bit in 0..7 {
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= 1 << bit;
            if let Ok(description) = serde_json::from_slice(&flipped) {
                read(bytes.clone(), &description);
            }
        }
    }
}
