//! AVX2.

use std::arch::x86_64::*;

use super::{Cursor, LANES, PROB_TOTAL};
use crate::simd::avx2;

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

avx2! {
pub(super) fn decode_by_slot(
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
}
