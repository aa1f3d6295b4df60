//! Experts through the pipeline: watched side by side, each on its own tokens.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tensorpress::model::text::Corpus;
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::tensor::CompressedGroup;
use tensorpress::tensor::node::GroupedAffine;
use tensorpress::tensor::node::decode;
use tensorpress::tensor::rewrite::{Expert, LinearSpec};
use tensorpress::tensor::stage::{Keys, Knobs, Row};
use tensorpress::tensor::stats::{CrossGram, Gram, Needs};
use tensorpress_tensor::testing::data;

const MODELS: [&str; 5] = ["mixtral", "olmoe", "deepseek-v3", "gpt-oss", "qwen2-moe"];

fn folders() -> impl Iterator<Item = (&'static str, PathBuf)> {
    MODELS.iter().filter_map(|name| Some((*name, data::find(&format!("golden/models/{name}"))?)))
}

fn calibration(folder: &std::path::Path) -> CalibrationText {
    let corpus = Corpus::read(&folder.join("expected.safetensors")).unwrap();
    CalibrationText::new(corpus).with_length(24)
}

/// Layers of routed experts of the first block that has any.
fn experts(source: &Source) -> Vec<LinearSpec> {
    let routed = |spec: &LinearSpec| matches!(spec.expert, Some(Expert::Routed(_)));
    let of = |block| source.linears(block).into_iter().filter(routed).collect::<Vec<_>>();
    (0..source.blocks()).map(of).find(|specs| !specs.is_empty()).unwrap()
}

/// These layers by a method, and no others.
fn only(names: &[&str], method: &str) -> Recipe {
    let rule = |name: &&str| {
        format!(
            "[[layer]]\nmatch = \"{name}\"\n[[layer.stage]]\nmethod = \"{method}\"\nbits = 4\ngroup = 16\n"
        )
    };
    let rules: String = names.iter().map(rule).collect();
    Recipe::from_toml(&format!("{rules}[[layer]]\nmatch = \"*\"\nskip = true\n")).unwrap()
}

#[test]
fn what_is_watched_side_by_side_is_as_if_alone() {
    let parent = tempfile::tempdir().unwrap();
    for (model, folder) in folders() {
        let source = open_model(&folder).unwrap();
        let specs = experts(&source);
        let all: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let one: Vec<&str> = specs
            .iter()
            .filter(|spec| spec.expert == Some(Expert::Routed(1)))
            .map(|spec| spec.name.as_str())
            .collect();
        assert!(one.len() >= 2 && one.len() < all.len());
        for method in ["gptq", "awq"] {
            let run = |names: &[&str], out: &str| {
                let out = parent.path().join(format!("{model}-{method}-{out}"));
                let compressor = Compressor::new(only(names, method));
                let compressor = compressor.with_calibration(calibration(&folder));
                drop(compressor.run(&source, &out).unwrap());
                open_model(&out).unwrap()
            };
            let (together, alone) = (run(&all, "all"), run(&one, "one"));
            assert_eq!(together.trees().len(), all.len());
            for name in &one {
                let read = |of: &Source| decode(&*of.weight(name).unwrap()).unwrap();
                assert_eq!(read(&together), read(&alone), "{model}, {method}: {name}");
            }
        }
    }
}

/// Rounds to nearest, and notes how far the cross-Gram matrix of each layer is from its Gram matrix.
#[derive(Debug, Clone)]
struct Twins {
    inner: Rtn,
    seen: Arc<Mutex<Vec<(String, f32)>>>,
}

impl Knobs for Twins {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

impl Method for Twins {
    fn id(&self) -> &'static str {
        "twins"
    }

    fn needs(&self) -> Needs {
        Needs::of::<Gram>() | Needs::of::<CrossGram>()
    }
}

impl Compress for Twins {
    type Node = GroupedAffine;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        if group.calibration.tokens() > 0 {
            let gram = group.calibration.get::<Gram>()?;
            let cross = group.calibration.get::<CrossGram>()?;
            let apart = gram.iter().zip(cross).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let most = gram.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let name = group.targets[0].name.to_owned();
            self.seen.lock().unwrap().push((name, apart / most));
        }
        self.inner.compress_group(group)
    }
}

#[test]
fn originals_follow_their_twins_to_the_same_experts() {
    let parent = tempfile::tempdir().unwrap();
    for (model, folder) in folders() {
        let source = open_model(&folder).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut registry = registry();
        let twins = Twins { inner: Rtn::new(GridSpec::new(3, 16)), seen: seen.clone() };
        let row = Row::method("twins", "rounds, and compares", move || twins.clone());
        registry.stages_mut().add(row).unwrap();
        let compressor = Compressor::new(Recipe::parse_with("twins", &registry).unwrap())
            .with_registry(registry)
            .with_calibration(calibration(&folder));
        drop(compressor.run(&source, &parent.path().join(model)).unwrap());
        let seen = seen.lock().unwrap();
        let first = source.block_prefix(0);
        assert!(seen.iter().any(|(name, _)| name.contains("expert")), "{model}");
        for (name, apart) in seen.iter() {
            match name.starts_with(&first) {
                true => assert!(*apart < 1e-5, "{model}, {name}: nothing lies before it: {apart}"),
                false => assert!(*apart > 1e-4, "{model}, {name}: twins that are one: {apart}"),
            }
        }
    }
}
