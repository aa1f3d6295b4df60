//! Frames to and from streams, a chunk at a time.

use std::io::{self, Read, Write};

use tensorpress_tensor::{Error, ErrorKind, Result};

use super::record::{self, HEAD, RECORD, Record, SUM, Walk, early};
use crate::chunk::{self, CHUNK_BYTES, Effort};
use crate::value::ValueType;

/// Writes a frame: bytes of numbers go in, little-endian, in pieces of any length. The frame is the one that
/// [`compress`](super::compress()) makes of them.
///
/// ```
/// use std::io::{Read, Write};
/// use tensorpress_entropy::frame::{FrameReader, FrameWriter};
/// use tensorpress_entropy::ValueType;
///
/// let mut writer = FrameWriter::new(Vec::new(), ValueType::F32)?;
/// for step in 0..1000 {
///     writer.write_all(&(step as f32 * 0.5).to_le_bytes()).expect("memory takes it");
/// }
/// let frame = writer.finish()?;
/// let mut bytes = Vec::new();
/// FrameReader::new(&frame[..])?.read_to_end(&mut bytes).expect("a whole frame");
/// assert_eq!(bytes[4..8], 0.5f32.to_le_bytes());
/// # Ok::<(), tensorpress_entropy::Error>(())
/// ```
#[derive(Debug)]
pub struct FrameWriter<W: Write> {
    sink: W,
    values: ValueType,
    effort: Effort,
    walk: Walk,
    /// Less than a chunk.
    waiting: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Begins a frame of numbers laid out as `values` says.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(mut sink: W, values: ValueType) -> Result<Self> {
        let head = record::head(values);
        sink.write_all(&head).map_err(|e| io_error("write", &e))?;
        let (walk, waiting) = (Walk::new(&head), Vec::new());
        Ok(Self { sink, values, effort: Effort::default(), walk, waiting })
    }

    /// Tries as hard as this.
    #[must_use]
    pub fn with_effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// Writes what waits and the end of the frame. A frame that is not finished cannot be read.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<W> {
        let end = |this: &mut Self| -> io::Result<()> {
            if !this.waiting.is_empty() {
                this.chunk()?;
            }
            let len = this.walk.len.to_le_bytes();
            this.record(Record::End, &len)?;
            this.sink.flush()
        };
        end(&mut self).map_err(|e| io_error("write", &e))?;
        Ok(self.sink)
    }

    fn chunk(&mut self) -> io::Result<()> {
        let stored = chunk::encode_whole(self.values, &self.waiting, None, self.effort);
        self.record(Record::Chunk { len: self.waiting.len(), stored: stored.len() }, &stored)?;
        self.waiting.clear();
        Ok(())
    }

    fn record(&mut self, record: Record, stored: &[u8]) -> io::Result<()> {
        self.sink.write_all(&record.to_bytes())?;
        self.sink.write_all(stored)?;
        let sum = self.walk.write(record, stored);
        self.sink.write_all(&sum)
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..taken]);
        if self.waiting.len() == CHUNK_BYTES {
            self.chunk()?;
        }
        Ok(taken)
    }

    /// Flushes the sink; a chunk that is not full waits on.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Reads a frame: gives the bytes of its numbers, each chunk once its checksum was compared, and reads nothing behind
/// its end. Takes a few MiB whatever the frame declares; reads small pieces, so give it a buffered source.
#[derive(Debug)]
pub struct FrameReader<R: Read> {
    source: R,
    values: ValueType,
    walk: Walk,
    stored: Vec<u8>,
    chunk: Vec<u8>,
    /// Bytes of the chunk that were given.
    given: usize,
    ended: bool,
}

impl<R: Read> FrameReader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// `Io`, `Corruption`, `InsufficientData` or `Version`; so all reading, as the inner error of an
    /// [`io::Error`] of kind `InvalidData`.
    pub fn new(mut source: R) -> Result<Self> {
        let mut head = [0; HEAD];
        fill(&mut source, &mut head)?;
        let values = record::read_head(head)?;
        let (stored, chunk) = (Vec::new(), Vec::new());
        Ok(Self { source, values, walk: Walk::new(&head), stored, chunk, given: 0, ended: false })
    }

    /// How the bits of its numbers are laid out.
    #[must_use]
    pub fn values(&self) -> ValueType {
        self.values
    }

    /// The source, behind what was read.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.source
    }

    /// Reads the next chunk, or the end.
    fn next(&mut self) -> Result<()> {
        let mut head = [0; RECORD];
        fill(&mut self.source, &mut head)?;
        let record = Record::read(head)?;
        self.stored.clear();
        // Takes room as the bytes come.
        let mut from = self.source.by_ref().take((record.stored() + SUM) as u64);
        from.read_to_end(&mut self.stored).map_err(|e| io_error("read", &e))?;
        let (stored, sum) = self.stored.split_at_checked(record.stored()).ok_or_else(early)?;
        if sum.len() < SUM {
            return Err(early());
        }
        self.walk.read(record, stored, sum)?;
        self.given = 0;
        match record {
            Record::End => self.ended = true,
            Record::Chunk { len, .. } => {
                self.chunk.resize(len, 0);
                record::decode(self.values, stored, &mut self.chunk)?;
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.given == self.chunk.len() && !self.ended {
            self.chunk.clear();
            self.given = 0;
            self.next().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
        let given = out.len().min(self.chunk.len() - self.given);
        out[..given].copy_from_slice(&self.chunk[self.given..][..given]);
        self.given += given;
        Ok(given)
    }
}

fn fill(source: &mut impl Read, out: &mut [u8]) -> Result<()> {
    source.read_exact(out).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => early(),
        _ => io_error("read", &e),
    })
}

fn io_error(doing: &str, error: &io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot {doing} the frame: {error}"))
}
