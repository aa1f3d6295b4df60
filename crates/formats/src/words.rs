//! Codes as others lay them: fields of a few bits in words, read where they are.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::registry::field;
use tensorpress_tensor::node::{
    Json, NodeReader, PackedPlane, Plane, PlaneMap, Symbol, SymbolsMut,
};
use tensorpress_tensor::{
    Error, Node, Part, PartKind, PartSink, RawTensor, Registry, Result, Tensor, kernels,
};

use crate::awq::order::{GEMM, fast_place};
use crate::parts::Fields;

/// Wire id of these planes.
pub(crate) const ID: &str = "words.v1";

/// Which axis of the plane a stream of codes runs along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Along {
    Rows,
    Columns,
}

/// Which code of a stream a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    Plain,
    /// The fields of eight are those of [`GEMM`].
    Interleaved,
    /// Of each two the second comes first; all rows are one stream.
    Swapped,
    /// Tiles of `gemv_fast`.
    Tiles,
}

/// Where codes lie, and what they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) bits: u8,
    pub(crate) along: Along,
    /// The words of a stream lie below each other, not side by side.
    pub(crate) down: bool,
    pub(crate) order: Order,
    /// Codes may lie across the edges of words.
    pub(crate) dense: bool,
    /// What is added to a code.
    pub(crate) add: u16,
    /// Codes are signed: what is smallest becomes 0.
    pub(crate) signed: bool,
    /// Words behind each stream that hold no codes.
    pub(crate) padding: usize,
}

impl Layout {
    pub(crate) fn new(bits: u8, along: Along) -> Self {
        let (order, dense) = (Order::Plain, true);
        Self { bits, along, down: false, order, dense, add: 0, signed: false, padding: 0 }
    }

    pub(crate) fn down(self) -> Self {
        Self { down: true, ..self }
    }

    fn fields(self) -> Fields {
        if self.dense { Fields::dense(self.bits) } else { Fields::aligned(self.bits) }
    }

    /// Bytes that a plane of this shape takes; none if there is no such plane.
    fn bytes(self, [rows, cols]: [usize; 2]) -> Option<usize> {
        match self.order {
            Order::Swapped => Some(rows.checked_mul(cols)?.div_ceil(2)),
            Order::Tiles => {
                let fits = rows.is_multiple_of(4) && cols.is_multiple_of(64);
                fits.then(|| rows.checked_mul(cols).map(|all| all / 2)).flatten()
            }
            // A row of bytes needs no words.
            Order::Plain if self.is_bytes() => rows.checked_mul(cols),
            Order::Plain | Order::Interleaved => {
                let (length, lines) = self.stream([rows, cols]);
                let words = self.fields().words(length)?.checked_add(self.padding)?;
                words.checked_mul(lines)?.checked_mul(4)
            }
        }
    }

    /// Each code is a byte of its own, row by row.
    fn is_bytes(self) -> bool {
        self.bits == 8 && !self.down && self.along == Along::Columns && self.padding == 0
    }

    /// How long a stream is, and how many there are.
    fn stream(self, [rows, cols]: [usize; 2]) -> (usize, usize) {
        if self.along == Along::Rows { (rows, cols) } else { (cols, rows) }
    }

    fn check(self) -> Result<()> {
        let nibbles = matches!(self.order, Order::Interleaved | Order::Swapped | Order::Tiles);
        let fits = (1..=8).contains(&self.bits) && (!nibbles || self.bits == 4);
        let sane = self.add <= 1 && (!self.signed || self.bits == 8) && !(nibbles && self.down);
        if fits && sane {
            return Ok(());
        }
        Err(Error::corruption(format!("codes laid out as {self:?}")))
    }
}

/// Codes in the words of a tensor of any type.
#[derive(Debug, Clone)]
pub(crate) struct WordPlane {
    layout: Layout,
    shape: [usize; 2],
    tensor: RawTensor,
}

impl WordPlane {
    /// # Errors
    /// `Corruption` for a layout that is none, `ShapeMismatch` if the tensor does not have as many bytes as it takes.
    pub(crate) fn new(layout: Layout, shape: [usize; 2], tensor: RawTensor) -> Result<Self> {
        layout.check()?;
        let (wanted, found) = (layout.bytes(shape), tensor.bytes().len());
        if wanted != Some(found) {
            let [rows, cols] = shape;
            return Err(Error::shape(format!("{found} bytes for {rows} x {cols} codes")));
        }
        Ok(Self { layout, shape, tensor })
    }

    /// What a view says of such a plane.
    pub(crate) fn described(layout: Layout, shape: [usize; 2]) -> Json {
        let mut json = serde_json::to_value(layout).expect("numbers and names");
        json["plane"] = ID.into();
        json["shape"] = shape.into();
        json
    }

    pub(crate) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let layout: Layout = serde_json::from_value(json.clone())
            .map_err(|e| Error::corruption(format!("codes laid out as {json}: {e}")))?;
        let plane = Self::new(layout, field(json, "shape")?, reader.part(prefix)?);
        let corrupt = |e: Error| Error::corruption(e.message()).in_tensor(prefix);
        Ok(Box::new(plane.map_err(corrupt)?))
    }

    /// Word number `at`, filled up with zeros at the end.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.tensor.bytes();
        match bytes.get(4 * at..4 * at + 4) {
            Some(word) => u32::from_le_bytes(word.try_into().expect("4 bytes")),
            None => {
                let mut word = [0; 4];
                let rest = &bytes[(4 * at).min(bytes.len())..];
                word[..rest.len()].copy_from_slice(rest);
                u32::from_le_bytes(word)
            }
        }
    }

    /// The field that a code is.
    fn field(&self, row: usize, col: usize) -> u8 {
        let Layout { along, down, order, .. } = self.layout;
        let [rows, cols] = self.shape;
        let (index, line) = if along == Along::Rows { (row, col) } else { (col, row) };
        let nibble = |flat: usize| (self.tensor.bytes()[flat / 2] >> (4 * (flat % 2))) & 15;
        match order {
            Order::Swapped => nibble((row * cols + col) ^ 1),
            Order::Tiles => {
                let (word, place) = fast_place(cols, row, col);
                nibble(4 * word + place)
            }
            Order::Plain | Order::Interleaved => {
                let (_, lines) = self.layout.stream([rows, cols]);
                let index = match order {
                    Order::Interleaved => index / 8 * 8 + GEMM[index % 8],
                    _ => index,
                };
                let fields = self.layout.fields();
                if self.layout.is_bytes() {
                    return self.tensor.bytes()[row * cols + col];
                }
                let length = if along == Along::Rows { rows } else { cols };
                let words = fields.words(length).unwrap_or(0) + self.layout.padding;
                fields.get(index, |word| {
                    self.word(if down { word * lines + line } else { line * words + word })
                })
            }
        }
    }

    /// Whole words at a time, where codes divide them and words lie below each other or across: what is read at all
    /// sizes.
    fn read_words<S: Symbol>(
        &self,
        rows: Range<usize>,
        out: &mut [S],
        of: &impl Fn(u8) -> S,
    ) -> bool {
        let Layout { bits, along, down, order, .. } = self.layout;
        let [all, cols] = self.shape;
        let each = 32 / usize::from(bits);
        let mask = 0xff >> (8 - bits);
        if 32 % bits != 0 || matches!(order, Order::Swapped | Order::Tiles) {
            return false;
        }
        let mut put = |row: usize, col: usize, field: u32| {
            out[(row - rows.start) * cols + col] = of((field & mask) as u8);
        };
        match (along, down) {
            // A word has codes of one row.
            (Along::Columns, true) => {
                for first in (0..cols).step_by(each) {
                    for row in rows.clone() {
                        let word = self.word(first / each * all + row);
                        for (i, col) in (first..cols.min(first + each)).enumerate() {
                            put(row, col, word >> (i * usize::from(bits)));
                        }
                    }
                }
                true
            }
            // A word has codes of several rows.
            (Along::Rows, false) => {
                let width = all.div_ceil(each) + self.layout.padding;
                for word in rows.start / each..rows.end.div_ceil(each) {
                    for col in 0..cols {
                        let bits_of = self.word(col * width + word);
                        for i in 0..each {
                            let place = if order == Order::Interleaved { GEMM[i] } else { i };
                            let row = word * each + i;
                            if rows.contains(&row) {
                                put(row, col, bits_of >> (place * usize::from(bits)));
                            }
                        }
                    }
                }
                true
            }
            _ => false,
        }
    }

    fn read_symbols<S: Symbol>(&self, rows: Range<usize>, out: &mut [S], of: impl Fn(u8) -> S) {
        if self.read_words(rows.clone(), out, &of) {
            return;
        }
        let cols = self.shape[1];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            out.iter_mut().enumerate().for_each(|(col, out)| *out = of(self.field(row, col)));
        }
    }

    /// Rows that are streams of bytes of their own.
    fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> bool {
        let Layout { bits, along, down, order, dense, add, signed, .. } = self.layout;
        let plain = along == Along::Columns && !down && order == Order::Plain;
        if !plain || !(dense || 32 % bits == 0) || add != 0 || signed {
            return false;
        }
        let [all, cols] = self.shape;
        let stride = self.tensor.bytes().len() / all.max(1);
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let bytes = &self.tensor.bytes()[row * stride..(row + 1) * stride];
            kernels::unpack_bits(bytes, bits.into(), 0, out);
        }
        true
    }
}

impl Plane for WordPlane {
    fn alphabet(&self) -> u32 {
        (1 << self.layout.bits) + u32::from(self.layout.add)
    }

    fn rows(&self) -> usize {
        self.shape[0]
    }

    fn len(&self, rows: Range<usize>) -> usize {
        rows.len() * self.shape[1]
    }

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "rows out of bounds");
        out.check(self.alphabet(), self.len(rows.clone()));
        let (add, flip) = (self.layout.add, if self.layout.signed { 0x80 } else { 0 });
        match out {
            SymbolsMut::U8(out) => {
                if !self.read_rows(rows.clone(), out) {
                    self.read_symbols(rows, out, |code| (code ^ flip) + add as u8);
                }
            }
            SymbolsMut::U16(out) => {
                self.read_symbols(rows, out, |code| u16::from(code ^ flip) + add);
            }
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        Self::described(self.layout, self.shape)
    }

    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()> {
        sink.part(Part {
            name: prefix.to_owned(),
            kind,
            dtype: self.tensor.dtype(),
            shape: self.tensor.shape().to_vec(),
            bytes: Cow::Borrowed(self.tensor.bytes()),
        })
    }

    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>> {
        f(self)
    }
}

/// The same node, all of whose codes are packed as tensorpress packs them: what is left needs no reader of others'
/// layouts.
///
/// # Errors
/// As [`Plane::read`].
pub fn repacked(node: Box<dyn Node>) -> Result<Box<dyn Node>> {
    node.map_planes(&mut |plane| {
        if plane.describe()["plane"] != ID {
            return Ok(plane);
        }
        let packed = PackedPlane::repack(&*plane, 0..plane.rows())?;
        Ok(Box::new(packed))
    })
}

pub(crate) fn register(registry: &mut Registry) -> Result<()> {
    registry.add_plane(ID, WordPlane::read_from)
}
