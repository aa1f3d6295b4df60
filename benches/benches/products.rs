//! What a token costs among others: 1 to 512 tokens times every node with a fused product, from 1024 x 1024 to 8192 x 28672,
//! on one thread. More tokens should never cost more than 1.1 times their share of a smaller call; the worst is printed
//! for each node, and at the end for all. `--test` runs everything once, small; `--quick` leaves out the largest
//! matrix; any other word runs the nodes alone whose names contain it.

mod nodes;
mod turns;

use std::sync::Arc;

use nodes::{check, pairs};
use tensorpress_quant::GroupedAffine;
use tensorpress_tensor::kernels::{self, Isa};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{
    Additive, AdditiveFormat, BitshiftFormat, BitshiftTrellis, Blocks, Child, Dense, LevelFormat,
    LevelTable, Mask, Masked, Multiply, PackedPlane, Product, Scale, Side, Sum, Tables,
    Transformed,
};
use tensorpress_tensor::{Accum, DType, Node, RawTensor, Scratch};
use turns::{Contender, take_turns};

const TOKENS: &[usize] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 128,
    129, 192, 256, 384, 512,
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| args.iter().any(|arg| arg == name);
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    println!(
        "{}",
        kernels::cpu_name().unwrap_or_else(|| "a CPU that does not say its name".into())
    );
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let shapes: &[([usize; 2], usize)] = match () {
        () if given("--test") => &[([64, 256], 0)],
        () if given("--quick") => &[([1024, 1024], 9), ([4096, 4096], 4)],
        () => &[([1024, 1024], 15), ([4096, 4096], 5), ([8192, 28_672], 3)],
    };
    let tokens = if given("--test") { &TOKENS[..16] } else { TOKENS };
    let mut worst = Worst::default();
    for (shape, rounds) in shapes {
        for (name, make) in NODES {
            if names.is_empty() || names.iter().any(|part| name.contains(part.as_str())) {
                worst = worst.max(measure(name, &*make(*shape), tokens, *rounds));
            }
        }
    }
    println!("\nthe worst of all: {}", worst.text());
}

type Make = fn([usize; 2]) -> Box<dyn Node>;

const NODES: &[(&str, Make)] = &[
    ("f32", |shape| floats(shape, DType::F32)),
    ("bf16", |shape| floats(shape, DType::BF16)),
    ("f32, 2:4", |shape| masked(pairs(shape), floats(shape, DType::F32))),
    ("f32, a block of 16 x 1 in ten", |shape| masked(blocks(shape), floats(shape, DType::F32))),
    ("4 bits as stored", |shape| codes(shape, 4)),
    ("3 bits as stored", |shape| codes(shape, 3)),
    ("4 bits, 2:4, as stored", |shape| masked(pairs(shape), codes(shape, 4))),
    ("4 bits prepacked", |shape| prepacked(codes(shape, 4))),
    ("3 bits prepacked", |shape| prepacked(codes(shape, 3))),
    ("8 bits prepacked", |shape| prepacked(codes(shape, 8))),
    ("4 bits, a table, prepacked", |shape| levels(shape, 4, Tables::One)),
    ("4 bits, a table a row, prepacked", |shape| levels(shape, 4, Tables::Rows(1))),
    ("2 bits, a table a row, prepacked", |shape| levels(shape, 2, Tables::Rows(1))),
    ("2 books of 8 bits, prepacked", |shape| books(shape)),
    ("a trellis of 2 bits", |shape| trellis(shape, 2)),
    ("a trellis of 3 bits", |shape| trellis(shape, 3)),
    ("product of rank n/8, bf16", |shape| low_rank(shape)),
    ("4 bits prepacked + rank n/64", |[rows, cols]| {
        let rank = cols / 64;
        let product =
            Product::new(floats([rows, rank], DType::BF16), floats([rank, cols], DType::BF16));
        let terms = vec![prepacked(codes([rows, cols], 4)), product.expect("fits").boxed()];
        Sum::new(terms).expect("one shape").boxed()
    }),
    ("4 bits prepacked, scaled inputs", |[rows, cols]| {
        let scale = Scale::new(vec![1.5; cols], DType::F32).expect("finite");
        let node = Transformed::new(Side::In, Arc::new(scale), prepacked(codes([rows, cols], 4)));
        node.expect("fits").boxed()
    }),
];

fn floats([rows, cols]: [usize; 2], dtype: DType) -> Box<dyn Node> {
    let mut random = SplitMix::new(1);
    // One stretch again and again, of a length that no row has.
    let numbers: Vec<f32> = (0..4099).map(|_| random.next_f64() as f32 - 0.5).collect();
    let mut stretch = Vec::new();
    dtype.write_f32(&numbers, &mut stretch).expect("a float type");
    let bytes: Vec<u8> = stretch.iter().copied().cycle().take(rows * cols * dtype.size()).collect();
    let tensor = RawTensor::new(dtype, vec![rows, cols], bytes.into()).expect("as many bytes");
    Dense::new(&tensor).expect("a float type").boxed()
}

/// Random codes in groups of 128.
fn codes([rows, cols]: [usize; 2], bits: u8) -> Box<dyn Node> {
    let mut random = SplitMix::new(2);
    let mut code = || (random.next_u64() >> (64 - bits)) as u8;
    let groups = rows * cols.div_ceil(128);
    let codes: Vec<u8> = (0..rows * cols).map(|_| code()).collect();
    let zeros: Vec<u8> = (0..groups).map(|_| code()).collect();
    let scales = vec![0.01; groups];
    let node =
        GroupedAffine::from_codes([rows, cols], bits, 128, &codes, scales, DType::F16, &zeros);
    node.expect("codes of so many bits").boxed()
}

/// Random paths through a trellis.
fn trellis([rows, cols]: [usize; 2], bits: u8) -> Box<dyn Node> {
    let mut random = SplitMix::new(3);
    let bytes = rows.div_ceil(16) * cols.div_ceil(16) * 256;
    let codes: Vec<u8> = (0..bytes).map(|_| (random.next_u64() >> (64 - bits)) as u8).collect();
    let scale = floats([1, 1], DType::F16);
    let format = BitshiftFormat::new(bits).expect("bits that there are");
    BitshiftTrellis::path(format, [rows, cols], &codes, scale).expect("whole tiles").boxed()
}

/// Random codes of levels in no order, with a scale for each 128, in panels.
fn levels([rows, cols]: [usize; 2], bits: u8, tables: Tables) -> Box<dyn Node> {
    let mut random = SplitMix::new(4);
    let codes: Vec<u8> =
        (0..rows * cols).map(|_| (random.next_u64() >> (64 - bits)) as u8).collect();
    let codes = PackedPlane::pack(&codes, rows, cols, bits).expect("codes of so many bits");
    let format = LevelFormat::new(1 << bits, Blocks::Rows(128)).and_then(|f| f.with_tables(tables));
    let groups = cols.div_ceil(128);
    let beside = [[tables.count(rows, rows * groups), 1 << bits], [rows, groups]];
    let beside = beside.map(|shape| Child::Node(floats(shape, DType::F32)));
    let format = format.expect("a format");
    let node = LevelTable::new(format, [rows, cols], Box::new(codes), beside.into());
    prepacked(node.expect("fits").boxed())
}

/// Random codes, each two of eight weights, in panels.
fn books([rows, cols]: [usize; 2]) -> Box<dyn Node> {
    let mut random = SplitMix::new(5);
    let format = AdditiveFormat::new(8, 2, 256).expect("a format");
    let codes: Vec<u8> =
        (0..rows * cols.div_ceil(8) * 2).map(|_| random.next_u64() as u8).collect();
    let (codebooks, scales) = (floats([2 * 256, 8], DType::F16), floats([rows, 1], DType::F16));
    let node = Additive::sums(format, [rows, cols], 8, &codes, codebooks, scales);
    prepacked(node.expect("fits").boxed())
}

fn prepacked(node: Box<dyn Node>) -> Box<dyn Node> {
    node.prepack().expect("prepacks")
}

fn masked(mask: Mask, node: Box<dyn Node>) -> Box<dyn Node> {
    Masked::new(mask, node).expect("restricts").boxed()
}

fn low_rank([rows, cols]: [usize; 2]) -> Box<dyn Node> {
    let rank = rows.min(cols) / 8;
    let (left, right) = (floats([rows, rank], DType::BF16), floats([rank, cols], DType::BF16));
    Product::new(left, right).expect("fits").boxed()
}

/// One column in ten of each 16 rows stays.
fn blocks([rows, cols]: [usize; 2]) -> Mask {
    let mut random = SplitMix::new(5);
    let mut bits = Vec::with_capacity(rows * cols / 8);
    for _ in 0..rows / 16 {
        let mut byte = || (0..8).fold(0u8, |byte, i| byte | u8::from(random.next_f64() < 0.1) << i);
        let row: Vec<u8> = (0..cols / 8).map(|_| byte()).collect();
        (0..16).for_each(|_| bits.extend_from_slice(&row));
    }
    Mask::new(rows, cols, bits.into()).expect("whole bytes")
}

/// The call whose tokens cost most beside those of a smaller one.
#[derive(Default)]
struct Worst {
    ratio: f64,
    name: String,
    tokens: [usize; 2],
}

impl Worst {
    fn max(self, other: Self) -> Self {
        if other.ratio > self.ratio { other } else { self }
    }

    fn text(&self) -> String {
        let (ratio, [few, many]) = (self.ratio, self.tokens);
        format!("{ratio:.2} x the share of {few} tokens for {many}, {}", self.name)
    }
}

fn measure(name: &str, node: &dyn Node, tokens: &[usize], rounds: usize) -> Worst {
    let [rows, cols] = node.shape();
    assert_eq!(node.multiply(), Multiply::Fused, "{name}");
    let mut random = SplitMix::new(6);
    let most = tokens[tokens.len() - 1];
    let x = Array2::from_shape_simple_fn((most, cols), || random.next_f64() as f32 - 0.5);
    for t in [1, 9, 33] {
        check(node, x.slice(s![..t.min(most), ..]), 10, 1e-4);
    }
    // Calls of microseconds are made several times.
    let work = rows * cols;
    let mut contenders: Vec<Contender<'_>> = tokens
        .iter()
        .map(|&t| {
            let (mut y, mut scratch) = (Array2::zeros((t, rows)), Scratch::new(Par::Seq));
            let (x, repeat) = (x.slice(s![..t, ..]), (20_000_000 / (work * t)).clamp(1, 20));
            Contender::new(&t.to_string(), repeat, move || {
                for _ in 0..repeat {
                    node.matmul(x, y.view_mut(), Accum::Replace, &mut scratch).expect("multiplies");
                }
            })
        })
        .collect();
    take_turns(&mut contenders, rounds);
    let mut worst = Worst::default();
    if rounds == 0 {
        return worst;
    }
    let cost = |c: &Contender<'_>| c.best() / c.bytes as f64;
    println!("\n{name}, {rows} x {cols}: tokens, milliseconds, microseconds a token");
    for (i, (&many, c)) in tokens.iter().zip(&contenders).enumerate() {
        println!("{many:>5} {:9.3} {:9.2}", cost(c) * 1e3, cost(c) * 1e6 / many as f64);
        for (&few, before) in tokens.iter().zip(&contenders[..i]) {
            let ratio = cost(c) / many as f64 / (cost(before) / few as f64);
            let name = format!("{name}, {rows} x {cols}");
            worst = worst.max(Worst { ratio, name, tokens: [few, many] });
        }
    }
    println!("worst: {}", worst.text());
    worst
}
