//! Clusters of equal size.

use tensorpress_tensor::linalg::{Par, SplitMix, matmul_nt};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};

/// Cuts the rows of a matrix `[rows, features]` into `clusters` of equal size, give or take one, that lie close to their
/// means: Lloyd's rounds, in which pairs of row and cluster are taken from the nearest on as long as the cluster has room.
/// Of all rounds, the one with the least sum of squared distances. The first means are rows drawn with probabilities
/// proportional to their squared distance from those before (k-means++). Every cluster ascends.
///
/// # Panics
/// If there are no clusters, or more than rows.
pub(super) fn balanced_clusters(
    points: ArrayView2<'_, f32>,
    clusters: usize,
    rounds: usize,
    seed: u64,
) -> Vec<Vec<usize>> {
    let rows = points.nrows();
    assert!((1..=rows.max(1)).contains(&clusters), "{clusters} clusters of {rows} rows");
    let mut means = points.select(Axis(0), &first_rows(points, clusters, seed));
    let mut best = (f64::INFINITY, Vec::new());
    let mut before = Vec::new();
    for _ in 0..rounds.max(1) {
        let (cost, assigned) = assign(points, means.view());
        if cost < best.0 {
            best = (cost, assigned.clone());
        }
        if assigned == before {
            break;
        }
        for (mut mean, rows) in means.rows_mut().into_iter().zip(members(&assigned, clusters)) {
            let centre = points.select(Axis(0), &rows).mapv(f64::from).mean_axis(Axis(0));
            centre.into_iter().for_each(|centre| mean.assign(&centre.mapv(|v| v as f32)));
        }
        before = assigned;
    }
    members(&best.1, clusters)
}

fn members(assigned: &[usize], clusters: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); clusters];
    assigned.iter().enumerate().for_each(|(row, cluster)| members[*cluster].push(row));
    members
}

/// Squared distances of all rows from all means, `[rows, means]`.
fn distances(points: ArrayView2<'_, f32>, means: ArrayView2<'_, f32>) -> Array2<f64> {
    let squares = |m: ArrayView2<'_, f32>| -> Vec<f64> {
        m.rows().into_iter().map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum()).collect()
    };
    let (p, m) = (squares(points), squares(means));
    let mut products = Array2::<f32>::zeros((points.nrows(), means.nrows()));
    matmul_nt(points, means, products.view_mut(), false, Par::Seq);
    Array2::from_shape_fn(products.dim(), |(i, j)| {
        (p[i] + m[j] - 2.0 * f64::from(products[[i, j]])).max(0.0)
    })
}

fn first_rows(points: ArrayView2<'_, f32>, clusters: usize, seed: u64) -> Vec<usize> {
    let rows = points.nrows();
    let mut random = SplitMix::new(seed);
    let mut chosen = vec![(random.next_u64() % rows.max(1) as u64) as usize];
    let mut nearest = vec![f64::INFINITY; rows];
    while chosen.len() < clusters {
        let last = points.select(Axis(0), &chosen[chosen.len() - 1..]);
        let apart = distances(points, last.view());
        nearest.iter_mut().zip(&apart).for_each(|(n, d)| *n = n.min(*d));
        chosen.iter().for_each(|row| nearest[*row] = 0.0);
        let mut left = random.next_f64() * nearest.iter().sum::<f64>();
        let passed = nearest.iter().position(|d| {
            left -= d;
            *d > 0.0 && left <= 0.0
        });
        // Where all rows left equal one that was chosen, any will do.
        let any = || (0..rows).find(|row| !chosen.contains(row)).expect("fewer clusters than rows");
        let next = passed.unwrap_or_else(any);
        chosen.push(next);
    }
    chosen
}

/// The cluster of each row, and the sum of squared distances.
fn assign(points: ArrayView2<'_, f32>, means: ArrayView2<'_, f32>) -> (f64, Vec<usize>) {
    let (rows, clusters) = (points.nrows(), means.nrows());
    let apart = distances(points, means);
    let mut pairs: Vec<usize> = (0..rows * clusters).collect();
    let at = |pair: usize| apart[[pair / clusters, pair % clusters]];
    pairs.sort_unstable_by(|a, b| at(*a).total_cmp(&at(*b)).then(a.cmp(b)));
    let mut larger = rows % clusters;
    let mut sizes = vec![0; clusters];
    let mut assigned = vec![None; rows];
    let mut cost = 0.0;
    for pair in pairs {
        let (row, cluster) = (pair / clusters, pair % clusters);
        // As many clusters as there are rows over may have one more.
        let room =
            sizes[cluster] < rows / clusters || (sizes[cluster] == rows / clusters && larger > 0);
        if assigned[row].is_some() || !room {
            continue;
        }
        if sizes[cluster] == rows / clusters {
            larger -= 1;
        }
        sizes[cluster] += 1;
        assigned[row] = Some(cluster);
        cost += at(pair);
    }
    (cost, assigned.into_iter().map(|cluster| cluster.expect("room for every row")).collect())
}
