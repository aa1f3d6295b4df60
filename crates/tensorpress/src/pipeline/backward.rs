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

use tensorpress_model::Linear;
use tensorpress_model::backward::{
    Backward, Collector, GradientObserver, Gradients, InFile, Labels, Piece, SecondMoment, Wanted,
};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, aview1};
use tensorpress_tensor::stats::{Supplied, Supply};
use tensorpress_tensor::{
    Checkpoint, Context as _, DType, Error, ErrorKind, Part, PartKind, Result, Tensor, Usable,
};

use super::Context;
use super::calibration::Samples;
use super::folder::Work;
use super::progress::Event;
use super::rewrite::stored;

/// Windows of the calibration that the pass is of, the first ones: more changed little where it was tried, and each takes
/// three times that of a forward pass.
const WINDOWS: usize = 24;

/// Second moments of all pairs of outputs are gathered for up to so many outputs, which is 64 MiB a matrix.
const FULL: usize = 4096;

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
    let mut left = BTreeMap::new();
    for index in 0..source.blocks() {
        let done = work.has_gradients(index);
        for spec in source.linears(index) {
            let Some(method) = context.plan.index(&spec.name) else { continue };
            let wanted = wanted(context.plan.method(method).method.needs().of_caller());
            if wanted == Wanted::NONE {
                continue;
            }
            files.insert(spec.name.clone(), work.gradients(index));
            if !done {
                left.insert(spec.name, (index, wanted));
            }
        }
    }
    if files.is_empty() {
        return Ok(Usable::Yes(None));
    }
    if !left.is_empty() {
        match pass(context, samples, work, &left, tell) {
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
    samples: &Samples,
    work: &mut Work,
    left: &BTreeMap<String, (usize, Wanted)>,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    if samples.windows.is_empty() {
        return Err(Error::unsupported("a backward pass of what is not a text"));
    }
    let windows = &samples.windows[..samples.windows.len().min(WINDOWS)];
    let path = work.hidden_states();
    let mut states = InFile::create(&path)?;
    let found = Mutex::new(Vec::new());
    let of = |name: &str| left.get(name).map_or(Wanted::NONE, |(_, wanted)| *wanted);
    let give = |name: &str, gradients: Gradients| {
        found.lock().expect(NOTHING_PANICS).push((name.to_owned(), gradients));
        Ok(())
    };
    let collector = Collector::new(of, give);
    let mut keeping = Keeping { collector, found: &found, left, work };
    let tell = RefCell::new(tell);
    let progress = |done: usize, steps: usize| {
        (tell.borrow_mut())(Event::Backward { done, steps });
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
    work: &'a mut Work,
}

impl GradientObserver for Keeping<'_> {
    fn wants(&self, layer: &Linear) -> bool {
        self.collector.wants(layer)
    }

    fn see(&mut self, pieces: &[Piece<'_>], par: Par) -> Result<()> {
        self.collector.see(pieces, par)
    }

    fn finished(&mut self, layers: &[&Linear], tokens: u64) -> Result<()> {
        self.collector.finished(layers, tokens)?;
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
        let mut part = |supply: Supply, name: &str, values: ArrayView2<'_, f32>| {
            let (rows, columns) = values.dim();
            sink.part(Part {
                name: entry(supply, name),
                kind: PartKind::Values,
                dtype: DType::F32,
                shape: vec![rows, columns],
                bytes: Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            })
        };
        for (name, gradients) in found {
            if let Some(fisher) = &gradients.fisher {
                part(Supply::FISHER, name, fisher.view())?;
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
