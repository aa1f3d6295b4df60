//! What damaged packed files make a reader allocate, counted by the allocator: at most what the stated bound allows,
//! whatever they declare. A process of its own, one test, so that nothing else allocates meanwhile.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tensorpress_entropy::Effort;
use tensorpress_entropy::chunk::{CHUNK_BYTES, decode, encode};
use tensorpress_entropy::container::{PackedFile, Packer};
use tensorpress_entropy::value::ValueType;
use tensorpress_tensor::Bytes;

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

/// A chunk: a few times what it decodes to, and 2 MiB.
const CHUNK_BOUND: usize = 4 * CHUNK_BYTES + (2 << 20);

/// A packed file: 64 times its length, and what a chunk takes on each of two threads.
const FILE_BOUND: usize = 2 * CHUNK_BOUND;

fn noise(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 11) as usize
}

#[test]
fn damage_allocates_no_more_than_is_stated() {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let values: Vec<u8> = (0..40_000u32)
        .flat_map(|i| (((i.wrapping_mul(2_654_435_761) >> 16) % 997) as f32 - 498.0).to_le_bytes())
        .collect();
    let mut worst = [0, 0];
    for kind in [ValueType::F32, ValueType::BF16, ValueType::Bytes] {
        for effort in [Effort::Fast, Effort::Best] {
            let stored = encode(kind, &values, None, effort).unwrap();
            for _ in 0..300 {
                let mut damaged = stored.clone();
                for _ in 0..1 + noise(&mut seed) % 4 {
                    // Mostly headers, where lengths are.
                    let within = if noise(&mut seed).is_multiple_of(4) { stored.len() } else { 64 };
                    let at = noise(&mut seed) % within.min(stored.len());
                    damaged[at] = noise(&mut seed) as u8;
                }
                let mut out = vec![0; CHUNK_BYTES];
                let bytes = peak(|| drop(decode(kind, &damaged, None, &mut out)));
                worst[0] = worst[0].max(bytes);
            }
        }
    }
    let file = Packer::new()
        .pack_bytes(vec![("values".to_owned(), Bytes::from(values))], false)
        .expect("packs");
    for _ in 0..600 {
        let mut damaged = file.clone();
        for _ in 0..1 + noise(&mut seed) % 4 {
            let tail = damaged.len() - 1 - noise(&mut seed) % 200;
            let at = if noise(&mut seed).is_multiple_of(2) { noise(&mut seed) % 64 } else { tail };
            damaged[at] = noise(&mut seed) as u8;
        }
        // The header's checksums made good, so that what is declared is believed.
        let offset = u64::from_le_bytes(damaged[16..24].try_into().expect("8 bytes"));
        if let Some(index) = damaged.get(offset as usize..) {
            let hash = xxhash_rust::xxh3::xxh3_128(index).to_le_bytes();
            let length = (index.len() as u64).to_le_bytes();
            damaged[24..32].copy_from_slice(&length);
            damaged[32..48].copy_from_slice(&hash);
            let sum = xxhash_rust::xxh3::xxh3_64(&damaged[..56]).to_le_bytes();
            damaged[56..64].copy_from_slice(&sum);
        }
        let len = damaged.len();
        let bytes = peak(|| {
            if let Ok(packed) = PackedFile::from_bytes("damaged", damaged) {
                let _ = packed.verify(None);
            }
        });
        assert!(bytes <= FILE_BOUND + 64 * len, "{bytes} bytes for a file of {len}");
        worst[1] = worst[1].max(bytes);
    }
    println!("at most {} bytes for a chunk, {} for a file of {}", worst[0], worst[1], file.len());
    assert!(worst[0] <= CHUNK_BOUND, "{} bytes for a chunk", worst[0]);
}
