use super::*;
use crate::*;

/// Which weights share a table.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Own {
    All,
    Rows,
    Groups,
}

/// A matrix of codes into tables, and the same in f64.
struct Case {
    packed: Vec<u8>,
    scales: Vec<f32>,
    levels: Vec<f32>,
    tables: Vec<u32>,
    dense: Vec<f64>,
    bits: u32,
    rows: usize,
    cols: usize,
    group: usize,
}

impl Case {
    fn new(bits: u32, [rows, cols, group]: [usize; 3], own: Own, size: f32) -> Self {
        let mut random = Random(30);
        let (bytes, groups) = (packed_len(cols, bits), cols.div_ceil(group));
        let held = 1 + rows.min(5);
        let levels: Vec<f32> = (0..held << bits).map(|_| size * random.normal()).collect();
        let mut table = || u32::from(random.byte()) % held as u32;
        let tables: Vec<u32> = match own {
            Own::All => vec![table()],
            Own::Rows => (0..rows).map(|_| table()).collect(),
            Own::Groups => (0..rows * groups).map(|_| table()).collect(),
        };
        let scales: Vec<f32> =
            (0..rows * groups).map(|_| 0.01 * (1.0 + 0.3 * random.normal())).collect();
        let mut packed = vec![0; rows * bytes];
        let mut dense = vec![0.0; rows * cols];
        for r in 0..rows {
            let codes = random.codes(cols, bits);
            pack_bits(&codes, bits, &mut packed[r * bytes..(r + 1) * bytes]);
            for (j, code) in codes.iter().enumerate() {
                let g = r * groups + j / group;
                let table = match own {
                    Own::All => tables[0],
                    Own::Rows => tables[r],
                    Own::Groups => tables[g],
                };
                let level = levels[((table as usize) << bits) + usize::from(*code)];
                dense[r * cols + j] = f64::from(scales[g]) * f64::from(level);
            }
        }
        Self { packed, scales, levels, tables, dense, bits, rows, cols, group }
    }

    fn rows(&self) -> LevelRows<'_> {
        LevelRows {
            packed: &self.packed,
            bits: self.bits,
            rows: self.rows,
            cols: self.cols,
            group: self.group,
            scales: &self.scales,
            levels: &self.levels,
            tables: &self.tables,
        }
    }

    fn panels(&self) -> LevelPanels {
        LevelPanels::new(&self.rows(), Par::Seq).expect("supported")
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

    /// The norm that a product of this size has, which does not vanish where a short sum happens to.
    fn size(&self, x: &[f32]) -> f64 {
        let square = |v: f64| v * v;
        let of_x: f64 = x.iter().map(|&x| square(x.into())).sum();
        let of_w: f64 = self.dense.iter().map(|&w| square(w)).sum();
        (of_x * of_w / self.cols as f64).sqrt()
    }
}

const SHAPES: &[[usize; 3]] = &[
    [1, 20, 32],
    [16, 32, 32],
    [17, 33, 64],
    [15, 128, 128],
    [33, 300, 128],
    [5, 4096, 128],
    [20, 4200, 32],
    [3, 9000, 9000],
    [7, 12_320, 96],
    [2, 8300, 4128],
];

#[test]
fn products_are_accurate_and_the_same_everywhere() {
    for bits in [2, 3, 4] {
        for (i, &shape @ [rows, cols, group]) in SHAPES.iter().enumerate() {
            for (j, own) in [Own::All, Own::Rows, Own::Groups].into_iter().enumerate() {
                // All of them take minutes where the machine is emulated.
                if cfg!(target_arch = "aarch64") && (i + bits as usize) % 3 != j {
                    continue;
                }
                let case = Case::new(bits, shape, own, 1.0);
                let panels = case.panels();
                for (mode, tolerance) in [(Activations::Int16, 1e-4), (Activations::Int8, 2e-2)] {
                    for t in [1, 2, 3, 9] {
                        let what = format!("{bits} bits {shape:?} {own:?} {mode:?} t={t}");
                        let x = Random(31).normals(t * cols);
                        let mut portable = vec![f32::NAN; t * rows];
                        let mut work = Work::on(Isa::Generic, Par::Seq);
                        panels.matmul(0..rows, &x, t, &mut portable, false, mode, &mut work);
                        let mut exact = case.product(&x, t);
                        exact.push(case.size(&x));
                        portable.push(case.size(&x) as f32);
                        assert_close(&portable, &exact, tolerance, &what);
                        portable.pop();
                        for isa in Isa::available() {
                            let what = format!("{isa} {what}, groups of {group}");
                            let mut y = vec![0.0; t * rows];
                            let mut work = Work::on(isa, Par::Rayon);
                            panels.matmul(0..rows, &x, t, &mut y, true, mode, &mut work);
                            assert_same_bits(&y, &portable, &what);
                            in_pieces(rows, t, &y, &what, |some, y| {
                                panels.matmul(some, &x, t, y, true, mode, &mut work);
                            });
                        }
                    }
                }
            }
        }
    }
    println!("on {:?}", Isa::available());
}

/// Rows of small levels alone are as accurate as others that share their table.
#[test]
fn rows_have_steps_of_their_own() {
    let levels = [1e-6, -3e-6, 1.0, -1.0];
    let mut packed = vec![0b0001_0100; 20 * 16];
    packed[16..32].fill(0b1110_1011);
    let (rows, cols, scales) = (20, 64, &[0.5; 20][..]);
    let (bits, group, levels, tables) = (2, cols, &levels[..], &[0][..]);
    let w = LevelRows { packed: &packed, bits, rows, cols, group, scales, levels, tables };
    let panels = LevelPanels::new(&w, Par::Seq).expect("supported");
    let x = Random(33).normals(cols);
    for isa in Isa::available() {
        let (mut y, mut work) = (vec![0.0; rows], Work::on(isa, Par::Seq));
        panels.matmul(0..rows, &x, 1, &mut y, false, Activations::Int16, &mut work);
        for (r, y) in y.iter().enumerate() {
            let mut codes = vec![0; cols];
            unpack_bits(&packed[r * 16..(r + 1) * 16], bits, 0, &mut codes);
            let weights = codes.iter().map(|code| 0.5 * f64::from(levels[usize::from(*code)]));
            let exact: f64 = weights.clone().zip(&x).map(|(w, x)| w * f64::from(*x)).sum();
            let size = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
                * weights.map(|w| w * w).sum::<f64>();
            assert!((f64::from(*y) - exact).abs() <= 1e-4 * size.sqrt(), "{isa}, row {r}: {y}");
        }
    }
}

/// Beside a large level, a small one has the error of the large one; alone, its own.
#[test]
fn levels_are_off_by_a_share_of_the_largest_named() {
    let levels: Vec<f32> = (0..16).map(|i| 1.7f32.powi(-i)).collect();
    for code in 1..16 {
        for (other, largest) in [(0, 1.0), (code, levels[usize::from(code)])] {
            let w = LevelRows {
                packed: &[code | other << 4],
                bits: 4,
                rows: 1,
                cols: 2,
                group: 2,
                scales: &[1.0],
                levels: &levels,
                tables: &[0],
            };
            let panels = LevelPanels::new(&w, Par::Seq).expect("supported");
            let (mut y, mode) = ([0.0], Activations::Int16);
            panels.matmul(0..1, &[1.0, 0.0], 1, &mut y, false, mode, &mut Work::default());
            let error = (y[0] - levels[usize::from(code)]).abs();
            assert!(error <= 1.01 / 65_534.0 * largest, "{code} beside {other}: {error:e}");
        }
    }
}

#[test]
fn integers_do_not_overflow_at_the_limit() {
    let (cols, levels) = (65_536, [1.0, -1.0, 1.0, -1.0]);
    for (byte, weight) in [(0u8, 1.0), (0b0101_0101, -1.0)] {
        let w = LevelRows {
            packed: &vec![byte; cols / 4],
            bits: 2,
            rows: 1,
            cols,
            group: cols / 2,
            scales: &[1.0; 2],
            levels: &levels,
            tables: &[0],
        };
        let panels = LevelPanels::new(&w, Par::Seq).expect("supported");
        for isa in Isa::available() {
            for mode in [Activations::Int16, Activations::Int8] {
                let (mut y, mut work) = ([0.0], Work::on(isa, Par::Seq));
                panels.matmul(0..1, &vec![-1.0; cols], 1, &mut y, false, mode, &mut work);
                let relative = y[0] / (-weight * 65_536.0) - 1.0;
                assert!(relative.abs() < 1e-5, "{isa} {mode:?} {}", y[0]);
            }
        }
    }
}

#[test]
fn tables_of_any_size_are_as_accurate() {
    for size in [1e-30, 1e-6, 1e6, 1e30] {
        let case = Case::new(4, [17, 256, 64], Own::Rows, size);
        let x = Random(32).normals(256);
        let mut y = vec![0.0; 17];
        let mode = Activations::Int16;
        case.panels().matmul(0..17, &x, 1, &mut y, false, mode, &mut Work::default());
        assert_close(&y, &case.product(&x, 1), 1e-4, &format!("levels of {size:e}"));
    }
    for size in [0.0, 1e-36] {
        let (case, mut y) = (Case::new(4, [17, 256, 64], Own::Rows, size), vec![1.0; 17]);
        let mode = Activations::Int16;
        case.panels().matmul(0..17, &[1.0; 256], 1, &mut y, false, mode, &mut Work::default());
        assert_eq!(y, [0.0; 17], "levels of {size:e}");
    }
}

#[test]
fn odd_numbers_are_told_apart() {
    let mut case = Case::new(4, [20, 96, 32], Own::All, 1.0);
    let panels = case.panels();
    let mode = Activations::Int16;
    for isa in Isa::available() {
        let mut work = Work::on(isa, Par::Seq);
        for odd in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 3 * 96];
            x[96 + 40] = odd;
            let mut y = vec![0.0; 3 * 20];
            panels.matmul(0..20, &x, 3, &mut y, false, mode, &mut work);
            assert!(y[..20].iter().chain(&y[40..]).all(|y| y.is_finite()));
            assert!(y[20..40].iter().all(|y| y.is_nan()));
        }
        for tiny in [0.0, 1e-42, f32::MIN_POSITIVE] {
            let mut y = vec![1.0; 20];
            panels.matmul(0..20, &[tiny; 96], 1, &mut y, false, mode, &mut work);
            assert!(y.iter().all(|y| y.abs() < 1e-36));
        }
    }
    // A level that is no number spoils the rows of its table.
    case.levels[..16].fill(f32::NAN);
    case.tables = (0..20).map(|r| u32::from(r != 3)).collect();
    let mut y = vec![0.0; 20];
    case.panels().matmul(0..20, &[1.0; 96], 1, &mut y, false, mode, &mut Work::default());
    assert!(y.iter().enumerate().all(|(r, y)| y.is_nan() == (r == 3)), "{y:?}");
}

#[test]
fn sizes() {
    assert!(LevelPanels::supports(4, 4096, 128));
    assert!(LevelPanels::supports(3, 100, 100));
    assert!(LevelPanels::supports(2, 100_000, 100_000));
    for (bits, group) in [(1, 128), (5, 128), (4, 48), (4, 0), (4, 32_800)] {
        assert!(!LevelPanels::supports(bits, 65_536, group), "{bits} bits, groups of {group}");
    }
    let bytes = |own| Case::new(4, [32, 256, 128], own, 1.0).panels().bytes();
    let grids = 32 * 128 + 32 * 2 * 4;
    assert_eq!(bytes(Own::All), grids + 128);
    assert_eq!(bytes(Own::Rows), grids + 32 * 32);
    assert_eq!(bytes(Own::Groups), grids + 32 * 2 * 4 + 6 * 32);
    let mut work = Work::new(Par::Rayon);
    let panels = Case::new(4, [0, 256, 128], Own::All, 1.0).panels();
    panels.matmul(0..0, &[0.0; 256], 1, &mut [], false, Activations::Int16, &mut work);
    let (panels, mut y) = (Case::new(4, [3, 0, 128], Own::Rows, 1.0).panels(), [1.0; 3]);
    panels.matmul(0..3, &[], 1, &mut y, false, Activations::Int16, &mut work);
    assert_eq!(y, [0.0; 3]);
}
