//! Tokens that come with gaps between them: the others have left the model before.

use ndarray::{Array1, Array3, ArrayView3, Axis, s};
use tensorpress_kvcache::{
    Cache, Caches, Causal, HeadSlots, KvShape, KvStore, Layer, Rope, Scoring, StoreForm,
};
use tensorpress_tensor::{DType, ErrorKind, Scratch, ndarray};

use crate::{DIM, HEADS, KV_HEADS, STORES, TEXT, feed, go_on_alike, held, one};

/// Some of the first 90 tokens, the last of them included.
fn some() -> Vec<usize> {
    (0..90).filter(|t| t % 3 == 0 || t % 7 == 2 || (40..50).contains(t) || *t == 89).collect()
}

fn picked(rows: &[usize]) -> [Array3<f32>; 3] {
    TEXT.each_ref().map(|x| x.select(Axis(0), rows))
}

/// Takes these tokens, and gives the output for each.
fn take(cache: &mut Cache, rows: &[usize], weights: &[f32]) -> Array3<f32> {
    let [k, v, q] = picked(rows);
    cache.append_at(k.view(), v.view(), rows, weights).unwrap();
    let mut out = Array3::zeros(q.raw_dim());
    let scratch = &mut Scratch::default();
    cache.attend_at(q.view(), rows, None, out.view_mut(), scratch, None).unwrap();
    out
}

/// What was never there is as what was evicted.
#[test]
fn gaps_are_those_of_eviction() {
    let rows = some();
    for store in ["f32", "f16", "bf16"] {
        let (mut kept, mut evicted) = (one(store), one(store));
        take(&mut kept, &rows, &vec![1.0; rows.len()]);
        feed(&mut evicted, 0..90);
        evicted.retain(&HeadSlots(vec![rows.clone(); KV_HEADS])).unwrap();
        assert_eq!((kept.len(), held(&kept)), (90, vec![rows.clone(); KV_HEADS]));
        assert_eq!(kept.bytes(), evicted.bytes(), "{store}");
        go_on_alike(&mut kept, &mut evicted, 90..120, store);
    }
    for store in STORES {
        let (mut kept, mut dense) = (one(store), one(store));
        take(&mut kept, &rows, &vec![1.0; rows.len()]);
        let [k, v, _] = picked(&rows);
        dense.append(k.view(), v.view()).unwrap();
        for head in 0..KV_HEADS {
            assert_eq!(kept.store().decode(head), dense.store().decode(head), "{store}");
        }
    }
}

/// Nothing missing and nothing merged is what it always was, to the bit, also for statistics.
#[test]
fn no_gap_is_a_plain_append() {
    for recipe in ["f32", "kivi(bits=4)", "f32 | h2o(tokens=40)", "snapkv(keep=0.5, window=8)"] {
        let (mut a, mut b) = (one(recipe), one(recipe));
        let all: Vec<usize> = (0..80).collect();
        assert_eq!(take(&mut a, &all, &[1.0; 80]), feed(&mut b, 0..80), "{recipe}");
        go_on_alike(&mut a, &mut b, 80..110, recipe);
    }
}

/// Attention from its formula in f64: true positions for windows and slopes, ln w for slots that stand for w tokens.
#[test]
fn attention_is_the_formula() {
    let rows = some();
    let weights: Vec<f32> = rows.iter().map(|t| 1.0 + (t % 4) as f32).collect();
    let slopes = [0.5f32, 0.25, 0.125, 0.0625];
    let (window, scoring) = (Some(21), Scoring::default().with_slopes(slopes.to_vec()));
    let mut cache = one("f32").with_scoring(scoring).unwrap();
    let [k, v, q] = picked(&rows);
    cache.append_at(k.view(), v.view(), &rows, &weights).unwrap();
    let mut out = Array3::zeros(q.raw_dim());
    let mut seen = vec![Vec::new(); HEADS * rows.len()];
    let mut watch = |head: usize, row: usize, w: &[f32]| seen[row * HEADS + head] = w.to_vec();
    let scratch = &mut Scratch::default();
    cache.attend_at(q.view(), &rows, window, out.view_mut(), scratch, Some(&mut watch)).unwrap();
    let dot = |a: ArrayView3<'_, f32>, i: [usize; 2], b: ArrayView3<'_, f32>, j: [usize; 2]| {
        (0..DIM).map(|c| f64::from(a[[i[0], i[1], c]]) * f64::from(b[[j[0], j[1], c]])).sum::<f64>()
    };
    for (row, at) in rows.iter().enumerate() {
        for head in 0..HEADS {
            let of = head / (HEADS / KV_HEADS);
            let mut p = Array1::<f64>::zeros(rows.len());
            for (key, stands) in rows.iter().enumerate().take(row + 1) {
                if at - stands < 21 {
                    let product = dot(q.view(), [row, head], k.view(), [key, of]);
                    let score = product / (DIM as f64).sqrt()
                        - f64::from(slopes[head]) * (at - stands) as f64;
                    p[key] = f64::from(weights[key]) * score.exp();
                }
            }
            p /= p.sum();
            for (key, p) in p.iter().enumerate() {
                assert!((f64::from(seen[row * HEADS + head][key]) - p).abs() < 1e-5, "{row} {key}");
            }
            for c in 0..DIM {
                let mixed = (0..rows.len()).map(|key| p[key] * f64::from(v[[key, of, c]]));
                let apart = mixed.sum::<f64>() - f64::from(out[[row, head, c]]);
                assert!(apart.abs() < 1e-5, "row {row}, head {head}: {apart}");
            }
        }
    }
}

/// Keys that are held before rotary embedding are turned back from where they truly stand.
#[test]
fn turned_keys_know_their_positions() {
    let rows = some();
    let rope = Rope::new(DIM, 10_000.0).unwrap();
    let shape = KvShape::new(HEADS, KV_HEADS, DIM).unwrap();
    let plain = || Layer::new(shape, StoreForm::Float(DType::F32)).unwrap();
    let (mut turned, mut held) = (plain().with_turned_keys(rope).unwrap(), plain());
    let [k, v, _] = picked(&rows);
    let ones = vec![1.0; rows.len()];
    turned.append_at(k.view(), v.view(), &rows, &ones).unwrap();
    held.append_at(k.view(), v.view(), &rows, &ones).unwrap();
    for head in 0..KV_HEADS {
        let apart = &turned.keys(head) - &held.keys(head);
        assert!(apart.iter().all(|x| x.abs() < 1e-4));
    }
}

/// A policy goes on over what is left of a prompt.
#[test]
fn policies_see_what_is_left() {
    let rows = some();
    for recipe in ["h2o(tokens=20)", "snapkv(tokens=20, window=8)", "tova(tokens=20) | merging"] {
        let mut cache = one(recipe);
        take(&mut cache, &rows, &vec![1.0; rows.len()]);
        assert_eq!(cache.len(), 90);
        for head in held(&cache) {
            assert!(
                head.len() <= 20 && head.iter().all(|t| rows.contains(t)),
                "{recipe}: {head:?}"
            );
        }
        feed(&mut cache, 90..100);
        assert!(held(&cache).iter().all(|head| head.len() <= 20 && head.contains(&99)));
    }
}

#[test]
fn wrong_positions_are_refused() {
    let [k, v, q] = picked(&[0, 1, 2]);
    let mut cache = one("f32");
    let mut refuse = |positions: &[usize], weights: &[f32], says: &str| {
        let error = cache.append_at(k.view(), v.view(), positions, weights).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(cache.is_empty());
    };
    refuse(&[0, 1], &[1.0; 3], "2 positions of 3 tokens");
    refuse(&[0, 1, 2], &[1.0; 2], "2 weights of 3 tokens");
    refuse(&[0, 5, 5], &[1.0; 3], "must ascend");
    refuse(&[0, 1, 2], &[1.0, 0.0, 1.0], "weights: 0");
    refuse(&[0, 1, u32::MAX as usize], &[1.0; 3], "at most");
    cache.append_at(k.view(), v.view(), &[0, 4, 6], &[1.0; 3]).unwrap();
    let error = cache.append_at(k.view(), v.view(), &[6, 7, 8], &[1.0; 3]).unwrap_err();
    assert!(error.to_string().contains("position 6: there are 7 tokens"), "{error}");
    let mut out = Array3::zeros(q.raw_dim());
    let scratch = &mut Scratch::default();
    for positions in [&[0, 4][..], &[0, 4, 5], &[4, 0, 6]] {
        assert!(cache.attend_at(q.view(), positions, None, out.view_mut(), scratch, None).is_err());
    }
    assert_eq!(cache.earliest(), 7);
    assert_eq!(cache.truncate(5).unwrap_err().kind(), ErrorKind::Unsupported);
    let mut deferred = one("f32").with_deferred();
    let error = deferred.append_at(k.view(), v.view(), &[0, 4, 6], &[1.0; 3]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let two = || vec![one("f32"), one("f32")];
    let mut readers = Caches::new(two()).with_owners(&[0, 0]).unwrap();
    let error = readers.append_at(0, k.view(), v.view(), &[0, 4, 6], &[1.0; 3]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let mut caches = Caches::new(two());
    caches.append_at(1, k.view(), v.view(), &[0, 4, 6], &[1.0; 3]).unwrap();
    assert_eq!((caches.seen(0), caches.seen(1), caches.layer(1).store().held(0)), (0, 7, 3));
    assert!(caches.append_at(2, k.view(), v.view(), &[0, 4, 6], &[1.0; 3]).is_err());
    let causal = Causal::from(6);
    let last = q.slice(s![2.., .., ..]);
    let (mut a, mut b) = (Array3::zeros(last.raw_dim()), Array3::zeros(q.raw_dim()));
    caches.layer(1).store().attend(last, causal, a.view_mut(), scratch, None).unwrap();
    caches.attend_at(1, q.view(), &[0, 4, 6], None, b.view_mut(), scratch, None).unwrap();
    assert_eq!(a, b.slice(s![2.., .., ..]));
}
