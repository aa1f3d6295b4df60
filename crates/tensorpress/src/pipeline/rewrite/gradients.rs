//! What rewrites ask of gradients where the caller supplied none: those of the mean loss by the weights, or second moments
//! of those by the outputs of layers; a backward pass for each through the model as the rewrites before left it.
//!
//! They lie in files, one a matrix, as long as blocks are judged; what is judged is kept, so that a run that is taken up
//! again finds them anew, to the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tensorpress_model::backward::{
    Backward, Collector, Gradients, InFile, Labels, SecondMoment, Wanted,
};
use tensorpress_model::{LinearSpec, Source};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::{Supplied, Supply};
use tensorpress_tensor::{Context as _, DType, Error, ErrorKind, Result, Rewrite, Usable};

use super::super::calibration::Samples;
use super::super::progress::Event;
use crate::pipeline::backward::{FULL, WINDOWS};

/// Bytes of the second moments of a block: of wider outputs diagonals alone are held.
const TOGETHER: usize = 1 << 30;

/// What passes find.
const FOUND: [Supply; 2] = [Supply::GRADIENT, Supply::OUTPUT_FISHER];

/// It asks for something that a pass finds.
pub(super) fn wanted(rewrite: &dyn Rewrite) -> bool {
    let needs = rewrite.needs();
    FOUND.iter().any(|supply| needs.of_caller().contains(supply))
}

/// A matrix in a file: rows of little-endian f32.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    shape: [usize; 2],
}

/// What passes found; its files go with it.
#[derive(Debug, Default)]
struct Found {
    files: BTreeMap<(&'static str, String), Stored>,
}

impl Drop for Found {
    fn drop(&mut self) {
        // What cannot be removed goes with the folder.
        self.files.values().for_each(|stored| drop(fs::remove_file(&stored.path)));
    }
}

impl Supplied for Found {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let Some(stored) = self.files.get(&(supply.name(), tensor.to_owned())) else {
            return Ok(None);
        };
        let bytes =
            fs::read(&stored.path).map_err(|e| Error::io("read the file", &stored.path, e))?;
        let mut values = vec![0.0; bytes.len() / 4];
        DType::F32.read_f32(&bytes, &mut values)?;
        let [rows, cols] = stored.shape;
        let values = Array2::from_shape_vec((rows, cols), values);
        values.map(Some).map_err(|e| Error::corruption(e.to_string())).in_file(&stored.path)
    }

    /// What it is found from is part of the work's identity already.
    fn identify(&self, _: &mut dyn Hasher) -> Result<()> {
        Ok(())
    }
}

/// How passes are run.
pub(super) struct Passing<'a> {
    pub(super) source: &'a Source,
    pub(super) samples: &'a Samples,
    /// Of labels that are drawn.
    pub(super) seed: u64,
    /// Names the file of a number.
    pub(super) path: &'a (dyn Fn(usize) -> PathBuf + Sync),
    pub(super) cancel: Option<&'a AtomicBool>,
}

impl Passing<'_> {
    /// Runs the passes that a rewrite asks for, of the first windows. Not usable where the model cannot be gone back through.
    ///
    /// # Errors
    /// `Interrupted` if the caller asked to stop; `Io`; those of reading the model.
    pub(super) fn find(
        &self,
        rewrite: &dyn Rewrite,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Usable<Arc<dyn Supplied>>> {
        let found = Mutex::new(Found::default());
        let specs = (0..self.source.blocks()).flat_map(|block| self.source.linears(block));
        let asked: BTreeSet<String> =
            specs.filter(|spec| rewrite.asks_of(spec)).map(|spec| spec.name).collect();
        let needs = rewrite.needs();
        for supply in FOUND.into_iter().filter(|supply| needs.of_caller().contains(supply)) {
            match self.pass(supply, &asked, &found, tell) {
                // The model is at fault, or its kind: what needs gradients does without, and says so.
                Err(e) if [ErrorKind::Unsupported, ErrorKind::Numerical].contains(&e.kind()) => {
                    return Ok(Usable::no(format!("no gradients: {e}")));
                }
                done => done?,
            }
        }
        let found = found.into_inner().expect("nothing panics while it is held");
        Ok(Usable::Yes(Arc::new(found)))
    }

    /// One pass, of these matrices: gradients of the usual loss, or the Fisher information.
    fn pass(
        &self,
        supply: Supply,
        asked: &BTreeSet<String>,
        found: &Mutex<Found>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let (labels, wanted) = match supply {
            Supply::GRADIENT => (Labels::Next, Wanted::NONE.with_mean()),
            _ => {
                // Those of all matrices of a block are held at a time.
                let blocks = (0..self.source.blocks()).map(|block| self.source.linears(block));
                let of_block = |specs: Vec<LinearSpec>| {
                    specs.iter().filter(|spec| asked.contains(&spec.name)).count()
                };
                let most = blocks.map(of_block).max().unwrap_or(0).max(1);
                let full = FULL.min((TOGETHER / (4 * most)).isqrt());
                (Labels::Sampled { seed: self.seed }, Wanted::NONE.with_second_moments(full))
            }
        };
        let give = |name: &str, gradients: Gradients| {
            let moment = gradients.second_moment.map(|moment| match moment {
                SecondMoment::Full(all) => all,
                SecondMoment::Diagonal(values) => {
                    Array2::from_shape_vec((1, values.len()), values).expect("one row")
                }
            });
            let Some(values) = gradients.mean.or(moment) else { return Ok(()) };
            let mut found = found.lock().expect("nothing panics while it is held");
            let path = (self.path)(found.files.len() + 1);
            let mut bytes = Vec::new();
            let values = values.as_standard_layout();
            DType::F32.write_f32(values.as_slice().expect("standard layout"), &mut bytes)?;
            fs::write(&path, bytes).map_err(|e| Error::io("write the file", &path, e))?;
            let shape = [values.nrows(), values.ncols()];
            found.files.insert((supply.name(), name.to_owned()), Stored { path, shape });
            Ok(())
        };
        let of = |name: &str| if asked.contains(name) { wanted } else { Wanted::NONE };
        let mut collector = Collector::new(of, give);
        let states_path = (self.path)(0);
        let mut states = InFile::create(&states_path)?;
        let tell = std::cell::RefCell::new(tell);
        let progress = |done: usize, steps: usize| {
            (tell.borrow_mut())(Event::Backward { done, steps });
            self.source.checkpoint().release();
            match super::super::check_cancelled(self.cancel) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let windows = &self.samples.windows[..self.samples.windows.len().min(WINDOWS)];
        let backward = Backward::default().with_labels(labels);
        let done = match windows.is_empty() {
            true => Err(Error::unsupported("a backward pass of what is not a text")),
            false => backward.run(self.source, windows, &mut states, &mut collector, &progress),
        };
        drop(collector);
        self.source.checkpoint().release();
        drop(states);
        fs::remove_file(&states_path).map_err(|e| Error::io("remove the file", &states_path, e))?;
        super::super::check_cancelled(self.cancel)?;
        done.map(drop)
    }
}
