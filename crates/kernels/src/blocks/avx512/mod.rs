//! Blocks with AVX-512: codes in registers, 64 at a time, and products of unsigned with signed bytes.

mod panels;

pub(crate) use panels::Panel;

use std::arch::x86_64::*;

use super::input::{BlockActivations, Planes};
use super::kinds::Kind;
use super::lanes::Unit;
use super::product::{LONGEST, TILE, TOGETHER, parts, unit_bytes};
use super::types::BlockRows;
use super::{GROUPS, UNIT};
use crate::simd::{Ahead, avx512, prefetch, stream};
use crate::work::Places;

/// How many bytes ahead of the reading the next ones are asked for.
const AHEAD: usize = 8192;

avx512! {
    /// As [`rows_of`](super::product), of what was prepared for this set.
    pub(super) fn rows<K: Kind>(
        w: &BlockRows<'_>,
        input: &BlockActivations,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        match input.activations().planes() {
            1 => by_tokens::<K, 1>(w, &input.one_plane, input.tokens(), first, places, out),
            _ => by_tokens::<K, 2>(w, &input.two_planes, input.tokens(), first, places, out),
        }
    }
}

/// More tokens than these go through panels.
const FEW: usize = 4;

avx512! {
    #[inline]
    fn by_tokens<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        t: usize,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        match t {
            1 => one_token::<K, P>(w, x, first, out),
            2..=FEW => some_tokens::<K, P>(w, x, t, first, places, out),
            _ => panels::many_tokens::<K, P>(w, x, t, first, places, out),
        }
    }
}

avx512! {
    /// Adds the products of the rows from `first` on with one token.
    #[inline]
    fn one_token<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        first: usize,
        out: &mut [f32],
    ) {
        let mut buffer = [0; LONGEST];
        let ask = stream();
        for (r, out) in out.iter_mut().enumerate() {
            let row = w.row(first + r);
            for (i, x) in x.chunks(TILE).enumerate() {
                let mut sums = Sums::new();
                for (u, x) in x.iter().enumerate() {
                    let bytes = unit_bytes(row, i * TILE + u, K::BYTES, &mut buffer);
                    // A choice made once: the compiler makes two loops of it.
                    if ask == Ahead::Once {
                        ask_for::<K>(bytes, Ahead::Once);
                    } else {
                        ask_for::<K>(bytes, Ahead::Outer);
                    }
                    // SAFETY: this function has the features; a unit's bytes are there.
                    unsafe {
                        let codes = K::codes(bytes.as_ptr());
                        let (scales, minima) = K::grids(bytes.as_ptr());
                        add_unit(&mut sums, codes, scales, minima, x);
                    }
                }
                *out += sums.total();
            }
        }
    }
}

/// Asks for what lies ahead of a unit.
#[inline(always)]
fn ask_for<K: Kind>(bytes: &[u8], to: Ahead) {
    for line in (0..K::BYTES).step_by(64) {
        prefetch(bytes.as_ptr().wrapping_add(AHEAD + line), to);
    }
}

avx512! {
    /// Adds the products of the rows from `first` on with `t` tokens to `out [some rows, t]`.
    #[inline]
    fn some_tokens<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        t: usize,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        let units = w.cols.div_ceil(UNIT);
        let mut buffer = [0; LONGEST];
        for part in parts(t, first..first + out.len() / t, units) {
            places.units.resize(TOGETHER * TILE, Unit::ZERO);
            let mut unpacked = places.units.iter_mut();
            for r in part.rows.clone() {
                for (unit, to) in part.units.clone().zip(&mut unpacked) {
                    let bytes = unit_bytes(w.row(r), unit, K::BYTES, &mut buffer);
                    // SAFETY: this function has the features; a unit's bytes are there.
                    unsafe { unpack::<K>(bytes, to) };
                }
            }
            for token in part.tokens {
                let x = &x[token * units..][part.units.clone()];
                for (r, unpacked) in part.rows.clone().zip(places.units.chunks_exact(x.len())) {
                    let mut sums = Sums::new();
                    for (unit, x) in unpacked.iter().zip(x) {
                        // SAFETY: this function has the features; 256 codes and 16 scales are there.
                        unsafe {
                            let at: *const u8 = unit.codes.as_ptr().cast();
                            let codes = [
                                _mm512_loadu_si512(at.cast()),
                                _mm512_loadu_si512(at.add(64).cast()),
                                _mm512_loadu_si512(at.add(128).cast()),
                                _mm512_loadu_si512(at.add(192).cast()),
                            ];
                            let scales = _mm512_loadu_ps(unit.scales.as_ptr());
                            let minima = _mm512_loadu_ps(unit.minima.as_ptr());
                            add_unit(&mut sums, codes, scales, minima, x);
                        }
                    }
                    out[(r - first) * t + token] += sums.total();
                }
            }
        }
    }
}

/// Unpacks a unit into unsigned codes.
///
/// # Safety
///
/// Where the features are; `bytes` are a unit's.
#[inline(always)]
unsafe fn unpack<K: Kind>(bytes: &[u8], to: &mut Unit) {
    // SAFETY: as the caller promises; 256 codes and 16 scales have their places.
    unsafe {
        let (scales, minima) = K::grids(bytes.as_ptr());
        let codes = K::codes(bytes.as_ptr());
        _mm512_storeu_ps(to.scales.as_mut_ptr(), scales);
        _mm512_storeu_ps(to.minima.as_mut_ptr(), minima);
        let at: *mut u8 = to.codes.as_mut_ptr().cast();
        _mm512_storeu_si512(at.cast(), codes[0]);
        _mm512_storeu_si512(at.add(64).cast(), codes[1]);
        _mm512_storeu_si512(at.add(128).cast(), codes[2]);
        _mm512_storeu_si512(at.add(192).cast(), codes[3]);
    }
}

/// The sums of a tile: products of the four quarters of units, and minima.
struct Sums {
    products: [__m512; 4],
    minima: __m512,
}

impl Sums {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: made where the features are.
        unsafe { Self { products: [_mm512_setzero_ps(); 4], minima: _mm512_setzero_ps() } }
    }

    #[inline(always)]
    fn total(self) -> f32 {
        let [a, b, c, d] = self.products;
        // SAFETY: as above.
        unsafe {
            let sums = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            _mm512_reduce_add_ps(_mm512_sub_ps(sums, self.minima))
        }
    }
}

/// Adds the products of a unit.
///
/// # Safety
///
/// Where the features are.
#[inline(always)]
unsafe fn add_unit<const P: usize>(
    sums: &mut Sums,
    codes: [__m512i; 4],
    scales: __m512,
    minima: __m512,
    x: &Planes<P>,
) {
    // SAFETY: as the caller promises; reads lie within planes of 256 levels and 16 scales.
    unsafe {
        let of = _mm512_loadu_ps(x.grids.sums.as_ptr());
        sums.minima = _mm512_fmadd_ps(minima, of, sums.minima);
        let scales = _mm512_mul_ps(scales, _mm512_loadu_ps(x.grids.scales.as_ptr()));
        let mut i = 0;
        while i < 4 {
            let mut dot = _mm512_setzero_si512();
            let mut p = 0;
            while p < P {
                let levels = _mm512_loadu_si512(x.levels[p].as_ptr().add(64 * i).cast());
                if p > 0 {
                    dot = _mm512_slli_epi32::<8>(dot);
                }
                dot = _mm512_dpbusd_epi32(dot, codes[i], levels);
                p += 1;
            }
            // Four lanes for each scale.
            let scales = _mm512_permutexvar_ps(constants::by_four(4 * i as i32), scales);
            let dot = _mm512_cvtepi32_ps(dot);
            sums.products[i] = _mm512_fmadd_ps(dot, scales, sums.products[i]);
            i += 1;
        }
    }
}

/// Vectors that do not change.
pub(super) mod constants {
    use super::*;

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
                at(0), at(0), at(1), at(1), at(2), at(2), at(3), at(3),
                at(4), at(4), at(5), at(5), at(6), at(6), at(7), at(7),
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
}

/// The levels of a table without a sign.
pub(super) const fn from_0(table: &[i8; 16], offset: i8) -> [i8; 16] {
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
pub(super) unsafe fn sixteen(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: as the caller promises.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// An f16 in all lanes.
///
/// # Safety
///
/// Two bytes can be read.
#[inline(always)]
pub(super) unsafe fn half(at: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// Two f16 in all lanes each.
///
/// # Safety
///
/// Four bytes can be read.
#[inline(always)]
pub(super) unsafe fn two_halves(at: *const u8) -> (__m512, __m512) {
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
pub(super) unsafe fn two_by_two(a: *const u8, b: *const u8) -> __m512i {
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
pub(super) unsafe fn planes(qs: *const u8) -> [__m512i; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut codes = [_mm512_setzero_si512(); 4];
        let mut i = 0;
        while i < 4 {
            let qs = _mm512_broadcast_i64x4(_mm256_loadu_si256(qs.add(i / 2 * 32).cast()));
            let (first, second) = if i % 2 == 0 { (0, 2) } else { (4, 6) };
            let shifted = _mm512_srlv_epi64(qs, constants::halves(first, second));
            codes[i] = _mm512_and_si512(shifted, _mm512_set1_epi8(3));
            i += 1;
        }
        codes
    }
}

/// As [`add_bits`](super::kinds) of 32 bytes.
///
/// # Safety
///
/// 32 bytes can be read.
#[inline(always)]
pub(super) unsafe fn add_bits(bits: *const u8, weight: i8, codes: &mut [__m512i; 4]) {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = _mm512_broadcast_i64x4(_mm256_loadu_si256(bits.cast()));
        let weight = _mm512_set1_epi8(weight);
        let mut i = 0;
        while i < 4 {
            let bit = |k: usize| (0x0101_0101_0101_0101u64 << k) as i64;
            let set = _mm512_test_epi8_mask(bits, constants::halves(bit(2 * i), bit(2 * i + 1)));
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
pub(super) unsafe fn half_e8m0(e: __m512i) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe {
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, constants::splat(1)));
        let small = _mm512_sllv_epi32(constants::splat(1 << 21), e);
        let few = _mm512_cmplt_epu32_mask(e, constants::splat(2));
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, few, small))
    }
}

/// What lies at byte `AT` of each of eight blocks of `BYTES` bytes, twice each.
pub(super) struct Strided<const BYTES: usize, const AT: usize>;

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
    pub(super) unsafe fn words(unit: *const u8) -> __m256i {
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
    pub(super) unsafe fn bytes(unit: *const u8) -> __m512i {
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

const _: () = assert!(GROUPS == 16, "one scale to a lane");
