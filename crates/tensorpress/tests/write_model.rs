//! Models written from nodes that were made elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tensorpress::pipeline::{partial_of, write_model};
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::ArrayViewMut2;
use tensorpress::tensor::node::{Json, Mask, PlaneMap, decode, save};
use tensorpress::tensor::stage::{Keys, Knobs, Row};
use tensorpress::tensor::stats::{Calibration, Needs};
use tensorpress::tensor::{Accum, Compressed, CompressedGroup, Node, PartSink, Scratch, Tensor};

fn demo() -> Source {
    Source::demo(&registry()).expect("the demo model")
}

fn rounded(source: &Source, name: &str) -> Box<dyn Node> {
    let weight = source.checkpoint().tensor(name).unwrap().to_matrix().unwrap();
    let blind = Calibration::none(weight.ncols());
    Rtn::new(GridSpec::new(4, 32)).compress(weight.view(), &blind).unwrap().node.boxed()
}

/// All matrices of the blocks.
fn nodes(source: &Source) -> BTreeMap<String, Box<dyn Node>> {
    let names = (0..source.blocks()).flat_map(|block| source.linears(block)).map(|spec| spec.name);
    names.map(|name| (name.clone(), rounded(source, &name))).collect()
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let listing = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let files = listing.map(|entry| {
        (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
    });
    files.filter(|(name, _)| name.contains(".safetensors")).collect()
}

#[test]
fn as_the_pipeline_writes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (given, piped) = (folder.path().join("given"), folder.path().join("piped"));
    let source = demo();
    write_model(&source, &nodes(&source), &given).expect("writes");
    assert!(!partial_of(&given).exists());
    let recipe = Recipe::parse("rtn(bits=4, group=32)").expect("a recipe");
    let report = Compressor::new(recipe).run(&source, &piped).expect("compresses");
    assert!(weights(&given) == weights(&piped), "the same shards");
    let bill = Bill::of(&open_model(&given).expect("opens")).expect("counts");
    assert_eq!(bill.storage, report.bill.storage);
    for (layer, line) in bill.layers.iter().zip(&report.bill.layers) {
        assert_eq!(layer.bits_per_weight, line.bits_per_weight, "{}", layer.name);
    }
    let lines: BTreeMap<_, _> =
        report.layers.iter().map(|line| (&line.name, line.bits_per_weight)).collect();
    for layer in &bill.layers {
        assert_eq!(lines[&layer.name], layer.bits_per_weight, "the report says what was written");
    }
}

/// One weight of a compressed model is replaced, and the embedding; the others stay compressed.
#[test]
fn compressed_models_keep_their_nodes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let source = demo();
    write_model(&source, &nodes(&source), &first).expect("writes");
    let opened = open_model(&first).expect("opens");
    let changed = opened.linears(1)[2].name.clone();
    let table = source.embedding().expect("a decoder").table().name().to_owned();
    let dense = |name: &str| {
        tensorpress::tensor::node::Dense::new(&source.checkpoint().tensor(name).unwrap()).unwrap()
    };
    let some = BTreeMap::from([
        (changed.clone(), dense(&changed).boxed()),
        (table.clone(), rounded(&source, &table)),
    ]);
    write_model(&opened, &some, &second).expect("writes");
    let again = open_model(&second).expect("opens");
    assert_eq!(again.trees().len(), opened.trees().len() + 1);
    for name in opened.trees().keys() {
        let [is, was] = [&again, &opened].map(|s| decode(&*s.weight(name).unwrap()).unwrap());
        if *name == changed {
            assert_eq!(is, source.checkpoint().tensor(name).unwrap().to_matrix().unwrap());
        } else {
            assert_eq!(is, was, "{name}");
        }
    }
    again.decoder().expect("a whole model");
}

#[test]
fn whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let source = demo();
    let kind = |nodes: &BTreeMap<String, Box<dyn Node>>| {
        write_model(&source, nodes, &out).expect_err("refused").kind()
    };
    let name = source.linears(0)[0].name.clone();
    let stranger = BTreeMap::from([("model.norm.weight".to_owned(), rounded(&source, &name))]);
    assert_eq!(kind(&stranger), ErrorKind::InvalidArgument);
    let other = source.linears(0).last().expect("a layer").name.clone();
    let misfit = BTreeMap::from([(other, rounded(&source, &name))]);
    assert_eq!(kind(&misfit), ErrorKind::ShapeMismatch);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing was begun");

    // Work of another kind is in the way; what is there is not replaced.
    fs::create_dir(partial_of(&out)).expect("a folder");
    fs::write(partial_of(&out).join("mine"), "x").expect("written");
    assert_eq!(kind(&nodes(&source)), ErrorKind::Exists);
    fs::remove_dir_all(partial_of(&out)).expect("removed");
    write_model(&source, &nodes(&source), &out).expect("writes");
    let before = weights(&out);
    assert_eq!(kind(&BTreeMap::new()), ErrorKind::Exists);
    assert!(weights(&out) == before);

    // What a killed run left behind is no obstacle, and does not stay.
    let partial = partial_of(&folder.path().join("late"));
    fs::create_dir(&partial).expect("a folder");
    let late = folder.path().join("late");
    fs::write(partial.join("tensorpress.state.json.1-2.tmp"), "{").expect("written");
    write_model(&source, &nodes(&source), &late).expect("writes");
    assert!(weights(&late) == before);
    let names = fs::read_dir(&late).expect("a folder");
    let mut names = names.map(|entry| entry.expect("an entry").file_name());
    assert!(!names.any(|name| name.to_string_lossy().ends_with(".tmp")), "no leftovers");
}

/// A node that counts how often it is asked for its parts.
#[derive(Debug)]
struct Asked {
    inner: Box<dyn Node>,
    times: Arc<AtomicUsize>,
}

impl Node for Asked {
    fn shape(&self) -> [usize; 2] {
        self.inner.shape()
    }
    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.inner.decode_rows(rows, out, accum, scratch)
    }
    fn describe(&self) -> Json {
        self.inner.describe()
    }
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.inner.parts(prefix, sink)
    }
    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.inner.map_planes(f)
    }
    fn keep(self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        self.inner.keep(mask)
    }
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.inner.prepack()
    }
}

/// Rounding whose nodes count.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl Knobs for Counting {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

impl Method for Counting {
    fn id(&self) -> &'static str {
        "counting"
    }
    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for Counting {
    type Node = Asked;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Asked>> {
        let rounded = Rtn::new(GridSpec::new(4, 32)).compress_group(group)?.layers.into_iter();
        let count = |layer: Compressed<_>| {
            let inner = layer.boxed().node;
            Compressed::new(Asked { inner, times: self.0.clone() })
        };
        Ok(CompressedGroup::new(rounded.map(count).collect()))
    }
}

/// Twice is what it takes: what parts there are must be known before the first one is written (or whether any is to be
/// written at all), and to hold their bytes meanwhile would be to hold a block.
#[test]
fn a_node_is_asked_twice_for_its_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let times = Arc::new(AtomicUsize::new(0));
    let asked = || times.swap(0, Ordering::Relaxed);
    let count = |inner| Asked { inner, times: times.clone() }.boxed();
    let given = nodes(&source).into_iter().map(|(name, node)| (name, count(node)));
    let given: BTreeMap<_, _> = given.collect();
    write_model(&source, &given, &folder.path().join("given")).expect("writes");
    assert_eq!(asked(), 2 * given.len(), "write_model");

    save(given.values().next().expect("a node"), folder.path().join("node")).expect("writes");
    assert_eq!(asked(), 2, "save");

    let mut registry = registry();
    let counting = Counting(times.clone());
    let row = Row::method("counting", "counts", move || counting.clone());
    registry.stages_mut().add(row).expect("a new name");
    let recipe = Recipe::parse_with("counting", &registry).expect("a recipe");
    let compressor = Compressor::new(recipe).with_registry(registry);
    let report = compressor.run(&source, &folder.path().join("piped")).expect("compresses");
    assert_eq!(report.layers.len(), given.len());
    assert_eq!(asked(), 2 * given.len(), "compress");
}
