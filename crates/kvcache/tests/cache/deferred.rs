//! Drafts that are taken back were never there.

use std::ops::Range;

use ndarray::{Array3, Axis, concatenate, s};
use tensorpress_kvcache::Cache;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{ErrorKind, Part, PartSink, Result, Scratch, ndarray};

use crate::{KV_HEADS, TEXT, every_recipe, feed, held, layers, one};

/// Everything that is in a cache.
fn contents(cache: &Cache) -> (Json, Vec<(String, Vec<u8>)>) {
    struct Parts(Vec<(String, Vec<u8>)>);
    impl PartSink for Parts {
        fn part(&mut self, part: Part<'_>) -> Result<()> {
            self.0.push((part.name, part.bytes.into_owned()));
            Ok(())
        }
    }
    let mut parts = Parts(Vec::new());
    cache.parts("kv", &mut parts).expect("parts");
    (cache.describe(), parts.0)
}

/// Appends and attends tokens of the text and, in the same call, junk behind them.
fn draft(cache: &mut Cache, good: Range<usize>, junk: usize) -> Array3<f32> {
    let at = 299 - good.start % 40;
    let [k, v, q] = TEXT.each_ref().map(|x| {
        let (good, junk) = (x.slice(s![good.clone(), .., ..]), x.slice(s![at - junk..at, .., ..]));
        concatenate(Axis(0), &[good, junk]).expect("of the same heads")
    });
    cache.append(k.view(), v.view()).expect("appends");
    let mut out = Array3::zeros(q.raw_dim());
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
    out
}

#[test]
fn rejected_drafts_were_never_there() {
    // Accepted and rejected tokens of each round.
    let rounds = [(1, 4), (3, 2), (0, 5), (5, 0), (2, 40), (0, 1), (1, 0), (4, 9), (1, 6), (7, 1)];
    let (mut recipes, mut planned) = (0, 0);
    for recipe in every_recipe() {
        // A middle layer, so that a pyramid is one.
        let cache = || layers(&recipe, 3).remove(1);
        let (mut drafted, mut never) = (cache().with_deferred(), cache());
        feed(&mut drafted, 0..100);
        assert_eq!((drafted.settled(), drafted.earliest()), (0, 0), "{recipe}");
        drafted.settle().expect(&recipe);
        feed(&mut never, 0..100);
        assert_eq!(contents(&drafted), contents(&never), "{recipe}: the prompt");
        let mut len = 100;
        for (round, (good, junk)) in rounds.into_iter().cycle().take(25).enumerate() {
            let before = held(&drafted);
            draft(&mut drafted, len..len + good, junk);
            let slots = |held: &[Vec<usize>]| held.iter().map(Vec::len).sum::<usize>();
            let more = slots(&held(&drafted)) - slots(&before);
            assert_eq!(more, KV_HEADS * (good + junk), "{recipe}: nothing goes between");
            // Step by step, or at once.
            if round % 2 == 0 {
                (len + good..len + good + junk)
                    .rev()
                    .for_each(|len| drafted.truncate(len).expect(&recipe));
            } else {
                drafted.truncate(len + good).expect(&recipe);
            }
            assert_eq!((drafted.len(), drafted.settled()), (len + good, len), "{recipe}");
            drafted.settle().expect(&recipe);
            if good > 0 {
                let before = slots(&held(&never)) + KV_HEADS * good;
                feed(&mut never, len..len + good);
                planned += usize::from(slots(&held(&never)) < before);
            }
            len += good;
            assert_eq!(contents(&drafted), contents(&never), "{recipe}: round {round}");
        }
        // What follows is alike too.
        for t in len..len + 5 {
            let (a, b) = (feed(&mut drafted, t..t + 1), feed(&mut never, t..t + 1));
            drafted.settle().expect(&recipe);
            assert_eq!(a.mapv(f32::to_bits), b.mapv(f32::to_bits), "{recipe}: token {t}");
        }
        recipes += 1;
    }
    println!("{recipes} recipes, {planned} rounds in which tokens went");
    assert!(planned > recipes, "{planned} plans in {recipes} recipes");
}

/// Drafts in several calls, taken back into the middle of one, and others in their place.
#[test]
fn drafts_branch() {
    for recipe in every_recipe() {
        let (mut drafted, mut never) = (one(&recipe).with_deferred(), one(&recipe).with_deferred());
        for cache in [&mut drafted, &mut never] {
            feed(cache, 0..90);
            cache.settle().expect(&recipe);
            feed(cache, 90..91);
        }
        for step in [3, 1, 6] {
            draft(&mut drafted, 91..93, step);
        }
        drafted.truncate(95).expect(&recipe);
        let fork = drafted.fork();
        drafted.truncate(91).expect(&recipe);
        assert_eq!(contents(&drafted), contents(&never), "{recipe}");
        for cache in [&mut drafted, &mut never] {
            draft(cache, 91..95, 1);
            cache.truncate(94).expect(&recipe);
            cache.settle().expect(&recipe);
        }
        assert_eq!(contents(&drafted), contents(&never), "{recipe}");
        assert_eq!(fork.len(), 95, "{recipe}: a fork keeps its drafts");
        assert_eq!(fork.settled(), 90, "{recipe}");
    }
}

#[test]
fn going_back_before_what_is_settled() {
    for recipe in every_recipe() {
        let mut cache = one(&recipe).with_deferred();
        feed(&mut cache, 0..120);
        cache.settle().expect(&recipe);
        let (settled, earliest) = (contents(&cache), cache.earliest());
        feed(&mut cache, 120..130);
        let drafted = contents(&cache);
        assert_eq!(cache.truncate(131).unwrap_err().kind(), ErrorKind::InvalidArgument, "{recipe}");
        if earliest > 1 {
            let error = cache.truncate(earliest - 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{recipe}");
        }
        assert_eq!(contents(&cache), drafted, "{recipe}: refused");
        cache.truncate(120).expect(&recipe);
        assert_eq!(contents(&cache), settled, "{recipe}");
        if earliest < 120 {
            cache.truncate(earliest.max(1)).expect(&recipe);
            assert_eq!((cache.len(), cache.settled()), (earliest.max(1), earliest.max(1)));
        }
        cache.truncate(0).expect(&recipe);
        let mut fresh = one(&recipe).with_deferred();
        assert_eq!(feed(&mut cache, 0..60), feed(&mut fresh, 0..60), "{recipe}");
        for cache in [&mut cache, &mut fresh] {
            cache.settle().expect(&recipe);
            cache.settle().expect("again");
        }
        assert_eq!(contents(&cache), contents(&fresh), "{recipe}");
    }
    let mut plain = one("f32 | streaming(tokens=20)");
    feed(&mut plain, 0..50);
    let before = contents(&plain);
    plain.settle().expect("nothing to do");
    assert_eq!((contents(&plain), plain.settled()), (before, 50));
}
