//! Conversions to a GGUF file.

mod outline;
mod plan;
mod tensors;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tensorpress_formats::ggml::Type;
use tensorpress_formats::gguf::model::is_gguf;
use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::{name_file, refuse_mount_point};
use tensorpress_tensor::{Context as _, Error, Result};

use super::{ConversionReport, Convert, Event, Target};
use crate::pipeline::folder::Work;
use crate::pipeline::listing::UNFINISHED_GGUF;
use crate::pipeline::state::{Identity, Unit};
pub(super) use outline::outline;
use plan::Plan;
use tensors::tensor;

pub(super) fn convert(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
    ty: Option<Type>,
) -> Result<ConversionReport> {
    if job.shard_size.is_some() {
        return Err(Error::invalid("a GGUF file is written as one: no length of shards"));
    }
    check_target(out, source, job.force)?;
    let plan = Plan::new(job, source, out, ty)?;
    let identity = Identity::of_job(source, job.identity()?)?;
    let mut work = Work::open(job.folder(out), identity, source.checkpoint(), job.force)?;
    let done = write(job, source, out, &plan, &mut work);
    let mut report = work.ended(done)?;
    report.notes.extend(plan.notes);
    Ok(report)
}

/// That the model has words in GGUF files, as far as is known before it is compressed.
pub(super) fn check(source: &Source, out: &Path) -> Result<()> {
    Plan::new(&Convert::new(Target::Gguf(None)), source, out, None).map(drop)
}

/// Whether a file may go to `out`.
pub(super) fn check_target(out: &Path, source: &Source, force: bool) -> Result<()> {
    if out.file_name().is_none() {
        return Err(Error::invalid("is no name for a new file").in_file(out));
    }
    let Ok(found) = fs::symlink_metadata(out) else { return Ok(()) };
    refuse_mount_point(out)?;
    if !force {
        return Err(Error::exists("exists already").in_file(out));
    }
    if !found.is_file() || !is_gguf(out) {
        return Err(Error::invalid("is no GGUF file; not replaced").in_file(out));
    }
    let real = |path: &Path| path.canonicalize().ok();
    let target = real(out);
    if source.checkpoint().files().any(|path| real(path) == target) {
        return Err(Error::invalid("is the model to convert; write elsewhere").in_file(out));
    }
    Ok(())
}

fn write(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
    plan: &Plan,
    work: &mut Work,
) -> Result<ConversionReport> {
    let path = work.folder().join(UNFINISHED_GGUF);
    let mut file = Unfinished::open(&path, work.units())?;
    if file.done < work.units().len() {
        work.forget(file.done)?;
    }
    let header = &plan.header;
    let infos = header.tensors_in_place();
    job.tell(Event::Begun { blocks: infos.len(), resumed: file.done });
    if file.done == 0 {
        file.put(&header.bytes())?;
    }
    let mut pending: Vec<Unit> = Vec::new();
    let mut unsaved = 0;
    for (index, info) in infos.iter().enumerate().skip(file.done) {
        job.check_cancelled()?;
        job.tell(Event::Block { block: index, blocks: infos.len() });
        file.fill_to(header.range(info).start)?;
        let (bytes, converted) = tensor(job, source, plan, info).in_tensor(&info.name)?;
        file.put(&bytes)?;
        unsaved += bytes.len();
        source.checkpoint().release();
        pending.push(Unit { bytes: file.at, converted, ..Unit::default() });
        if unsaved > SAVE {
            file.sync()?;
            work.finished_all(std::mem::take(&mut pending))?;
            unsaved = 0;
        }
    }
    file.fill_to(plan.size)?;
    file.sync()?;
    work.finished_all(pending)?;
    let mut report = job.report(source);
    report.bytes_after = file.at;
    report.tensors = work.units().iter().flat_map(|unit| unit.converted.clone()).collect();
    drop(file);
    // What is there now is looked at now.
    check_target(out, source, job.force)?;
    name_file(&path, out, job.force)?;
    work.discard()?;
    Ok(report)
}

/// Bytes after which what is done is noted.
const SAVE: usize = 32 << 20;

/// A file has another name too: it was finished, and a kill came before this one was gone. Nobody may write to it.
#[cfg(unix)]
fn is_named(found: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(found) > 1
}

/// Elsewhere nobody says so.
#[cfg(not(unix))]
fn is_named(_: &fs::Metadata) -> bool {
    false
}

/// The file that is being written.
struct Unfinished {
    path: PathBuf,
    file: File,
    /// Where the next byte goes.
    at: u64,
    /// Tensors that are in it.
    done: usize,
}

impl Unfinished {
    /// Takes up what is there, as far as it was noted.
    fn open(path: &Path, units: &[Unit]) -> Result<Self> {
        let fail = |e| Error::io("open the file", path, e);
        if fs::metadata(path).is_ok_and(|found| units.is_empty() || is_named(&found)) {
            fs::remove_file(path).map_err(fail)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let done = units.iter().take_while(|unit| unit.bytes <= len).count();
        let at = units[..done].last().map_or(0, |unit| unit.bytes);
        file.set_len(at).map_err(fail)?;
        file.seek(SeekFrom::Start(at)).map_err(fail)?;
        Ok(Self { path: path.to_path_buf(), file, at, done })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let path = &self.path;
        self.file.write_all(bytes).map_err(|e| Error::io("write the file", path, e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn fill_to(&mut self, end: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < end {
            let count = (end - self.at).min(ZEROS.len() as u64) as usize;
            self.put(&ZEROS[..count])?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("sync the file", &self.path, e))
    }
}
