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

/// A folder in memory of these files, an index of this map among them if there is one.
fn memory(files: &[(&str, Vec<u8>)], map: Option<serde_json::Value>) -> Memory {
    let mut memory = Memory::default();
    let files = files.iter().cloned();
    memory.0.extend(files.map(|(name, bytes)| (name.to_owned(), bytes.into())));
    if let Some(map) = map {
        let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
        memory.0.insert("model.safetensors.index.json".into(), index.into());
    }
    memory
}

#[test]
fn what_an_index_says_and_does_not_hold_is_noted() {
    let both = [("1.safetensors", one("a")), ("2.safetensors", one("b"))];
    let good = memory(&both, Some(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors"})));
    let opened = Checkpoint::open_in(&good).expect("opens");
    assert!(opened.notes().is_empty() && opened.missing().next().is_none());

    let stale = serde_json::json!({
        "a": "2.safetensors", "gone": "3.safetensors", "left": "1.safetensors",
    });
    let opened = Checkpoint::open_in(&memory(&both, Some(stale))).expect("opens");
    assert!(opened.names().eq(["a", "b"]));
    assert!(opened.missing().eq(["gone", "left"]));
    assert_eq!(opened.tensor("a").expect("is there").bytes()[..], [1; 6]);
    let notes = opened.notes();
    let says = ["files that are not there: 3.safetensors", "no file has: gone, left", ": a", ": b"];
    assert_eq!(notes.len(), says.len(), "{notes:?}");
    for (note, says) in notes.iter().zip(says) {
        assert!(
            note.contains("memory/model.safetensors.index.json") && note.ends_with(says),
            "{note}"
        );
    }
    for (name, says) in [("gone", "3.safetensors"), ("left", "1.safetensors"), ("none", "no such")]
    {
        for error in [opened.tensor(name).expect_err(name), opened.bytes(name).expect_err(name)] {
            assert_eq!((error.kind(), error.tensor()), (ErrorKind::InsufficientData, Some(name)));
            assert_eq!(error.file(), Some("memory/model.safetensors.index.json".as_ref()));
            assert!(error.message().contains(says), "{error}");
        }
    }

    // Twice the same name: the index says which; without a word of it, nobody does.
    let twice = [
        ("1.safetensors", one("a")),
        (
            "2.safetensors",
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
            ),
        ),
    ];
    for (meant, shape) in [("1.safetensors", &[2, 3][..]), ("2.safetensors", &[1])] {
        let map = serde_json::json!({"a": meant, "b": "2.safetensors", "c": "1.safetensors"});
        let opened = Checkpoint::open_in(&memory(&twice, Some(map))).expect("opens");
        assert_eq!(opened.shape("a"), Some(shape));
        assert!(opened.notes().iter().any(|note| note.contains("read as the index says")));
    }
    let map = serde_json::json!({"b": "2.safetensors", "c": "1.safetensors"});
    let error = Checkpoint::open_in(&memory(&twice, Some(map))).expect_err("which?");
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corruption, Some("a")));
}

#[test]
fn one_file_stands_above_an_index() {
    let files = [("1.safetensors", one("a")), ("model.safetensors", one("b"))];
    let sharded = serde_json::json!({"a": "1.safetensors", "c": "2.safetensors"});
    let opened = Checkpoint::open_in(&memory(&files, Some(sharded))).expect("opens");
    assert!(opened.names().eq(["b"]) && opened.missing().next().is_none());
    let [note] = opened.notes() else { panic!("{:?}", opened.notes()) };
    for says in ["index.json: not read", "1.safetensors, 2.safetensors", "memory/model.safetensors"]
    {
        assert!(note.contains(says), "{note}");
    }
    // An index of that one file is one as any other.
    let of_it = serde_json::json!({"b": "model.safetensors", "c": "model.safetensors"});
    let opened = Checkpoint::open_in(&memory(&files, Some(of_it))).expect("opens");
    assert!(opened.missing().eq(["c"]) && opened.notes().len() == 1);
    let mut broken = memory(&files, None);
    broken.0.insert("model.safetensors.index.json".into(), b"{".to_vec().into());
    assert!(Checkpoint::open_in(&broken).expect("opens").notes()[0].contains("not a shard index"));
    let alone = memory(&files[1..], None);
    assert!(Checkpoint::open_in(&alone).expect("opens").notes().is_empty());
}

#[test]
fn files_of_any_name_belong_together_where_an_index_or_their_numbers_say_so() {
    let [first, second] = ["net-00001-of-00002.safetensors", "net-00002-of-00002.safetensors"];
    let both = [(first, one("a")), (second, one("b"))];
    let parts = Checkpoint::open_in(&memory(&both, None)).expect("all parts");
    assert!(parts.names().eq(["a", "b"]));
    assert!(parts.notes()[0].contains("all 2 parts"), "{:?}", parts.notes());
    let index =
        serde_json::json!({"weight_map": {"a": first, "b": second, "c": second}}).to_string();
    let [one_file, other] = both.clone();
    let indexed = [one_file, other, ("net.safetensors.index.json", index.into_bytes())];
    let indexed = Checkpoint::open_in(&memory(&indexed, None)).expect("an index");
    assert!(indexed.names().eq(["a", "b"]) && indexed.missing().eq(["c"]));
    for others in [
        [(first, one("a")), ("net-00003-of-00003.safetensors", one("b"))],
        [(first, one("a")), ("other-00002-of-00002.safetensors", one("b"))],
        [("a.safetensors", one("a")), ("b.safetensors", one("b"))],
    ] {
        let error = Checkpoint::open_in(&memory(&others, None)).expect_err("no parts");
        assert!(error.message().contains("belong together"), "{error}");
    }
    let half = Checkpoint::open_in(&memory(&[(first, one("a"))], None)).expect_err("a part");
    assert!(half.message().contains("missing") && half.file().is_some(), "{half}");
    let names: Vec<String> = (1..=12).map(|i| format!("net-{i}-of-12.safetensors")).collect();
    let tensors: Vec<String> = (1..=12).map(|i| format!("t{i:02}")).collect();
    let many: Vec<(&str, Vec<u8>)> =
        names.iter().zip(&tensors).map(|(name, t)| (name.as_str(), one(t))).collect();
    let opened = Checkpoint::open_in(&memory(&many, None)).expect("numbers without zeros");
    assert!(opened.names().eq(tensors.iter().map(String::as_str)));
    let single = [("net-00001-of-00001.safetensors", one("a"))];
    assert!(Checkpoint::open_in(&memory(&single, None)).expect("all").names().eq(["a"]));
}

#[test]
fn an_index_that_says_nothing_is_no_obstacle() {
    for (single, index) in [
        ("model.safetensors", "model.safetensors.index.json"),
        ("net.safetensors", "net.safetensors.index.json"),
    ] {
        for map in [
            serde_json::json!({}),
            serde_json::json!({"old.a": single}),
            serde_json::json!({"a": "net-00001-of-00002.safetensors"}),
        ] {
            let index_file = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
            let files = [(single, one("a")), (index, index_file)];
            let opened = Checkpoint::open_in(&memory(&files, None)).expect("the file is there");
            assert!(opened.names().eq(["a"]), "{map}");
            assert!(opened.notes()[0].contains("not read"), "{:?}", opened.notes());
        }
    }
}

#[test]
fn what_lies_where_weights_should_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n".to_vec();
    let open = |files: &[(&str, Vec<u8>)]| Checkpoint::open_in(&memory(files, None));
    let error = open(&[("model.safetensors", pointer.clone())]).expect_err("a pointer");
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
    assert!(
        error.to_string().contains("memory/model.safetensors: is a git-lfs pointer"),
        "{error}"
    );
    let error = open(&[("model.safetensors.index.json", pointer)]).expect_err("a pointer");
    assert!(error.message().contains("git lfs pull"), "{error}");

    let whole = one("a");
    for len in [whole.len() - 1, 20] {
        let error = open(&[("model.safetensors", whole[..len].to_vec())]).expect_err("cut");
        assert!(error.message().contains("broken off"), "{error}");
    }
    let error = open(&[("model.safetensors.incomplete", vec![])]).expect_err("unfinished");
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
    assert!(error.message().contains("model.safetensors.incomplete"), "{error}");

    let adapter = br#"{"base_model_name_or_path": "owner/base"}"#.to_vec();
    let files = [("adapter_config.json", adapter), ("adapter_model.safetensors", one("lora"))];
    let error = open(&files).expect_err("an adapter");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("of `owner/base`"), "{error}");
    assert!(error.message().contains("merge_and_unload"), "{error}");
    // Beside a model it is not applied, and that is said.
    let [config, weights] = files;
    let opened = open(&[config, weights, ("model.safetensors", one("a"))]).expect("opens");
    assert!(opened.names().eq(["a"]) && opened.notes().len() == 1);
    assert!(opened.notes()[0].contains("memory/adapter_config.json: an adapter"));

    for (name, says) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "from_pretrained('memory')"),
        ("model.pt", "torch.load('memory/model.pt'"),
        ("consolidated.00.pth", "safetensors.torch"),
        ("last.ckpt", "safetensors.torch"),
        ("model.Q4_K_M.gguf", "gguf_file='model.Q4_K_M.gguf'"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
        ("model.onnx", "exported"),
    ] {
        let error = open(&[(name, vec![1]), ("training_args.bin", vec![1])]).expect_err(name);
        assert_eq!((error.kind(), error.file()), (ErrorKind::Unsupported, Some("memory".as_ref())));
        assert!(error.message().contains(name) && error.message().contains(says), "{error}");
    }
    let error = open(&[("training_args.bin", vec![1])]).expect_err("no weights");
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
}

#[test]
fn aliases_and_types_of_any_width() {
    let header = r#"{"__metadata__":{"lm_head.weight":"a","format":"pt"},
        "four":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]},
        "a":{"dtype":"C64","shape":[1],"data_offsets":[3,11]}}"#;
    let opened = Checkpoint::from_bytes("x", file(header, 11)).expect("opens");
    assert_eq!((opened.alias("lm_head.weight"), opened.alias("a")), (Some("a"), None));
    assert_eq!((opened.dtype_name("four"), opened.dtype_name("five")), (Some("F4"), None));
    assert_eq!(opened.bytes("four").expect("reads")[..], [1; 3]);
    assert_eq!(opened.tensor("four").expect_err("no numbers").kind(), ErrorKind::Unsupported);
    for odd in ["[3]", "[1,5]"] {
        let bytes = file(&header.replace("[3,2]", odd), 11);
        assert!(Checkpoint::from_bytes("x", bytes).is_err(), "{odd}");
    }
}

#[test]
#[cfg(unix)]
fn files_below_a_folder() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().expect("a folder");
    let (folder, outside) = (parent.path().join("f"), parent.path().join("outside"));
    for path in ["f/b/c", "f/.git/x", "outside/y"] {
        let path = parent.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, "x").expect("written");
    }
    std::fs::write(folder.join("a"), "x").expect("written");
    symlink(outside.join("y"), folder.join("to-file")).expect("linked");
    symlink("../outside", folder.join("to-folder")).expect("linked");
    let shown = |path: &str| !path.rsplit('/').next().expect("a name").starts_with('.');
    let all = || Folder::new(&folder).below(&shown);
    assert_eq!(all().expect("lists"), ["a", "b/c", "to-file", "to-folder/y"]);
    symlink("nowhere", folder.join(".git/lost")).expect("linked");
    assert_eq!(all().expect("is not looked into").len(), 4);
    for (target, name) in [("nowhere", "b/lost"), ("..", "b/up"), ("round", "round")] {
        symlink(target, folder.join(name)).expect("linked");
        let error = all().expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.file(), Some(folder.join(name).as_path()));
        std::fs::remove_file(folder.join(name)).expect("removed");
    }
    // A link that lost its file is what is said of a folder without weights.
    symlink("nowhere", folder.join("model.safetensors")).expect("linked");
    let error = Checkpoint::open(&folder).expect_err("no weights");
    assert!(error.to_string().contains("model.safetensors: is a symbolic link"), "{error}");
    std::fs::remove_file(folder.join("model.safetensors")).expect("removed");
    // Round about, through a folder outside.
    symlink(&folder, outside.join("back")).expect("linked");
    assert!(all().expect_err("a loop").to_string().contains("to-folder/back"));
}
