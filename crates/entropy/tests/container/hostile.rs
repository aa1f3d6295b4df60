//! Indexes that lie, with checksums that are right: errors, and no allocation of what is only said.
//!
//! The index is written here once more, from `docs/format-tpk.md` alone.

use tensorpress_entropy::container::PackedFile;
use tensorpress_tensor::{ErrorKind, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Numbers of 7 bits a byte.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [number(text.len() as u64), text.as_bytes().to_vec()].concat()
}

/// A packed file of these chunks and this index.
fn assemble(chunks: &[u8], index: &[u8]) -> Vec<u8> {
    assemble_at(chunks, index, 64 + chunks.len() as u64, index.len() as u64)
}

fn assemble_at(chunks: &[u8], index: &[u8], offset: u64, len: u64) -> Vec<u8> {
    let mut head = b"\x89TPK\r\n\x1a\n".to_vec();
    head.extend(1u32.to_le_bytes());
    head.extend(0u32.to_le_bytes());
    head.extend(offset.to_le_bytes());
    head.extend(len.to_le_bytes());
    head.extend(xxh3_128(index).to_le_bytes());
    head.extend(offset.wrapping_add(len).to_le_bytes());
    head.extend(xxh3_64(&head).to_le_bytes());
    [&head, chunks, index].concat()
}

fn raw_chunk(data: &[u8]) -> Vec<u8> {
    [&[0], data].concat()
}

/// A segment of bytes in these chunks.
fn bytes_segment(len: u64, hash: u128, chunks: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = [vec![0], text("bytes"), number(len), vec![0]].concat();
    out.extend(hash.to_le_bytes());
    for (len, stored) in chunks {
        out.extend(number(*len));
        out.extend(xxh3_64(stored).to_le_bytes());
    }
    out
}

fn same_segment(len: u64, earlier: u64) -> Vec<u8> {
    [vec![0], text("bytes"), number(len), vec![1], number(earlier)].concat()
}

fn tensor_segment(shape: &[u64], values: &str, len: u64, rest: &[u8]) -> Vec<u8> {
    let mut out = [vec![1], text("w"), text("F32"), number(shape.len() as u64)].concat();
    shape.iter().for_each(|n| out.extend(number(*n)));
    [out, text(values), number(len), rest.to_vec()].concat()
}

fn file(path: &str, hash: u128, segments: &[Vec<u8>]) -> Vec<u8> {
    let head = [text(path), hash.to_le_bytes().to_vec(), number(segments.len() as u64)].concat();
    [head, segments.concat()].concat()
}

/// A folder of these files.
fn folder(files: &[Vec<u8>]) -> Vec<u8> {
    [vec![1, 0], number(files.len() as u64), files.concat()].concat()
}

fn open(bytes: Vec<u8>) -> Result<PackedFile> {
    PackedFile::from_bytes("hostile.tpk", bytes)
}

fn good() -> (Vec<u8>, Vec<u8>) {
    let chunk = raw_chunk(b"hello");
    let segment = bytes_segment(5, xxh3_128(b"hello"), &[(6, &chunk)]);
    let index = folder(&[file("a.txt", xxh3_128(b"hello"), &[segment])]);
    (chunk, index)
}

#[test]
fn the_page_describes_what_is_read() {
    let (chunks, index) = good();
    let packed = open(assemble(&chunks, &index)).unwrap();
    assert!(packed.verify(None).unwrap().damages.is_empty());
    assert_eq!(crate::made::unpack(&packed, "a.txt"), b"hello");
}

#[test]
fn sizes_that_nothing_backs() {
    let (chunks, _) = good();
    let huge = 1u64 << 61;
    let stored = [vec![0], vec![0; 16]].concat();
    let indexes = [
        [vec![1, 0], number(huge)].concat(),
        [vec![1, 1], number(huge)].concat(),
        [vec![1, 0], number(1), number(huge)].concat(),
        [vec![1, 0], number(1), text("a"), vec![0; 16], number(huge)].concat(),
        folder(&[file("a", 0, &[bytes_segment(huge, 0, &[(6, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(u64::MAX, 0, &[(6, &chunks)])])]),
        folder(&[file("a", 0, &[tensor_segment(&[huge, huge], "f32", 0, &stored)])]),
        folder(&[file("a", 0, &[tensor_segment(&[5], "f32", 21, &stored)])]),
        folder(&[file("a", 0, &[tensor_segment(&[huge], "f32", huge << 2, &stored)])]),
        folder(&[file("a", 0, &[tensor_segment(&[0], "f33", 0, &stored)])]),
        // Chunks of no bytes, of too many, of more than there are, and of less.
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(0, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(3 << 20, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(huge, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(7, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(5, &chunks)])])]),
        folder(&[file("a", 0, &[])]),
        // Equal to itself, to one that comes later, to one of another length.
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(6, &chunks)]), same_segment(5, 1)])]),
        folder(&[file("a", 0, &[same_segment(5, 1), bytes_segment(5, 0, &[(6, &chunks)])])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(6, &chunks)]), same_segment(6, 0)])]),
        folder(&[file("a", 0, &[bytes_segment(5, 0, &[(6, &chunks)]), same_segment(5, huge)])]),
        // Unknown kinds and flags.
        [vec![2, 0], number(0)].concat(),
        [vec![1, 2], number(0)].concat(),
        folder(&[file("a", 0, &[vec![2; 30]])]),
        folder(&[file("a", 0, &[[vec![0], text("bytes"), number(5), vec![2; 40]].concat()])]),
        Vec::new(),
    ];
    for (i, index) in indexes.iter().enumerate() {
        let error = open(assemble(&chunks, index)).expect_err("a lie");
        assert!(error.message().starts_with("index: "), "{i}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Version), "{i}: {error}");
        assert_eq!(error.file().unwrap().to_str(), Some("hostile.tpk"), "{i}");
    }
    let (chunks, index) = good();
    let longer = [index, vec![0]].concat();
    assert!(open(assemble(&chunks, &longer)).is_err());
}

#[test]
fn headers_that_contradict_themselves() {
    let (chunks, index) = good();
    let (offset, len) = (64 + chunks.len() as u64, index.len() as u64);
    for (offset, len) in [
        (u64::MAX, len),
        (offset, u64::MAX),
        (u64::MAX - len + 1, len),
        (0, offset + len),
        (offset + 1, len),
        (offset, len + 1),
        (offset + 1, len - 1),
    ] {
        let error = open(assemble_at(&chunks, &index, offset, len)).expect_err("a lie");
        assert!(error.message().contains(": "), "{error}");
    }
    let mut later = assemble(&chunks, &index);
    later[8] = 2;
    let sum = xxh3_64(&later[..56]).to_le_bytes();
    later[56..64].copy_from_slice(&sum);
    assert_eq!(open(later).expect_err("a later version").kind(), ErrorKind::Version);
    assert!(
        open(b"PK\x03\x04".repeat(99)).expect_err("a zip").message().contains("no packed file")
    );
}

#[test]
fn paths_that_escape() {
    let (chunks, _) = good();
    let segment = || bytes_segment(5, xxh3_128(b"hello"), &[(6, &chunks)]);
    let folder_of = tempfile::tempdir().unwrap();
    for path in [
        "",
        "/",
        "/etc/x",
        "..",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "\\x",
        "..\\x",
        "C:\\x",
        "C:x",
        "a/c:x",
        "a\0b",
    ] {
        let index = folder(&[file(path, xxh3_128(b"hello"), &[segment()])]);
        let error = open(assemble(&chunks, &index)).expect_err("escapes");
        assert!(error.message().contains("unsafe path"), "{path:?}: {error}");
    }
    for paths in [["a", "a"], ["b", "a"], ["a", "a/b"]] {
        let same = file(paths[1], xxh3_128(b"hello"), &[same_segment(5, 0)]);
        let index = folder(&[file(paths[0], xxh3_128(b"hello"), &[segment()]), same]);
        assert!(open(assemble(&chunks, &index)).is_err(), "{paths:?}");
    }
    // What is no folder has one file, without folders.
    for files in [vec![], vec![file("a/b", 0, &[])], vec![file("a", 0, &[]), file("b", 0, &[])]] {
        let mut index = folder(&files);
        index[0] = 0;
        assert!(open(assemble(&[], &index)).is_err());
    }
    assert_eq!(std::fs::read_dir(folder_of.path()).unwrap().count(), 0);
}

/// Chunks that decode to something else than the index says are errors of their tensor.
#[test]
fn chunks_that_are_something_else() {
    let chunk = raw_chunk(b"hello");
    let hash = xxh3_128(b"hello");
    for (len, hash, whole, says) in [
        (6, hash, hash, "chunk 0"),
        (4, hash, hash, "chunk 0"),
        (1 << 20, hash, hash, "chunk 0"),
        (5, hash ^ 1, hash, "decoded to other bytes"),
        (5, hash, hash ^ 1, "the file decoded to other bytes"),
    ] {
        let segment = bytes_segment(len, hash, &[(6, &chunk)]);
        let packed = open(assemble(&chunk, &folder(&[file("a", whole, &[segment])]))).unwrap();
        let damages = packed.verify(None).unwrap().damages;
        assert_eq!(damages.len(), 1, "{damages:?}");
        assert!(damages[0].message().contains(says), "{}", damages[0]);
        assert_eq!(damages[0].file().unwrap().to_str(), Some("hostile.tpk/a"));
    }
}
