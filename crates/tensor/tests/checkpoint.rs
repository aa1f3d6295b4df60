//! Checkpoints over files that are anywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, Files, Folder, MappedFile};
use tensorpress_tensor::{Bytes, Checkpoint, DType, Error, ErrorKind, Result, Tensor};

/// A folder in memory.
#[derive(Debug, Default)]
struct Memory(BTreeMap<String, Bytes>);

impl Files for Memory {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }
    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        match self.0.get(name) {
            Some(bytes) => Ok(Arc::new(bytes.clone())),
            None => Err(Error::insufficient("no such file").in_file(self.path(name))),
        }
    }
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn one(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}}}"#);
    file(&header, 6)
}

#[test]
fn folders_anywhere() {
    let mut memory = Memory::default();
    let mut add = |name: &str, bytes: Vec<u8>| memory.0.insert(name.to_owned(), bytes.into());
    add("a.safetensors", one("a"));
    add("b.safetensors", one("b"));
    add("notes.txt", vec![1]);
    let error = Checkpoint::open_in(&memory).expect_err("which belong together?");
    assert_eq!(error.file(), Some("memory".as_ref()));
    let index = |map: &str| format!("{{\"weight_map\":{{{map}}}}}").into_bytes();
    let open = |memory: &mut Memory, map: &str| {
        memory.0.insert("model.safetensors.index.json".into(), index(map).into());
        Checkpoint::open_in(memory)
    };
    let both = open(&mut memory, r#""a":"a.safetensors","b":"b.safetensors""#).expect("opens");
    assert!(both.names().eq(["a", "b"]));
    assert_eq!(both.dtype("b").expect("is there"), DType::U8);
    assert_eq!(both.tensor("b").expect("is there").shape(), [2, 3]);
    assert_eq!(both.file_of("b"), Some("memory/b.safetensors".as_ref()));
    for (map, file, says) in [
        (r#""a":"c.safetensors""#, "memory/c.safetensors", "missing shard"),
        (r#""b":"a.safetensors""#, "memory/a.safetensors", "not in its shard"),
        (r#""a":"../a.safetensors""#, "memory/model.safetensors.index.json", "not in the index's"),
        (r#""a":3"#, "memory/model.safetensors.index.json", "not a shard index"),
    ] {
        let error = open(&mut memory, map).expect_err(map);
        assert_eq!(error.file(), Some(file.as_ref()), "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    memory.0.clear();
    let error = Checkpoint::open_in(&memory).expect_err("empty");
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
}

/// Disk and memory say the same.
#[test]
fn a_folder_on_disk() {
    let parent = tempfile::tempdir().expect("a folder");
    std::fs::write(parent.path().join("x.safetensors"), one("a")).expect("written");
    std::fs::create_dir(parent.path().join("sub")).expect("a folder");
    let folder = Folder::new(parent.path());
    assert_eq!(folder.names().expect("lists"), ["x.safetensors"]);
    assert!(!folder.contains("sub") && !folder.contains("y"));
    assert_eq!(folder.read("x.safetensors").expect("reads")[..], one("a"));
    assert_eq!(folder.read("y").expect_err("absent").kind(), ErrorKind::Io);
    let opened = Checkpoint::open(parent.path()).expect("opens");
    assert_eq!(opened.tensor("a").expect("is there").bytes()[..], [1; 6]);

    let map = MappedFile::open(parent.path().join("x.safetensors")).expect("maps");
    assert_eq!(map.size(), one("a").len() as u64);
    let view = map.read(8..20).expect("reads");
    map.release();
    assert_eq!(view[..], one("a")[8..20]);
    std::fs::write(parent.path().join("empty"), "").expect("written");
    let empty = MappedFile::open(parent.path().join("empty")).expect("maps");
    empty.release();
    assert!(empty.read(0..0).expect("reads").is_empty());
}

#[test]
fn lying_headers_are_errors() {
    let good = r#"{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}}"#;
    assert!(Checkpoint::from_bytes("x", file(good, 6)).is_ok());
    let huge = usize::MAX.to_string();
    let mut long = file(good, 6);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [
        vec![],
        vec![1; 7],
        file(good, 5),
        file(good, 7),
        file(&good.replace('6', &huge), 6),
        file(&good.replace("[6]", "[5]"), 6),
        file(&good.replace("[0,6]", "[6,0]"), 6),
        file(&good.replace("U8", "U7"), 6),
        file("{", 6),
        long,
    ] {
        let error = Checkpoint::from_bytes("x", bytes).expect_err("a lie");
        assert!(error.message().contains("invalid safetensors file"), "{error}");
        assert_eq!(error.file(), Some("x".as_ref()));
    }
}
