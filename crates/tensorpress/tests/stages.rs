//! A knob is said once: Rust's default, the recipe's, the help's and the page's are the same; nobody else names a stage.

use std::fs;
use std::path::{Path, PathBuf};

use tensorpress::lowrank::{Rank, asvd, feature_mimicking, lord, svd, svd_llm};
use tensorpress::prelude::*;
use tensorpress::prune::Flap;
use tensorpress::recipe::{reference, schema};
use tensorpress::tensor::Registry;
use tensorpress::tensor::stage::{Auto, Key, Keys, Knobs, Part, Row, Stages, WeightPart};
use tensorpress::{kvcache, tokencomp};

/// What Rust builds by default, as it shows itself.
fn by_rust() -> Vec<(&'static str, String)> {
    let rank = Rank::default();
    vec![
        ("rtn", format!("{:?}", Rtn::default())),
        ("gptq", format!("{:?}", Gptq::default())),
        ("magnitude", format!("{:?}", magnitude(Pattern::default()))),
        ("wanda", format!("{:?}", wanda(Pattern::default()))),
        ("sparsegpt", format!("{:?}", SparseGpt::new(Pattern::default()))),
        ("svd", format!("{:?}", svd(rank))),
        ("asvd", format!("{:?}", asvd(rank, 0.5))),
        ("svd_llm", format!("{:?}", svd_llm(rank))),
        ("lord", format!("{:?}", lord(rank))),
        ("feature_mimicking", format!("{:?}", feature_mimicking(rank))),
        ("awq", format!("{:?}", Awq::default())),
    ]
}

#[test]
fn a_recipe_and_a_line_of_rust_build_the_same() {
    for (name, by_rust) in by_rust() {
        let method = Recipe::parse(name).unwrap().chain().unwrap().build().unwrap();
        let by_recipe = format!("{method:?}");
        let kept = format!("Kept({by_rust})");
        assert!(by_recipe == by_rust || by_recipe == kept, "{name}: {by_recipe} is not {by_rust}");
    }
    assert_eq!(Flap::new(0.2), Flap::default());
}

fn every_row<P: Part>(stages: &Stages<P>, page: &str) -> usize {
    for row in stages.rows() {
        let keys = row.keys();
        for Key { name, default, value, about, given, .. } in &keys {
            assert_eq!((default, given), (value, &false), "{}: {name}", row.name());
            assert!(!about.is_empty(), "{}: {name} says nothing", row.name());
        }
        assert!(page.contains(&format!("### `{}`\n", row.name())), "{} has no place", row.name());
    }
    for line in reference(stages).lines().filter(|line| !line.is_empty()) {
        assert!(
            page.contains(line),
            "docs/recipes.md lacks `{line}`: cargo xtask stages writes it"
        );
    }
    stages.rows().len()
}

#[test]
fn the_page_says_what_the_stages_say() {
    let registry = registry();
    let file = root().join("docs/recipes.md");
    let mut page = fs::read_to_string(&file).expect("the page");
    if std::env::var_os("TENSORPRESS_WRITE_TABLES").is_some() {
        page = written(&page, &registry);
        fs::write(&file, &page).expect("the page is written");
    }
    let count = every_row(registry.stages(), &page)
        + every_row(&kvcache::stages(), &page)
        + every_row(&tokencomp::stages(), &page);
    println!("{count} stages");
    let schema = schema(registry.stages()).to_string();
    assert!(registry.stages().rows().iter().all(|row| schema.contains(row.name())));
}

const BEGIN: &str = "<!-- stages: written by `cargo xtask stages` -->\n";
const END: &str = "<!-- end of stages -->\n";

/// The page with its lists of stages anew.
fn written(page: &str, registry: &Registry) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the page says where stages begin");
    let (_, after) = rest.split_once(END).expect("and where they end");
    let rooms = [
        ("Weights: `compress --recipe`", reference(registry.stages())),
        ("Caches: `eval` and `run --kv`", reference(&kvcache::stages())),
        ("Tokens: `squeeze --recipe`, and reductions of states", reference(&tokencomp::stages())),
    ];
    let rooms: String = rooms.iter().map(|(title, text)| format!("## {title}\n{text}")).collect();
    format!("{before}{BEGIN}{rooms}{END}{after}")
}

/// Every default that is written out builds what leaving it out builds.
#[test]
fn defaults_can_be_spelled_out() {
    let registry = registry();
    for row in registry.stages().rows() {
        let Ok(recipe) = Recipe::parse(row.name()) else { continue };
        let again = Recipe::parse(&recipe.canonical()).expect("its own text");
        assert_eq!(again, recipe, "{}", row.name());
        assert_eq!(again.canonical(), recipe.canonical());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
        match entry.is_dir() {
            true => sources(&entry, found),
            false => found.extend(entry.extension().is_some_and(|e| e == "rs").then_some(entry)),
        }
    }
}

/// Words that mean something else too: where, and what. Types are named wherever numbers are.
const ALSO: &[(&str, &[&str], &str)] = &[
    ("f32", &[], "a type"),
    ("f16", &[], "a type"),
    ("bf16", &[], "a type"),
    ("hadamard", &["node/registry.rs", "map/hadamard.rs"], "a map's kind in files"),
    ("rans", &["chunk/plane.rs"], "a coding's name in reports"),
    ("huffman", &["chunk/plane.rs"], "a coding's name in reports"),
    (
        "range",
        &["chunk/plane.rs", "grid/mod.rs", "node/rounded.rs"],
        "a coding's name in reports; a range of weights, and of inputs",
    ),
    ("knorm", SCORES, "a score's name in files of caches"),
    ("keydiff", SCORES, "a score's name in files of caches"),
    (
        "random",
        &[
            "score/geometry.rs",
            "score/describe.rs",
            "tokencomp/src/baseline.rs",
            "policy/salient.rs",
            "score/probes.rs",
        ],
        "a score; a reduction; a share of probes",
    ),
    (
        "expected_attention",
        &["score/expected.rs", "score/describe.rs"],
        "a score's name in files of caches",
    ),
    (
        "residual",
        &[
            "store/kivi.rs",
            "stage/weights.rs",
            "policy/zeromerge.rs",
            "merge/zeromerge.rs",
            "merge/describe.rs",
        ],
        "the exact window of a cache; a role; a rule for merging",
    ),
    ("drop", &["merge/temporal.rs"], "a knob of frames"),
    ("sketch", &["policy/compactor.rs"], "a knob of leverages"),
    ("gear", &["gear/code.rs"], "a form in files of caches"),
    ("kvquant", &["kvquant/code.rs"], "a form in files of caches"),
    ("retrieval", &["kvcache/src/registry.rs", "kvcache/src/spread.rs"], "a budget of heads"),
    ("pooling", &["policy/snapkv.rs"], "a knob of a window of queries"),
    ("gptq", &["import/method.rs", "convert/target.rs"], "a format's name"),
    ("awq", &["import/method.rs", "convert/target.rs"], "a format's name"),
    (
        "magnitude",
        &["train/forgetting.rs", "depth/score.rs"],
        "a criterion of a trainer; a score of blocks",
    ),
    ("nf4", &["bnb/state.rs"], "a kind in files of bitsandbytes"),
    ("fp4", &["bnb/state.rs"], "a kind in files of bitsandbytes"),
];

const SCORES: &[&str] = &["score/geometry.rs", "score/describe.rs"];

/// The code of a file: no comments, no tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn only_its_own_file_names_a_stage() {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("crates").flatten() {
        let source = entry.path().join("src");
        if source.is_dir() {
            sources(&source, &mut files);
        }
    }
    let (registry, caches, tokens) = (registry(), kvcache::stages(), tokencomp::stages());
    let mut names: Vec<&str> = registry.stages().rows().iter().map(Row::name).collect();
    names.extend(caches.rows().iter().map(Row::name));
    names.extend(tokens.rows().iter().map(Row::name));
    let mut wrong = Vec::new();
    for name in &names {
        let also = ALSO.iter().find(|(also, ..)| also == name);
        if also.is_some_and(|(_, places, _)| places.is_empty()) {
            continue;
        }
        let elsewhere = |file: &Path| {
            also.is_some_and(|(_, places, _)| places.iter().any(|place| file.ends_with(place)))
        };
        let literal = format!("\"{name}\"");
        let naming: Vec<&PathBuf> = files
            .iter()
            .filter(|file| !file.ends_with("tests.rs") && !file.ends_with("recipe/presets.rs"))
            .filter(|file| !elsewhere(file))
            .filter(|file| {
                let text = fs::read_to_string(file).expect("a source");
                code(&text).any(|line| line.contains(&literal))
            })
            .collect();
        if naming.len() != 1 {
            wrong.push(format!("{name}: {naming:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A stage of somebody else: half of each weight.
#[derive(Debug, Clone)]
struct Halved {
    by: Auto<usize>,
}

impl Knobs for Halved {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> tensorpress::Result<()> {
        keys.auto("by", &mut self.by, 2, 1..=16, "what weights are divided by")
    }
}

#[test]
fn names_are_given_once() {
    let row = |name| {
        let default = || Halved { by: Auto::Auto };
        Row::<WeightPart>::transform(name, "divides", default, |_, inner| Ok(inner))
    };
    let mut registry = registry();
    registry.stages_mut().add(row("halved")).expect("a new name");
    for taken in ["halved", "gptq", "w4", "two words", ""] {
        let error = registry.stages_mut().add(row(taken)).expect_err(taken);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{taken}");
    }
    let recipe = Recipe::parse_with("halved(by=3) | rtn", &registry).expect("a recipe");
    assert!(recipe.canonical().starts_with("halved(by=3) | rtn(bits=4"), "{recipe:?}");
    assert!(Recipe::parse("halved | rtn").is_err(), "not of this registry");
    for bad in ["halved(by=17) | rtn", "halved(of=3) | rtn", "halved"] {
        assert!(Recipe::parse_with(bad, &registry).is_err(), "{bad}");
    }
}
