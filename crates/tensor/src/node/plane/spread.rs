//! A static model of codes whose spread is the product of a row's and a column's: what codes on equal steps look like
//! once columns have steps of their own.
//!
//! Every row and every column has a class; their sum is the class of a code, a third of an octave of spread each.
//! Neighbouring classes share a table of frequencies where that is cheaper. Codes that are large are a token of their
//! size and bits. Of codes along a [`Trellis`] the parity is known: even and odd ones have tables apart.

use super::Trellis;

/// Classes of a code.
pub const CLASSES: usize = 64;

/// Classes of a third of an octave below a spread of 1.
const BELOW: i32 = 6;

/// Codes that are tokens themselves, zigzag.
const DIRECT: u32 = 64;

/// Tokens there are: 64 codes, then four an octave.
pub const TOKENS: usize = DIRECT as usize + 4 * 26;

/// What a code is to a model: a token, and bits that are stored as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its number, below [`TOKENS`].
    pub number: u8,
    /// Bits beside it.
    pub bits: u32,
    /// Their value.
    pub raw: u32,
}

impl Token {
    /// The token of a code.
    #[must_use]
    #[inline]
    pub fn of(code: i32) -> Self {
        let zigzag = ((code << 1) ^ (code >> 31)) as u32;
        if zigzag < DIRECT {
            return Self { number: zigzag as u8, bits: 0, raw: 0 };
        }
        let bits = zigzag.ilog2() - 2;
        let number = DIRECT + 4 * (bits + 2 - DIRECT.ilog2()) + (zigzag >> bits & 3);
        Self { number: number as u8, bits, raw: zigzag & ((1 << bits) - 1) }
    }

    /// Bits beside a token of this number.
    #[must_use]
    #[inline]
    pub fn bits_beside(number: u8) -> u32 {
        match u32::from(number).checked_sub(DIRECT) {
            None => 0,
            Some(above) => above / 4 + DIRECT.ilog2() - 2,
        }
    }

    /// The code of a token and the bits beside it.
    #[must_use]
    #[inline]
    pub fn code(number: u8, raw: u32) -> i32 {
        let zigzag = match u32::from(number).checked_sub(DIRECT) {
            None => u32::from(number),
            Some(above) => (4 + above % 4) << Self::bits_beside(number) | raw,
        };
        (zigzag >> 1) as i32 ^ -((zigzag & 1) as i32)
    }
}

/// Classes of rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    /// One a row.
    pub rows: Vec<u8>,
    /// One a column.
    pub columns: Vec<u8>,
    /// What is added to their sum.
    pub base: i32,
}

/// Rounds of fitting rows to columns and columns to rows.
const ROUNDS: usize = 3;

impl Spread {
    /// Fits classes to codes, row-major, `columns` each: by turns, each row's mean size over the columns' spreads and
    /// the other way round.
    ///
    /// # Panics
    /// Unless rows are whole.
    #[must_use]
    pub fn fit(codes: &[i32], columns: usize) -> Self {
        let rows = codes.len() / columns.max(1);
        assert_eq!(rows * columns, codes.len(), "whole rows");
        let (mut a, mut b) = (vec![1.0f64; rows], vec![1.0f32; columns]);
        for _ in 0..ROUNDS {
            let inverse: Vec<f32> = b.iter().map(|b| 1.0 / b).collect();
            let mut sums = vec![0.0f64; columns];
            for (row, a) in codes.chunks_exact(columns.max(1)).zip(&mut a) {
                *a = dot(row, &inverse) / columns as f64;
                let inverse = (1.0 / *a) as f32;
                for (sum, code) in sums.iter_mut().zip(row) {
                    *sum += f64::from(size(*code) * inverse);
                }
            }
            b.iter_mut().zip(sums).for_each(|(b, sum)| *b = (sum / rows as f64) as f32);
        }
        let thirds = |spread: f64| (3.0 * spread.log2()).round().clamp(-120.0, 120.0) as i32;
        let a: Vec<i32> = a.into_iter().map(thirds).collect();
        let b: Vec<i32> = b.into_iter().map(|b| thirds(f64::from(b))).collect();
        let least = |of: &[i32]| of.iter().copied().min().unwrap_or(0);
        let (a0, b0) = (least(&a), least(&b));
        let classes = |of: Vec<i32>, first| of.into_iter().map(|c| (c - first) as u8).collect();
        Self { rows: classes(a, a0), columns: classes(b, b0), base: a0 + b0 + BELOW }
    }

    /// The class of a code.
    ///
    /// # Panics
    /// If out of bounds.
    #[must_use]
    #[inline]
    pub fn class(&self, row: usize, column: usize) -> usize {
        self.class_of(self.rows[row], self.columns[column])
    }

    /// The class where a row and a column of these classes meet.
    #[must_use]
    #[inline]
    pub fn class_of(&self, row: u8, column: u8) -> usize {
        (i32::from(row) + i32::from(column) + self.base).clamp(0, CLASSES as i32 - 1) as usize
    }
}

/// A code's size: never 0, so that ratios are.
#[inline]
fn size(code: i32) -> f32 {
    code.unsigned_abs() as f32 + 0.3
}

/// In eight sums, so that they need not wait for each other.
fn dot(codes: &[i32], inverse: &[f32]) -> f64 {
    let mut sums = [0.0f32; 8];
    let (codes, rest) = codes.as_chunks::<8>();
    let (factors, rest_factors) = inverse.as_chunks::<8>();
    let mut total = 0.0;
    for (codes, factors) in codes.chunks(64).zip(factors.chunks(64)) {
        for (codes, factors) in codes.iter().zip(factors) {
            for i in 0..8 {
                sums[i] += size(codes[i]) * factors[i];
            }
        }
        total += sums.iter().map(|s| f64::from(*s)).sum::<f64>();
        sums = [0.0; 8];
    }
    let rest = rest.iter().zip(rest_factors).map(|(code, f)| f64::from(size(*code) * f));
    total + rest.sum::<f64>()
}

/// How often each token comes in a table.
pub type Counts = [u32; TOKENS];

/// The model of a matrix's codes, and what they take by it.
#[derive(Debug, Clone)]
pub struct Model {
    /// Classes of rows and columns.
    pub spread: Spread,
    /// The table of each class; not falling.
    pub table_of: [u8; CLASSES],
    /// Tokens by table; of codes along a trellis, even codes and odd ones by turns.
    pub counts: Vec<Counts>,
    /// Bits of the codes, with what the tables and the classes will take, nearly.
    pub bits: f64,
}

/// Bits that one more frequency takes in a table, about.
const FREQUENCY: f64 = 6.0;

impl Model {
    /// The model of codes, row-major, `columns` each.
    ///
    /// # Panics
    /// Unless rows are whole.
    #[must_use]
    pub fn fit(codes: &[i32], columns: usize, trellis: bool) -> Self {
        let spread = Spread::fit(codes, columns);
        let kinds = 1 + usize::from(trellis);
        let mut all = vec![[0u32; TOKENS]; CLASSES * kinds];
        let mut raw = 0u64;
        for (row, codes) in codes.chunks_exact(columns.max(1)).enumerate() {
            let row = spread.rows[row];
            for (code, column) in codes.iter().zip(&spread.columns) {
                let token = Token::of(*code);
                let odd = if trellis { (*code & 1) as usize } else { 0 };
                all[spread.class_of(row, *column) * kinds + odd][usize::from(token.number)] += 1;
                raw += u64::from(token.bits);
            }
        }
        let (table_of, tables, bits) = share(&all, kinds);
        let mut counts = vec![[0u32; TOKENS]; tables * kinds];
        for (class, table) in table_of.iter().enumerate() {
            for kind in 0..kinds {
                let sum = &mut counts[usize::from(*table) * kinds + kind];
                sum.iter_mut().zip(&all[class * kinds + kind]).for_each(|(sum, n)| *sum += n);
            }
        }
        let side = [&spread.rows, &spread.columns].map(|classes| {
            let mut counts = [0u32; 256];
            classes.iter().for_each(|class| counts[usize::from(*class)] += 1);
            entropy(&counts) + 8.0 * FREQUENCY
        });
        let bits = bits + raw as f64 + side.iter().sum::<f64>();
        Self { spread, table_of, counts, bits }
    }

    /// Whether there are tables for even and odd codes.
    #[must_use]
    pub fn has_parity(&self) -> bool {
        let tables = self.table_of.iter().max().map_or(0, |last| usize::from(*last) + 1);
        self.counts.len() > tables
    }
}

/// Divides the classes into runs that share a table, so that codes and tables take fewest bits.
fn share(all: &[Counts], kinds: usize) -> ([u8; CLASSES], usize, f64) {
    // Best cost of the classes before each, and where its last run begins.
    let mut best = [(0.0f64, 0usize); CLASSES + 1];
    let used = |class: usize| all[class * kinds..][..kinds].iter().flatten().any(|n| *n > 0);
    let last = (0..CLASSES).rfind(|class| used(*class)).map_or(0, |last| last + 1);
    let first = (0..last).find(|class| used(*class)).unwrap_or(0);
    for end in first + 1..=last {
        let mut sums = vec![[0u32; TOKENS]; kinds];
        best[end].0 = f64::INFINITY;
        for begin in (first..end).rev() {
            let classes = &all[begin * kinds..][..kinds];
            let pairs = sums.iter_mut().flatten().zip(classes.iter().flatten());
            pairs.for_each(|(sum, n)| *sum += n);
            let cost = best[begin].0 + sums.iter().map(table_cost).sum::<f64>();
            if cost < best[end].0 {
                best[end] = (cost, begin);
            }
        }
    }
    let mut starts = Vec::new();
    let mut end = last;
    while end > first {
        end = best[end].1;
        starts.push(end);
    }
    starts.reverse();
    let table = |class: usize| starts.iter().rposition(|start| *start <= class).unwrap_or(0) as u8;
    (std::array::from_fn(table), starts.len().max(1), best[last].0)
}

/// Bits of tokens and of their table, whose frequencies are at least 1/4096.
fn table_cost(counts: &Counts) -> f64 {
    let total: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    let used = || counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n));
    let frequency = |n: f64| n.max(total / 4096.0);
    let whole: f64 = used().map(frequency).sum();
    used().map(|n| n * (whole / frequency(n)).log2() + FREQUENCY).sum()
}

/// Bits of symbols with these counts.
fn entropy(counts: &[u32]) -> f64 {
    let total: f64 = counts.iter().map(|n| f64::from(*n)).sum();
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) * (total / f64::from(*n)).log2()).sum()
}

/// The trellis that all codes follow, row-major in rows of `columns`, if there is one. Few codes could follow one by chance:
/// it is asked for at least 128.
///
/// # Panics
/// Unless rows are whole.
#[must_use]
pub fn trellis_of(codes: &[i32], columns: usize) -> Option<Trellis> {
    if codes.len() < 128 {
        return None;
    }
    Trellis::STATES.into_iter().filter_map(Trellis::new).find(|trellis| {
        let mut states = vec![0u8; columns];
        codes.chunks_exact(columns).enumerate().all(|(row, codes)| {
            if row % Trellis::ROWS == 0 {
                states.fill(0);
            }
            states.iter_mut().zip(codes).all(|(state, code)| {
                let allowed = Trellis::allows(*state, *code);
                *state = trellis.next(*state, *code);
                allowed
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::SplitMix;

    #[test]
    fn tokens_are_a_code_again() {
        for code in (-300..300).chain([131_071, -65_536, 4096, -4095, 1 << 30, i32::MAX, i32::MIN])
        {
            let token = Token::of(code);
            assert!(usize::from(token.number) < TOKENS, "{code}");
            assert_eq!(Token::bits_beside(token.number), token.bits, "{code}");
            assert_eq!(Token::code(token.number, token.raw), code);
        }
    }

    /// Codes of a product of spreads take what their own spreads say, not what the mixture would.
    #[test]
    fn products_of_spreads_are_found() {
        let (rows, columns) = (256, 192);
        let mut random = SplitMix::new(5);
        let mut normal = || (0..12).map(|_| random.next_f64()).sum::<f64>() - 6.0;
        let spread = |r: usize, c: usize| f64::exp2((r % 4) as f64 + (c % 5) as f64 - 2.0);
        let codes: Vec<i32> = (0..rows * columns)
            .map(|i| (normal() * spread(i / columns, i % columns)).round() as i32)
            .collect();
        let model = Model::fit(&codes, columns, false);
        let mut own = 0.0;
        for (r, c) in (0..4).flat_map(|r| (0..5).map(move |c| (r, c))) {
            let mut counts = std::collections::BTreeMap::new();
            let cell = (0..codes.len()).filter(|i| i / columns % 4 == r && i % columns % 5 == c);
            cell.for_each(|i| *counts.entry(codes[i]).or_insert(0u32) += 1);
            own += entropy(&counts.into_values().collect::<Vec<_>>());
        }
        let mut mixed = std::collections::BTreeMap::new();
        codes.iter().for_each(|code| *mixed.entry(*code).or_insert(0u32) += 1);
        let mixed = entropy(&mixed.into_values().collect::<Vec<_>>());
        // The tables of cells were fitted to a few thousand codes each: too low by a bit or so a frequency.
        assert!(model.bits < own * 1.03 && own < model.bits && own < 0.9 * mixed, "{model:?}");
        assert!(model.table_of.is_sorted() && !model.has_parity());
        assert_eq!(model.counts.iter().flatten().sum::<u32>() as usize, codes.len());
    }

    #[test]
    fn trellises_are_found_and_nothing_else() {
        let (rows, columns) = (150, 9);
        for states in Trellis::STATES {
            let trellis = Trellis::new(states).unwrap();
            let mut random = SplitMix::new(states as u64);
            let mut at = vec![0u8; columns];
            let mut codes = Vec::new();
            for row in 0..rows {
                if row % Trellis::ROWS == 0 {
                    at.fill(0);
                }
                for state in &mut at {
                    let code = 2 * (random.next_f64() * 9.0 - 4.5) as i32 + i32::from(*state & 1);
                    *state = trellis.next(*state, code);
                    codes.push(code);
                }
            }
            assert_eq!(trellis_of(&codes, columns), Some(trellis));
            codes[500] += 1;
            assert_eq!(trellis_of(&codes, columns), None);
        }
        assert_eq!(trellis_of(&[0; 64], 8), None);
    }

    #[test]
    fn degenerate_matrices_have_models() {
        for (codes, columns) in
            [(vec![], 0), (vec![], 5), (vec![7], 1), (vec![0; 300], 3), (vec![131_071; 4], 2)]
        {
            let model = Model::fit(&codes, columns, false);
            assert!(model.bits.is_finite() && !model.counts.is_empty());
        }
    }
}
