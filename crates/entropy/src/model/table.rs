use tensorpress_tensor::kernels::rans::{PROB_BITS, PROB_TOTAL};
use tensorpress_tensor::{Error, Result};

use crate::bits::{BitReader, BitWriter};

/// Entries of a narrow table, the escape included: as many as fit a vector register.
const NARROW: usize = 16;

/// A static model of bytes: a frequency for each, in units of 1/4096.
///
/// Bytes without a frequency of their own are sent as an escape and then as they are. A table of a single entry has
/// frequency 4096 and costs nothing to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    freqs: [u16; 256],
    escape: u16,
}

impl Default for Table {
    /// The table of nothing: everything escapes.
    fn default() -> Self {
        Self { freqs: [0; 256], escape: PROB_TOTAL as u16 }
    }
}

/// Bytes and how often they occur.
pub type Counts = [u32; 256];

impl Table {
    /// The table that codes these counts best, each occurring byte with its own entry.
    #[must_use]
    pub fn wide(counts: &Counts) -> Self {
        let mut table = Self { freqs: [0; 256], escape: 0 };
        let entries: Vec<(u16, u64)> = (0..256u16)
            .filter(|s| counts[usize::from(*s)] > 0)
            .map(|s| (s, u64::from(counts[usize::from(s)])))
            .collect();
        table.assign(&entries);
        table
    }

    /// The table of at most 16 entries that codes these counts best: the 15 most frequent bytes, the others escape.
    #[must_use]
    pub fn narrow(counts: &Counts) -> Self {
        let mut order: Vec<u16> = (0..256u16).filter(|s| counts[usize::from(*s)] > 0).collect();
        // Ties by value: equal counts give equal tables on every machine.
        order.sort_by_key(|s| (std::cmp::Reverse(counts[usize::from(*s)]), *s));
        let own = if order.len() <= NARROW { order.len() } else { NARROW - 1 };
        let escaped: u64 = order[own..].iter().map(|s| u64::from(counts[usize::from(*s)])).sum();
        let mut entries: Vec<(u16, u64)> =
            order[..own].iter().map(|s| (*s, u64::from(counts[usize::from(*s)]))).collect();
        if escaped > 0 {
            entries.push((256, escaped));
        }
        let mut table = Self { freqs: [0; 256], escape: 0 };
        table.assign(&entries);
        table
    }

    /// Frequencies for entries (byte, or 256 for the escape) and their counts, none 0.
    fn assign(&mut self, entries: &[(u16, u64)]) {
        if entries.is_empty() {
            return *self = Self::default();
        }
        let freqs = normalise(entries);
        for ((symbol, _), freq) in entries.iter().zip(freqs) {
            match self.freqs.get_mut(usize::from(*symbol)) {
                Some(own) => *own = freq,
                None => self.escape = freq,
            }
        }
    }

    /// The frequency of a byte; 0 if it escapes.
    #[must_use]
    pub fn freq(&self, byte: u8) -> u16 {
        self.freqs[usize::from(byte)]
    }

    /// The frequency of the escape; 0 if there is none.
    #[must_use]
    pub fn escape(&self) -> u16 {
        self.escape
    }

    /// Entries in the order of coding: bytes ascending, then the escape (`None`).
    pub fn entries(&self) -> impl Iterator<Item = (Option<u8>, u16)> + '_ {
        let own = (0..=255u8).filter(|s| self.freq(*s) > 0).map(|s| (Some(s), self.freq(s)));
        own.chain((self.escape > 0).then_some((None, self.escape)))
    }

    /// Whether the entries fit a vector register.
    #[must_use]
    pub fn is_narrow(&self) -> bool {
        self.entries().count() <= NARROW
    }

    /// The only byte this table knows, if there is but one entry.
    #[must_use]
    pub fn only(&self) -> Option<Option<u8>> {
        let mut entries = self.entries();
        match (entries.next(), entries.next()) {
            (Some((symbol, _)), None) => Some(symbol),
            _ => None,
        }
    }

    /// Bits that these counts take under this model: their cross entropy, and 8 more an escape.
    #[must_use]
    pub fn cost(&self, counts: &Counts) -> f64 {
        let bits = |freq: u16| f64::from(PROB_BITS) - f64::from(freq).log2();
        let one = |(count, freq): (&u32, &u16)| match (*count, *freq) {
            (0, _) => 0.0,
            (n, 0) => f64::from(n) * (8.0 + bits(self.escape)),
            (n, f) => f64::from(n) * bits(f),
        };
        counts.iter().zip(&self.freqs).map(one).sum()
    }

    /// Tables one after another, each as its differences from the one before.
    pub(crate) fn write_all(tables: &[Self]) -> Vec<u8> {
        let mut out = BitWriter::default();
        let mut previous = &Self::default();
        for table in tables {
            table.write(previous, &mut out);
            previous = table;
        }
        out.finish()
    }

    /// Reads `count` tables that are all of `bytes`.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`.
    pub(crate) fn read_all(bytes: &[u8], count: usize) -> Result<Vec<Self>> {
        let mut from = BitReader::new(bytes);
        let mut tables: Vec<Self> = Vec::new();
        for _ in 0..count {
            tables.push(Self::read(tables.last().unwrap_or(&Self::default()), &mut from)?);
        }
        if !from.is_finished() {
            return Err(Error::corruption("bits behind the last table"));
        }
        Ok(tables)
    }

    /// Writes the frequencies as differences from those of `previous` (Rice codes).
    fn write(&self, previous: &Self, out: &mut BitWriter) {
        let used = |s: &usize| self.freqs[*s] != previous.freqs[*s];
        let (first, last) = match ((0..256).find(used), (0..256).rfind(used)) {
            (Some(first), Some(last)) => (first, last),
            _ => (0, 0),
        };
        let deltas: Vec<u32> = (first..=last)
            .map(|s| (self.freqs[s], previous.freqs[s]))
            .chain([(self.escape, previous.escape)])
            .map(|(now, before)| zigzag(i32::from(now) - i32::from(before)))
            .collect();
        let cost = |k: u32| deltas.iter().map(|d| (d >> k).min(LIMIT) + 1 + k).sum::<u32>();
        let k = (0..8).min_by_key(|k| cost(*k)).unwrap_or(0);
        out.write(first as u32, 8);
        out.write(last as u32, 8);
        out.write(k, 3);
        for delta in deltas {
            write_rice(delta, k, out);
        }
    }

    /// Reads what [`Table::write`] wrote.
    fn read(previous: &Self, from: &mut BitReader<'_>) -> Result<Self> {
        let (first, last) = (from.read(8)? as usize, from.read(8)? as usize);
        let k = from.read(3)?;
        if first > last {
            return Err(Error::corruption("frequencies of an empty range"));
        }
        let mut table = previous.clone();
        let [symbols, escape] =
            [&mut table.freqs[first..=last], std::slice::from_mut(&mut table.escape)];
        for freq in symbols.iter_mut().chain(escape) {
            let value = i32::from(*freq) + unzigzag(read_rice(k, from)?);
            if !(0..=PROB_TOTAL as i32).contains(&value) {
                return Err(Error::corruption(format!("frequency {value}")));
            }
            *freq = value as u16;
        }
        let total: u32 = table.entries().map(|(_, f)| u32::from(f)).sum();
        if total != PROB_TOTAL {
            return Err(Error::corruption(format!("frequencies add to {total}")));
        }
        if table.escape > 0 && !table.is_narrow() {
            return Err(Error::corruption("an escape among more than 16 entries"));
        }
        Ok(table)
    }
}

/// Longest unary part of a Rice code; the value follows whole.
const LIMIT: u32 = 20;

fn write_rice(value: u32, k: u32, out: &mut BitWriter) {
    let quotient = value >> k;
    if quotient < LIMIT {
        out.write((1 << quotient) - 1, quotient + 1);
        out.write(value & ((1 << k) - 1), k);
    } else {
        out.write((1 << LIMIT) - 1, LIMIT);
        out.write(value, 14);
    }
}

fn read_rice(k: u32, from: &mut BitReader<'_>) -> Result<u32> {
    let mut quotient = 0;
    while quotient < LIMIT && from.read(1)? == 1 {
        quotient += 1;
    }
    if quotient == LIMIT { from.read(14) } else { Ok(quotient << k | from.read(k)?) }
}

fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

fn unzigzag(value: u32) -> i32 {
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

/// Frequencies that sum to 4096, none 0, near the minimum of the cross entropy: in integers only, so that every
/// machine finds the same.
fn normalise(entries: &[(u16, u64)]) -> Vec<u16> {
    let total: u64 = entries.iter().map(|(_, count)| count).sum();
    let share = |count: u64| (count * u64::from(PROB_TOTAL) + total / 2) / total;
    let mut freqs: Vec<u64> = entries.iter().map(|(_, count)| share(*count).max(1)).collect();
    let mut sum: u64 = freqs.iter().sum();
    let goal = u64::from(PROB_TOTAL);
    // One step from f to f + 1 saves about count / (f + 1/2): give where it saves most, take where it costs least.
    let gain = |i: usize, f: u64| (u128::from(entries[i].1) << 32) / u128::from(2 * f + 1);
    while sum < goal {
        let best = (0..freqs.len()).max_by_key(|i| (gain(*i, freqs[*i]), std::cmp::Reverse(*i)));
        freqs[best.expect("some entries")] += 1;
        sum += 1;
    }
    while sum > goal {
        let candidates = (0..freqs.len()).filter(|i| freqs[*i] > 1);
        let best = candidates.min_by_key(|i| (gain(*i, freqs[*i] - 1), *i));
        freqs[best.expect("at most 257 entries share 4096")] -= 1;
        sum -= 1;
    }
    freqs.into_iter().map(|f| f as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(u8, u32)]) -> Counts {
        let mut counts = [0; 256];
        pairs.iter().for_each(|(s, n)| counts[usize::from(*s)] = *n);
        counts
    }

    fn total(table: &Table) -> u32 {
        table.entries().map(|(_, f)| u32::from(f)).sum()
    }

    #[test]
    fn frequencies_sum_and_none_is_lost() {
        let many: Counts = std::array::from_fn(|i| 1 + (i as u32 * 7919) % 1000 * (i as u32 % 3));
        let skewed = counts(&[(0, u32::MAX), (1, 1), (255, 1)]);
        for c in [many, skewed, counts(&[(9, 5)]), counts(&[])] {
            let table = Table::wide(&c);
            assert_eq!(total(&table), PROB_TOTAL);
            assert!((0..256).all(|s| c[s] == 0 || table.freqs[s] > 0));
            let table = Table::narrow(&c);
            assert_eq!(total(&table), PROB_TOTAL);
            assert!(table.is_narrow());
        }
    }

    #[test]
    fn narrow_tables_escape_the_rest() {
        let c: Counts = std::array::from_fn(|i| if i < 20 { 1000 >> i.min(9) } else { 0 });
        let table = Table::narrow(&c);
        assert_eq!(table.entries().count(), 16);
        assert!(table.escape() > 0);
        assert_eq!(table.entries().last(), Some((None, table.escape())));
        assert_eq!((table.freq(15), table.freq(0) > 0), (0, true));
    }

    #[test]
    fn written_tables_read_back() {
        let c: Counts = std::array::from_fn(|i| (i as u32).pow(2) % 513);
        let chain = [
            Table::wide(&c),
            Table::narrow(&c),
            Table::default(),
            Table::narrow(&c),
            Table::wide(&c),
        ];
        let bytes = Table::write_all(&chain);
        assert_eq!(Table::read_all(&bytes, chain.len()).unwrap(), chain);
        assert!(Table::read_all(&bytes, chain.len() - 1).is_err());
        assert!(Table::read_all(&bytes[..bytes.len() - 1], chain.len()).is_err());
    }
}
