use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, s};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{Checkpoint, DType, ndarray};

use super::aqua::{normal_grid, ridge};
use super::minicache::{between, unmerged};
use super::xkv::{aside, shared};
use super::{AquaKv, MiniCache, Unmerged, XKv, dissimilar_pairs, share_layers};
use crate::store::coded::floats;
use crate::store::int::Role;
use crate::store::tests::{golden, near, rows_of};
use crate::store::{JointForm, JointPage};

fn layer(file: &Checkpoint, name: &str, heads: usize, n: usize, dim: usize) -> Array3<f32> {
    let rows = rows_of(file, name, heads, n, dim);
    Array3::from_shape_fn((n, heads, dim), |(t, h, c)| rows[[t, h * dim + c]])
}

fn numbers(file: &Checkpoint, name: &str) -> Vec<f32> {
    floats(DType::F32, file.tensor(name).expect("there").bytes())
}

/// A head of a member's keys.
fn decoded(
    page: &dyn JointPage,
    member: usize,
    role: Role,
    head: usize,
    dim: usize,
) -> Array2<f32> {
    let mut out = Array2::zeros((page.tokens(), dim));
    page.decode(member, role, head, out.view_mut());
    out
}

/// Angles, directions, unmerged tokens and restored rows of both readings of MiniCache.
#[test]
fn golden_minicache() {
    let Some(file) = golden("minicache_slerp") else { return };
    let mut checked = 0;
    for short in ["k", "v"] {
        let layers = ["prev", "cur"].map(|l| layer(&file, &format!("in.{short}_{l}"), 4, 64, 32));
        for t in [0.5, 0.6] {
            let (mut angles, mut directions) = (vec![Vec::new(); 4], Vec::new());
            for h in 0..4 {
                for n in 0..64 {
                    let [a, b] = [0, 1].map(|m: usize| layers[m].slice(s![n, h, ..]));
                    let (angle, direction) = between(a, b, t);
                    angles[h].push(angle);
                    directions.extend(direction);
                }
            }
            let factory = format!("factory_{short}_t{t}");
            let theirs = numbers(&file, &format!("{factory}.angle_over_pi"));
            let mine: Vec<f32> =
                angles.iter().flatten().map(|a| (a / std::f64::consts::PI) as f32).collect();
            near(&mine, &theirs, 1e-5, "angles");
            near(
                &directions,
                &numbers(&file, &format!("{factory}.shared_direction")),
                1e-5,
                "directions",
            );
            let form = MiniCache::default().with_t(t).with_chunk(64);
            let kept = file.tensor(&format!("{factory}.retained_idx")).expect("there");
            let kept: Vec<usize> = kept
                .bytes()
                .as_chunks()
                .0
                .iter()
                .map(|b| i32::from_le_bytes(*b) as usize)
                .collect();
            for (mine, theirs) in unmerged(&form, &angles).iter().zip(kept.chunks(4)) {
                let mut theirs = theirs.to_vec();
                theirs.sort_unstable();
                assert_eq!(*mine, theirs, "{factory}");
            }
            let xkv = format!("xkv_{short}_t{t}_g0.05");
            let nearest = form.with_unmerged(Unmerged::Nearest, 0.05);
            let mask = file.tensor(&format!("{xkv}.diverge_mask")).expect("there");
            for (h, mine) in unmerged(&nearest, &angles).iter().enumerate() {
                let theirs: Vec<usize> =
                    (0..64).filter(|n| mask.bytes()[h * 64 + n] == 0).collect();
                assert_eq!(*mine, theirs, "{xkv}");
            }
            for (form, name) in [(form, factory), (nearest, xkv)] {
                let page = form.pack(3..5, None, &layers, &layers).expect("packs");
                for (m, of) in ["prev", "cur"].into_iter().enumerate() {
                    let theirs = numbers(&file, &format!("{name}.restored_{of}"));
                    for h in 0..4 {
                        let mine = decoded(&*page, m, Role::Keys, h, 32);
                        let mine = mine.as_slice().expect("standard layout");
                        // Directions are held in f16.
                        near(mine, &theirs[h * 64 * 32..][..64 * 32], 1e-3, &name);
                    }
                    checked += 1;
                }
            }
        }
    }
    println!("minicache: 1 file, {checked} restored layers, angles, directions and sets equal");
}

/// Singular values and the joint approximations of both ranks.
#[test]
fn golden_xkv() {
    let Some(file) = golden("xkv_svd") else { return };
    let mut checked = 0;
    for short in ["k", "v"] {
        let layers = [0, 1].map(|l| layer(&file, &format!("in.{short}{l}"), 4, 128, 32));
        let x = aside(&layers);
        for rank in [16, 64] {
            let directions = shared(x.view(), rank).expect("converges");
            let coordinates = x.dot(&directions.t());
            let values: Vec<f32> =
                coordinates.columns().into_iter().map(|c| c.dot(&c).sqrt()).collect();
            let theirs = numbers(&file, &format!("{short}.singular_values"));
            near(&values, &theirs[..rank], 1e-5, "singular values");
            let mine = coordinates.dot(&directions);
            let theirs = rows_of(&file, &format!("{short}.joint_rank{rank}"), 8, 128, 32);
            let slices = (mine.as_slice().expect("rows"), theirs.as_slice().expect("rows"));
            near(slices.0, slices.1, 1e-4, "approximation");
            // As a page, coordinates and directions in f16.
            let shares = (rank as f64 / 128.0, rank as f64 / 128.0);
            let form =
                XKv::default().with_group(2).with_chunk(128).with_coordinates(shares.0, shares.1);
            let page = form.pack(0..2, None, &layers, &layers).expect("packs");
            assert_eq!(page.bytes(), 2 * 2 * (128 * rank + rank * 256) as u64);
            for m in 0..2 {
                for h in 0..4 {
                    let at = (m * 4 + h) * 32;
                    let theirs =
                        theirs.slice(s![.., at..at + 32]).as_standard_layout().into_owned();
                    let mine = decoded(&*page, m, Role::Values, h, 32);
                    near(
                        mine.as_slice().expect("rows"),
                        theirs.as_slice().expect("rows"),
                        5e-3,
                        "page",
                    );
                }
            }
            checked += 1;
        }
    }
    println!("xkv: 1 file, {checked} approximations and their singular values equal");
}

#[test]
fn regressions_and_grids_are_what_they_say() {
    let (x, w) = (normal(60, 6, 1), normal(6, 4, 2));
    let y = x.dot(&w) + normal(60, 4, 3) * 0.3;
    // What is least has no slope: Xᵀ (X W - Y) + ridge x mean x W = 0, in f64 by loops.
    let found = ridge(x.view(), y.view(), 0.05);
    let mean: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 6.0;
    for i in 0..6 {
        for j in 0..4 {
            let miss = |n: usize| {
                let p: f64 = (0..6).map(|k| f64::from(x[[n, k]]) * f64::from(found[[k, j]])).sum();
                p - f64::from(y[[n, j]])
            };
            let slope: f64 = (0..60).map(|n| f64::from(x[[n, i]]) * miss(n)).sum::<f64>()
                + 0.05 * mean * f64::from(found[[i, j]]);
            assert!(slope.abs() < 0.1, "{slope}: weights are rounded to f16");
        }
    }
    assert_eq!(ridge(x.view(), y.mapv(|_| f32::NAN).view(), 0.05).dim(), (6, 4));
    // Lloyd's and Max's levels for 1 and 2 bits, from their tables.
    for (bits, theirs) in [(1, vec![0.7979]), (2, vec![0.4528, 1.5104])] {
        let levels = normal_grid(bits);
        for (mine, theirs) in levels[levels.len() / 2..].iter().zip(&theirs) {
            assert!((mine - theirs).abs() < 2e-3, "{bits} bits: {mine} against {theirs}");
        }
    }
}

fn normal(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| gaussian(seed, (i * columns + j) as u64) as f32)
}

/// Keys, and values, of each layer.
type Both = [Vec<Array3<f32>>; 2];

/// Layers of one head, each a turn of the one before and some noise; values from keys and the values before.
fn related(tokens: usize) -> Both {
    let dim = 16;
    let (mut k, mut v) = (normal(tokens, dim, 1), normal(tokens, dim, 2));
    let mut both = [Vec::new(), Vec::new()];
    for l in 0..4 {
        for (all, x) in both.iter_mut().zip([&k, &v]) {
            all.push(x.clone().insert_axis(ndarray::Axis(1)));
        }
        let turn = |seed: u64| normal(dim, dim, seed) / (dim as f32).sqrt();
        k = k.dot(&turn(10 + l)) + normal(tokens, dim, 20 + l) * 0.1;
        v = k.dot(&turn(30 + l)) + v.dot(&turn(40 + l)) + normal(tokens, dim, 50 + l) * 0.1;
    }
    both
}

fn share_of_error(page: &dyn JointPage, both: &Both, from: usize) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (role, layers) in [Role::Keys, Role::Values].into_iter().zip(both) {
        for (m, layer) in layers.iter().enumerate().skip(1) {
            let x = layer.slice(s![from.., 0, ..]);
            let mine = decoded(page, m, role, 0, 16);
            error += (&mine.slice(s![from.., ..]) - &x).mapv(|e| f64::from(e).powi(2)).sum();
            size += x.mapv(|e| f64::from(e).powi(2)).sum();
        }
    }
    error / size
}

/// Predictions take most of what there is to store; on a later page too, whose predictors are the first one's.
#[test]
fn predictions_leave_little_to_store() {
    let both = related(256);
    let half = |from: usize| {
        both.each_ref().map(|all| {
            all.iter().map(|x| x.slice(s![from..from + 128, .., ..]).to_owned()).collect()
        })
    };
    let (first, later): (Both, Both) = (half(0), half(128));
    let form = AquaKv::default().with_chunk(128).with_bits(2, 8).with_sinks(4);
    let page = form.pack(0..4, None, &first[0], &first[1]).expect("packs");
    let next = form.pack(0..4, Some(&*page), &later[0], &later[1]).expect("packs");
    // No predictor: a ridge that lets none be.
    let mut blind = form;
    blind.ridge = 1e9;
    let alone = blind.pack(0..4, None, &first[0], &first[1]).expect("packs");
    let errors = [(&page, &first), (&next, &later), (&alone, &first)]
        .map(|(page, both)| share_of_error(&**page, both, 4));
    assert!(errors[0] < 0.02 && errors[1] < 0.03, "{errors:?}");
    assert!(errors[2] > 0.08, "{errors:?}: 2 bits of a normal number lose about 0.12");
    // The first tokens are exact, but for f16.
    assert!(share_of_error(&*page, &first, 0) <= errors[0]);
    let exact = decoded(&*page, 2, Role::Values, 0, 16);
    for (mine, x) in exact.slice(s![..4, ..]).iter().zip(first[1][2].slice(s![..4, 0, ..])) {
        assert!((mine - x).abs() <= 1e-3 * x.abs());
    }
    // In whatever order members are asked for.
    let again = decoded(&*next, 3, Role::Keys, 0, 16);
    let _ = decoded(&*next, 1, Role::Keys, 0, 16);
    assert_eq!(decoded(&*next, 3, Role::Keys, 0, 16), again);
    // Codes, scales, predictors and exact rows, in bytes.
    let codes = (8 + 3 * 2) * 2 * 16 * 128 / 8;
    let predictors = 3 * (16 * 16 + 32 * 16) * 2;
    let rest = 4 * 2 * 128 * 2;
    assert_eq!(next.bytes(), (codes + rest) as u64);
    assert_eq!(page.bytes(), (codes + rest + predictors + 4 * 4 * 2 * 16 * 2) as u64);
    let _: Arc<dyn JointPage> = page;
}

/// Regressions on decoded inputs correct what came before; on exact inputs they would not.
#[test]
fn layers_correct_the_errors_before_them() {
    let both = related(256);
    let form = AquaKv::default().with_chunk(256).with_bits(1, 1).with_sinks(0);
    let page = form.pack(0..4, None, &both[0], &both[1]).expect("packs");
    // Keys of the second layer: predicted from decoded keys of the first, by what either regression gives.
    let before = decoded(&*page, 0, Role::Keys, 0, 16);
    let (exact, wanted) = (both[0][0].slice(s![.., 0, ..]), both[0][1].slice(s![.., 0, ..]));
    let on = |x: ndarray::ArrayView2<'_, f32>| {
        let w = ridge(x, wanted, 1e-3);
        (before.dot(&w) - wanted).mapv(|e| f64::from(e).powi(2)).sum()
    };
    let (decoded_first, exact_first) = (on(before.view()), on(exact));
    assert!(decoded_first < 0.95 * exact_first, "{decoded_first} against {exact_first}");
    // The page's own prediction is the former's: what it stores is as small.
    let mine = decoded(&*page, 1, Role::Keys, 0, 16);
    let left = (&mine - &wanted).mapv(|e| f64::from(e).powi(2)).sum();
    assert!(left < 0.45 * decoded_first, "{left}: 1 bit leaves 0.36 of {decoded_first}");
}

#[test]
fn unlike_layers_share() {
    let layers = [vec![0.0, 0.0], vec![1.0, 0.0], vec![0.0, 3.0], vec![4.0, 0.0]].map(Array1::from);
    let views: Vec<_> = layers.iter().map(|l| l.view()).collect();
    let pairs = dissimilar_pairs(&views).expect("pairs");
    assert_eq!(pairs, [(2, 3), (0, 3), (1, 2), (0, 2), (1, 3), (0, 1)]);
    // The first pair is turned down, the second taken; then 3 reads another and 2 may still.
    let mut asked = Vec::new();
    let similar = |owners: &[usize]| {
        asked.push(owners.to_vec());
        Ok(if owners[3] == 2 { 0.4 } else { 0.9 })
    };
    let owners = share_layers(4, &pairs, 2, 0.5, similar).expect("owners");
    assert_eq!(owners, [0, 1, 1, 0]);
    assert_eq!(asked, [vec![0, 1, 2, 2], vec![0, 1, 2, 0], vec![0, 1, 1, 0]]);
    assert_eq!(share_layers(4, &pairs, 0, 0.5, |_| Ok(1.0)).expect("none"), [0, 1, 2, 3]);
    assert!(share_layers(4, &[(2, 1)], 1, 0.5, |_| Ok(1.0)).is_err());
    assert!(dissimilar_pairs(&[views[0], layers[1].slice(s![..1])]).is_err());
}
