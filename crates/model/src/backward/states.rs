//! Where the input of every block waits for the way back.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use tensorpress_tensor::{Error, Result};

/// Keeps matrices `[tokens, width]` of f32, one a slot. All of a pass that grows with the number of blocks.
pub trait HiddenStates {
    /// So many slots of so many tokens of this width come; what was kept is no longer wanted.
    ///
    /// # Errors
    /// If there is no room.
    fn begin(&mut self, slots: usize, tokens: usize, width: usize) -> Result<()>;

    /// Keeps the rows of a slot from token `first` on, in place of those that are there.
    ///
    /// # Errors
    /// Those of the medium.
    fn put(&mut self, slot: usize, first: usize, rows: ArrayView2<'_, f32>) -> Result<()>;

    /// Fills `rows` with what was put there last.
    ///
    /// # Errors
    /// Those of the medium.
    fn get(&mut self, slot: usize, first: usize, rows: ArrayViewMut2<'_, f32>) -> Result<()>;
}

/// Hidden states in memory.
#[derive(Debug, Default)]
pub struct InMemory {
    slots: Vec<Array2<f32>>,
    shape: (usize, usize),
}

impl HiddenStates for InMemory {
    fn begin(&mut self, slots: usize, tokens: usize, width: usize) -> Result<()> {
        self.shape = (tokens, width);
        self.slots = vec![Array2::zeros((0, 0)); slots];
        Ok(())
    }

    fn put(&mut self, slot: usize, first: usize, rows: ArrayView2<'_, f32>) -> Result<()> {
        let kept = &mut self.slots[slot];
        if kept.dim() != self.shape {
            *kept = Array2::zeros(self.shape);
        }
        let place = Slice::from(first..first + rows.nrows());
        kept.slice_axis_mut(Axis(0), place).assign(&rows);
        Ok(())
    }

    fn get(&mut self, slot: usize, first: usize, mut rows: ArrayViewMut2<'_, f32>) -> Result<()> {
        let place = Slice::from(first..first + rows.nrows());
        rows.assign(&self.slots[slot].slice_axis(Axis(0), place));
        Ok(())
    }
}

/// Hidden states in a file of the caller's: 4 x slots x tokens x width bytes, little-endian. It stays when the pass is
/// over; nothing in it is of use then.
#[derive(Debug)]
pub struct InFile {
    file: File,
    path: PathBuf,
    tokens: usize,
    width: usize,
    bytes: Vec<u8>,
}

impl InFile {
    /// A new file, in place of one that is there.
    ///
    /// # Errors
    /// `Io`, naming the file.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let open = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = open.map_err(|e| Error::io("create a file of hidden states", &path, e))?;
        Ok(Self { file, path, tokens: 0, width: 0, bytes: Vec::new() })
    }

    fn seek(&mut self, slot: usize, first: usize) -> Result<()> {
        let row = slot as u64 * self.tokens as u64 + first as u64;
        let place = SeekFrom::Start(4 * row * self.width as u64);
        let done = self.file.seek(place).map(|_| ());
        done.map_err(|e| Error::io("seek in a file of hidden states", &self.path, e))
    }
}

impl HiddenStates for InFile {
    fn begin(&mut self, _: usize, tokens: usize, width: usize) -> Result<()> {
        (self.tokens, self.width) = (tokens, width);
        let emptied = self.file.set_len(0);
        emptied.map_err(|e| Error::io("empty a file of hidden states", &self.path, e))
    }

    fn put(&mut self, slot: usize, first: usize, rows: ArrayView2<'_, f32>) -> Result<()> {
        self.seek(slot, first)?;
        self.bytes.clear();
        self.bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
        let done = self.file.write_all(&self.bytes);
        done.map_err(|e| Error::io("write hidden states", &self.path, e))
    }

    fn get(&mut self, slot: usize, first: usize, mut rows: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.seek(slot, first)?;
        self.bytes.resize(4 * rows.len(), 0);
        let done = self.file.read_exact(&mut self.bytes);
        done.map_err(|e| Error::io("read hidden states", &self.path, e))?;
        let values = self.bytes.as_chunks::<4>().0;
        rows.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from_le_bytes(*value));
        Ok(())
    }
}
