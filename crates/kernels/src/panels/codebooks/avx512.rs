//! Tables in registers, looked up by the codes of 64 rows at once.

use std::arch::x86_64::*;

use super::pack::{BLOCK, ROWS};
use super::product::Block;
use super::tables::{ALIGN, ZERO};
use crate::simd::wide::Line;
use crate::simd::{avx512, prefetch};

avx512! {
    /// Rounds products to integers about [`ZERO`], in planes of so many lines.
    pub(super) fn round(products: &[f32], inverse: f32, plane: usize, tables: &mut [Line]) {
        let inverse = _mm512_set1_ps(inverse);
        let (align, zero) = (_mm512_set1_ps(ALIGN), _mm512_set1_epi32(ZERO as i32));
        // SAFETY: the array is 64 bytes long.
        let halves = unsafe { _mm512_loadu_si512(HALVES.as_ptr().cast()) };
        let products = products.as_chunks::<64>().0;
        for (tables, products) in tables.chunks_exact_mut(2 * plane).zip(products.chunks(plane)) {
            let (high, low) = tables.split_at_mut(plane);
            for ((high, low), products) in high.iter_mut().zip(low).zip(products) {
                let mut words = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    // SAFETY: four times 16 are the 64.
                    let v = unsafe { _mm512_loadu_ps(products.as_ptr().add(16 * i)) };
                    // The lower half of `ALIGN` is 0: what is left there is the integer.
                    let v = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(v, inverse), align));
                    words[i] = _mm512_add_epi32(v, zero);
                }
                let first = _mm512_permutex2var_epi8(words[0], halves, words[1]);
                let second = _mm512_permutex2var_epi8(words[2], halves, words[3]);
                // SAFETY: a line is 64 bytes.
                unsafe {
                    let high = high.0.as_mut_ptr().cast();
                    _mm512_store_si512(high, _mm512_shuffle_i64x2::<0xEE>(first, second));
                    let low = low.0.as_mut_ptr().cast();
                    _mm512_store_si512(low, _mm512_shuffle_i64x2::<0x44>(first, second));
                }
            }
        }
    }
}

/// The low bytes of 32 lanes, and then the bytes above them.
const HALVES: [u8; 64] = {
    let mut halves = [0; 64];
    let mut i = 0;
    while i < 64 {
        halves[i] = 4 * (i % 32) as u8 + (i / 32) as u8;
        i += 1;
    }
    halves
};

// Sums of bytes stay below 2^16.
const _: () = assert!(BLOCK * 255 < 1 << 16);

avx512! {
    /// Adds a block to every `stride`th of the sums, panel by panel.
    pub(super) fn add(block: &Block<'_>, sums: &mut [[f32; ROWS]], stride: usize) {
        match block.width {
            4 => panels::<2>(block, sums, stride),
            _ => panels::<4>(block, sums, stride),
        }
    }
}

avx512! {
    /// For tables whose planes are `PLANE` lines each. Each table that is loaded serves four panels.
    #[inline]
    fn panels<const PLANE: usize>(block: &Block<'_>, sums: &mut [[f32; ROWS]], stride: usize) {
        const MANY: usize = 4;
        let panels = sums.len().div_ceil(stride);
        let mut at = 0;
        while at < panels {
            let codes = &block.codes[at * block.count..];
            let sums = &mut sums[at * stride..];
            at += match panels - at {
                MANY.. => some::<PLANE, MANY>(block, codes, sums, stride),
                2.. => some::<PLANE, 2>(block, codes, sums, stride),
                _ => some::<PLANE, 1>(block, codes, sums, stride),
            };
        }
    }
}

/// The bytes of a plane that codes name.
macro_rules! look_up {
    ($plane:expr, $codes:expr, $top:expr) => {{
        let plane = $plane;
        let found = _mm512_permutex2var_epi8(plane[0], $codes, plane[1]);
        if PLANE == 4 {
            let others = _mm512_permutex2var_epi8(plane[PLANE - 2], $codes, plane[PLANE - 1]);
            _mm512_mask_blend_epi8($top, found, others)
        } else {
            found
        }
    }};
}

avx512! {
    /// Adds a block to the sums of `N` panels; gives `N` back.
    #[inline]
    fn some<const PLANE: usize, const N: usize>(
        block: &Block<'_>,
        codes: &[Line],
        sums: &mut [[f32; ROWS]],
        stride: usize,
    ) -> usize {
        let count = block.count;
        let codes = &codes[..N * count];
        assert!(block.tables.len() == count * 2 * PLANE);
        // By plane, all bytes as words that wrap, and the odd ones alone.
        let mut words = [[_mm512_setzero_si512(); 2]; N];
        let mut odd = words;
        for i in 0..count {
            let mut planes = [[_mm512_setzero_si512(); PLANE]; 2];
            for p in 0..2 {
                for l in 0..PLANE {
                    // SAFETY: the length is checked above.
                    planes[p][l] = unsafe { load(block.tables, (2 * i + p) * PLANE + l) };
                }
            }
            for n in 0..N {
                // SAFETY: the length is checked above.
                let found = unsafe { load(codes, n * count + i) };
                if let Some((ahead, to)) = block.ahead {
                    prefetch(codes.as_ptr().wrapping_add(n * count + i + ahead), to);
                }
                let top = _mm512_movepi8_mask(found);
                for p in 0..2 {
                    let bytes = look_up!(planes[p], found, top);
                    words[n][p] = _mm512_add_epi16(words[n][p], bytes);
                    odd[n][p] = _mm512_add_epi16(odd[n][p], _mm512_srli_epi16::<8>(bytes));
                }
            }
        }
        let (scale, low_half) = (_mm512_set1_ps(block.scale), _mm512_set1_epi32(0xFFFF));
        let bias = _mm512_set1_epi32((count as u32 * ZERO) as i32);
        for n in 0..N {
            let mut even = odd[n];
            for p in 0..2 {
                even[p] = _mm512_sub_epi16(words[n][p], _mm512_slli_epi16::<8>(odd[n][p]));
            }
            let sums = &mut sums[n * stride];
            // Of bytes 4 i + k: the rows from 16 k on.
            for k in 0..4 {
                let [high, low] = if k % 2 == 0 { even } else { odd[n] };
                let (high, low) = match k {
                    0 | 1 => (_mm512_and_si512(high, low_half), _mm512_and_si512(low, low_half)),
                    _ => (_mm512_srli_epi32::<16>(high), _mm512_srli_epi32::<16>(low)),
                };
                let total = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let total = _mm512_cvtepi32_ps(_mm512_sub_epi32(total, bias));
                let to = sums[16 * k..][..16].as_mut_ptr();
                // SAFETY: 16 numbers.
                unsafe {
                    let sum = _mm512_add_ps(_mm512_loadu_ps(to), _mm512_mul_ps(scale, total));
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
        N
    }
}

avx512! {
    /// # Safety
    ///
    /// There is a line `at`.
    #[inline]
    unsafe fn load(lines: &[Line], at: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_load_si512(lines.as_ptr().add(at).cast()) }
    }
}
