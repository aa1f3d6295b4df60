use ndarray::{Array3, s};
use tensorpress_tensor::{Scratch, ndarray};

use crate::{DIM, HEADS, KV_HEADS, MORE, SCORES, feed, held, noise, one, total};

#[test]
fn no_plan_exceeds_its_budget() {
    for store in ["f32", "kivi(bits=4)", "mustafar(sparsity=0.7)"] {
        let more = MORE.map(|(name, keys, _)| (name, keys));
        for (score, keys) in SCORES.map(|name| (name, "")).into_iter().chain(more) {
            for heads in ["", " | adakv"] {
                let of = |budget: &str| one(&format!("{store} | {score}({budget}{keys}){heads}"));
                let mut tokens = of("tokens=50, stride=8");
                let mut share = of("keep=0.5");
                let bytes = if store == "f32" { 30_000 } else { 20_000 };
                let mut fixed = of(&format!("bytes={bytes}"));
                let mut seen = 0;
                for step in [130, 1, 1, 1, 40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1] {
                    for cache in [&mut tokens, &mut share, &mut fixed] {
                        feed(cache, seen..seen + step);
                    }
                    seen += step;
                    let what = format!("{store} | {score}{heads} at {seen}");
                    // A pyramid of one layer is no pyramid.
                    assert!(total(&tokens) <= 50 * KV_HEADS, "{what}: {} tokens", total(&tokens));
                    assert!(total(&tokens) >= 38 * KV_HEADS, "{what}: {} tokens", total(&tokens));
                    assert!(
                        total(&share) <= seen.div_ceil(2) * KV_HEADS,
                        "{what}: {}",
                        total(&share)
                    );
                    assert!(fixed.bytes() <= bytes, "{what}: {} bytes", fixed.bytes());
                    assert!(total(&fixed) > 0, "{what}");
                }
            }
        }
    }
}

#[test]
fn heads_are_ragged_and_their_memory_is_freed() {
    let mut cache = one("f32 | knorm(tokens=50, stride=1) | adakv(floor=0)");
    // The first head's keys are small: all that counts is there.
    let mut k = noise(200, KV_HEADS, 1);
    k.slice_mut(s![.., 0, ..]).mapv_inplace(|v| v / 100.0);
    cache.append(k.view(), noise(200, KV_HEADS, 2).view()).expect("appends");
    let q = noise(1, HEADS, 3);
    let mut out = Array3::zeros(q.raw_dim());
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
    assert_eq!(held(&cache).iter().map(Vec::len).collect::<Vec<_>>(), [100, 0]);
    assert_eq!(cache.bytes(), 100 * (2 * 4 * DIM as u64 + 4));
    feed(&mut cache, 0..1);
}

#[test]
fn demoted_tokens_are_still_attended() {
    let mut all = one("f32");
    let mut low = one("f32 | h2o(tokens=64) | demote(bits=8)");
    let mut gone = one("f32 | h2o(tokens=64)");
    let error = |a: &Array3<f32>, b: &Array3<f32>| (a - b).mapv(|e| e * e).sum();
    let (mut of_low, mut of_gone) = (0.0, 0.0);
    for cache in [&mut all, &mut low, &mut gone] {
        feed(cache, 0..200);
    }
    for t in 200..230 {
        let exact = feed(&mut all, t..t + 1);
        of_low += error(&feed(&mut low, t..t + 1), &exact);
        of_gone += error(&feed(&mut gone, t..t + 1), &exact);
    }
    assert!(of_low < 0.01 * of_gone, "{of_low} against {of_gone}");
    assert!(low.bytes() < all.bytes() * 3 / 4, "{} of {}", low.bytes(), all.bytes());
}
