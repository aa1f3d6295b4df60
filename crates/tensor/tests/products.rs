//! What products promise beside their values: rows and inputs can be shared, and a warm call allocates nothing.

#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{
    Accum, Additive, AdditiveFormat, BlockDiagonal, Blocks, Child, Dense, GroupedAffine, Index,
    Input, LevelFormat, LevelTable, Map, Mask, Masked, Multiply, PackedPlane, Product, Rotation,
    Scale, Side, Stacked, Sum, Tables, TensorTrain, Transformed,
};
use tensorpress_tensor::{DType, Node, Scratch};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = COUNT.get();
    f();
    COUNT.get() - before
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_simple_fn((rows, cols), || random.next_f64() as f32 - 0.5)
}

fn floats(rows: usize, cols: usize, dtype: DType) -> Box<dyn Node> {
    Dense::from_f32(random(rows, cols, 1).view(), dtype).unwrap().boxed()
}

fn codes([rows, cols]: [usize; 2], bits: u8, group: usize) -> Box<dyn Node> {
    let mut random = SplitMix::new(2);
    let mut code = || (random.next_u64() >> (64 - bits)) as u8;
    let groups = rows * cols.div_ceil(group);
    let codes: Vec<u8> = (0..rows * cols).map(|_| code()).collect();
    let zeros: Vec<u8> = (0..groups).map(|_| code()).collect();
    let scales = vec![0.01; groups];
    GroupedAffine::from_codes([rows, cols], bits, group, &codes, scales, DType::F16, &zeros)
        .unwrap()
        .boxed()
}

/// Codes into a table for each row.
fn levels([rows, cols]: [usize; 2], bits: u8) -> Box<dyn Node> {
    let format = LevelFormat::new(1 << bits, Blocks::Rows(cols)).unwrap().without_scales();
    let format = format.with_tables(Tables::Rows(1)).unwrap();
    let mut random = SplitMix::new(4);
    let codes: Vec<u8> =
        (0..rows * cols).map(|_| (random.next_u64() >> (64 - bits)) as u8).collect();
    let codes = Box::new(PackedPlane::pack(&codes, rows, cols, bits).unwrap());
    let tables = vec![Child::Node(floats(rows, 1 << bits, DType::F32))];
    LevelTable::new(format, [rows, cols], codes, tables).unwrap().boxed()
}

/// Codes into two codebooks.
fn books([rows, cols]: [usize; 2]) -> Box<dyn Node> {
    let format = AdditiveFormat::new(8, 2, 256).unwrap();
    let mut random = SplitMix::new(5);
    let count = rows * cols.div_ceil(8) * 2;
    let codes: Vec<u8> = (0..count).map(|_| random.next_u64() as u8).collect();
    let (books, scales) = (floats(2 * 256, 8, DType::F16), floats(rows, 1, DType::F16));
    Additive::sums(format, [rows, cols], 8, &codes, books, scales).unwrap().boxed()
}

fn support([rows, cols]: [usize; 2], tall: usize) -> Mask {
    let kept = |(r, c): (usize, usize)| (r / tall * 7 + c * 5).is_multiple_of(3);
    Mask::from_bools(Array2::from_shape_fn((rows, cols), kept).view())
}

fn masked(tall: usize, node: Box<dyn Node>) -> Box<dyn Node> {
    Masked::new(support(node.shape(), tall), node).unwrap().boxed()
}

fn mapped(side: Side, map: impl Map + 'static, node: Box<dyn Node>) -> Box<dyn Node> {
    Transformed::new(side, Arc::new(map), node).unwrap().boxed()
}

/// Every node with a fused product, of odd shapes too.
fn nodes() -> Vec<(String, Box<dyn Node>)> {
    let mut nodes: Vec<(String, Box<dyn Node>)> = Vec::new();
    for shape @ [rows, cols] in [[48, 128], [37, 200], [1, 65], [130, 33]] {
        let scale =
            |n: usize| Scale::new((0..n).map(|i| 0.5 + i as f32).collect(), DType::F32).unwrap();
        let turned = |n: usize| Index::new((0..n as u32).rev().collect(), n).unwrap();
        let rotation = |n: usize| Rotation::new(n, Rotation::largest_block(n), 1).unwrap();
        let product =
            || Product::new(floats(rows, 5, DType::F32), codes([5, cols], 4, 32)).unwrap();
        let mut add =
            |name: &str, node: Box<dyn Node>| nodes.push((format!("{name} {shape:?}"), node));
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            add(&format!("{dtype:?}"), floats(rows, cols, dtype));
            add(&format!("{dtype:?} masked"), masked(1, floats(rows, cols, dtype)));
            add(&format!("{dtype:?} in blocks"), masked(16, floats(rows, cols, dtype)));
        }
        for bits in [1, 3, 4, 8] {
            add(&format!("{bits} bits"), codes(shape, bits, 32));
            add(&format!("{bits} bits, long groups"), codes(shape, bits, cols));
            add(&format!("{bits} bits masked"), masked(1, codes(shape, bits, 32)));
            add(&format!("{bits} bits prepacked"), codes(shape, bits, 32).prepack().unwrap());
        }
        for bits in [2, 3, 4] {
            add(&format!("levels of {bits} bits"), levels(shape, bits).prepack().unwrap());
        }
        add("codebooks", books(shape).prepack().unwrap());
        add("masked, prepacked", masked(1, codes(shape, 4, 32)).prepack().unwrap());
        add("product", product().boxed());
        add("sum", Sum::new(vec![codes(shape, 4, 32), product().boxed()]).unwrap().boxed());
        let two = vec![codes(shape, 4, 32), masked(1, floats(3, cols, DType::F16))];
        add("stack", Stacked::new(two).unwrap().boxed());
        let two = || vec![codes([rows, cols], 4, 32), floats(rows, cols, DType::F16)];
        add("blocks", BlockDiagonal::new(two()).unwrap().boxed());
        add("interleaved blocks", BlockDiagonal::interleaved(two()).unwrap().boxed());
        let cores = vec![floats(6, 2, DType::F16), codes([rows, 3 * cols], 4, 32)];
        let train = TensorTrain::new(vec![[2, 2], [rows, cols]], cores).unwrap();
        add("matrix product operator", train.boxed());
        add("scaled inputs", mapped(Side::In, scale(cols), codes(shape, 4, 32)));
        add("scaled outputs", mapped(Side::Out, scale(rows), codes(shape, 4, 32)));
        add("turned inputs", mapped(Side::In, turned(cols), codes(shape, 4, 32)));
        add("turned outputs", mapped(Side::Out, turned(rows), codes(shape, 4, 32)));
        add("rotated inputs", mapped(Side::In, rotation(cols), codes(shape, 4, 32)));
        add("rotated outputs", mapped(Side::Out, rotation(rows), codes(shape, 4, 32)));
    }
    nodes
}

#[test]
fn a_warm_call_on_one_thread_allocates_nothing() {
    for (name, node) in nodes() {
        assert_eq!(node.multiply(), Multiply::Fused, "{name}");
        let [rows, cols] = node.shape();
        // Without vectors of ours, tiles of many tokens are multiplied by faer, which packs them.
        let most = match Isa::detect() {
            // More tokens than these are times what is decoded, from codes that are unpacked first.
            _ if name.starts_with("codebooks") => 1,
            Isa::Generic => 8,
            _ => 64,
        };
        for tokens in [1, 2, 5, 8, 9, 33, 64].into_iter().filter(|tokens| *tokens <= most) {
            let x = random(tokens, cols, 3);
            let mut y = Array2::zeros((tokens, rows));
            let mut scratch = Scratch::new(Par::Seq);
            let mut call = || {
                node.matmul(x.view(), y.view_mut(), Accum::Add, &mut scratch).unwrap();
                let some = rows / 3..rows;
                let part = y.slice_mut(s![.., some.clone()]);
                Input::with(x.view(), &mut scratch, |x, scratch| {
                    node.matmul_rows(some, x, part, Accum::Replace, scratch).unwrap();
                });
            };
            call();
            assert_eq!(allocations(&mut call), 0, "{name}, {tokens} tokens");
        }
    }
}

#[test]
fn rows_in_any_cut_and_one_input_for_all_give_the_product() {
    for (name, node) in nodes() {
        let [rows, cols] = node.shape();
        for tokens in [0, 1, 3, 12, 70] {
            let x = random(tokens, cols, 4);
            let mut whole = Array2::zeros((tokens, rows));
            let mut scratch = Scratch::default();
            node.matmul(x.view(), whole.view_mut(), Accum::Replace, &mut scratch).unwrap();
            let input = Input::new(x.view());
            let size = whole.iter().fold(1e-6f32, |most, v| most.max(v.abs()));
            for cut in [0, 1.min(rows), rows / 2, rows] {
                // From several threads, as an engine would.
                let mut cuts = Array2::from_elem((tokens, rows), 1.0);
                let (left, right) = cuts.view_mut().split_at(ndarray::Axis(1), cut);
                std::thread::scope(|scope| {
                    for (some, part) in [(0..cut, left), (cut..rows, right)] {
                        let (node, input) = (&node, &input);
                        scope.spawn(move || {
                            let mut scratch = Scratch::default();
                            node.matmul_rows(some, input, part, Accum::Add, &mut scratch).unwrap();
                        });
                    }
                });
                for (cuts, whole) in cuts.iter().zip(&whole) {
                    let error = (cuts - 1.0 - whole).abs();
                    assert!(error <= 1e-5 * (1.0 + size), "{name}, {tokens} tokens: {error}");
                }
            }
        }
    }
}

#[test]
fn matrices_with_groups_of_several_sizes_share_an_input() {
    let x = random(6, 256, 5);
    let input = Input::new(x.view());
    let mut scratch = Scratch::default();
    // More sizes than are kept, twice.
    for group in [32, 64, 96, 128, 256, 160, 32, 160, 256] {
        let node = codes([40, 256], 4, group).prepack().unwrap();
        let (mut shared, mut own) = (Array2::zeros((6, 40)), Array2::zeros((6, 40)));
        node.matmul_rows(0..40, &input, shared.view_mut(), Accum::Replace, &mut scratch).unwrap();
        node.matmul(x.view(), own.view_mut(), Accum::Replace, &mut scratch).unwrap();
        assert_eq!(shared, own, "groups of {group}");
    }
    input.reclaim(&mut scratch);
}

#[test]
fn inputs_and_outputs_may_have_strides() {
    for (name, node) in nodes() {
        let [rows, cols] = node.shape();
        let turned = random(cols, 4, 6);
        let (x, mut y) = (turned.t(), Array2::zeros((rows, 4)));
        let mut expected = Array2::zeros((4, rows));
        let mut scratch = Scratch::default();
        let straight = x.as_standard_layout();
        node.matmul(straight.view(), expected.view_mut(), Accum::Replace, &mut scratch).unwrap();
        node.matmul(x, y.view_mut().reversed_axes(), Accum::Replace, &mut scratch).unwrap();
        assert_eq!(y.t(), expected, "{name}");
    }
}
