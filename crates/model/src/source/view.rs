//! A checkpoint of rows and columns of the tensors of another, cut out when they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::bytes::Bytes;
use tensorpress_tensor::checkpoint::{Content as Source, Made, View};
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
    /// Of each part of a stack these along an axis, as many of each.
    Within { axis: usize, kept: Vec<Vec<usize>> },
    /// New values, as they are stored.
    Values { dtype: DType, shape: Vec<usize>, bytes: Bytes },
}

/// A tensor, and the name of the stored one it is made of.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) from: String,
    pub(super) content: Content,
}

/// A piece, and what it is a piece of.
#[derive(Debug)]
struct Cut {
    of: Checkpoint,
    piece: Piece,
}

impl Source for Cut {
    fn bytes(&self) -> Result<Bytes> {
        self.piece.content.bytes(&self.piece.from, &self.of)
    }
}

/// A checkpoint of tensors by name; `path` stands for its file in errors.
pub(super) fn view(
    of: &Checkpoint,
    tensors: BTreeMap<String, Piece>,
    path: PathBuf,
) -> Result<Checkpoint> {
    let names: BTreeSet<String> = tensors.keys().cloned().collect();
    let stands =
        |(alias, name): &(&String, &String)| names.contains(*name) && !names.contains(*alias);
    let aliases = of.metadata().flatten().filter(stands);
    let metadata = aliases.map(|(alias, name)| (alias.clone(), name.clone())).collect();
    let made = |(name, piece): (String, Piece)| -> Result<(String, Made)> {
        let stored = |from: &str| of.shape(from).unwrap_or_default().to_vec();
        let (dtype, shape, len) = match &piece.content {
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
        let dtype = dtype.to_owned();
        let content = Arc::new(Cut { of: of.clone(), piece });
        Ok((name, Made { dtype, shape, len, content }))
    };
    let tensors = tensors.into_iter().map(made).collect::<Result<_>>()?;
    let behind = of.sources().cloned().collect();
    Checkpoint::from_source(path, Arc::new(View::new(&metadata, tensors, behind)))
}

impl Content {
    fn shape(&self, mut stored: Vec<usize>) -> Vec<usize> {
        match (self, stored.as_mut_slice()) {
            (Self::Rows(rows), [first, ..]) => *first = rows.len(),
            (Self::Columns(columns), [.., last]) => *last = columns.len(),
            (Self::Within { axis, kept }, sizes) => {
                sizes[*axis] = kept.first().map_or(0, Vec::len);
            }
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
            Self::Within { axis, kept } => within(&of.tensor(name)?, *axis, kept),
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

/// Of each part of a stack these along an axis.
fn within(stack: &RawTensor, axis: usize, kept: &[Vec<usize>]) -> Bytes {
    let (shape, bytes) = (stack.shape(), stack.bytes());
    // What stands before and behind the axis in a part.
    let outer: usize = shape[1..axis].iter().product();
    let inner = shape[axis + 1..].iter().product::<usize>() * stack.dtype().size();
    let mut out = Vec::new();
    for (part, kept) in kept.iter().enumerate() {
        let runs = runs(kept);
        for row in part * outer..(part + 1) * outer {
            let row = &bytes[row * shape[axis] * inner..(row + 1) * shape[axis] * inner];
            runs.iter()
                .for_each(|run| out.extend_from_slice(&row[run.start * inner..run.end * inner]));
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(name: &str, from: &str, content: Content) -> (String, Piece) {
        (name.to_owned(), Piece { from: from.to_owned(), content })
    }

    #[test]
    fn rows_and_columns_of_stored_tensors() {
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
        let stack = |axis, kept| Content::Within { axis, kept };
        let three = BTreeMap::from([piece("s", "s", new(&[2, 2, 3], 12))]);
        let three = view(&Checkpoint::default(), three, "stack".into()).unwrap();
        let parts = BTreeMap::from([
            piece("rows", "s", stack(1, vec![vec![1], vec![0]])),
            piece("columns", "s", stack(2, vec![vec![0, 2], vec![1, 2]])),
        ]);
        let parts = view(&three, parts, "within".into()).unwrap();
        assert_eq!(parts.shape("rows"), Some(&[2, 1, 3][..]));
        assert_eq!(parts.tensor("rows").unwrap().bytes()[..], [3, 4, 5, 6, 7, 8]);
        assert_eq!(parts.shape("columns"), Some(&[2, 2, 2][..]));
        assert_eq!(parts.tensor("columns").unwrap().bytes()[..], [0, 2, 3, 5, 7, 8, 10, 11]);
        let rows = BTreeMap::from([piece("a", "a", Content::Rows(vec![2]))]);
        let rows = view(&of, rows, "third".into()).unwrap();
        assert_eq!(rows.tensor("a").unwrap().bytes()[..], [8, 9, 10, 11]);
    }
}
