//! A node to bytes and back.

use ndarray::Array2;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::{
    Dense, Mask, Masked, Node, Product, SAVED, Scale, Side, Sum, Transformed, bits_per_weight,
    decode, from_bytes, load, read_from, save, to_bytes, write_to,
};
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Registry, Storage, ndarray};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn dense(rows: usize, cols: usize, dtype: DType) -> Box<dyn Node> {
    Dense::from_f32(matrix(rows, cols, 1).view(), dtype).unwrap().boxed()
}

fn nodes() -> Vec<Box<dyn Node>> {
    let mask = Mask::from_bools(matrix(6, 10, 3).mapv(|v| v > 0.0).view());
    let scale = std::sync::Arc::new(Scale::new(vec![0.5; 10], DType::F16).unwrap());
    vec![
        dense(6, 10, DType::BF16),
        dense(1, 1, DType::F32),
        Product::new(dense(6, 2, DType::F32), dense(2, 10, DType::F16)).unwrap().boxed(),
        Sum::new(vec![dense(6, 10, DType::F16), dense(6, 10, DType::F32)]).unwrap().boxed(),
        Masked::new(mask, dense(6, 10, DType::BF16)).unwrap().boxed(),
        Transformed::new(Side::In, scale, dense(6, 10, DType::BF16)).unwrap().boxed(),
    ]
}

#[test]
fn nodes_come_back() {
    let registry = Registry::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.safetensors");
    for node in nodes() {
        let bytes = to_bytes(&*node).unwrap();
        assert_eq!(to_bytes(&*node).unwrap(), bytes, "the same each time");
        let mut streamed = Vec::new();
        write_to(&*node, &mut streamed).unwrap();
        assert_eq!(streamed, bytes);
        save(&*node, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        for back in [
            from_bytes(&bytes[..], &registry).unwrap(),
            read_from(&mut &bytes[..], &registry).unwrap(),
            load(&path, &registry).unwrap(),
        ] {
            assert_eq!(back.describe(), node.describe());
            assert_eq!(decode(&*back).unwrap(), decode(&*node).unwrap());
        }
        // Any reader of compressed weights reads it.
        let file = Checkpoint::open(&path).unwrap();
        let tree = &file.trees().unwrap()[SAVED];
        let back = registry.read(tree, SAVED, &file).unwrap();
        assert_eq!(decode(&*back).unwrap(), decode(&*node).unwrap());
        let bits = Storage::of(&*node).unwrap().bits() as f64;
        let [out, inp] = node.shape();
        assert_eq!(bits_per_weight(&*node).unwrap(), bits / (out * inp) as f64);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no leftovers");
    }
}

#[test]
fn no_damage_gets_past() {
    let registry = Registry::default();
    for node in nodes() {
        let bytes = to_bytes(&*node).unwrap();
        for at in 0..bytes.len() {
            let kind = from_bytes(&bytes[..at], &registry).expect_err("cut").kind();
            assert!(matches!(kind, ErrorKind::Corruption | ErrorKind::InsufficientData), "{at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(from_bytes(flipped, &registry).is_err(), "byte {at}, bit {bit}");
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(from_bytes(longer, &registry).is_err());
    }
}

#[test]
fn saving_replaces_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.safetensors");
    let [first, second] = [DType::F32, DType::F16].map(|dtype| dense(6, 10, dtype));
    save(&*first, &path).unwrap();
    // What a killed writer left behind goes with the next; the file of a living one stays.
    let dead = folder.path().join("node.safetensors.tensorpress-1-7.tmp");
    let alive = folder.path().join("node.safetensors.tensorpress-1-8.tmp");
    let other = folder.path().join("node.safetensors.2024-01.tmp");
    let held = std::fs::File::create(&alive).unwrap();
    held.lock().unwrap();
    std::fs::write(&dead, "half").unwrap();
    std::fs::write(&other, "mine").unwrap();
    save(&*second, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), to_bytes(&*second).unwrap());
    assert!(!dead.exists() && alive.exists() && other.exists());
    // A folder in the way: an error, and nothing is left.
    drop(held);
    let taken = folder.path().join("taken");
    std::fs::create_dir_all(taken.join("inside")).unwrap();
    let error = save(&*first, &taken).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::Io, Some(taken.as_path())));
    assert!(save(&*first, folder.path().join("no/such/folder")).is_err());
    let names = std::fs::read_dir(folder.path()).unwrap();
    let temporary =
        names.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("taken."));
    assert_eq!(temporary.count(), 0);
}
