//! Checking all of a packed file.

use tensorpress_tensor::{Error, ErrorKind, Result};

use super::format::Stored;
use super::progress::{Progress, Watch, tell};
use super::reader::PackedFile;
use super::walk::{Consumer, walk};

/// What checking has found.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct Verified {
    /// Bytes that were decoded.
    pub bytes: u64,
    /// Files.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// What is damaged: an error for each tensor, each stretch of other bytes, and each file that does not hash to
    /// what was packed. Each names where.
    pub damages: Vec<Error>,
}

impl PackedFile {
    /// Decodes everything and checks it against the hashes of what was packed. Header and index were checked when the
    /// file was opened.
    ///
    /// # Errors
    /// `MissingBase`, or `InvalidArgument` for another base; `Interrupted`. Damage is no error here: it is
    /// what [`Verified::damages`] lists.
    pub fn verify(&self, watch: Option<&mut Watch<'_>>) -> Result<Verified> {
        self.need_base()?;
        let total = self.unpacked_bytes();
        let progress = Progress { total, ..Progress::default() };
        let mut found = Found { verified: Verified::default(), progress, watch };
        let index = self.index();
        for (number, file) in index.files.iter().enumerate() {
            walk(self, number, &mut found)?;
            let segments = &index.segments[file.segments.clone()];
            found.verified.tensors += segments.iter().filter(|s| s.tensor.is_some()).count();
            found.verified.files += 1;
        }
        Ok(found.verified)
    }

    /// `MissingBase` if this is a delta and there is no base, `InvalidArgument` for one without the first tensor that is
    /// needed.
    pub(super) fn need_base(&self) -> Result<()> {
        let delta = |stored: &Stored| matches!(stored, Stored::Chunks { base: Some(_), .. });
        let segments = self.index().segments.iter().enumerate();
        for (number, segment) in segments {
            if delta(&segment.stored) {
                return self.base_of(segment).map(drop).map_err(|e| self.at(e, number));
            }
        }
        Ok(())
    }
}

struct Found<'a, 'w> {
    verified: Verified,
    progress: Progress,
    watch: Option<&'a mut Watch<'w>>,
}

impl Consumer for Found<'_, '_> {
    fn bytes(&mut self, bytes: &[u8], stored: u64) -> Result<()> {
        self.verified.bytes += bytes.len() as u64;
        self.progress.done = self.verified.bytes;
        self.progress.stored += stored;
        tell(&mut self.watch, self.progress)
    }

    fn damage(&mut self, error: Error) -> Result<()> {
        // The base is not the file's fault.
        if error.kind() == ErrorKind::InvalidArgument {
            return Err(error);
        }
        self.verified.damages.push(error);
        Ok(())
    }
}
