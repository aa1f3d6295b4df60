//! Vectors of codes and scales, as the types put them together.

use std::arch::x86_64::*;

/// All lanes the same.
///
/// # Safety
///
/// Where the features are, as for all of these.
#[inline(always)]
pub(in super::super) unsafe fn splat(v: i32) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe { _mm512_set1_epi32(v) }
}

/// `first`, in the upper half `second`, for 64-bit lanes.
#[inline(always)]
pub(in super::super) unsafe fn halves(first: i64, second: i64) -> __m512i {
    let (a, b) = (first, second);
    // SAFETY: as the caller promises.
    unsafe { _mm512_set_epi64(b, b, b, b, a, a, a, a) }
}

/// Two lanes `first`, two `first + step`, and so on.
#[inline(always)]
pub(in super::super) unsafe fn by_two(first: i32, step: i32) -> __m512i {
    let at = |i: i32| first + step * i;
    // SAFETY: as the caller promises.
    unsafe {
        _mm512_setr_epi32(
            at(0),
            at(0),
            at(1),
            at(1),
            at(2),
            at(2),
            at(3),
            at(3),
            at(4),
            at(4),
            at(5),
            at(5),
            at(6),
            at(6),
            at(7),
            at(7),
        )
    }
}

/// Four lanes `first`, four `first + 1`, and so on.
#[inline(always)]
pub(in super::super) unsafe fn by_four(first: i32) -> __m512i {
    let (a, b, c, d) = (first, first + 1, first + 2, first + 3);
    // SAFETY: as the caller promises.
    unsafe { _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d) }
}

/// The levels of a table without a sign.
pub(in super::super) const fn from_0(table: &[i8; 16], offset: i8) -> [i8; 16] {
    let mut unsigned = [0; 16];
    let mut i = 0;
    while i < 16 {
        unsigned[i] = table[i].wrapping_add(offset);
        i += 1;
    }
    unsigned
}

/// 16 bytes.
///
/// # Safety
///
/// Where the features are, as for all that follow.
#[inline(always)]
pub(in super::super) unsafe fn sixteen(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: as the caller promises.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// An f16 in all lanes.
///
/// # Safety
///
/// Two bytes can be read.
#[inline(always)]
pub(in super::super) unsafe fn half(at: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// Two f16 in all lanes each.
///
/// # Safety
///
/// Four bytes can be read.
#[inline(always)]
pub(in super::super) unsafe fn two_halves(at: *const u8) -> (__m512, __m512) {
    // SAFETY: as the caller promises.
    unsafe {
        let both = _mm512_cvtph_ps(_mm256_set1_epi32(at.cast::<i32>().read_unaligned()));
        (_mm512_moveldup_ps(both), _mm512_movehdup_ps(both))
    }
}

/// The low and the high nibbles of 16 bytes, and of 16 others.
///
/// # Safety
///
/// 16 bytes can be read at both.
#[inline(always)]
pub(in super::super) unsafe fn two_by_two(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        let (a, b) = (_mm_loadu_si128(a.cast()), _mm_loadu_si128(b.cast()));
        let both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(a), 0xff00, b);
        let shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15))
    }
}

/// As [`planes`](super::kinds) of 64 bytes.
///
/// # Safety
///
/// 64 bytes can be read.
#[inline(always)]
pub(in super::super) unsafe fn planes(qs: *const u8) -> [__m512i; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut codes = [_mm512_setzero_si512(); 4];
        let mut i = 0;
        while i < 4 {
            let qs = _mm512_broadcast_i64x4(_mm256_loadu_si256(qs.add(i / 2 * 32).cast()));
            let (first, second) = if i % 2 == 0 { (0, 2) } else { (4, 6) };
            let shifted = _mm512_srlv_epi64(qs, halves(first, second));
            codes[i] = _mm512_and_si512(shifted, _mm512_set1_epi8(3));
            i += 1;
        }
        codes
    }
}

/// As [`planes`], each code where it lies in its byte: times 1, 4, 16 and 64 (see [`SHARES`]).
///
/// # Safety
///
/// 64 bytes can be read.
#[inline(always)]
pub(in super::super) unsafe fn planes_in_place(qs: *const u8) -> [__m512i; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let first = _mm512_broadcast_i64x4(_mm256_loadu_si256(qs.cast()));
        let second = _mm512_broadcast_i64x4(_mm256_loadu_si256(qs.add(32).cast()));
        let low = halves(0x0303_0303_0303_0303, 0x0c0c_0c0c_0c0c_0c0c);
        let high = halves(0x3030_3030_3030_3030, 0xc0c0_c0c0_c0c0_c0c0u64 as i64);
        [
            _mm512_and_si512(first, low),
            _mm512_and_si512(first, high),
            _mm512_and_si512(second, low),
            _mm512_and_si512(second, high),
        ]
    }
}

/// What codes of [`planes_in_place`] are to be multiplied with, by 16.
pub(in super::super) static SHARES: [f32; 16] = {
    let (a, b, c, d) = (1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0);
    [a, a, b, b, c, c, d, d, a, a, b, b, c, c, d, d]
};

/// As [`add_bits`](super::kinds) of 32 bytes.
///
/// # Safety
///
/// 32 bytes can be read.
#[inline(always)]
pub(in super::super) unsafe fn add_bits(bits: *const u8, weight: i8, codes: &mut [__m512i; 4]) {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = _mm512_broadcast_i64x4(_mm256_loadu_si256(bits.cast()));
        let weight = _mm512_set1_epi8(weight);
        let mut i = 0;
        while i < 4 {
            let bit = |k: usize| (0x0101_0101_0101_0101u64 << k) as i64;
            let set = _mm512_test_epi8_mask(bits, halves(bit(2 * i), bit(2 * i + 1)));
            codes[i] = _mm512_mask_add_epi8(codes[i], set, codes[i], weight);
            i += 1;
        }
    }
}

/// `2^(e - 128)` of 32-bit lanes.
///
/// # Safety
///
/// Where the features are.
#[inline(always)]
pub(in super::super) unsafe fn half_e8m0(e: __m512i) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe {
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, splat(1)));
        let small = _mm512_sllv_epi32(splat(1 << 21), e);
        let few = _mm512_cmplt_epu32_mask(e, splat(2));
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, few, small))
    }
}

/// What lies at byte `AT` of each of eight blocks of `BYTES` bytes, twice each.
pub(in super::super) struct Strided<const BYTES: usize, const AT: usize>;

impl<const BYTES: usize, const AT: usize> Strided<BYTES, AT> {
    /// Blocks whose words one vector holds.
    const TOGETHER: usize = 62 / BYTES + 1;
    const READS: usize = 8usize.div_ceil(Self::TOGETHER);

    /// Where read `i` begins: at the first of its words, but within the unit.
    const fn from(i: usize) -> usize {
        let (word, last) = (i * Self::TOGETHER * BYTES + AT, 8 * BYTES - 64);
        if word < last { word } else { last }
    }

    /// The blocks of read `i`.
    const fn blocks(i: usize) -> (usize, usize) {
        let end = (i + 1) * Self::TOGETHER;
        (i * Self::TOGETHER, if end < 8 { end } else { 8 })
    }

    /// For each lane, the word or byte of the read.
    const PLACES: [[u16; 32]; 4] = {
        let mut places = [[0; 32]; 4];
        let mut i = 0;
        while i < Self::READS {
            let (mut block, end) = Self::blocks(i);
            while block < end {
                let at = block * BYTES + AT - Self::from(i);
                places[i][2 * block] = at as u16;
                places[i][2 * block + 1] = at as u16;
                block += 1;
            }
            i += 1;
        }
        places
    };
    const WORDS: &'static [[u16; 32]; 4] = &{
        let mut words = Self::PLACES;
        let (mut i, mut lane) = (0, 0);
        while i < 4 {
            while lane < 32 {
                words[i][lane] /= 2;
                lane += 1;
            }
            (i, lane) = (i + 1, 0);
        }
        words
    };
    const BYTES_OF_LANES: &'static [[u8; 64]; 4] = &{
        let mut bytes = [[0; 64]; 4];
        let (mut i, mut lane) = (0, 0);
        while i < 4 {
            while lane < 16 {
                bytes[i][4 * lane] = Self::PLACES[i][lane] as u8;
                lane += 1;
            }
            (i, lane) = (i + 1, 0);
        }
        bytes
    };

    /// The words.
    ///
    /// # Safety
    ///
    /// Where the features are; `8 * BYTES` bytes can be read.
    #[inline(always)]
    pub(in super::super) unsafe fn words(unit: *const u8) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let mut words = _mm512_setzero_si512();
            let mut i = 0;
            while i < Self::READS {
                let ((block, end), read) = (Self::blocks(i), unit.add(Self::from(i)));
                let lanes = ((1u32 << (2 * end)) - (1 << (2 * block))) as __mmask32;
                let places = _mm512_loadu_si512(Self::WORDS[i].as_ptr().cast());
                let read = _mm512_loadu_si512(read.cast());
                words = _mm512_mask_permutexvar_epi16(words, lanes, places, read);
                i += 1;
            }
            _mm512_castsi512_si256(words)
        }
    }

    /// The bytes, in 32-bit lanes.
    ///
    /// # Safety
    ///
    /// As for the words.
    #[inline(always)]
    pub(in super::super) unsafe fn bytes(unit: *const u8) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let mut bytes = _mm512_setzero_si512();
            let mut i = 0;
            while i < Self::READS {
                let ((block, end), read) = (Self::blocks(i), unit.add(Self::from(i)));
                let mut lanes: __mmask64 = 0;
                let mut lane = 2 * block;
                while lane < 2 * end {
                    lanes |= 1 << (4 * lane);
                    lane += 1;
                }
                let places = _mm512_loadu_si512(Self::BYTES_OF_LANES[i].as_ptr().cast());
                let read = _mm512_loadu_si512(read.cast());
                bytes = _mm512_mask_permutexvar_epi8(bytes, lanes, places, read);
                i += 1;
            }
            bytes
        }
    }
}
