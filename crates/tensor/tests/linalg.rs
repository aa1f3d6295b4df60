//! Linear algebra against naive f64 arithmetic, and the guarantees its documentation gives.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use proptest::prelude::*;
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::*;

/// Around every block boundary of the code: base cases, panels, tiles.
const SIZES: [usize; 15] = [0, 1, 2, 7, 16, 17, 63, 64, 65, 127, 128, 129, 130, 257, 331];
const PARS: [Par; 4] = [Par::Seq, Par::Threads(2), Par::Threads(5), Par::Rayon];

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut i = 0;
    Array2::from_shape_simple_fn((rows, cols), || {
        i += 1;
        gaussian(seed, i) as f32
    })
}

fn wide(a: ArrayView2<'_, f32>) -> Array2<f64> {
    a.mapv(f64::from)
}

/// A well-conditioned symmetric positive definite matrix, symmetric to the last bit.
fn positive_definite(n: usize, seed: u64) -> Array2<f32> {
    let x = random(n + 3, n, seed);
    let mut h = Array2::zeros((n, n));
    gram_lower(x.view(), h.view_mut(), false, Par::Seq);
    h.diag_mut().mapv_inplace(|v| v + n as f32 * 0.1 + 1.0);
    mirror_lower(h.view_mut());
    h
}

/// Eigenvalues 1 down to `smallest`, geometrically.
fn ill_conditioned(n: usize, smallest: f64, seed: u64) -> Array2<f64> {
    let q = qr(wide(random(n, n, seed).view()).view()).unwrap().q;
    let values = Array1::from_shape_fn(n, |i| smallest.powf(i as f64 / (n.max(2) - 1) as f64));
    let a = (&q * &values).dot(&q.t());
    (&a + &a.t()) * 0.5
}

fn max_abs(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0, |m, v| v.abs().max(m))
}

#[track_caller]
fn assert_close(a: &Array2<f64>, b: &Array2<f64>, relative: f64, what: &str) {
    assert_eq!(a.dim(), b.dim(), "{what}");
    let difference = max_abs(&(a - b));
    let scale = max_abs(b).max(1e-30);
    assert!(difference <= relative * scale, "{what}: {difference:e} against {scale:e}");
}

fn assert_orthonormal_columns(q: &Array2<f64>, tolerance: f64, what: &str) {
    let eye = Array2::eye(q.ncols());
    assert_close(&q.t().dot(q), &eye, tolerance, what);
}

fn bits(a: &Array2<f32>) -> Vec<u32> {
    a.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn products_match_naive_f64_with_any_strides() {
    for (m, k, n) in
        [(0, 3, 2), (2, 0, 3), (1, 1, 1), (1, 64, 130), (7, 5, 1), (17, 65, 33), (130, 129, 64)]
    {
        let (a, b) = (random(m, k, 1), random(k, n, 2));
        let expected = wide(a.view()).dot(&wide(b.view()));
        let mut c = Array2::from_elem((m, n), f32::NAN);
        matmul(a.view(), b.view(), c.view_mut(), false, Par::Seq);
        assert_close(&wide(c.view()), &expected, 1e-5, "replace");

        let bt = b.t().as_standard_layout().into_owned();
        let mut y = Array2::<f32>::ones((m, n));
        matmul_nt(a.view(), bt.view(), y.view_mut(), true, Par::Seq);
        assert_close(&(wide(y.view()) - 1.0), &expected, 1e-5, "accumulate");

        let at = a.t().as_standard_layout().into_owned();
        let mut storage = Array2::<f32>::from_elem((2 * n, 3 * m), 9.0);
        let strided = storage.slice_mut(s![..;-2, ..;3]).reversed_axes();
        matmul_tn(at.view(), b.view(), strided, false, Par::Seq);
        let result = storage.slice(s![..;-2, ..;3]).reversed_axes();
        assert_close(&wide(result), &expected, 1e-5, "strided");
        let untouched = storage.indexed_iter().filter(|((i, j), _)| i % 2 == 0 || j % 3 != 0);
        assert!(untouched.into_iter().all(|(_, &v)| v == 9.0), "wrote between the strides");
    }
}

#[test]
fn broadcast_operands_are_read_correctly() {
    let row = random(1, 33, 1);
    let x = row.broadcast((5, 33)).unwrap();
    let w = random(9, 33, 2);
    let mut y = Array2::zeros((5, 9));
    matmul_nt(x, w.view(), y.view_mut(), false, Par::Seq);
    assert_close(&wide(y.view()), &wide(x).dot(&wide(w.t())), 1e-5, "broadcast");
}

#[test]
fn products_propagate_nan() {
    let a = Array2::from_elem((2, 2), f32::NAN);
    let mut c = Array2::zeros((2, 2));
    matmul(a.view(), Array2::zeros((2, 2)).view(), c.view_mut(), false, Par::Seq);
    assert!(c.iter().all(|v| v.is_nan()));
}

#[test]
#[should_panic(expected = "product of (2, 3) and (2, 3)")]
fn products_panic_on_shapes() {
    let a = Array2::<f32>::zeros((2, 3));
    matmul(a.view(), a.view(), Array2::zeros((2, 3)).view_mut(), false, Par::Seq);
}

#[test]
fn gram_lower_is_exact_below_and_untouched_above() {
    for n in SIZES {
        let x = random(37, n, 3);
        let mut g = Array2::from_elem((n, n), 5.0);
        gram_lower(x.view(), g.view_mut(), false, Par::Seq);
        let expected = wide(x.t()).dot(&wide(x.view()));
        for ((i, j), &v) in g.indexed_iter() {
            if i < j {
                assert_eq!(v, 5.0, "above the diagonal");
            } else {
                assert!((f64::from(v) - expected[[i, j]]).abs() < 1e-4);
            }
        }
        mirror_lower(g.view_mut());
        assert_eq!(g, g.t());
    }
}

#[test]
fn products_and_factors_have_the_same_bytes_for_any_thread_count() {
    for n in [65, 130, 400, 700] {
        let (a, b) = (random(n / 2, n, 1), random(n, n, 2));
        let h = positive_definite(n, 3);
        let all = |par| {
            let mut c = Array2::zeros((n / 2, n));
            matmul(a.view(), b.view(), c.view_mut(), false, par);
            let mut g = Array2::zeros((n, n));
            gram_lower(b.view(), g.view_mut(), false, par);
            let l = cholesky(h.clone(), par).unwrap();
            let inverse = invert_triangular(l.clone(), Triangle::Lower, par).unwrap();
            let mut x = b.clone();
            solve_triangular(l.view(), Triangle::Lower, x.view_mut(), par).unwrap();
            let u = inverse_cholesky_factor(h.clone(), par).unwrap();
            [c, g, l, inverse, x, u].map(|m| bits(&m))
        };
        let expected = all(PARS[0]);
        for par in &PARS[1..] {
            assert!(all(*par) == expected, "n = {n}, {par:?}");
        }
    }
}

#[test]
fn single_rows_and_columns_have_the_same_bytes_for_any_thread_count() {
    for n in [1, 7, 192, 1500, 5000] {
        let (k, h) = (513, positive_definite(n.min(400), 3));
        let (row, column) = (random(1, k, 1), random(k, 1, 2));
        let (wide, tall) = (random(k, n, 3), random(n, k, 4));
        let l = cholesky(h, Par::Seq).unwrap();
        let rhs = random(l.nrows(), 1, 5);
        let all = |par, accumulate| {
            let mut made = Vec::new();
            for (a, b) in [
                (row.view(), wide.view()),
                (row.view(), tall.t()),
                (column.t(), wide.view()),
                (tall.view(), column.view()),
                (wide.t(), column.view()),
                (tall.view(), row.t()),
            ] {
                let mut c = random(a.nrows(), b.ncols(), 6);
                matmul(a, b, c.view_mut(), accumulate, par);
                let mut turned = random(b.ncols(), a.nrows(), 6);
                matmul(a, b, turned.view_mut().reversed_axes(), accumulate, par);
                made.extend([bits(&c), bits(&turned)]);
            }
            let mut x = rhs.clone();
            solve_triangular(l.view(), Triangle::Lower, x.view_mut(), par).unwrap();
            made.push(bits(&x));
            made
        };
        for accumulate in [false, true] {
            let expected = all(PARS[0], accumulate);
            for par in &PARS[1..] {
                assert!(all(*par, accumulate) == expected, "n = {n}, {par:?}");
            }
        }
    }
}

#[test]
fn cholesky_reconstructs() {
    for n in SIZES {
        let h = positive_definite(n, 4);
        let l = wide(cholesky(h.clone(), Par::Seq).unwrap().view());
        assert!(l.indexed_iter().all(|((i, j), &v)| i >= j || v == 0.0));
        assert_close(&l.dot(&l.t()), &wide(h.view()), 1e-5, &format!("n = {n}"));
    }
}

#[test]
fn cholesky_reads_the_lower_triangle_only_and_works_in_f64() {
    let h = wide(positive_definite(130, 5).view());
    let mut lower = h.clone();
    lower.indexed_iter_mut().filter(|((i, j), _)| i < j).for_each(|(_, v)| *v = 1e9);
    let l = cholesky_damped(lower, 0.5, Par::Seq).unwrap();
    let expected = &h + &(Array2::<f64>::eye(130) * 0.5);
    assert_close(&l.dot(&l.t()), &expected, 1e-13, "f64");
}

#[test]
fn inverse_factor_satisfies_its_equation() {
    for n in SIZES {
        let h = positive_definite(n, 6);
        let u = wide(inverse_cholesky_factor(h.clone(), Par::Seq).unwrap().view());
        assert!(u.indexed_iter().all(|((i, j), &v)| i <= j || v == 0.0));
        let product = u.t().dot(&u).dot(&wide(h.view()));
        assert_close(&product, &Array2::eye(n), 1e-4, &format!("n = {n}"));
    }
}

/// The three-step definition in GPTQ's code: upper Cholesky factor of the inverse.
#[test]
fn inverse_factor_equals_cholesky_of_the_inverse() {
    let h = wide(positive_definite(70, 7).view());
    let l = cholesky(h.clone(), Par::Seq).unwrap();
    let l_inverse = invert_triangular(l, Triangle::Lower, Par::Seq).unwrap();
    let inverse = l_inverse.t().dot(&l_inverse);
    let expected = cholesky(inverse, Par::Seq).unwrap().reversed_axes();
    let u = inverse_cholesky_factor(h, Par::Seq).unwrap();
    assert_close(&u, &expected.as_standard_layout().into_owned(), 1e-11, "U");
}

#[test]
fn inverse_factor_survives_bad_condition() {
    for n in [7, 64, 200] {
        let h = ill_conditioned(n, 1e-10, 8);
        let u = inverse_cholesky_factor(h.clone(), Par::Seq).unwrap();
        // U H U^T = I has a backward error of the size of epsilon x condition.
        assert_close(&u.dot(&h).dot(&u.t()), &Array2::eye(n), 1e-4, "U H Ut");
    }
}

#[test]
fn indefinite_matrices_are_refused_with_the_pivot() {
    let mut h = positive_definite(200, 9);
    h[[150, 150]] = -1.0;
    let error = cholesky(h.clone(), Par::Seq).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.message().contains("pivot 150 of 200"), "{error}");
    let error = inverse_cholesky_factor(h, Par::Seq).unwrap_err();
    assert!(error.message().contains("pivot 150 of 200"), "{error}");
}

#[test]
fn damping_is_gptqs_when_it_suffices() {
    let h = positive_definite(65, 10);
    let mean = h.diag().mapv(f64::from).mean().unwrap();
    let damped = damped_inverse_factor(h.clone(), 0.01, Par::Seq).unwrap();
    assert_eq!((damped.damp, damped.retries), ((0.01 * mean) as f32, 0));
    let mut by_hand = h;
    by_hand.diag_mut().mapv_inplace(|v| v + damped.damp);
    let expected = inverse_cholesky_factor(by_hand, Par::Seq).unwrap();
    assert_eq!(bits(&damped.factor), bits(&expected));
}

#[test]
fn damping_grows_until_it_suffices_and_restores_the_matrix() {
    for n in [1, 2, 65, 300] {
        // Rank 1 minus something: no small damping helps.
        let x = random(1, n, 11);
        let mut h = x.t().dot(&x);
        h.diag_mut().mapv_inplace(|v| v - 0.3);
        let damped = damped_inverse_factor(h.clone(), 0.01, Par::Seq).unwrap();
        assert!(damped.retries > 0 && damped.damp >= 0.3, "{n}: {}", damped.damp);
        h.diag_mut().mapv_inplace(|v| v + damped.damp);
        let expected = inverse_cholesky_factor(h, Par::Seq).unwrap();
        assert_eq!(bits(&damped.factor), bits(&expected), "n = {n}");
    }
}

#[test]
fn damping_handles_zero_and_singular_matrices() {
    for fraction in [0.0, 0.01] {
        let zero = damped_inverse_factor(Array2::<f32>::zeros((9, 9)), fraction, Par::Seq);
        assert!(zero.unwrap().damp > 0.0);
        let ones = damped_inverse_factor(Array2::<f32>::ones((150, 150)), fraction, Par::Seq);
        assert!(ones.unwrap().factor.iter().all(|v| v.is_finite()));
    }
    let empty = damped_inverse_factor(Array2::<f32>::zeros((0, 0)), 0.01, Par::Seq).unwrap();
    assert_eq!(empty.factor.dim(), (0, 0));
    for bad in [-0.1, f64::NAN, f64::INFINITY] {
        let error = damped_inverse_factor(Array2::<f32>::eye(2), bad, Par::Seq).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn triangular_solves_and_inverses() {
    for n in SIZES {
        let l = cholesky(positive_definite(n, 12), Par::Seq).unwrap();
        let u = l.t().to_owned();
        let b = random(n, 5, 13);
        for (t, triangle) in [(&l, Triangle::Lower), (&u, Triangle::Upper)] {
            // The other triangle must not matter.
            let mut dirty = t.clone();
            dirty.indexed_iter_mut().for_each(|((i, j), v)| {
                if if triangle == Triangle::Lower { i < j } else { i > j } {
                    *v = 7.0;
                }
            });
            let mut x = b.clone();
            solve_triangular(dirty.view(), triangle, x.view_mut(), Par::Seq).unwrap();
            assert_close(&wide(t.view()).dot(&wide(x.view())), &wide(b.view()), 1e-4, "solve");
            let inverse = invert_triangular(dirty, triangle, Par::Seq).unwrap();
            let product = wide(t.view()).dot(&wide(inverse.view()));
            assert_close(&product, &Array2::eye(n), 1e-4, &format!("{triangle:?} {n}"));
        }
    }
    let mut zero = Array2::<f32>::eye(3);
    zero[[1, 1]] = 0.0;
    let error = invert_triangular(zero, Triangle::Upper, Par::Seq).unwrap_err();
    assert!(error.message().contains("0 at 1"), "{error}");
}

const RECTANGLES: [(usize, usize); 12] = [
    (0, 0),
    (0, 3),
    (3, 0),
    (1, 1),
    (1, 5),
    (5, 1),
    (7, 7),
    (16, 17),
    (64, 63),
    (65, 64),
    (200, 30),
    (30, 200),
];

#[test]
fn svd_reconstructs_with_orthonormal_factors() {
    for (m, n) in RECTANGLES {
        let a = random(m, n, 14);
        for a in [a.view(), a.slice(s![..;-1, ..])] {
            let svd = svd(a).unwrap();
            assert_eq!(svd.s.len(), m.min(n));
            assert!(svd.s.iter().all(|&v| v >= 0.0));
            assert!(svd.s.windows(2).into_iter().all(|w| w[0] >= w[1]));
            assert_close(&wide(svd.reconstruct().view()), &wide(a), 1e-5, "reconstruct");
            assert_orthonormal_columns(&wide(svd.u.view()), 1e-5, "U");
            assert_orthonormal_columns(&wide(svd.vt.t()), 1e-5, "V");
            assert!(svd.u.is_standard_layout() && svd.vt.is_standard_layout());
        }
    }
}

#[test]
fn svd_finds_the_rank_of_singular_matrices() {
    for (m, n, rank) in [(5, 5, 0), (20, 9, 1), (65, 64, 7), (64, 130, 40)] {
        let a = random(m, rank, 15).dot(&random(rank, n, 16));
        let svd = svd(a.view()).unwrap();
        assert_eq!(svd.rank(svd.default_cutoff()), rank, "{m} x {n}");
        assert_orthonormal_columns(&wide(svd.u.view()), 1e-5, "U");
    }
}

#[test]
fn truncated_svd_beats_random_factors_and_meets_eckart_young() {
    let a = random(40, 25, 17);
    let full = svd(wide(a.view()).view()).unwrap();
    for rank in [0, 1, 5, 24, 25, 99] {
        let truncated = svd_truncated(wide(a.view()).view(), rank).unwrap();
        let error = (&wide(a.view()) - &truncated.reconstruct()).mapv(|v| v * v).sum();
        let tail = full.s.iter().skip(rank).map(|v| v * v).sum::<f64>();
        assert!((error - tail).abs() <= 1e-9 * (1.0 + tail), "rank {rank}: {error} and {tail}");
        for seed in 0..5 {
            // The best right factor for a random left factor.
            let left = wide(random(40, rank.min(25), 100 + seed).view());
            let fit = least_squares(left.view(), wide(a.view()).view(), None, Par::Seq).unwrap();
            let other = (&wide(a.view()) - &left.dot(&fit.solution)).mapv(|v| v * v).sum();
            assert!(other >= error - 1e-9, "rank {rank}");
        }
    }
}

#[test]
fn randomized_svd_is_near_the_best_and_reproducible() {
    // A spectrum falling as 1/i, as weights have.
    let (m, n) = (150, 120);
    let (u, v) = (qr(random(m, n, 18).view()).unwrap().q, qr(random(n, n, 19).view()).unwrap().q);
    let a = (&u * &Array1::from_shape_fn(n, |i| 1.0 / (i + 1) as f32)).dot(&v.t());
    for rank in [1, 8, 32] {
        let how = RandomizedSvd::rank(rank).with_seed(5);
        let found = svd_randomized(a.view(), how, Par::Seq).unwrap();
        assert_eq!(found.s.len(), rank);
        assert_orthonormal_columns(&wide(found.u.view()), 1e-5, "U");
        assert_orthonormal_columns(&wide(found.vt.t()), 1e-5, "V");
        let error = |svd: &Svd<f32>| (&a - &svd.reconstruct()).mapv(|v| v * v).sum().sqrt();
        let best = error(&svd_truncated(a.view(), rank).unwrap());
        assert!(error(&found) <= 1.01 * best, "rank {rank}: {} and {best}", error(&found));
        for par in PARS {
            let again = svd_randomized(a.view(), how, par).unwrap();
            assert_eq!(found, again, "{par:?}");
        }
        let other = svd_randomized(a.view(), how.with_seed(6), Par::Seq).unwrap();
        assert_ne!(found.u, other.u);
    }
    let all = svd_randomized(a.view(), RandomizedSvd::rank(500), Par::Seq).unwrap();
    assert_eq!(all, svd(a.view()).unwrap());
}

#[test]
fn randomized_svd_of_exact_low_rank_is_exact() {
    let a = random(130, 6, 20).dot(&random(6, 90, 21));
    let how = RandomizedSvd::rank(10).with_power_iterations(0).with_oversample(2);
    let found = svd_randomized(a.view(), how, Par::Seq).unwrap();
    assert_eq!(found.rank(1e-5), 6);
    assert_close(&wide(found.reconstruct().view()), &wide(a.view()), 1e-5, "low rank");
}

#[test]
fn eigenvectors_reconstruct() {
    for n in SIZES {
        let a = positive_definite(n, 22);
        let eigen = symmetric_eigen(a.view()).unwrap();
        assert!(eigen.values.windows(2).into_iter().all(|w| w[0] <= w[1]));
        let q = wide(eigen.vectors.view());
        let product = (&q * &eigen.values.mapv(f64::from)).dot(&q.t());
        assert_close(&product, &wide(a.view()), 2e-5, &format!("n = {n}"));
        assert_orthonormal_columns(&q, 2e-5, "eigenvectors");
    }
}

#[test]
fn qr_reconstructs_also_without_full_rank() {
    for (m, n) in RECTANGLES {
        for rank in [0, 1, m.min(n) / 2, m.min(n)] {
            let a = random(m, rank, 23).dot(&random(rank, n, 24));
            let Qr { q, r, .. } = qr(a.view()).unwrap();
            let (q, r) = (wide(q.view()), wide(r.view()));
            assert!(r.indexed_iter().all(|((i, j), &v)| i <= j || v == 0.0));
            assert_close(&q.dot(&r), &wide(a.view()), 1e-5, &format!("{m} x {n}, rank {rank}"));
            assert_orthonormal_columns(&q, 1e-5, &format!("Q of {m} x {n}, rank {rank}"));
        }
    }
}

#[test]
fn qr_of_zero_and_repeated_columns() {
    let mut a = random(40, 12, 25);
    a.column_mut(0).fill(0.0);
    let third = a.column(3).to_owned();
    a.column_mut(4).assign(&third);
    a.column_mut(11).fill(0.0);
    let Qr { q, r, .. } = qr(a.view()).unwrap();
    assert_close(&wide(q.dot(&r).view()), &wide(a.view()), 1e-5, "Q R");
    assert_orthonormal_columns(&wide(q.view()), 1e-5, "Q");
}

#[test]
fn least_squares_meets_the_normal_equations() {
    for (m, n) in RECTANGLES {
        let (a, b) = (random(m, n, 26), random(m, 3, 27));
        let fit = least_squares(a.view(), b.view(), None, Par::Seq).unwrap();
        assert_eq!((fit.rank, fit.solution.dim()), (m.min(n), (n, 3)));
        let residual = wide(a.view()).dot(&wide(fit.solution.view())) - wide(b.view());
        let gradient = wide(a.t()).dot(&residual);
        assert!(max_abs(&gradient) < 2e-3, "{m} x {n}: {}", max_abs(&gradient));
    }
}

#[test]
fn least_squares_takes_the_shortest_solution_of_singular_systems() {
    let column = wide(random(30, 1, 28).view());
    let a = ndarray::concatenate(Axis(1), &[column.view(), column.view()]).unwrap();
    let fit = least_squares(a.view(), column.view(), None, Par::Seq).unwrap();
    assert_eq!(fit.rank, 1);
    assert_close(&fit.solution, &Array2::from_elem((2, 1), 0.5), 1e-12, "halves");
    let zero =
        least_squares(Array2::<f64>::zeros((4, 2)).view(), a.slice(s![..4, ..]), None, Par::Seq);
    assert_eq!(zero.unwrap().solution, Array2::<f64>::zeros((2, 2)));
    let error = least_squares(a.view(), a.slice(s![..3, ..]), None, Par::Seq).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    let error = least_squares(a.view(), a.view(), Some(-1.0), Par::Seq).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn hadamard_is_its_definition_and_its_inverse() {
    assert_eq!([0, 1, 2, 7, 12, 11008].map(hadamard_block), [0, 1, 2, 1, 4, 256]);
    for n in [0, 1, 2, 3, 4, 8, 12, 16, 24, 64, 176, 1024] {
        let x = random(3, n, 29);
        let block = hadamard_block(n).max(1);
        let sign =
            |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let expected = Array2::from_shape_fn((3, n), |(r, i)| {
            let start = i - i % block;
            let terms = (0..block).map(|j| f64::from(x[[r, start + j]]) * sign(i % block, j));
            terms.sum::<f64>() / (block as f64).sqrt()
        });
        let mut rows = x.clone();
        hadamard_rows(rows.view_mut(), block, Par::Seq);
        assert_close(&wide(rows.view()), &expected, 1e-6, &format!("n = {n}"));
        for par in PARS {
            let mut strided = Array2::<f32>::zeros((n, 3)).reversed_axes();
            strided.assign(&x);
            hadamard_rows(strided.view_mut(), block, par);
            assert_eq!(rows, strided, "{par:?}");
        }
        for mut row in rows.rows_mut() {
            hadamard(row.as_slice_mut().unwrap());
        }
        assert_close(&wide(rows.view()), &wide(x.view()), 1e-6, "twice");
    }
}

#[test]
fn non_finite_input_is_refused_by_name() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = positive_definite(20, 30);
        (a[[3, 2]], a[[2, 3]]) = (bad, bad);
        let errors = [
            cholesky(a.clone(), Par::Seq).unwrap_err(),
            inverse_cholesky_factor(a.clone(), Par::Seq).unwrap_err(),
            damped_inverse_factor(a.clone(), 0.01, Par::Seq).unwrap_err(),
            svd(a.view()).unwrap_err(),
            svd_randomized(a.view(), RandomizedSvd::rank(1), Par::Seq).unwrap_err(),
            symmetric_eigen(a.view()).unwrap_err(),
            qr(a.view()).unwrap_err(),
            least_squares(a.view(), Array2::eye(20).view(), None, Par::Seq).unwrap_err(),
            invert_triangular(a.clone(), Triangle::Lower, Par::Seq).unwrap_err(),
        ];
        for error in &errors[..8] {
            assert_eq!(error.kind(), ErrorKind::Numerical);
            assert!(error.message().contains("[2, 3]"), "{error}");
        }
        assert!(errors[8].message().contains("row 3"), "{}", errors[8]);
    }
    let wide = Array2::<f32>::zeros((2, 3));
    for error in [
        cholesky(wide.clone(), Par::Seq).unwrap_err(),
        inverse_cholesky_factor(wide.clone(), Par::Seq).unwrap_err(),
        symmetric_eigen(wide.view()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    }
}

#[test]
fn gaussian_numbers_look_normal() {
    let n = 100_000;
    let values: Vec<f64> = (0..n).map(|i| gaussian(1, i)).collect();
    let moment = |p: i32| values.iter().map(|v| v.powi(p)).sum::<f64>() / n as f64;
    assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03);
    assert!(moment(3).abs() < 0.06 && (moment(4) - 3.0).abs() < 0.15);
    let neighbours: f64 = (0..n).map(|i| gaussian(1, i) * gaussian(2, i)).sum::<f64>() / n as f64;
    assert!(neighbours.abs() < 0.02);
    let mut rng = SplitMix::new(9);
    assert_eq!([rng.next_u64(), rng.next_u64()], [0, 1].map(|i| SplitMix::new(9).at(i)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn factors_of_random_shapes_and_scales(
        n in 1usize..90,
        extra in 0usize..40,
        seed in any::<u64>(),
        exponent in -12i32..12,
    ) {
        let scale = 2f32.powi(exponent);
        let x = random(n + extra, n, seed) * scale;
        let mut h = Array2::zeros((n, n));
        gram_lower(x.view(), h.view_mut(), false, Par::Seq);
        mirror_lower(h.view_mut());
        let damped = damped_inverse_factor(h.clone(), 0.01, Par::Seq).unwrap();
        h.diag_mut().mapv_inplace(|v| v + damped.damp);
        let u = wide(damped.factor.view());
        let product = u.dot(&wide(h.view())).dot(&u.t());
        assert_close(&product, &Array2::eye(n), 1e-2, "U H Ut = I");

        let svd = svd(x.view()).unwrap();
        assert_close(&wide(svd.reconstruct().view()), &wide(x.view()), 5e-5, "SVD");
        let Qr { q, r, .. } = qr(x.view()).unwrap();
        assert_close(&wide(q.dot(&r).view()), &wide(x.view()), 5e-5, "QR");
    }
}
