//! From a file to its segments.

use std::ops::Range;

use tensorpress_tensor::checkpoint::{ByteSource, Header, Placed};
use tensorpress_tensor::{ErrorKind, Result};

use super::format::TensorInfo;
use crate::value::ValueType;

/// A segment of a file that is to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) tensor: Option<TensorInfo>,
    pub(super) values: ValueType,
    pub(super) range: Range<u64>,
}

impl Part {
    fn bytes(range: Range<u64>) -> Self {
        Self { tensor: None, values: ValueType::Bytes, range }
    }
}

/// The segments of a file, which cover it without gap or overlap: of a safetensors file its header, its tensors in
/// order of offset, and whatever lies between and behind them; of any other file, one segment of bytes. An empty file
/// has none.
pub(super) fn parts(source: &dyn ByteSource) -> Result<Vec<Part>> {
    let len = source.size();
    let whole = if len == 0 { Vec::new() } else { vec![Part::bytes(0..len)] };
    Ok(safetensors(source)?.unwrap_or(whole))
}

/// The segments of a safetensors file; nothing if it is none.
fn safetensors(source: &dyn ByteSource) -> Result<Option<Vec<Part>>> {
    let len = source.size();
    let header = match Header::read(source) {
        Ok(header) => header,
        Err(e) if e.kind() == ErrorKind::Corruption => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut at = header.start();
    let mut parts = vec![Part::bytes(0..at)];
    for Placed { name, dtype, shape, range, .. } in header.into_tensors() {
        let values = ValueType::of_safetensors(&dtype);
        let size = shape.iter().try_fold(values.width() as u64, |n, d| n.checked_mul(*d));
        let odd = values != ValueType::Bytes && size != Some(range.end - range.start);
        if range.end > len || odd {
            return Ok(None);
        }
        if range.start > at {
            parts.push(Part::bytes(at..range.start));
        }
        at = range.end;
        parts.push(Part { tensor: Some(TensorInfo { name, dtype, shape }), values, range });
    }
    if at < len {
        parts.push(Part::bytes(at..len));
    }
    Ok(Some(parts))
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::Bytes;

    use super::*;

    fn file(header: &str, data: usize) -> Bytes {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes.into()
    }

    fn shape_of(bytes: &Bytes) -> Vec<(String, Range<u64>)> {
        let name = |part: &Part| part.tensor.as_ref().map_or("-", |t| &t.name).to_owned();
        parts(bytes).unwrap().iter().map(|part| (name(part), part.range.clone())).collect()
    }

    #[test]
    fn tensors_gaps_and_tails() {
        let header = r#"{"__metadata__":{"a":"b"},"y":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]},
            "x":{"dtype":"F4","shape":[9],"data_offsets":[0,5]},"e":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}}"#;
        let bytes = file(header, 20);
        let start = 8 + header.len() as u64;
        let expected = [
            ("-", 0..start),
            ("x", start..start + 5),
            ("-", start + 5..start + 8),
            ("e", start + 8..start + 8),
            ("y", start + 8..start + 16),
            ("-", start + 16..start + 20),
        ];
        assert_eq!(shape_of(&bytes), expected.map(|(n, r)| (n.to_owned(), r)));
        let found = parts(&bytes).unwrap();
        assert_eq!(found[4].values, ValueType::BF16);
        assert_eq!(found[1].values, ValueType::Bytes);
    }

    #[test]
    fn anything_else_is_bytes() {
        let good = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(shape_of(&file(good, 8)).len(), 2);
        let bad = [
            file(good, 7),
            file(&good.replace("[2]", "[3]"), 8),
            file(&good.replace("[0,8]", "[8,0]"), 8),
            file(&good.replace("[0,8]", "[0,18446744073709551615]"), 8),
            file(&good.replace('}', ""), 8),
            file("[]", 8),
            file(
                r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                8,
            ),
            vec![0xff; 40].into(),
            vec![1; 7].into(),
        ];
        for bytes in bad {
            assert_eq!(shape_of(&bytes), [("-".to_owned(), 0..bytes.size())]);
        }
        assert!(shape_of(&Vec::new().into()).is_empty());
    }
}
