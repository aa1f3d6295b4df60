//! A byte plane as rANS with a few tables, one of which is chosen for every run of symbols: rows of a matrix differ in
//! scale, and near ones are not always alike.

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::kernels::rans::LANES;
use tensorpress_tensor::{Error, Result};

use super::blocks::count;
use super::huffman;
use super::rans::{Decoder, Encoder};
use super::slots::Slots;
use crate::model::{Counts, Table};
use crate::varint::{read_varint, write_varint};

/// Symbols of a run: two steps of the coder.
const RUN: usize = 2 * LANES;

/// Tables at most.
const MOST: usize = 8;

/// Rounds of assigning runs to tables and fitting tables to runs.
const ROUNDS: usize = 4;

/// Tables, and which of them each run takes.
struct Classes {
    tables: Vec<Table>,
    of_run: Vec<u8>,
}

impl Classes {
    /// Lloyd's algorithm with code length as the distance, from runs in the order of their mean symbol.
    fn fit(runs: &[Counts]) -> Self {
        let mean =
            |c: &Counts| c.iter().enumerate().map(|(s, n)| s as u64 * u64::from(*n)).sum::<u64>();
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by_key(|i| (mean(&runs[*i]), *i));
        let mut of_run = vec![0u8; runs.len()];
        for (rank, run) in order.into_iter().enumerate() {
            of_run[run] = (rank * MOST / runs.len()) as u8;
        }
        let mut sums = vec![[0u32; 256]; MOST];
        for round in 0.. {
            sums.iter_mut().for_each(|s| *s = [0; 256]);
            for (class, run) in of_run.iter().zip(runs) {
                run.iter().zip(&mut sums[usize::from(*class)]).for_each(|(n, sum)| *sum += n);
            }
            if round == ROUNDS {
                break;
            }
            let costs: Vec<[u32; 256]> = sums.iter().map(lengths).collect();
            for (class, run) in of_run.iter_mut().zip(runs) {
                let cost = |lengths: &[u32; 256]| -> u64 {
                    run.iter().zip(lengths).map(|(n, l)| u64::from(*n) * u64::from(*l)).sum()
                };
                let best = (0..MOST).min_by_key(|i| cost(&costs[*i])).unwrap_or(0);
                *class = best as u8;
            }
        }
        // Tables that no run takes are not kept.
        let used: Vec<usize> = (0..MOST).filter(|i| of_run.contains(&(*i as u8))).collect();
        let number =
            |class: u8| used.iter().position(|i| *i == usize::from(class)).unwrap_or(0) as u8;
        of_run.iter_mut().for_each(|class| *class = number(*class));
        Self { tables: used.iter().map(|i| Table::wide(&sums[*i])).collect(), of_run }
    }
}

/// Code lengths in 1/256 bits, smoothed so that a run may move to a table that has not met all its symbols: in
/// integers, so that every machine finds the same.
fn lengths(counts: &Counts) -> [u32; 256] {
    let total: u64 = counts.iter().map(|n| u64::from(*n)).sum::<u64>() + 1;
    counts.map(|n| {
        // log2 of a ratio of at least 1/16 in fixed point: the exponent, and the mantissa as a line.
        let ratio = (total << 24) / (u64::from(n) * 16 + 1) * 16;
        let exponent = ratio.ilog2();
        let mantissa = if exponent >= 8 { (ratio >> (exponent - 8)) & 0xff } else { 0 };
        ((exponent << 8) + mantissa as u32).saturating_sub(24 << 8)
    })
}

/// Appends the coded plane if it seems to take fewer than `bytes`: number of tables, then with their lengths before them
/// the tables and the classes of the runs (Huffman), states, words.
pub(crate) fn encode(isa: Isa, plane: &[u8], bytes: f64, out: &mut Vec<u8>) -> bool {
    let runs: Vec<Counts> = plane.chunks(RUN).map(count).collect();
    let classes = Classes::fit(&runs);
    let tables = Table::write_all(&classes.tables);
    let mut of_run = Vec::new();
    huffman::encode(&classes.of_run, &count(&classes.of_run), &mut of_run);
    let cost = |(class, run): (&u8, &Counts)| classes.tables[usize::from(*class)].cost(run);
    let symbols: f64 = classes.of_run.iter().zip(&runs).map(cost).sum::<f64>() / 8.0;
    let total = symbols + (tables.len() + of_run.len() + super::rans::STATE_BYTES) as f64;
    if total >= bytes || classes.tables.iter().any(|t| t.only().is_some()) {
        return false;
    }
    out.push(classes.tables.len() as u8);
    for part in [&tables, &of_run] {
        write_varint(part.len() as u64, out);
        out.extend_from_slice(part);
    }
    let slots: Vec<Slots> = classes.tables.iter().map(Slots::new).collect();
    let mut encoder = Encoder::new(isa, plane.len());
    let mut symbols = Vec::with_capacity(RUN);
    for (class, run) in classes.of_run.iter().zip(plane.chunks(RUN)).rev() {
        let slots = &slots[usize::from(*class)];
        symbols.clear();
        symbols.extend(run.iter().map(|byte| slots.symbol_of(*byte)));
        encoder.prepend(slots, &symbols);
    }
    encoder.finish(out);
    true
}

/// Decodes a plane from the first `len` bytes of `bytes`.
///
/// # Errors
/// `Corruption` or `InsufficientData`.
pub(crate) fn decode(isa: Isa, bytes: &[u8], len: usize, out: &mut [u8]) -> Result<()> {
    let early = || Error::insufficient("plane ends early");
    let (number, mut rest) = bytes.get(..len).and_then(<[u8]>::split_first).ok_or_else(early)?;
    let mut part = || -> Result<&[u8]> {
        let len = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
        let (part, after) = rest.split_at_checked(len).ok_or_else(early)?;
        rest = after;
        Ok(part)
    };
    let (table_bytes, class_bytes) = (part()?, part()?);
    let number = usize::from(*number);
    if number > MOST {
        return Err(Error::corruption(format!("{number} tables, at most {MOST}")));
    }
    let tables = Table::read_all(table_bytes, number)?;
    if tables.iter().any(|t| t.only().is_some() || t.escape() > 0) {
        return Err(Error::corruption("a table of classes with one entry or an escape"));
    }
    let mut of_run = vec![0; out.len().div_ceil(RUN)];
    huffman::decode(class_bytes, &mut of_run)?;
    let slots: Vec<Slots> = tables.iter().map(Slots::new).collect();
    let stream_len = rest.len();
    let mut padded = Vec::new();
    let mut decoder = Decoder::new(isa, &bytes[len - stream_len..], stream_len, &mut padded)?;
    for (class, run) in of_run.into_iter().zip(out.chunks_mut(RUN)) {
        let slots = slots.get(usize::from(class));
        let slots = slots.ok_or_else(|| Error::corruption(format!("no table {class}")))?;
        decoder.decode(slots, &mut &[][..], run)?;
    }
    decoder.finish()
}
