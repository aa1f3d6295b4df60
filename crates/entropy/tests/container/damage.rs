//! There is no bit whose change goes unnoticed, and no truncation.

use std::collections::BTreeSet;
use std::path::Path;

use tensorpress_entropy::container::{PackedFile, Packer};
use tensorpress_tensor::{Bytes, Error, ErrorKind};

use crate::made::{bf16, f32s, safetensors};

/// A small folder: safetensors, with one tensor twice, a text, an empty file.
fn small() -> Vec<u8> {
    let file = safetensors(&[
        ("first.weight", "BF16", vec![10, 20], bf16(200, 1)),
        ("second.weight", "F32", vec![30], f32s(30, 2)),
        ("again.weight", "BF16", vec![200], bf16(200, 1)),
    ]);
    let files =
        [("model.safetensors", file), ("sub/notes.txt", b"hello".to_vec()), ("empty", vec![])];
    let files = files.into_iter().map(|(n, b)| (n.to_owned(), Bytes::from(b))).collect();
    Packer::new().pack_bytes(files, true).expect("packs")
}

/// All that is found wrong, by opening and verifying.
fn found(bytes: Vec<u8>) -> Vec<Error> {
    match PackedFile::from_bytes("small.tpk", bytes) {
        Err(error) => vec![error],
        Ok(packed) => packed.verify(None).expect("needs no base").damages,
    }
}

/// Damage names the file, and the tensor, the place in a file, the header or the index.
fn place(error: &Error) -> String {
    let file = error.file().expect("names the file");
    assert!(file.starts_with("small.tpk"), "{error}");
    match error.tensor() {
        Some(tensor) => tensor.to_owned(),
        None => {
            let parts = ["header", "index", "bytes "];
            let named = parts.into_iter().find(|part| error.message().starts_with(part));
            let inner = file.strip_prefix("small.tpk").expect("checked").display().to_string();
            format!("{} {inner}", named.unwrap_or_else(|| panic!("names no place: {error}")))
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let good = small();
    assert!(found(good.clone()).is_empty());
    assert!(good.len() < 5000, "{}", good.len());
    let mut places = BTreeSet::new();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let damages = found(bad);
            assert!(!damages.is_empty(), "bit {bit} of byte {at} goes unnoticed");
            places.extend(damages.iter().map(place));
        }
    }
    let expected = [
        "header ",
        "index ",
        "bytes  model.safetensors",
        "bytes  sub/notes.txt",
        "first.weight",
        "second.weight",
        "again.weight",
    ];
    assert_eq!(places, expected.map(str::to_owned).into());
}

#[test]
fn every_truncation_and_every_longer_file_is_found() {
    let good = small();
    for len in 0..good.len() {
        let error = PackedFile::from_bytes("small.tpk", good[..len].to_vec()).expect_err("is cut");
        assert!(
            matches!(error.kind(), ErrorKind::InsufficientData | ErrorKind::Corruption),
            "{error}"
        );
        assert!(place(&error).starts_with("header"), "{error}");
    }
    let longer = [good, vec![0]].concat();
    assert!(!found(longer).is_empty());
}

/// A damaged tensor spoils nothing else, and everything that is damaged is told.
#[test]
fn the_rest_can_still_be_read() {
    let good = small();
    let packed = PackedFile::from_bytes("small.tpk", good.clone()).unwrap();
    let (number, _) = packed.find("second.weight").next().unwrap();
    let (chunk, _) = packed.stored_chunk(number, 0).unwrap();
    let mut bad = good.clone();
    bad[chunk.offset as usize + 3] ^= 4;
    let damaged = PackedFile::from_bytes("small.tpk", bad.clone()).unwrap();
    let error = damaged.tensor("second.weight").expect_err("is damaged");
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert_eq!(error.tensor(), Some("second.weight"));
    assert_eq!(error.file(), Some(Path::new("small.tpk/model.safetensors")));
    assert!(damaged.rows("second.weight", 3..4).is_err());
    assert!(damaged.tensor("first.weight").unwrap()[..] == bf16(200, 1)[..]);

    let (number, _) = packed.find("first.weight").next().unwrap();
    let (chunk, _) = packed.stored_chunk(number, 0).unwrap();
    bad[chunk.offset as usize] ^= 1;
    let tensors: Vec<String> =
        found(bad.clone()).iter().filter_map(|e| e.tensor().map(str::to_owned)).collect();
    assert_eq!(tensors, ["first.weight", "second.weight", "again.weight"]);

    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let error = PackedFile::from_bytes("small.tpk", bad).unwrap().unpack(&to, false, None);
    assert_eq!(error.expect_err("is damaged").tensor(), Some("first.weight"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}
