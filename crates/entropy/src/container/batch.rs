//! Chunks on their way into the file: coded in parallel, written in order.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use tensorpress_tensor::checkpoint::ByteSource;
use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::base::BaseTensor;
use super::format::{Chunk, Segment, Stored};
use super::preamble::PREAMBLE;
use crate::chunk::{self, CHUNK_BYTES, Effort};
use crate::value::ValueType;

/// A chunk that is to be coded.
pub(super) struct Job<'b> {
    /// Number of the segment it belongs to.
    pub(super) segment: usize,
    pub(super) values: ValueType,
    pub(super) source: Arc<dyn ByteSource>,
    /// What errors call the source.
    pub(super) path: &'b Path,
    /// Its bytes in the source.
    pub(super) range: Range<u64>,
    /// xxh3-64 of them as they were when the segment was hashed.
    pub(super) sum: u64,
    /// The tensor of the base, and where the chunk begins in it.
    pub(super) base: Option<(&'b BaseTensor, u64)>,
}

/// A chunk that is to be written.
struct Coded {
    segment: usize,
    bytes: Vec<u8>,
    checksum: u64,
    delta: bool,
    /// Bytes before coding.
    len: u64,
}

/// Codes a batch of chunks while the batch before it is written. What is written does not depend on how many threads
/// there are, nor on where a batch ends.
pub(super) struct Batches<'b, W> {
    sink: W,
    /// What errors call the sink.
    to: &'b Path,
    effort: Effort,
    waiting: Vec<Job<'b>>,
    waiting_bytes: u64,
    coded: Vec<Coded>,
    /// Where the next chunk goes.
    offset: u64,
    /// Bytes before coding that are written.
    done: u64,
}

/// Jobs in a batch at most: each holds a file open.
const MOST: usize = 1024;

/// Bytes in a batch at most, before coding.
fn most_bytes() -> u64 {
    (CHUNK_BYTES * 32.max(4 * rayon::current_num_threads())) as u64
}

impl<'b, W: Write + Send> Batches<'b, W> {
    /// Begins behind the preamble.
    pub(super) fn new(sink: W, to: &'b Path, effort: Effort) -> Self {
        let (waiting, coded, offset) = (Vec::new(), Vec::new(), PREAMBLE as u64);
        Self { sink, to, effort, waiting, waiting_bytes: 0, coded, offset, done: 0 }
    }

    /// Takes a chunk; tells whether a batch of them was coded.
    pub(super) fn push(&mut self, job: Job<'b>, segments: &mut [Segment]) -> Result<bool> {
        self.waiting_bytes += job.range.end - job.range.start;
        self.waiting.push(job);
        let full = self.waiting_bytes >= most_bytes() || self.waiting.len() >= MOST;
        if full {
            self.turn(segments)?;
        }
        Ok(full)
    }

    /// Codes what waits, and writes what is coded.
    fn turn(&mut self, segments: &mut [Segment]) -> Result<()> {
        let jobs = std::mem::take(&mut self.waiting);
        let coded = std::mem::take(&mut self.coded);
        self.waiting_bytes = 0;
        let effort = self.effort;
        let (next, written) = rayon::join(
            || jobs.par_iter().map(|job| encode(job, effort)).collect::<Result<Vec<_>>>(),
            || self.write(&coded, segments),
        );
        written?;
        self.coded = next?;
        Ok(())
    }

    fn write(&mut self, coded: &[Coded], segments: &mut [Segment]) -> Result<()> {
        for chunk in coded {
            self.sink
                .write_all(&chunk.bytes)
                .map_err(|e| Error::io("write the file", self.to, e))?;
            let Stored::Chunks { chunks, .. } = &mut segments[chunk.segment].stored else {
                unreachable!("only segments with chunks have jobs")
            };
            let len = chunk.bytes.len() as u32;
            let (offset, checksum, delta) = (self.offset, chunk.checksum, chunk.delta);
            chunks.push(Chunk { offset, len, checksum, delta });
            self.offset += u64::from(len);
            self.done += chunk.len;
        }
        Ok(())
    }

    /// Codes and writes all that is left; gives the sink, and where the chunks end.
    pub(super) fn finish(mut self, segments: &mut [Segment]) -> Result<(W, u64)> {
        // What waits is coded, and then written.
        self.turn(segments)?;
        self.turn(segments)?;
        Ok((self.sink, self.offset))
    }

    /// Bytes that are done, before coding and as stored.
    pub(super) fn done(&self) -> (u64, u64) {
        (self.done, self.offset)
    }
}

/// Codes a chunk on its own and, if it has a base, as the difference from it; keeps what is smaller.
fn encode(job: &Job<'_>, effort: Effort) -> Result<Coded> {
    let data = job.source.read(job.range.clone())?;
    // What is coded is what was hashed, or nothing is.
    if xxh3_64(&data) != job.sum {
        return Err(Error::moved(job.path));
    }
    let len = data.len() as u64;
    let mut bytes = chunk::encode(job.values, &data, None, effort)?;
    let mut delta = false;
    if let Some((base, from)) = job.base {
        let base = base.read(from..from + len)?;
        let difference = chunk::encode(job.values, &data, Some(&base), effort)?;
        if difference.len() < bytes.len() {
            (bytes, delta) = (difference, true);
        }
    }
    let checksum = xxh3_64(&bytes);
    Ok(Coded { segment: job.segment, bytes, checksum, delta, len })
}
