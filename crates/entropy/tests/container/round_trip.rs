//! Whatever goes in comes out.

use proptest::prelude::*;
use tensorpress_entropy::container::{Packer, Stored};
use tensorpress_entropy::{Effort, ValueType};
use tensorpress_tensor::checkpoint::ByteSource;
use tensorpress_tensor::{Bytes, Checkpoint, Tensor};

use crate::made::{bf16, f32s, open, pack, safetensors, unpack};

/// Every bit pattern of 16 bits, which has all NaNs, infinities and subnormals.
fn all_patterns() -> Vec<u8> {
    (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn every_type_bit_for_bit() {
    let specials: Vec<u8> = [
        f32::NAN.to_bits(),
        0x7f80_0001,
        0xffc1_2345,
        f32::INFINITY.to_bits(),
        f32::NEG_INFINITY.to_bits(),
        1,
        0x8000_0000,
        0x007f_ffff,
    ]
    .iter()
    .flat_map(|bits| bits.to_le_bytes())
    .collect();
    let doubles: Vec<u8> =
        (0..500u64).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    let file = safetensors(&[
        ("bf16", "BF16", vec![256, 256], all_patterns()),
        ("f16", "F16", vec![65536], all_patterns()),
        ("u16", "U16", vec![65536], all_patterns()),
        ("f32", "F32", vec![8], specials.clone()),
        ("weights", "F32", vec![100, 30], f32s(3000, 1)),
        ("f64", "F64", vec![500], doubles.clone()),
        ("i64", "I64", vec![500], doubles.clone()),
        ("i32", "I32", vec![1000], doubles.clone()),
        ("u8", "U8", vec![4000], doubles.clone()),
        ("e4m3", "F8_E4M3", vec![4000], doubles[1..].iter().copied().chain([3]).collect()),
        ("bool", "BOOL", vec![3], vec![0, 1, 1]),
        ("later", "F4_OF_LATER_DAYS", vec![7], vec![1, 2, 3, 4]),
        ("scalar", "F32", vec![], 1f32.to_le_bytes().to_vec()),
        ("one", "BF16", vec![1], vec![0, 0x80]),
        ("empty", "F32", vec![0, 5], vec![]),
        ("empty too", "F32", vec![0], vec![]),
    ]);
    for effort in [Effort::Fast, Effort::Best] {
        let files = vec![("all.safetensors".to_owned(), Bytes::from(file.clone()))];
        let bytes = Packer::new().with_effort(effort).pack_bytes(files, false).unwrap();
        let packed = open(&bytes);
        assert!(unpack(&packed, "all.safetensors") == file);
        let verified = packed.verify(None).unwrap();
        assert!(verified.damages.is_empty());
        assert_eq!((verified.bytes, verified.tensors), (file.len() as u64, 16));
        assert_eq!(&packed.tensor("f32").unwrap()[..], specials);
        assert_eq!(&packed.tensor("scalar").unwrap()[..], 1f32.to_le_bytes());
        assert!(packed.tensor("empty").unwrap().is_empty());
        assert!(packed.tensor("nothing").is_err());
        let (_, found) = packed.find("bf16").next().unwrap();
        assert_eq!(found.values, ValueType::BF16);
    }
}

#[test]
fn files_that_are_no_safetensors() {
    let good = safetensors(&[("x", "F32", vec![50], f32s(50, 3))]);
    for (name, bytes) in [
        ("empty", vec![]),
        ("one byte", vec![7]),
        ("text", b"Once upon a time".repeat(999)),
        ("odd", bf16(777, 1)[..1553].to_vec()),
        ("cut", good[..good.len() - 3].to_vec()),
        ("header only", good[..60].to_vec()),
        ("longer", [good.clone(), vec![1, 2, 3]].concat()),
        (
            "more than a chunk",
            (0..(2 << 20) + 5u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect(),
        ),
    ] {
        let packed = open(&pack("file.bin", &bytes));
        assert!(unpack(&packed, "file.bin") == bytes, "{name}");
        assert!(packed.verify(None).unwrap().damages.is_empty(), "{name}");
    }
}

/// A tensor of several chunks, of which any rows can be had.
#[test]
fn rows_and_ranges() {
    let data = bf16(1300 * 1000, 5);
    let file = safetensors(&[
        ("small", "BF16", vec![3], bf16(3, 1)),
        ("big", "BF16", vec![1300, 1000], data.clone()),
        ("vector", "F32", vec![10], f32s(10, 2)),
    ]);
    let packed = open(&pack("m.safetensors", &file));
    for rows in [0..0, 0..1, 520..530, 524..525, 1299..1300, 0..1300, 1300..1300, 1..1299] {
        let expected = &data[rows.start * 2000..rows.end * 2000];
        let rows = rows.start as u64..rows.end as u64;
        assert!(packed.rows("big", rows.clone()).unwrap()[..] == *expected, "{rows:?}");
    }
    assert_eq!(packed.rows("vector", 3..5).unwrap()[..], f32s(10, 2)[12..20]);
    let (_, found) = packed.find("big").next().unwrap();
    assert!(matches!(&found.stored, Stored::Chunks { chunks, .. } if chunks.len() == 3));

    // Any range of the file, across segments.
    let virtual_file = packed.file("m.safetensors").unwrap();
    let end = file.len();
    for range in [0..8, 8..200, 0..end, end - 41..end, 100..100, end..end, 5..1_100_000] {
        let bytes = virtual_file.read(range.start as u64..range.end as u64).unwrap();
        assert!(bytes[..] == file[range.clone()], "{range:?}");
    }

    // Decoded once as long as someone holds it.
    let first = packed.tensor("big").unwrap();
    assert_eq!(first.as_ptr(), packed.tensor("big").unwrap().as_ptr());
}

/// A checkpoint reads tensors out of the container as from a file.
#[test]
fn checkpoints_over_packed_files() {
    let tensors = [("a", "BF16", vec![40, 50], bf16(2000, 1)), ("b", "F32", vec![9], f32s(9, 2))];
    let file = safetensors(&tensors);
    let files = vec![("model.safetensors".to_owned(), Bytes::from(file.clone()))];
    let packed = open(&Packer::new().pack_bytes(files, true).unwrap());
    let (inside, plain) =
        (Checkpoint::open_in(&packed).unwrap(), Checkpoint::from_bytes("x", file).unwrap());
    assert!(inside.names().eq(plain.names()));
    assert_eq!(inside.file_bytes(), plain.file_bytes());
    for name in plain.names() {
        let (a, b) = (inside.tensor(name).unwrap(), plain.tensor(name).unwrap());
        assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
        assert!(a.bytes()[..] == b.bytes()[..]);
    }
}

#[test]
fn equal_tensors_are_stored_once() {
    let (a, b) = (bf16(300_000, 1), bf16(300_000, 2));
    let file = safetensors(&[
        ("a", "BF16", vec![300_000], a.clone()),
        ("b", "BF16", vec![300_000], b.clone()),
        ("a again", "BF16", vec![600, 500], a.clone()),
        ("a as bytes", "U8", vec![600_000], a),
    ]);
    let files = |copies: usize| -> Vec<(String, Bytes)> {
        (0..copies).map(|i| (format!("{i}/m.safetensors"), Bytes::from(file.clone()))).collect()
    };
    let one = Packer::new().pack_bytes(files(1), true).unwrap();
    let three = Packer::new().pack_bytes(files(3), true).unwrap();
    assert!(one.len() < file.len() * 3 / 4, "{} of {}", one.len(), file.len());
    assert!(three.len() < one.len() + 2 * 400, "{} for one, {} for three", one.len(), three.len());
    let packed = open(&three);
    for i in 0..3 {
        assert!(unpack(&packed, &format!("{i}/m.safetensors")) == file);
    }
    let same = |n: usize| matches!(packed.index().segments[n].stored, Stored::SameAs(_));
    assert!(!same(1) && !same(2) && same(3) && !same(4) && same(5) && same(6));
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let file = safetensors(&[
        ("a", "BF16", vec![1 << 20], bf16(1 << 20, 1)),
        ("b", "F32", vec![700_001], f32s(700_001, 2)),
        ("c", "F32", vec![3], f32s(3, 2)),
    ]);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let packed = pack("m.safetensors", &file);
            assert!(unpack(&open(&packed), "m.safetensors") == file);
            packed
        })
    };
    let one = with(1);
    assert!(one.len() < file.len());
    for threads in [2, 3, 8] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Folders of any files, among them nearly valid safetensors.
    #[test]
    fn folders_of_anything(
        files in proptest::collection::btree_map(
            "[a-z]{1,3}(/[A-Z.]{1,2}x){0,2}",
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                (0usize..40, any::<u64>(), 0usize..9).prop_map(|(n, seed, extra)| {
                    let mut file = safetensors(&[
                        ("a", "BF16", vec![n as u64], bf16(n, seed)),
                        ("b", "F32", vec![2], f32s(2, seed % 3)),
                    ]);
                    file.resize(file.len() + extra, 1);
                    file
                }),
            ],
            0..6,
        ),
    ) {
        let inputs: Vec<(String, Bytes)> =
            files.iter().map(|(n, b)| (n.clone(), Bytes::from(b.clone()))).collect();
        // A file may have come to be a folder of another one.
        let clash = files.keys().any(|a| files.keys().any(|b| b.starts_with(&format!("{a}/"))));
        match Packer::new().pack_bytes(inputs, true) {
            Err(_) => prop_assert!(clash),
            Ok(bytes) => {
                prop_assert!(!clash);
                let packed = open(&bytes);
                prop_assert!(packed.verify(None).unwrap().damages.is_empty());
                for (name, bytes) in &files {
                    let file = packed.file(name).unwrap();
                    prop_assert!(file.read(0..file.size()).unwrap()[..] == bytes[..]);
                }
            }
        }
    }
}
