//! Planes of codes whose spread is the product of a row's and a column's: rANS under a table for each class of spread
//! ([`tensorpress_tensor::node::spread`]), and where codes lie along a trellis, for each parity of it.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::json;
use tensorpress_tensor::node::registry::field;
use tensorpress_tensor::node::spread::{CLASSES, Model, Spread, TOKENS, Token, trellis_of};
use tensorpress_tensor::node::{Json, NodeReader, Plane, PlaneMap, SymbolBuf, SymbolsMut, Trellis};
use tensorpress_tensor::{Bytes, DType, Error, Part, PartKind, PartSink, Result};

use crate::TileCoder;
use crate::bits::{BitReader, BitWriter};
use crate::model::{PROB_BITS, PROB_TOTAL, Table};
use crate::varint::{read_varint, write_varint};

/// Wire id.
pub(crate) const ID: &str = "spread.v1";

/// Symbols of a tile, at least, unless the plane ends.
const TILE: usize = 1 << 17;

/// Symbols that a byte may stand for: readers allocate what a plane declares.
const MOST_PER_BYTE: usize = 4096;

/// Planes of fewer symbols are not worth tables of classes.
const SHORT: usize = 4096;

/// Interleaved states: symbol i takes number i modulo this.
const STATES: usize = 8;

/// The least state; words have 16 bits.
const LOWEST: u32 = 1 << 16;

/// A plane in tiles of whole rows, which share their tables.
#[derive(Debug)]
pub(crate) struct SpreadPlane {
    alphabet: u32,
    shape: [usize; 2],
    /// Rows of a tile; the last one may have fewer.
    tile: usize,
    head: Head,
    /// Head, lengths of the tiles, tiles.
    bytes: Bytes,
    /// Where each tile begins, and the end of the last.
    starts: Vec<usize>,
}

/// What all tiles share.
#[derive(Debug)]
struct Head {
    /// The symbol of code 0.
    centre: i32,
    trellis: Option<Trellis>,
    spread: Spread,
    table_of: [u8; CLASSES],
    /// By table; along a trellis, of even and of odd codes by turns.
    tables: Vec<Table>,
}

impl SpreadPlane {
    /// Codes a plane of even rows; `None` if it would take more than `most` bytes.
    pub(crate) fn encode(plane: &dyn Plane, most: f64) -> Result<Option<Self>> {
        let (rows, len) = (plane.rows(), plane.len(0..plane.rows()));
        if plane.support().is_some() || len < SHORT || len % rows != 0 {
            return Ok(None);
        }
        let cols = len / rows;
        let mut symbols = SymbolBuf::of(plane);
        let symbols = symbols.read(plane, 0..rows)?;
        let mut counts = vec![0usize; plane.alphabet() as usize];
        symbols.iter().for_each(|s| counts[usize::from(s)] += 1);
        let mut below = 0;
        let median = counts.iter().position(|n| {
            below += n;
            below * 2 >= len
        });
        let mut centre = median.unwrap_or(0) as i32;
        let mut codes: Vec<i32> = symbols.iter().map(|s| i32::from(s) - centre).collect();
        let mut trellis = None;
        for shift in [0, 1, -1, 2] {
            codes.iter_mut().for_each(|code| *code += shift);
            trellis = trellis_of(&codes, cols);
            if trellis.is_some() {
                centre -= shift;
                break;
            }
            codes.iter_mut().for_each(|code| *code -= shift);
        }
        let model = Model::fit(&codes, cols, trellis.is_some());
        if model.bits / 8.0 > most {
            return Ok(None);
        }
        let table = |counts: &[u32; TOKENS]| {
            Table::wide(&std::array::from_fn(|s| counts.get(s).copied().unwrap_or(0)))
        };
        let tables = model.counts.iter().map(table).collect();
        let Model { spread, table_of, .. } = model;
        let head = Head { centre, trellis, spread, table_of, tables };
        let whole = TILE.div_ceil(cols).next_multiple_of(Trellis::ROWS);
        let tile = whole.min(rows);
        let (mut bytes, mut bodies) = (Vec::new(), Vec::new());
        head.write(&mut bytes);
        let starts: Vec<Vec<u32>> = head.tables.iter().map(first_slots).collect();
        for first in (0..rows).step_by(tile) {
            let end = (first + tile).min(rows);
            let before = bodies.len();
            head.encode(first..end, &codes[first * cols..end * cols], &starts, &mut bodies);
            write_varint((bodies.len() - before) as u64, &mut bytes);
        }
        bytes.extend_from_slice(&bodies);
        if bytes.len() as f64 > most || len / MOST_PER_BYTE > bytes.len() {
            return Ok(None);
        }
        Self::open(plane.alphabet(), [rows, cols], tile, bytes.into()).map(Some)
    }

    /// Reads the head and the lengths.
    fn open(alphabet: u32, shape: [usize; 2], tile: usize, bytes: Bytes) -> Result<Self> {
        let [rows, cols] = shape;
        let symbols =
            rows.checked_mul(cols).filter(|n| (1..=bytes.len() * MOST_PER_BYTE).contains(n));
        if symbols.is_none() || tile == 0 || !(1..=1 << 16).contains(&alphabet) {
            let len = bytes.len();
            let message = format!("{alphabet} symbols of {shape:?} in {tile} rows: {len} bytes");
            return Err(Error::corruption(message));
        }
        let mut rest = &bytes[..];
        let head = Head::read(shape, &mut rest)?;
        if head.trellis.is_some() && tile < rows && !tile.is_multiple_of(Trellis::ROWS) {
            return Err(Error::corruption(format!("tiles of {tile} rows along a trellis")));
        }
        let mut lengths = Vec::new();
        for _ in 0..rows.div_ceil(tile) {
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
        Ok(Self { alphabet, shape, tile, head, bytes, starts })
    }

    pub(crate) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Plane>> {
        let bytes = reader.bytes(prefix, DType::U8)?;
        let (alphabet, shape) = (field(json, "alphabet")?, field(json, "shape")?);
        Ok(Box::new(Self::open(alphabet, shape, field(json, "tile")?, bytes)?))
    }

    /// Hands over the symbols of some rows, in their order.
    fn read_rows(&self, rows: Range<usize>, mut put: impl FnMut(usize, u16)) -> Result<()> {
        let slots = self.head.slots();
        let cols = self.shape[1];
        let mut row = rows.start;
        while row < rows.end {
            let tile = row / self.tile;
            let first = tile * self.tile;
            let end = (first + self.tile).min(self.shape[0]);
            let wanted = row..end.min(rows.end);
            let bytes = &self.bytes[self.starts[tile]..self.starts[tile + 1]];
            let from = row * cols;
            let base = (row - rows.start) * cols;
            let centre = i64::from(self.head.centre);
            self.head.decode(first..end, wanted.end, bytes, &slots, |at, code| {
                let symbol = i64::from(code) + centre;
                let symbol = u32::try_from(symbol).ok().filter(|s| *s < self.alphabet);
                let Some(symbol) = symbol else {
                    let alphabet = self.alphabet;
                    let message = format!("code {code} of {alphabet} symbols in tile {tile}");
                    return Err(Error::corruption(message));
                };
                if let Some(at) = at.checked_sub(from) {
                    put(base + at, symbol as u16);
                }
                Ok(())
            })?;
            row = wanted.end;
        }
        Ok(())
    }
}

/// The first slot of each token.
fn first_slots(table: &Table) -> Vec<u32> {
    let mut next = 0;
    let freq = |token: usize| u32::from(table.freq(token as u8));
    let take = |token| {
        next += freq(token);
        next - freq(token)
    };
    (0..TOKENS).map(take).collect()
}

/// The sides of a trellis that a plane's tables are for: both parities, or one for all.
fn kinds(trellis: Option<&Trellis>) -> usize {
    if trellis.is_some() { 2 } else { 1 }
}

impl Head {
    /// Centre, base (zigzag varints), states of the trellis (varint, 0 for none), number of tables and, for each but the
    /// first, its first class (a byte); classes of rows and of columns, each as a plane of bytes; tables, their length
    /// before them.
    fn write(&self, out: &mut Vec<u8>) {
        let zigzag = |v: i32| u64::from(((v << 1) ^ (v >> 31)) as u32);
        write_varint(zigzag(self.centre), out);
        write_varint(zigzag(self.spread.base), out);
        write_varint(self.trellis.as_ref().map_or(0, Trellis::states) as u64, out);
        let last = self.table_of[CLASSES - 1];
        out.push(last + 1);
        for table in 1..=last {
            out.push(self.table_of.iter().position(|t| *t == table).unwrap_or(0) as u8);
        }
        TileCoder::Range.encode(&self.spread.rows, out);
        TileCoder::Range.encode(&self.spread.columns, out);
        let tables = Table::write_all(&self.tables);
        write_varint(tables.len() as u64, out);
        out.extend_from_slice(&tables);
    }

    fn read([rows, cols]: [usize; 2], from: &mut &[u8]) -> Result<Self> {
        let mut signed = || -> Result<i32> {
            let value = u32::try_from(read_varint(from)?).unwrap_or(u32::MAX);
            Ok((value >> 1) as i32 ^ -((value & 1) as i32))
        };
        let (centre, base) = (signed()?, signed()?);
        if !(-4..=1 << 16).contains(&centre) || base.unsigned_abs() > 1024 {
            return Err(Error::corruption(format!("codes about {centre}, classes from {base}")));
        }
        let states = read_varint(from)?;
        let trellis = usize::try_from(states).ok().and_then(Trellis::new);
        if trellis.is_none() && states != 0 {
            return Err(Error::version(format!("a trellis of {states} states")));
        }
        let early = || Error::insufficient("head ends early");
        let (count, rest) = from.split_first().ok_or_else(early)?;
        let count = usize::from(*count);
        if !(1..=CLASSES).contains(&count) {
            return Err(Error::corruption(format!("{count} tables of {CLASSES} classes")));
        }
        let (firsts, rest) = rest.split_at_checked(count - 1).ok_or_else(early)?;
        let table =
            |class: usize| firsts.iter().filter(|f| usize::from(**f) <= class).count() as u8;
        let table_of = std::array::from_fn(table);
        *from = rest;
        let mut classes = |len: usize| -> Result<Vec<u8>> {
            let mut classes = vec![0; len];
            TileCoder::decode_front(from, &mut classes)?;
            Ok(classes)
        };
        let spread = Spread { rows: classes(rows)?, columns: classes(cols)?, base };
        let len = usize::try_from(read_varint(from)?).unwrap_or(usize::MAX);
        let (tables, rest) = from.split_at_checked(len).ok_or_else(early)?;
        *from = rest;
        let tables = Table::read_all(tables, count * kinds(trellis.as_ref()))?;
        Ok(Self { centre, trellis, spread, table_of, tables })
    }

    /// The tables of a row by the class of the column.
    fn tables_of_row(&self, row: usize) -> [u8; 256] {
        let row = self.spread.rows[row];
        std::array::from_fn(|column| self.table_of[self.spread.class_of(row, column as u8)])
    }

    /// Appends the codes of some rows: length of the bits that are stored as they are (varint), those, states, words.
    fn encode(&self, rows: Range<usize>, codes: &[i32], starts: &[Vec<u32>], out: &mut Vec<u8>) {
        let kinds = kinds(self.trellis.as_ref());
        let cols = self.spread.columns.len();
        let mut raw = BitWriter::default();
        let mut events: Vec<(u8, u8)> = Vec::with_capacity(codes.len());
        for (row, codes) in rows.zip(codes.chunks_exact(cols)) {
            let table_of = self.tables_of_row(row);
            for (code, column) in codes.iter().zip(&self.spread.columns) {
                let token = Token::of(*code);
                let odd = (*code & 1) as u8 * (kinds - 1) as u8;
                events.push((table_of[usize::from(*column)] * kinds as u8 + odd, token.number));
                raw.write(token.raw, token.bits);
            }
        }
        let raw = raw.finish();
        let mut states = [LOWEST; STATES];
        let mut words: Vec<u16> = Vec::with_capacity(codes.len() / 4);
        for (i, (table, token)) in events.iter().enumerate().rev() {
            let table = usize::from(*table);
            let freq = u32::from(self.tables[table].freq(*token));
            let state = &mut states[i % STATES];
            if u64::from(*state) >= u64::from(freq) << (32 - PROB_BITS) {
                words.push(*state as u16);
                *state >>= 16;
            }
            let start = starts[table][usize::from(*token)];
            *state = ((*state / freq) << PROB_BITS) + *state % freq + start;
        }
        write_varint(raw.len() as u64, out);
        out.extend_from_slice(&raw);
        states.iter().for_each(|state| out.extend_from_slice(&state.to_le_bytes()));
        words.iter().rev().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// What each slot of each table decodes to: token, frequency less 1 (12 bits), occurrence (12 bits).
    fn slots(&self) -> Vec<u32> {
        let mut slots = Vec::with_capacity(self.tables.len() << PROB_BITS);
        for table in &self.tables {
            for (token, freq) in table.entries() {
                // What escapes is no token.
                let token = u32::from(token.unwrap_or(u8::MAX));
                let freq = u32::from(freq);
                slots.extend((0..freq).map(|r| token | (freq - 1) << 8 | r << 20));
            }
        }
        slots
    }

    /// Decodes a tile of rows up to `end`, handing over each code with its place in the plane.
    fn decode(
        &self,
        rows: Range<usize>,
        end: usize,
        bytes: &[u8],
        slots: &[u32],
        mut put: impl FnMut(usize, i32) -> Result<()>,
    ) -> Result<()> {
        let early = || Error::insufficient("tile ends early");
        let kinds = kinds(self.trellis.as_ref());
        let cols = self.spread.columns.len();
        let mut rest = bytes;
        let len = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
        let (raw, rest) = rest.split_at_checked(len).ok_or_else(early)?;
        let mut raw = BitReader::new(raw);
        let (heads, words) = rest.split_at_checked(4 * STATES).ok_or_else(early)?;
        let mut states: [u32; STATES] =
            std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|b| heads[4 * i + b])));
        let (words, odd_byte) = words.as_chunks::<2>();
        let mut words = words.iter();
        let mut at = rows.start * cols;
        let mut sides = vec![0u8; if kinds > 1 { cols } else { 0 }];
        let mut number = 0;
        for row in rows.start..end {
            if row % Trellis::ROWS == 0 {
                sides.fill(0);
            }
            let table_of = self.tables_of_row(row);
            for (c, column) in self.spread.columns.iter().enumerate() {
                let table = usize::from(table_of[usize::from(*column)]);
                let table = match &self.trellis {
                    Some(_) => 2 * table + usize::from(sides[c] & 1),
                    None => table,
                };
                let state = &mut states[number % STATES];
                number += 1;
                let slot = slots[(table << PROB_BITS) | (*state & (PROB_TOTAL - 1)) as usize];
                let freq = (slot >> 8 & 0xfff) + 1;
                *state = freq * (*state >> PROB_BITS) + (slot >> 20);
                if *state < LOWEST {
                    let word = words.next().ok_or_else(early)?;
                    *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
                }
                let token = slot as u8;
                let code = match Token::bits_beside(token) {
                    0 => Token::code(token, 0),
                    _ if usize::from(token) >= TOKENS => {
                        return Err(Error::corruption(format!("token {token} of {TOKENS}")));
                    }
                    bits => Token::code(token, raw.read(bits)?),
                };
                if let Some(trellis) = &self.trellis {
                    if !Trellis::allows(sides[c], code) {
                        return Err(Error::corruption(format!("code {code} beside its trellis")));
                    }
                    sides[c] = trellis.next(sides[c], code);
                }
                put(at, code)?;
                at += 1;
            }
        }
        if end < rows.end {
            return Ok(());
        }
        let ended = states.iter().all(|state| *state == LOWEST) && words.len() == 0;
        if ended && odd_byte.is_empty() && raw.is_finished() {
            return Ok(());
        }
        Err(Error::corruption("a tile does not end where it should"))
    }
}

impl Plane for SpreadPlane {
    fn alphabet(&self) -> u32 {
        self.alphabet
    }

    fn rows(&self) -> usize {
        self.shape[0]
    }

    fn len(&self, rows: Range<usize>) -> usize {
        rows.len() * self.shape[1]
    }

    fn read(&self, rows: Range<usize>, out: SymbolsMut<'_>) -> Result<()> {
        assert!(rows.end <= self.shape[0], "rows {rows:?} of {}", self.shape[0]);
        out.check(self.alphabet, self.len(rows.clone()));
        match out {
            SymbolsMut::U8(out) => self.read_rows(rows, |at, symbol| out[at] = symbol as u8),
            SymbolsMut::U16(out) => self.read_rows(rows, |at, symbol| out[at] = symbol),
        }
    }

    fn describe(&self) -> Json {
        json!({"plane": ID, "alphabet": self.alphabet, "tile": self.tile, "shape": self.shape})
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
}
