use ndarray::Array3;
use tensorpress_kvcache::{Budget, Cache, Held, KvRecipe, KvShape, Layer, LayerAt, Policy, Score};
use tensorpress_tensor::{DType, ErrorKind, Result, Scratch, ndarray};

use crate::{DIM, HEADS, KV_HEADS, every_recipe, feed, go_on_alike, held, noise, one};

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
        || Layer::new(shape, tensorpress_kvcache::StoreForm::Float(DType::F32)).expect("a layer");
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
        ("kivi(bit=4)", vec!["`bit` (= 4)", "bits"]),
        ("kivi(group=20)", vec!["group = 20", "16"]),
        ("kivi(residual=33)", vec!["window = 33", "32"]),
        ("kivi(keys=row)", vec!["keys = row", "channel"]),
        ("mustafar(sparsity=1)", vec!["keys = 1", "below 1"]),
        ("snapkv", vec!["snapkv", "keep, tokens and bytes"]),
        ("snapkv(keep=0.5, tokens=3)", vec!["keep and tokens"]),
        ("snapkv(keep=0)", vec!["keep = 0", "above 0"]),
        ("knorm(tokens=0)", vec!["tokens = 0"]),
        ("h2o(tokens=20, recent=32)", vec!["tokens = 20", "sinks + recent = 0 + 32"]),
        ("h2o(tokens=20, recent=5, recent_share=0.5)", vec!["recent = 5", "recent_share = 0.5"]),
        ("h2o(tokens=20, recent_share=1.5)", vec!["recent_share = 1.5", "from 0 to 1"]),
        ("snapkv(tokens=20, recent_share=0.5)", vec!["recent_share", "recent, stride"]),
        ("pyramidkv(keep=0.5, rule=paper)", vec!["rule = paper", "authors, kvpress"]),
        ("knorm(keep=0.5) | adakv(rule=mine)", vec!["rule = mine", "authors, kvpress"]),
        ("knorm(bytes=0)", vec!["bytes = 0"]),
        ("knorm(bytes=9000) | demote", vec!["bytes = 9000", "keep and tokens"]),
        ("snapkv(keep=0.5, pool=4)", vec!["pool = 4", "odd"]),
        ("snapkv(keep=0.5, pooling=min)", vec!["pooling = min", "average, max"]),
        ("knorm(keep=0.5, stride=0)", vec!["stride = 0"]),
        ("expected_attention(keep=0.5, future=0)", vec!["future = 0", "from 1 to"]),
        ("expected_attention(keep=0.5, epsilon=nan)", vec!["epsilon = nan"]),
        ("expected_attention(keep=0.5, theta=-1)", vec!["theta = -1", "from 0"]),
        ("lagkv(keep=0.5, lag=0)", vec!["lag = 0", "from 1"]),
        ("cur(keep=0.5, of=both)", vec!["of = both", "product"]),
        ("capkv(keep=0.5, tau=-1)", vec!["tau = -1", "from 0"]),
        ("qfilter(keep=0.5, queries=0)", vec!["queries = 0", "from 1"]),
        ("finch(keep=0.5, window=0)", vec!["window = 0", "from 1"]),
        ("compactor(keep=0.5, blend=-1)", vec!["blend = -1", "from 0"]),
        ("kvzip(plus=true)", vec!["kvzip", "keep, tokens and bytes"]),
        ("kvzip(keep=0.5, chunk=0)", vec!["chunk = 0", "from 1"]),
        ("kvzip(keep=0.5, plus=maybe)", vec!["plus = maybe"]),
        ("criticalkv(keep=0.5, pool=2)", vec!["pool = 2", "odd"]),
        ("knorm(keep=0.5) | chunkkv(length=0)", vec!["length = 0", "from 1"]),
        ("knorm(keep=0.5) | merging(share=0)", vec!["share = 0", "above 0"]),
        ("kvmerger(keep=0.5, cosine=2)", vec!["cosine = 2", "-1"]),
        ("zeromerge(keep=0.5, left=0)", vec!["left = 0", "above 0"]),
        ("zeromerge(keep=0.5, distance=far)", vec!["distance = far", "product, square"]),
        ("ems(keep=0.5, evict=2)", vec!["evict = 2", "from 0 to 1"]),
        ("razor_attention(keep=0.5, heads=3)", vec!["heads = 3", "layer.head"]),
        ("uncomp(keep=0.5, classes=0)", vec!["classes = 0", "from 1"]),
        ("uncomp(keep=0.5, spread=2)", vec!["spread = 2", "from 0 to 1"]),
        ("compresskv(keep=0.5, pool=4)", vec!["pool = 4", "odd"]),
        ("lacache(keep=0.5, span=2, overlap=2)", vec!["overlap = 2", "less than span"]),
        ("snapkv(keep=0.5) | kivi", vec!["kivi", "store"]),
        ("kivi | adakv", vec!["adakv", "policy"]),
        ("kivi(bits=4", vec!["`)`"]),
        ("kivi(bits=4, bits=2)", vec!["bits", "twice"]),
        ("", vec!["name of a stage"]),
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

/// What is refused leaves a cache as it was: whatever the recipe, it goes on as one that was never asked.
#[test]
fn refusals_change_nothing() {
    for recipe in every_recipe() {
        let (mut cache, mut alone) = (one(&recipe), one(&recipe));
        for cache in [&mut cache, &mut alone] {
            feed(cache, 0..90);
        }
        let (kv, q) = (noise(3, KV_HEADS, 5), noise(3, HEADS, 6));
        let (before, description) = (held(&cache), cache.describe());
        for bad in [f32::NAN, f32::INFINITY, -3e38] {
            let mut wrong = kv.clone();
            wrong[[2, KV_HEADS - 1, DIM - 1]] = bad;
            for (k, v) in [(&wrong, &kv), (&kv, &wrong)] {
                let error = cache.append(k.view(), v.view()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Numerical, "{recipe}: {bad}");
            }
        }
        let heads = noise(3, KV_HEADS + 1, 5);
        let error = cache.append(heads.view(), heads.view()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{recipe}");
        let mut scratch = Scratch::default();
        for heads in [HEADS - 1, HEADS + 1] {
            let (wrong, mut out) = (noise(3, heads, 6), Array3::zeros((3, heads, DIM)));
            let error = cache.attend(wrong.view(), None, out.view_mut(), &mut scratch).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{recipe}");
        }
        let mut out = Array3::zeros((4, HEADS, DIM));
        let error = cache.attend(q.view(), None, out.view_mut(), &mut scratch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{recipe}");
        let (many, mut out) = (noise(91, HEADS, 6), Array3::zeros((91, HEADS, DIM)));
        let error = cache.attend(many.view(), None, out.view_mut(), &mut scratch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{recipe}");
        assert_eq!(cache.truncate(91).unwrap_err().kind(), ErrorKind::InvalidArgument, "{recipe}");
        assert_eq!((held(&cache), cache.describe()), (before, description), "{recipe}");
        go_on_alike(&mut cache, &mut alone, 90..110, &recipe);
    }
}
