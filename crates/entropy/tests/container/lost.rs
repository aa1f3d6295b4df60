//! Nothing lost: several writers, inputs that are written to, and tensors of one hash.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use tensorpress_entropy::container::{PackedFile, Packer, Progress, Stored};
use tensorpress_tensor::{Error, ErrorKind};
use xxhash_rust::xxh3::xxh3_128;

use crate::made::{bf16, open, safetensors, unpack};

/// A folder of two models' files.
fn model(parent: &Path, name: &str, seed: u64) -> std::path::PathBuf {
    let folder = parent.join(name);
    fs::create_dir_all(folder.join("deep")).unwrap();
    let weights = safetensors(&[("w", "BF16", vec![300, 500], bf16(150_000, seed))]);
    fs::write(folder.join("a.safetensors"), weights).unwrap();
    fs::write(folder.join("deep/b"), seed.to_string()).unwrap();
    folder
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn of_several_packers_one_wins_whole() {
    let parent = tempfile::tempdir().unwrap();
    let models: Vec<_> = (1..5).map(|i| model(parent.path(), &i.to_string(), i)).collect();
    let whole: Vec<Vec<u8>> = models
        .iter()
        .map(|model| {
            let mut sink = std::io::Cursor::new(Vec::new());
            let _ = Packer::new().pack_into(model, &mut sink, "sink").unwrap();
            sink.into_inner()
        })
        .collect();
    for round in 0..12 {
        let to = parent.path().join("m.tpk");
        let force = round % 2 == 1;
        let done: Vec<_> = std::thread::scope(|scope| {
            let start = |model: &std::path::PathBuf| {
                let (to, model) = (&to, model.clone());
                scope.spawn(move || Packer::new().with_force(force).pack(&model, to).map(drop))
            };
            let all: Vec<_> = models.iter().map(start).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let bytes = fs::read(&to).unwrap();
        let won = whole.iter().position(|w| *w == bytes).expect("one of them, whole");
        assert!(done[won].is_ok());
        assert!(force || done.iter().filter(|d| d.is_ok()).count() == 1);
        assert_eq!(count(parent.path()), 5, "no leftovers");
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn of_several_unpackers_one_wins_whole() {
    let parent = tempfile::tempdir().unwrap();
    let (from, to) = (model(parent.path(), "model", 1), parent.path().join("m.tpk"));
    let _ = Packer::new().pack(&from, &to).unwrap();
    let packed = PackedFile::open(&to).unwrap();
    for round in 0..12 {
        let out = parent.path().join("out");
        let force = round % 2 == 1;
        let done: Vec<Result<(), Error>> = std::thread::scope(|scope| {
            let start = |_| scope.spawn(|| packed.unpack(&out, force, None));
            let all: Vec<_> = (0..4).map(start).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(done.iter().any(Result::is_ok), "{done:?}");
        for name in ["a.safetensors", "deep/b"] {
            assert!(fs::read(out.join(name)).unwrap() == fs::read(from.join(name)).unwrap());
        }
        assert_eq!(count(&out), 2);
        assert_eq!(count(parent.path()), 3, "no leftovers: {done:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Packs a folder, while `meddle` does something to it once the first bytes are written.
fn pack_while(folder: &Path, to: &Path, mut meddle: impl FnMut() + Send) -> Result<(), Error> {
    let mut first = true;
    let mut watch = |_: Progress| {
        if std::mem::take(&mut first) {
            meddle();
        }
        ControlFlow::Continue(())
    };
    Packer::new().with_progress(&mut watch).pack(folder, to).map(drop)
}

#[test]
fn inputs_that_move_are_errors() {
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("m.tpk");
    let folder = parent.path().join("model");
    let big = folder.join("b.bin");
    let content = bf16(25_000_000, 3);
    let make = || {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a"), "first").unwrap();
        fs::write(&big, &content).unwrap();
        fs::write(folder.join("c"), "last").unwrap();
        // So that what is written next has another time.
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let change = |path: &Path, at: u64| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = fs::File::options().write(true).open(path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(b"changed!").unwrap();
    };
    let cut = |path: &Path, len| {
        fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    };
    type Meddle<'a> = (&'a str, &'a (dyn Fn() + Sync));
    let ways: [Meddle<'_>; 8] = [
        ("b.bin", &|| change(&big, 10)),
        ("b.bin", &|| change(&big, 49_000_000)),
        ("b.bin", &|| cut(&big, 1000)),
        ("b.bin", &|| cut(&big, 0)),
        ("a", &|| fs::write(folder.join("a"), "frost").unwrap()),
        ("c", &|| fs::write(folder.join("c"), "longer than before").unwrap()),
        ("c", &|| fs::remove_file(folder.join("c")).unwrap()),
        ("aa", &|| fs::write(folder.join("aa"), "came").unwrap()),
    ];
    for (name, way) in ways {
        make();
        let error = pack_while(&folder, &to, way).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.file().is_some_and(|file| file.ends_with(name)), "{name}: {error}");
        assert_eq!(count(parent.path()), 1, "nothing is left: {name}");
    }
    make();
    pack_while(&folder, &to, || {}).unwrap();
}

/// Bytes that hash alike. Of 64 bytes at a time, xxh3 adds to a sum the product of the halves of each word, after it is
/// mixed with a secret that everybody knows, and the word itself to another sum. Where one half is mixed to zero, the
/// other one counts only in that sum of words, so two such words can be changed against each other.
fn alike(by: u32) -> Vec<u8> {
    let secret = [0x396c_feb8_u32, 0x2c81_017c];
    let mut bytes: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (stripe, (low, high)) in secret.into_iter().zip([1000 + by, 5000 - by]).enumerate() {
        let word = &mut bytes[64 * stripe..64 * stripe + 8];
        word[..4].copy_from_slice(&low.to_le_bytes());
        word[4..].copy_from_slice(&high.to_le_bytes());
    }
    bytes
}

#[test]
fn tensors_of_one_hash_are_kept_apart() {
    let [a, b] = [alike(0), alike(7)];
    assert!(a != b && xxh3_128(&a) == xxh3_128(&b), "no collision: this tests nothing");
    let tensors = [
        ("a", "U8", vec![4096], a.clone()),
        ("b", "U8", vec![4096], b.clone()),
        ("c", "U8", vec![4096], a.clone()),
    ];
    let file = safetensors(&tensors);
    let files = vec![
        ("f".to_owned(), file.clone().into()),
        ("g".to_owned(), b.clone().into()),
        ("h".to_owned(), a.clone().into()),
    ];
    let packed = open(&Packer::new().pack_bytes(files, true).unwrap());
    assert!(unpack(&packed, "f") == file);
    assert!(unpack(&packed, "g") == b && unpack(&packed, "h") == a);
    assert!(packed.verify(None).unwrap().damages.is_empty());
    assert_eq!(&*packed.tensor("b").unwrap(), &b[..]);
    let same = |name: &str| {
        packed.find(name).all(|(_, segment)| matches!(segment.stored, Stored::SameAs(_)))
    };
    assert!(!same("a") && !same("b") && same("c"));
}
