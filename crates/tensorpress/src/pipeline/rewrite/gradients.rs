//! Gradients of the mean loss by the weights, for rewrites that ask for them where the caller supplied none: one backward
//! pass through the model as the rewrites before left it.
//!
//! They lie in files, one a matrix, as long as blocks are judged; what is judged is kept, so that a run that is taken up
//! again finds them anew, to the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tensorpress_model::Source;
use tensorpress_model::backward::{Backward, Collector, InFile, Labels, Wanted};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::{Supplied, Supply};
use tensorpress_tensor::{Context as _, DType, Error, ErrorKind, Result, Rewrite, Usable};

use super::super::calibration::Samples;
use super::super::progress::Event;
use crate::pipeline::backward::WINDOWS;

/// It asks for gradients by the weights.
pub(super) fn wanted(rewrite: &dyn Rewrite) -> bool {
    rewrite.needs().of_caller().contains(&Supply::GRADIENT)
}

/// A matrix in a file: rows of little-endian f32.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    shape: [usize; 2],
}

/// What a pass found; its files go with it.
#[derive(Debug, Default)]
struct Found {
    files: BTreeMap<String, Stored>,
}

impl Drop for Found {
    fn drop(&mut self) {
        // What cannot be removed goes with the folder.
        self.files.values().for_each(|stored| drop(fs::remove_file(&stored.path)));
    }
}

impl Supplied for Found {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let Some(stored) = self.files.get(tensor).filter(|_| supply == Supply::GRADIENT) else {
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

/// Runs the pass, of the next tokens of the first windows; `path` names the file of a number. Not usable where the model
/// cannot be gone back through.
///
/// # Errors
/// `Interrupted` if the caller asked to stop; `Io`; those of reading the model.
pub(super) fn find(
    source: &Source,
    samples: &Samples,
    path: &(dyn Fn(usize) -> PathBuf + Sync),
    tell: &mut dyn FnMut(Event<'_>),
    cancel: Option<&AtomicBool>,
) -> Result<Usable<Arc<dyn Supplied>>> {
    let found = Mutex::new(Found::default());
    let give = |name: &str, gradients: tensorpress_model::backward::Gradients| {
        let Some(mean) = &gradients.mean else { return Ok(()) };
        let mut found = found.lock().expect("nothing panics while it is held");
        let path = path(found.files.len() + 1);
        let mut bytes = Vec::new();
        let values = mean.as_standard_layout();
        DType::F32.write_f32(values.as_slice().expect("standard layout"), &mut bytes)?;
        fs::write(&path, bytes).map_err(|e| Error::io("write the file", &path, e))?;
        let shape = [mean.nrows(), mean.ncols()];
        found.files.insert(name.to_owned(), Stored { path, shape });
        Ok(())
    };
    let mut collector = Collector::new(|_| Wanted::NONE.with_mean(), give);
    let states_path = path(0);
    let mut states = InFile::create(&states_path)?;
    let tell = std::cell::RefCell::new(tell);
    let progress = |done: usize, steps: usize| {
        (tell.borrow_mut())(Event::Backward { done, steps });
        source.checkpoint().release();
        match super::super::check_cancelled(cancel) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let windows = &samples.windows[..samples.windows.len().min(WINDOWS)];
    let backward = Backward::default().with_labels(Labels::Next);
    let done = match windows.is_empty() {
        true => Err(Error::unsupported("a backward pass of what is not a text")),
        false => backward.run(source, windows, &mut states, &mut collector, &progress),
    };
    drop(collector);
    source.checkpoint().release();
    drop(states);
    fs::remove_file(&states_path).map_err(|e| Error::io("remove the file", &states_path, e))?;
    super::super::check_cancelled(cancel)?;
    match done {
        // The model is at fault, or its kind: what needs gradients does without, and says so.
        Err(e) if [ErrorKind::Unsupported, ErrorKind::Numerical].contains(&e.kind()) => {
            Ok(Usable::no(format!("no gradients: {e}")))
        }
        Err(e) => Err(e),
        Ok(_) => {
            let found = found.into_inner().expect("nothing panics while it is held");
            Ok(Usable::Yes(Arc::new(found)))
        }
    }
}
