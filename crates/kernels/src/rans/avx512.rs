//! AVX-512.

use std::arch::x86_64::*;

use super::{Alias, Cursor, LANES, Layout, PROB_TOTAL};
use crate::simd::avx512;

/// Takes in 16 bits where a state is below 2^16: `$words.add($at)` is the next word.
macro_rules! refill {
    ($x:expr, $words:expr, $at:expr) => {{
        let low = _mm512_cmplt_epu32_mask($x, _mm512_set1_epi32(1 << 16));
        // SAFETY: the caller checked that a step's words and the slack behind them can be read.
        let next = unsafe { _mm256_loadu_si256($words.add($at).cast()) };
        let next = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(next));
        $at += 2 * low.count_ones() as usize;
        _mm512_or_si512(_mm512_mask_slli_epi32::<16>($x, low, $x), next)
    }};
}

/// 64 symbols of four groups of states from a table in three registers, in order. The groups go through each stage
/// together: a scheduler sees as far as its window is wide, and the steps of one group all wait for each other.
macro_rules! narrow_64 {
    ($x:expr, $first:expr, $t:expr, $words:expr, $at:expr) => {{
        let x: [__m512i; 4] = [$x[$first], $x[$first + 1], $x[$first + 2], $x[$first + 3]];
        // The bucket in the lowest bits, where permutations look, and the position in the highest, where comparing does.
        let (mut turned, mut threshold, mut own) = (x, x, x);
        for g in 0..4 {
            turned[g] = _mm512_ror_epi32::<8>(x[g]);
            threshold[g] = _mm512_permutexvar_epi32(turned[g], $t.0);
            own[g] = _mm512_permutexvar_epi32(turned[g], $t.1);
        }
        let mut entry = own;
        let mut sum = x;
        for g in 0..4 {
            let other = _mm512_cmpge_epu32_mask(turned[g], threshold[g]);
            entry[g] = _mm512_mask_permutexvar_epi32(own[g], other, turned[g], $t.2);
        }
        for g in 0..4 {
            let rest = _mm512_and_si512(entry[g], _mm512_set1_epi32(0x1fff));
            let product = _mm512_mullo_epi32(rest, _mm512_srli_epi32::<12>(x[g]));
            let difference = _mm512_sub_epi32(x[g], product);
            sum[g] = _mm512_add_epi32(difference, _mm512_srai_epi32::<17>(entry[g]));
        }
        let m = |byte: i32| _mm512_set1_epi32(0xf << (8 * byte));
        let acc = _mm512_and_si512(_mm512_srli_epi32::<13>(entry[0]), m(0));
        let acc = _mm512_ternarylogic_epi32::<0xf8>(acc, _mm512_srli_epi32::<5>(entry[1]), m(1));
        let acc = _mm512_ternarylogic_epi32::<0xf8>(acc, _mm512_slli_epi32::<3>(entry[2]), m(2));
        let acc = _mm512_ternarylogic_epi32::<0xf8>(acc, _mm512_slli_epi32::<11>(entry[3]), m(3));
        for g in 0..4 {
            $x[$first + g] = refill!(sum[g], $words, $at);
        }
        acc
    }};
}

avx512! {
fn load_states(states: &[u32; LANES]) -> [__m512i; 8] {
    // SAFETY: eight times 16 lanes are the 128 states.
    std::array::from_fn(|g| unsafe { _mm512_loadu_si512(states.as_ptr().add(16 * g).cast()) })
}
}

avx512! {
fn store_states(x: &[__m512i; 8], states: &mut [u32; LANES]) {
    for (g, x) in x.iter().enumerate() {
        // SAFETY: as in `load_states`.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().add(16 * g).cast(), *x) };
    }
}
}

avx512! {
fn load_table(alias: &Alias) -> (__m512i, __m512i, __m512i) {
    // freq * (x >> 12) + occurrence = x - (4096 - freq) * (x >> 12) + (occurrence - slot), and the last term is the
    // same all over one half of a bucket: nothing need be masked out of x.
    let entry = |found: u32, bucket: usize, shift: i32| {
        let rest = PROB_TOTAL - (found & 0x1fff);
        rest | (found & 0xf << 13) | ((shift - 256 * bucket as i32) as u32) << 17
    };
    let own: [u32; 16] = std::array::from_fn(|b| entry(alias.own[b], b, 0));
    let shift = |b: usize| alias.other[b] as i32 >> 17;
    let whole = |b: usize| alias.threshold[b] == 256;
    let other: [u32; 16] = std::array::from_fn(|b| match whole(b) {
        true => own[b],
        false => entry(alias.other[b], b, shift(b)),
    });
    let threshold: [u32; 16] =
        std::array::from_fn(|b| if whole(b) { u32::MAX } else { alias.threshold[b] << 24 });
    // SAFETY: each array is 64 bytes long.
    let load = |lanes: &[u32; 16]| unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    (load(&threshold), load(&own), load(&other))
}
}

/// Bytes of 64 symbols of a narrow table; ends the function with false where escapes end early.
macro_rules! to_bytes {
    ($symbols:expr, $bytes:expr, $escape:expr, $escapes:expr) => {{
        let mut bytes = _mm512_shuffle_epi8($bytes, $symbols);
        let escaped = _mm512_cmpeq_epi8_mask($symbols, $escape);
        if escaped != 0 {
            let count = escaped.count_ones() as usize;
            let Some((now, rest)) = $escapes.split_at_checked(count) else { return false };
            *$escapes = rest;
            let mut padded = [0u8; 64];
            padded[..count].copy_from_slice(now);
            // SAFETY: 64 bytes.
            let now = unsafe { _mm512_loadu_si512(padded.as_ptr().cast()) };
            bytes = _mm512_mask_expand_epi8(bytes, escaped, now);
        }
        bytes
    }};
}

avx512! {
fn load_bytes(alias: &Alias) -> (__m512i, __m512i) {
    // SAFETY: 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(alias.bytes.as_ptr().cast()) };
    // No symbol is 255: without an escape nothing matches.
    let escape = _mm512_set1_epi8(alias.escape.map_or(-1, |e| e as i8));
    (_mm512_broadcast_i32x4(bytes), escape)
}
}

avx512! {
pub(super) fn decode_narrow(
    alias: &Alias,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    out: &mut [u8],
) -> bool {
    let table = load_table(alias);
    let (bytes, escape) = load_bytes(alias);
    let mut x = load_states(&cursor.states);
    let words = cursor.words.as_ptr();
    let mut at = cursor.at;
    for step in out.as_chunks_mut::<LANES>().0 {
        if at > cursor.len {
            return false;
        }
        let halves = [narrow_64!(x, 0, table, words, at), narrow_64!(x, 4, table, words, at)];
        for (half, symbols) in halves.into_iter().enumerate() {
            let bytes = to_bytes!(symbols, bytes, escape, escapes);
            // SAFETY: half of a step is 64 bytes.
            unsafe { _mm512_storeu_si512(step.as_mut_ptr().add(64 * half).cast(), bytes) };
        }
    }
    store_states(&x, &mut cursor.states);
    cursor.at = at;
    at <= cursor.len
}
}

avx512! {
pub(super) fn decode_bf16(
    alias: &Alias,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    raw: &[u8],
    out: &mut [u8],
) -> bool {
    let table = load_table(alias);
    let (bytes, escape) = load_bytes(alias);
    // Unpacking works within 128-bit lanes: the first halves of the lanes go to the first half of the values.
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut x = load_states(&cursor.states);
    let words = cursor.words.as_ptr();
    let mut at = cursor.at;
    for (raw, out) in raw.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<{ 2 * LANES }>().0)
    {
        if at > cursor.len {
            return false;
        }
        let halves = [narrow_64!(x, 0, table, words, at), narrow_64!(x, 4, table, words, at)];
        for (half, symbols) in halves.into_iter().enumerate() {
            let exponents = to_bytes!(symbols, bytes, escape, escapes);
            // SAFETY: half of a step of each.
            unsafe {
                let raw = _mm512_loadu_si512(raw.as_ptr().add(64 * half).cast());
                let raw = _mm512_permutexvar_epi64(order, raw);
                let exponents = _mm512_permutexvar_epi64(order, exponents);
                let low = _mm512_unpacklo_epi8(raw, exponents);
                let high = _mm512_unpackhi_epi8(raw, exponents);
                let out = out.as_mut_ptr().add(128 * half);
                _mm512_storeu_si512(out.cast(), _mm512_shrdi_epi16::<1>(low, low));
                _mm512_storeu_si512(out.add(64).cast(), _mm512_shrdi_epi16::<1>(high, high));
            }
        }
    }
    store_states(&x, &mut cursor.states);
    cursor.at = at;
    at <= cursor.len
}
}

avx512! {
pub(super) fn decode_by_slot(
    by_slot: &[u32; PROB_TOTAL as usize],
    cursor: &mut Cursor<'_>,
    out: &mut [u8],
) -> bool {
    let mut x = load_states(&cursor.states);
    let words = cursor.words.as_ptr();
    let mut at = cursor.at;
    for step in out.as_chunks_mut::<LANES>().0 {
        if at > cursor.len {
            return false;
        }
        for half in 0..2 {
            let mut acc = _mm512_setzero_si512();
            for g in 0..4 {
                let x = &mut x[4 * half + g];
                let slot = _mm512_and_si512(*x, _mm512_set1_epi32(PROB_TOTAL as i32 - 1));
                // SAFETY: slots are below 4096, the length of the table.
                let entry = unsafe { _mm512_i32gather_epi32::<4>(slot, by_slot.as_ptr().cast()) };
                let symbol = _mm512_and_si512(entry, _mm512_set1_epi32(0xff));
                let byte = _mm512_sllv_epi32(symbol, _mm512_set1_epi32(8 * g as i32));
                acc = _mm512_or_si512(acc, byte);
                let freq =
                    _mm512_and_si512(_mm512_srli_epi32::<8>(entry), _mm512_set1_epi32(0xfff));
                let product = _mm512_mullo_epi32(freq, _mm512_srli_epi32::<12>(*x));
                let sum = _mm512_add_epi32(product, _mm512_srli_epi32::<20>(entry));
                *x = refill!(sum, words, at);
            }
            // SAFETY: half of a step is 64 bytes.
            unsafe { _mm512_storeu_si512(step.as_mut_ptr().add(64 * half).cast(), acc) };
        }
    }
    store_states(&x, &mut cursor.states);
    cursor.at = at;
    at <= cursor.len
}
}

avx512! {
/// `out[i] = map[bytes[i]]`, and the bytes that map to `escape` one after another behind what `escapes` holds; whole
/// vectors only: returns how many bytes were done.
pub(super) fn map_bytes(
    map: &[u8; 256],
    escape: Option<u8>,
    bytes: &[u8],
    out: &mut [u8],
    escapes: &mut Vec<u8>,
) -> usize {
    // SAFETY: four times 64 are the 256 bytes of the map.
    let map: [__m512i; 4] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_si512(map.as_ptr().add(64 * i).cast()) });
    // Symbols are below 16.
    let escape = _mm512_set1_epi8(escape.map_or(-1, |e| e as i8));
    let pairs = bytes.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<64>().0);
    let done = 64 * pairs.len();
    for (bytes, out) in pairs {
        // SAFETY: 64 bytes.
        let from = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        let low = _mm512_permutex2var_epi8(map[0], from, map[1]);
        let high = _mm512_permutex2var_epi8(map[2], from, map[3]);
        let to = _mm512_mask_blend_epi8(_mm512_movepi8_mask(from), low, high);
        let mut escaped = _mm512_cmpeq_epi8_mask(to, escape);
        while escaped != 0 {
            escapes.push(bytes[escaped.trailing_zeros() as usize]);
            escaped &= escaped - 1;
        }
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), to) };
    }
    done
}
}

/// What encoding needs of 16 symbols: their frequencies, starts, and how to divide by a frequency f: multiply by
/// 2^(31 + b) / f, rounded up, with b the bits of f - 1, and shift.
trait Symbols {
    fn look_up(&self, symbols: __m512i) -> (__m512i, __m512i);
}

/// By symbol: `frequency | start << 12 | b << 24` (a frequency is below 4096), and the multiplier.
struct ByGather {
    shares: [u32; 256],
    multipliers: [u32; 256],
}

struct InRegisters {
    shares: __m512i,
    multipliers: __m512i,
}

impl Symbols for ByGather {
    #[inline(always)]
    fn look_up(&self, symbols: __m512i) -> (__m512i, __m512i) {
        // SAFETY: symbols are below 256, the length of both tables; the caller has AVX-512.
        unsafe {
            (
                _mm512_i32gather_epi32::<4>(symbols, self.shares.as_ptr().cast()),
                _mm512_i32gather_epi32::<4>(symbols, self.multipliers.as_ptr().cast()),
            )
        }
    }
}

impl Symbols for InRegisters {
    #[inline(always)]
    fn look_up(&self, symbols: __m512i) -> (__m512i, __m512i) {
        // SAFETY: the caller has AVX-512.
        unsafe {
            (
                _mm512_permutexvar_epi32(symbols, self.shares),
                _mm512_permutexvar_epi32(symbols, self.multipliers),
            )
        }
    }
}

avx512! {
pub(super) fn encode(
    layout: &impl Layout,
    states: &mut [u32; LANES],
    symbols: &[u8],
    words: &mut [u8],
    at: usize,
) -> usize {
    let mut table = ByGather { shares: [1; 256], multipliers: [0; 256] };
    for (symbol, code) in layout.codes().into_iter().enumerate().filter(|(_, c)| c.freq > 0) {
        let bits = u32::BITS - (code.freq - 1).leading_zeros();
        table.shares[symbol] = code.freq | code.start << 12 | bits << 24;
        table.multipliers[symbol] = (1u64 << (31 + bits)).div_ceil(u64::from(code.freq)) as u32;
    }
    // A gather of 32 bits reads two layout.
    let mut slot_of = [0u16; PROB_TOTAL as usize + 1];
    slot_of[..PROB_TOTAL as usize].copy_from_slice(layout.slot_of());
    if layout.alias().is_some() {
        // SAFETY: both tables are longer than 64 bytes.
        let load = |table: &[u32; 256]| unsafe { _mm512_loadu_si512(table.as_ptr().cast()) };
        let table =
            InRegisters { shares: load(&table.shares), multipliers: load(&table.multipliers) };
        encode_with(&table, &slot_of, states, symbols, words, at)
    } else {
        encode_with(&table, &slot_of, states, symbols, words, at)
    }
}
}

avx512! {
fn encode_with<S: Symbols>(
    table: &S,
    slot_of: &[u16; PROB_TOTAL as usize + 1],
    states: &mut [u32; LANES],
    symbols: &[u8],
    words: &mut [u8],
    mut at: usize,
) -> usize {
    let mut x = load_states(states);
    let low_bits = _mm512_set1_epi32(PROB_TOTAL as i32 - 1);
    for step in symbols.as_chunks::<LANES>().0.iter().rev() {
        for g in (0..8).rev() {
            // SAFETY: half of a step is 64 bytes.
            let half = unsafe { _mm512_loadu_si512(step.as_ptr().add(64 * (g / 4)).cast()) };
            let symbol = _mm512_srlv_epi32(half, _mm512_set1_epi32(8 * (g % 4) as i32));
            let symbol = _mm512_and_si512(symbol, _mm512_set1_epi32(0xff));
            let (share, multiplier) = table.look_up(symbol);
            let freq = _mm512_and_si512(share, low_bits);
            // States that would overflow give up 16 bits first.
            let full = _mm512_cmpge_epu32_mask(x[g], _mm512_slli_epi32::<20>(freq));
            let count = full.count_ones();
            let out = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x[g]));
            at -= 2 * count as usize;
            // SAFETY: there are `count` words of room behind `at`: the caller checked for a word a symbol.
            unsafe {
                let words = words.as_mut_ptr().add(at).cast();
                _mm256_mask_storeu_epi16(words, ((1u32 << count) - 1) as u16, out);
            }
            let state = _mm512_mask_srli_epi32::<16>(x[g], full, x[g]);
            // Even and odd lanes multiply apart, to 64 bits.
            let bits = _mm512_add_epi32(_mm512_srli_epi32::<24>(share), _mm512_set1_epi32(31));
            let even = _mm512_mul_epu32(state, multiplier);
            let odd = _mm512_mul_epu32(
                _mm512_srli_epi64::<32>(state),
                _mm512_srli_epi64::<32>(multiplier),
            );
            let even_bits = _mm512_and_si512(bits, _mm512_set1_epi64(0xff));
            let even = _mm512_srlv_epi64(even, even_bits);
            let odd = _mm512_srlv_epi64(odd, _mm512_srli_epi64::<32>(bits));
            let quotient = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64::<32>(odd));
            // The multiplier was rounded up: the quotient may be too large by one where f exceeds 2^11.5.
            let rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, freq));
            let over = _mm512_cmplt_epi32_mask(rest, _mm512_setzero_si512());
            let quotient = _mm512_mask_sub_epi32(quotient, over, quotient, _mm512_set1_epi32(1));
            let rest = _mm512_mask_add_epi32(rest, over, rest, freq);
            let start = _mm512_and_si512(_mm512_srli_epi32::<12>(share), low_bits);
            let at_slot = _mm512_and_si512(_mm512_add_epi32(rest, start), low_bits);
            // SAFETY: below 4096; the table has one entry more, so that two can be read.
            let slot = unsafe { _mm512_i32gather_epi32::<2>(at_slot, slot_of.as_ptr().cast()) };
            let slot = _mm512_and_si512(slot, _mm512_set1_epi32(0xffff));
            x[g] = _mm512_or_si512(_mm512_slli_epi32::<12>(quotient), slot);
        }
    }
    store_states(&x, states);
    at
}
}
