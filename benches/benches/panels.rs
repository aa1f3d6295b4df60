//! Products over prepacked panels on one thread: integer grids of 2, 3, 4 and 8 bits, ternary codes, tables of levels by
//! matrix, by row and by group, and codes into two codebooks; 4096 x 14336 and 8192 x 28672, groups of 128. One token beside
//! a plain read of as many bytes, 512 tokens (not of codebooks, which are for few) beside our product of f32, activations as
//! two planes of int8 and as one; all take turns in one run.
//! Every product is checked before it is timed. `--test` runs everything once, small; any other word runs the kinds alone
//! whose names contain it.

// Reading at the speed of memory needs vector loads and prefetches.
#![allow(unsafe_code)]

mod turns;

use std::hint::black_box;

use tensorpress_tensor::kernels::{
    self, Activations, AffinePanels, AffineRows, CodebookPanels, CodebookRows, Isa, LevelPanels,
    LevelRows, Par, Work, packed_len, unpack_bits,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::{Accum, Node, Scratch};
use turns::{Contender, read, take_turns};

const GROUP: usize = 128;
const MANY: usize = 512;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let test = args.iter().any(|arg| arg == "--test");
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    println!(
        "{}",
        kernels::cpu_name().unwrap_or_else(|| "a CPU that does not say its name".into())
    );
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let shapes: &[([usize; 2], [usize; 2])] = match test {
        true => &[([64, 512], [1, 1])],
        false => &[([4096, 14_336], [31, 2]), ([8192, 28_672], [15, 2])],
    };
    for &(shape, [few, many]) in shapes {
        let matrices: Vec<Matrix> = KINDS
            .iter()
            .filter(|kind| names.is_empty() || names.iter().any(|name| kind.0.contains(&name[..])))
            .map(|kind| match kind.2 {
                Levels::OfBooks => Matrix::of_books(kind, shape),
                _ => Matrix::new(kind, shape),
            })
            .collect();
        for matrix in &matrices {
            matrix.one_token(few);
        }
        many_tokens(&matrices, shape, if test { 9 } else { MANY }, many);
    }
}

/// Name, bits of a code, levels by which tables.
type Kind = (&'static str, u32, Levels);

#[derive(Clone, Copy, PartialEq)]
enum Levels {
    Grid,
    Ternary,
    OfAll,
    OfRows,
    OfGroups,
    OfBooks,
}

const KINDS: &[Kind] = &[
    ("2 bits", 2, Levels::Grid),
    ("3 bits", 3, Levels::Grid),
    ("4 bits", 4, Levels::Grid),
    ("8 bits", 8, Levels::Grid),
    ("ternary", 2, Levels::Ternary),
    ("4 bits, one table", 4, Levels::OfAll),
    ("4 bits, a table a row", 4, Levels::OfRows),
    ("4 bits, tables by group", 4, Levels::OfGroups),
    ("3 bits, a table a row", 3, Levels::OfRows),
    ("2 bits, a table a row", 2, Levels::OfRows),
    ("2 books of 8 bits", 8, Levels::OfBooks),
];

enum Panels {
    Grid(AffinePanels),
    Levels(LevelPanels),
    Books(CodebookPanels),
}

struct Matrix {
    name: &'static str,
    shape: [usize; 2],
    panels: Panels,
    /// Some rows, decoded.
    sample: Vec<(usize, Vec<f32>)>,
}

impl Matrix {
    /// Random codes, scales and levels.
    fn new(&(name, bits, kind): &Kind, shape @ [rows, cols]: [usize; 2]) -> Self {
        let mut random = SplitMix::new(1);
        let (stride, groups) = (packed_len(cols, bits), cols.div_ceil(GROUP));
        let mut packed: Vec<u8> = (0..rows * stride).map(|_| random.next_u64() as u8).collect();
        if kind == Levels::Ternary {
            // No code is 3.
            packed.iter_mut().for_each(|byte| *byte &= !(*byte >> 1 & 0x55));
        }
        let mut scale = || half::f16::from_f32(0.01 + 0.002 * random.next_f64() as f32).to_f32();
        let scales: Vec<f32> = (0..rows * groups).map(|_| scale()).collect();
        let zero =
            |word: u64| if kind == Levels::Ternary { 1.0 } else { (word >> (64 - bits)) as f32 };
        let zeros: Vec<f32> = (0..rows * groups).map(|_| zero(random.next_u64())).collect();
        let tables: Vec<u32> = match kind {
            Levels::OfRows => (0..rows as u32).collect(),
            Levels::OfGroups => (0..rows * groups).map(|i| i as u32 % 4).collect(),
            _ => vec![0],
        };
        let held = tables.iter().max().map_or(0, |most| *most as usize + 1);
        let levels: Vec<f32> =
            (0..held << bits).map(|_| random.next_f64() as f32 * 2.0 - 1.0).collect();
        let decoded = |r: usize| {
            let mut codes = vec![0; cols];
            unpack_bits(&packed[r * stride..(r + 1) * stride], bits, 0, &mut codes);
            let weight = |(j, code): (usize, &u8)| {
                let g = r * groups + j / GROUP;
                let table = match kind {
                    Levels::Grid | Levels::Ternary => {
                        return scales[g] * (f32::from(*code) - zeros[g]);
                    }
                    Levels::OfAll | Levels::OfBooks => 0,
                    Levels::OfRows => r,
                    Levels::OfGroups => tables[g] as usize,
                };
                scales[g] * levels[(table << bits) + usize::from(*code)]
            };
            (r, codes.iter().enumerate().map(weight).collect())
        };
        let sample = (0..rows).step_by(rows / 16).map(decoded).collect();
        let (packed, scales, group) = (&packed[..], &scales[..], GROUP);
        let panels = match kind {
            Levels::Grid | Levels::Ternary => {
                let w = AffineRows { packed, bits, rows, cols, group, scales, zeros: &zeros };
                Panels::Grid(AffinePanels::new(&w, Par::Seq).expect("supported"))
            }
            _ => {
                let (levels, tables) = (&levels[..], &tables[..]);
                let w = LevelRows { packed, bits, rows, cols, group, scales, levels, tables };
                Panels::Levels(LevelPanels::new(&w, Par::Seq).expect("supported"))
            }
        };
        Self { name, shape, panels, sample }
    }

    /// Random codes, each two of eight weights.
    fn of_books(&(name, bits, _): &Kind, shape @ [rows, cols]: [usize; 2]) -> Self {
        let (size, books, entries) = (8, 2, 1 << bits);
        let mut random = SplitMix::new(1);
        let width = cols / size * books;
        let codes: Vec<u8> = (0..rows * width).map(|_| random.next_u64() as u8).collect();
        let mut number = || random.next_f64() as f32 - 0.5;
        let codebooks: Vec<f32> = (0..books * entries * size).map(|_| number()).collect();
        let scales = vec![0.01; rows];
        let decoded = |r: usize| {
            let weight = |c: usize| {
                let codes = &codes[r * width + c / size * books..][..books];
                let entry = |(book, code): (usize, &u8)| book * entries + usize::from(*code);
                let entries = codes.iter().enumerate().map(entry);
                scales[r] * entries.map(|at| codebooks[at * size + c % size]).sum::<f32>()
            };
            (r, (0..cols).map(weight).collect())
        };
        let sample = (0..rows).step_by(rows / 16).map(decoded).collect();
        let (codes, codebooks, scales) = (&codes[..], &codebooks[..], &scales[..]);
        let w = CodebookRows { codes, rows, cols, size, books, entries, codebooks, scales };
        let panels = Panels::Books(CodebookPanels::new(&w, Par::Seq).expect("supported"));
        Self { name, shape, panels, sample }
    }

    /// Forms of activations, and the error that products may have.
    fn modes(&self) -> &'static [(Activations, f64)] {
        // Codebooks have a form of their own.
        if matches!(self.panels, Panels::Books(_)) { &MODES[..1] } else { &MODES }
    }

    fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Grid(panels) => panels.bytes(),
            Panels::Levels(panels) => panels.bytes(),
            Panels::Books(panels) => panels.bytes(),
        }
    }

    fn multiply(&self, x: &[f32], y: &mut [f32], mode: Activations, work: &mut Work) {
        let [rows, cols] = self.shape;
        let t = x.len() / cols;
        match &self.panels {
            Panels::Grid(panels) => panels.matmul(0..rows, x, t, y, false, mode, work),
            Panels::Levels(panels) => panels.matmul(0..rows, x, t, y, false, mode, work),
            Panels::Books(panels) => panels.matmul(0..rows, x, t, y, false, work),
        }
    }

    /// The relative error of a product with each form of activations.
    fn errors(&self, x: &[f32]) -> Vec<f64> {
        let [rows, cols] = self.shape;
        let mut y = vec![0.0; x.len() / cols * rows];
        let error = |&(mode, tolerance): &(Activations, f64)| {
            self.multiply(x, &mut y, mode, &mut Work::new(Par::Seq));
            let (mut error, mut size) = (0.0, 0.0);
            for (y, x) in y.chunks(rows).zip(x.chunks(cols)).step_by(37) {
                for (r, row) in &self.sample {
                    let products = x.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let exact: f64 = products.sum();
                    error += (f64::from(y[*r]) - exact).powi(2);
                    size += exact * exact;
                }
            }
            let error = (error / size).sqrt();
            assert!(error < tolerance, "{}: relative error {error:e}", self.name);
            error
        };
        self.modes().iter().map(error).collect()
    }

    fn one_token(&self, rounds: usize) {
        let [rows, cols] = self.shape;
        let x = inputs(1, cols);
        let errors = self.errors(&x);
        let (buffer, bytes) = (vec![1u8; self.bytes()], self.bytes());
        let mut contenders = vec![
            Contender::new("plain read", bytes, || {
                black_box(read::<0>(&buffer));
            }),
            Contender::new("plain read, asking 8 KiB ahead", bytes, || {
                black_box(read::<8192>(&buffer));
            }),
        ];
        for &(mode, _) in self.modes() {
            let (x, mut y, mut work) = (&x, vec![0.0; rows], Work::new(Par::Seq));
            contenders.push(Contender::new("", bytes, move || {
                self.multiply(x, &mut y, mode, &mut work);
            }));
        }
        take_turns(&mut contenders, rounds);
        let [plain, asking, products @ ..] = &contenders[..] else { return };
        let (best, median) = (plain.best().min(asking.best()), plain.median().min(asking.median()));
        let name = self.name;
        println!("{name}, {rows} x {cols}, 1 token; best (median) of {rounds}, {bytes} bytes");
        println!(
            "  read {:.3} ({:.3}) ms, {:.1} GB/s",
            best * 1e3,
            median * 1e3,
            bytes as f64 / best / 1e9
        );
        for (c, (error, planes)) in products.iter().zip(errors.iter().zip(["two", "one"])) {
            println!(
                "  {planes} planes: {:.3} ({:.3}) ms, {:.3} ({:.3}) of the read, error {error:.1e}",
                c.best() * 1e3,
                c.median() * 1e3,
                best / c.best(),
                median / c.median(),
            );
        }
    }
}

/// Forms of activations, and the error that their products may have.
const MODES: [(Activations, f64); 2] = [(Activations::Int16, 1e-4), (Activations::Int8, 2e-2)];

fn inputs(tokens: usize, cols: usize) -> Vec<f32> {
    let mut random = SplitMix::new(2);
    (0..tokens * cols).map(|_| random.next_f64() as f32 - 0.5).collect()
}

fn many_tokens(matrices: &[Matrix], [rows, cols]: [usize; 2], tokens: usize, rounds: usize) {
    let x = inputs(tokens, cols);
    let mut random = SplitMix::new(3);
    let numbers = Array2::from_shape_simple_fn((rows, cols), || random.next_f64() as f32 - 0.5);
    let dense = Dense::from(numbers);
    let inputs = ArrayView2::from_shape((tokens, cols), &x).expect("tokens");
    let (mut y, mut scratch) = (Array2::zeros((tokens, rows)), Scratch::new(Par::Seq));
    let mut contenders = vec![Contender::new("f32", 1, move || {
        dense.matmul(inputs, y.view_mut(), Accum::Replace, &mut scratch).expect("multiplies");
    })];
    for matrix in matrices.iter().filter(|matrix| matrix.modes().len() > 1) {
        matrix.errors(&x);
        for ((mode, _), planes) in MODES.into_iter().zip(["two planes", "one plane"]) {
            let (x, mut y, mut work) = (&x, vec![0.0; tokens * rows], Work::new(Par::Seq));
            let name = format!("{}, {planes}", matrix.name);
            contenders.push(Contender::new(&name, 1, move || {
                matrix.multiply(x, &mut y, mode, &mut work);
            }));
        }
    }
    take_turns(&mut contenders, rounds);
    println!("{rows} x {cols}, {tokens} tokens; best (median) of {rounds}");
    let f32 = &contenders[0];
    for c in &contenders {
        println!(
            "  {:36} {:9.1} ({:9.1}) ms, {:6.0} GFLOP/s, {:.2} ({:.2}) x f32",
            c.name,
            c.best() * 1e3,
            c.median() * 1e3,
            2.0 * (rows * cols * tokens) as f64 / c.best() / 1e9,
            f32.best() / c.best(),
            f32.median() / c.median(),
        );
    }
}
