use super::*;
use crate::*;

/// A matrix of codes into codebooks, and the same in f64.
struct Case {
    codes: Vec<u8>,
    codebooks: Vec<f32>,
    scales: Vec<f32>,
    dense: Vec<f64>,
    rows: usize,
    cols: usize,
    size: usize,
    books: usize,
    entries: usize,
}

impl Case {
    fn new([rows, cols]: [usize; 2], [size, books, entries]: [usize; 3], by: f32) -> Self {
        let mut random = Random(40);
        let width = cols.div_ceil(size) * books;
        let mut code = |_| (usize::from(random.byte()) % entries) as u8;
        let codes: Vec<u8> = (0..rows * width).map(&mut code).collect();
        let codebooks: Vec<f32> =
            (0..books * entries * size).map(|_| by * random.normal()).collect();
        let scales: Vec<f32> = (0..rows).map(|_| 0.5 + random.unit() as f32).collect();
        let weight = |i: usize| {
            let (r, c) = (i / cols, i % cols);
            let codes = &codes[r * width + c / size * books..][..books];
            let entry = |(book, code): (usize, &u8)| {
                f64::from(codebooks[(book * entries + usize::from(*code)) * size + c % size])
            };
            f64::from(scales[r]) * codes.iter().enumerate().map(entry).sum::<f64>()
        };
        let dense = (0..rows * cols).map(weight).collect();
        Self { codes, codebooks, scales, dense, rows, cols, size, books, entries }
    }

    fn rows(&self) -> CodebookRows<'_> {
        CodebookRows {
            codes: &self.codes,
            rows: self.rows,
            cols: self.cols,
            size: self.size,
            books: self.books,
            entries: self.entries,
            codebooks: &self.codebooks,
            scales: &self.scales,
        }
    }

    fn panels(&self) -> CodebookPanels {
        CodebookPanels::new(&self.rows(), Par::Seq).expect("supported")
    }

    fn product(&self, x: &[f32], t: usize) -> Vec<f64> {
        let product = |i: usize| {
            let (token, r) = (i / self.rows, i % self.rows);
            let x = &x[token * self.cols..(token + 1) * self.cols];
            let w = &self.dense[r * self.cols..(r + 1) * self.cols];
            x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum()
        };
        (0..t * self.rows).map(product).collect()
    }

    /// The norm that a product of this size has, which does not vanish where a short sum happens to.
    fn size(&self, x: &[f32]) -> f64 {
        let square = |v: f64| v * v;
        let of_x: f64 = x.iter().map(|&x| square(x.into())).sum();
        let of_w: f64 = self.dense.iter().map(|&w| square(w)).sum();
        (of_x * of_w / self.cols as f64).sqrt()
    }
}

const SHAPES: &[[usize; 2]] =
    &[[1, 1], [3, 7], [64, 64], [65, 100], [130, 515], [5, 4096], [257, 600], [8300, 40]];

const FORMATS: &[[usize; 3]] = &[
    [8, 2, 256],
    [8, 1, 256],
    [1, 1, 2],
    [3, 3, 100],
    [4, 4, 128],
    [5, 2, 129],
    [64, 3, 17],
    [16, 1, 1],
];

#[test]
fn products_are_accurate_and_the_same_everywhere() {
    for (i, &shape @ [rows, cols]) in SHAPES.iter().enumerate() {
        for (j, &format) in FORMATS.iter().enumerate() {
            // All of them take minutes where the machine is emulated.
            if cfg!(target_arch = "aarch64") && i % FORMATS.len() != j {
                continue;
            }
            let case = Case::new(shape, format, 1.0);
            let panels = case.panels();
            for t in [1, 2, 5] {
                let what = format!("{shape:?} {format:?} t={t}");
                let x = Random(41).normals(t * cols);
                let mut portable = vec![f32::NAN; t * rows];
                let mut work = Work::on(Isa::Generic, Par::Seq);
                panels.matmul(0..rows, &x, t, &mut portable, false, &mut work);
                let mut exact = case.product(&x, t);
                exact.push(case.size(&x));
                portable.push(case.size(&x) as f32);
                assert_close(&portable, &exact, 1e-4, &what);
                portable.pop();
                for isa in Isa::available() {
                    for par in [Par::Seq, Par::Threads(3)] {
                        let what = format!("{isa} {par:?} {what}");
                        let mut y = vec![0.0; t * rows];
                        let mut work = Work::on(isa, par);
                        panels.matmul(0..rows, &x, t, &mut y, true, &mut work);
                        assert_same_bits(&y, &portable, &what);
                        in_pieces(rows, t, &y, &what, |some, y| {
                            panels.matmul(some, &x, t, y, true, &mut work);
                        });
                    }
                }
            }
        }
    }
    println!("on {:?}", Isa::available());
}

/// A thousandfold activation costs accuracy among the codes of its block alone.
#[test]
fn outliers_stay_where_they_are() {
    let case = Case::new([100, 8192], [8, 2, 256], 1.0);
    let mut x = Random(42).normals(8192);
    let panels = case.panels();
    let mut y = [vec![0.0; 100], vec![0.0; 100]];
    let mut work = Work::default();
    panels.matmul(0..100, &x, 1, &mut y[0], false, &mut work);
    let exact = case.product(&x, 1);
    x[5000] = 1000.0;
    panels.matmul(0..100, &x, 1, &mut y[1], false, &mut work);
    let without = |y: &[f32]| -> Vec<f32> {
        let column = case.dense.iter().skip(5000).step_by(8192);
        y.iter().zip(column).map(|(y, w)| (f64::from(*y) - 1000.0 * w) as f32).collect()
    };
    x[5000] = 0.0;
    assert_close(&y[0], &exact, 1e-4, "without");
    assert_close(&without(&y[1]), &case.product(&x, 1), 2e-3, "with an outlier");
}

#[test]
fn codebooks_of_any_size_are_as_accurate() {
    let (shape @ [rows, cols], format) = ([70, 300], [8, 2, 256]);
    let x = Random(43).normals(cols);
    for by in [1e-30, 1e-6, 1e6, 1e30] {
        let (case, mut y) = (Case::new(shape, format, by), vec![0.0; rows]);
        case.panels().matmul(0..rows, &x, 1, &mut y, false, &mut Work::default());
        assert_close(&y, &case.product(&x, 1), 1e-4, &format!("codebooks of {by:e}"));
    }
    for by in [0.0, 1e-37] {
        let (case, mut y) = (Case::new(shape, format, by), vec![1.0; rows]);
        case.panels().matmul(0..rows, &x, 1, &mut y, false, &mut Work::default());
        assert_eq!(y, vec![0.0; rows], "codebooks of {by:e}");
    }
}

#[test]
fn odd_numbers_are_told_apart() {
    let mut case = Case::new([70, 600], [8, 2, 200], 1.0);
    // What no code names does not count.
    case.codes.iter_mut().for_each(|code| *code = (*code).min(198));
    case.codebooks[199 * 8..200 * 8].fill(f32::NAN);
    let panels = case.panels();
    for isa in Isa::available() {
        let mut work = Work::on(isa, Par::Seq);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 3 * 600];
            x[600 + 400] = odd;
            let mut y = vec![0.0; 3 * 70];
            panels.matmul(0..70, &x, 3, &mut y, false, &mut work);
            assert!(y[..70].iter().chain(&y[140..]).all(|y| y.is_finite()));
            assert!(y[70..140].iter().all(|y| y.is_nan()));
        }
        for tiny in [0.0, 1e-42, f32::MIN_POSITIVE] {
            let mut y = vec![1.0; 70];
            panels.matmul(0..70, &[tiny; 600], 1, &mut y, false, &mut work);
            assert!(y.iter().all(|y| y.abs() < 1e-33), "{isa} {tiny:e}");
        }
        let mut y = vec![0.0; 70];
        panels.matmul(0..70, &[f32::MAX; 600], 1, &mut y, false, &mut work);
    }
    // Scales of rows are their own.
    for (scale, fits) in [
        (0.0, (|y| y == 0.0) as fn(f32) -> bool),
        (f32::NAN, f32::is_nan),
        (f32::MAX, |y| y.abs() > 1e30),
    ] {
        case.scales[65] = scale;
        let mut y = vec![0.0; 70];
        case.panels().matmul(0..70, &[1.0; 600], 1, &mut y, false, &mut Work::default());
        assert!(fits(y[65]), "{scale}: {}", y[65]);
        assert!(y[..65].iter().chain(&y[66..]).all(|y| y.is_finite()));
    }
}

#[test]
fn integers_do_not_overflow() {
    let (rows, cols, books) = (64, 64, 64);
    for sign in [1.0, -1.0] {
        let case = CodebookRows {
            codes: &vec![255; rows * cols * books],
            rows,
            cols,
            size: 1,
            books,
            entries: 256,
            codebooks: &vec![sign; books * 256],
            scales: &vec![1.0; rows],
        };
        let panels = CodebookPanels::new(&case, Par::Seq).expect("supported");
        for isa in Isa::available() {
            let (mut y, mut work) = (vec![0.0; rows], Work::on(isa, Par::Seq));
            panels.matmul(0..rows, &vec![1.0; cols], 1, &mut y, false, &mut work);
            let near = |y: &f32| (y * sign / 4096.0 - 1.0).abs() < 1e-6;
            assert!(y.iter().all(near), "{isa} {y:?}");
        }
    }
}

#[test]
fn sizes() {
    assert!(CodebookPanels::supports(8, 2, 256));
    for (size, books, entries) in
        [(0, 1, 2), (65, 1, 2), (8, 0, 2), (8, 65, 2), (8, 1, 0), (8, 1, 257)]
    {
        assert!(!CodebookPanels::supports(size, books, entries), "{size} {books} {entries}");
    }
    let bytes = |entries| Case::new([65, 80], [8, 2, entries], 1.0).panels().bytes();
    assert_eq!(bytes(256), 128 * 20 + 2 * 8 * 256 * 4 + 65 * 4);
    assert_eq!(bytes(9), 128 * 20 + 2 * 8 * 128 * 4 + 65 * 4);
    let mut work = Work::new(Par::Rayon);
    let panels = Case::new([0, 80], [8, 2, 16], 1.0).panels();
    panels.matmul(0..0, &[0.0; 80], 1, &mut [], false, &mut work);
    let (panels, mut y) = (Case::new([3, 0], [8, 2, 16], 1.0).panels(), [1.0; 3]);
    panels.matmul(0..3, &[], 1, &mut y, false, &mut work);
    assert_eq!(y, [0.0; 3]);
    let panels = Case::new([3, 80], [8, 2, 16], 1.0).panels();
    panels.matmul(0..3, &[], 0, &mut [], false, &mut work);
    panels.matmul(2..2, &[0.0; 80], 1, &mut [], false, &mut work);
}
