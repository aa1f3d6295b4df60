//! Where the frequencies of a table lie among the 4096 slots of a rANS state.

use std::sync::OnceLock;

use tensorpress_tensor::kernels::rans::{Alias, BUCKETS, BySlot, Code, Layout};

use crate::model::{PROB_TOTAL, Table};

/// Slots of a bucket of the alias layout.
const BUCKET: u32 = PROB_TOTAL / BUCKETS as u32;

/// The slots of a table with at least two entries.
///
/// Entries are numbered in the table's order; a *symbol* below is such a number where the table is narrow, so that
/// escapes have one too, and the byte itself where it is wide. Wide tables lay their entries out one after another.
/// Narrow ones use Vose's alias method with integer thresholds: each of 16 buckets of 256 slots holds at most two
/// entries, so that a vector register of 16 lanes is a whole table.
#[derive(Debug)]
pub(crate) struct Slots {
    entries: Vec<Entry>,
    narrow: Option<Alias>,
    /// Entry of each byte.
    entry_of: [u8; 256],
    slot_of: OnceLock<Box<[u16; PROB_TOTAL as usize]>>,
    by_slot: OnceLock<Box<BySlot>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    byte: Option<u8>,
    freq: u32,
    start: u32,
}

impl Slots {
    pub(crate) fn new(table: &Table) -> Self {
        let mut start = 0;
        let mut entries = Vec::with_capacity(BUCKETS);
        for (byte, freq) in table.entries() {
            entries.push(Entry { byte, freq: u32::from(freq), start });
            start += u32::from(freq);
        }
        let mut entry_of = [0; 256];
        for (i, entry) in entries.iter().enumerate() {
            if let Some(byte) = entry.byte {
                entry_of[usize::from(byte)] = i as u8;
            }
        }
        let narrow = (entries.len() <= BUCKETS).then(|| lay_out(&entries));
        Self { entries, narrow, entry_of, slot_of: OnceLock::new(), by_slot: OnceLock::new() }
    }

    /// The symbol that stands for a byte: its entry's number where the table is narrow, else the byte.
    pub(crate) fn symbol_of(&self, byte: u8) -> u8 {
        match self.narrow {
            Some(_) => self.entry_of[usize::from(byte)],
            None => byte,
        }
    }

    /// The symbol of the likeliest byte.
    pub(crate) fn likeliest(&self) -> u8 {
        let bytes = self.entries.iter().filter_map(|e| Some((e.freq, e.byte?)));
        bytes.max().map_or(0, |(_, byte)| self.symbol_of(byte))
    }
}

impl Layout for Slots {
    fn alias(&self) -> Option<&Alias> {
        self.narrow.as_ref()
    }

    fn codes(&self) -> [Code; 256] {
        let mut codes = [Code::default(); 256];
        for (i, entry) in self.entries.iter().enumerate() {
            let symbol = match (&self.narrow, entry.byte) {
                (None, Some(byte)) => usize::from(byte),
                _ => i,
            };
            codes[symbol] = Code {
                reciprocal: u64::MAX / u64::from(entry.freq),
                freq: entry.freq,
                start: entry.start,
            };
        }
        codes
    }

    fn slot_of(&self) -> &[u16; PROB_TOTAL as usize] {
        self.slot_of.get_or_init(|| match &self.narrow {
            None => Box::new(std::array::from_fn(|slot| slot as u16)),
            Some(alias) => {
                let mut slots = Box::new([0; PROB_TOTAL as usize]);
                for slot in 0..PROB_TOTAL {
                    let (symbol, occurrence) = occurrence(alias, slot);
                    let start = self.entries[symbol].start;
                    slots[(start + occurrence) as usize] = slot as u16;
                }
                slots
            }
        })
    }

    fn by_slot(&self) -> &BySlot {
        self.by_slot.get_or_init(|| {
            let mut table = Box::new([0; PROB_TOTAL as usize]);
            for (i, entry) in self.entries.iter().enumerate() {
                let symbol = match (&self.narrow, entry.byte) {
                    (None, Some(byte)) => u32::from(byte),
                    _ => i as u32,
                };
                for r in 0..entry.freq {
                    let slot = self.slot_of()[(entry.start + r) as usize];
                    table[usize::from(slot)] = symbol | entry.freq << 8 | r << 20;
                }
            }
            table
        })
    }
}

/// Vose's method in integers: buckets with too little take from those with too much, in the order of a stack, so
/// that every machine finds the same layout.
fn lay_out(entries: &[Entry]) -> Alias {
    let freq = |bucket: usize| entries.get(bucket).map_or(0, |e| e.freq);
    let mut left: [u32; BUCKETS] = std::array::from_fn(freq);
    let mut threshold = [BUCKET; BUCKETS];
    let mut giver_of = [0usize; BUCKETS];
    let mut poor: Vec<usize> = (0..BUCKETS).filter(|i| left[*i] < BUCKET).collect();
    let mut rich: Vec<usize> = (0..BUCKETS).filter(|i| left[*i] >= BUCKET).collect();
    while let Some(bucket) = poor.pop() {
        let giver = *rich.last().expect("what one bucket lacks another has");
        threshold[bucket] = left[bucket];
        giver_of[bucket] = giver;
        left[giver] -= BUCKET - left[bucket];
        if left[giver] < BUCKET {
            rich.pop();
            poor.push(giver);
        }
    }
    // Occurrences in an entry's own bucket come first, those in others' after them, by bucket.
    let mut next: [u32; BUCKETS] = std::array::from_fn(|i| threshold[i].min(freq(i)));
    let mut alias = Alias {
        threshold,
        own: [0; BUCKETS],
        other: [0; BUCKETS],
        bytes: [0; BUCKETS],
        escape: entries.iter().position(|e| e.byte.is_none()).map(|i| i as u8),
    };
    for bucket in 0..BUCKETS {
        if let Some(entry) = entries.get(bucket) {
            alias.own[bucket] = entry.freq | (bucket as u32) << 13;
            alias.bytes[bucket] = entry.byte.unwrap_or(0);
        }
        if threshold[bucket] < BUCKET {
            let giver = giver_of[bucket];
            let shift = next[giver] as i32 - threshold[bucket] as i32;
            let freq = entries[giver].freq;
            alias.other[bucket] = freq | (giver as u32) << 13 | (shift as u32) << 17;
            next[giver] += BUCKET - threshold[bucket];
        }
    }
    alias
}

/// Symbol and number of the occurrence that a slot holds.
fn occurrence(alias: &Alias, slot: u32) -> (usize, u32) {
    let (bucket, position) = ((slot / BUCKET) as usize, slot % BUCKET);
    if position < alias.threshold[bucket] {
        return (bucket, position);
    }
    let other = alias.other[bucket];
    ((other >> 13 & 0xf) as usize, (position as i32 + (other as i32 >> 17)) as u32)
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::kernels::Isa;
    use tensorpress_tensor::kernels::rans::{Cursor, LANES, LOWEST, SLACK, decode, encode};

    use super::*;
    use crate::coder::blocks::count;

    /// Both layouts: every slot belongs to one occurrence of one entry, and the registers say the same as the list.
    #[test]
    fn layouts_are_permutations() {
        for (n, skew) in [(2, 1), (3, 9), (15, 3), (16, 2), (17, 2), (40, 5), (256, 1)] {
            let counts =
                std::array::from_fn(
                    |i| if i < n { 1 + (n - i).pow(skew.min(4)) as u32 } else { 0 },
                );
            for table in [Table::wide(&counts), Table::narrow(&counts)] {
                let slots = Slots::new(&table);
                let mut seen = slots.slot_of().to_vec();
                seen.sort_unstable();
                assert!(seen.iter().enumerate().all(|(i, s)| i == usize::from(*s)), "{n} {skew}");
                let Some(alias) = slots.alias() else { continue };
                for (slot, entry) in slots.by_slot().iter().enumerate() {
                    let (bucket, position) = (slot / 256, (slot % 256) as u32);
                    let own = position < alias.threshold[bucket];
                    let found = if own { alias.own[bucket] } else { alias.other[bucket] };
                    let occurrence = position as i32 + if own { 0 } else { found as i32 >> 17 };
                    assert_eq!(found & 0x1fff, entry >> 8 & 0xfff);
                    assert_eq!(found >> 13 & 0xf, entry & 0xff);
                    assert_eq!(occurrence, (entry >> 20) as i32);
                }
            }
        }
    }

    /// Symbols of a table with these frequencies, likelier ones more often.
    fn symbols(slots: &Slots, counts: &[u32; 256], len: usize) -> Vec<u8> {
        let total: u64 = counts.iter().map(|n| u64::from(*n)).sum();
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let draw = |x: &mut u64| {
            *x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut left = (*x >> 33) % total;
            let byte = counts.iter().position(|n| {
                let inside = left < u64::from(*n);
                left = left.saturating_sub(if inside { 0 } else { u64::from(*n) });
                inside
            });
            slots.symbol_of(byte.expect("below the total") as u8)
        };
        (0..len).map(|_| draw(&mut x)).collect()
    }

    fn check(counts: &[u32; 256], len: usize) {
        let slots = Slots::new(&Table::wide(counts));
        let symbols = symbols(&slots, counts, len);
        let mut expected = ([LOWEST; LANES], vec![0; 2 * len + 2 * LANES + SLACK]);
        let room = 2 * len + 2 * LANES;
        let at = encode(Isa::Generic, &slots, &mut expected.0, &symbols, &mut expected.1, room);
        for isa in Isa::available() {
            let (mut states, mut words) = ([LOWEST; LANES], vec![0; expected.1.len()]);
            let start = encode(isa, &slots, &mut states, &symbols, &mut words, room);
            assert_eq!(start, at, "{isa:?}");
            assert_eq!(states, expected.0, "{isa:?}");
            assert_eq!(words[at..room], expected.1[at..room], "{isa:?}");
            let mut cursor = Cursor { states, words: &words[at..], at: 0, len: room - at };
            let mut out = vec![0; len];
            assert!(decode(isa, &slots, &mut cursor, &mut &[][..], &mut out), "{isa:?}");
            let coded: Vec<u8> = out.iter().map(|byte| slots.symbol_of(*byte)).collect();
            assert_eq!(coded, symbols, "{isa:?}");
            assert!(cursor.states.iter().all(|x| *x == LOWEST) && cursor.at == cursor.len);
        }
        assert_eq!(count(&symbols).iter().sum::<u32>() as usize, len);
    }

    /// Every frequency: division by multiplication must be exact on every path.
    #[test]
    fn every_path_writes_the_same_words() {
        // An interpreter takes hours for all of them.
        let (some, many) = if cfg!(miri) { (1365, 1) } else { (1, 20) };
        for freq in (1..PROB_TOTAL).step_by(some) {
            let mut counts = [0; 256];
            (counts[3], counts[200]) = (freq, PROB_TOTAL - freq);
            check(&counts, if freq % 64 < 2 || freq > 4000 { many * LANES } else { 2 * LANES });
        }
        for entries in [3, 15, 16, 17, 40, 256] {
            let counts =
                std::array::from_fn(|i| if i < entries { 1 + (i as u32 * 37) % 101 } else { 0 });
            check(&counts, 2 * many * LANES);
        }
    }
}
