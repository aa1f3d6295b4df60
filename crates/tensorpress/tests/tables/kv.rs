//! KV caches on the small story models: KL divergence and recall against exact bytes, token by token.
//!
//! `TENSORPRESS_WRITE_TABLES=1` (as `cargo xtask tables` sets it) measures every row and writes docs/benchmarks/kv.md anew;
//! otherwise a few rows of the smaller model are checked.

use std::fmt::Write as _;
use std::path::Path;

use tensorpress::kvcache::KvRecipe;
use tensorpress::model::text::{self, Limits};
use tensorpress::model::{Passages, Reference, ThroughCache, recall};
use tensorpress::prelude::*;
use tensorpress_tensor::testing::data;

use crate::composition::writes;

/// Recipe, and the KL divergence to reach on stories3m, where a figure is known.
const STORES: &[(&str, Option<f64>)] = &[
    ("f32", None),
    ("f16", None),
    ("kivi(bits=8, scales=f32, sliding=true)", None),
    ("kivi(bits=4, scales=f32, sliding=true)", Some(0.002)),
    ("kivi(bits=2, scales=f32, sliding=true)", Some(0.055)),
    ("kivi(bits=8, scales=f32, keys=token)", None),
    ("kivi(bits=4, scales=f32, keys=token)", Some(0.0063 * 1.03)),
    ("kivi(bits=2, scales=f32, keys=token)", Some(0.29 * 1.03)),
    ("kivi(bits=4)", None),
    ("mustafar(sparsity=0.5)", None),
    ("mustafar(sparsity=0.7)", None),
];

/// Policies at a share that stays: sinks, recent tokens and steps small beside these short texts.
const POLICIES: &[&str] = &[
    "streaming(KEEP, recent=16, stride=8)",
    "h2o(KEEP, recent=16, stride=8)",
    "snapkv(KEEP, window=16, stride=8)",
    "pyramidkv(KEEP, window=16, stride=8)",
    "snapkv(KEEP, window=16, stride=8) | adakv",
    "tova(KEEP, recent=16, stride=8)",
    "knorm(KEEP, recent=16, stride=8)",
    "keydiff(KEEP, recent=16, stride=8)",
    "expected_attention(KEEP, recent=16, stride=8)",
    "random(KEEP, recent=16, stride=8)",
    "h2o(KEEP, recent=16, stride=8) | demote(bits=2)",
];

/// What a recipe costs and keeps.
struct Row {
    kld: f64,
    bytes: f64,
    /// Where the model has any to lose.
    recall: Option<f64>,
}

fn measure(model: &str, recipes: &[String], segments: usize) -> Vec<Row> {
    let (folder, texts) = (data::find(&format!("data/models/{model}")), data::find("data/text"));
    let (Some(folder), Some(texts)) = (folder, texts) else { return Vec::new() };
    let source = Source::open(&folder, &registry()).expect("a model");
    let stories = texts.join("tinystories_val_250stories.jsonl");
    let limits = Limits { max_segments: Some(segments), max_tokens: Some(400) };
    let (tokenizer, context) = (source.tokenizer().expect("a tokenizer"), source.config().context);
    let text = text::read(&stories).expect("stories");
    let segments = text::segments(&text, &stories, &tokenizer, context, limits).expect("stories");
    let decoder = source.decoder().and_then(|d| d.materialise()).expect("a decoder");
    let reference = Reference::new(&decoder, &segments, &|_, _| ()).expect("a reference");
    let one = |recipe: &String| {
        let recipe: KvRecipe = recipe.parse().expect("a recipe");
        let cached = ThroughCache::new(&decoder, &recipe).expect("caches");
        let judged = reference.judge(&cached, &|_, _| ()).expect("judged");
        let bytes = cached.bytes_per_token();
        let recall = recall(&cached, Passages::default().with_count(64), &|_, _| ());
        let recall = recall.expect("recalled");
        println!("{model}: {recipe}: recall {recall:?}");
        Row { kld: judged.kld_mean.expect("a reference"), bytes, recall: recall.share() }
    };
    recipes.iter().map(one).collect()
}

fn rows() -> Vec<(String, Option<f64>)> {
    let stores = STORES.iter().map(|(recipe, most)| ((*recipe).to_owned(), *most));
    let shares = ["keep=0.5", "keep=0.2"];
    let policies = shares
        .iter()
        .flat_map(|share| POLICIES.iter().map(move |policy| (policy.replace("KEEP", share), None)));
    stores.chain(policies).collect()
}

const MARK: &str = "<!-- below: written by `cargo xtask tables` -->\n";

#[test]
fn caches() {
    if !writes() {
        let recipes = ["f32", "kivi(bits=4, sliding=true)", "h2o(keep=0.5, recent=16, stride=8)"];
        let found = measure("stories260k", &recipes.map(str::to_owned), 12);
        let [all, four, evicted] = &found[..] else { return };
        let klds = [all, four, evicted].map(|row| row.kld);
        assert!(klds[0].abs() < 1e-6 && klds[1] < 0.05 && klds[2] > klds[1], "{klds:?}");
        let bytes = [all, four, evicted].map(|row| row.bytes);
        assert!(bytes[1] < 0.5 * bytes[0] && bytes[2] < 0.8 * bytes[0], "{bytes:?}");
        // The smaller model copies nothing: there is no recall to lose.
        assert!([all, four, evicted].iter().all(|row| row.recall.is_none()));
        return;
    }
    let rows = rows();
    let recipes: Vec<String> = rows.iter().map(|(recipe, _)| recipe.clone()).collect();
    let small = measure("stories260k", &recipes, 60);
    let large = measure("stories3m", &recipes, 60);
    let mut text = String::new();
    writeln!(
        text,
        "\n| recipe | stories260k: bytes a token | KLD | stories3m: bytes a token | KLD | recall | bar |"
    )
    .unwrap();
    writeln!(text, "|---|---|---|---|---|---|---|").unwrap();
    let mut missed = Vec::new();
    for (((recipe, most), small), large) in rows.iter().zip(&small).zip(&large) {
        let bar = most.map_or(String::new(), |most| format!("{most:.4}"));
        let shown = recipe.replace('|', "\\|");
        writeln!(
            text,
            "| `{shown}` | {:.0} | {:.7} | {:.0} | {:.7} | {:.0} % | {bar} |",
            small.bytes,
            small.kld,
            large.bytes,
            large.kld,
            100.0 * large.recall.expect("a model that recalls")
        )
        .unwrap();
        missed.extend(most.filter(|most| large.kld > *most).map(|_| recipe.clone()));
    }
    print!("{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks/kv.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let at = page.find(MARK).expect("its mark") + MARK.len();
    std::fs::write(&path, format!("{}{text}", &page[..at])).expect("written");
    assert!(missed.is_empty(), "{missed:?}");
}
