//! Files that official packages wrote.
#![allow(dead_code)] // each test uses some of it

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, RawTensor, Tensor};

/// Files whose names begin so, with their names, sorted; none if the data are absent.
pub fn files(prefix: &str) -> Option<Vec<(String, Checkpoint)>> {
    let folder = data::find("golden/formats")?;
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder can be listed")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix) && name.ends_with(".safetensors"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no files {prefix}*");
    let open = |name: String| {
        let file = Checkpoint::open(folder.join(&name)).expect("a golden file");
        (name, file)
    };
    Some(names.into_iter().map(open).collect())
}

/// What the metadata of a file say.
pub fn said(file: &Checkpoint, key: &str) -> String {
    file.metadata().next().expect("one file").get(key).cloned().unwrap_or_default()
}

/// A matrix of floats.
pub fn floats(file: &Checkpoint, name: &str) -> Array2<f32> {
    file.tensor(name).and_then(|tensor| tensor.to_matrix()).expect("a matrix of floats")
}

/// A matrix of integers.
pub fn ints(file: &Checkpoint, name: &str) -> Array2<i64> {
    let tensor = file.tensor(name).expect("a tensor of the file");
    let values = tensor.bytes().chunks(tensor.dtype().size()).map(|bytes| {
        let negative = tensor.dtype() != DType::U8 && bytes.last().is_some_and(|b| b & 128 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(wide)
    });
    let [rows, cols] = tensor.matrix_shape();
    Array2::from_shape_vec((rows, cols), values.collect()).expect("as many as the shape says")
}

/// That a part has element type, shape and bytes of another.
#[track_caller]
pub fn same(ours: &RawTensor, stored: &RawTensor, what: &str) {
    assert_eq!((ours.dtype(), ours.shape()), (stored.dtype(), stored.shape()), "{what}");
    assert!(ours.bytes()[..] == stored.bytes()[..], "{what}: bytes");
}

/// The bits of all values.
pub fn bits(values: &Array2<f32>) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A part of this shape, of zeros.
pub fn zeros(dtype: DType, shape: &[usize]) -> RawTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    RawTensor::new(dtype, shape.to_vec(), bytes.into()).expect("as long as the shape says")
}

/// Shapes that are not the one of a part: an axis more or less, an axis longer or shorter.
pub fn wrong_shapes(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut wrong = vec![[shape, &[1]].concat(), shape[1..].to_vec()];
    for axis in 0..shape.len() {
        for length in [0, 1, shape[axis] - 1, shape[axis] + 1, 2 * shape[axis]] {
            if length != shape[axis] {
                let mut other = shape.to_vec();
                other[axis] = length;
                wrong.push(other);
            }
        }
    }
    wrong
}
