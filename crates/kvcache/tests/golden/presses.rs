//! The presses of kvpress beside those of `kvpress.rs`: scores of ours, and arithmetic that is no method here.

use std::collections::BTreeSet;

use ndarray::{Array2, Array3, Axis, s};
use tensorpress_kvcache::score::{
    Capacity, Compactor, LagRelative, LeverageOf, Leverages, QueryFilter, Question, Sketch,
    leverages,
};
use tensorpress_kvcache::{Budget, KvStore, LayerAt, Policy, Rope, Score};
use tensorpress_tensor::{Checkpoint, ndarray};

use crate::{Case, Fixed, floats, ints, near, open, same_sets, sets, tokens_first};

const ALONE: LayerAt = LayerAt { index: 0, of: 1 };
const RATIOS: [f64; 3] = [0.25, 0.5, 0.75];
const HEADS: usize = 4;
const TOKENS: usize = 300;

/// Four heads of numbers.
fn rows(file: &Checkpoint, name: &str) -> Vec<Vec<f32>> {
    floats(file, name).chunks(TOKENS).map(<[f32]>::to_vec).collect()
}

fn kept(file: &Checkpoint, name: &str, ratio: f64) -> Vec<BTreeSet<usize>> {
    sets(&ints(file, &format!("{name}.kept_r{ratio}")), HEADS)
}

/// Scores equal but for the tokens that always stay, and the sets that a policy of them keeps.
fn check(
    file: &Checkpoint,
    case: &Case,
    name: &str,
    score: impl Score + Clone + 'static,
    (first, last): (usize, usize),
) -> usize {
    let mine = case.scores(score.clone());
    for (mine, theirs) in mine.iter().zip(rows(file, &format!("{name}.score"))) {
        near(&mine[first..TOKENS - last], &theirs[first..TOKENS - last], 1e-4, name);
    }
    for ratio in RATIOS {
        let policy = Policy::new(score.clone(), Budget::Keep(1.0 - ratio));
        let what = format!("{name} at {ratio}");
        same_sets(&case.kept(policy, ALONE), &kept(file, name, ratio), &mine, &what);
    }
    4
}

#[test]
fn kvpress_more_scores_and_kept_sets() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let rope = Rope::with_frequencies(floats(&file, "in.inv_freq")).expect("frequencies");
    let filters = floats(&file, "in.q_filters").chunks(32).map(<[f32]>::to_vec).collect();
    let product = Leverages::new(LeverageOf::Product, 16);
    let mean = Leverages::new(LeverageOf::Mean, 0);
    let lag = LagRelative::new(64, 4);
    let mut checked = check(&file, &case, "cur_kvproduct_w16", product, (4, 0));
    checked += check(&file, &case, "cur_kvavg_global", mean, (4, 0));
    checked += check(&file, &case, "cap", Capacity::new(rope), (4, 0));
    checked += check(&file, &case, "qfilter", QueryFilter::given(vec![filters]), (0, 0));
    // Behind the sinks are four parts of 64 and 40 more: the last part and what is behind it stay.
    let tail = TOKENS - 4 - 3 * 64;
    checked += check(&file, &case, "lagkv_lag64_cross", lag.with_across(true), (4, tail));
    let mine = case.scores(lag);
    for (mine, theirs) in mine.iter().zip(rows(&file, "lagkv_lag64.score")) {
        near(&mine[4..TOKENS - tail], &theirs[4..TOKENS - tail], 1e-6, "lagkv");
    }
    for ratio in RATIOS {
        // Ranks tie across parts, and which of equals stays is anyone's: as many of each rank.
        let mine = case.kept(Policy::new(lag, Budget::Keep(1.0 - ratio)), ALONE);
        let scores = rows(&file, "lagkv_lag64.score");
        for (h, (mine, theirs)) in mine.iter().zip(kept(&file, "lagkv_lag64", ratio)).enumerate() {
            let levels = |set: &BTreeSet<usize>| {
                let mut levels: Vec<f32> = set.iter().map(|t| scores[h][*t]).collect();
                levels.sort_by(f32::total_cmp);
                levels
            };
            assert_eq!(levels(mine), levels(&theirs), "lagkv at {ratio}, head {h}");
        }
    }
    let question = case.scores(Question::new(32));
    for (mine, theirs) in question.iter().zip(rows(&file, "finch_w32.score")) {
        near(&mine[..TOKENS - 32], &theirs[..TOKENS - 32], 1e-4, "finch");
    }
    println!("kvpress: 1 file, {} scores and kept sets equal", checked + 5);
}

/// FINCH's keys and those of knorm, turned to their new places.
#[test]
fn kvpress_keys_are_renumbered() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let rope = Rope::with_frequencies(floats(&file, "in.inv_freq")).expect("frequencies");
    let finch = |keep| Policy::new(Question::new(32), Budget::Keep(keep)).with_protected(0, 32);
    let knorm = |keep| Policy::new(tensorpress_kvcache::score::KeyNorm, Budget::Keep(keep));
    let cases = [
        ("finch_w32.k_r0.5_rerotated", finch(0.5)),
        ("rerotate_knorm.k_r0.5", knorm(0.5)),
        ("rerotate_knorm.k_r0.75", knorm(0.25)),
    ];
    for (name, policy) in cases {
        let theirs = tokens_first(&file, name);
        for (h, kept) in case.kept(policy, ALONE).into_iter().enumerate() {
            let positions: Vec<usize> = kept.into_iter().collect();
            let mut keys = case.k.slice(s![.., h, ..]).select(Axis(0), &positions);
            rope.renumber(keys.view_mut(), &positions).expect("as many");
            let theirs: Vec<f32> = theirs.slice(s![.., h, ..]).iter().copied().collect();
            near(&keys.into_raw_vec_and_offset().0, &theirs, 1e-4, name);
        }
    }
    println!("kvpress: 1 file, 3 tensors of renumbered keys equal");
}

/// Attention within chunks, written out: kvpress 0.5.4 also counts the zeros that its last chunk is filled up with, as keys
/// of logit 0 and as queries that look at all alike. With `filled`, so does this.
fn within_chunks(
    case: &Case,
    tokens: std::ops::Range<usize>,
    chunk: usize,
    filled: bool,
) -> Vec<Vec<f32>> {
    let all: Vec<usize> = tokens.collect();
    let dot = |q: usize, h: usize, i: usize, j: usize| -> f64 {
        (0..32).map(|c| f64::from(case.q[[i, q, c]]) * f64::from(case.k[[j, h, c]])).sum()
    };
    let mut scores = Array2::<f64>::zeros((HEADS, all.len()));
    for q in 0..12 {
        let h = q / 3;
        for (number, part) in all.chunks(chunk).enumerate() {
            let empty = if filled { chunk - part.len() } else { 0 };
            for i in part {
                let logits: Vec<f64> = part.iter().map(|j| dot(q, h, *i, *j)).collect();
                let most = logits.iter().fold(0.0f64, |a, b| a.max(*b));
                let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum::<f64>()
                    + empty as f64 * (-most).exp();
                for (slot, logit) in logits.iter().enumerate() {
                    scores[[h, number * chunk + slot]] += (logit - most).exp() / sum / 3.0;
                }
            }
            for slot in 0..part.len() {
                scores[[h, number * chunk + slot]] += empty as f64 / chunk as f64 / 3.0;
            }
        }
    }
    for ((h, slot), score) in scores.indexed_iter_mut() {
        let v = case.v.slice(s![all[slot], h, ..]);
        *score *= v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    }
    let near = |h: usize, slot: usize| scores.get([h, slot]).copied().unwrap_or(0.0);
    let pooled = Array2::from_shape_fn(scores.dim(), |(h, slot)| {
        (near(h, slot.wrapping_sub(1)) + near(h, slot) + near(h, slot + 1)) / 3.0
    });
    standard(&pooled)
}

fn standard(scores: &Array2<f64>) -> Vec<Vec<f32>> {
    let mean = scores.mean().expect("tokens");
    let deviation = scores.std(1.0);
    scores
        .rows()
        .into_iter()
        .map(|r| r.iter().map(|s| ((s - mean) / deviation) as f32).collect())
        .collect()
}

/// Compactor and its two halves. Ours fills nothing up, so it is held against the reference without, and kvpress's against
/// that with: they differ in nothing else.
#[test]
fn kvpress_compactor() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    let rope = Rope::with_frequencies(floats(&file, "in.inv_freq")).expect("frequencies");
    let sketch = |name: &str| {
        let numbers = floats(&file, name);
        let scaled = |x: &f32| (f64::from(*x) / 48f64.sqrt()) as f32;
        let heads = numbers.chunks(32 * 48).map(|head| head.iter().map(scaled).collect()).collect();
        Sketch::Given { width: 48, heads }
    };
    let all = |x: &[Vec<f32>], y: &[Vec<f32>], what: &str| {
        x.iter().zip(y).for_each(|(x, y)| near(x, y, 1e-4, what));
    };
    let theirs = rows(&file, "noncausal_c128.score");
    all(&within_chunks(&case, 0..TOKENS, 128, true), &theirs, "kvpress within chunks");
    let mine = case.scores(Compactor::attention(128));
    all(&mine, &within_chunks(&case, 0..TOKENS, 128, false), "within chunks");
    for ratio in RATIOS {
        let fixed = Policy::new(Fixed(theirs.clone()), Budget::Keep(1.0 - ratio));
        let theirs_kept = kept(&file, "noncausal_c128", ratio);
        same_sets(&case.kept(fixed, ALONE), &theirs_kept, &theirs, "within chunks");
    }
    let lever = Compactor::leverages(rope.clone(), sketch("leverage48.sketch_randn"));
    all(&case.scores(lever), &rows(&file, "leverage48.score"), "leverages");
    let inner = 8..TOKENS - 4;
    let Sketch::Given { heads, .. } = sketch("compactor.sketch_randn") else { panic!("given") };
    let plain = tokens_first(&file, "in.k_prerope");
    let lever: Vec<f64> = heads
        .iter()
        .enumerate()
        .flat_map(|(h, sketch)| {
            let sketch = Array2::from_shape_vec((32, 48), sketch.clone()).expect("a sketch");
            let keys = plain.slice(s![inner.clone(), h, ..]);
            leverages(keys, sketch.view()).expect("leverages").into_iter().map(f64::from)
        })
        .collect();
    let lever = standard(&Array2::from_shape_vec((HEADS, inner.len()), lever).expect("heads"));
    for ratio in RATIOS {
        let blend = |attention: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let of = |(l, a): (&Vec<f32>, &Vec<f32>)| {
                l.iter().zip(a).map(|(l, a)| ratio as f32 * l + a).collect()
            };
            lever.iter().zip(attention).map(of).collect()
        };
        let inside = |rows: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
            rows.into_iter().map(|r| r[inner.clone()].to_vec()).collect()
        };
        let theirs = rows(&file, &format!("compactor.score_r{ratio}"));
        let filled = blend(&within_chunks(&case, inner.clone(), 128, true));
        all(&filled, &inside(theirs.clone()), "kvpress's compactor");
        let score = Compactor::new(rope.clone())
            .with_sketch(sketch("compactor.sketch_randn"))
            .with_chunk(128)
            .with_blend(ratio as f32);
        let mine = inside(case.scores(score));
        all(&mine, &blend(&within_chunks(&case, inner.clone(), 128, false)), "compactor");
        let fixed = Policy::new(Fixed(theirs.clone()), Budget::Keep(1.0 - ratio));
        let theirs_kept = kept(&file, "compactor", ratio);
        same_sets(&case.kept(fixed, ALONE), &theirs_kept, &theirs, "compactor");
    }
    println!("kvpress: 1 file, 5 scores and 6 kept sets of Compactor and its halves equal");
}

/// ThinK's channels, kvpress's chunks and blocks: what a test writes out in a few lines, for none is a method here.
#[test]
fn kvpress_arithmetic() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let case = Case::read(&file, "in.");
    for ratio in [0.25, 0.5] {
        let theirs = file.tensor(&format!("think_w32.pruned_channels_r{ratio}")).expect("a mask");
        for (h, theirs) in theirs.bytes().chunks(32).enumerate() {
            let square = |x: &Array3<f32>, head, rows: std::ops::Range<usize>, c: usize| -> f64 {
                let mean = |t: usize| f64::from(x[[t, head, c]]).powi(2) / rows.len() as f64;
                rows.clone().map(mean).sum()
            };
            let score = |c: usize| {
                let q: f64 =
                    (3 * h..3 * h + 3).map(|q| square(&case.q, q, TOKENS - 32..TOKENS, c)).sum();
                q * square(&case.k, h, 0..TOKENS, c)
            };
            let mut channels: Vec<usize> = (0..32).collect();
            channels.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
            let gone: BTreeSet<usize> =
                channels[..(32.0 * ratio) as usize].iter().copied().collect();
            let theirs: BTreeSet<usize> = (0..32).filter(|c| theirs[*c] == 1).collect();
            assert_eq!(gone, theirs, "ThinK at {ratio}, head {h}");
        }
    }
    let norms = case.scores(tensorpress_kvcache::score::KeyNorm);
    for ratio in RATIOS {
        // Chunk by chunk.
        let mut mine = vec![BTreeSet::new(); HEADS];
        for start in (0..TOKENS).step_by(100) {
            let part = |x: &Array3<f32>| x.slice(s![start..start + 100, .., ..]).to_owned();
            let part = Case { k: part(&case.k), v: part(&case.v), q: part(&case.q) };
            let budget = Budget::Keep(1.0 - ratio);
            let kept = part.kept(Policy::new(tensorpress_kvcache::score::KeyNorm, budget), ALONE);
            mine.iter_mut().zip(kept).for_each(|(m, k)| m.extend(k.iter().map(|t| t + start)));
        }
        same_sets(&mine, &kept(&file, "chunk_knorm_c100", ratio), &norms, "chunks");
        // Block by block: a cache of so many tokens that is fed 64 at a time.
        let tokens = (TOKENS as f64 * (1.0 - ratio)) as usize;
        let policy = Policy::new(tensorpress_kvcache::score::KeyDifference, Budget::Tokens(tokens));
        let blocks: Vec<usize> =
            std::iter::once(tokens).chain(std::iter::repeat_n(64, 5)).collect();
        let cache = case.fed(policy, &blocks);
        let mine: Vec<BTreeSet<usize>> =
            (0..HEADS).map(|h| cache.store().positions(h).into_iter().collect()).collect();
        assert_eq!(mine, kept(&file, "block64_keydiff", ratio), "blocks at {ratio}");
    }
    println!("kvpress: 1 file, 2 sets of channels, 6 kept sets of chunks and blocks equal");
}
