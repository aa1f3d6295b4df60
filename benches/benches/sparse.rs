//! Sparse matrices against dense ones of the same value type, one thread, all taking turns in one run.
//!
//! First one token times a matrix larger than every cache: 2:4, and half of the entries at random; beside the dense
//! product and a plain read of as many bytes as the dense matrix has. Then one token of which half of the outputs are
//! wanted, or half of the inputs are not 0: products that skip the others, beside the dense ones. Then 64 tokens times a
//! matrix of which nine blocks in ten were dropped, beside faer's dense product. `--test` runs everything once, small;
//! `--skipping` the products that skip alone. Every product is checked against a slow one before it is timed.

// Reading at the speed of memory needs vector loads and prefetches.
#![allow(unsafe_code)]

mod nodes;
mod turns;

use std::hint::black_box;

use criterion::Criterion;
use nodes::{check, pairs};
use tensorpress_quant::GroupedAffine;
use tensorpress_tensor::kernels::{Isa, Work, dot_f64, picked_matmul, picked_sum};
use tensorpress_tensor::linalg::{Par, SplitMix, matmul_nt};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, s};
use tensorpress_tensor::node::{Dense, Mask, Masked, as_node, decode};
use tensorpress_tensor::{Accum, DType, Node, RawTensor, Scratch, Storage};
use turns::{Contender, read, take_turns};

fn main() {
    let asked = |name: &str| std::env::args().any(|arg| arg == name);
    let test = asked("--test");
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    for [wide, narrow] in if test { [[64, 32]; 2] } else { [[11_008, 4096], [5632, 2048]] } {
        for dtype in [DType::F32, DType::BF16] {
            skipping(wide, narrow, dtype, if test { 1 } else { 31 });
        }
    }
    if asked("--skipping") {
        return;
    }
    let (rows, cols, rounds) = if test { (64, 1024, 1) } else { (4096, 28_672, 15) };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        one_token(&dtype_name(dtype), rows, cols, rounds, |seed| values(rows, cols, dtype, seed));
    }
    one_token("4-bit codes", rows, cols, rounds, |seed| codes(rows, cols, seed));
    let (n, rounds) = if test { (64, 1) } else { (4096, 31) };
    many_tokens(n, 64, rounds);
    small(&mut Criterion::default().configure_from_args());
}

fn dtype_name(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// Bytes in which every number of a type is finite and near 1.
fn values(rows: usize, cols: usize, dtype: DType, seed: u64) -> Box<dyn Node> {
    let mut random = SplitMix::new(seed);
    let numbers: Vec<f32> = (0..4096).map(|_| random.next_f64() as f32 - 0.5).collect();
    let mut bytes = Vec::with_capacity(rows * cols * dtype.size());
    // One stretch again and again, from another place in each row.
    for row in 0..rows {
        let mut left = cols;
        while left > 0 {
            let from = (row * 37) % 4096;
            let n = left.min(4096 - from);
            dtype.write_f32(&numbers[from..from + n], &mut bytes).expect("a float type");
            left -= n;
        }
    }
    let tensor = RawTensor::new(dtype, vec![rows, cols], bytes.into()).expect("as many bytes");
    Dense::new(&tensor).expect("a float type").boxed()
}

/// Random codes in groups of 128.
fn codes(rows: usize, cols: usize, seed: u64) -> Box<dyn Node> {
    let mut random = SplitMix::new(seed);
    let groups = rows * cols.div_ceil(128);
    let codes: Vec<u8> = (0..rows * cols).map(|_| (random.next_u64() >> 60) as u8).collect();
    let zeros: Vec<u8> = (0..groups).map(|_| (random.next_u64() >> 60) as u8).collect();
    let scales = vec![0.01; groups];
    GroupedAffine::from_codes([rows, cols], 4, 128, &codes, scales, DType::F16, &zeros)
        .expect("codes of 4 bits")
        .boxed()
}

/// Each entry stays with probability one half.
fn half(rows: usize, cols: usize) -> Mask {
    let mut random = SplitMix::new(4);
    let bits: Vec<u8> = (0..rows * cols / 8).map(|_| (random.next_u64() >> 56) as u8).collect();
    Mask::new(rows, cols, bits.into()).expect("whole bytes")
}

/// One block in ten stays.
fn blocks(rows: usize, cols: usize, [tall, wide]: [usize; 2]) -> Mask {
    let mut random = SplitMix::new(5);
    let keep = Array2::from_shape_simple_fn((rows / tall, cols / wide), || random.next_f64() < 0.1);
    let keep = Array2::from_shape_fn((rows, cols), |(r, c)| keep[[r / tall, c / wide]]);
    Mask::from_bools(keep.view())
}

fn input(tokens: usize, cols: usize) -> Array2<f32> {
    let mut random = SplitMix::new(6);
    Array2::from_shape_simple_fn((tokens, cols), || random.next_f64() as f32 - 0.5)
}

/// A contender that multiplies; its bytes are those the node is stored in.
fn product<'a>(name: &str, node: &'a dyn Node, x: ArrayView2<'a, f32>) -> Contender<'a> {
    check(node, x, 40, 1e-4);
    let bytes = Storage::of(node).expect("counts").bytes() as usize;
    let mut y = Array2::zeros((x.nrows(), node.shape()[0]));
    let mut scratch = Scratch::new(Par::Seq);
    let name = format!("{name} ({:?})", node.multiply());
    Contender::new(&name, bytes, move || {
        node.matmul(x, y.view_mut(), Accum::Replace, &mut scratch).expect("multiplies");
    })
}

fn one_token(
    name: &str,
    rows: usize,
    cols: usize,
    rounds: usize,
    make: impl Fn(u64) -> Box<dyn Node>,
) {
    let stored = make(1);
    let bytes = Storage::of(&*stored).expect("counts").bytes() as usize;
    let pairs_stored = Masked::new(pairs([rows, cols]), make(1)).expect("restricts");
    let half_stored = Masked::new(half(rows, cols), make(1)).expect("restricts");
    let dense = stored.prepack().expect("prepacks");
    let pairs = Masked::new(pairs([rows, cols]), make(1)).expect("restricts").boxed();
    let pairs = pairs.prepack().expect("prepacks");
    let half = Masked::new(half(rows, cols), make(1)).expect("restricts").boxed();
    let half = half.prepack().expect("prepacks");
    let buffer = vec![1u8; bytes];
    let x = input(1, cols);
    let mut contenders = vec![
        Contender::new("plain read", bytes, || {
            black_box(read::<0>(&buffer));
        }),
        Contender::new("plain read, asking 4 KiB ahead", bytes, || {
            black_box(read::<4096>(&buffer));
        }),
        product("dense, prepacked", &*dense, x.view()),
        product("2:4", &pairs_stored, x.view()),
        product("2:4, prepacked", &*pairs, x.view()),
        product("half at random", &half_stored, x.view()),
        product("half at random, prepacked", &*half, x.view()),
    ];
    take_turns(&mut contenders, rounds);
    let read = contenders[0].best().min(contenders[1].best());
    let dense = &contenders[2];
    println!(
        "\n{name}, {rows} x {cols}, 1 token; read {:.1} GB/s, dense {:.2} of it; best (median)",
        bytes as f64 / read / 1e9,
        read * dense.bytes as f64 / bytes as f64 / dense.best(),
    );
    table(&contenders, dense);
}

/// The matrices of a feed-forward network, one token of which half of the wide channels are active.
fn skipping(wide: usize, narrow: usize, dtype: DType, rounds: usize) {
    let node = |rows, cols| values(rows, cols, dtype, 1);
    // The second stored both ways: for the dense product, and with an input's weights side by side.
    let (up, down, turned) = (node(wide, narrow), node(narrow, wide), node(wide, narrow));
    let stored = |node| as_node::<Dense>(node).and_then(Dense::stored_rows).expect("floats");
    let (up_rows, turned_rows) = (stored(&*up), stored(&*turned));
    let mut random = SplitMix::new(7);
    let active: Vec<usize> = (0..wide).filter(|_| random.next_f64() < 0.5).collect();
    let (x, hidden) = (input(1, narrow), input(1, wide));
    let factors: Vec<f32> = active.iter().map(|channel| hidden[[0, *channel]]).collect();
    let (x_slice, share) = (x.as_slice().expect("one row"), active.len() as f64 / wide as f64);
    let (mut outputs, mut sums) = (vec![0.0; active.len()], vec![0.0; narrow]);
    let mut work = Work::default();
    picked_matmul(&up_rows, &active, x_slice, 1, &mut outputs, false, &mut work);
    picked_sum(&turned_rows, &active, &factors, 1, &mut sums, false, &mut work);
    let (up_f32, turned_f32) = (decode(&*up).expect("decodes"), decode(&*turned).expect("decodes"));
    let exact =
        active.iter().map(|row| dot_f64(x_slice, up_f32.row(*row).as_slice().expect("a row")));
    near(&outputs, exact);
    let kept = turned_f32.select(Axis(0), &active);
    near(
        &sums,
        (0..narrow)
            .map(|o| kept.column(o).iter().zip(&factors).map(|(w, a)| f64::from(w * a)).sum()),
    );
    drop((up_f32, turned_f32, kept));
    let bytes = wide * narrow * dtype.size();
    let read_bytes = (bytes as f64 * share) as usize;
    let buffer = vec![1u8; bytes];
    let mut second = Work::default();
    let mut contenders = vec![
        Contender::new("plain read", bytes, || {
            black_box(read::<0>(&buffer));
        }),
        Contender::new("plain read, asking 4 KiB ahead", bytes, || {
            black_box(read::<4096>(&buffer));
        }),
        product("dense, wide outputs", &*up, x.view()),
        Contender::new("half of the outputs", read_bytes, || {
            picked_matmul(&up_rows, &active, x_slice, 1, &mut outputs, false, &mut work);
        }),
        product("dense, wide inputs", &*down, hidden.view()),
        Contender::new("half of the inputs", read_bytes, || {
            picked_sum(&turned_rows, &active, &factors, 1, &mut sums, false, &mut second);
        }),
    ];
    take_turns(&mut contenders, rounds);
    let read = contenders[0].best().min(contenders[1].best());
    println!(
        "\n{}, {wide} channels of {narrow}, {:.4} of them active, 1 token; read {:.1} GB/s; best (median)",
        dtype_name(dtype),
        share,
        bytes as f64 / read / 1e9,
    );
    for pair in [2..4, 4..6] {
        let dense = &contenders[pair.start];
        println!("dense {:.2} of the read", read / dense.best());
        table(&contenders[pair.clone()], dense);
    }
}

/// Panics unless the numbers agree.
fn near(found: &[f32], exact: impl ExactSizeIterator<Item = f64>) {
    assert_eq!(found.len(), exact.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (found, exact) in found.iter().zip(exact) {
        error += (f64::from(*found) - exact).powi(2);
        size += exact * exact;
    }
    let relative = (error / size).sqrt();
    assert!(relative < 1e-4, "relative error {relative:e}");
}

fn table(contenders: &[Contender<'_>], dense: &Contender<'_>) {
    println!("{:48} {:>17} {:>6} {:>15}", "", "ms", "GB/s", "x dense");
    for c in contenders {
        println!(
            "{:48} {:7.3} ({:7.3}) {:6.1} {:6.2} ({:6.2})",
            c.name,
            c.best() * 1e3,
            c.median() * 1e3,
            c.bytes as f64 / c.best() / 1e9,
            dense.best() / c.best(),
            dense.median() / c.median(),
        );
    }
}

fn many_tokens(n: usize, tokens: usize, rounds: usize) {
    let make = |dtype| values(n, n, dtype, 1);
    let dense = decode(&*make(DType::F32)).expect("decodes");
    let x = input(tokens, n);
    let mut y = Array2::zeros((tokens, n));
    let mut nodes = Vec::new();
    for (name, block) in [("16x1", [16, 1]), ("4x4", [4, 4])] {
        for dtype in [DType::F32, DType::BF16] {
            let node = Masked::new(blocks(n, n, block), make(dtype)).expect("restricts").boxed();
            let name = format!("blocks of {name}, {}, one in ten stays", dtype_name(dtype));
            nodes.push((name, node.prepack().expect("prepacks")));
        }
    }
    let node = Masked::new(half(n, n), make(DType::F32)).expect("restricts").boxed();
    nodes.push(("half at random, f32".to_owned(), node.prepack().expect("prepacks")));
    let mut contenders = vec![Contender::new("dense, faer", 4 * n * n, || {
        matmul_nt(x.view(), dense.view(), y.view_mut(), false, Par::Seq);
    })];
    contenders.extend(nodes.iter().map(|(name, node)| product(name, &**node, x.view())));
    take_turns(&mut contenders, rounds);
    let rate = 2.0 * (n * n * tokens) as f64 / contenders[0].best() / 1e9;
    println!("\n{n} x {n}, {tokens} tokens; faer {rate:.1} GFLOP/s; best (median)");
    table(&contenders, &contenders[0]);
}

/// Criterion's figures of decoding, which products with many tokens do in tiles.
fn small(criterion: &mut Criterion) {
    let (rows, cols) = (64, 4096);
    let mut group = criterion.benchmark_group("decode 64 x 4096");
    for dtype in [DType::F32, DType::BF16] {
        let dense = values(rows, cols, dtype, 1);
        let masked =
            Masked::new(half(rows, cols), values(rows, cols, dtype, 1)).expect("restricts");
        let mut out = Array2::zeros((rows, cols));
        let mut scratch = Scratch::default();
        let nodes: [(&str, &dyn Node); 2] = [("dense", &*dense), ("half", &masked)];
        for (name, node) in nodes {
            group.bench_function(format!("{name}, {}", dtype_name(dtype)), |b| {
                b.iter(|| {
                    let out = out.slice_mut(s![.., ..]);
                    node.decode_rows(0..rows, out, Accum::Replace, &mut scratch).expect("decodes");
                });
            });
        }
    }
    group.finish();
}
