use ndarray::{Array2, array, s};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray;

use super::code::{Rank, stored};
use super::{HeadSample, Matryoshka, ProjectedCode, greedy_ranks, principal_basis, weighted_basis};
use crate::store::coded::Coded;
use crate::store::windowed::PackedRows;

fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| gaussian(seed, (i * columns + j) as u64) as f32)
}

/// Rows near a space of few directions.
fn rows(n: usize, dim: usize, directions: usize, seed: u64) -> Array2<f32> {
    normal(n, directions, seed).dot(&normal(directions, dim, 99)) + normal(n, dim, seed + 1) * 0.05
}

fn square(x: &Array2<f32>) -> f64 {
    x.iter().map(|v| f64::from(*v).powi(2)).sum()
}

#[test]
fn decoded_rows_are_projections() {
    let x = rows(200, 24, 6, 1);
    let code =
        ProjectedCode { dim: 24, rank: Rank::Of(6), bits: 16, chunk: 1, fit: 100, basis: None };
    let mut coded = Coded::new(code.clone());
    coded.push(x.view());
    let mut out = Array2::zeros((200, 24));
    coded.decode(0..200, out.view_mut());
    // By power iteration of single directions, each taken out before the next: another way to the same space.
    let head = x.slice(s![..100, ..]).mapv(f64::from);
    let mut rest = head.t().dot(&head);
    let mut projector = Array2::<f64>::zeros((24, 24));
    for _ in 0..6 {
        let mut v = ndarray::Array1::<f64>::ones(24);
        let mut value = 0.0;
        for _ in 0..3000 {
            let next = rest.dot(&v);
            value = next.dot(&next).sqrt();
            v = next / value;
        }
        let outer =
            v.view().insert_axis(ndarray::Axis(1)).dot(&v.view().insert_axis(ndarray::Axis(0)));
        rest = rest - &outer * value;
        projector += &outer;
    }
    let expected = x.mapv(f64::from).dot(&projector);
    for (mine, exact) in out.iter().zip(&expected) {
        assert!((f64::from(*mine) - exact).abs() < 2e-2, "{mine} against {exact}");
    }
    assert!(square(&(&out - &x)) < 0.01 * square(&x));
    // Four bits a coordinate in chunks cost little more error; one direction fewer costs much.
    let packed = |code: ProjectedCode| {
        let mut coded = Coded::new(code);
        coded.push(x.slice(s![..192, ..]));
        let mut out = Array2::zeros((192, 24));
        coded.decode(0..192, out.view_mut());
        square(&(out - x.slice(s![..192, ..])))
    };
    let (full, four) =
        (packed(code.clone()), packed(ProjectedCode { bits: 4, chunk: 32, ..code.clone() }));
    let fewer = packed(ProjectedCode { rank: Rank::Of(5), ..code });
    assert!(four < 0.05 * square(&x) && fewer > 4.0 * full, "{full} {four} {fewer}");
}

/// Against the truncated singular values of W diag(s), by the loss on inputs of those scales; a plain basis loses more.
#[test]
fn scales_of_inputs_count() {
    let (w, mut scales) = (normal(16, 32, 3), vec![1.0f32; 32]);
    scales[..4].fill(20.0);
    let loss = |basis: &Array2<f32>| {
        let left = &w - &basis.dot(&basis.t().dot(&w));
        let columns = left.columns().into_iter().zip(&scales);
        columns.map(|(c, s)| f64::from(c.dot(&c)) * f64::from(*s).powi(2)).sum::<f64>()
    };
    let scaled = weighted_basis(w.view(), &scales, 4).expect("a basis");
    let plain = weighted_basis(w.view(), &[1.0; 32], 4).expect("a basis");
    let mut weighted = w.mapv(f64::from);
    weighted.rows_mut().into_iter().for_each(|mut row| {
        row.iter_mut().zip(&scales).for_each(|(w, s)| *w *= f64::from(*s));
    });
    let svd = tensorpress_tensor::linalg::svd(weighted.view()).expect("converges");
    let best: f64 = svd.s.iter().skip(4).map(|s| s * s).sum();
    assert!((loss(&scaled) / best - 1.0).abs() < 1e-4, "{} against {best}", loss(&scaled));
    assert!(loss(&plain) > 2.0 * best);
}

#[test]
fn refined_bases_are_orthogonal_and_better() {
    // Queries look where keys vary little: the principal basis is wrong for them.
    let stretch = |mut x: Array2<f32>, first: f32, second: f32| {
        x.slice_mut(s![.., ..6]).mapv_inplace(|v| v * first);
        x.slice_mut(s![.., 6..]).mapv_inplace(|v| v * second);
        x
    };
    let keys =
        stretch(normal(300, 12, 5), 2.0, 1.0).dot(&(Array2::eye(12) + normal(12, 12, 6) * 0.05));
    let queries = stretch(normal(300, 12, 7), 0.1, 1.0);
    let method = Matryoshka::new(&[3, 6, 9]).with_seed(4);
    let start = principal_basis(keys.view(), 12).expect("a basis");
    let refined = method.refine(start.view(), queries.view(), keys.view()).expect("refines");
    let unit = refined.t().dot(&refined) - Array2::<f32>::eye(12);
    assert!(unit.iter().all(|v| v.abs() < 1e-5));
    // The loss by products of all pairs, on each rank.
    let loss = |basis: &Array2<f32>| {
        let exact = queries.dot(&keys.t());
        let of = |rank: &usize| {
            let kept = basis.slice(s![.., ..*rank]);
            square(&(queries.dot(&kept).dot(&keys.dot(&kept).t()) - &exact)) / exact.len() as f64
        };
        method.ranks.iter().map(of).sum::<f64>() / 3.0
    };
    let (before, after) = (loss(&start), loss(&refined));
    assert!(after < 0.7 * before, "{after} of {before}");
    let said = method.loss(refined.view(), queries.view(), keys.view()).expect("a loss");
    assert!((said / after - 1.0).abs() < 1e-3, "{said} against {after}");
}

#[test]
fn ranks_go_where_errors_grow_least() {
    // Head 0 needs all of its coordinates, head 1 hardly any.
    let errors = array![[0.9, 0.5, 0.2, 0.0], [0.03, 0.02, 0.01, 0.0]];
    let ranks = [2, 4, 8, 16];
    assert_eq!(greedy_ranks(&ranks, errors.view(), 32).expect("fits"), [16, 16]);
    assert_eq!(greedy_ranks(&ranks, errors.view(), 20).expect("fits"), [16, 4]);
    assert_eq!(greedy_ranks(&ranks, errors.view(), 18).expect("fits"), [16, 2]);
    assert_eq!(greedy_ranks(&ranks, errors.view(), 9).expect("fits"), [4, 2]);
    assert!(greedy_ranks(&ranks, errors.view(), 3).is_err());
    // Measured on a sample: more directions, less error, and none at all of them.
    let (q, k, v) = (rows(8, 16, 4, 1), rows(40, 16, 4, 3), rows(40, 16, 4, 5));
    let sample = HeadSample { queries: q.view(), keys: k.view(), values: v.view() };
    let (kb, vb) =
        (principal_basis(k.view(), 16).expect("one"), principal_basis(v.view(), 16).expect("one"));
    let error = |a, b| sample.output_error((kb.view(), a), (vb.view(), b)).expect("an error");
    assert!(error(16, 16) < 1e-9 && error(4, 4) < error(2, 4) && error(4, 4) < error(4, 2));
    assert!(stored(&kb).iter().zip(&kb).all(|(a, b)| (a - b).abs() < 1e-3));
}
