//! After the first page of a scratch nothing is allocated, by the allocator's count. A process of its own, one test, so that
//! nothing else allocates meanwhile.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress_tensor::half::bf16;
use tensorpress_tensor::ndarray;

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; beside it, calls are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the rules of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn warm_pages_allocate_nothing() {
    for config in [
        PageConfig::new(4, 2, 64),
        PageConfig::new(4, 2, 96).with_bits(5, 3).with_symmetric(true),
        PageConfig::new(4, 2, 100).with_rotate(false).with_group(24),
    ] {
        let codec = PageCodec::new(config).expect("a codec");
        let mut x = Array3::from_elem((4, 2, config.head_dim), bf16::from_f32(0.5));
        x[[1, 1, 1]] = bf16::from_f32(-3.0);
        let (mut k, mut v) = (x.clone(), x.clone());
        let (mut page, mut scratch) = (vec![0; codec.page_bytes()], PageScratch::default());
        let mut turn = || {
            codec.encode(x.view(), x.view(), &mut page, &mut scratch).expect("encodes");
            codec.decode(&page, k.view_mut(), v.view_mut(), &mut scratch).expect("decodes");
        };
        let cold = CALLS.load(Relaxed);
        turn();
        let before = CALLS.load(Relaxed);
        assert!(before > cold, "the count counts");
        (0..10).for_each(|_| turn());
        assert_eq!(CALLS.load(Relaxed), before, "{config:?}");
    }
}
