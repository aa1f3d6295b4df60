//! Tiles on AVX-512: the states of a row of a tile by one shift each, sums of bytes by one instruction.

use std::arch::x86_64::*;

use super::input::{Chunk, PAIRS, Totals};
use super::product::both;
use super::values::Pair;
use super::{FACTOR, SIDE, TILE};
use crate::simd::{avx512, prefetch, stream};

/// How many bytes ahead of the reading the next ones are asked for.
const AHEAD: usize = 12 * 1024;
/// Odd halves of lanes.
const ODD: u32 = 0xAAAA_AAAA;
/// Bytes of lanes that hold a state.
const STATES: u64 = 0x3333_3333_3333_3333;

/// Where the states of a row's 16 weights are: in `PARTS` quadwords, `PART` bytes apart or one more where that is no whole
/// number.
struct Places<const K: usize>;

impl<const K: usize> Places<K> {
    /// So many weights that a quadword holds their states.
    const PARTS: usize = match K {
        ..=3 => 1,
        4..=6 => 2,
        _ => 4,
    };

    const fn byte(part: usize) -> usize {
        part * (SIDE / Self::PARTS) * K / 8
    }

    /// Where in its quadword each byte of a state begins.
    const SHIFTS: [u8; 64] = {
        let mut shifts = [0; 64];
        let mut lane = 0;
        while lane < SIDE {
            let part = lane / (SIDE / Self::PARTS);
            let bit = lane * K - 8 * Self::byte(part);
            shifts[4 * lane] = bit as u8;
            shifts[4 * lane + 1] = bit as u8 + 8;
            lane += 1;
        }
        shifts
    };
}

/// The 8 bytes from `at` on of a tile of `size`, read around in a circle. Sizes are known when it is compiled: a branch costs as much
/// as what it decides on.
///
/// # Safety
///
/// `tile` has `size` bytes, 32 at least, and `at` lies within.
#[inline(always)]
unsafe fn eight(tile: *const u8, size: usize, at: usize) -> __m128i {
    // SAFETY: 8 bytes from there on, or to the end, lie within. SSE2 is on every x86-64 CPU.
    unsafe {
        let read = |at: usize| tile.add(at).cast::<u64>().read_unaligned();
        match size - at {
            8.. => _mm_loadl_epi64(tile.add(at).cast()),
            inside => {
                let (end, start) = (read(size - 8), read(0));
                _mm_cvtsi64_si128((end >> (64 - 8 * inside) | start << (8 * inside)) as i64)
            }
        }
    }
}

avx512! {
    /// The products of the states of row `R` of a tile.
    ///
    /// # Safety
    ///
    /// `tile` has `32 K` bytes.
    #[inline]
    unsafe fn states<const K: usize, const R: usize>(tile: *const u8) -> __m512i {
        // SAFETY: as the caller promises; rows are `2 K` bytes and parts begin within.
        let part = |part: usize| unsafe {
            eight(tile, TILE / 8 * K, 2 * K * R + Places::<K>::byte(part))
        };
        let mut raw = _mm512_broadcastq_epi64(part(0));
        if Places::<K>::PARTS == 2 {
            raw = _mm512_mask_broadcastq_epi64(raw, 0xF0, part(1));
        }
        if Places::<K>::PARTS == 4 {
            raw = _mm512_mask_broadcastq_epi64(raw, 0x0C, part(1));
            raw = _mm512_mask_broadcastq_epi64(raw, 0x30, part(2));
            raw = _mm512_mask_broadcastq_epi64(raw, 0xC0, part(3));
        }
        // SAFETY: the array holds 64 bytes.
        let shifts = unsafe { _mm512_loadu_si512(Places::<K>::SHIFTS.as_ptr().cast()) };
        let states = _mm512_maskz_multishift_epi64_epi8(STATES, shifts, raw);
        _mm512_mullo_epi32(states, _mm512_set1_epi32(FACTOR as i32))
    }
}

avx512! {
    /// The sums of bytes of row `R` of two tiles, by halves of lanes.
    ///
    /// # Safety
    ///
    /// Both have `32 K` bytes.
    #[inline]
    unsafe fn row<const K: usize, const R: usize>(tiles: [*const u8; 2]) -> __m512i {
        let zero = _mm512_setzero_si512();
        // SAFETY: as the caller promises.
        let [first, second] = unsafe { [states::<K, R>(tiles[0]), states::<K, R>(tiles[1])] };
        let sums = _mm512_dbsad_epu8::<0>(first, zero);
        _mm512_mask_dbsad_epu8::<0>(sums, ODD, second, zero)
    }
}

/// `$call` for every row: a loop that is not unrolled would keep sums in memory, and ask at each row whether it is the last.
macro_rules! for_rows {
    ($call:ident) => {
        $call!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}

macro_rules! by_bits {
    ($bits:expr, $call:ident($($arg:expr),*)) => {
        match $bits {
            1 => $call::<1>($($arg),*),
            2 => $call::<2>($($arg),*),
            3 => $call::<3>($($arg),*),
            4 => $call::<4>($($arg),*),
            5 => $call::<5>($($arg),*),
            6 => $call::<6>($($arg),*),
            7 => $call::<7>($($arg),*),
            8 => $call::<8>($($arg),*),
            bits => panic!("trellis: {bits} bits"),
        }
    };
}

avx512! {
    /// As [`super::values::Lanes::pair`].
    pub(super) fn pair(bits: u32, tiles: [&[u8]; 2], to: &mut Pair) {
        by_bits!(bits, pair_of(tiles, to))
    }
}

avx512! {
    fn pair_of<const K: usize>(tiles: [&[u8]; 2], to: &mut Pair) {
        assert!(tiles[0].len() == TILE / 8 * K && tiles[1].len() == TILE / 8 * K);
        let tiles = [tiles[0].as_ptr(), tiles[1].as_ptr()];
        macro_rules! store {
            ($($r:literal)*) => {$(
                // SAFETY: a row holds 16 lanes; the sizes of the tiles were checked.
                unsafe { _mm512_storeu_si512(to.0[$r].as_mut_ptr().cast(), row::<K, $r>(tiles)) };
            )*};
        }
        for_rows!(store);
    }
}

avx512! {
    /// As [`super::values::Lanes::dots`].
    pub(super) fn dots(values: &[Pair], x: &Chunk, totals: &mut Totals) {
        // SAFETY: all arrays hold 16 lanes.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); SIDE];
            for (pair, levels) in values.iter().zip(&x.levels) {
                let levels = _mm512_loadu_si512(levels.as_ptr().cast());
                for (sum, row) in sums.iter_mut().zip(&pair.0) {
                    let row = _mm512_loadu_si512(row.as_ptr().cast());
                    *sum = _mm512_dpwssd_epi32(*sum, row, levels);
                }
            }
            add(&by_pair(&sums), x, totals);
        }
    }
}

avx512! {
    /// Sums of two rows each, one half of the lanes added to the other.
    #[inline]
    fn by_pair(sums: &[__m512i; SIDE]) -> [__m512i; SIDE / 2] {
        let mut pairs = [_mm512_setzero_si512(); SIDE / 2];
        for (pair, rows) in pairs.iter_mut().zip(sums.as_chunks::<2>().0) {
            let low = _mm512_shuffle_i64x2::<0x44>(rows[0], rows[1]);
            let high = _mm512_shuffle_i64x2::<0xEE>(rows[0], rows[1]);
            *pair = _mm512_add_epi32(low, high);
        }
        pairs
    }
}

avx512! {
    /// Adds sums of integers, less what the mean of values makes of them, times a scale.
    #[inline]
    fn add(pairs: &[__m512i; SIDE / 2], x: &Chunk, totals: &mut Totals) {
        // SAFETY: there are eight of them.
        let start = unsafe { _mm256_loadu_si256(x.start.as_ptr().cast()) };
        let start = _mm512_broadcast_i64x4(start);
        let scale = _mm512_set1_ps(x.scale);
        for (pair, totals) in pairs.iter().zip(totals.as_chunks_mut::<2>().0) {
            let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(*pair, start));
            let to: *mut f32 = totals.as_mut_ptr().cast();
            // SAFETY: two rows hold 16 lanes.
            unsafe {
                let before = _mm512_loadu_ps(to);
                _mm512_storeu_ps(to, _mm512_add_ps(before, _mm512_mul_ps(scale, sums)));
            }
        }
    }
}

avx512! {
    /// As [`super::values::Lanes::alone`].
    pub(super) fn alone(bits: u32, band: &[u8], x: &[Chunk], totals: &mut Totals) {
        if bits == 4 {
            return alone_of_four(band, x, totals);
        }
        by_bits!(bits, alone_of(band, x, totals))
    }
}

avx512! {
    fn alone_of<const K: usize>(band: &[u8], x: &[Chunk], totals: &mut Totals) {
        let tile = TILE / 8 * K;
        let to = stream();
        for (tiles, x) in band.chunks(2 * PAIRS * tile).zip(x) {
            let mut sums = [_mm512_setzero_si512(); SIDE];
            for (pair, levels) in tiles.chunks(2 * tile).zip(&x.levels) {
                for line in 0..K {
                    prefetch(pair.as_ptr().wrapping_add(AHEAD + 64 * line), to);
                }
                let tiles = both(pair, tile);
                assert!(tiles[0].len() == tile && tiles[1].len() == tile);
                let tiles = [tiles[0].as_ptr(), tiles[1].as_ptr()];
                // SAFETY: the array holds 16 lanes.
                let levels = unsafe { _mm512_loadu_si512(levels.as_ptr().cast()) };
                macro_rules! multiply {
                    ($($r:literal)*) => {$(
                        // SAFETY: the sizes of the tiles were checked.
                        let values = unsafe { row::<K, $r>(tiles) };
                        sums[$r] = _mm512_dpwssd_epi32(sums[$r], values, levels);
                    )*};
                }
                for_rows!(multiply);
            }
            add(&by_pair(&sums), x, totals);
        }
    }
}

avx512! {
    /// As [`alone_of`] of 4 bits, whose rows have 8 bytes: two of them are broadcast together, where a row by itself would take
    /// an instruction more. Quadwords hold four columns of the first row and of the second in turn.
    fn alone_of_four(band: &[u8], x: &[Chunk], totals: &mut Totals) {
        const BYTES: usize = TILE / 2;
        const SHIFTS: [u8; 64] = {
            let mut shifts = [0; 64];
            let mut lane = 0;
            while lane < 16 {
                let bit = 4 * (lane / 4 * 2 + lane % 2);
                shifts[4 * lane] = bit as u8;
                shifts[4 * lane + 1] = bit as u8 + 8;
                lane += 1;
            }
            shifts
        };
        // SAFETY: the array holds 64 bytes.
        let shifts = unsafe { _mm512_loadu_si512(SHIFTS.as_ptr().cast()) };
        let factor = _mm512_set1_epi32(FACTOR as i32);
        let zero = _mm512_setzero_si512();
        let columns = _mm512_set_epi32(7, 6, 7, 6, 5, 4, 5, 4, 3, 2, 3, 2, 1, 0, 1, 0);
        let eight = _mm512_set1_epi32(8);
        let rows = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
        let to = stream();
        for (tiles, x) in band.chunks(2 * PAIRS * BYTES).zip(x) {
            let mut sums = [_mm512_setzero_si512(); SIDE / 2];
            for (pair, levels) in tiles.chunks(2 * BYTES).zip(&x.levels) {
                for line in 0..4 {
                    prefetch(pair.as_ptr().wrapping_add(AHEAD + 64 * line), to);
                }
                let tiles = both(pair, BYTES);
                assert!(tiles[0].len() == BYTES && tiles[1].len() == BYTES);
                let tiles = [tiles[0].as_ptr(), tiles[1].as_ptr()];
                // SAFETY: the array holds 16 lanes.
                let levels = unsafe { _mm512_loadu_si512(levels.as_ptr().cast()) };
                let first = _mm512_permutexvar_epi32(columns, levels);
                let second = _mm512_permutexvar_epi32(_mm512_add_epi32(columns, eight), levels);
                macro_rules! value {
                    ($raw:expr) => {
                        _mm512_mullo_epi32(
                            _mm512_maskz_multishift_epi64_epi8(
                                STATES,
                                shifts,
                                _mm512_broadcast_i32x4($raw),
                            ),
                            factor,
                        )
                    };
                }
                macro_rules! multiply {
                    ($rows:expr, $levels:expr, |$tile:ident| $raw:expr) => {{
                        let [$tile, second] = tiles;
                        let low = _mm512_dbsad_epu8::<0>(value!($raw), zero);
                        let $tile = second;
                        let both = _mm512_mask_dbsad_epu8::<0>(low, ODD, value!($raw), zero);
                        sums[$rows] = _mm512_dpwssd_epi32(sums[$rows], both, $levels);
                    }};
                }
                macro_rules! rows {
                    ($($rows:literal)*) => {$(
                        // SAFETY: 16 bytes of two rows lie within the tile, the last ones of all at its end; and so do those
                        // 4 bytes later, but for the last ones.
                        unsafe {
                            multiply!($rows, first, |tile| _mm_loadu_si128(tile.add(16 * $rows).cast()));
                            if $rows < 7 {
                                multiply!($rows, second, |tile| {
                                    _mm_loadu_si128(tile.add(16 * $rows + 4).cast())
                                });
                            } else {
                                multiply!($rows, second, |tile| {
                                    let end = _mm_loadu_si128(tile.add(112).cast());
                                    let start = _mm_loadu_si128(tile.cast());
                                    _mm_alignr_epi8::<4>(start, end)
                                });
                            }
                        }
                    )*};
                }
                rows!(0 1 2 3 4 5 6 7);
            }
            let mut pairs = sums;
            for pair in &mut pairs {
                *pair = _mm512_permutexvar_epi64(rows, *pair);
            }
            add(&pairs, x, totals);
        }
    }
}
