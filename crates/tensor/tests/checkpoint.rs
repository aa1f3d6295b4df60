//! Checkpoints over files that are anywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, Files, Folder, MappedFile, write_shard};
use tensorpress_tensor::{
    Bytes, Checkpoint, DType, Error, ErrorKind, Part, PartKind, Result, Tensor,
};

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

/// The reference implementation and this one read each other's files, and refuse the same lies.
#[test]
fn as_the_reference_has_it() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView};

    let data: Vec<u8> = (0..48).collect();
    let view = |dtype, shape: &[usize], bytes| {
        TensorView::new(dtype, shape.to_vec(), bytes).expect("a tensor")
    };
    let tensors = [
        ("b", view(Dtype::BF16, &[2, 3], &data[..12])),
        ("a", view(Dtype::F32, &[5], &data[12..32])),
        ("none", view(Dtype::I64, &[0, 4], &[])),
        ("scalar", view(Dtype::F64, &[], &data[32..40])),
        ("eight", view(Dtype::F8_E4M3, &[8], &data[40..])),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let theirs =
        safetensors::serialize(tensors.clone(), Some(metadata.clone().into())).expect("writes");
    let ours = Checkpoint::from_bytes("theirs", theirs.clone()).expect("opens");
    assert_eq!(ours.metadata().next().expect("one file"), &metadata.into());
    for (name, view) in &tensors {
        assert_eq!(ours.shape(name), Some(view.shape()), "{name}");
        match ours.tensor(name) {
            Ok(tensor) => assert_eq!(tensor.bytes()[..], *view.data(), "{name}"),
            Err(e) => assert_eq!((*name, e.kind()), ("eight", ErrorKind::Unsupported)),
        }
    }
    // Each bit of the header: both read the same, or both refuse.
    let (mut read, mut refused) = (0, 0);
    let length = u64::from_le_bytes(theirs[..8].try_into().expect("8 bytes")) as usize;
    for at in 0..8 + length {
        for bit in 0..8 {
            let mut bytes = theirs.clone();
            bytes[at] ^= 1 << bit;
            let [mine, reference] = [
                Checkpoint::from_bytes("x", bytes.clone()).is_ok(),
                SafeTensors::deserialize(&bytes).is_ok(),
            ];
            // A type of the same size that only one of us knows by name is no lie.
            let named = theirs[at].is_ascii_alphanumeric() || theirs[at] == b'_';
            assert!(mine == reference || named, "byte {at} bit {bit}: {mine} and {reference}");
            *if mine { &mut read } else { &mut refused } += 1;
        }
    }
    assert!(read > 100 && refused > 1000, "{read} {refused}");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ours.safetensors");
    write_shard(&path, &BTreeMap::new(), &mut |sink| {
        for name in ["scalar", "a", "b", "none"] {
            let tensor = ours.tensor(name)?;
            sink.part(Part {
                name: name.to_owned(),
                kind: PartKind::Values,
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: tensor.bytes()[..].into(),
            })?;
        }
        Ok(())
    })
    .expect("writes");
    let bytes = std::fs::read(&path).expect("reads");
    let read = SafeTensors::deserialize(&bytes).expect("the reference reads it");
    assert_eq!(read.len(), 4);
    assert_eq!(read.tensor("b").expect("is there").data(), &data[..12]);
    assert_eq!(read.tensor("scalar").expect("is there").dtype(), Dtype::F64);
}
