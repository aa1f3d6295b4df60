//! Files of earlier versions unpack to what was packed, for ever.
//!
//! Beside each `tests/golden/NAME.tpk` lies what it was made from: the folder or file `NAME`. A delta `NAME.delta.tpk`
//! has its base in `NAME.base`. `TENSORPRESS_WRITE_GOLDEN=1` makes those that are missing; what is there is never
//! written again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tensorpress_entropy::Effort;
use tensorpress_entropy::container::{Base, Packed, Packer};

use crate::made::{bf16, f32s, safetensors};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if !path.exists() {
        std::fs::write(path, bytes).unwrap();
    }
}

fn write_golden() {
    let at = |name: &str| golden().join(name);
    let near: Vec<u8> =
        bf16(600, 1).iter().enumerate().map(|(i, b)| b ^ u8::from(i % 8 == 0)).collect();
    let tensors = |weights| {
        safetensors(&[
            ("weight", "BF16", vec![20, 30], weights),
            ("half", "F16", vec![64], f32s(32, 3)),
            ("bias", "F32", vec![60], f32s(60, 2)),
            ("zeros", "F32", vec![100], vec![0; 400]),
            ("ids", "I64", vec![9], (0..9u64).flat_map(u64::to_le_bytes).collect()),
            ("fp8", "F8_E4M3", vec![100], bf16(100, 8).into_iter().skip(1).step_by(2).collect()),
            ("tied", "BF16", vec![600], bf16(600, 1)),
        ])
    };
    write(&at("model/model.safetensors"), &tensors(bf16(600, 1)));
    write(&at("model/config.json"), b"{\"hidden_size\": 30}\n");
    write(&at("model/sub/empty"), b"");
    write(&at("text.txt"), &b"Once upon a time there was a file.\n".repeat(9));
    write(&at("tuned.delta"), &tensors(near));
    write(&at("tuned.base"), &tensors(bf16(600, 1)));
    for (from, to, effort) in [
        ("model", "model.tpk", Effort::Fast),
        ("model", "model.best.tpk", Effort::Best),
        ("text.txt", "text.txt.tpk", Effort::Fast),
        ("tuned.delta", "tuned.delta.tpk", Effort::Fast),
    ] {
        if !at(to).exists() {
            let mut packer = Packer::new().with_effort(effort);
            if from.ends_with(".delta") {
                packer = packer.with_base(Base::open(at("tuned.base")).unwrap());
            }
            let _ = packer.pack(&at(from), &at(to)).unwrap();
        }
    }
}

/// All files below a path, by relative path.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    if path.is_file() {
        return [(PathBuf::new(), std::fs::read(path).unwrap())].into();
    }
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .flat_map(|entry| {
            let inside = contents(&entry.path()).into_iter();
            inside.map(move |(p, bytes)| (Path::new(&entry.file_name()).join(p), bytes))
        })
        .collect()
}

#[test]
fn golden_files_unpack() {
    if std::env::var_os("TENSORPRESS_WRITE_GOLDEN").is_some() {
        write_golden();
    }
    let mut count = 0;
    if !golden().is_dir() {
        // Once they are committed, they are there.
        println!("no golden files: the format was not released yet");
        return;
    }
    for path in std::fs::read_dir(golden()).unwrap().map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(stem) = name.strip_suffix(".tpk") else { continue };
        assert!(std::fs::metadata(&path).unwrap().len() < 5000, "{name} is large");
        let mut packed = Packed::open(&path).unwrap();
        if let Some(stem) = stem.strip_suffix(".delta") {
            packed = packed.with_base(Base::open(golden().join(format!("{stem}.base"))).unwrap());
        }
        let original = golden().join(stem.strip_suffix(".best").unwrap_or(stem));
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out");
        packed.unpack(&to, false, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(contents(&to) == contents(&original), "{name}");
        assert!(packed.verify(None).unwrap().damages.is_empty(), "{name}");
        count += 1;
    }
    println!("{count} golden files");
    assert!(count >= 4, "{count} golden files");
}
