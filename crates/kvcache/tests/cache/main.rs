//! Caches with policies, from recipes: budgets, laws, files, bad input.

mod bad_input;
mod budgets;
mod deferred;
mod kept;
mod laws;
mod papers;
mod policies;
mod repetition;
mod stores;
mod wire;

use std::ops::Range;
use std::sync::LazyLock;

use ndarray::{Array3, s};
use tensorpress_kvcache::{Cache, KvRecipe, KvStore};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Scratch, ndarray};

const STORES: [&str; 9] = [
    "f32",
    "f16",
    "bf16",
    "kivi(bits=8)",
    "kivi(bits=4)",
    "kivi(bits=2)",
    "kivi(bits=4, keys=token)",
    "kivi(bits=4, sliding=true)",
    "mustafar(sparsity=0.7)",
];
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
/// Policies that are tried over fewer stores: name, keys, and what may follow beside nothing.
const MORE: [(&str, &str, &str); 13] = [
    ("lagkv", ", lag=16", " | chunkkv"),
    ("cur", "", " | adakv"),
    ("capkv", "", " | merging"),
    ("qfilter", "", " | adakv"),
    ("finch", ", window=8", " | merging"),
    ("compactor", ", chunk=32", " | adakv"),
    ("kvmerger", ", cosine=0.1", " | adakv"),
    ("zeromerge", ", recent=16", " | adakv"),
    ("ems", ", window=8, cosine=0", ""),
    ("razor_attention", ", heads=1.0-0.1, least=10", ""),
    ("uncomp", ", window=8, classes=2", " | merging"),
    ("compresskv", ", heads=1.3-0.2", " | demote(bits=8)"),
    ("lacache", ", span=2, overlap=1", ""),
];
const LAST: [&str; 3] = ["", " | adakv", " | demote(bits=8)"];
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;

/// Every store, score, budget and action there is.
fn every_recipe() -> Vec<String> {
    let mut recipes: Vec<String> = STORES.map(str::to_owned).to_vec();
    for store in STORES {
        for score in SCORES {
            for last in LAST {
                // Bytes of about 70 tokens of 2 heads.
                let bytes = if store == "f32" { 36_000 } else { 20_000 };
                for budget in ["keep=0.6".to_owned(), "tokens=70".into(), format!("bytes={bytes}")]
                {
                    // What is demoted stays: there is no number of bytes to keep to.
                    if !(last.contains("demote") && budget.contains("bytes")) {
                        recipes.push(format!("{store} | {score}({budget}, stride=8){last}"));
                    }
                }
            }
        }
    }
    for store in ["f32", "kivi(bits=4)"] {
        for (name, keys, last) in MORE {
            let follows = if last.is_empty() { vec![""] } else { vec!["", last] };
            for last in follows {
                for budget in ["keep=0.6", "tokens=70"] {
                    recipes.push(format!("{store} | {name}({budget}, stride=8{keys}){last}"));
                }
            }
        }
    }
    recipes
}

/// Policies that wait until the context has been said again; what comes later is not in their budget.
fn waiting_recipes() -> Vec<String> {
    let of = |store: &str| {
        let recipe = move |rest: &str| format!("{store} | kvzip({rest}");
        ["keep=0.3)", "tokens=20, chunk=40)", "bytes=9000)", "keep=0.3) | demote(bits=8)"]
            .map(recipe)
    };
    let all = STORES.iter().flat_map(|store| of(store));
    all.chain(["f32 | kvzip(keep=0.4, sinks=0) | merging".to_owned()]).collect()
}

fn noise(tokens: usize, heads: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, DIM), |_| 4.0 * (random.next_f64() as f32 - 0.5))
}

fn layers(recipe: &str, layers: usize) -> Vec<Cache> {
    let recipe: KvRecipe = recipe.parse().expect(recipe);
    recipe.with_repetition().caches(layers, HEADS, KV_HEADS, DIM).expect("caches")
}

fn one(recipe: &str) -> Cache {
    layers(recipe, 1).remove(0)
}

/// Keys, values and queries of one long text.
static TEXT: LazyLock<[Array3<f32>; 3]> =
    LazyLock::new(|| [noise(300, KV_HEADS, 1), noise(300, KV_HEADS, 2), noise(300, HEADS, 3)]);

/// The text's tokens `range`; gives the attention output. The first are a context, which is said again if it must be.
fn feed(cache: &mut Cache, range: Range<usize>) -> Array3<f32> {
    let out = read(cache, range.clone());
    if let Some(chunk) = cache.repetition().filter(|_| cache.len() == range.len()).map(|r| r.chunk)
    {
        for start in (0..range.len()).step_by(chunk) {
            let part = start..(start + chunk).min(range.len());
            cache.begin_repetition(part.clone()).expect("begins");
            read(cache, range.start + part.start..range.start + part.end);
        }
        cache.end_repetition().expect("ends");
    }
    out
}

/// The text's tokens `range`, and nothing said again.
fn read(cache: &mut Cache, range: Range<usize>) -> Array3<f32> {
    let [k, v, q] = TEXT.each_ref().map(|x| x.slice(s![range.clone(), .., ..]));
    cache.append(k, v).expect("appends");
    let mut out = Array3::zeros(q.raw_dim());
    cache.attend(q, None, out.view_mut(), &mut Scratch::default()).expect("attends");
    out
}

fn held(cache: &Cache) -> Vec<Vec<usize>> {
    (0..KV_HEADS).map(|h| cache.store().positions(h)).collect()
}

fn total(cache: &Cache) -> usize {
    held(cache).iter().map(Vec::len).sum()
}

/// Both go on alike, token by token.
fn go_on_alike(a: &mut Cache, b: &mut Cache, tokens: Range<usize>, what: &str) {
    for t in tokens {
        let (x, y) = (feed(a, t..t + 1), feed(b, t..t + 1));
        assert_eq!(x.mapv(f32::to_bits), y.mapv(f32::to_bits), "{what}: token {t}");
        assert_eq!(held(a), held(b), "{what}: token {t}");
    }
}
