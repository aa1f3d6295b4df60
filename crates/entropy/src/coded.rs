//! Coded nodes: the integer planes of any node, entropy-coded in tiles of whole rows. Nothing else about the node
//! changes, and no bit of what it decodes to.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use serde_json::json;
use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::node::registry::field;
use tensorpress_tensor::node::{
    Json, Mask, NodeReader, Plane, PlaneMap, Rows, Symbol, SymbolBuf, Symbols, SymbolsMut,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::{
    Bytes, DType, Error, Node, Part, PartKind, PartSink, Recode, Registry, Result,
};

use crate::chunk::Effort;
use crate::chunk::plane::{self, Allowed};
use crate::spread::{self, SpreadPlane};
use crate::varint::{read_varint, write_varint};

/// The coder of a [`coded`] node.
///
/// ```
/// use tensorpress_entropy::{TileCoder, coded};
/// use tensorpress_tensor::node::{Dense, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::Array2};
///
/// # fn main() -> tensorpress_entropy::Result<()> {
/// let weight = Array2::from_shape_fn((64, 64), |(r, c)| (r * c % 5) as f32);
/// let node = coded(Dense::from_f32(weight.view(), DType::F32)?.boxed(), TileCoder::Rans)?;
/// assert_eq!(decode(&*node)?, weight);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TileCoder {
    /// Interleaved rANS; range coding for planes too short for its states.
    #[default]
    Rans,
    /// Canonical Huffman codes.
    Huffman,
    /// Range coding: nearest to the entropy, slowest to decode.
    Range,
}

impl TileCoder {
    /// Every coder.
    pub const ALL: [Self; 3] = [Self::Rans, Self::Huffman, Self::Range];

    /// The name in recipes and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rans => "rans",
            Self::Huffman => "huffman",
            Self::Range => "range",
        }
    }

    /// Appends the coded symbols with the tables that decoding takes. Beside those it is at most 0.1% and 600 bytes more
    /// than the symbols' order-0 entropy by rANS, 16 bytes by range coding, what whole bits a symbol cost by Huffman
    /// codes; and never more than the symbols as they are and 12 bytes.
    ///
    /// ```
    /// use tensorpress_entropy::TileCoder;
    ///
    /// let symbols: Vec<u8> = (0..10_000u32).map(|i| (i * i % 7 == 2).into()).collect();
    /// let mut coded = Vec::new();
    /// TileCoder::Rans.encode(&symbols, &mut coded);
    /// let mut out = vec![0; symbols.len()];
    /// TileCoder::decode(&coded, &mut out)?;
    /// assert!(out == symbols && coded.len() < symbols.len() / 8);
    /// # Ok::<(), tensorpress_entropy::Error>(())
    /// ```
    pub fn encode(self, symbols: &[u8], out: &mut Vec<u8>) {
        plane::encode_by(symbols, Effort::Best, self.allowed(), out);
    }

    /// Decodes `out.len()` symbols from all of `bytes`, whichever coder coded them.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`, `Version` for codings of a later version.
    pub fn decode(bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let mut rest = bytes;
        Self::decode_front(&mut rest, out)?;
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Error::corruption("bytes behind the code")),
        }
    }

    /// Decodes `out.len()` symbols from the front of `bytes`.
    pub(crate) fn decode_front(bytes: &mut &[u8], out: &mut [u8]) -> Result<()> {
        plane::Coded::take(bytes, out.len())?.decode(Isa::detect(), out)
    }

    fn allowed(self) -> Allowed {
        let none = Allowed { rans: false, huffman: false, range: false };
        match self {
            Self::Rans => Allowed { rans: true, range: true, ..none },
            Self::Huffman => Allowed { huffman: true, ..none },
            Self::Range => Allowed { range: true, ..none },
        }
    }
}

/// Nothing to turn.
impl Knobs for TileCoder {
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
}

impl Recode for TileCoder {
    fn recode(&self, node: Box<dyn Node>) -> Result<Box<dyn Node>> {
        coded(node, *self)
    }
}

/// The coders that may stand in a recipe's coding.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    vec![
        Row::recode(
            "rans",
            "in `coded`: interleaved rANS, fastest; range coding where a matrix is too small for it",
            || TileCoder::Rans,
        ),
        Row::recode("huffman", "in `coded`: Huffman codes", || TileCoder::Huffman),
        Row::recode(
            "range",
            "in `coded`: range coding, nearest to the entropy and slowest",
            || TileCoder::Range,
        ),
    ]
}

/// What codes by classes of rows and columns must save of the tiles that decode faster.
const WORTH: f64 = 0.98;

/// Entropy-codes every integer plane of `node` that becomes smaller by it; bit-exact. Codes whose spread differs from row
/// to row and from column to column are coded by classes of both (unless by Huffman codes), with the parity of codes along
/// a [`tensorpress_tensor::node::Trellis`] known.
///
/// # Errors
/// `Corruption` if a plane turns out to be invalid.
pub fn coded(node: Box<dyn Node>, coder: TileCoder) -> Result<Box<dyn Node>> {
    node.map_planes(&mut |plane| {
        let Some(tiled) = Tiled::encode(&*plane, coder)? else { return Ok(plane) };
        let (whole, least) = (part_bytes(&*plane)?, part_bytes(&tiled)?);
        if coder != TileCoder::Huffman {
            let most = WORTH * least.min(whole) as f64;
            if let Some(spread) = SpreadPlane::encode(&*plane, most)? {
                return Ok(Box::new(spread));
            }
        }
        Ok(if least < whole { Box::new(tiled) } else { plane })
    })
}

/// Bytes of a plane's parts.
fn part_bytes(plane: &dyn Plane) -> Result<u64> {
    let mut storage = tensorpress_tensor::Storage::default();
    plane.parts("", PartKind::Codes, &mut storage)?;
    Ok(storage.bytes())
}

/// Adds the readers of this crate's planes.
///
/// # Errors
/// `InvalidArgument` if they are there already.
pub fn register(registry: &mut Registry) -> Result<()> {
    registry.add_plane(spread::ID, SpreadPlane::read_from)?;
    registry.add_plane(NARROW, |reader, json, prefix| {
        Tiled::read_from(reader, json, prefix, 1..=256)
    })?;
    registry.add_plane(WIDE, |reader, json, prefix| {
        Tiled::read_from(reader, json, prefix, 257..=1 << 16)
    })
}

/// Symbols of a tile, at least, unless the plane ends: the headers of a tile are small beside them, and a tile is small
/// beside the matrix.
const TILE: usize = 1 << 17;

/// Symbols that a byte may stand for: a constant plane takes a few bytes whatever its size, and readers allocate what
/// a plane declares.
const MOST_PER_BYTE: usize = 4096;

/// Wire ids of tiles of bytes, and of tiles of wider symbols.
const NARROW: &str = "tiled.v1";
const WIDE: &str = "tiled.v2";

/// A plane in tiles of whole rows, each coded by itself.
///
/// Symbols wider than bytes are cut in two, each half coded by itself: their highest 8 bits, which hold what there is
/// to gain, and the bits below.
#[derive(Debug)]
struct Tiled {
    alphabet: u32,
    rows: Rows,
    /// Rows of a tile; the last one may have fewer.
    tile: usize,
    /// Lengths of the tiles (varints), then the tiles.
    bytes: Bytes,
    /// Where each tile begins, and the end of the last.
    starts: Vec<usize>,
}

impl Tiled {
    /// Codes a plane; `None` for one without symbols, and for one that a reader would refuse.
    fn encode(plane: &dyn Plane, coder: TileCoder) -> Result<Option<Self>> {
        let (count, len) = (plane.rows(), plane.len(0..plane.rows()));
        if len == 0 {
            return Ok(None);
        }
        let rows = match plane.support() {
            Some(mask) => Rows::Ragged(mask.clone()),
            None => Rows::Even { rows: count, cols: len / count },
        };
        let tile = TILE.div_ceil((len / count).max(1)).min(count);
        let (mut lengths, mut bodies) = (Vec::new(), Vec::new());
        let mut symbols = SymbolBuf::of(plane);
        let encode = |symbols: &[u8], bodies: &mut Vec<u8>| {
            if !symbols.is_empty() {
                coder.encode(symbols, bodies);
            }
        };
        for first in (0..count).step_by(tile) {
            let before = bodies.len();
            match symbols.read(plane, first..(first + tile).min(count))? {
                Symbols::U8(symbols) => encode(symbols, &mut bodies),
                Symbols::U16(symbols) => {
                    let low = low_bits(plane.alphabet());
                    let high: Vec<u8> = symbols.iter().map(|s| (s >> low) as u8).collect();
                    encode(&high, &mut bodies);
                    let low: Vec<u8> =
                        symbols.iter().map(|s| (s & ((1 << low) - 1)) as u8).collect();
                    encode(&low, &mut bodies);
                }
            }
            write_varint((bodies.len() - before) as u64, &mut lengths);
        }
        lengths.extend_from_slice(&bodies);
        if len / MOST_PER_BYTE > lengths.len() {
            return Ok(None);
        }
        Self::open(plane.alphabet(), rows, tile, lengths.into()).map(Some)
    }

    /// Reads the lengths.
    fn open(alphabet: u32, rows: Rows, tile: usize, bytes: Bytes) -> Result<Self> {
        let count = rows.count();
        if tile == 0 || !(1..=1 << 16).contains(&alphabet) {
            return Err(Error::corruption(format!("tiles of {tile} rows, {alphabet} symbols")));
        }
        let tiles = count.div_ceil(tile);
        let mut rest = &bytes[..];
        // Each length takes a byte at least: no more are read, nor is more memory taken, than bytes are there.
        let mut lengths = Vec::new();
        for _ in 0..tiles {
            lengths.push(usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX));
        }
        let mut at = bytes.len() - rest.len();
        let mut starts = vec![at];
        for length in lengths {
            let next = at.checked_add(length).filter(|end| *end <= bytes.len());
            at = next.ok_or_else(|| Error::insufficient("tile ends early"))?;
            starts.push(at);
        }
        if at != bytes.len() {
            return Err(Error::corruption("bytes behind the last tile"));
        }
        Ok(Self { alphabet, rows, tile, bytes, starts })
    }

    fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
        alphabets: RangeInclusive<u32>,
    ) -> Result<Box<dyn Plane>> {
        let alphabet = field(json, "alphabet")?;
        if !alphabets.contains(&alphabet) {
            return Err(Error::corruption(format!("{alphabet} symbols in {json}")));
        }
        let bytes = reader.bytes(prefix, DType::U8)?;
        let rows = Rows::read_from(reader, json)?;
        if rows.len(0..rows.count()) / MOST_PER_BYTE > bytes.len() {
            return Err(Error::corruption(format!("{} bytes for {json}", bytes.len())));
        }
        Ok(Box::new(Self::open(alphabet, rows, field(json, "tile")?, bytes)?))
    }

    /// The symbols of a whole tile, bytes.
    fn narrow_tile(&self, tile: usize, out: &mut Vec<u8>) -> Result<()> {
        self.decode_tile(tile, [out])?;
        self.check_tile(tile, out)
    }

    /// The symbols of a whole tile, wider than bytes.
    fn wide_tile(&self, tile: usize, out: &mut Vec<u16>) -> Result<()> {
        let (mut high, mut low) = (Vec::new(), Vec::new());
        self.decode_tile(tile, [&mut high, &mut low])?;
        let bits = low_bits(self.alphabet);
        if let Some(low) = low.iter().find(|low| u32::from(**low) >> bits != 0) {
            return Err(Error::corruption(format!("low bits {low:#x} in tile {tile}")));
        }
        out.clear();
        out.extend(
            high.iter().zip(&low).map(|(high, low)| u16::from(*high) << bits | u16::from(*low)),
        );
        self.check_tile(tile, out)
    }

    /// Decodes the byte planes of a tile, one behind the other.
    fn decode_tile<const N: usize>(&self, tile: usize, planes: [&mut Vec<u8>; N]) -> Result<()> {
        let first = tile * self.tile;
        let len = self.len(first..(first + self.tile).min(self.rows()));
        // From the tile to the end of the plane: coders read ahead.
        let mut from = &self.bytes[self.starts[tile]..];
        for out in planes {
            out.clear();
            if len > 0 {
                let coded = plane::Coded::take(&mut from, len)?;
                out.resize(len, 0);
                coded.decode(Isa::detect(), out)?;
            }
        }
        if from.len() != self.bytes.len() - self.starts[tile + 1] {
            return Err(Error::corruption(format!("tile {tile} has another length than declared")));
        }
        Ok(())
    }

    fn check_tile<S: Symbol>(&self, tile: usize, symbols: &[S]) -> Result<()> {
        match symbols.iter().find(|s| u32::from(Into::<u16>::into(**s)) >= self.alphabet) {
            Some(s) => {
                Err(Error::corruption(format!("symbol {s:?} of {} in tile {tile}", self.alphabet)))
            }
            None => Ok(()),
        }
    }

    /// Reads rows out of the tiles that hold them.
    fn read_tiles<S: Symbol>(
        &self,
        rows: Range<usize>,
        out: &mut [S],
        decode: impl Fn(usize, &mut Vec<S>) -> Result<()>,
    ) -> Result<()> {
        let mut symbols = Vec::new();
        let mut done = 0;
        let mut row = rows.start;
        while row < rows.end {
            let tile = row / self.tile;
            let first = tile * self.tile;
            let end = (first + self.tile).min(rows.end);
            decode(tile, &mut symbols)?;
            let wanted = self.len(first..row)..self.len(first..end);
            out[done..done + wanted.len()].copy_from_slice(&symbols[wanted.clone()]);
            done += wanted.len();
            row = end;
        }
        Ok(())
    }
}

/// Bits below the highest 8 of the symbols of an alphabet wider than bytes: 1 to 8.
fn low_bits(alphabet: u32) -> u32 {
    (alphabet - 1).ilog2() - 7
}

impl Plane for Tiled {
    fn alphabet(&self) -> u32 {
        self.alphabet
    }

    fn rows(&self) -> usize {
        self.rows.count()
    }

    fn len(&self, rows: Range<usize>) -> usize {
        self.rows.len(rows)
    }

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        out.check(self.alphabet, self.len(rows.clone()));
        match out {
            SymbolsMut::U8(out) => self.read_tiles(rows, out, |t, s| self.narrow_tile(t, s)),
            SymbolsMut::U16(out) => self.read_tiles(rows, out, |t, s| self.wide_tile(t, s)),
        }
    }

    fn describe(&self) -> Json {
        let id = if self.alphabet > 256 { WIDE } else { NARROW };
        let mut json = json!({"plane": id, "alphabet": self.alphabet, "tile": self.tile});
        self.rows.describe(&mut json);
        json
    }

    fn parts(&self, prefix: &str, kind: PartKind, sink: &mut dyn PartSink) -> Result<()> {
        sink.part(Part {
            name: prefix.to_owned(),
            kind,
            dtype: DType::U8,
            shape: vec![self.bytes.len()],
            bytes: Cow::Borrowed(&self.bytes),
        })
    }

    fn map_inner(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Plane>> {
        f(self)
    }

    fn support(&self) -> Option<&Arc<Mask>> {
        self.rows.support()
    }
}
