//! What GGUF files make a reader allocate, counted by the allocator: at most their length and 8 MiB, whatever they
//! declare. A process of its own, one test, so that nothing else allocates meanwhile.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tensorpress_formats::gguf::{Array, Header, Kind, Value};
use tensorpress_tensor::Bytes;
use tensorpress_tensor::checkpoint::FileReader;
use tensorpress_tensor::linalg::SplitMix;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; beside it, lengths are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes allocated at most while `f` runs, above what was there.
fn peak(f: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    f();
    PEAK.load(Relaxed) - before
}

const BESIDE: usize = 8 << 20;

/// Reads a file out of memory and from disk, and says what it took at most beside its length.
fn check(what: &str, file: Vec<u8>, path: &Path, valid: bool) -> usize {
    let length = file.len();
    std::fs::write(path, &file).expect("a temporary file");
    let bytes = Bytes::from(file);
    let mut worst = 0;
    for on_disk in [false, true] {
        let took = peak(|| {
            let read = if on_disk {
                FileReader::open(path).and_then(|file| Header::read(&file))
            } else {
                Header::read(&bytes)
            };
            assert!(!valid || read.is_ok(), "{what}: {read:?}");
        });
        assert!(took <= length + BESIDE, "{what}: {took} bytes for a file of {length}");
        worst = worst.max(took.saturating_sub(length));
    }
    worst
}

fn made(metadata: Vec<(String, Value)>, tensors: Vec<(String, Vec<u64>, u32)>) -> Vec<u8> {
    let header = Header::new(metadata, tensors).expect("valid");
    let mut out = Vec::new();
    let mut data = |info: &tensorpress_formats::gguf::TensorInfo| {
        Ok(Bytes::from(vec![1; info.bytes as usize]))
    };
    header.write(&mut out, &mut data).expect("in memory");
    out
}

fn of_array(kind: Kind, elements: impl IntoIterator<Item = Value>) -> Vec<(String, Value)> {
    vec![("k".into(), Value::Array(Array::new(kind, elements).expect("of one kind")))]
}

#[test]
fn files_allocate_no_more_than_is_stated() {
    let path = std::env::temp_dir().join(format!("gguf-memory-{}.gguf", std::process::id()));
    let mut worst = 0;
    let mut check = |what: &str, file: Vec<u8>, valid: bool| {
        worst = worst.max(check(what, file, &path, valid));
    };

    // As many small things as are allowed.
    let keys = (0..1 << 14).map(|n: u32| (format!("{n:x}"), Value::U8(0))).collect();
    let tensors = (0..1 << 16).map(|n: u32| (format!("{n:x}"), vec![0], 0)).collect();
    let many = made(keys, tensors);
    check("many", many.clone(), true);
    // Long things.
    check("text", made(vec![("k".into(), Value::String("x".repeat(30 << 20)))], Vec::new()), true);
    let long = [Value::String("x".repeat(30 << 20))];
    check("text in an array", made(of_array(Kind::String, long), Vec::new()), true);
    let empty = (0..1 << 20).map(|_| Value::String(String::new()));
    check("texts", made(of_array(Kind::String, empty), Vec::new()), true);
    let none = || Value::Array(Array::new(Kind::U8, []).expect("of one kind"));
    let nested = (0..1 << 20).map(|_| none());
    check("arrays", made(of_array(Kind::Array, nested), Vec::new()), true);
    check(
        "bools",
        made(of_array(Kind::Bool, (0..1 << 22).map(|n| Value::Bool(n % 2 == 0))), Vec::new()),
        true,
    );

    // Damaged things.
    let small = made(
        of_array(Kind::String, ["a", "bc"].map(|text| Value::String(text.into()))),
        vec![("t".into(), vec![32, 2], 8), ("u".into(), vec![3], 0)],
    );
    let mut random = SplitMix::new(11);
    let mut below = |n: usize| (random.next_f64() * n as f64) as usize;
    for _ in 0..2000 {
        let mut damaged = small.clone();
        for _ in 0..1 + below(4) {
            let at = below(small.len());
            damaged[at] = below(256) as u8;
        }
        check("damaged", damaged, false);
    }
    for counts in [[1u64 << 16, 1 << 14], [u64::MAX, u64::MAX], [1 << 16, 0], [0, 1 << 14]] {
        let mut forged = many.clone();
        for (at, count) in [8, 16].into_iter().zip(counts) {
            forged[at..at + 8].copy_from_slice(&count.to_le_bytes());
        }
        check("forged counts", forged, false);
    }
    std::fs::remove_file(&path).expect("a temporary file");
    println!("checked: allocation of GGUF files, at most {worst} bytes beside their length");
    assert!(worst > 0);
}
