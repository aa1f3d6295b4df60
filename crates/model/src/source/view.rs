//! A checkpoint that is nowhere: rows and columns of the tensors of another, cut out when they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::bytes::Bytes;
use tensorpress_tensor::checkpoint::{ByteSource, Place, write_header};
use tensorpress_tensor::{Checkpoint, DType, RawTensor, Result, Tensor};

/// Where the bytes of a tensor come from.
#[derive(Debug)]
pub(super) enum Content {
    /// A stored tensor as it is.
    Whole,
    /// These rows of a stored matrix.
    Rows(Vec<usize>),
    /// These columns of a stored matrix, or entries of a vector.
    Columns(Vec<usize>),
    /// New values, as they are stored.
    Values { dtype: DType, shape: Vec<usize>, bytes: Bytes },
}

/// A tensor, and the name of the stored one it is made of.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) from: String,
    pub(super) content: Content,
}

/// The bytes of a safetensors file that is made as it is read.
#[derive(Debug)]
struct View {
    of: Checkpoint,
    header: Bytes,
    /// In the order of their ranges, which follow each other.
    tensors: Vec<(Range<u64>, Piece)>,
}

/// A checkpoint of tensors by name; `path` stands for its file in errors.
pub(super) fn view(
    of: &Checkpoint,
    tensors: BTreeMap<String, Piece>,
    path: PathBuf,
) -> Result<Checkpoint> {
    let names: BTreeSet<String> = tensors.keys().cloned().collect();
    let mut placed = Vec::with_capacity(tensors.len());
    let mut shapes = Vec::with_capacity(tensors.len());
    let mut at = 0;
    for (name, piece) in tensors {
        let stored = |from: &str| of.shape(from).unwrap_or_default().to_vec();
        let (dtype, shape, bytes) = match &piece.content {
            Content::Values { dtype, shape, bytes } => {
                (dtype.name(), shape.clone(), bytes.len() as u64)
            }
            // Of any type, also one that cannot be cut.
            Content::Whole => {
                let dtype = match of.dtype_name(&piece.from) {
                    Some(dtype) => dtype,
                    None => of.dtype(&piece.from)?.name(),
                };
                (dtype, stored(&piece.from), of.stored_bytes(&piece.from).unwrap_or(0))
            }
            cut => {
                let (dtype, shape) = (of.dtype(&piece.from)?, cut.shape(stored(&piece.from)));
                let bytes = (shape.iter().product::<usize>() * dtype.size()) as u64;
                (dtype.name(), shape, bytes)
            }
        };
        let end = at + bytes;
        shapes.push((dtype, shape));
        placed.push((at..end, name, piece));
        at = end;
    }
    let places = placed.iter().zip(&shapes).map(|((range, name, _), (dtype, shape))| {
        (name.as_str(), Place { dtype: *dtype, shape, range: range.clone() })
    });
    let stands =
        |(alias, name): &(&String, &String)| names.contains(*name) && !names.contains(*alias);
    let aliases = of.metadata().flatten().filter(stands);
    let metadata = aliases.map(|(alias, name)| (alias.clone(), name.clone())).collect();
    let header = write_header(&metadata, places);
    let start = header.len() as u64;
    let tensors = placed
        .into_iter()
        .map(|(range, _, piece)| (range.start + start..range.end + start, piece))
        .collect();
    let view = View { of: of.clone(), header: header.into(), tensors };
    Checkpoint::from_source(path, Arc::new(view))
}

impl Content {
    fn shape(&self, mut stored: Vec<usize>) -> Vec<usize> {
        match (self, stored.as_mut_slice()) {
            (Self::Rows(rows), [first, ..]) => *first = rows.len(),
            (Self::Columns(columns), [.., last]) => *last = columns.len(),
            _ => {}
        }
        stored
    }

    fn bytes(&self, name: &str, of: &Checkpoint) -> Result<Bytes> {
        Ok(match self {
            Self::Values { bytes, .. } => bytes.clone(),
            Self::Whole => of.bytes(name)?,
            Self::Rows(rows) => {
                let tensor = of.tensor(name)?;
                let [_, columns] = tensor.matrix_shape();
                cut(&tensor, rows.iter().copied(), std::slice::from_ref(&(0..columns)))
            }
            Self::Columns(columns) => {
                let tensor = of.tensor(name)?;
                let [rows, _] = tensor.matrix_shape();
                cut(&tensor, 0..rows, &runs(columns))
            }
        })
    }
}

/// Ascending indices as runs.
fn runs(indices: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &index in indices {
        match runs.last_mut().filter(|run| run.end == index) {
            Some(run) => run.end += 1,
            None => runs.push(index..index + 1),
        }
    }
    runs
}

fn cut(tensor: &RawTensor, rows: impl Iterator<Item = usize>, columns: &[Range<usize>]) -> Bytes {
    let size = tensor.dtype().size();
    let width = tensor.matrix_shape()[1] * size;
    let mut out = Vec::new();
    for row in rows {
        let row = &tensor.bytes()[row * width..(row + 1) * width];
        columns
            .iter()
            .for_each(|run| out.extend_from_slice(&row[run.start * size..run.end * size]));
    }
    out.into()
}

impl ByteSource for View {
    fn size(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, |(range, ..)| range.end)
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
        for (tensor, piece) in touched {
            if let Some(part) = overlap(tensor, &range) {
                pieces.push(piece.content.bytes(&piece.from, &self.of)?.slice(part));
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
        self.of.release();
    }

    fn check_unmoved(&self) -> Result<()> {
        self.of.check_unmoved()
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

    fn piece(name: &str, from: &str, content: Content) -> (String, Piece) {
        (name.to_owned(), Piece { from: from.to_owned(), content })
    }

    #[test]
    fn any_range_is_that_of_the_file_it_would_be() {
        let mut source = BTreeMap::new();
        let values = |n: u8| (0..n).collect::<Vec<u8>>().into();
        let new = |shape: &[usize], n| Content::Values {
            dtype: DType::U8,
            shape: shape.to_vec(),
            bytes: values(n),
        };
        let mut insert = |name, content| source.extend([piece(name, name, content)]);
        insert("a", new(&[3, 4], 12));
        insert("b", new(&[5], 5));
        insert("empty", new(&[0, 4], 0));
        let of = view(&Checkpoint::default(), source, "first".into()).unwrap();
        let parts = BTreeMap::from([
            piece("a", "a", Content::Columns(vec![0, 2, 3])),
            piece("b", "b", Content::Columns(vec![1, 4])),
            piece("moved", "b", Content::Whole),
            piece("empty", "empty", Content::Whole),
            piece("new", "new", new(&[2], 2)),
        ]);
        let narrow = view(&of, parts, "second".into()).unwrap();
        assert_eq!(narrow.tensor("moved").unwrap().bytes()[..], [0, 1, 2, 3, 4]);
        assert_eq!(narrow.tensor("a").unwrap().bytes()[..], [0, 2, 3, 4, 6, 7, 8, 10, 11]);
        assert_eq!(narrow.shape("a"), Some(&[3, 3][..]));
        assert_eq!(narrow.tensor("b").unwrap().bytes()[..], [1, 4]);
        let rows = BTreeMap::from([piece("a", "a", Content::Rows(vec![2]))]);
        let rows = view(&of, rows, "third".into()).unwrap();
        assert_eq!(rows.tensor("a").unwrap().bytes()[..], [8, 9, 10, 11]);

        let placed = |name: &str, range: Range<u64>, content| (range, piece(name, name, content).1);
        let view = View {
            of,
            header: values(6),
            tensors: vec![
                placed("a", 6..14, Content::Rows(vec![0, 1])),
                placed("empty", 14..14, Content::Whole),
                placed("b", 14..19, Content::Whole),
            ],
        };
        let whole: Vec<u8> =
            [&[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 7][..], &[0, 1, 2, 3, 4]].concat();
        for start in 0..=19 {
            for end in start..=19 {
                let read = view.read(start as u64..end as u64).unwrap();
                assert_eq!(read[..], whole[start..end], "{start}..{end}");
            }
        }
    }
}
