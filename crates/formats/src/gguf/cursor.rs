use tensorpress_tensor::checkpoint::ByteSource;
use tensorpress_tensor::{Bytes, Error, Result};

use super::array::Array;
use super::value::{Kind, Value};

/// Arrays in arrays that are read; the format sets no bound, and files in use have one.
pub(super) const DEEPEST: usize = 8;

/// How much is read at a time, unless a single thing is longer.
const WINDOW: u64 = 64 << 10;

/// Reads a header from front to back, without holding more of it than a window.
pub(super) struct Cursor<'a> {
    source: &'a dyn ByteSource,
    at: u64,
    window: Bytes,
    window_at: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a dyn ByteSource) -> Self {
        Self { source, at: 0, window: Bytes::from(Vec::new()), window_at: 0 }
    }

    /// Where it stands.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// That so many things of at least `bytes` each can still follow.
    pub(super) fn check_count(&self, count: u64, bytes: u64) -> Result<()> {
        let left = self.source.size() - self.at;
        if count.checked_mul(bytes).is_some_and(|need| need <= left) {
            return Ok(());
        }
        let what = format!("{count} of at least {bytes} bytes each, but {left} are left");
        Err(Error::corruption(what))
    }

    /// How many bytes are left, which must be so many at least.
    fn check_left(&self, count: u64) -> Result<u64> {
        let left = self.source.size() - self.at;
        if count > left {
            let what = format!("{count} bytes at {}, but {left} are left", self.at);
            return Err(Error::insufficient(what));
        }
        Ok(left)
    }

    fn take(&mut self, count: u64) -> Result<Bytes> {
        let left = self.check_left(count)?;
        let end = self.at + count;
        if self.at < self.window_at || end > self.window_at + self.window.len() as u64 {
            // The old window goes before the new one comes.
            self.window = Bytes::from(Vec::new());
            let window = count.max(WINDOW.min(left));
            self.window = self.source.read(self.at..self.at + window)?;
            self.window_at = self.at;
        }
        let start = (self.at - self.window_at) as usize;
        self.at = end;
        Ok(self.window.slice(start..start + count as usize))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(bytes[..].try_into().expect("as many as asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text of at most so many bytes.
    pub(super) fn text(&mut self, most: u64) -> Result<String> {
        let length = self.text_length(most)?;
        self.check_left(length)?;
        // Piece by piece, so that it is not there twice.
        let mut bytes = Vec::with_capacity(length as usize);
        while (bytes.len() as u64) < length {
            let piece = (length - bytes.len() as u64).min(WINDOW);
            bytes.extend_from_slice(&self.take(piece)?);
        }
        String::from_utf8(bytes)
            .map_err(|e| Error::corruption(format!("no UTF-8: {}", e.utf8_error())))
    }

    fn text_length(&mut self, most: u64) -> Result<u64> {
        let length = self.u64()?;
        if length > most {
            return Err(Error::corruption(format!("a text of {length} bytes")));
        }
        Ok(length)
    }

    fn kind(&mut self) -> Result<Kind> {
        let id = self.u32()?;
        Kind::from_id(id).ok_or_else(|| Error::corruption(format!("kind {id} of values")))
    }

    /// A kind and a value.
    pub(super) fn value(&mut self) -> Result<Value> {
        Ok(match self.kind()? {
            Kind::U8 => Value::U8(u8::from_le_bytes(self.array()?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(self.array()?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(self.array()?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(self.array()?)),
            Kind::U32 => Value::U32(self.u32()?),
            Kind::I32 => Value::I32(i32::from_le_bytes(self.array()?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.array()?)),
            Kind::Bool => {
                let [byte] = self.array()?;
                check_bools(&[byte])?;
                Value::Bool(byte == 1)
            }
            Kind::String => Value::String(self.text(u64::MAX)?),
            Kind::Array => {
                let (kind, count) = self.array_start()?;
                let start = self.at;
                self.skip_elements(kind, count, 1)?;
                self.window = Bytes::from(Vec::new());
                self.window_at = self.at;
                Value::Array(Array::from_stored(kind, count, self.source.read(start..self.at)?))
            }
            Kind::U64 => Value::U64(self.u64()?),
            Kind::I64 => Value::I64(i64::from_le_bytes(self.array()?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.array()?)),
        })
    }

    fn array_start(&mut self) -> Result<(Kind, u64)> {
        let kind = self.kind()?;
        let count = self.u64()?;
        let least = match kind {
            Kind::String => 8,
            Kind::Array => 12,
            other => other.size().expect("of a fixed size") as u64,
        };
        self.check_count(count, least)?;
        Ok((kind, count))
    }

    /// Goes past the elements of an array, and checks them.
    fn skip_elements(&mut self, kind: Kind, count: u64, depth: usize) -> Result<()> {
        match kind {
            Kind::String => {
                for index in 0..count {
                    let mut check = || {
                        let length = self.text_length(u64::MAX)?;
                        let bytes = self.take(length)?;
                        let text = std::str::from_utf8(&bytes);
                        text.map(drop).map_err(|e| Error::corruption(format!("no UTF-8: {e}")))
                    };
                    check().map_err(|e| {
                        Error::new(e.kind(), format!("text {index}: {}", e.message()))
                    })?;
                }
            }
            Kind::Array if depth == DEEPEST => {
                let what = format!("arrays in arrays, more than {DEEPEST} deep");
                return Err(Error::unsupported(what));
            }
            Kind::Array => {
                for _ in 0..count {
                    let (kind, count) = self.array_start()?;
                    self.skip_elements(kind, count, depth + 1)?;
                }
            }
            Kind::Bool => {
                let mut left = count;
                while left > 0 {
                    let some = left.min(WINDOW);
                    check_bools(&self.take(some)?)?;
                    left -= some;
                }
            }
            other => self.at += count * other.size().expect("of a fixed size") as u64,
        }
        Ok(())
    }
}

fn check_bools(bytes: &[u8]) -> Result<()> {
    match bytes.iter().find(|byte| **byte > 1) {
        None => Ok(()),
        Some(byte) => Err(Error::corruption(format!("{byte} is neither true nor false"))),
    }
}
