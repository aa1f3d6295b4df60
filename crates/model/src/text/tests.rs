//! Texts of every form.

use std::path::Path;

use tensorpress_tensor::{Bytes, Checkpoint, DType, ErrorKind, Registry, Result, Tensor};

use super::{Corpus, Document, Limits, Windows};
use crate::source::Source;
use crate::tokenizer::Bos;

const FIRST: &str = "Once upon a time there was a cat.";
const SECOND: &str = "It \"ran\" away, and\nthey all went home.";

fn corpus(bytes: impl AsRef<[u8]>, name: &str) -> Result<Corpus> {
    Corpus::from_bytes(bytes.as_ref().to_vec(), Path::new(name))
}

fn demo() -> Source {
    Source::demo(&Registry::default()).expect("the demo model")
}

/// The demo model without its tokenizer.
fn silent() -> Source {
    let demo = demo();
    let (config, checkpoint) = (demo.raw_config().clone(), demo.checkpoint().clone());
    Source::from_parts(config, checkpoint, None, None, &Registry::default()).expect("a model")
}

/// A safetensors file.
fn tensors(all: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in all {
        let offsets = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn texts(corpus: &Corpus) -> Vec<String> {
    corpus.documents().iter().map(|d| d.text().expect("a text").into_owned()).collect()
}

#[test]
fn the_same_texts_in_every_form() {
    let [first, second] = [FIRST, SECOND].map(|text| serde_json::to_string(text).expect("JSON"));
    let (begin, end) = (&first[..10], &first[10..]);
    let forms = [
        format!("{{\"text\": {first}}}\n{{\"text\": {second}}}\n"),
        format!("{{\"text\": {first}}}\r\n\r\n{{\"text\": {second}}}"),
        format!(
            "\u{FEFF}\n {{\"content\": {first}, \"id\": 7}}\n{{\"text\": {second}, \"messages\": null}}"
        ),
        format!(
            "{{\n  \"meta\": {{\"text\": 1}},\n  \"text\":\n    {first}\n}}\n{{\"text\": {second}}}"
        ),
        format!("{{\"prompt\": {begin}\", \"completion\": \"{end}}} {{\"text\": {second}}}"),
        format!("[{first}, {second}]"),
        format!("\n[\n  {{\"text\": {first}}}\n  ,\n  {second}\n]\n"),
    ];
    // A name tells nothing, as long as it does not tell otherwise.
    for (form, name) in
        forms.iter().zip(["x.jsonl", "x", "x.txt", "x.json", "x.md", "x.csv", "x.ndjson"])
    {
        let read = corpus(form, name).expect(form);
        assert_eq!(texts(&read), [FIRST, SECOND], "{form}");
        assert!(!read.is_plain() && !read.is_encoded() && read.note().is_none(), "{form}");
        assert_eq!(read.file(), Some(Path::new(name)));
    }
}

#[test]
fn plain_texts_and_chats() {
    let text = "A cat.\n\n{\"text\": 1} comes later.\n";
    for form in [text.to_owned(), format!("\u{FEFF}{text}"), text.replace('\n', "\r\n")] {
        let read = corpus(&form, "x.txt").expect("a text");
        assert_eq!((texts(&read), read.is_plain()), (vec![text.to_owned()], true), "{form:?}");
    }
    let chat = r#"{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]}"#;
    let read = corpus(chat, "x").expect("a chat");
    assert_eq!(texts(&read), ["user: Hi.\nassistant: Yes?\n"]);
    assert!(read.note().is_some_and(|note| note.contains("not by the model's chat template")));
}

#[test]
fn what_is_none_of_them_is_refused() {
    use ErrorKind::{Corruption, InsufficientData, Unsupported};
    let utf16 = |begin: [u8; 2]| [&begin[..], b"a\0 \0c\0"].concat();
    let cases: &[(&[u8], &str, ErrorKind, &[&str])] = &[
        (b"{\"text\": \"a\"}\n\n{\"txt\": 1}\n", "x", Corruption, &["line 3", "`text`", "`txt`"]),
        (b"{\"text\": \"a\"}\n{\"text\": \"b\"\n{}", "x", Corruption, &["line 3", "not JSON"]),
        (b"{\"text\": \"a\"}\nand so on\n", "x", Corruption, &["line 2", "`a`"]),
        (b"{\"text\": \"a\"}\n\"b\"\n", "x", Corruption, &["line 2"]),
        (b"{\"text\": 1}", "x", Corruption, &["line 1", "`text` is a number", "a string"]),
        (b"{\"text\": \"a\", \"ids\": [1]}", "x", Corruption, &["`text` and `ids`"]),
        (b"{\"prompt\": \"a\"}", "x", Corruption, &["`completion`", "it has `prompt`"]),
        (b"{\"completion\": \"a\"}", "x", Corruption, &["no `prompt`"]),
        (b"{\"ids\": [1, -2]}", "x", Corruption, &["`ids`[1] = -2", "4294967295"]),
        (b"{\"ids\": [1.5]}", "x", Corruption, &["`ids`[0] = 1.5"]),
        (b"{\"ids\": [4294967296]}", "x", Corruption, &["= 4294967296"]),
        (b"{\"ids\": \"1 2\"}", "x", Corruption, &["`ids` is a string"]),
        (b"{\"ids\": [1, 2], \"attention_mask\": [1]}", "x", Corruption, &["mask of 1 of 2"]),
        (
            b"{\"ids\": [1, 2, 3], \"attention_mask\": [1, 0, 1]}",
            "x",
            Corruption,
            &["token 1 between"],
        ),
        (b"{\"messages\": []}", "x", Corruption, &["`messages`"]),
        (b"{\"messages\": [{\"role\": \"user\"}]}", "x", Corruption, &["message 1", "`content`"]),
        (
            b"[\n{\"role\": \"user\", \"content\": \"a\"}]",
            "x",
            Corruption,
            &["line 2", "\"messages\""],
        ),
        (b"[\"a\",\n\n 5]", "x", Corruption, &["line 3", "a number"]),
        (b"[\"a\",\n]", "x", Corruption, &["line 2", "not JSON"]),
        (b"[\"a\"\n\"b\"]", "x", Corruption, &["line 2", "`,` or `]`"]),
        (b"[\"a\"", "x", Corruption, &["`,` or `]`"]),
        (b"[\"a\"]\n[\"b\"]", "x", Corruption, &["line 2", "not all there is"]),
        (
            b"[Verse 1]\nLa la la",
            "song",
            Corruption,
            &["line 1", "song", "plain text that begins with"],
        ),
        (b"One line.\n{\"text\": \"a\"}", "x.JSONL", Corruption, &["x.JSONL", "neither { nor ["]),
        (b"a\xff", "x", Corruption, &["not UTF-8 after byte 1"]),
        (b"a\0b", "x", Corruption, &["byte 1 is NUL", "UTF-16 without"]),
        (&utf16([0xff, 0xfe]), "x", Unsupported, &["UTF-16", "save it as UTF-8"]),
        (&utf16([0xfe, 0xff]), "x", Unsupported, &["UTF-16"]),
        (b"\xff\xfe\0\0a\0\0\0", "x", Unsupported, &["UTF-32"]),
        (b"\x1f\x8b\x08\0", "x.jsonl.gz", Unsupported, &["gzip", "gunzip", "x.jsonl.gz"]),
        (b"\x28\xb5\x2f\xfd\0", "x", Unsupported, &["zstd", "unzstd"]),
        (b"PK\x03\x04", "x", Unsupported, &["zip archive"]),
        (b"PAR1\x15\0\x04PAR1", "x.parquet", Unsupported, &["Parquet", "JSON lines"]),
        (
            &tensors(&[("weight", "F32", &[1], &[0; 4])]),
            "x",
            InsufficientData,
            &["no `ids`", "`pixel_values`"],
        ),
        (&tensors(&[]), "x", InsufficientData, &["no `ids`"]),
        (&tensors(&[("attention_mask", "U8", &[1], &[1])]), "x", InsufficientData, &["no `ids`"]),
        (
            &tensors(&[("ids", "F32", &[1], &[0; 4])]),
            "x",
            Corruption,
            &["`ids`", "F32", "integers"],
        ),
        (&tensors(&[("ids", "I8", &[2], &[3, 0xff])]), "x", Corruption, &["element 1 = -1"]),
        (&tensors(&[("ids", "U8", &[1, 1, 1], &[3])]), "x", Corruption, &["[documents, tokens]"]),
        (
            &tensors(&[("ids", "U8", &[1], &[3]), ("input_ids", "U8", &[1], &[3])]),
            "x",
            Corruption,
            &["`ids` and `input_ids`"],
        ),
        (
            &tensors(&[("ids", "U8", &[2], &[3, 4]), ("attention_mask", "U8", &[1], &[1])]),
            "x",
            ErrorKind::ShapeMismatch,
            &["`attention_mask`", "[2]"],
        ),
        (
            &tensors(&[
                ("ids", "U8", &[1, 3], &[3; 3]),
                ("attention_mask", "BOOL", &[1, 3], &[1, 0, 1]),
            ]),
            "x",
            Corruption,
            &["row 0", "hides token 1"],
        ),
        (&tensors(&[("ids", "U8", &[2], &[3, 4])])[..60], "x.bin", Corruption, &["x.bin"]),
    ];
    for (bytes, name, kind, says) in cases {
        let error = corpus(bytes, name).expect_err(&String::from_utf8_lossy(bytes)).in_file("?");
        assert!(error.file() == Some(Path::new(name)), "{error}");
        assert_eq!(error.kind(), *kind, "{error}");
        for part in *says {
            assert!(error.to_string().contains(part), "`{error}` lacks `{part}`");
        }
    }
}

#[test]
fn cut_json_is_never_a_plain_text() {
    let lines = "{\"text\": \"ä [1]\"}\n{\"ids\": [1, 2]}\n {\"messages\": [{\"role\": \"r\", \"content\": \"c\"}]}";
    let array = "[\"ä [1]\", {\"ids\": [1, 2]}]\n";
    for whole in [lines, array] {
        let all = corpus(whole, "x").expect("documents");
        let mut refused = 0;
        for end in 1..whole.len() {
            match corpus(&whole.as_bytes()[..end], "x") {
                Ok(some) => {
                    assert!(!some.is_plain(), "{end}");
                    assert_eq!(some.documents(), &all.documents()[..some.documents().len()]);
                }
                Err(_) => refused += 1,
            }
        }
        // All but those that end where a document or the array does, or in the blanks after it.
        assert!(refused + 6 >= whole.len(), "{refused} of {}", whole.len());
    }
}

#[test]
fn ids_of_every_integer_type_with_padding_at_either_end() {
    let ids: [[u32; 4]; 2] = [[0, 0, 5, 6], [7, 8, 9, 0]];
    let mask = [0u8, 0, 1, 1, 1, 1, 1, 0];
    for name in ["U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"] {
        let dtype = DType::from_name(name).expect("a type");
        let bytes: Vec<u8> = ids
            .iter()
            .flatten()
            .flat_map(|id| u64::from(*id).to_le_bytes().into_iter().take(dtype.size()))
            .collect();
        let file = tensors(&[("ids", name, &[2, 4], &bytes)]);
        let read = corpus(&file, "x").expect(name);
        assert_eq!(read.documents(), ids.map(|ids| Document::Ids(ids.to_vec())), "{name}");
        let file = tensors(&[
            ("input_ids", name, &[2, 4], &bytes),
            ("attention_mask", "U8", &[2, 4], &mask),
        ]);
        let read = corpus(&file, "x").expect(name);
        assert_eq!(read.documents(), [Document::Ids(vec![5, 6]), Document::Ids(vec![7, 8, 9])]);
        assert!(read.is_encoded() && !read.is_plain());
    }
    let one = corpus(tensors(&[("ids", "U8", &[3], &[1, 2, 3])]), "x").expect("one row");
    assert_eq!(one.documents(), [Document::Ids(vec![1, 2, 3])]);
    // As many rows as may be claimed without a byte.
    let none = corpus(tensors(&[("ids", "U8", &[1 << 40, 0], &[])]), "x").expect("no tokens");
    assert!(none.documents().is_empty());
    let lines = "{\"input_ids\": [0, 5, 6], \"attention_mask\": [0, 1, 1]}";
    assert_eq!(corpus(lines, "x").expect("ids").documents(), [Document::Ids(vec![5, 6])]);
}

#[test]
fn images_are_kept_and_refused_by_what_reads_tokens() {
    let file = tensors(&[("pixel_values", "F32", &[1, 3, 2, 2], &[0; 48])]);
    let read = corpus(file, "x.safetensors").expect("images");
    assert_eq!(read.pixels().expect("images").shape(), [1, 3, 2, 2]);
    let source = demo();
    let errors = [
        read.segments(&source, Bos::Auto, Limits::default()).expect_err("images"),
        read.windows(&source, Bos::Auto, Windows::default()).expect_err("images"),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains("x.safetensors")
                && error.to_string().contains("pixel_values")
        );
    }
}

#[test]
fn ids_need_no_tokenizer_and_are_taken_as_they_are() {
    let file = b"{\"ids\": [5, 6, 7, 8, 9]}\n{\"ids\": [3, 4]}";
    let read = corpus(file, "x").expect("ids");
    let source = silent();
    let limits = Limits { max_tokens: Some(3), ..Limits::default() };
    for bos in [Bos::Auto, Bos::Always, Bos::Never] {
        let segments = read.segments(&source, bos, limits).expect("segments");
        assert_eq!(segments, [vec![5, 6, 7], vec![3, 4]]);
        let cut = Windows { chars: 1, windows: 9, length: 2 };
        // What is left over is dropped: 9.
        let windows = read.windows(&source, bos, cut).expect("windows");
        assert_eq!(windows, [[5, 6], [7, 8], [3, 4]]);
    }
    let error = corpus("a text", "x").expect("a text").segments(&source, Bos::Auto, limits);
    assert_eq!(error.expect_err("no tokenizer").kind(), ErrorKind::InsufficientData);
    let beyond = corpus("{\"ids\": [1]} {\"ids\": [1024]}", "x").expect("ids");
    let error = beyond.segments(&source, Bos::Auto, limits).expect_err("beyond the vocabulary");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("text 2: token 1024: allowed are 0 to 1023"), "{error}");
}

#[test]
fn documents_are_cut_apart() {
    let source = demo();
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let lines = format!("[{}, {}]", serde_json::json!(FIRST), serde_json::json!(SECOND));
    let read = corpus(lines, "x").expect("documents");
    let [first, second] = [FIRST, SECOND].map(|text| tokenizer.encode_plain(text).expect("ids"));
    for (bos, begin) in [(Bos::Auto, &[1][..]), (Bos::Always, &[1]), (Bos::Never, &[])] {
        let behind = |ids: &[u32]| [begin, ids].concat();
        let segments = read.segments(&source, bos, Limits::default()).expect("segments");
        assert_eq!(segments, [behind(&first), behind(&second)], "{bos:?}");
        let windows = read.windows(&source, bos, Windows::default()).expect("windows");
        assert_eq!(windows, [behind(&first), behind(&second)], "{bos:?}");
        let length = 5;
        let cut = Windows { length, ..Windows::default() };
        let windows = read.windows(&source, bos, cut).expect("windows");
        let body = length - begin.len();
        let whole = [&first, &second].into_iter().flat_map(|ids| ids.chunks_exact(body));
        assert_eq!(windows, whole.map(behind).collect::<Vec<_>>(), "{bos:?}");
        let few = read.windows(&source, bos, Windows { windows: 2, ..cut }).expect("windows");
        assert_eq!(few, windows[..2], "{bos:?}");
    }
    // Characters are counted over all documents.
    let chars = FIRST.chars().count();
    let cut = |chars| Windows { chars, ..Windows::default() };
    let windows = |chars| read.windows(&source, Bos::Never, cut(chars)).expect("windows");
    assert_eq!(windows(chars), std::slice::from_ref(&first));
    let more = tokenizer.encode_plain(&SECOND[..8]).expect("ids");
    assert_eq!(windows(chars + 8), [first, more]);
}

#[test]
fn plain_windows_follow_bos_too_and_never_have_it_twice() {
    let source = demo();
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let ids = tokenizer.encode_plain(FIRST).expect("ids");
    let limits = Limits { max_tokens: Some(4), ..Limits::default() };
    let read = corpus(FIRST, "x").expect("a text");
    let never = read.segments(&source, Bos::Never, limits).expect("segments");
    assert_eq!(never.concat(), ids[..never.concat().len()]);
    assert!(never[0].len() == 4);
    let always = read.segments(&source, Bos::Always, limits).expect("segments");
    assert!(always.iter().all(|window| window[0] == 1 && !window[1..].contains(&1)));
    for blank in ["", "\n", "\u{FEFF} \r\n"] {
        let read = corpus(blank, "x.txt").expect("a text");
        let error = read.segments(&source, Bos::Auto, limits).expect_err("nothing");
        assert_eq!(error.kind(), ErrorKind::InsufficientData, "{blank:?}");
    }
    let marked = corpus(format!("<s>{FIRST}"), "x").expect("a text");
    assert_eq!(marked.segments(&source, Bos::Auto, limits).expect("segments"), always);
}

/// An encoder without weights, with the demo model's tokenizer.
fn encoder() -> Source {
    let demo = demo();
    let tokenizer = demo.tokenizer_files()[0].1.to_vec();
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 1024, "max_position_embeddings": 32, "type_vocab_size": 2,
    });
    let none = Checkpoint::default();
    Source::from_parts(config, none, Some(tokenizer), None, &Registry::default()).expect("a model")
}

#[test]
fn encoders_read_pieces_in_a_template() {
    let source = encoder();
    let lines = format!("{} {{\"ids\": [7, 8, 9]}}", serde_json::json!({"text": FIRST}));
    let read = corpus(lines, "x").expect("documents");
    let cut = Windows { length: 2, ..Windows::default() };
    let pieces = read.windows(&source, Bos::Auto, cut).expect("pieces");
    assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.len() == 2), "{pieces:?}");
    assert_eq!(pieces.last(), Some(&vec![7, 8]));
    assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece[0] == 1), "{pieces:?}");
    let few = Windows { windows: 2, ..cut };
    assert_eq!(read.windows(&source, Bos::Auto, few).expect("pieces"), pieces[..2]);
    for bos in [Bos::Always, Bos::Never] {
        let error = read.windows(&source, bos, cut).expect_err("a template");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

#[test]
fn strings_are_plain_whatever_they_look_like() {
    let corpus = Corpus::from("{\"text\": 1}");
    assert!(corpus.is_plain() && corpus.file().is_none());
    let bytes: Bytes = tensors(&[("ids", "U8", &[1], &[1])]).into();
    assert!(Checkpoint::from_bytes("x", bytes).is_ok(), "the files of these tests are such");
}
