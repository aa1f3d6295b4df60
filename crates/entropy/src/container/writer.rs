//! Packing.

use std::collections::HashMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;
use tensorpress_tensor::checkpoint::{ByteSource, write_atomically, write_new};
use tensorpress_tensor::{Bytes, Context, Error, Result};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use super::base::{Base, BaseTensor};
use super::batch::{Batches, Job};
use super::format::{FileEntry, Index, Segment, Stored};
use super::input::{Input, check_target, check_unmoved, inputs};
use super::layout::{self, Part};
use super::paths;
use super::preamble::{PREAMBLE, Preamble};
use super::progress::{Progress, Watch, tell};
use crate::chunk::{CHUNK_BYTES, Effort};
use crate::value::ValueType;

/// Packs files.
///
/// ```
/// use tensorpress_entropy::{PackedFile, Packer};
///
/// # fn main() -> tensorpress_entropy::Result<()> {
/// let file = ("notes.txt".to_owned(), b"the same words, the same words".to_vec().into());
/// let packed = Packer::new().pack_bytes(vec![file], false)?;
/// assert!(PackedFile::from_bytes("notes.tpk", packed).is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Packer<'a> {
    effort: Effort,
    base: Option<Base>,
    force: bool,
    watch: Option<&'a mut Watch<'a>>,
}

impl std::fmt::Debug for Packer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { effort, base, force, .. } = self;
        f.debug_struct("Packer")
            .field("effort", effort)
            .field("base", base)
            .field("force", force)
            .finish_non_exhaustive()
    }
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
#[must_use]
pub struct PackReport {
    /// Length of all files.
    pub bytes_before: u64,
    /// Length of the packed file.
    pub bytes_after: u64,
    /// Files.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Bytes of segments that are stored once, though they are there several times.
    pub duplicate_bytes: u64,
    /// Tensors of which some chunk is stored as the difference from the base.
    pub delta_tensors: usize,
    /// Bytes of the header and the index.
    pub index_bytes: u64,
}

impl<'a> Packer<'a> {
    /// A packer with [`Effort::Fast`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How hard to try.
    #[must_use]
    pub fn with_effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// Stores tensors as differences from those of `base` with the same name, element type and shape, where that is
    /// smaller.
    #[must_use]
    pub fn with_base(mut self, base: Base) -> Self {
        self.base = Some(base);
        self
    }

    /// Replaces a packed file that is there.
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Tells how far the work is, and asks whether to go on.
    #[must_use]
    pub fn with_progress(mut self, watch: &'a mut Watch<'a>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Packs a file, or every regular file below a folder, into the file `to`, which appears under its name only when
    /// it is complete and on disk. Symbolic links are followed, and what they lead to is packed in their place. Folders
    /// without files in them are not kept, nor are permissions and times.
    ///
    /// # Errors
    /// `Exists` if `to` does and is not to be replaced, also if it came meanwhile; `InvalidArgument` if it lies where it
    /// would be packed itself; `Unsupported` for symbolic links that lead nowhere or into a loop, special files, and names
    /// that are no UTF-8; `Io`, also if a file came, went, was changed or cut meanwhile; `Interrupted` if the progress callback says so.
    /// Nothing is left behind.
    pub fn pack(self, from: &Path, to: &Path) -> Result<PackReport> {
        check_target(from, to, self.force)?;
        let (inputs, is_folder) = inputs(from)?;
        let mut report = Err(Error::invalid("nothing was written"));
        let publish = if self.force { write_atomically } else { write_new };
        let mut packer = Some(self);
        publish(to, &mut |file| {
            let packer = packer.take().expect("called once");
            let mut sink = BufWriter::with_capacity(CHUNK_BYTES, file);
            report = Ok(packer.run(&inputs, is_folder, &mut sink, to)?);
            sink.flush().map_err(|e| Error::io("write the file", to, e))?;
            check_unmoved(from, &inputs)
        })?;
        report
    }

    /// Packs a file or folder into anything that can be written and sought; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Packer::pack`]; what was written before an error is of no use.
    pub fn pack_into(
        self,
        from: &Path,
        sink: &mut (impl Write + Seek + Send),
        name: &str,
    ) -> Result<PackReport> {
        let (inputs, is_folder) = inputs(from)?;
        let report = self.run(&inputs, is_folder, sink, name.as_ref())?;
        check_unmoved(from, &inputs)?;
        Ok(report)
    }

    /// Packs files in memory, given by their relative paths; one that is no folder has exactly one file.
    ///
    /// # Errors
    /// As [`Packer::pack`]; `InvalidArgument` for paths that cannot be stored.
    pub fn pack_bytes(self, files: Vec<(String, Bytes)>, is_folder: bool) -> Result<Vec<u8>> {
        let memory = |(path, bytes): (String, Bytes)| (path.clone(), Input::Memory(path, bytes));
        let mut inputs: Vec<(String, Input)> = files.into_iter().map(memory).collect();
        inputs.sort_by(|(a, _), (b, _)| a.cmp(b));
        if !is_folder && (inputs.len() != 1 || inputs[0].0.contains('/')) {
            return Err(Error::invalid("not one file, and no folder"));
        }
        paths::check(inputs.iter().map(|(path, _)| path.as_str()))
            .map_err(|e| Error::invalid(e.message()))?;
        let mut sink = std::io::Cursor::new(Vec::new());
        let _ = self.run(&inputs, is_folder, &mut sink, Path::new("memory"))?;
        Ok(sink.into_inner())
    }

    fn run(
        mut self,
        inputs: &[(String, Input)],
        is_folder: bool,
        sink: &mut (impl Write + Seek + Send),
        to: &Path,
    ) -> Result<PackReport> {
        let io = |e| Error::io("write the file", to, e);
        let begin = sink.stream_position().map_err(io)?;
        sink.write_all(&[0; PREAMBLE]).map_err(io)?;
        let base = self.base.take();
        let total = inputs.iter().map(|(_, input)| input.size()).sum();
        let mut work = Work {
            inputs,
            batches: Batches::new(&mut *sink, to, self.effort),
            base: base.as_ref(),
            index: Index { is_folder, ..Index::default() },
            seen: HashMap::new(),
            report: PackReport { bytes_before: total, ..PackReport::default() },
            watch: self.watch,
        };
        for number in 0..inputs.len() {
            work.file(number)?;
        }
        let Work { batches, mut index, mut report, mut watch, .. } = work;
        let (_, index_offset) = batches.finish(&mut index.segments)?;
        if let Some(base) = &base {
            base.check_unmoved()?;
            report.delta_tensors = drop_unused(&mut index, base);
        }
        let bytes = index.to_bytes();
        sink.write_all(&bytes).map_err(io)?;
        let index_bytes = bytes.len() as u64;
        let preamble = Preamble { index_offset, index_bytes, index_sum: xxh3_128(&bytes) };
        sink.seek(SeekFrom::Start(begin)).map_err(io)?;
        sink.write_all(&preamble.to_bytes()).map_err(io)?;
        sink.seek(SeekFrom::End(0)).map_err(io)?;
        report.bytes_after = index_offset + index_bytes;
        report.index_bytes = PREAMBLE as u64 + index_bytes;
        tell(&mut watch, Progress { done: total, total, stored: report.bytes_after })?;
        Ok(report)
    }
}

/// Forgets bases of which no chunk is a difference; tells how many are left.
fn drop_unused(index: &mut Index, base: &Base) -> usize {
    let mut used = 0;
    for segment in &mut index.segments {
        if let Stored::Chunks { chunks, base } = &mut segment.stored {
            match chunks.iter().any(|chunk| chunk.delta) {
                true => used += 1,
                false => *base = None,
            }
        }
    }
    index.base = (used > 0).then(|| base.path().to_string_lossy().into_owned());
    used
}

/// What packing has come to.
struct Work<'w, 'a, W> {
    inputs: &'w [(String, Input)],
    batches: Batches<'w, W>,
    base: Option<&'w Base>,
    index: Index,
    /// Segments with chunks, by hash, length and layout, and the input that each is of.
    seen: HashMap<(u128, u64, ValueType), (usize, usize)>,
    report: PackReport,
    watch: Option<&'a mut Watch<'a>>,
}

/// Bytes hashed or compared at a time.
const PIECE: u64 = 4 * CHUNK_BYTES as u64;

impl<'w, W: Write + Send> Work<'w, '_, W> {
    fn file(&mut self, number: usize) -> Result<()> {
        let (path, input) = &self.inputs[number];
        let source = input.open()?;
        let first = self.index.segments.len();
        let mut whole = Xxh3::new();
        for part in layout::parts(&*source)? {
            self.segment(part, number, &source, &mut whole)?;
        }
        source.check_unmoved()?;
        let segments = first..self.index.segments.len();
        let (path, len, hash) = (path.to_owned(), source.size(), whole.digest128());
        self.index.files.push(FileEntry { path, len, hash, segments });
        self.report.files += 1;
        Ok(())
    }

    fn segment(
        &mut self,
        part: Part,
        file: usize,
        source: &Arc<dyn ByteSource>,
        whole: &mut Xxh3,
    ) -> Result<()> {
        let Part { tensor, values, range } = part;
        let (path, input) = &self.inputs[file];
        let (number, len) = (self.index.segments.len(), range.end - range.start);
        let (hash, sums) = hash(&**source, &range, whole)?;
        self.report.tensors += usize::from(tensor.is_some());
        let same = match self.seen.get(&(hash, len, values)) {
            Some((earlier, of)) if self.is_same(source, range.start, *earlier, *of)? => {
                Some(*earlier)
            }
            _ => None,
        };
        let mut add = |stored| {
            let offset = range.start;
            let tensor = tensor.clone();
            self.index.segments.push(Segment { tensor, values, offset, len, hash, stored });
        };
        if let Some(earlier) = same {
            add(Stored::SameAs(earlier));
            self.report.duplicate_bytes += len;
            return Ok(());
        }
        let like = |tensor| self.base.and_then(|base| base.find(tensor, path));
        let base: Option<&BaseTensor> = tensor.as_ref().and_then(like);
        let base_hash = base.map(|base| base.hash().in_file(Path::new(path))).transpose()?;
        add(Stored::Chunks { chunks: Vec::new(), base: base_hash });
        self.seen.entry((hash, len, values)).or_insert((number, file));
        for (from, sum) in (0..len).step_by(CHUNK_BYTES).zip(sums) {
            let to = len.min(from + CHUNK_BYTES as u64);
            let job = Job {
                segment: number,
                values,
                source: source.clone(),
                path: input.path(),
                range: range.start + from..range.start + to,
                sum,
                base: base.map(|base| (base, from)),
            };
            if self.batches.push(job, &mut self.index.segments)? {
                let (done, stored) = self.batches.done();
                let done = done + self.report.duplicate_bytes;
                tell(&mut self.watch, Progress { done, total: self.report.bytes_before, stored })?;
            }
        }
        Ok(())
    }

    /// Whether bytes are those of an earlier segment: its hash is not enough to lose a tensor by.
    fn is_same(
        &self,
        source: &Arc<dyn ByteSource>,
        at: u64,
        earlier: usize,
        of: usize,
    ) -> Result<bool> {
        let Segment { offset, len, .. } = self.index.segments[earlier];
        let other = self.inputs[of].1.open()?;
        for from in (0..len).step_by(PIECE as usize) {
            let to = len.min(from + PIECE);
            let (a, b) =
                (source.read(at + from..at + to)?, other.read(offset + from..offset + to)?);
            if *a != *b {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Hashes a segment and each of its chunks, and goes on with the hash of the file.
fn hash(source: &dyn ByteSource, range: &Range<u64>, whole: &mut Xxh3) -> Result<(u128, Vec<u64>)> {
    let (mut part, mut sums) = (Xxh3::new(), Vec::new());
    let mut at = range.start;
    while at < range.end {
        let to = range.end.min(at + PIECE);
        let bytes = source.read(at..to)?;
        let chunks = || bytes.par_chunks(CHUNK_BYTES).map(xxh3_64).collect::<Vec<u64>>();
        let (of_chunks, _) =
            rayon::join(chunks, || rayon::join(|| part.update(&bytes), || whole.update(&bytes)));
        sums.extend(of_chunks);
        at = to;
    }
    Ok((part.digest128(), sums))
}
