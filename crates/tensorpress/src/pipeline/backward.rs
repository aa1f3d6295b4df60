//! What methods ask of gradients and the caller did not supply: one backward pass through the model that is to be
//! compressed, before its first block.
//!
//! What is found of a block goes to a file of its own as soon as the pass is through it; a run that is taken up again goes
//! back through those blocks but gathers nothing there, and comes to the same bytes. Hidden states lie in a file, not in
//! memory.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tensorpress_model::backward::{
    Backward, Collector, GradientObserver, Gradients, InFile, Labels, Piece, SecondMoment, Wanted,
};
use tensorpress_model::{Linear, Source};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, aview1};
use tensorpress_tensor::stats::{Gram, Order, Supplied, Supply};
use tensorpress_tensor::{
    Checkpoint, Context as _, DType, Error, ErrorKind, Part, PartKind, Result, Tensor, Usable,
};

use super::Context;
use super::calibration::Samples;
use super::folder::Work;
use super::progress::Event;
use super::rewrite::stored;
use super::tables;

/// Windows of the calibration that the pass is of, the first ones: more changed little where it was tried, and each takes
/// three times that of a forward pass. All of them where Gram matrices are gathered, which take the place of such that are
/// of all windows: of fewer they lost more than their weights can gain.
pub(super) const WINDOWS: usize = 24;

/// Second moments of all pairs of outputs are gathered for up to so many outputs, which is 64 MiB a matrix.
pub(super) const FULL: usize = 4096;

const NOTHING_PANICS: &str = "nothing panics while it is held";

/// What was found, in the folder of unfinished work: the file of each matrix.
#[derive(Debug)]
struct Found {
    files: BTreeMap<String, PathBuf>,
}

impl Supplied for Found {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let Some(path) = self.files.get(tensor) else { return Ok(None) };
        let file = Checkpoint::open(path)?;
        let name = entry(supply, tensor);
        if !file.contains(&name) {
            return Ok(None);
        }
        file.tensor(&name)?.to_matrix().map(Some).in_file(path)
    }

    /// What it is found from is part of the work's identity already.
    fn identify(&self, _: &mut dyn Hasher) -> Result<()> {
        Ok(())
    }
}

/// E[x xᵀ] `[in, in]` of what the head reads in the model as it was; asked for by name alone, never through a map.
pub(super) const INPUTS: Supply = Supply::new("inputs", Order::Outputs);

fn entry(supply: Supply, tensor: &str) -> String {
    format!("{}:{tensor}", supply.name())
}

/// Quantities that a pass finds.
fn wanted(supplies: &[Supply]) -> Wanted {
    let mut wanted = Wanted::NONE;
    for supply in supplies {
        wanted = match *supply {
            Supply::FISHER => wanted.with_fisher(),
            Supply::OUTPUT_FISHER => wanted.with_second_moments(FULL),
            Supply::OUTPUT_FISHER_DIAGONAL if wanted.second_moments.is_none() => {
                wanted.with_second_moments(0)
            }
            _ if *supply == Supply::guided_gram(supply.groups()) => {
                wanted.with_guided_grams(supply.groups())
            }
            _ => wanted,
        };
    }
    wanted
}

/// What the methods of the plan want of gradients; nothing if none wants any. Not usable where the model cannot be gone
/// back through.
///
/// # Errors
/// `Interrupted` if the caller asked to stop; `Io`; those of reading the model.
pub(super) fn find(
    context: &Context<'_>,
    samples: &Samples,
    work: &mut Work,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Usable<Option<Arc<dyn Supplied>>>> {
    let source = context.source;
    let mut files = BTreeMap::new();
    let (mut left, mut windows) = (BTreeMap::new(), WINDOWS);
    for index in 0..source.blocks() {
        let done = work.has_gradients(index);
        for spec in source.linears(index) {
            let wanted = wanted(&context.plan.supplies(&spec.name));
            if wanted == Wanted::NONE {
                continue;
            }
            if wanted.guided_grams > 0 {
                windows = samples.windows.len();
            }
            files.insert(spec.name.clone(), work.gradients(index));
            if !done {
                left.insert(spec.name, (index, wanted));
            }
        }
    }
    let tables = tables::calibrated(source, &context.plan)?;
    let of_tables = work.gradients(source.blocks());
    files.extend(tables.iter().map(|name| (name.clone(), of_tables.clone())));
    let tables = if work.has_gradients(source.blocks()) { Vec::new() } else { tables };
    // What a mix would only know better with a text does without.
    let blind = context.plan.is_mixed() && samples.windows.is_empty();
    if files.is_empty() || blind {
        return Ok(Usable::Yes(None));
    }
    if !(left.is_empty() && tables.is_empty()) {
        let windows = &samples.windows[..samples.windows.len().min(windows)];
        match pass(context, windows, work, (&left, &tables), tell) {
            // The model is at fault, or its kind: what needs gradients does without, and says so.
            Err(e) if [ErrorKind::Unsupported, ErrorKind::Numerical].contains(&e.kind()) => {
                return Ok(Usable::no(format!("no gradients: {e}")));
            }
            done => done?,
        }
    }
    Ok(Usable::Yes(Some(Arc::new(Found { files }))))
}

/// Runs the pass for the matrices that are left.
fn pass(
    context: &Context<'_>,
    windows: &[Vec<u32>],
    work: &mut Work,
    (left, tables): (&BTreeMap<String, (usize, Wanted)>, &[String]),
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    if windows.is_empty() {
        return Err(Error::unsupported("a backward pass of what is not a text"));
    }
    let path = work.hidden_states();
    let mut states = InFile::create(&path)?;
    let found = Mutex::new(Vec::new());
    let of = |name: &str| left.get(name).map_or(Wanted::NONE, |(_, wanted)| *wanted);
    let give = |name: &str, gradients: Gradients| {
        found.lock().expect(NOTHING_PANICS).push((name.to_owned(), gradients));
        Ok(())
    };
    let collector = Collector::new(of, give);
    let head = match tables.is_empty() {
        true => None,
        false => Some(Head::new(context.source, tables)?),
    };
    let mut keeping =
        Keeping { collector, found: &found, left, head, blocks: context.source.blocks(), work };
    let tell = RefCell::new(tell);
    let progress = |done: usize, steps: usize| {
        (tell.borrow_mut())(Event::Backward { done, steps });
        // What was read of the source: there is room for a block, not for a model.
        context.source.checkpoint().release();
        match context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let backward = Backward::default().with_labels(Labels::Sampled { seed: context.seed });
    let done = backward.run(context.source, windows, &mut states, &mut keeping, &progress);
    context.source.checkpoint().release();
    drop(states);
    std::fs::remove_file(&path).map_err(|e| Error::io("remove the file", &path, e))?;
    // The error that asks to go on is the one that all steps have.
    context.check_cancelled()?;
    done.map(drop)
}

/// Writes what is found of a block when the pass is through it.
struct Keeping<'a> {
    collector: Collector<'a>,
    found: &'a Mutex<Vec<(String, Gradients)>>,
    left: &'a BTreeMap<String, (usize, Wanted)>,
    /// What tables are calibrated on, if any are to be.
    head: Option<Head<'a>>,
    blocks: usize,
    work: &'a mut Work,
}

/// The head's inputs, and what an error in each of its outputs costs: E[p (1 - p)], which no label need be drawn for. Of
/// tokens that come as often as they are expected that is also about how often a row of the embeddings is read.
struct Head<'a> {
    name: String,
    tables: &'a [String],
    inputs: Gram,
    costs: Vec<f64>,
}

impl<'a> Head<'a> {
    fn new(source: &Source, tables: &'a [String]) -> Result<Self> {
        let head = source.head()?;
        let [vocabulary, channels] = head.linear().shape();
        let (inputs, costs) = (Gram::new(channels), vec![0.0; vocabulary]);
        Ok(Self { name: head.linear().name().to_owned(), tables, inputs, costs })
    }

    fn see(&mut self, piece: &Piece<'_>, par: Par) {
        self.inputs.update(piece.x, par);
        for row in piece.g.rows() {
            // p, and p - 1 where the label is: |g| (1 - |g|) is p (1 - p) for both.
            let costs = row.iter().map(|g| f64::from(g.abs()) * f64::from(1.0 - g.abs()).max(0.0));
            self.costs.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
        }
    }

    fn write(&self, path: &Path, tokens: u64) -> Result<()> {
        let share = 1.0 / tokens.max(1) as f64;
        let inputs = self.inputs.matrix()?.mapv(|v| (f64::from(v) * share) as f32);
        let costs: Array2<f32> =
            Array2::from_shape_fn((1, self.costs.len()), |(_, i)| (self.costs[i] * share) as f32);
        write_shard(path, &BTreeMap::new(), &mut |sink| {
            for name in self.tables {
                if *name == self.name {
                    sink.part(values(entry(INPUTS, name), inputs.view()))?;
                }
                for supply in [Supply::OUTPUT_FISHER, Supply::OUTPUT_FISHER_DIAGONAL] {
                    sink.part(values(entry(supply, name), costs.view()))?;
                }
            }
            Ok(())
        })
        .map(drop)
    }
}

impl GradientObserver for Keeping<'_> {
    fn wants(&self, layer: &Linear) -> bool {
        let head = |head: &Head<'_>| head.name == layer.name();
        self.collector.wants(layer) || self.head.as_ref().is_some_and(head)
    }

    fn see(&mut self, pieces: &[Piece<'_>], par: Par) -> Result<()> {
        let Some(head) = &mut self.head else { return self.collector.see(pieces, par) };
        let (of_head, others): (Vec<Piece<'_>>, Vec<Piece<'_>>) =
            pieces.iter().partition(|piece| piece.layer.name() == head.name);
        of_head.iter().for_each(|piece| head.see(piece, par));
        self.collector.see(&others, par)
    }

    fn finished(&mut self, layers: &[&Linear], tokens: u64) -> Result<()> {
        let is_head = |head: &Head<'_>, layer: &Linear| layer.name() == head.name;
        let of_head = |layer: &&Linear| self.head.as_ref().is_some_and(|head| is_head(head, layer));
        if layers.iter().any(of_head) {
            let path = self.work.gradients(self.blocks);
            self.head.as_ref().expect("there is one").write(&path, tokens)?;
            self.work.found_gradients(self.blocks, stored(&path)?)?;
        }
        let others: Vec<&Linear> = layers.iter().copied().filter(|l| !of_head(l)).collect();
        self.collector.finished(&others, tokens)?;
        let found = std::mem::take(&mut *self.found.lock().expect(NOTHING_PANICS));
        let blocks = found.iter().filter_map(|(name, _)| self.left.get(name));
        let blocks: BTreeSet<usize> = blocks.map(|(block, _)| *block).collect();
        for block in blocks {
            let path = self.work.gradients(block);
            write(&path, &found)?;
            self.work.found_gradients(block, stored(&path)?)?;
        }
        Ok(())
    }
}

fn write(path: &Path, found: &[(String, Gradients)]) -> Result<()> {
    write_shard(path, &BTreeMap::new(), &mut |sink| {
        let mut part = |supply: Supply, name: &str, of: ArrayView2<'_, f32>| {
            sink.part(values(entry(supply, name), of))
        };
        for (name, gradients) in found {
            if let Some(fisher) = &gradients.fisher {
                part(Supply::FISHER, name, fisher.view())?;
            }
            if let Some(grams) = &gradients.guided_grams {
                part(Supply::guided_gram(1), name, grams.view())?;
            }
            let Some(moment) = &gradients.second_moment else { continue };
            let diagonal = moment.diagonal();
            let row = aview1(&diagonal).insert_axis(tensorpress_tensor::ndarray::Axis(0));
            part(Supply::OUTPUT_FISHER_DIAGONAL, name, row)?;
            match moment {
                SecondMoment::Full(all) => part(Supply::OUTPUT_FISHER, name, all.view())?,
                SecondMoment::Diagonal(_) => part(Supply::OUTPUT_FISHER, name, row)?,
            }
        }
        Ok(())
    })
    .map(drop)
}

fn values(name: String, values: ArrayView2<'_, f32>) -> Part<'static> {
    let (rows, columns) = values.dim();
    Part {
        name,
        kind: PartKind::Values,
        dtype: DType::F32,
        shape: vec![rows, columns],
        bytes: Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}
