use half::f16;

use super::*;
use crate::*;

/// Values of a block, the slow way, in f64.
fn decode(kind: BlockType, b: &[u8]) -> Vec<f64> {
    let half = |at: usize| f64::from(f16::from_le_bytes([b[at], b[at + 1]]).to_f32());
    let nibble = |at: usize, high: bool| i32::from(if high { b[at] >> 4 } else { b[at] & 15 });
    let bit = |at: usize, i: usize| i32::from(b[at + i / 8] >> (i % 8) & 1);
    // Two bits in planes of 32 by halves.
    let two = |from: usize, e: usize| {
        i32::from(b[from + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3)
    };
    let six = |from: usize, j: usize| {
        let s = |i: usize| i32::from(b[from + i]);
        match j {
            0..4 => (s(j) & 63, s(j + 4) & 63),
            _ => (s(j + 4) & 15 | (s(j - 4) >> 6) << 4, s(j + 4) >> 4 | (s(j) >> 6) << 4),
        }
    };
    const LEVELS: [i32; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |e: usize| -> f64 {
        match kind {
            BlockType::Q4_0 => half(0) * f64::from(nibble(2 + e % 16, e >= 16) - 8),
            BlockType::Q4_1 => half(0) * f64::from(nibble(4 + e % 16, e >= 16)) + half(2),
            BlockType::Q5_0 => {
                half(0) * f64::from((nibble(6 + e % 16, e >= 16) | bit(2, e) << 4) - 16)
            }
            BlockType::Q5_1 => {
                half(0) * f64::from(nibble(8 + e % 16, e >= 16) | bit(4, e) << 4) + half(2)
            }
            BlockType::Q8_0 => half(0) * f64::from(b[2 + e] as i8),
            BlockType::Q2_K => {
                let s = i32::from(b[e / 16]);
                half(80) * f64::from(s & 15) * f64::from(two(16, e)) - half(82) * f64::from(s >> 4)
            }
            BlockType::Q3_K => {
                let i = e / 16;
                let low = nibble(96 + i % 8, i >= 8);
                let high = i32::from(b[96 + 8 + i % 4]) >> (2 * (i / 4)) & 3;
                let q = two(32, e) - if b[e % 32] >> (e / 32) & 1 == 1 { 0 } else { 4 };
                half(108) * f64::from((low | high << 4) - 32) * f64::from(q)
            }
            BlockType::Q4_K | BlockType::Q5_K => {
                let qs = if kind == BlockType::Q4_K { 16 } else { 48 };
                let mut q = nibble(qs + e / 64 * 32 + e % 32, e % 64 >= 32);
                if kind == BlockType::Q5_K {
                    q |= i32::from(b[16 + e % 32] >> (e / 32) & 1) << 4;
                }
                let (scale, minimum) = six(4, e / 32);
                half(0) * f64::from(scale) * f64::from(q) - half(2) * f64::from(minimum)
            }
            BlockType::Q6_K => {
                let (c, k, l) = (e / 128, e % 128 / 32, e % 32);
                let low = nibble(64 * c + k % 2 * 32 + l, k >= 2);
                let high = i32::from(b[128 + 32 * c + l] >> (2 * k) & 3);
                half(208) * f64::from(b[192 + e / 16] as i8) * f64::from((low | high << 4) - 32)
            }
            BlockType::IQ4_NL => half(0) * f64::from(LEVELS[nibble(2 + e % 16, e >= 16) as usize]),
            BlockType::IQ4_XS => {
                let g = e / 32;
                let high = i32::from(u16::from_le_bytes([b[2], b[3]]) >> (2 * g) & 3);
                let scale = nibble(4 + g / 2, g % 2 == 1) | high << 4;
                let level = LEVELS[nibble(8 + 16 * g + e % 16, e % 32 >= 16) as usize];
                half(0) * f64::from(scale - 32) * f64::from(level)
            }
            BlockType::MXFP4 => {
                let q = nibble(1 + e % 16, e >= 16);
                let sign = if q >= 8 { -1.0 } else { 1.0 };
                2f64.powi(i32::from(b[0]) - 127) * sign * E2M1[q as usize % 8]
            }
        }
    };
    (0..kind.block_len()).map(value).collect()
}

/// Where the f16 of a block lie; none in MXFP4, whose scale is the first byte.
fn halves(kind: BlockType) -> &'static [usize] {
    match kind {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::MXFP4 => &[],
        _ => &[0],
    }
}

/// Random blocks, and their values.
struct Case {
    kind: BlockType,
    bytes: Vec<u8>,
    dense: Vec<f64>,
    rows: usize,
    cols: usize,
}

impl Case {
    fn new(kind: BlockType, rows: usize, blocks: usize) -> Self {
        let mut random = Random(30);
        let cols = blocks * kind.block_len();
        let mut bytes = Vec::new();
        for _ in 0..rows * blocks {
            let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| random.byte()).collect();
            for at in halves(kind) {
                // Of both signs, a few of them subnormal or zero.
                let size = match random.byte() {
                    0..8 => 0.0,
                    8..16 => 3e-7,
                    _ => 0.01,
                };
                let d = f16::from_f32(size * random.normal());
                block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
            }
            if kind == BlockType::MXFP4 {
                block[0] = 110 + block[0] % 20;
            }
            bytes.extend(block);
        }
        let mut case = Self { kind, bytes, dense: Vec::new(), rows, cols };
        case.decode();
        case
    }

    fn decode(&mut self) {
        let blocks = self.bytes.chunks(self.kind.block_bytes());
        self.dense = blocks.flat_map(|block| decode(self.kind, block)).collect();
    }

    fn rows(&self) -> BlockRows<'_> {
        BlockRows { kind: self.kind, bytes: &self.bytes, rows: self.rows, cols: self.cols }
    }

    fn product(&self, x: &[f32], t: usize) -> Vec<f64> {
        (0..t * self.rows)
            .map(|i| {
                let (token, r) = (i / self.rows, i % self.rows);
                let x = &x[token * self.cols..(token + 1) * self.cols];
                let w = &self.dense[r * self.cols..(r + 1) * self.cols];
                x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum()
            })
            .collect()
    }

    /// The size of an entry of the product, whatever cancels in it.
    fn size(&self, x: &[f32]) -> f64 {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let weights: f64 = self.dense.iter().map(|w| w * w).sum();
        (squares * weights / self.cols as f64).sqrt()
    }

    fn name(&self) -> String {
        format!("{:?} {}x{}", self.kind, self.rows, self.cols)
    }
}

const SHAPES: &[(usize, usize)] = &[(1, 1), (7, 3), (18, 8), (33, 9), (3, 21), (20, 37)];

#[test]
fn products_are_accurate_on_every_set() {
    for kind in BlockType::ALL {
        for &(rows, blocks) in SHAPES {
            let case = Case::new(kind, rows, blocks);
            for (mode, tolerance) in [(Activations::Int16, 1e-4), (Activations::Int8, 2e-2)] {
                for t in 1..=9 {
                    let x = Random(31).normals(t * case.cols);
                    let mut exact = case.product(&x, t);
                    exact.push(case.size(&x));
                    let mut portable = Vec::new();
                    for isa in Isa::available() {
                        let what = format!("{isa} {} t={t} {mode:?}", case.name());
                        let mut work = Work::on(isa, Par::Seq);
                        let mut y = vec![f32::NAN; t * rows];
                        let w = case.rows();
                        block_rows_matmul(&w, 0..rows, &x, t, &mut y, false, mode, &mut work);
                        y.push(exact[t * rows] as f32);
                        assert_close(&y, &exact, tolerance, &what);
                        // The integers are the same everywhere: only sums are rounded differently.
                        if isa == Isa::Generic {
                            portable = y.iter().map(|y| f64::from(*y)).collect();
                        }
                        assert_close(&y, &portable, 3e-6, &what);
                        y.pop();
                        in_pieces(rows, t, &y, &what, |some, y| {
                            block_rows_matmul(&w, some, &x, t, y, true, mode, &mut work);
                        });
                        // A few tokens are multiplied as each would be alone.
                        if t <= 4 {
                            let (mut last, one) = (vec![0.0; rows], &x[(t - 1) * case.cols..]);
                            let all = 0..rows;
                            block_rows_matmul(&w, all, one, 1, &mut last, false, mode, &mut work);
                            assert_same_bits(&last, &y[(t - 1) * rows..], &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn threads_and_additions_and_many_tokens_change_nothing() {
    for kind in BlockType::ALL {
        let case = Case::new(kind, 150, 11);
        let (w, mode) = (case.rows(), Activations::Int16);
        for t in [1, 5, 33, 70] {
            let x = Random(32).normals(t * case.cols);
            for isa in Isa::available() {
                let mut y = vec![0.0; t * 150];
                let mut work = Work::on(isa, Par::Seq);
                block_rows_matmul(&w, 0..150, &x, t, &mut y, false, mode, &mut work);
                let mut threads = vec![2.0; t * 150];
                let mut work = Work::on(isa, Par::Threads(3));
                block_rows_matmul(&w, 0..150, &x, t, &mut threads, false, mode, &mut work);
                assert_same_bits(&threads, &y, &format!("{isa} {} t={t}", case.name()));
                block_rows_matmul(&w, 0..150, &x, t, &mut threads, true, mode, &mut work);
                let twice: Vec<f32> = y.iter().map(|y| 2.0 * y).collect();
                assert_same_bits(&threads, &twice, &format!("{isa} {} t={t} added", case.name()));
                let mut exact = case.product(&x, t);
                exact.push(case.size(&x));
                y.push(exact[t * 150] as f32);
                assert_close(&y, &exact, 1e-4, &case.name());
            }
        }
    }
}

#[test]
fn codes_and_scales_at_their_ends() {
    for kind in BlockType::ALL {
        for (i, fill) in [0x00, 0xff, 0x0f, 0xf0, 0x80, 0x7f].into_iter().enumerate() {
            let mut case = Case::new(kind, 5, 16);
            for block in case.bytes.chunks_mut(kind.block_bytes()) {
                block.fill(fill);
                for at in halves(kind) {
                    block[*at..at + 2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
                }
                if kind == BlockType::MXFP4 {
                    // The smallest scales are subnormal.
                    block[0] = [0, 1, 2, 3, 127, 200][i];
                }
            }
            case.decode();
            // All activations at the end of their grid.
            for sign in [1.0, -1.0] {
                let x = vec![sign; 2 * case.cols];
                let exact = case.product(&x, 2);
                for isa in Isa::available() {
                    let mut y = vec![0.0; 10];
                    let (w, mut work) = (case.rows(), Work::on(isa, Par::Seq));
                    let mode = Activations::Int16;
                    block_rows_matmul(&w, 0..5, &x, 2, &mut y, false, mode, &mut work);
                    for (y, exact) in y.iter().zip(&exact) {
                        let size: f64 = case.dense[..case.cols].iter().map(|w| w.abs()).sum();
                        let error = (f64::from(*y) - exact).abs();
                        // A product of the smallest scales may lose its last bits.
                        assert!(error <= 1e-5 * size + 1e-36, "{isa} {kind:?} {fill}: {y} {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn scales_that_are_no_numbers_spoil_their_rows_alone() {
    for kind in BlockType::ALL.into_iter().filter(|kind| !halves(*kind).is_empty()) {
        for odd in [f16::INFINITY, f16::NEG_INFINITY, f16::NAN] {
            for at in halves(kind) {
                for block in [0, 1, 9] {
                    let mut case = Case::new(kind, 4, 10);
                    let from = (20 + block) * kind.block_bytes() + at;
                    case.bytes[from..from + 2].copy_from_slice(&odd.to_le_bytes());
                    let x = Random(33).normals(6 * case.cols);
                    for (isa, t) in
                        Isa::available().into_iter().flat_map(|i| [1, 3, 6].map(|t| (i, t)))
                    {
                        let mut y = vec![0.0; t * 4];
                        let (w, mut work) = (case.rows(), Work::on(isa, Par::Seq));
                        let (x, mode) = (&x[..t * case.cols], Activations::Int16);
                        block_rows_matmul(&w, 0..4, x, t, &mut y, false, mode, &mut work);
                        for (i, y) in y.iter().enumerate() {
                            assert_eq!(y.is_finite(), i % 4 != 2, "{isa} {kind:?} {odd} {at}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn odd_activations_spoil_their_tokens_alone() {
    for kind in BlockType::ALL {
        let case = Case::new(kind, 4, 10);
        for isa in Isa::available() {
            for odd in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1.0; 3 * case.cols];
                x[case.cols + 40 % case.cols] = odd;
                let mut y = vec![0.0; 12];
                let (w, mut work) = (case.rows(), Work::on(isa, Par::Seq));
                let mode = Activations::Int16;
                block_rows_matmul(&w, 0..4, &x, 3, &mut y, false, mode, &mut work);
                assert!(y[..4].iter().chain(&y[8..]).all(|y| y.is_finite()), "{isa} {kind:?}");
                assert!(y[4..8].iter().all(|y| y.is_nan()), "{isa} {kind:?}");
            }
        }
    }
}

#[test]
fn activations_serve_every_type() {
    let x = Random(34).normals(2 * 768);
    for isa in Isa::available() {
        let mut input = BlockActivations::default();
        input.prepare_on(isa, &x, 2, 768, Activations::Int16);
        for kind in BlockType::ALL {
            let case = Case::new(kind, 6, 768 / kind.block_len());
            let (w, mut work) = (case.rows(), Work::on(isa, Par::Seq));
            let (mut y, mut expected) = (vec![1.0; 12], vec![0.0; 12]);
            block_rows_matmul_input(&w, 0..6, &input, &mut y, false, &mut work);
            let mode = Activations::Int16;
            block_rows_matmul(&w, 0..6, &x, 2, &mut expected, false, mode, &mut work);
            assert_same_bits(&y, &expected, &case.name());
        }
    }
}

#[test]
fn empty_products() {
    let mut work = Work::default();
    let (mode, kind) = (Activations::Int16, BlockType::Q4_K);
    let w = BlockRows { kind, bytes: &[], rows: 3, cols: 0 };
    let mut y = [1.0; 3];
    block_rows_matmul(&w, 0..3, &[], 1, &mut y, true, mode, &mut work);
    assert_eq!(y, [1.0; 3]);
    block_rows_matmul(&w, 0..3, &[], 1, &mut y, false, mode, &mut work);
    assert_eq!(y, [0.0; 3]);
    let case = Case::new(kind, 2, 1);
    block_rows_matmul(&case.rows(), 1..1, &[0.0; 256], 1, &mut [], false, mode, &mut work);
    block_rows_matmul(&case.rows(), 0..2, &[], 0, &mut [], false, mode, &mut work);
}

#[test]
#[should_panic(expected = "size of the blocks")]
fn a_missing_byte_is_refused() {
    let w = BlockRows { kind: BlockType::Q8_0, bytes: &[0; 67], rows: 2, cols: 32 };
    let mode = Activations::Int16;
    block_rows_matmul(&w, 0..2, &[0.0; 32], 1, &mut [0.0; 2], false, mode, &mut Work::default());
}
