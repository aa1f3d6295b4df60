//! A whole file, decoded in order and checked, in bounded memory.

use rayon::prelude::*;
use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

use super::format::Index;
use super::reader::{PackedFile, WRONG_HASH};
use crate::chunk::CHUNK_BYTES;

/// A decoded chunk.
struct Slot {
    segment: usize,
    chunk: usize,
    bytes: Vec<u8>,
    done: Result<()>,
}

/// Chunks decoded together; as many are held by the consumer meanwhile.
fn batch() -> usize {
    24.max(2 * rayon::current_num_threads())
}

/// What becomes of the chunks of a file.
pub(super) trait Consumer: Send {
    /// Takes the decoded bytes of the next chunk, and the bytes it has in the packed file.
    fn bytes(&mut self, bytes: &[u8], stored: u64) -> Result<()>;

    /// Takes what is wrong; an error from here ends the walk. Bytes that go missing here never come.
    fn damage(&mut self, error: Error) -> Result<()>;
}

/// Decodes a file, chunk after chunk, and checks the hashes of its segments and its own.
pub(super) fn walk(packed: &PackedFile, number: usize, consumer: &mut dyn Consumer) -> Result<()> {
    let index = packed.index();
    let file = &index.files[number];
    let mut pieces = file
        .segments
        .clone()
        .flat_map(|s| (0..Index::chunks_of(index.segments[s].len) as usize).map(move |c| (s, c)));
    let mut check = Check {
        packed,
        next: file.segments.start,
        part: Xxh3::new(),
        part_damaged: false,
        whole: Xxh3::new(),
        damaged: false,
    };
    let (mut ready, mut coming): (Vec<Slot>, Vec<Slot>) = (Vec::new(), Vec::new());
    let batch = batch();
    loop {
        let mut count = 0;
        for (segment, chunk) in pieces.by_ref().take(batch) {
            if coming.len() == count {
                coming.push(Slot { segment, chunk, bytes: Vec::new(), done: Ok(()) });
            }
            let slot = &mut coming[count];
            (slot.segment, slot.chunk) = (segment, chunk);
            slot.bytes.resize(packed.chunk_len(segment, chunk), 0);
            count += 1;
        }
        coming.truncate(count);
        let (_, consumed) = rayon::join(
            || {
                coming.par_iter_mut().for_each(|slot| {
                    slot.done = packed.chunk_into(slot.segment, slot.chunk, &mut slot.bytes);
                });
            },
            || ready.iter_mut().try_for_each(|slot| check.take(slot, consumer)),
        );
        consumed?;
        std::mem::swap(&mut ready, &mut coming);
        if count == 0 {
            break;
        }
    }
    check.finish_before(file.segments.end, consumer)?;
    if !check.damaged && check.whole.digest128() != file.hash {
        let path = packed.path_of(file);
        consumer.damage(Error::corruption(format!("the file {WRONG_HASH}")).in_file(path))?;
    }
    Ok(())
}

/// Hashes of what came so far.
struct Check<'p> {
    packed: &'p PackedFile,
    /// The segment that the next bytes belong to.
    next: usize,
    part: Xxh3,
    part_damaged: bool,
    whole: Xxh3,
    damaged: bool,
}

impl Check<'_> {
    fn take(&mut self, slot: &mut Slot, consumer: &mut dyn Consumer) -> Result<()> {
        self.finish_before(slot.segment, consumer)?;
        match std::mem::replace(&mut slot.done, Ok(())) {
            // One word for a tensor is enough.
            Err(_) if self.part_damaged => Ok(()),
            Err(error) => {
                (self.part_damaged, self.damaged) = (true, true);
                consumer.damage(error)
            }
            Ok(()) => {
                let bytes: &[u8] = &slot.bytes;
                if bytes.len() < CHUNK_BYTES / 4 {
                    self.part.update(bytes);
                    self.whole.update(bytes);
                } else {
                    rayon::join(|| self.part.update(bytes), || self.whole.update(bytes));
                }
                consumer.bytes(bytes, self.packed.stored_len(slot.segment, slot.chunk))
            }
        }
    }

    /// Checks the segments before `segment` that are not checked yet: all their bytes came.
    fn finish_before(&mut self, segment: usize, consumer: &mut dyn Consumer) -> Result<()> {
        while self.next < segment {
            let expected = self.packed.index().segments[self.next].hash;
            if !self.part_damaged && self.part.digest128() != expected {
                self.damaged = true;
                consumer.damage(self.packed.at(Error::corruption(WRONG_HASH), self.next))?;
            }
            self.part.reset();
            self.part_damaged = false;
            self.next += 1;
        }
        Ok(())
    }
}
