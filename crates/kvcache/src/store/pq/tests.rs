use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray;

use super::PqCode;
use crate::store::coded::Coded;
use crate::store::windowed::PackedRows;

fn rows(n: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    // Channels in pairs that go together: what a codebook of pairs sees and one of single channels does not.
    let mut x = Array2::from_shape_fn((n, 16), |_| random.next_f64() as f32 - 0.5);
    for c in (0..16).step_by(2) {
        for t in 0..n {
            x[[t, c + 1]] = 0.9 * x[[t, c]] + 0.1 * x[[t, c + 1]];
        }
    }
    x
}

fn packed(x: &Array2<f32>, sub: usize, bits: u32) -> Coded<PqCode> {
    let code = PqCode { dim: 16, sub, bits, fit: 128, seed: 3, books: None };
    let mut rows = Coded::new(code);
    rows.push(x.view());
    rows
}

/// Every subvector is its nearest centroid, centroids are the means of what they stand for, and what tables give is what plain
/// loops over the decoded rows give.
#[test]
fn tables_are_products_with_centroids() {
    let x = rows(300, 1);
    let coded = packed(&x, 2, 4);
    let mut decoded = Array2::zeros((300, 16));
    coded.decode(0..300, decoded.view_mut());
    let books = coded.code.books.clone().expect("learnt");
    for t in 0..300 {
        for m in 0..8 {
            let far = |c: ndarray::ArrayView1<'_, f32>| {
                (0..2).map(|i| f64::from(c[i] - x[[t, 2 * m + i]]).powi(2)).sum::<f64>()
            };
            let least = (0..16)
                .map(|k| far(books.centroids().slice(s![m, k, ..])))
                .fold(f64::MAX, f64::min);
            let mine = far(decoded.slice(s![t, 2 * m..2 * m + 2]));
            assert!(mine <= least + 1e-5, "{t}, {m}: {mine} against {least}");
        }
    }
    let queries = rows(3, 2);
    let mut out = vec![f32::NAN; 3 * 300];
    coded.dots(queries.view(), 7..290, &mut out, 300);
    let weights: Vec<f32> = queries.iter().copied().cycle().take(2 * 300).collect();
    let mut mixed = Array2::ones((2, 16));
    coded.mix(&weights, 300, 7..290, mixed.view_mut());
    for (i, q) in queries.rows().into_iter().enumerate() {
        for t in 7..290 {
            let exact: f64 = (0..16).map(|c| f64::from(q[c]) * f64::from(decoded[[t, c]])).sum();
            assert!((f64::from(out[i * 300 + t]) - exact).abs() < 1e-5);
        }
    }
    let weights = ArrayView2::from_shape((2, 300), &weights).expect("rows");
    for ((i, c), mixed) in mixed.indexed_iter() {
        let sum: f64 =
            (7..290).map(|t| f64::from(weights[[i, t]]) * f64::from(decoded[[t, c]])).sum();
        assert!((f64::from(*mixed) - 1.0 - sum).abs() < 1e-4, "{mixed} against {}", sum + 1.0);
    }
}

/// At the same bits, pairs lose far less than single channels where channels go together.
#[test]
fn vectors_see_what_numbers_do_not() {
    let x = rows(600, 1);
    let error = |sub, bits| {
        let coded = packed(&x, sub, bits);
        let mut decoded = Array2::zeros((600, 16));
        coded.decode(0..600, decoded.view_mut());
        (decoded - &x).mapv(|e| f64::from(e).powi(2)).sum()
    };
    let (pairs, single) = (error(2, 4), error(1, 2));
    assert!(pairs < 0.5 * single, "{pairs} against {single}");
}
