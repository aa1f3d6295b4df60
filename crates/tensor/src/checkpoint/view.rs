//! A safetensors file that is nowhere: its tensors are made when they are asked for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::files::ByteSource;
use super::header::{Place, write_header};
use crate::bytes::Bytes;
use crate::error::{Context as _, Error, Result};

/// Where the bytes of a [`Made`] tensor come from.
pub trait Content: Debug + Send + Sync {
    /// The bytes: a window of memory that is there already, or made now.
    ///
    /// # Errors
    /// Those of making them.
    fn bytes(&self) -> Result<Bytes>;
}

impl Content for Bytes {
    fn bytes(&self) -> Result<Bytes> {
        Ok(self.clone())
    }
}

/// A tensor of a [`View`].
#[derive(Debug, Clone)]
pub struct Made {
    /// Element type, by its name in safetensors: also one that no [`DType`](crate::DType) is.
    pub dtype: String,
    /// Shape in elements.
    pub shape: Vec<usize>,
    /// Bytes that it takes.
    pub len: u64,
    /// What gives them.
    pub content: Arc<dyn Content>,
}

/// The bytes of a safetensors file of such tensors, in the order of their names: what
/// [`Checkpoint::from_source`](super::Checkpoint::from_source) opens.
#[derive(Debug)]
pub struct View {
    header: Bytes,
    /// In the order of their ranges, which follow each other.
    tensors: Vec<(Range<u64>, String, Made)>,
    behind: Vec<Arc<dyn ByteSource>>,
    whole: bool,
}

impl View {
    /// A file of these tensors, with this metadata. `behind` are the files that contents come from: they are what is
    /// released, and what must not be written to.
    #[must_use]
    pub fn new(
        metadata: &BTreeMap<String, String>,
        tensors: BTreeMap<String, Made>,
        behind: Vec<Arc<dyn ByteSource>>,
    ) -> Self {
        let mut at = 0;
        let places = tensors.iter().map(|(name, made)| {
            let range = at..at + made.len;
            at = range.end;
            (name.as_str(), Place { dtype: made.dtype.as_str(), shape: &made.shape, range })
        });
        let header = write_header(metadata, places);
        let mut at = header.len() as u64;
        let tensors = tensors.into_iter().map(|(name, made)| {
            let range = at..at + made.len;
            at = range.end;
            (range, name, made)
        });
        Self { tensors: tensors.collect(), header: header.into(), behind, whole: false }
    }

    /// It stands for all of what is behind it, and is said to be as long.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }
}

/// The bytes of a tensor, as many as were announced.
fn bytes_of(name: &str, made: &Made) -> Result<Bytes> {
    let bytes = made.content.bytes().in_tensor(name)?;
    if bytes.len() as u64 == made.len {
        return Ok(bytes);
    }
    let message = format!("{} bytes, where {} were announced", bytes.len(), made.len);
    Err(Error::corruption(message).in_tensor(name))
}

impl ByteSource for View {
    fn size(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, |(range, ..)| range.end)
    }

    fn stored(&self) -> u64 {
        match self.whole {
            true => self.behind.iter().map(|file| file.stored()).sum(),
            false => self.size(),
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        assert!(range.start <= range.end && range.end <= self.size(), "range out of bounds");
        let header = 0..self.header.len() as u64;
        let mut pieces = Vec::new();
        if let Some(part) = overlap(&header, &range) {
            pieces.push(self.header.slice(part));
        }
        let first = self.tensors.partition_point(|(tensor, ..)| tensor.end <= range.start);
        let touched = self.tensors[first..].iter().take_while(|(t, ..)| t.start < range.end);
        for (tensor, name, made) in touched {
            if let Some(part) = overlap(tensor, &range) {
                pieces.push(bytes_of(name, made)?.slice(part));
            }
        }
        // A tensor, as a rule: nothing is copied.
        match pieces.len() {
            1 => Ok(pieces.remove(0)),
            _ => Ok(pieces
                .iter()
                .flat_map(|piece| piece.iter().copied())
                .collect::<Vec<u8>>()
                .into()),
        }
    }

    fn release(&self) {
        self.behind.iter().for_each(|file| file.release());
    }

    fn check_unmoved(&self) -> Result<()> {
        self.behind.iter().try_for_each(|file| file.check_unmoved())
    }
}

/// The part of `of` that lies in `range`, counted from the start of `of`.
fn overlap(of: &Range<u64>, range: &Range<u64>) -> Option<Range<usize>> {
    let (start, end) = (of.start.max(range.start), of.end.min(range.end));
    (start < end).then(|| (start - of.start) as usize..(end - of.start) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(bytes: &[u8]) -> Made {
        let content = Arc::new(Bytes::from(bytes));
        Made { dtype: "U8".into(), shape: vec![bytes.len()], len: bytes.len() as u64, content }
    }

    #[test]
    fn any_range_is_that_of_the_file_it_would_be() {
        let tensors =
            [("a", made(&[0, 1, 2, 3, 4, 5, 6, 7])), ("b", made(&[])), ("c", made(&[9, 8]))];
        let tensors = tensors.map(|(name, made)| (name.to_owned(), made));
        let view = View::new(&BTreeMap::new(), tensors.into(), Vec::new());
        let whole = view.read(0..view.size()).unwrap();
        assert!(whole.ends_with(&[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]));
        let first = view.size() - 14;
        for start in first..=view.size() {
            for end in start..=view.size() {
                let read = view.read(start..end).unwrap();
                assert_eq!(read[..], whole[start as usize..end as usize], "{start}..{end}");
            }
        }
    }

    #[test]
    fn what_is_made_must_be_what_was_announced() {
        let wrong = Made { len: 3, shape: vec![3], ..made(&[1, 2]) };
        let view = View::new(&BTreeMap::new(), [("w".to_owned(), wrong)].into(), Vec::new());
        let error = view.read(view.size() - 3..view.size()).unwrap_err();
        assert!(error.to_string().contains('w'), "{error}");
    }
}
