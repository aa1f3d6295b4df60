use super::*;
use crate::trellis::{Code, encode_code};
use crate::*;

/// A matrix in tiles, and the same in f64 from their bits by the definition.
struct Case {
    tiles: Vec<u8>,
    scales: Vec<f32>,
    dense: Vec<f64>,
    bits: u32,
    rows: usize,
    cols: usize,
}

/// The value of weight `i` of a tile: bit by bit around the circle.
fn value(tile: &[u8], bits: usize, i: usize) -> f64 {
    let bit = |at: usize| u64::from(tile[at % (256 * bits) / 8] >> (at % 8) & 1);
    let state: u64 = (0..16).map(|b| bit(i * bits + b) << b).sum();
    let product = state * 0x83DC_D12D % (1 << 32);
    let sum: u64 = (0..4).map(|byte| product >> (8 * byte) & 0xFF).sum();
    sum as f64 - 510.0
}

impl Case {
    fn new(bits: u32, rows: usize, cols: usize, by_row: bool) -> Self {
        let mut random = Random(31);
        let (down, across) = (rows.div_ceil(16), cols.div_ceil(16));
        let size = 32 * bits as usize;
        let tiles: Vec<u8> = (0..down * across * size).map(|_| random.byte()).collect();
        let scales: Vec<f32> = (0..if by_row { rows } else { 1 })
            .map(|_| 0.02 * (1.0 + 0.3 * random.normal()))
            .collect();
        let dense = (0..rows * cols)
            .map(|i| {
                let (r, c) = (i / cols, i % cols);
                let tile = &tiles[(r / 16 * across + c / 16) * size..][..size];
                let scale = scales[if by_row { r } else { 0 }];
                f64::from(scale) / 147.7 * value(tile, bits as usize, r % 16 * 16 + c % 16)
            })
            .collect();
        Self { tiles, scales, dense, bits, rows, cols }
    }

    fn rows(&self) -> TrellisRows<'_> {
        let Self { tiles, scales, bits, rows, cols, .. } = self;
        TrellisRows { tiles, bits: *bits, rows: *rows, cols: *cols, scales }
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

    fn name(&self) -> String {
        format!("{} bits {}x{}", self.bits, self.rows, self.cols)
    }
}

const SHAPES: &[(usize, usize)] =
    &[(1, 1), (16, 16), (15, 31), (17, 33), (5, 256), (33, 257), (16, 300), (40, 1100), (100, 48)];

#[test]
fn products_are_accurate_and_the_same_everywhere() {
    for bits in 1..=8 {
        for (i, &(rows, cols)) in SHAPES.iter().enumerate() {
            let case = Case::new(bits, rows, cols, i % 2 == 0);
            for t in [1, 2, 5, 66] {
                let x = Random(32).normals(t * cols);
                let mut portable = vec![f32::NAN; t * rows];
                let mut work = Work::on(Isa::Generic, Par::Seq);
                trellis_matmul(&case.rows(), 0..rows, &x, t, &mut portable, false, &mut work);
                // Against a norm that does not vanish where a short sum happens to.
                let mut exact = case.product(&x, t);
                let size: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>()
                    * case.dense.iter().map(|w| w * w).sum::<f64>()
                    / cols as f64;
                exact.push(size.sqrt());
                portable.push(size.sqrt() as f32);
                assert_close(&portable, &exact, 1e-4, &case.name());
                portable.pop();
                for isa in Isa::available() {
                    let what = format!("{isa} {} t={t}", case.name());
                    let mut y = vec![0.0; t * rows];
                    let mut work = Work::on(isa, Par::Rayon);
                    trellis_matmul(&case.rows(), 0..rows, &x, t, &mut y, true, &mut work);
                    assert_same_bits(&y, &portable, &what);
                    in_pieces(rows, t, &y, &what, |some, y| {
                        trellis_matmul(&case.rows(), some, &x, t, y, true, &mut work);
                    });
                }
                let mut last = vec![0.0; rows];
                let one = &x[(t - 1) * cols..];
                trellis_matmul(&case.rows(), 0..rows, one, 1, &mut last, false, &mut work);
                assert_same_bits(&last, &portable[(t - 1) * rows..], "one token alone");
            }
        }
    }
    println!("on {:?}", Isa::available());
}

#[test]
fn parts_decode_by_the_definition() {
    on_every_isa(|isa| {
        for bits in 1..=8 {
            for (i, &(rows, cols)) in SHAPES.iter().enumerate() {
                let case = Case::new(bits, rows, cols, i % 2 == 1);
                let w = case.rows();
                let mut all = vec![f32::NAN; rows * cols];
                trellis_part_on(isa, &w, 0..rows, 0..cols, &mut all);
                for (i, (w, exact)) in all.iter().zip(&case.dense).enumerate() {
                    let error = (f64::from(*w) - exact).abs();
                    assert!(error <= 3e-7 * exact.abs(), "{isa} {} {i}: {w}", case.name());
                }
                let some = [rows / 3..rows, rows - 1..rows, 0..rows / 2, 0..rows];
                let columns = [cols / 2..cols, 0..cols / 3 + 1, cols - 1..cols, 0..0];
                for (rows, columns) in some.into_iter().zip(columns) {
                    let mut part = vec![f32::NAN; rows.len() * columns.len()];
                    trellis_part_on(isa, &w, rows.clone(), columns.clone(), &mut part);
                    for (i, got) in part.iter().enumerate() {
                        let (r, c) = (i / columns.len(), i % columns.len());
                        let whole = all[(rows.start + r) * cols + columns.start + c];
                        assert_eq!(*got, whole, "{isa} {}: {rows:?} {columns:?}", case.name());
                    }
                }
            }
        }
    });
}

#[test]
fn values_are_those_of_the_states() {
    for bits in 1..=8u32 {
        let mut random = Random(33);
        let codes = random.codes(256, bits);
        let mut tile = vec![0; 32 * bits as usize];
        pack_bits(&codes, bits, &mut tile);
        let mut values = [0; 256];
        trellis_values(&codes, bits, &mut values);
        for (i, v) in values.iter().enumerate() {
            assert_eq!(f64::from(*v), value(&tile, bits as usize, i), "{bits} bits, weight {i}");
        }
    }
}

#[test]
fn integers_do_not_overflow_at_the_limit() {
    // A circle of one state: that of the largest value, which all of its rotations by 8 bits must be too.
    let state = (0..=255u16).map(|b| b << 8 | b).max_by_key(|s| trellis_value(*s).abs()).unwrap();
    let cols = 4096;
    let tiles = vec![state as u8; 256 * (cols / 16)];
    let w = TrellisRows { tiles: &tiles, bits: 8, rows: 3, cols, scales: &[147.7] };
    for isa in Isa::available() {
        for sign in [1.0, -1.0] {
            let mut y = [0.0; 3];
            let x = vec![sign; cols];
            trellis_matmul(&w, 0..3, &x, 1, &mut y, false, &mut Work::on(isa, Par::Seq));
            let exact = sign * cols as f32 * trellis_value(state) as f32;
            assert!(y.iter().all(|y| (y / exact - 1.0).abs() < 1e-5), "{isa} {y:?} {exact}");
        }
    }
}

#[test]
fn odd_activations_are_told_apart() {
    let case = Case::new(3, 20, 300, true);
    for isa in Isa::available() {
        let mut work = Work::on(isa, Par::Seq);
        for odd in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 3 * 300];
            x[300 + 270] = odd;
            let mut y = vec![0.0; 3 * 20];
            trellis_matmul(&case.rows(), 0..20, &x, 3, &mut y, false, &mut work);
            assert!(y[..20].iter().chain(&y[40..]).all(|y| y.is_finite()));
            assert!(y[20..40].iter().all(|y| y.is_nan()));
            let mut y = vec![0.0; 20];
            trellis_matmul(&case.rows(), 0..20, &x[300..600], 1, &mut y, false, &mut work);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }
    let mut y = [1.0; 3];
    let none = TrellisRows { tiles: &[], bits: 2, rows: 3, cols: 0, scales: &[1.0; 3] };
    trellis_matmul(&none, 0..3, &[], 1, &mut y, false, &mut Work::default());
    assert_eq!(y, [0.0; 3]);
}

/// The squared error of codes around a circle of states of `state` bits, in units.
fn error(codes: &[u8], state: u32, bits: u32, targets: &[f32]) -> f64 {
    let (n, k) = (codes.len(), bits as usize);
    let bit = |at: usize| u32::from(codes[at / k % n] >> (at % k) & 1);
    let errors = targets.iter().enumerate().map(|(i, t)| {
        let s: u32 = (0..state as usize).map(|b| bit(i * k + b) << b).sum();
        (f64::from(trellis_value(s as u16)) - f64::from(*t)).powi(2)
    });
    errors.sum()
}

/// The lowest bits of the first state, which are the highest ones of the last.
fn rest(codes: &[u8], state: u32, bits: u32) -> usize {
    let at = |b: usize| codes[b / bits as usize] >> (b % bits as usize) & 1;
    (0..(state - bits) as usize).map(|b| usize::from(at(b)) << b).sum()
}

/// All circles of a few short codes: the search finds the best among those that close where it closes them, and often the best
/// of all, though it closes circles this short by a guess that sees a few codes.
#[test]
#[cfg_attr(target_arch = "aarch64", ignore = "takes minutes where it is emulated")]
fn no_path_is_better_where_all_can_be_tried() {
    let mut found = 0;
    let cases = [(4, 1, 12), (4, 2, 6), (6, 3, 4), (5, 2, 7), (8, 4, 3), (8, 2, 6), (7, 1, 12)];
    for (state, bits, len) in cases {
        let code = Code::new(state, bits);
        for seed in 0..8 {
            let targets: Vec<f32> =
                Random(40 + seed).normals(len).iter().map(|v| v.round() * 130.0).collect();
            let mut codes = vec![0; len];
            encode_code(Isa::Generic, &code, len, &targets, &mut codes, Par::Seq);
            let got = error(&codes, state, bits, &targets);
            let (mut best, mut closing) = (f64::MAX, f64::MAX);
            for stream in 0u64..1 << (len as u32 * bits) {
                let try_it: Vec<u8> = (0..len)
                    .map(|i| (stream >> (i as u32 * bits)) as u8 & ((1 << bits) - 1))
                    .collect();
                let error = error(&try_it, state, bits, &targets);
                best = best.min(error);
                if rest(&try_it, state, bits) == rest(&codes, state, bits) {
                    closing = closing.min(error);
                }
            }
            assert!((got - closing).abs() < 1e-6 * closing, "{state} {bits}: {got} {closing}");
            found += usize::from(got <= best * (1.0 + 1e-9));
        }
    }
    println!("the best of all in {found} of 56");
    assert!(found >= 25, "{found}");
}

/// Viterbi's algorithm by its definition, forwards in f64: the least error for each way to close the circle.
fn reference(state: u32, bits: u32, targets: &[f32]) -> Vec<f64> {
    let (all, rests) = (1usize << state, 1usize << (state - bits));
    let closed = (0..rests).map(|close| {
        // The first state has these lowest bits; the last one has them as its highest.
        let mut cost = vec![f64::MAX; all];
        let distance =
            |s: usize, t: f32| (f64::from(trellis_value(s as u16)) - f64::from(t)).powi(2);
        for (s, cost) in cost.iter_mut().enumerate() {
            if s % rests == close {
                *cost = distance(s, targets[0]);
            }
        }
        for t in &targets[1..] {
            let mut next = vec![f64::MAX; all];
            for (s, cost) in cost.iter().enumerate() {
                for new in 0..1usize << bits {
                    let to = s >> bits | new << (state - bits);
                    next[to] = next[to].min(cost + distance(to, *t));
                }
            }
            cost = next;
        }
        let ends = (0..all).filter(|s| s >> bits == close).map(|s| cost[s]);
        ends.fold(f64::MAX, f64::min)
    });
    closed.collect()
}

#[test]
#[cfg_attr(target_arch = "aarch64", ignore = "takes minutes where it is emulated")]
fn paths_are_those_of_a_slow_search() {
    for (state, bits, len) in [(8, 1, 40), (8, 2, 40), (9, 3, 33), (8, 4, 24), (10, 5, 20)] {
        let code = Code::new(state, bits);
        let (mut ours, mut theirs) = (0.0, 0.0);
        for seed in 0..4 {
            let targets: Vec<f32> =
                Random(50 + seed).normals(len).iter().map(|v| (v * 140.0).round()).collect();
            // Within what states reach: the search cuts off what is not.
            let targets: Vec<f32> = targets.iter().map(|t| t.clamp(-500.0, 500.0)).collect();
            let mut codes = vec![0; len];
            encode_code(Isa::Generic, &code, len, &targets, &mut codes, Par::Seq);
            let got = error(&codes, state, bits, &targets);
            let all = reference(state, bits, &targets);
            let best = all[rest(&codes, state, bits)];
            assert!((got - best).abs() <= 1e-9 * best, "{bits} bits: {got}, the best is {best}");
            (ours, theirs) = (ours + got, theirs + all.into_iter().fold(f64::MAX, f64::min));
        }
        println!("{bits} bits of {state}: {ours} against {theirs}");
        // Circles this short are closed by a guess that sees half of them.
        assert!(ours <= 1.1 * theirs, "{bits} bits of {state}: {ours} against {theirs}");
    }
}

/// The rate-distortion function of a normal source is 0.25, 0.0625, 0.0156, 0.0039; QTIP (table 1) has 0.069 for its computed
/// codes at 2 bits.
#[test]
#[cfg_attr(target_arch = "aarch64", ignore = "takes minutes where it is emulated")]
fn distortion_of_normal_numbers() {
    let x = Random(60).normals(8 * 256);
    for (bits, bar) in (1u32..).zip([0.285, 0.0725, 0.0186, 0.0049]) {
        // What paths are drawn from is as large as what is to be reached, less the error.
        let gain = (1.0 - 0.25f32.powi(bits as i32)).sqrt() / 147.7;
        let targets: Vec<f32> = x.iter().map(|x| x / gain).collect();
        let mut codes = vec![0; targets.len()];
        trellis_encode(bits, &targets, &mut codes, Par::Rayon);
        let mut values = [0; 256];
        let mut error = 0.0;
        for (codes, x) in codes.chunks(256).zip(x.chunks(256)) {
            trellis_values(codes, bits, &mut values);
            let errors = x.iter().zip(&values).map(|(x, v)| (x - f32::from(*v) * gain).powi(2));
            error += errors.sum::<f32>();
        }
        let energy: f32 = x.iter().map(|x| x * x).sum();
        println!("{bits} bits: {} of the energy", error / energy);
        assert!(error / energy < bar, "{bits} bits: {}", error / energy);
    }
}

#[test]
#[cfg_attr(target_arch = "aarch64", ignore = "takes minutes where it is emulated")]
fn paths_are_the_same_everywhere() {
    for bits in [1, 2, 3, 4, 6, 8] {
        let targets: Vec<f32> = Random(61).normals(3 * 256).iter().map(|x| x * 150.0).collect();
        let mut codes = vec![0; targets.len()];
        trellis_encode_on(Isa::Generic, bits, &targets, &mut codes, Par::Seq);
        assert!(codes.iter().all(|code| u32::from(*code) < 1 << bits));
        on_every_isa(|isa| {
            let mut others = vec![0; targets.len()];
            trellis_encode_on(isa, bits, &targets, &mut others, Par::Threads(2));
            assert_eq!(others, codes, "{isa}, {bits} bits");
        });
        // No tile depends on those beside it.
        let mut one = vec![0; 256];
        trellis_encode(bits, &targets[256..512], &mut one, Par::Seq);
        assert_eq!(one, codes[256..512], "{bits} bits, alone");
    }
}

#[test]
fn any_target_has_a_path() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, f32::MIN_POSITIVE];
    for bits in [1, 3, 6, 8] {
        let targets: Vec<f32> = odd.iter().copied().cycle().take(256).collect();
        let mut codes = vec![255; 256];
        trellis_encode(bits, &targets, &mut codes, Par::Seq);
        assert!(codes.iter().all(|code| u32::from(*code) < 1 << bits));
    }
    trellis_encode(2, &[], &mut [], Par::Rayon);
}
