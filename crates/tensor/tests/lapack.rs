//! The two linear-algebra backends against each other.
#![cfg(feature = "lapack")]

use ndarray::{Array1, Array2};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::{self, Par, Triangle, gaussian, lapack};

const SIZES: [usize; 10] = [0, 1, 2, 7, 16, 63, 64, 65, 130, 257];
const SHAPES: [(usize, usize); 9] =
    [(0, 0), (0, 3), (3, 0), (1, 1), (1, 6), (6, 1), (64, 65), (130, 40), (40, 130)];

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut i = 0;
    Array2::from_shape_simple_fn((rows, cols), || {
        i += 1;
        gaussian(seed, i)
    })
}

/// Singular values from 1 down to `smallest`, geometrically.
fn conditioned(m: usize, n: usize, smallest: f64, seed: u64) -> Array2<f64> {
    let k = m.min(n);
    let left = linalg::qr(random(m, k, seed).view()).unwrap().q;
    let right = linalg::qr(random(n, k, seed + 1).view()).unwrap().q;
    let values = Array1::from_shape_fn(k, |i| smallest.powf(i as f64 / (k.max(2) - 1) as f64));
    (&left * &values).dot(&right.t())
}

fn positive_definite(n: usize, smallest: f64, seed: u64) -> Array2<f64> {
    let q = linalg::qr(random(n, n, seed).view()).unwrap().q;
    let values = Array1::from_shape_fn(n, |i| smallest.powf(i as f64 / (n.max(2) - 1) as f64));
    let a = (&q * &values).dot(&q.t());
    (&a + &a.t()) * 0.5
}

#[track_caller]
fn assert_close(a: &Array2<f64>, b: &Array2<f64>, relative: f64, what: &str) {
    assert_eq!(a.dim(), b.dim(), "{what}");
    let largest = |m: &Array2<f64>| m.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let (difference, scale) = (largest(&(a - b)), largest(b).max(1e-300));
    assert!(difference <= relative * scale, "{what}: {difference:e} against {scale:e}");
}

#[test]
fn cholesky_and_inverse_factors_agree() {
    for n in SIZES {
        for smallest in [0.5, 1e-4, 1e-9] {
            // Factors differ by the condition times the rounding.
            let tolerance = 1e-13 / smallest;
            let what = format!("n = {n}, condition {:e}", 1.0 / smallest);
            let h = positive_definite(n, smallest, 1);
            let ours = linalg::cholesky(h.clone(), Par::Seq).unwrap();
            assert_close(&ours, &lapack::cholesky(h.view()).unwrap(), tolerance, &what);
            let ours = linalg::inverse_cholesky_factor(h.clone(), Par::Seq).unwrap();
            let theirs = lapack::inverse_cholesky_factor(h.view()).unwrap();
            assert_close(&ours, &theirs, tolerance, &what);
        }
    }
}

#[test]
fn triangular_solves_agree() {
    for n in SIZES {
        let l = linalg::cholesky(positive_definite(n, 0.1, 2), Par::Seq).unwrap();
        let b = random(n, 3, 3);
        for (t, triangle) in [(l.view(), Triangle::Lower), (l.t(), Triangle::Upper)] {
            let mut ours = b.clone();
            linalg::solve_triangular(t, triangle, ours.view_mut(), Par::Seq).unwrap();
            let theirs = lapack::solve_triangular(t, triangle, b.view()).unwrap();
            assert_close(&ours, &theirs, 1e-12, &format!("{triangle:?}, n = {n}"));
        }
    }
}

#[test]
fn singular_values_and_subspaces_agree() {
    for (m, n) in SHAPES {
        for smallest in [0.5, 1e-6, 1e-12] {
            let what = format!("{m} x {n}, smallest {smallest:e}");
            let a = conditioned(m, n, smallest, 4);
            let (ours, theirs) = (linalg::svd(a.view()).unwrap(), lapack::svd(a.view()).unwrap());
            // Singular values are known to epsilon times the largest, whatever the condition (Weyl).
            for (x, y) in ours.s.iter().zip(&theirs.s) {
                assert!((x - y).abs() <= 1e-13, "{what}: {x} and {y}");
            }
            assert_close(&ours.reconstruct(), &theirs.reconstruct(), 1e-12, &what);
        }
    }
}

#[test]
fn ranks_of_singular_matrices_agree() {
    for (m, n, rank) in [(20, 9, 1), (65, 64, 7), (64, 130, 40)] {
        let a = random(m, rank, 5).dot(&random(rank, n, 6));
        let (ours, theirs) = (linalg::svd(a.view()).unwrap(), lapack::svd(a.view()).unwrap());
        assert_eq!(ours.rank(ours.default_cutoff()), rank);
        assert_eq!(theirs.rank(theirs.default_cutoff()), rank);
    }
}

#[test]
fn eigenvalues_agree() {
    for n in SIZES {
        for smallest in [0.5, 1e-9] {
            let a = positive_definite(n, smallest, 7);
            let ours = linalg::symmetric_eigen(a.view()).unwrap();
            let theirs = lapack::symmetric_eigen(a.view()).unwrap();
            for (x, y) in ours.values.iter().zip(&theirs.values) {
                assert!((x - y).abs() <= 1e-13, "n = {n}: {x} and {y}");
            }
            let rebuild =
                |e: &linalg::SymmetricEigen<f64>| (&e.vectors * &e.values).dot(&e.vectors.t());
            assert_close(&rebuild(&ours), &rebuild(&theirs), 1e-12, &format!("n = {n}"));
        }
    }
}

#[test]
fn qr_agrees_up_to_signs() {
    for (m, n) in SHAPES {
        let a = random(m, n, 8);
        let (ours, theirs) = (linalg::qr(a.view()).unwrap(), lapack::qr(a.view()).unwrap());
        let signs = |r: &Array2<f64>| r.diag().mapv(f64::signum).insert_axis(ndarray::Axis(1));
        let (mine, yours) = (&ours.r * &signs(&ours.r), &theirs.r * &signs(&theirs.r));
        assert_close(&mine, &yours, 1e-12, &format!("R of {m} x {n}"));
        assert_close(&ours.q.dot(&ours.r), &theirs.q.dot(&theirs.r), 1e-12, "product");
    }
}

#[test]
fn least_squares_agree_also_without_full_rank() {
    for (m, n) in SHAPES {
        let b = random(m, 2, 9);
        for a in [random(m, n, 10), random(m, 1, 11).dot(&random(1, n, 12))] {
            let ours = linalg::least_squares(a.view(), b.view(), None, Par::Seq).unwrap();
            let theirs = lapack::least_squares(a.view(), b.view(), None).unwrap();
            assert_eq!(ours.rank, theirs.rank, "{m} x {n}");
            assert_close(&ours.solution, &theirs.solution, 1e-11, &format!("{m} x {n}"));
        }
    }
}

#[test]
fn single_precision_agrees() {
    let h = positive_definite(130, 0.1, 13).mapv(|v| v as f32);
    let ours = linalg::inverse_cholesky_factor(h.clone(), Par::Seq).unwrap();
    let theirs = lapack::inverse_cholesky_factor(h.view()).unwrap();
    assert_close(&ours.mapv(f64::from), &theirs.mapv(f64::from), 1e-4, "f32");
    let (ours, theirs) = (linalg::svd(h.view()).unwrap(), lapack::svd(h.view()).unwrap());
    for (x, y) in ours.s.iter().zip(&theirs.s) {
        assert!((x - y).abs() <= 1e-5, "{x} and {y}");
    }
}

#[test]
fn both_refuse_the_same_input() {
    let mut bad = Array2::<f64>::eye(5);
    bad[[2, 2]] = -1.0;
    assert_eq!(lapack::cholesky(bad.view()).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(
        lapack::inverse_cholesky_factor(bad.view()).unwrap_err().kind(),
        ErrorKind::Numerical
    );
    bad[[2, 2]] = f64::NAN;
    for error in [
        lapack::cholesky(bad.view()).unwrap_err(),
        lapack::svd(bad.view()).unwrap_err(),
        lapack::symmetric_eigen(bad.view()).unwrap_err(),
        lapack::qr(bad.view()).unwrap_err(),
        lapack::least_squares(bad.view(), Array2::eye(5).view(), None).unwrap_err(),
    ] {
        assert!(error.message().contains("[2, 2]"), "{error}");
    }
    let wide = Array2::<f64>::zeros((2, 3));
    assert_eq!(lapack::cholesky(wide.view()).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}
