//! GGUF files: those of the official writer come out as they went in, and forged ones are refused by name.

use proptest::prelude::*;
use tensorpress_formats::gguf::{Array, Gguf, Header, Kind, Value, extent};
use tensorpress_tensor::checkpoint::FileReader;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Bytes, ErrorKind};

fn rewrite(file: &Gguf) -> Vec<u8> {
    let mut out = Vec::new();
    file.header().write(&mut out, &mut |info| file.bytes(&info.name)).expect("in memory");
    out
}

#[test]
fn official_files_come_out_as_they_went_in() {
    let Some(folder) = data::find("golden/formats") else { return };
    let (mut keys, mut tensors) = (0, 0);
    for (name, alignment) in [("container.gguf", 32), ("container_align128.gguf", 128)] {
        let path = folder.join(name);
        let stored = std::fs::read(&path).expect("a golden file");
        let file = Gguf::open(&path).expect("an official file");
        let header = file.header();
        assert_eq!(header.alignment(), alignment);
        assert!(rewrite(&file) == stored, "{name}: read and written");
        let in_memory = Gguf::from_bytes(stored.clone()).expect("an official file");
        assert_eq!(in_memory.header(), header);

        // From its values and tensors anew.
        let named = |info: &tensorpress_formats::gguf::TensorInfo| {
            (info.name.clone(), info.dims.clone(), info.type_id)
        };
        let fresh = header.metadata().iter().map(|(key, value)| (key.clone(), fresh(value)));
        let made = Header::new(fresh.collect(), header.tensors().iter().map(named)).expect("valid");
        let mut out = Vec::new();
        made.write(&mut out, &mut |info| file.bytes(&info.name)).expect("in memory");
        assert!(out == stored, "{name}: written anew");

        let get = |key: &str| header.get(key).expect("a key of the file");
        assert_eq!(get("general.architecture").as_str(), Some("llama"));
        assert_eq!(get("t.u64").as_u64(), Some(9_223_372_036_854_775_813));
        assert_eq!(*get("t.i64"), Value::I64(-4_611_686_018_427_387_904));
        assert_eq!(*get("t.i8"), Value::I8(-100));
        assert_eq!(get("t.f64").as_f64(), Some(std::f64::consts::PI));
        assert_eq!((get("t.true").as_bool(), get("t.false").as_bool()), (Some(true), Some(false)));
        assert_eq!(get("t.str").as_str(), Some("h\u{e9}llo \u{2013} \u{4e16}\u{754c}\n"));
        let texts = get("t.arr.str").as_array().expect("an array");
        assert_eq!(texts.texts().collect::<Vec<_>>(), ["a", "", "\u{df}"]);
        let nested = get("t.arr.nested").as_array().expect("an array");
        let inner: Vec<Vec<Value>> = nested
            .iter()
            .map(|value| value.as_array().expect("an array").iter().collect())
            .collect();
        assert_eq!(inner[0], [Value::I32(1), Value::I32(2)]);
        assert_eq!(inner[1], [Value::I32(3), Value::I32(4), Value::I32(5)]);
        let info = header.tensor("blk.0.q4_k.weight").expect("a tensor of the file");
        assert_eq!((&info.dims[..], info.type_id, info.bytes), (&[1536, 2][..], 12, 2 * 6 * 144));
        keys += header.metadata().len();
        tensors += header.tensors().len();
    }
    println!("checked: GGUF files 2, keys {keys}, tensors {tensors}");
    assert_eq!(tensors, 28, "golden files are missing something");
}

/// The value made again from what it holds.
fn fresh(value: &Value) -> Value {
    match value.as_array() {
        None => value.clone(),
        Some(array) => {
            let elements: Vec<Value> = array.iter().map(|element| fresh(&element)).collect();
            assert_eq!(elements.len(), array.len());
            Value::Array(Array::new(array.kind(), elements).expect("of one kind"))
        }
    }
}

/// A small file with everything in it.
fn sample() -> Vec<u8> {
    let ints = Array::new(Kind::I32, [1, 2, 3].map(Value::I32)).expect("of one kind");
    let texts = ["a", "", "bc"].map(|text| Value::String(text.into()));
    let texts = Array::new(Kind::String, texts).expect("of one kind");
    let nested = Array::new(Kind::Array, [Value::Array(ints), Value::Array(texts)]);
    let metadata = vec![
        ("general.alignment".to_owned(), Value::U32(16)),
        ("nested".to_owned(), Value::Array(nested.expect("of one kind"))),
        ("flag".to_owned(), Value::Bool(true)),
    ];
    let tensors = [("first".to_owned(), vec![32, 3], 8), ("second".to_owned(), vec![5], 0)];
    let header = Header::new(metadata, tensors).expect("valid");
    let mut out = Vec::new();
    let mut data = |info: &tensorpress_formats::gguf::TensorInfo| {
        Ok(Bytes::from(vec![7; info.bytes as usize]))
    };
    header.write(&mut out, &mut data).expect("in memory");
    out
}

#[test]
fn every_cut_is_an_error_and_no_flipped_bit_a_panic() {
    let file = sample();
    let whole = Gguf::from_bytes(file.clone()).expect("valid");
    assert!(rewrite(&whole) == file);
    let last = whole.header().tensors().last().expect("two tensors");
    let end = whole.header().range(last).end as usize;
    for length in 0..end {
        Gguf::from_bytes(&file[..length]).map(drop).expect_err("a file that was cut");
    }
    let mut accepted = 0;
    for bit in 0..8 * file.len() {
        let mut forged = file.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = Gguf::from_bytes(forged) {
            read.header().metadata().iter().for_each(|(_, value)| drop(fresh(value)));
            for info in read.header().tensors() {
                assert_eq!(read.bytes(&info.name).expect("in range").len() as u64, info.bytes);
            }
            accepted += 1;
        }
    }
    println!(
        "checked: cuts {end}, flipped bits {} of which {accepted} leave a file",
        8 * file.len()
    );
}

/// Builds headers by hand.
#[derive(Clone)]
struct Forge(Vec<u8>);

impl Forge {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        Self(bytes)
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn text(self, text: &str) -> Self {
        let mut forge = self.u64(text.len() as u64);
        forge.0.extend(text.as_bytes());
        forge
    }
    fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(start, |forge, dim| forge.u64(*dim)).u32(type_id).u64(offset)
    }
    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
    #[track_caller]
    fn refused(self, kind: ErrorKind, named: &str) {
        let error = Gguf::from_bytes(self.0).map(drop).expect_err("a forged file");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn forged_files_are_refused_by_name() {
    use ErrorKind::{Corruption, InsufficientData, Unsupported, Version};
    let key = |count| Forge::new(0, count);
    Forge(b"GGML\x03\0\0\0".to_vec()).zeros(64).refused(Corruption, "GGUF");
    Forge(b"GGUF\x01\0\0\0".to_vec()).zeros(64).refused(Version, "version 0x1");
    Forge(b"GGUF\0\0\0\x03".to_vec()).zeros(64).refused(Version, "big-endian");
    // Numbers of things.
    key(u64::MAX).zeros(64).refused(Corruption, "keys");
    Forge::new(1 << 40, 0).zeros(64).refused(Corruption, "tensors");
    key(70_000).zeros(13 * 70_000).refused(Unsupported, "keys");
    Forge::new(70_000, 0).zeros(24 * 70_000).refused(Unsupported, "tensors");
    // Texts.
    key(1).u64(1 << 60).zeros(64).refused(Corruption, "key 0");
    key(1).u64(60_000).zeros(64).refused(InsufficientData, "key 0");
    let mut bad = key(1).u64(2);
    bad.0.extend([0xff, 0xfe]);
    bad.zeros(64).refused(Corruption, "UTF-8");
    key(1).text("k").u32(8).u64(1 << 50).zeros(64).refused(InsufficientData, "`k`");
    // Values.
    key(1).text("k").u32(13).zeros(64).refused(Corruption, "`k`");
    key(1).text("k").u32(7).u32(2).zeros(64).refused(Corruption, "`k`");
    let twice = key(2).text("k").u32(4).u32(1).text("k").u32(4).u32(1);
    twice.zeros(64).refused(Corruption, "`k`");
    // Arrays.
    let array = || key(1).text("k").u32(9);
    array().u32(5).u64(u64::MAX / 2).zeros(64).refused(Corruption, "`k`");
    array().u32(8).u64(1 << 20).zeros(64).refused(Corruption, "`k`");
    array().u32(7).u64(4).u32(0x0001_0200).zeros(64).refused(Corruption, "`k`");
    let deep = (0..1000).fold(array(), |forge, _| forge.u32(9).u64(1)).u32(0).u64(0);
    deep.zeros(64).refused(Unsupported, "`k`");
    let text = array().u32(8).u64(2).text("a").u64(1 << 40).zeros(64);
    text.refused(InsufficientData, "text 1");
    // Alignment.
    let alignment = |width| Forge::new(1, 1).text("general.alignment").u32(4).u32(width);
    for width in [0, 3, 48, 1 << 31] {
        let forged = alignment(width).tensor("t", &[1], 0, 0).zeros(256);
        forged.refused(Corruption, "general.alignment");
    }
    let wrong = Forge::new(0, 1).text("general.alignment").u32(5).u32(32);
    wrong.zeros(64).refused(Corruption, "general.alignment");
    alignment(64).tensor("t", &[1], 0, 32).zeros(256).refused(Corruption, "`t`");
    // Tensors.
    let one = |dims: &[u64], type_id, offset| Forge::new(1, 0).tensor("t", dims, type_id, offset);
    one(&[1 << 33, 1 << 33], 0, 0).zeros(64).refused(Corruption, "`t`");
    one(&[1 << 62], 0, 0).zeros(64).refused(Corruption, "`t`");
    one(&[u64::MAX / 32 * 32], 2, 0).zeros(64).refused(InsufficientData, "`t`");
    one(&[1; 5], 0, 0).zeros(64).refused(Unsupported, "`t`");
    one(&[33], 8, 0).zeros(64).refused(Corruption, "`t`");
    one(&[32], 4, 0).zeros(64).refused(Unsupported, "`t`");
    one(&[1], 0, u64::MAX - 31).zeros(64).refused(Corruption, "`t`");
    one(&[1], 0, 1 << 40).zeros(64).refused(InsufficientData, "`t`");
    one(&[1 << 40], 0, 0).zeros(64).refused(InsufficientData, "`t`");
    let two = |offset| Forge::new(2, 0).tensor("a", &[9], 0, 0).tensor("b", &[1], 0, offset);
    two(32).zeros(256).refused(Corruption, "`b`");
    Gguf::from_bytes(two(64).zeros(256).0).map(drop).expect("side by side");
    let twice = Forge::new(2, 0).tensor("a", &[1], 0, 0).tensor("a", &[1], 0, 32);
    twice.zeros(256).refused(Corruption, "`a`");
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let refused = |metadata: Vec<(String, Value)>, tensors: Vec<(String, Vec<u64>, u32)>| {
        Header::new(metadata, tensors).map(drop).expect_err("cannot be read").to_string()
    };
    let pair = |key: &str, value: Value| (key.to_owned(), value);
    let twice = vec![pair("k", Value::U8(0)), pair("k", Value::U8(1))];
    assert!(refused(twice, Vec::new()).contains("`k`"));
    assert!(refused(vec![pair("general.alignment", Value::U32(3))], Vec::new()).contains("3"));
    let tensor = |dims: &[u64], id| vec![("t".to_owned(), dims.to_vec(), id)];
    assert!(refused(Vec::new(), tensor(&[31], 8)).contains("`t`"));
    assert!(refused(Vec::new(), tensor(&[1; 5], 0)).contains("`t`"));
    assert!(refused(Vec::new(), tensor(&[1], 77)).contains("`t`"));
    let mut deep = Value::U8(0);
    for _ in 0..9 {
        deep = Value::Array(Array::new(deep.kind(), [deep]).expect("of one kind"));
    }
    assert!(refused(vec![pair("k", deep)], Vec::new()).contains("`k`"));
    let mixed = Array::new(Kind::U8, [Value::U8(1), Value::I8(1)]).map(drop).unwrap_err();
    assert_eq!(mixed.kind(), ErrorKind::InvalidArgument);

    let header = Header::new(Vec::new(), tensor(&[2], 0)).expect("valid");
    let short = header.write(&mut Vec::new(), &mut |_| Ok(Bytes::from(vec![0; 7]))).unwrap_err();
    assert_eq!((short.kind(), short.tensor()), (ErrorKind::ShapeMismatch, Some("t")));
}

#[test]
fn files_on_disk_are_read_in_windows() {
    // Longer than what is read at a time, so that texts lie across the edges.
    let texts = (0..40_000).map(|n| Value::String(format!("token {n}")));
    let texts = Array::new(Kind::String, texts).expect("of one kind");
    let metadata = vec![
        ("first".to_owned(), Value::Array(texts)),
        ("long".to_owned(), Value::String("x".repeat(200_000))),
    ];
    let header = Header::new(metadata, [("t".to_owned(), vec![3], 0)]).expect("valid");
    let mut bytes = Vec::new();
    header.write(&mut bytes, &mut |_| Ok(Bytes::from(vec![9; 12]))).expect("in memory");
    let path = std::env::temp_dir().join(format!("windows-{}.gguf", std::process::id()));
    std::fs::write(&path, &bytes).expect("a temporary file");
    let read = FileReader::open(&path).and_then(|file| Header::read(&file));
    std::fs::remove_file(&path).expect("a temporary file");
    let read = read.expect("valid");
    assert_eq!(read, header);
    let first = read.get("first").and_then(Value::as_array).expect("an array");
    assert_eq!((first.len(), first.texts().last()), (40_000, Some("token 39999")));
}

#[test]
fn every_type_has_whole_blocks() {
    let known: Vec<u32> = (0..64).filter(|id| extent(*id).is_some()).collect();
    assert_eq!(known.len(), 35);
    for id in known {
        let extent = extent(id).expect("known");
        assert!(extent.elements > 0 && extent.bytes > 0);
        assert!(
            extent.bytes * 8 >= extent.elements,
            "type {id} has less than a bit for each element"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_are_read_or_refused(
        tail in proptest::collection::vec(any::<u8>(), 0..200), tensors in 0u64..3, keys in 0u64..3,
    ) {
        let mut forge = Forge::new(tensors, keys);
        forge.0.extend(tail);
        if let Ok(file) = Gguf::from_bytes(forge.0) {
            file.header().metadata().iter().for_each(|(_, value)| drop(fresh(value)));
        }
    }
}
