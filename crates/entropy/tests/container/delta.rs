//! Packed against a base.

use tensorpress_entropy::container::{Base, PackedFile, Packer, Stored};
use tensorpress_tensor::checkpoint::ByteSource;
use tensorpress_tensor::{Bytes, ErrorKind};

use crate::made::{bf16, f32s, safetensors};

/// A base, and what became of it: one tensor nearly the same, one the same, one of another shape, one new.
fn pair() -> [Vec<u8>; 2] {
    let near = bf16(700_000, 1);
    let mut moved = near.clone();
    for (i, value) in moved.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let bits = u16::from_le_bytes(*value).wrapping_add((i % 3) as u16).wrapping_sub(1);
        *value = bits.to_le_bytes();
    }
    let other = |shape: Vec<u64>, seed| ("other", "F32", shape, f32s(600, seed));
    let same = || ("same", "F32", vec![5000], f32s(5000, 3));
    [
        safetensors(&[("near", "BF16", vec![700, 1000], near), same(), other(vec![20, 30], 4)]),
        safetensors(&[
            ("near", "BF16", vec![700, 1000], moved),
            same(),
            other(vec![30, 20], 4),
            ("new", "F32", vec![100], f32s(100, 5)),
        ]),
    ]
}

fn base(bytes: &[u8]) -> Base {
    Base::from_bytes("base.safetensors", bytes.to_vec()).unwrap()
}

fn pack(bytes: &[u8], base: Base) -> Vec<u8> {
    let files = vec![("tuned.safetensors".to_owned(), Bytes::from(bytes.to_vec()))];
    Packer::new().with_base(base).pack_bytes(files, false).unwrap()
}

fn all(packed: &PackedFile) -> tensorpress_tensor::Result<Bytes> {
    let file = packed.file("tuned.safetensors")?;
    file.read(0..file.size())
}

#[test]
fn differences_are_smaller_and_exact() {
    let [before, after] = pair();
    let alone = crate::made::pack("tuned.safetensors", &after);
    let delta = pack(&after, base(&before));
    assert!(delta.len() < alone.len() / 2, "{} alone, {} as a delta", alone.len(), delta.len());
    let packed = PackedFile::from_bytes("delta.tpk", delta).unwrap().with_base(base(&before));
    assert!(all(&packed).unwrap()[..] == after[..]);
    assert!(packed.verify(None).unwrap().damages.is_empty());
    let is_delta = |name: &str| {
        let (_, segment) = packed.find(name).next().unwrap();
        matches!(segment.stored, Stored::Chunks { base: Some(_), .. })
    };
    assert!(is_delta("near") && is_delta("same"));
    assert!(!is_delta("other") && !is_delta("new"));
    // Rows of a difference need only their chunks.
    let start = after.len() - 100 * 4 - 600 * 4 - 5000 * 4 - 1_400_000;
    let rows = packed.rows("near", 530..532).unwrap();
    assert!(rows[..] == after[start + 530 * 2000..start + 532 * 2000]);
    // Tensors that are no differences need no base.
    let index = packed.index().clone();
    assert_eq!(index.base.as_deref(), Some("base.safetensors"));
}

#[test]
fn a_missing_or_wrong_base_is_told() {
    let [before, after] = pair();
    let delta = pack(&after, base(&before));
    let without = PackedFile::from_bytes("delta.tpk", delta.clone()).unwrap();
    let hash = {
        let (_, segment) = without.find("near").next().unwrap();
        let Stored::Chunks { base: Some(hash), .. } = segment.stored else { panic!("a delta") };
        format!("{hash:032x}")
    };
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let mut wrong = before.clone();
    let last_of_near = before.len() - 600 * 4 - 5000 * 4 - 1;
    wrong[last_of_near] ^= 1;
    let wrong = PackedFile::from_bytes("delta.tpk", delta.clone()).unwrap().with_base(base(&wrong));
    let unrelated = safetensors(&[("near", "BF16", vec![2], bf16(2, 1))]);
    let unrelated = PackedFile::from_bytes("delta.tpk", delta).unwrap().with_base(base(&unrelated));
    for (packed, kind, says) in [
        (without, ErrorKind::MissingBase, "a base, which is needed"),
        (wrong, ErrorKind::InvalidArgument, "not the base it was packed against"),
        (unrelated, ErrorKind::InvalidArgument, "none of its type and shape"),
    ] {
        for error in [
            packed.verify(None).map(drop).expect_err("no base"),
            packed.unpack(&to, false, None).expect_err("no base"),
            packed.tensor("near").map(drop).expect_err("no base"),
            all(&packed).map(drop).expect_err("no base"),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.tensor(), Some("near"), "{error}");
            assert!(error.message().contains(says) && error.message().contains(&hash), "{error}");
        }
        assert!(packed.tensor("new").unwrap()[..] == f32s(100, 5)[..]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// A base may be a file, a folder or a packed file; a tensor of the same file comes before others of its name.
#[test]
fn kinds_of_bases() {
    let [before, after] = pair();
    let folder = tempfile::tempdir().unwrap();
    let (file, sub) = (folder.path().join("base.safetensors"), folder.path().join("sub"));
    std::fs::write(&file, &before).unwrap();
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(
        sub.join("a.safetensors"),
        safetensors(&[("near", "BF16", vec![700, 1000], bf16(700_000, 9))]),
    )
    .unwrap();
    std::fs::write(sub.join("tuned.safetensors"), &before).unwrap();
    std::fs::write(sub.join("notes.txt"), "no tensors").unwrap();
    let packed = folder.path().join("base.tpk");
    let _ = Packer::new().pack(&file, &packed).unwrap();
    let sizes: Vec<usize> = [&file, &sub, &packed]
        .into_iter()
        .map(|path| {
            let delta = pack(&after, Base::open(path).unwrap());
            for other in [&file, &sub, &packed] {
                let packed = PackedFile::from_bytes("delta.tpk", delta.clone()).unwrap();
                let packed = packed.with_base(Base::open(other).unwrap());
                assert!(all(&packed).unwrap()[..] == after[..], "{path:?} {other:?}");
                assert!(packed.verify(None).unwrap().damages.is_empty());
            }
            delta.len()
        })
        .collect();
    assert!(sizes.iter().all(|size| size.abs_diff(sizes[0]) < 100), "{sizes:?}");

    let delta = pack(&after, Base::open(&file).unwrap());
    let delta = PackedFile::from_bytes("delta.tpk", delta).unwrap();
    assert_eq!(Base::from_packed(delta).expect_err("a chain").kind(), ErrorKind::Unsupported);
}

/// A base that helps nowhere is not needed afterwards.
#[test]
fn useless_bases_are_forgotten() {
    let [_, after] = pair();
    let unrelated = safetensors(&[("near", "BF16", vec![700, 1000], bf16(700_000, 77))]);
    let packed = PackedFile::from_bytes("delta.tpk", pack(&after, base(&unrelated))).unwrap();
    assert_eq!(packed.index().base, None);
    assert!(all(&packed).unwrap()[..] == after[..]);
}
