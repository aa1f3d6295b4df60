use tensorpress_tensor::{Bytes, Error, Result};

use super::value::{Kind, Value};

/// An array of metadata: elements of one kind, kept as files have them, so that a vocabulary takes no more memory than
/// the file does.
#[derive(Debug, Clone)]
pub struct Array {
    kind: Kind,
    count: u64,
    bytes: Bytes,
}

impl Array {
    /// An array of these elements, which all must be of the kind.
    ///
    /// # Errors
    /// `InvalidArgument` if one is of another kind.
    pub fn new(kind: Kind, elements: impl IntoIterator<Item = Value>) -> Result<Self> {
        let (mut count, mut bytes) = (0, Vec::new());
        for element in elements {
            if element.kind() != kind {
                let what =
                    format!("element {count} is {:?}, in an array of {kind:?}", element.kind());
                return Err(Error::invalid(what));
            }
            element.write(&mut bytes);
            count += 1;
        }
        Ok(Self { kind, count, bytes: bytes.into() })
    }

    /// Elements as a file has them, which has been checked.
    pub(super) fn from_stored(kind: Kind, count: u64, bytes: Bytes) -> Self {
        Self { kind, count, bytes }
    }

    /// What its elements are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements, as values of their own.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        let mut rest = self.bytes.clone();
        (0..self.count).map(move |_| {
            let (value, length) = element(self.kind, &rest);
            rest = rest.slice(length..rest.len());
            value
        })
    }

    /// The texts of an array of texts; nothing of any other.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let count = if self.kind == Kind::String { self.count } else { 0 };
        let mut rest = &self.bytes[..];
        (0..count).map(move |_| {
            let (text, after) = text(rest);
            rest = after;
            text
        })
    }

    /// Appends it as files have it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.kind as u32).to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend_from_slice(&self.bytes);
    }

    /// Arrays in arrays, itself included.
    pub(super) fn depth(&self) -> usize {
        if self.kind != Kind::Array {
            return 1;
        }
        let depths = self.iter().filter_map(|value| value.as_array().map(Self::depth));
        1 + depths.max().unwrap_or(0)
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.count, &self.bytes[..]) == (other.kind, other.count, &other.bytes[..])
    }
}

/// The first N bytes.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("checked when it was read")
}

fn text(bytes: &[u8]) -> (&str, &[u8]) {
    let (text, rest) = bytes[8..].split_at(u64::from_le_bytes(first(bytes)) as usize);
    (std::str::from_utf8(text).expect("checked when it was read"), rest)
}

/// The first element of stored ones, and its length.
fn element(kind: Kind, bytes: &Bytes) -> (Value, usize) {
    let value = match kind {
        Kind::U8 => Value::U8(bytes[0]),
        Kind::I8 => Value::I8(i8::from_le_bytes(first(bytes))),
        Kind::U16 => Value::U16(u16::from_le_bytes(first(bytes))),
        Kind::I16 => Value::I16(i16::from_le_bytes(first(bytes))),
        Kind::U32 => Value::U32(u32::from_le_bytes(first(bytes))),
        Kind::I32 => Value::I32(i32::from_le_bytes(first(bytes))),
        Kind::F32 => Value::F32(f32::from_le_bytes(first(bytes))),
        Kind::Bool => Value::Bool(bytes[0] == 1),
        Kind::U64 => Value::U64(u64::from_le_bytes(first(bytes))),
        Kind::I64 => Value::I64(i64::from_le_bytes(first(bytes))),
        Kind::F64 => Value::F64(f64::from_le_bytes(first(bytes))),
        Kind::String => {
            let (text, rest) = text(bytes);
            return (Value::String(text.to_owned()), bytes.len() - rest.len());
        }
        Kind::Array => {
            let length = stored_length(bytes);
            let kind = inner_kind(bytes);
            let count = u64::from_le_bytes(first(&bytes[4..]));
            return (Value::Array(Array { kind, count, bytes: bytes.slice(12..length) }), length);
        }
    };
    (value, kind.size().expect("of a fixed size"))
}

fn inner_kind(bytes: &[u8]) -> Kind {
    Kind::from_id(u32::from_le_bytes(first(bytes))).expect("checked when it was read")
}

/// Bytes that an array takes, with its kind and count.
fn stored_length(bytes: &[u8]) -> usize {
    let kind = inner_kind(bytes);
    let count = u64::from_le_bytes(first(&bytes[4..])) as usize;
    if let Some(size) = kind.size() {
        return 12 + count * size;
    }
    (0..count).fold(12, |at, _| match kind {
        Kind::String => at + 8 + u64::from_le_bytes(first(&bytes[at..])) as usize,
        _ => at + stored_length(&bytes[at..]),
    })
}
