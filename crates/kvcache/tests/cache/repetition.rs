//! Contexts said again, against plain loops; and what a cache does meanwhile.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::{Cache, HeadSlots, KvRecipe};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{ErrorKind, Scratch, Storage, ndarray};

use crate::{DIM, HEADS, KV_HEADS, STORES, TEXT, go_on_alike, held, one, read, waiting_recipes};

const CONTEXT: usize = 90;
const WHOLE: Range<usize> = 0..CONTEXT;
const GROUP: usize = HEADS / KV_HEADS;

fn output() -> Array2<f32> {
    Array2::from_shape_fn((7, HEADS * DIM), |(r, c)| gaussian(9, (r * 999 + c) as u64) as f32)
}

/// Any norm of a token of the text.
fn hidden(token: usize) -> f32 {
    1.0 + (token * 7 % 5) as f32
}

/// What is said for each part of the context: tokens of the text, in the place of a prompt and the context.
fn said(part: &Range<usize>) -> Range<usize> {
    100 + part.start..110 + part.end
}

fn begun(recipe: &str, step: usize) -> Cache {
    let recipe: KvRecipe = recipe.parse().expect(recipe);
    let recipe = recipe.with_repetition().with_outputs(vec![Arc::new(output())]);
    let mut cache = recipe.caches(1, HEADS, KV_HEADS, DIM).expect("caches").remove(0);
    (0..CONTEXT).step_by(step).for_each(|t| drop(read(&mut cache, t..(t + step).min(CONTEXT))));
    cache
}

/// Says parts of the context, in pieces.
fn say(cache: &mut Cache, parts: &[Range<usize>]) {
    for part in parts {
        cache.begin_repetition(part.clone()).expect("begins");
        assert_eq!(cache.len(), CONTEXT, "the part before was taken back");
        let all = said(part);
        for piece in [all.start..all.start + 3, all.start + 3..all.end] {
            let norms: Vec<f32> = piece.clone().map(hidden).collect();
            cache.tell_hidden_norms(&norms);
            read(cache, piece);
        }
    }
}

/// By head of keys and token of the context: the most that saying its part looks at it, by the definition and in f64.
fn slow(parts: &[Range<usize>], plus: bool, sinks: usize) -> Vec<Vec<f64>> {
    let [k, v, q] = &*TEXT;
    let output = output();
    let mut most = vec![vec![0.0f64; CONTEXT]; KV_HEADS];
    for part in parts {
        for (head, query) in (0..HEADS).flat_map(|h| said(part).map(move |t| (h, t))) {
            let of = head / GROUP;
            let e = |j: usize| -> f64 {
                let dot: f64 = (0..DIM)
                    .map(|c| f64::from(q[[query, head, c]]) * f64::from(k[[j, of, c]]))
                    .sum();
                (dot / (DIM as f64).sqrt()).exp()
            };
            let beside = (0..sinks.min(part.start)).chain(said(part).start..query + 1);
            let sum: f64 = beside.chain(part.clone()).map(e).sum();
            for j in part.clone() {
                let mut weight = e(j) / sum;
                if plus {
                    let made = |r: usize| -> f64 {
                        let term = |c: usize| {
                            f64::from(output[[r, head * DIM + c]]) * f64::from(v[[j, of, c]])
                        };
                        (0..DIM).map(term).sum()
                    };
                    let norm = (0..7).map(|r| made(r).powi(2)).sum::<f64>().sqrt();
                    weight *= norm / f64::from(hidden(query));
                }
                most[of][j] = most[of][j].max(weight);
            }
        }
    }
    most
}

/// The best of a layer, whichever head they belong to, and the first tokens.
fn best(scores: &[Vec<f64>], tokens: usize, sinks: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<(f64, usize, usize)> = Vec::new();
    for (h, scores) in scores.iter().enumerate() {
        let of = |(t, score): (usize, &f64)| (if t < sinks { 1e9 } else { *score }, h, t);
        all.extend(scores.iter().enumerate().map(of));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut kept = vec![Vec::new(); scores.len()];
    all.iter().take(tokens * scores.len()).for_each(|(_, h, t)| kept[*h].push(*t));
    kept.iter_mut().for_each(|kept| kept.sort_unstable());
    kept
}

#[test]
fn what_stays_is_what_saying_it_again_looks_at_most() {
    let whole = [WHOLE];
    let three = [0..40, 40..80, 80..CONTEXT];
    let mut sets = Vec::new();
    for (plus, parts, sinks) in [
        (false, &whole[..], 4),
        (true, &whole[..], 4),
        (false, &three[..], 4),
        (true, &three[..], 4),
        (true, &three[..], 0),
    ] {
        for step in [CONTEXT, 7] {
            let recipe = format!("f32 | kvzip(keep=0.3, plus={plus}, sinks={sinks})");
            let mut cache = begun(&recipe, step);
            assert_eq!(held(&cache), vec![(0..CONTEXT).collect::<Vec<_>>(); KV_HEADS], "it waits");
            assert_eq!(cache.repetition().map(|r| (r.chunk, r.plus)), Some((2048, plus)));
            say(&mut cache, parts);
            cache.end_repetition().expect("ends");
            let expected = best(&slow(parts, plus, sinks), 27, sinks);
            assert_eq!(held(&cache), expected, "{recipe}, {parts:?}, steps of {step}");
            assert_eq!((cache.len(), cache.repetition()), (CONTEXT, None));
        }
        sets.push(best(&slow(parts, plus, sinks), 27, sinks));
    }
    assert!(sets.iter().any(|kept| kept[0].len() != kept[1].len()), "heads share a budget");
    for (a, b) in [(0, 1), (0, 2), (1, 3), (3, 4)] {
        assert_ne!(sets[a], sets[b], "variants {a} and {b} differ");
    }
}

/// Whatever the form: what stays is what would be there had nothing been said, and it goes on so; nothing goes any more.
#[test]
fn what_was_said_has_never_been() {
    for store in STORES {
        for rest in ["keep=0.3", "tokens=20, plus=true", "bytes=6000"] {
            let recipe = format!("{store} | kvzip({rest})");
            let mut cache = begun(&recipe, CONTEXT);
            say(&mut cache, &[0..50, 50..CONTEXT]);
            cache.end_repetition().expect("ends");
            let kept = held(&cache);
            assert!(kept.iter().map(Vec::len).sum::<usize>() < CONTEXT, "{recipe}");
            if rest.starts_with("bytes") {
                assert!(cache.bytes() <= 6000, "{recipe}: {}", cache.bytes());
            } else {
                // What was packed again once: with bytes it may be so twice.
                let mut never = one(store);
                read(&mut never, 0..CONTEXT);
                never.retain(&HeadSlots(kept.clone())).expect("retains");
                let mut fork = cache.fork();
                go_on_alike(&mut fork, &mut never, 200..240, &recipe);
            }
            read(&mut cache, 200..290);
            (290..300).for_each(|t| drop(read(&mut cache, t..t + 1)));
            for (now, kept) in held(&cache).iter().zip(&kept) {
                assert_eq!(now[..kept.len()], kept[..], "{recipe}");
                assert_eq!(now.len(), kept.len() + 100, "{recipe}: what comes later stays whole");
            }
            cache.truncate(CONTEXT + 95).expect("later tokens can go");
        }
    }
}

#[test]
fn a_repetition_can_be_abandoned_forked_and_put_off() {
    for recipe in waiting_recipes() {
        let whole = [WHOLE];
        let (mut once, mut cache) = (begun(&recipe, CONTEXT), begun(&recipe, CONTEXT));
        say(&mut once, &whole);
        once.end_repetition().expect("ends");
        // Abandoned, it waits as before.
        say(&mut cache, &[0..9, 9..30]);
        cache.abandon_repetition();
        assert_eq!(cache.describe(), begun(&recipe, CONTEXT).describe(), "{recipe}");
        // A fork within goes its own way.
        say(&mut cache, &whole);
        let mut fork = cache.fork();
        cache.abandon_repetition();
        assert!(cache.repetition().is_some());
        fork.end_repetition().expect("ends");
        go_on_alike(&mut fork, &mut once.fork(), 200..210, &recipe);
        // A cache that puts eviction off says a settled context again.
        let mut later = begun(&recipe, CONTEXT).with_deferred();
        read(&mut later, 90..91);
        let error = later.begin_repetition(0..91).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        later.truncate(CONTEXT).expect("the draft goes");
        say(&mut later, &whole);
        later.end_repetition().expect("ends");
        assert_eq!(held(&later), held(&once), "{recipe}");
        read(&mut later, 200..205);
        later.truncate(CONTEXT + 2).expect("drafts can be taken back");
        later.settle().expect("settles");
        let mut two = once.fork();
        read(&mut two, 200..202);
        assert_eq!(held(&later), held(&two), "{recipe}");
    }
    // A policy that waits for nothing neither looks nor acts, and what is said is taken back.
    let mut cache = one("kivi(bits=4) | h2o(tokens=40, stride=4)");
    let mut never = cache.fork();
    read(&mut cache, 0..60);
    read(&mut never, 0..60);
    cache.begin_repetition(0..60).expect("begins");
    read(&mut cache, 100..200);
    cache.end_repetition().expect("ends");
    go_on_alike(&mut cache, &mut never, 60..80, "h2o");
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |error: tensorpress_tensor::Result<()>, kind, part: &str| {
        let error = error.expect_err(part);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(part), "{error}");
    };
    let recipe: KvRecipe = "f32 | kvzip(keep=0.5)".parse().expect("a recipe");
    let unpromised = recipe.caches(1, HEADS, KV_HEADS, DIM).map(drop);
    refused(unpromised, ErrorKind::Unsupported, "kvzip waits until the context");
    let plus: KvRecipe = "kvzip(keep=0.5, plus=true)".parse().expect("a recipe");
    let untold = plus.clone().with_repetition().caches(1, HEADS, KV_HEADS, DIM).map(drop);
    refused(untold, ErrorKind::MissingCalibration, "the layer's output projection");
    let narrow = plus.with_repetition().with_outputs(vec![Arc::new(Array2::zeros((3, DIM)))]);
    refused(
        narrow.caches(1, HEADS, KV_HEADS, DIM).map(drop),
        ErrorKind::ShapeMismatch,
        "output projection",
    );

    let mut cache = begun("f32 | kvzip(keep=0.5, plus=true)", CONTEXT);
    refused(cache.end_repetition(), ErrorKind::InvalidArgument, "not begun");
    refused(cache.begin_repetition(0..CONTEXT + 1), ErrorKind::InvalidArgument, "part = 0..91");
    refused(cache.end_repetition(), ErrorKind::InvalidArgument, "not begun");
    cache.begin_repetition(0..CONTEXT).expect("begins");
    refused(cache.truncate(10), ErrorKind::InvalidArgument, "truncate");
    let none = HeadSlots(vec![vec![]; KV_HEADS]);
    refused(cache.retain(&none), ErrorKind::InvalidArgument, "retain");
    refused(cache.parts("kv", &mut Storage::default()), ErrorKind::InvalidArgument, "written");
    let [k, v, q] = TEXT.each_ref().map(|x| x.slice(s![100..103, .., ..]));
    cache.append(k, v).expect("appends");
    let ask = |cache: &mut Cache| {
        let mut out = Array3::zeros(q.raw_dim());
        cache.attend(q, None, out.view_mut(), &mut Scratch::default())
    };
    refused(ask(&mut cache), ErrorKind::MissingCalibration, "norms of hidden states");
    cache.tell_hidden_norms(&[1.0]);
    refused(ask(&mut cache), ErrorKind::ShapeMismatch, "1 norms of 3");
    cache.tell_hidden_norms(&[1.0; 3]);
    ask(&mut cache).expect("attends");
    cache.end_repetition().expect("ends");

    // A reader does not have the projection: a cache that still waits says so, one that no longer does goes on.
    for waits in [true, false] {
        let mut cache = begun("f32 | kvzip(keep=0.5, plus=true)", CONTEXT);
        if !waits {
            say(&mut cache, &[WHOLE]);
            cache.end_repetition().expect("ends");
        }
        let (bytes, text) = crate::wire::written(&cache);
        let mut back = crate::wire::read(bytes, &text).expect("reads");
        assert_eq!(back.repetition().is_some(), waits);
        if waits {
            let begun = back.begin_repetition(0..CONTEXT);
            refused(begun, ErrorKind::MissingCalibration, "output projection");
        }
        go_on_alike(&mut back, &mut cache, 200..210, "read");
    }
}
