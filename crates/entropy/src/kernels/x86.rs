//! AVX-512 (with VBMI2: Ice Lake, Zen 4 and later) and AVX2.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use tensorpress_tensor::kernels::Isa;

use super::{Cursor, LANES};
use crate::coder::slots::Alias;
use crate::model::PROB_TOTAL;

/// Whether the AVX-512 kernels run: the set, and VBMI2 beside it.
pub(super) fn available(isa: Isa) -> bool {
    static VBMI2: OnceLock<bool> = OnceLock::new();
    isa == Isa::Avx512
        && Isa::Avx512.is_available()
        && *VBMI2.get_or_init(|| is_x86_feature_detected!("avx512vbmi2"))
}

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

/// One symbol of 16 states from a table in three registers.
macro_rules! narrow {
    ($x:expr, $t:expr, $mask:expr, $acc:expr, $shift:ident, $by:literal, $words:expr, $at:expr) => {{
        let bucket = _mm512_srli_epi32::<8>($x);
        let position = _mm512_and_si512($x, _mm512_set1_epi32(0xff));
        let threshold = _mm512_permutexvar_epi32(bucket, $t.0);
        let other = _mm512_cmpge_epu32_mask(position, threshold);
        let entry = _mm512_permutexvar_epi32(bucket, $t.1);
        let entry = _mm512_mask_permutexvar_epi32(entry, other, bucket, $t.2);
        let freq = _mm512_and_si512(entry, _mm512_set1_epi32(0x1fff));
        let occurrence = _mm512_add_epi32(position, _mm512_srai_epi32::<17>(entry));
        let product = _mm512_mullo_epi32(freq, _mm512_srli_epi32::<12>($x));
        $acc = _mm512_ternarylogic_epi32::<0xf8>($acc, $shift::<$by>(entry), $mask);
        $x = refill!(_mm512_add_epi32(product, occurrence), $words, $at);
    }};
}

/// 64 symbols of four groups of states, in order.
macro_rules! narrow_64 {
    ($x:expr, $first:expr, $t:expr, $words:expr, $at:expr) => {{
        let mut acc = _mm512_setzero_si512();
        let m = |byte: i32| _mm512_set1_epi32(0xf << (8 * byte));
        narrow!($x[$first], $t, m(0), acc, _mm512_srli_epi32, 13, $words, $at);
        narrow!($x[$first + 1], $t, m(1), acc, _mm512_srli_epi32, 5, $words, $at);
        narrow!($x[$first + 2], $t, m(2), acc, _mm512_slli_epi32, 3, $words, $at);
        narrow!($x[$first + 3], $t, m(3), acc, _mm512_slli_epi32, 11, $words, $at);
        acc
    }};
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn load_states(states: &[u32; LANES]) -> [__m512i; 8] {
    // SAFETY: eight times 16 lanes are the 128 states.
    std::array::from_fn(|g| unsafe { _mm512_loadu_si512(states.as_ptr().add(16 * g).cast()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn store_states(x: &[__m512i; 8], states: &mut [u32; LANES]) {
    for (g, x) in x.iter().enumerate() {
        // SAFETY: as in `load_states`.
        unsafe { _mm512_storeu_si512(states.as_mut_ptr().add(16 * g).cast(), *x) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn load_table(alias: &Alias) -> (__m512i, __m512i, __m512i) {
    // SAFETY: each array is 64 bytes long.
    let load = |lanes: &[u32; 16]| unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    (load(&alias.threshold), load(&alias.own), load(&alias.other))
}

pub(super) fn decode_narrow(alias: &Alias, cursor: &mut Cursor<'_>, out: &mut [u8]) -> bool {
    // SAFETY: `available` was asked.
    unsafe { decode_narrow_avx512(alias, cursor, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn decode_narrow_avx512(alias: &Alias, cursor: &mut Cursor<'_>, out: &mut [u8]) -> bool {
    let table = load_table(alias);
    let mut x = load_states(&cursor.states);
    let words = cursor.words.as_ptr();
    let mut at = cursor.at;
    for step in out.as_chunks_mut::<LANES>().0 {
        if at > cursor.len {
            return false;
        }
        let first = narrow_64!(x, 0, table, words, at);
        let second = narrow_64!(x, 4, table, words, at);
        // SAFETY: a step is 128 bytes.
        unsafe {
            _mm512_storeu_si512(step.as_mut_ptr().cast(), first);
            _mm512_storeu_si512(step.as_mut_ptr().add(64).cast(), second);
        }
    }
    store_states(&x, &mut cursor.states);
    cursor.at = at;
    at <= cursor.len
}

pub(super) fn decode_bf16(
    alias: &Alias,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    raw: &[u8],
    out: &mut [u8],
) -> bool {
    // SAFETY: `available` was asked.
    unsafe { decode_bf16_avx512(alias, cursor, escapes, raw, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn decode_bf16_avx512(
    alias: &Alias,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    raw: &[u8],
    out: &mut [u8],
) -> bool {
    let table = load_table(alias);
    // SAFETY: 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(alias.bytes.as_ptr().cast()) };
    let bytes = _mm512_broadcast_i32x4(bytes);
    // No symbol is 255: without an escape nothing matches.
    let escape = _mm512_set1_epi8(alias.escape.map_or(-1, |e| e as i8));
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
            let mut exponents = _mm512_shuffle_epi8(bytes, symbols);
            let escaped = _mm512_cmpeq_epi8_mask(symbols, escape);
            if escaped != 0 {
                let count = escaped.count_ones() as usize;
                let Some((now, rest)) = escapes.split_at_checked(count) else { return false };
                *escapes = rest;
                let mut padded = [0u8; 64];
                padded[..count].copy_from_slice(now);
                // SAFETY: 64 bytes.
                let now = unsafe { _mm512_loadu_si512(padded.as_ptr().cast()) };
                exponents = _mm512_mask_expand_epi8(exponents, escaped, now);
            }
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

pub(super) fn decode_by_slot(
    by_slot: &[u32; PROB_TOTAL as usize],
    cursor: &mut Cursor<'_>,
    out: &mut [u8],
) -> bool {
    // SAFETY: `available` was asked.
    unsafe { decode_by_slot_avx512(by_slot, cursor, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
fn decode_by_slot_avx512(
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

/// For each mask of lanes that take a word, the word each lane takes.
static TAKES: [[u32; 8]; 256] = {
    let mut takes = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                takes[mask][lane] = next;
                next += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    takes
};

pub(super) fn decode_by_slot_avx2(
    by_slot: &[u32; PROB_TOTAL as usize],
    cursor: &mut Cursor<'_>,
    out: &mut [u8],
) -> bool {
    // SAFETY: the caller asked whether the set is available.
    unsafe { decode_avx2(by_slot, cursor, out) }
}

#[target_feature(enable = "avx2,popcnt")]
fn decode_avx2(
    by_slot: &[u32; PROB_TOTAL as usize],
    cursor: &mut Cursor<'_>,
    out: &mut [u8],
) -> bool {
    let words = cursor.words.as_ptr();
    let mut at = cursor.at;
    for step in out.as_chunks_mut::<LANES>().0 {
        if at > cursor.len {
            return false;
        }
        // Groups of 16 lanes one after another, each in two halves: the order of the words.
        let mut acc = [_mm256_setzero_si256(); 4];
        for part in 0..16 {
            let (group, half) = (part / 2, part % 2);
            // SAFETY: sixteen times eight lanes are the 128 states.
            let state = unsafe { cursor.states.as_mut_ptr().add(8 * part).cast::<__m256i>() };
            // SAFETY: as above.
            let x = unsafe { _mm256_loadu_si256(state) };
            let slot = _mm256_and_si256(x, _mm256_set1_epi32(PROB_TOTAL as i32 - 1));
            // SAFETY: slots are below 4096, the length of the table.
            let entry = unsafe { _mm256_i32gather_epi32::<4>(by_slot.as_ptr().cast(), slot) };
            let symbol = _mm256_and_si256(entry, _mm256_set1_epi32(0xff));
            let byte = _mm256_sllv_epi32(symbol, _mm256_set1_epi32(8 * (group % 4) as i32));
            let acc = &mut acc[2 * (group / 4) + half];
            *acc = _mm256_or_si256(*acc, byte);
            let freq = _mm256_and_si256(_mm256_srli_epi32::<8>(entry), _mm256_set1_epi32(0xfff));
            let product = _mm256_mullo_epi32(freq, _mm256_srli_epi32::<12>(x));
            let x = _mm256_add_epi32(product, _mm256_srli_epi32::<20>(entry));
            let low = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(x), _mm256_setzero_si256());
            let mask = _mm256_movemask_ps(_mm256_castsi256_ps(low)) as usize;
            // SAFETY: a step's words and the slack behind them can be read, and the table has 256 rows of 8.
            let (next, takes) = unsafe {
                (
                    _mm_loadu_si128(words.add(at).cast()),
                    _mm256_loadu_si256(TAKES[mask & 255].as_ptr().cast()),
                )
            };
            let next = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(next), takes);
            at += 2 * mask.count_ones() as usize;
            let full = _mm256_or_si256(_mm256_slli_epi32::<16>(x), next);
            // SAFETY: as for loading.
            unsafe { _mm256_storeu_si256(state, _mm256_blendv_epi8(x, full, low)) };
        }
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: four times 32 bytes are the 128 of a step.
            unsafe { _mm256_storeu_si256(step.as_mut_ptr().add(32 * i).cast(), acc) };
        }
    }
    cursor.at = at;
    at <= cursor.len
}
