//! What becomes of a compressed folder when it is done: it gets its name, or is written in another format.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensorpress_model::Source;
use tensorpress_tensor::{Registry, Result};

use super::folder::{self, Work};
use super::mix::Outline;
#[cfg(feature = "formats")]
use super::shard;
use super::{CalibrationText, Progress, finish};
#[cfg(feature = "formats")]
use tensorpress_tensor::{Error, ErrorKind};

#[cfg(feature = "formats")]
use super::{
    Convert, Target,
    convert::{check, check_nodes, outline},
    folder::converting,
};

/// The name, or a format.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Then {
    #[cfg(feature = "formats")]
    format: Option<Target>,
}

/// What there is to say about the last step.
#[derive(Default)]
pub(super) struct Said {
    pub(super) notes: Vec<String>,
    #[cfg(feature = "formats")]
    pub(super) converted: Vec<super::Converted>,
}

/// What the last step of a run may need.
pub(super) struct Publish<'a> {
    pub(super) force: bool,
    pub(super) registry: &'a Registry,
    pub(super) calibration: Option<CalibrationText>,
    pub(super) cancel: Option<Arc<AtomicBool>>,
    pub(super) progress: Option<&'a mut dyn Progress>,
}

impl Then {
    #[cfg(feature = "formats")]
    pub(super) fn format(format: Target) -> Self {
        Self { format: Some(format).filter(|format| *format != Target::Tensorpress) }
    }

    /// What it becomes at `out`, if that is another format.
    #[cfg_attr(not(feature = "formats"), allow(unused_variables, clippy::unnecessary_wraps))]
    pub(super) fn outline(&self, source: &Source, out: &Path) -> Result<Option<Outline>> {
        #[cfg(feature = "formats")]
        return self.format.map(|format| outline(format, source, out)).transpose();
        #[cfg(not(feature = "formats"))]
        Ok(None)
    }

    /// Whether the result may go to `out`.
    pub(super) fn check(&self, source: &Source, out: &Path, force: bool) -> Result<()> {
        #[cfg(feature = "formats")]
        if let Some(format) = self.format {
            return check(format, source, out, force);
        }
        folder::check_target(out, source, force)
    }

    /// Whether the format holds what the recipe made of the first block: better said then than at the end.
    #[cfg_attr(not(feature = "formats"), allow(unused_variables))]
    pub(super) fn check_first(&self, shard: &Path, registry: &Registry) -> Result<()> {
        #[cfg(feature = "formats")]
        if let Some(format) = self.format {
            let nodes = shard::nodes(shard, registry)?;
            if !nodes.is_empty() {
                return check_nodes(format, &nodes);
            }
        }
        Ok(())
    }

    /// Makes the result appear, and gives what there is to say about it.
    pub(super) fn publish(&self, work: &mut Work, out: &Path, with: Publish<'_>) -> Result<Said> {
        #[cfg(feature = "formats")]
        if let Some(format) = self.format {
            return convert(format, work, out, with);
        }
        finish::publish(work, out, with.force).map(|()| Said::default())
    }
}

#[cfg(feature = "formats")]
fn convert(format: Target, work: &mut Work, out: &Path, with: Publish<'_>) -> Result<Said> {
    let source = Source::open_any(work.folder(), with.registry)?;
    let typed = matches!(format, Target::Gguf(Some(_)));
    let mut job = Convert::new(format)
        .with_folder(converting(out))
        .with_requantize(typed)
        .with_force(with.force);
    if let Some(text) = with.calibration.filter(|_| typed) {
        job = job.with_calibration(text);
    }
    if let Some(cancel) = with.cancel {
        job = job.with_cancel(cancel);
    }
    if let Some(progress) = with.progress {
        job = job.with_progress(progress);
    }
    let report = job.run(&source, out).map_err(|e| match (e.kind(), e.tensor()) {
        (ErrorKind::Unsupported, Some(tensor)) => {
            let kept =
                "what the recipe made is kept, and the same call without a format ends with it";
            Error::unsupported(format!("{}; {kept}", e.message())).in_tensor(tensor)
        }
        _ => e,
    })?;
    let trees = source.trees();
    let again = report.tensors.iter().filter(|t| !t.lossless && trees.contains_key(&t.name));
    let (again, mut notes) = (again.count(), report.notes);
    if again > 0 {
        let (name, all) = (format.name(), trees.len());
        notes.push(format!("{again} of {all} compressed matrices were rounded again, to {name}"));
    }
    drop(source);
    work.discard()?;
    Ok(Said { notes, converted: report.tensors })
}
