//! Files of earlier versions unpack to what was packed, for ever.
//!
//! Beside each `tests/golden/NAME.tpk` lies what it was made from: the folder or file `NAME`. A delta `NAME.delta.tpk`
//! has its base in `NAME.base`. `TENSORPRESS_WRITE_GOLDEN=1` makes those that are missing; what is there is never
//! written again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tensorpress_entropy::Effort;
use tensorpress_entropy::chunk::describe;
use tensorpress_entropy::container::{Base, PackedFile, Packer, Stored};

use crate::made::{bf16, f32s, safetensors, weights};

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
    // Mostly zeros, in runs of two densities: what Huffman codes cannot do.
    let sparse = weights(16_384, 9).into_iter().enumerate().map(|(i, v)| {
        let rare = if i / 2048 % 2 == 0 { 0.05 } else { 0.025 };
        u8::from(v.abs() > rare) + u8::from(v > rare)
    });
    let sparse: Vec<u8> = sparse.collect();
    // Exponents alone; a palette; rows that end in zeros and rows that do not.
    let exponents = bf16(1000, 4);
    let powers = exponents.as_chunks::<2>().0.iter().enumerate().flat_map(|(i, v)| {
        let scaled = (u16::from_le_bytes(*v) & 0x7f80) + 0x180 * u16::from(i / 256 % 2 == 1);
        scaled.to_le_bytes()
    });
    let powers: Vec<u8> = powers.collect();
    let palette: Vec<u8> = (0..400u32).flat_map(|i| ((i * i % 7) as f32).to_le_bytes()).collect();
    let ids: Vec<u8> = (0..300u32).flat_map(|i| (70_000 + 3 * i).to_le_bytes()).collect();
    write(
        &at("schemes"),
        &safetensors(&[
            ("powers", "BF16", vec![1000], powers),
            ("sparse", "U8", vec![16_384], sparse),
            ("palette", "F32", vec![20, 20], palette),
            ("ids", "I32", vec![300], ids),
        ]),
    );
    let mut parts = f32s(1280, 6);
    parts.chunks_mut(256).step_by(2).for_each(|group| {
        group.chunks_mut(4).for_each(|value| value[..2].fill(0));
    });
    write(&at("parts"), &safetensors(&[("parts", "F32", vec![20, 64], parts)]));
    write(&at("tuned.delta"), &tensors(near));
    write(&at("tuned.base"), &tensors(bf16(600, 1)));
    for (from, to, effort) in [
        ("model", "model.tpk", Effort::Fast),
        ("model", "model.best.tpk", Effort::Best),
        ("text.txt", "text.txt.tpk", Effort::Fast),
        ("schemes", "schemes.tpk", Effort::Fast),
        ("schemes", "schemes.best.tpk", Effort::Best),
        ("parts", "parts.tpk", Effort::Fast),
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
    let mut codings = BTreeSet::new();
    for path in std::fs::read_dir(golden()).unwrap().map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(stem) = name.strip_suffix(".tpk") else { continue };
        assert!(std::fs::metadata(&path).unwrap().len() < 5000, "{name} is large");
        let mut packed = PackedFile::open(&path).unwrap();
        if let Some(stem) = stem.strip_suffix(".delta") {
            packed = packed.with_base(Base::open(golden().join(format!("{stem}.base"))).unwrap());
        }
        let original = golden().join(stem.strip_suffix(".best").unwrap_or(stem));
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out");
        packed.unpack(&to, false, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(contents(&to) == contents(&original), "{name}");
        assert!(packed.verify(None).unwrap().damages.is_empty(), "{name}");
        codings.extend(codings_of(&packed));
        count += 1;
    }
    println!("{count} golden files");
    assert!(count >= 7, "{count} golden files");
    println!("{codings:?}");
    for needed in ["raw", "constant", "rans", "huffman", "packed", "classes", "palette", "groups"] {
        assert!(codings.contains(needed), "no golden file has a plane that is {needed}");
    }
}

/// Codings and kinds of planes in a packed file.
fn codings_of(packed: &PackedFile) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (number, segment) in packed.index().segments.iter().enumerate() {
        let Stored::Chunks { chunks, .. } = &segment.stored else { continue };
        for chunk in 0..chunks.len() {
            let (_, stored) = packed.stored_chunk(number, chunk).unwrap();
            for plane in describe(segment.values, &stored, segment.len as usize).unwrap() {
                found.extend([plane.coding.to_owned(), plane.plane.into_owned()]);
            }
        }
    }
    found
}
