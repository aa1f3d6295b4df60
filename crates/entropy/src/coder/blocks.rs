//! A byte plane as rANS with a table per block.

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::kernels::planes::join_planes;
use tensorpress_tensor::kernels::rans::LANES;
use tensorpress_tensor::{Error, Result};

use super::rans::{Decoder, Encoder, STATE_BYTES, to_symbols};
use super::slots::Slots;
use crate::model::{Counts, Table};
use crate::varint::{read_varint, write_varint};

/// Finest block whose statistics are taken.
const GRAIN: usize = 1 << 14;

/// A plan of coding: the tables of equal blocks.
#[derive(Debug)]
pub(crate) struct Plan {
    /// log2 of symbols a block.
    block_log2: u32,
    tables: Vec<Table>,
    /// Bytes it will take, nearly.
    pub(crate) bytes: f64,
}

/// Counts of every [`GRAIN`] symbols.
pub(crate) fn histograms(plane: &[u8]) -> Vec<Counts> {
    plane.chunks(GRAIN).map(count).collect()
}

/// Occurrences of each byte.
pub(crate) fn count(bytes: &[u8]) -> Counts {
    // Four lists: equal neighbours do not wait for each other.
    let mut lists = [[0u32; 256]; 4];
    let (quads, rest) = bytes.as_chunks::<4>();
    for quad in quads {
        for (list, byte) in lists.iter_mut().zip(quad) {
            list[usize::from(*byte)] += 1;
        }
    }
    for byte in rest {
        lists[0][usize::from(*byte)] += 1;
    }
    std::array::from_fn(|i| lists.iter().map(|l| l[i]).sum())
}

impl Plan {
    /// The best of the given block sizes (log2, at least 14); narrow tables unless wide ones save more than `worth`
    /// of what narrow ones take.
    pub(crate) fn best(histograms: &[Counts], sizes: &[u32], worth: f64) -> Self {
        let best = |narrow: bool| {
            let plans = sizes.iter().map(|size| Self::new(histograms, *size, narrow));
            plans.min_by(|a, b| a.bytes.total_cmp(&b.bytes)).expect("some size")
        };
        let narrow = best(true);
        // Many escapes: the plane is no plane of exponents.
        let wide = best(false);
        if wide.bytes < narrow.bytes * (1.0 - worth) { wide } else { narrow }
    }

    fn new(histograms: &[Counts], block_log2: u32, narrow: bool) -> Self {
        let grains = (1usize << block_log2) / GRAIN;
        let mut cost = 0.0;
        let mut tables: Vec<Table> = Vec::new();
        for block in histograms.chunks(grains.max(1)) {
            let counts: Counts = std::array::from_fn(|i| block.iter().map(|h| h[i]).sum());
            let table = if narrow { Table::narrow(&counts) } else { Table::wide(&counts) };
            cost += table.cost(&counts);
            tables.push(table);
        }
        let bytes = cost / 8.0 + Table::write_all(&tables).len() as f64 + STATE_BYTES as f64 + 8.0;
        Self { block_log2, tables, bytes }
    }

    /// Appends the coded plane:
    /// log2 of the block, lengths of tables and escapes (varints), tables, escapes, states, words.
    pub(crate) fn encode(&self, plane: &[u8], out: &mut Vec<u8>) {
        let tables = Table::write_all(&self.tables);
        let mut escapes = Vec::new();
        let mut encoder = Encoder::new(Isa::detect(), plane.len());
        let mut symbols = Vec::with_capacity(1 << self.block_log2);
        let blocks: Vec<&[u8]> = plane.chunks(1 << self.block_log2).collect();
        for (table, block) in self.tables.iter().zip(&blocks).rev() {
            let from = escapes.len();
            match table.only() {
                Some(Some(_)) => {}
                Some(None) => escapes.extend_from_slice(block),
                None => {
                    let slots = Slots::new(table);
                    to_symbols(Isa::detect(), table, &slots, block, &mut symbols, &mut escapes);
                    encoder.prepend(&slots, &symbols);
                }
            }
            escapes[from..].reverse();
        }
        // Blocks were met last first.
        escapes.reverse();
        out.push(self.block_log2 as u8);
        write_varint(tables.len() as u64, out);
        write_varint(escapes.len() as u64, out);
        out.extend_from_slice(&tables);
        out.extend_from_slice(&escapes);
        encoder.finish(out);
    }
}

/// A coded plane, opened for decoding.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    block_log2: u32,
    tables: Vec<Table>,
    escapes: &'a [u8],
    /// From the states on, and beyond the plane's end.
    stream: &'a [u8],
    stream_len: usize,
}

impl<'a> Blocks<'a> {
    /// Reads the head of a plane of `count` symbols in the first `len` bytes of `bytes`.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn open(bytes: &'a [u8], len: usize, count: usize) -> Result<Self> {
        let beyond = || Error::insufficient("plane ends early");
        let mut head = bytes.get(..len).ok_or_else(beyond)?;
        let (block_log2, rest) = head.split_first().ok_or_else(beyond)?;
        head = rest;
        let block_log2 = u32::from(*block_log2);
        if !(GRAIN.ilog2()..=30).contains(&block_log2) {
            return Err(Error::corruption(format!("blocks of 2^{block_log2}")));
        }
        let tables_len = read_varint(&mut head)?;
        let escapes_len = read_varint(&mut head)?;
        let mut take = |n: u64| {
            let n = usize::try_from(n).ok().filter(|n| *n <= head.len()).ok_or_else(beyond)?;
            let (taken, rest) = head.split_at(n);
            head = rest;
            Ok::<_, Error>(taken)
        };
        let (table_bytes, escapes) = (take(tables_len)?, take(escapes_len)?);
        let tables = Table::read_all(table_bytes, count.div_ceil(1 << block_log2))?;
        let stream_len = head.len();
        Ok(Self { block_log2, tables, escapes, stream: &bytes[len - stream_len..], stream_len })
    }

    /// Decodes the plane.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn decode(&self, isa: Isa, out: &mut [u8]) -> Result<()> {
        let mut padded = Vec::new();
        let mut stream = self.stream(isa, &mut padded)?;
        for (table, block) in self.tables.iter().zip(out.chunks_mut(1 << self.block_log2)) {
            stream.bytes(table, block)?;
        }
        stream.finish()
    }

    /// Decodes bf16 values whose exponents this plane holds; `raw` are `mantissa << 1 | sign`.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn decode_bf16(&self, isa: Isa, raw: &[u8], out: &mut [u8]) -> Result<()> {
        let mut padded = Vec::new();
        let mut stream = self.stream(isa, &mut padded)?;
        let size = 1usize << self.block_log2;
        let blocks = raw.chunks(size).zip(out.chunks_mut(2 * size));
        for (table, (raw, out)) in self.tables.iter().zip(blocks) {
            stream.bf16(table, raw, out)?;
        }
        stream.finish()
    }

    fn stream<'s>(&'s self, isa: Isa, padded: &'s mut Vec<u8>) -> Result<Stream<'s>> {
        let decoder = Decoder::new(isa, self.stream, self.stream_len, padded)?;
        Ok(Stream { decoder, escapes: self.escapes, exponents: Vec::new() })
    }
}

/// What is left of a plane while it is decoded.
struct Stream<'a> {
    decoder: Decoder<'a>,
    escapes: &'a [u8],
    exponents: Vec<u8>,
}

impl Stream<'_> {
    /// The bytes of the next block.
    fn bytes(&mut self, table: &Table, out: &mut [u8]) -> Result<()> {
        match table.only() {
            Some(Some(byte)) => out.fill(byte),
            Some(None) => {
                let Some((now, rest)) = self.escapes.split_at_checked(out.len()) else {
                    return Err(Error::insufficient("escapes end early"));
                };
                out.copy_from_slice(now);
                self.escapes = rest;
            }
            None => {
                let slots = Slots::new(table);
                self.decoder.decode(&slots, &mut self.escapes, out)?;
            }
        }
        Ok(())
    }

    /// The next block of bf16 values: in one pass where there is a kernel for it, else exponents first.
    fn bf16(&mut self, table: &Table, raw: &[u8], out: &mut [u8]) -> Result<()> {
        if raw.len().is_multiple_of(LANES) && table.is_narrow() && table.only().is_none() {
            let slots = Slots::new(table);
            if let Some(done) = self.decoder.decode_bf16(&slots, &mut self.escapes, raw, out) {
                return done;
            }
        }
        let mut exponents = std::mem::take(&mut self.exponents);
        exponents.resize(raw.len(), 0);
        self.bytes(table, &mut exponents)?;
        join_planes(&[raw, &exponents], true, out);
        self.exponents = exponents;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if !self.escapes.is_empty() {
            return Err(Error::corruption("more escapes than needed"));
        }
        self.decoder.finish()
    }
}
