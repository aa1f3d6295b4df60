use tensorpress_kvcache::{Cache, Policy};
use tensorpress_tensor::ErrorKind;

use crate::{
    KV_HEADS, LAST, MORE, SCORES, STORES, every_recipe, feed, go_on_alike, held, layers, one,
    waiting_recipes,
};

#[test]
fn truncate_is_as_if_never_past() {
    let (mut went_past, mut all) = (0, 0);
    for recipe in every_recipe().into_iter().chain(waiting_recipes()) {
        // A middle layer, so that a pyramid is one.
        let cache = || layers(&recipe, 3).remove(1);
        let (mut past, mut never) = (cache(), cache());
        for cache in [&mut past, &mut never] {
            feed(cache, 0..100);
            (100..103).for_each(|t| drop(feed(cache, t..t + 1)));
        }
        assert!(past.earliest() <= 103, "{recipe}");
        // One step at a time until something is evicted again.
        for len in 103..115 {
            let before = past.fork();
            feed(&mut past, len..len + 1);
            if past.earliest() > 103 {
                past = before;
                break;
            }
        }
        went_past += usize::from(past.len() > 103);
        all += 1;
        past.truncate(103).expect(&recipe);
        assert_eq!(past.len(), 103, "{recipe}");
        go_on_alike(&mut past, &mut never, 103..125, &recipe);
        let before = held(&past);
        if past.earliest() > 10 {
            assert_eq!(past.truncate(10).unwrap_err().kind(), ErrorKind::Unsupported, "{recipe}");
        }
        assert_eq!(past.truncate(1000).unwrap_err().kind(), ErrorKind::InvalidArgument, "{recipe}");
        assert_eq!((past.len(), held(&past)), (125, before), "{recipe}: refused");
        past.truncate(0).expect("back to nothing");
        let mut fresh = cache();
        assert_eq!(feed(&mut past, 0..60), feed(&mut fresh, 0..60), "{recipe}");
        go_on_alike(&mut past, &mut fresh, 60..70, &recipe);
    }
    println!("{went_past} of {all} recipes went past and back");
    assert!(went_past > all * 9 / 10, "{went_past} of {all}");
}

#[test]
fn forks_are_isolated() {
    for recipe in every_recipe().into_iter().chain(waiting_recipes()) {
        let (mut cache, mut alone) = (one(&recipe), one(&recipe));
        for cache in [&mut cache, &mut alone] {
            feed(cache, 0..90);
        }
        let mut fork = cache.fork();
        (200..220).for_each(|t| drop(feed(&mut fork, t..t + 1)));
        go_on_alike(&mut cache, &mut alone, 90..110, &recipe);
        let mut again = one(&recipe);
        feed(&mut again, 0..90);
        (200..220).for_each(|t| drop(feed(&mut again, t..t + 1)));
        assert_eq!(held(&fork), held(&again), "{recipe}");
    }
}

fn scores(cache: &Cache) -> (Vec<Vec<f32>>, Vec<Vec<usize>>) {
    let (policy, _): (&Policy, _) = cache.policy().expect("a policy");
    let held = cache.held().expect("a policy");
    (policy.score.score(held).expect("scores"), policy.plan(held, 40).expect("a plan").0)
}

/// What a score has learnt does not depend on how the tokens came: its numbers, and what a plan made of them keeps.
#[test]
fn streaming_scores_equal_batch() {
    for store in STORES {
        // Attention of one query multiplies integers; that of many multiplies what they stand for.
        let tolerance = if store.starts_with('f') || store == "bf16" { 1e-5 } else { 2e-3 };
        let more = MORE.map(|(name, keys, _)| (name, keys));
        let more = more.into_iter().filter(|_| store == "f32");
        for (score, keys) in SCORES.map(|name| (name, "")).into_iter().chain(more) {
            if score == "h2o" && tolerance > 1e-5 {
                // It sums what tokens received while they were still exact.
                continue;
            }
            for last in ["", " | adakv"] {
                let recipe = format!("{store} | {score}(keep=1{keys}){last}");
                let fed = |step: usize| {
                    let mut cache = one(&recipe);
                    (0..130)
                        .step_by(step)
                        .for_each(|t| drop(feed(&mut cache, t..(t + step).min(130))));
                    assert!(held(&cache).iter().all(|h| h.len() == 130), "{recipe}");
                    scores(&cache)
                };
                let (batch, kept) = fed(130);
                for step in [1, 7, 64] {
                    let (stream, mine) = fed(step);
                    let largest = batch.iter().flatten().fold(0.0f32, |a, b| a.max(b.abs()));
                    for h in 0..KV_HEADS {
                        let near = |slot: usize| {
                            (batch[h][slot] - stream[h][slot]).abs() <= tolerance * largest
                        };
                        assert!((0..130).all(near), "{recipe}, steps of {step}");
                        // A plan differs only in tokens that are as good, within the rounding.
                        let border =
                            kept[h].iter().map(|s| batch[h][*s]).fold(f32::INFINITY, f32::min);
                        let differs = |s: &&usize| mine[h].contains(s) != kept[h].contains(s);
                        for slot in mine[h].iter().chain(&kept[h]).filter(differs) {
                            let off = (batch[h][*slot] - border).abs();
                            assert!(off <= 4.0 * tolerance * largest, "{recipe}: slot {slot}");
                        }
                    }
                }
            }
        }
    }
}

/// Where a score depends on nothing but the token itself, evicting step by step keeps what evicting once would.
#[test]
fn streaming_eviction_equals_batch() {
    let mut checked = 0;
    for store in STORES {
        for (score, fixed) in [
            ("streaming", true),
            ("random", true),
            // A key's norm is a little another one once it is packed.
            ("knorm", store.len() < 5),
        ] {
            if !fixed {
                continue;
            }
            for last in LAST {
                if last.contains("adakv") && score == "streaming" {
                    // Tokens of two heads tie, and ties go by slot.
                    continue;
                }
                let last = last.replace("adakv", "adakv(floor=0)");
                let recipe = format!("{store} | {score}(tokens=50, stride=1){last}");
                let (mut batch, mut stream) = (one(&recipe), one(&recipe));
                feed(&mut batch, 0..150);
                (0..150).for_each(|t| drop(feed(&mut stream, t..t + 1)));
                assert_eq!(held(&batch), held(&stream), "{recipe}");
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "{checked}");
}
