use super::*;
use crate::*;

/// A matrix on a grid, and the same in f64.
struct Case {
    packed: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    dense: Vec<f64>,
    bits: u32,
    rows: usize,
    cols: usize,
    group: usize,
}

impl Case {
    fn new(bits: u32, rows: usize, cols: usize, group: usize, half: bool) -> Self {
        let mut random = Random(20);
        let (bytes, groups) = (packed_len(cols, bits), cols.div_ceil(group));
        let mut packed = vec![0; rows * bytes];
        let round = |v: f32| if half { half::f16::from_f32(v).to_f32() } else { v };
        let scales: Vec<f32> =
            (0..rows * groups).map(|_| round(0.01 * (1.0 + 0.3 * random.normal()))).collect();
        let zeros: Vec<f32> = (0..rows * groups)
            .map(|_| f32::from(random.byte() >> (8 - bits)) + if half { 0.0 } else { 0.1 })
            .collect();
        let mut dense = vec![0.0; rows * cols];
        for r in 0..rows {
            let codes = random.codes(cols, bits);
            pack_bits(&codes, bits, &mut packed[r * bytes..(r + 1) * bytes]);
            for j in 0..cols {
                let g = r * groups + j / group;
                dense[r * cols + j] =
                    f64::from(scales[g]) * (f64::from(codes[j]) - f64::from(zeros[g]));
            }
        }
        Self { packed, scales, zeros, dense, bits, rows, cols, group }
    }

    fn rows(&self) -> AffineRows<'_> {
        AffineRows {
            packed: &self.packed,
            bits: self.bits,
            rows: self.rows,
            cols: self.cols,
            group: self.group,
            scales: &self.scales,
            zeros: &self.zeros,
        }
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
        format!("{} bits {}x{} in groups of {}", self.bits, self.rows, self.cols, self.group)
    }
}

const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 32),
    (16, 32, 32),
    (17, 33, 64),
    (15, 128, 128),
    (48, 256, 128),
    (33, 300, 128),
    (5, 4096, 128),
    (20, 4200, 32),
    (3, 9000, 9000),
    (7, 12_320, 96),
    (2, 8300, 4128),
];

#[test]
fn products_are_accurate_and_the_same_everywhere() {
    for bits in [1, 2, 3, 4, 8] {
        for (i, &(rows, cols, group)) in SHAPES.iter().enumerate() {
            for half in [true, false] {
                // All of them take minutes where the machine is emulated.
                if cfg!(target_arch = "aarch64") && half == (i + bits as usize).is_multiple_of(2) {
                    continue;
                }
                let case = Case::new(bits, rows, cols, group, half);
                let panels =
                    AffinePanels::new(&case.rows(), if half { Par::Threads(3) } else { Par::Seq })
                        .expect("supported");
                for (mode, tolerance) in [(Activations::Int16, 1e-4), (Activations::Int8, 2e-2)] {
                    for t in [1, 2, 3, 4, 7, 9] {
                        let x = Random(21).normals(t * cols);
                        let mut portable = vec![f32::NAN; t * rows];
                        let mut work = Work::on(Isa::Generic, Par::Seq);
                        panels.matmul(0..rows, &x, t, &mut portable, false, mode, &mut work);
                        // Against a norm that does not vanish where a short sum happens to.
                        let mut exact = case.product(&x, t);
                        let size: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>()
                            * case.dense.iter().map(|w| w * w).sum::<f64>()
                            / cols as f64;
                        exact.push(size.sqrt());
                        portable.push(size.sqrt() as f32);
                        assert_close(&portable, &exact, tolerance, &case.name());
                        portable.pop();
                        for isa in Isa::available() {
                            let what = format!("{isa} {} t={t}", case.name());
                            let mut y = vec![0.0; t * rows];
                            let mut work = Work::on(isa, Par::Rayon);
                            panels.matmul(0..rows, &x, t, &mut y, true, mode, &mut work);
                            assert_same_bits(&y, &portable, &what);
                            in_pieces(rows, t, &y, &what, |some, y| {
                                panels.matmul(some, &x, t, y, true, mode, &mut work);
                            });
                        }
                        // A token's product does not depend on those beside it.
                        let mut last = vec![0.0; rows];
                        let one = &x[(t - 1) * cols..];
                        panels.matmul(0..rows, one, 1, &mut last, false, mode, &mut work);
                        assert_same_bits(&last, &portable[(t - 1) * rows..], "one token alone");
                    }
                }
            }
        }
    }
    println!("on {:?}", Isa::available());
}

#[test]
fn many_tokens_are_cut_where_tiles_end() {
    let case = Case::new(4, 17, 32, 32, true);
    let panels = AffinePanels::new(&case.rows(), Par::Seq).expect("supported");
    let mut work = Work::default();
    let x = Random(24).normals(2100 * 32);
    let mut all = vec![0.0; 2100 * 17];
    for (x, y) in x.chunks(32).zip(all.chunks_mut(17)) {
        panels.matmul(0..17, x, 1, y, false, Activations::Int16, &mut work);
    }
    for t in (1..200).chain([1217, 1985, 1986, 2047, 2048, 2100]) {
        let (x, mut y) = (&x[..t * 32], vec![f32::NAN; t * 17]);
        panels.matmul(0..17, x, t, &mut y, false, Activations::Int16, &mut work);
        assert_same_bits(&y, &all[..t * 17], &format!("{t} tokens"));
    }
}

#[test]
fn products_by_panel_are_the_same() {
    for (rows, t) in [(1, 1), (16, 3), (17, 9), (40, 4), (33, 0), (0, 2)] {
        let case = Case::new(8, rows, 100, 100, false);
        let panels = AffinePanels::new(&case.rows(), Par::Seq).expect("supported");
        let x = Random(23).normals(t * 100);
        let input = PanelInput::new(&x, t, 100, panels.input_form(), Activations::Int8);
        let mut y = vec![0.0; t * rows];
        panels.matmul_input(0..rows, &input, &mut y, false, &mut Work::default());
        let mut products = vec![[f32::NAN; AffinePanels::ROWS]; rows.div_ceil(16) * t];
        panels.products_by_panel(&input, &mut products);
        for (i, products) in products.iter().enumerate() {
            let (panel, token) = (i / t, i % t);
            for (r, product) in products.iter().enumerate() {
                let row = 16 * panel + r;
                let expected = if row < rows { y[token * rows + row] } else { 0.0 };
                assert_eq!(*product, expected, "{rows} rows, {t} tokens: {token}, {row}");
            }
        }
    }
}

#[test]
fn outliers_do_not_spoil_the_product() {
    for bits in [1, 2, 3, 4, 8] {
        let case = Case::new(bits, 64, 1024, 128, true);
        let panels = AffinePanels::new(&case.rows(), Par::Seq).expect("supported");
        let mut x = Random(22).normals(1024);
        for (i, x) in x.iter_mut().enumerate() {
            // A few channels a hundred to a thousand times the others, as in language models.
            *x *= if i % 97 == 5 { 100.0 + i as f32 } else { 1.0 };
        }
        let mut y = vec![0.0; 64];
        panels.matmul(0..64, &x, 1, &mut y, false, Activations::Int16, &mut Work::default());
        assert_close(&y, &case.product(&x, 1), 1e-4, &case.name());
    }
}

#[test]
fn integers_do_not_overflow_at_the_limit() {
    let (bits, cols) = (8, 65_536);
    let packed = vec![255; cols];
    let w = AffineRows {
        packed: &packed,
        bits,
        rows: 1,
        cols,
        group: cols,
        scales: &[1.0],
        zeros: &[0.0],
    };
    let panels = AffinePanels::new(&w, Par::Seq).expect("supported");
    for isa in Isa::available() {
        for sign in [1.0, -1.0] {
            let mut y = [0.0];
            let mut work = Work::on(isa, Par::Seq);
            let x = vec![sign; cols];
            panels.matmul(0..1, &x, 1, &mut y, false, Activations::Int16, &mut work);
            assert!((y[0] / (sign * 255.0 * 65_536.0) - 1.0).abs() < 1e-6, "{isa} {}", y[0]);
        }
    }
}

#[test]
fn odd_activations_are_told_apart() {
    let case = Case::new(4, 20, 96, 32, true);
    let panels = AffinePanels::new(&case.rows(), Par::Seq).expect("supported");
    for isa in Isa::available() {
        let mut work = Work::on(isa, Par::Seq);
        for odd in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 3 * 96];
            x[96 + 40] = odd;
            let mut y = vec![0.0; 3 * 20];
            panels.matmul(0..20, &x, 3, &mut y, false, Activations::Int16, &mut work);
            assert!(y[..20].iter().chain(&y[40..]).all(|y| y.is_finite()));
            assert!(y[20..40].iter().all(|y| y.is_nan()));
        }
        for tiny in [0.0, 1e-42, f32::MIN_POSITIVE] {
            let mut y = vec![1.0; 20];
            panels.matmul(0..20, &[tiny; 96], 1, &mut y, false, Activations::Int16, &mut work);
            assert!(y.iter().all(|y| y.abs() < 1e-36));
        }
    }
}

#[test]
fn sizes() {
    assert!(AffinePanels::supports(4, 4096, 128));
    assert!(AffinePanels::supports(3, 100, 100));
    assert!(!AffinePanels::supports(5, 4096, 128));
    assert!(!AffinePanels::supports(4, 4096, 48));
    assert!(!AffinePanels::supports(4, 4096, 0));
    let case = Case::new(4, 32, 256, 128, true);
    let panels = AffinePanels::new(&case.rows(), Par::Seq).expect("supported");
    assert_eq!(panels.bytes(), 32 * 128 + 32 * 2 * 4);
    let empty = Case::new(4, 0, 256, 128, true);
    let panels = AffinePanels::new(&empty.rows(), Par::Seq).expect("supported");
    let mut work = Work::new(Par::Rayon);
    panels.matmul(0..0, &[0.0; 256], 1, &mut [], false, Activations::Int16, &mut work);
    let empty = Case::new(4, 3, 0, 128, true);
    let panels = AffinePanels::new(&empty.rows(), Par::Seq).expect("supported");
    let mut y = [1.0; 3];
    panels.matmul(0..3, &[], 1, &mut y, false, Activations::Int16, &mut work);
    assert_eq!(y, [0.0; 3]);
}
