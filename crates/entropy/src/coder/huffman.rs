//! Canonical Huffman codes of limited length: for planes too short for the states of rANS, and wherever a code word
//! per symbol is wanted. Decoding looks up 12 bits at a time and takes all symbols that lie whole in them.

use tensorpress_tensor::{Error, Result};

use crate::bits::{BitReader, BitWriter};
use crate::model::Counts;
use crate::varint::{read_varint, write_varint};

/// Longest code word.
const MAX_LENGTH: u32 = 12;

/// Streams of a coded slice: their words do not wait for each other.
const STREAMS: usize = 4;

/// Symbols that one lookup yields at most.
const AT_ONCE: usize = 4;

/// Code lengths of all bytes, 0 where a byte does not occur.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lengths([u8; 256]);

impl Lengths {
    /// The optimal lengths of at most 12 bits (package-merge: Larmore and Hirschberg, 1990); a single symbol takes
    /// one bit.
    fn new(counts: &Counts) -> Self {
        let mut used: Vec<(u64, u8)> = (0..=255u8)
            .filter(|s| counts[usize::from(*s)] > 0)
            .map(|s| (u64::from(counts[usize::from(s)]), s))
            .collect();
        used.sort_unstable();
        let mut lengths = [0; 256];
        if let [(_, only)] = used[..] {
            lengths[usize::from(only)] = 1;
        }
        if used.len() < 2 {
            return Self(lengths);
        }
        // Each package is a weight and how often each symbol is in it; a symbol's length is the number of chosen
        // packages it is in.
        let leaves: Vec<(u64, Vec<u8>)> = used.iter().map(|(n, s)| (*n, vec![*s])).collect();
        let mut packages = leaves.clone();
        for _ in 1..MAX_LENGTH {
            let pairs = packages.chunks_exact(2).map(|pair| {
                let mut symbols = pair[0].1.clone();
                symbols.extend_from_slice(&pair[1].1);
                (pair[0].0 + pair[1].0, symbols)
            });
            let mut next: Vec<_> = leaves.iter().cloned().chain(pairs).collect();
            // Stable: equal weights keep leaves first, so that every machine finds the same code.
            next.sort_by_key(|(weight, _)| *weight);
            packages = next;
        }
        for (_, symbols) in &packages[..2 * used.len() - 2] {
            symbols.iter().for_each(|s| lengths[usize::from(*s)] += 1);
        }
        Self(lengths)
    }

    /// Bits of symbols with these counts.
    fn cost(&self, counts: &Counts) -> u64 {
        counts.iter().zip(self.0).map(|(n, l)| u64::from(*n) * u64::from(l)).sum()
    }

    fn write(&self, out: &mut BitWriter) {
        let first = self.0.iter().position(|l| *l > 0).unwrap_or(0);
        let last = self.0.iter().rposition(|l| *l > 0).unwrap_or(0);
        out.write(first as u32, 8);
        out.write(last as u32, 8);
        self.0[first..=last].iter().for_each(|l| out.write(u32::from(*l), 4));
    }

    fn read(from: &mut BitReader<'_>) -> Result<Self> {
        let (first, last) = (from.read(8)? as usize, from.read(8)? as usize);
        if first > last {
            return Err(Error::corruption("code lengths of an empty range"));
        }
        let mut lengths = [0u8; 256];
        for length in &mut lengths[first..=last] {
            *length = from.read(4)? as u8;
            if u32::from(*length) > MAX_LENGTH {
                return Err(Error::corruption(format!("code of {length} bits")));
            }
        }
        if !from.is_finished() {
            return Err(Error::corruption("bits behind the code lengths"));
        }
        Ok(Self(lengths))
    }

    /// Code words by symbol, bits in the order of the stream; `Corruption` if the lengths are no complete code.
    fn words(&self) -> Result<[u16; 256]> {
        let kraft: u32 =
            self.0.iter().filter(|l| **l > 0).map(|l| 1 << (MAX_LENGTH - u32::from(*l))).sum();
        let used = self.0.iter().filter(|l| **l > 0).count();
        let complete = kraft == 1 << MAX_LENGTH || (used == 1 && kraft == 1 << (MAX_LENGTH - 1));
        if !complete {
            return Err(Error::corruption("code lengths are no complete code"));
        }
        let mut words = [0u16; 256];
        let mut next = 0u16;
        for length in 1..=MAX_LENGTH as u8 {
            for symbol in 0..256 {
                if self.0[symbol] == length {
                    words[symbol] = next.reverse_bits() >> (16 - length);
                    next += 1;
                }
            }
            next <<= 1;
        }
        Ok(words)
    }
}

/// Bytes that [`encode`] takes, nearly.
pub(crate) fn estimate(counts: &Counts) -> f64 {
    Lengths::new(counts).cost(counts) as f64 / 8.0 + 40.0
}

/// Appends code lengths and what [`encode_with`] appends.
pub(crate) fn encode(symbols: &[u8], counts: &Counts, out: &mut Vec<u8>) {
    let lengths = Lengths::new(counts);
    let mut head = BitWriter::default();
    lengths.write(&mut head);
    out.extend_from_slice(&head.finish());
    let coded = encode_with(&lengths, symbols, out);
    debug_assert!(coded.is_ok() || symbols.is_empty());
}

/// Appends the lengths of three streams (varints) and four streams of a quarter of the symbols each.
fn encode_with(lengths: &Lengths, symbols: &[u8], out: &mut Vec<u8>) -> Result<()> {
    if symbols.is_empty() {
        return Ok(());
    }
    let words = lengths.words()?;
    let encode = |part: &[u8]| {
        let mut bits = BitWriter::default();
        for symbol in part {
            let symbol = usize::from(*symbol);
            bits.write(u32::from(words[symbol]), u32::from(lengths.0[symbol]));
        }
        bits.finish()
    };
    let streams: Vec<Vec<u8>> =
        symbols.chunks(symbols.len().div_ceil(STREAMS)).map(encode).collect();
    for i in 0..STREAMS - 1 {
        write_varint(streams.get(i).map_or(0, |s| s.len() as u64), out);
    }
    streams.iter().for_each(|s| out.extend_from_slice(s));
    Ok(())
}

/// What 12 bits of a stream begin with: up to four symbols, how many, and the bits they take.
#[derive(Debug, Clone, Copy, Default)]
struct Lookup {
    symbols: [u8; AT_ONCE],
    count: u8,
    bits: u8,
    first_bits: u8,
}

fn lookups(lengths: &Lengths) -> Result<Vec<Lookup>> {
    let words = lengths.words()?;
    // First the single symbols, then what follows them in the bits that are left.
    let mut table = vec![Lookup::default(); 1 << MAX_LENGTH];
    for symbol in 0..256 {
        let length = lengths.0[symbol];
        if length == 0 {
            continue;
        }
        let step = 1 << length;
        for entry in table[usize::from(words[symbol])..].iter_mut().step_by(step) {
            let symbols = [symbol as u8, 0, 0, 0];
            *entry = Lookup { symbols, count: 1, bits: length, first_bits: length };
        }
    }
    let single = table.clone();
    for (bits, entry) in table.iter_mut().enumerate() {
        while usize::from(entry.count) < AT_ONCE && entry.count > 0 {
            let next = single[bits >> entry.bits];
            if next.count == 0 || u32::from(entry.bits + next.bits) > MAX_LENGTH {
                break;
            }
            entry.symbols[usize::from(entry.count)] = next.symbols[0];
            entry.count += 1;
            entry.bits += next.bits;
        }
    }
    Ok(table)
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// `Corruption` or `InsufficientData`.
pub(crate) fn decode(bytes: &[u8], out: &mut [u8]) -> Result<()> {
    let early = || Error::insufficient("code lengths end early");
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.get(1)) else {
        return if out.is_empty() { Ok(()) } else { Err(early()) };
    };
    let head = 2 + (usize::from(last).saturating_sub(first.into()) + 1).div_ceil(2);
    let (head, rest) = bytes.split_at_checked(head).ok_or_else(early)?;
    decode_with(&Lengths::read(&mut BitReader::new(head))?, rest, out)
}

/// Decodes what [`encode_with`] wrote.
///
/// # Errors
/// `Corruption` or `InsufficientData`.
fn decode_with(lengths: &Lengths, bytes: &[u8], out: &mut [u8]) -> Result<()> {
    let mut rest = bytes;
    if !out.is_empty() {
        let table = lookups(lengths)?;
        let mut ends = [0usize; STREAMS];
        for end in &mut ends[..STREAMS - 1] {
            *end = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
        }
        let quarter = out.len().div_ceil(STREAMS);
        let streams = out.len().div_ceil(quarter);
        if ends[streams.min(STREAMS - 1)..].iter().any(|end| *end > 0) {
            return Err(Error::corruption("a stream without symbols has bytes"));
        }
        for (i, part) in out.chunks_mut(quarter).enumerate() {
            let len = if i < STREAMS - 1 { ends[i] } else { rest.len() };
            let (stream, after) =
                rest.split_at_checked(len).ok_or_else(|| Error::insufficient("code ends early"))?;
            rest = after;
            decode_stream(&table, stream, part)?;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(Error::corruption("bytes behind the code")) }
}

fn decode_stream(table: &[Lookup], stream: &[u8], out: &mut [u8]) -> Result<()> {
    let (mut at, mut pending, mut count, mut done) = (0, 0u64, 0u32, 0);
    while done < out.len() {
        // 32 bits or more while the stream lasts; zeros behind it.
        while count <= 56 && at < stream.len() {
            pending |= u64::from(stream[at]) << count;
            count += 8;
            at += 1;
        }
        let entry = &table[(pending & ((1 << MAX_LENGTH) - 1)) as usize];
        let fits = done + AT_ONCE <= out.len();
        let (symbols, bits) = if fits { (entry.count, entry.bits) } else { (1, entry.first_bits) };
        if entry.count == 0 || u32::from(bits) > count {
            // What is left may still hold one symbol.
            if entry.count == 0 || u32::from(entry.first_bits) > count {
                return Err(Error::insufficient("code ends early"));
            }
            out[done] = entry.symbols[0];
            done += 1;
            pending >>= entry.first_bits;
            count -= u32::from(entry.first_bits);
            continue;
        }
        if fits {
            out[done..done + AT_ONCE].copy_from_slice(&entry.symbols);
        } else {
            out[done] = entry.symbols[0];
        }
        done += usize::from(symbols);
        pending >>= bits;
        count -= u32::from(bits);
    }
    if at == stream.len() && count < 8 && pending == 0 {
        return Ok(());
    }
    Err(Error::corruption("bits behind the code"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coder::blocks::count;

    fn round_trip(symbols: &[u8]) -> usize {
        let mut coded = Vec::new();
        encode(symbols, &count(symbols), &mut coded);
        let mut out = vec![0; symbols.len()];
        decode(&coded, &mut out).unwrap();
        assert_eq!(out, symbols);
        for cut in 0..coded.len().min(300) {
            assert!(decode(&coded[..cut], &mut out).is_err() || symbols.is_empty(), "cut at {cut}");
        }
        coded.len()
    }

    #[test]
    fn codes_round_trip_and_cost_what_their_lengths_say() {
        let skewed: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2654435761) >> 16).leading_zeros() as u8)
            .collect();
        let uniform: Vec<u8> =
            (0..3001u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        for symbols in [&skewed[..], &uniform, &[], &[7], &[7, 7, 7, 7, 7], &[1, 2], &skewed[..9]] {
            let bytes = round_trip(symbols);
            let exact = Lengths::new(&count(symbols)).cost(&count(symbols)) as usize / 8;
            assert!(bytes <= exact + 2 + 128 + 6 + 4 + 1, "{bytes} for {exact}");
        }
    }

    #[test]
    fn lengths_are_limited_and_optimal_where_the_limit_does_not_bind() {
        // Fibonacci counts make the longest codes.
        let mut fibonacci = [0u32; 256];
        let (mut a, mut b) = (1u32, 1u32);
        for n in fibonacci.iter_mut().take(40) {
            *n = a;
            (a, b) = (b, a + b);
        }
        let lengths = Lengths::new(&fibonacci);
        assert_eq!(lengths.0.iter().max(), Some(&(MAX_LENGTH as u8)));
        assert!(lengths.words().is_ok());
        // Against plain Huffman by repeated merging: the cost is the sum of all inner weights.
        let mut counts = [0u32; 256];
        (0..30).for_each(|i| counts[i * 8] = 50 + (i as u32 * 37) % 101);
        let mut weights: Vec<u64> =
            counts.iter().filter(|n| **n > 0).map(|n| u64::from(*n)).collect();
        let mut cost = 0;
        while weights.len() > 1 {
            weights.sort_unstable_by(|a, b| b.cmp(a));
            let merged = weights.pop().unwrap() + weights.pop().unwrap();
            cost += merged;
            weights.push(merged);
        }
        assert_eq!(Lengths::new(&counts).cost(&counts), cost);
    }
}
