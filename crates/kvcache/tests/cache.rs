//! Caches with policies, from recipes: budgets, going back, forks, bad input.

use ndarray::{Array3, s};
use tensorpress_kvcache::{
    Budget, Cache, Held, KvRecipe, KvShape, KvStore, Layer, LayerAt, Policy, Score,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{DType, ErrorKind, Result, Scratch, ndarray};

const SCORES: [&str; 9] = [
    "streaming",
    "h2o",
    "snapkv",
    "pyramidkv",
    "tova",
    "knorm",
    "keydiff",
    "expected_attention",
    "random",
];
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;

fn noise(tokens: usize, heads: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, DIM), |_| 4.0 * (random.next_f64() as f32 - 0.5))
}

fn one(recipe: &str) -> Cache {
    let recipe: KvRecipe = recipe.parse().expect(recipe);
    recipe.caches(1, HEADS, KV_HEADS, DIM).expect("caches").remove(0)
}

/// Tokens `range` of one endless text; gives the attention output.
fn feed(cache: &mut Cache, range: std::ops::Range<usize>) -> Array3<f32> {
    let all =
        |heads, seed| noise(range.end, heads, seed).slice(s![range.clone(), .., ..]).to_owned();
    cache.append(all(KV_HEADS, 1).view(), all(KV_HEADS, 2).view()).expect("appends");
    let q = all(HEADS, 3);
    let mut out = Array3::zeros(q.raw_dim());
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
    out
}

fn held(cache: &Cache) -> Vec<Vec<usize>> {
    (0..KV_HEADS).map(|h| cache.store().positions(h)).collect()
}

fn total(cache: &Cache) -> usize {
    held(cache).iter().map(Vec::len).sum()
}

#[test]
fn no_plan_exceeds_its_budget() {
    for store in ["f32", "kivi(bits=4)", "mustafar(sparsity=0.7)"] {
        for score in SCORES {
            for heads in ["", " | adakv"] {
                let mut tokens = one(&format!("{store} | {score}(tokens=50, stride=8){heads}"));
                let mut share = one(&format!("{store} | {score}(keep=0.5){heads}"));
                let bytes = if store == "f32" { 30_000 } else { 20_000 };
                let mut fixed = one(&format!("{store} | {score}(bytes={bytes}){heads}"));
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
fn truncate_is_as_if_never_past() {
    for store in ["f16", "kivi(bits=2)"] {
        for score in SCORES {
            let recipe = format!("{store} | {score}(tokens=70, stride=4)");
            let mut past = one(&recipe);
            let mut never = one(&recipe);
            for cache in [&mut past, &mut never] {
                feed(cache, 0..100);
                (100..103).for_each(|t| drop(feed(cache, t..t + 1)));
            }
            let barrier = past.earliest();
            assert!(barrier >= 100, "{recipe}: tokens were evicted at 100");
            // One step at a time until something is evicted again.
            let mut len = 103;
            while past.earliest() <= 103 && len < 110 {
                let before = past.fork();
                feed(&mut past, len..len + 1);
                if past.earliest() > 103 {
                    past = before;
                    break;
                }
                len += 1;
            }
            past.truncate(103).expect(&recipe);
            for t in 103..125 {
                let (a, b) = (feed(&mut past, t..t + 1), feed(&mut never, t..t + 1));
                assert_eq!(a.mapv(f32::to_bits), b.mapv(f32::to_bits), "{recipe}: token {t}");
                assert_eq!(held(&past), held(&never), "{recipe}: token {t}");
            }
            assert_eq!(past.truncate(10).unwrap_err().kind(), ErrorKind::Unsupported);
            assert_eq!(past.truncate(1000).unwrap_err().kind(), ErrorKind::InvalidArgument);
            past.truncate(0).expect("back to nothing");
            let mut fresh = one(&recipe);
            assert_eq!(feed(&mut past, 0..60), feed(&mut fresh, 0..60), "{recipe}");
        }
    }
}

#[test]
fn forks_are_isolated() {
    for score in SCORES {
        let recipe = format!("kivi | {score}(tokens=70)");
        let (mut cache, mut alone) = (one(&recipe), one(&recipe));
        feed(&mut cache, 0..90);
        feed(&mut alone, 0..90);
        let mut fork = cache.fork();
        (200..240).for_each(|t| drop(feed(&mut fork, t..t + 1)));
        for t in 90..130 {
            assert_eq!(feed(&mut cache, t..t + 1), feed(&mut alone, t..t + 1), "{recipe}");
        }
    }
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

#[derive(Debug, Clone)]
struct NaNs;

impl Score for NaNs {
    fn id(&self) -> &'static str {
        "nans"
    }
    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        Ok((0..KV_HEADS).map(|h| vec![f32::NAN; held.store.positions(h).len()]).collect())
    }
}

#[test]
fn bad_scores_and_budgets_are_errors() {
    let shape = KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape");
    let layer =
        || Layer::new(shape, tensorpress_kvcache::Form::Float(DType::F32)).expect("a layer");
    let at = LayerAt { index: 0, of: 1 };
    for budget in [
        Budget::Tokens(0),
        Budget::Bytes(0),
        Budget::Keep(0.0),
        Budget::Keep(f64::NAN),
        Budget::Keep(1.1),
    ] {
        let error = Cache::new(layer()).with_policy(Policy::new(NaNs, budget), at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{budget:?}");
    }
    let mut cache = Cache::new(layer())
        .with_policy(Policy::new(NaNs, Budget::Tokens(5)), at)
        .expect("a policy");
    let (kv, q) = (noise(9, KV_HEADS, 1), noise(9, HEADS, 1));
    cache.append(kv.view(), kv.view()).expect("appends");
    let mut out = Array3::zeros(q.raw_dim());
    let error = cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.message().contains("nans"), "{error}");
    let mut wrong = Array3::zeros((9, HEADS + 1, DIM));
    let error =
        cache.attend(q.view(), None, wrong.view_mut(), &mut Scratch::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn recipes_say_what_is_wrong() {
    for (text, parts) in [
        ("kivy", vec!["kivy", "kivi"]),
        ("kivi(bits=3)", vec!["bits = 3", "2, 4 and 8"]),
        ("kivi(bits=x)", vec!["bits = x", "2, 4 and 8"]),
        ("kivi(bit=4)", vec!["bit = 4", "bits"]),
        ("kivi(group=20)", vec!["group = 20", "16"]),
        ("kivi(residual=33)", vec!["window = 33", "32"]),
        ("kivi(keys=row)", vec!["keys = row", "channel"]),
        ("mustafar(sparsity=1)", vec!["keys = 1", "below 1"]),
        ("snapkv", vec!["snapkv", "keep, tokens and bytes"]),
        ("snapkv(keep=0.5, tokens=3)", vec!["keep and tokens"]),
        ("snapkv(keep=0)", vec!["keep = 0", "above 0"]),
        ("knorm(tokens=0)", vec!["tokens = 0"]),
        ("snapkv(keep=0.5) | kivi", vec!["kivi", "store"]),
        ("kivi | adakv", vec!["adakv", "policy"]),
        ("kivi(bits=4", vec!["parenthesis"]),
        ("kivi(bits=4, bits=2)", vec!["bits", "twice"]),
        ("", vec!["allowed"]),
    ] {
        let recipe = text.parse::<KvRecipe>();
        let error = recipe.and_then(|r| r.caches(2, HEADS, KV_HEADS, DIM)).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
        for part in parts {
            assert!(error.message().contains(part), "{text}: `{part}` is not in `{error}`");
        }
    }
    let text = "kivi(bits=4, group=32, residual=32) | snapkv(keep=0.5) | adakv";
    let recipe: KvRecipe = text.parse().expect("a recipe");
    assert_eq!(recipe.to_string(), text);
    assert_eq!(recipe.caches(3, HEADS, KV_HEADS, DIM).expect("caches").len(), 3);
}
