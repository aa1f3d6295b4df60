//! Codebooks by structural entropy, against the definition and a slow greedy search.

use tensorpress_quant::codebook::{StructuralEntropy, structural_entropy};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, array};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn far(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// The definition, vertex by vertex.
fn slow_entropy(edges: &[(usize, usize, f64)], community: &[usize]) -> f64 {
    let degree =
        |v: usize| -> f64 { edges.iter().filter(|e| e.0 == v || e.1 == v).map(|e| e.2).sum() };
    let n = community.len();
    let whole: f64 = (0..n).map(degree).sum();
    let mut total = 0.0;
    for x in 0..n {
        let members: Vec<usize> = (0..n).filter(|v| community[*v] == x).collect();
        let volume: f64 = members.iter().map(|v| degree(*v)).sum();
        if volume == 0.0 {
            continue;
        }
        let cut: f64 = edges
            .iter()
            .filter(|e| (community[e.0] == x) != (community[e.1] == x))
            .map(|e| e.2)
            .sum();
        total -= cut / whole * (volume / whole).ln() / 2f64.ln();
        for d in members.iter().map(|v| degree(*v)).filter(|d| *d > 0.0) {
            total -= d / whole * (d / volume).ln() / 2f64.ln();
        }
    }
    total
}

#[test]
fn entropy_is_that_of_the_definition() {
    let mut edges = Vec::new();
    for (a, b) in (0..12).flat_map(|a| (0..a).map(move |b| (b, a))) {
        let weight = gaussian(13, 12 * a as u64 + b as u64);
        if weight > 0.2 {
            edges.push((a, b, weight));
        }
    }
    for community in [
        vec![0; 12],
        (0..12).collect(),
        (0..12).map(|v| v % 3).collect(),
        vec![5, 5, 5, 1, 1, 1, 1, 9, 9, 2, 2, 2],
    ] {
        let (got, exact) =
            (structural_entropy(&edges, &community).unwrap(), slow_entropy(&edges, &community));
        assert!((got - exact).abs() < 1e-9, "{got}, {exact}");
    }
    assert_eq!(structural_entropy(&[], &[0, 1]).unwrap(), 0.0);
    let kind =
        |edges: &[(usize, usize, f64)]| structural_entropy(edges, &[0, 1]).unwrap_err().kind();
    assert_eq!(kind(&[(0, 2, 1.0)]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[(1, 1, 1.0)]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[(0, 1, -1.0)]), ErrorKind::Numerical);
}

/// Points of clouds, and the edges that the method makes of them.
fn clouds(count: usize, each: usize) -> Array2<f32> {
    let noise = matrix(count * each, 3, 14) * 0.4;
    Array2::from_shape_fn((count * each, 3), |(i, j)| {
        noise[[i, j]] + gaussian(15, (i / each * 3 + j) as u64) as f32 * 8.0
    })
}

fn edges_of(vectors: &Array2<f32>, neighbours: usize) -> (Vec<(usize, usize, f64)>, f64) {
    let n = vectors.nrows();
    let mut pairs = Vec::new();
    for i in 0..n {
        let mut others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
        others.sort_by(|a, b| {
            far(vectors.row(i), vectors.row(*a)).total_cmp(&far(vectors.row(i), vectors.row(*b)))
        });
        pairs.extend(others.into_iter().take(neighbours).map(|j| (i, j)));
    }
    let mean = pairs.iter().map(|(i, j)| far(vectors.row(*i), vectors.row(*j))).sum::<f64>()
        / pairs.len() as f64;
    let mut all: Vec<(usize, usize)> = pairs.iter().map(|(i, j)| (*i.min(j), *i.max(j))).collect();
    all.sort();
    all.dedup();
    let weigh =
        |(i, j): (usize, usize)| (i, j, (-far(vectors.row(i), vectors.row(j)) / mean).exp());
    (all.into_iter().map(weigh).collect(), mean)
}

#[test]
fn communities_are_what_greedy_merging_finds() {
    let vectors = clouds(4, 9);
    let book =
        StructuralEntropy::default().with_neighbours(4).fit(vectors.view(), Par::Seq).unwrap();
    let (edges, _) = edges_of(&vectors, 4);
    let exact = slow_entropy(&edges, book.codes());
    assert!((book.entropy() - exact).abs() < 1e-9, "{}, {exact}", book.entropy());
    // The same greedy steps with all entropies computed anew.
    let mut community: Vec<usize> = (0..36).collect();
    loop {
        let now = slow_entropy(&edges, &community);
        let mut best = (now - 1e-12, None);
        for (a, b, _) in &edges {
            let (x, y) = (community[*a].min(community[*b]), community[*a].max(community[*b]));
            if x == y {
                continue;
            }
            let merged: Vec<usize> =
                community.iter().map(|c| if *c == y { x } else { *c }).collect();
            let entropy = slow_entropy(&edges, &merged);
            if entropy < best.0 - 1e-12 {
                best = (entropy, Some(merged));
            }
        }
        match best.1 {
            Some(merged) => community = merged,
            None => break,
        }
    }
    for a in 0..36 {
        for b in 0..36 {
            let ours = book.codes()[a] == book.codes()[b];
            assert_eq!(ours, community[a] == community[b], "{a} and {b}");
        }
    }
    // Codewords are means, and no community spans two clouds.
    for (code, word) in book.codewords().rows().into_iter().enumerate() {
        let own: Vec<usize> = (0..36).filter(|v| book.codes()[*v] == code).collect();
        assert!(own.iter().all(|v| v / 9 == own[0] / 9));
        for j in 0..3 {
            let mean =
                own.iter().map(|v| f64::from(vectors[[*v, j]])).sum::<f64>() / own.len() as f64;
            assert!((mean - f64::from(word[j])).abs() < 1e-4);
        }
    }
    let again =
        StructuralEntropy::default().with_neighbours(4).fit(vectors.view(), Par::Rayon).unwrap();
    assert!(again.codes() == book.codes() && again.codewords() == book.codewords());
}

#[test]
fn a_new_vector_goes_where_the_entropy_stays_least() {
    let vectors = clouds(5, 8);
    let book =
        StructuralEntropy::default().with_neighbours(3).fit(vectors.view(), Par::Seq).unwrap();
    let (edges, mean) = edges_of(&vectors, 3);
    for seed in 0..30 {
        let vector =
            (&clouds(5, 8).row(seed % 40) + &(matrix(1, 3, 100 + seed as u64).row(0))).to_owned();
        let mut near: Vec<usize> = (0..40).collect();
        near.sort_by(|a, b| {
            far(vector.view(), vectors.row(*a)).total_cmp(&far(vector.view(), vectors.row(*b)))
        });
        let mut more = edges.clone();
        more.extend(
            near[..3].iter().map(|j| (*j, 40, (-far(vector.view(), vectors.row(*j)) / mean).exp())),
        );
        let entropy = |code: usize| {
            let mut community = book.codes().to_vec();
            community.push(code);
            slow_entropy(&more, &community)
        };
        let got = entropy(book.encode(vector.view()).unwrap());
        // Among those it is joined with.
        let best =
            near[..3].iter().map(|j| entropy(book.codes()[*j])).fold(f64::INFINITY, f64::min);
        assert!(got <= best + 1e-9, "{got}, {best}");
    }
    let far_off = array![1e9f32, 0.0, 0.0];
    assert!(book.encode(far_off.view()).unwrap() < book.codewords().nrows());
    let kind = |v: &[f32]| book.encode(ArrayView1::from(v)).unwrap_err().kind();
    assert_eq!(kind(&[0.0]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[0.0, f32::NAN, 0.0]), ErrorKind::Numerical);
    let plain = StructuralEntropy::default();
    let kind =
        |v: &Array2<f32>, k| plain.with_neighbours(k).fit(v.view(), Par::Seq).unwrap_err().kind();
    assert_eq!(kind(&vectors, 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&Array2::zeros((0, 3)), 2), ErrorKind::InsufficientData);
    assert_eq!(kind(&Array2::from_elem((3, 3), f32::NAN), 2), ErrorKind::Numerical);
    for v in [Array2::zeros((1, 3)), Array2::zeros((9, 3)), Array2::from_elem((4, 3), 1e18)] {
        let book = plain.fit(v.view(), Par::Seq).unwrap();
        assert!(book.codewords().iter().all(|v| v.is_finite()) && book.entropy().is_finite());
        assert!(book.encode(v.row(0)).is_ok());
    }
}
