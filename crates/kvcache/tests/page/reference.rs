//! A slow reader and writer of pages, from `docs/methods/page.md` alone: dense matrices in f64, bit after bit.

use ndarray::{Array2, Array3, ArrayView3};
use tensorpress_kvcache::page::PageConfig;
use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::linalg::hadamard_matrix;
use tensorpress_tensor::{DType, ndarray};

/// Value `i` of SplitMix64.
fn random(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i + 1));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// T of a head, `[dim, dim]`; `values` says of which plane.
pub fn rotation(config: &PageConfig, values: bool, head: usize) -> Array2<f64> {
    let words = |dim: usize| dim.div_ceil(64);
    let dim = if values { config.value_dim } else { config.head_dim };
    if !config.rotate || dim == 0 {
        return Array2::eye(dim);
    }
    let before = if values { config.kv_heads * words(config.head_dim) } else { 0 };
    let odd = dim >> dim.trailing_zeros();
    let orders = (0..=dim.trailing_zeros()).map(|twos| odd << twos).filter(|_| odd > 1);
    let small = orders.filter(|order| *order <= 256).find_map(hadamard_matrix);
    // Without a Hadamard matrix: blocks of the largest power of two.
    let block = if odd > 1 && small.is_none() { dim / odd } else { dim };
    let small = small.unwrap_or_else(|| Array2::eye(1));
    let order = small.nrows();
    Array2::from_shape_fn((dim, dim), |(i, j)| {
        if i / block != j / block {
            return 0.0;
        }
        let (a, b) = (i % block, j % block);
        let sylvester = if ((a / order) & (b / order)).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
        let word = before + head * words(dim) + i / 64;
        let negative = random(config.seed, word as u64) >> (i % 64) & 1 == 1;
        let sign = if negative { -1.0 } else { 1.0 };
        sign * sylvester * f64::from(small[[a % order, b % order]]) / (block as f64).sqrt()
    })
}

/// Each head times T, or Tᵀ.
pub fn turned(
    config: &PageConfig,
    values: bool,
    x: ArrayView3<'_, f64>,
    back: bool,
) -> Array3<f64> {
    let mut out = Array3::zeros(x.dim());
    for head in 0..config.kv_heads {
        let t = rotation(config, values, head);
        for token in 0..x.dim().0 {
            for i in 0..x.dim().2 {
                for j in 0..x.dim().2 {
                    let entry = if back { t[[j, i]] } else { t[[i, j]] };
                    out[[token, head, j]] += x[[token, head, i]] * entry;
                }
            }
        }
    }
    out
}

fn float(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        other => panic!("{other:?}"),
    }
}

/// What stands in a page for one number, before it is rotated back.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Shown where a bound is broken.
    #[allow(dead_code)]
    pub code: u8,
    pub scale: f64,
    pub min: f64,
    pub value: f64,
}

/// Where the sections of keys and values begin: codes, scales, minima of keys, then those of values, then the checksum.
pub fn sections(config: &PageConfig) -> [usize; 7] {
    let mut at = 48;
    let mut begin = Vec::new();
    for (dim, bits) in [(config.head_dim, config.key_bits), (config.value_dim, config.value_bits)] {
        let groups = dim.div_ceil(config.group);
        let codes = (config.kv_heads * dim * bits as usize).div_ceil(8);
        let scales = config.kv_heads * groups * config.scales.size();
        for bytes in [codes, scales, if config.symmetric { 0 } else { scales }] {
            begin.push(at);
            at += config.tokens * bytes;
        }
    }
    begin.push(at);
    begin.try_into().unwrap()
}

/// All numbers of the keys or the values of a page, `[held, heads, dim]`.
pub fn entries(config: &PageConfig, page: &[u8], values: bool) -> Array3<Entry> {
    let held = u32::from_le_bytes(page[12..16].try_into().unwrap()) as usize;
    let (dim, bits, first) = match values {
        false => (config.head_dim, config.key_bits as usize, 0),
        true => (config.value_dim, config.value_bits as usize, 3),
    };
    let begin = sections(config);
    assert_eq!(page.len(), begin[6] + 8);
    let size = config.scales.size();
    let (heads, groups) = (config.kv_heads, dim.div_ceil(config.group));
    let row = (heads * dim * bits).div_ceil(8);
    Array3::from_shape_fn((held, heads, dim), |(token, head, channel)| {
        let codes = &page[begin[first] + token * row..];
        let code = (0..bits).fold(0, |code, bit| {
            let at = (head * dim + channel) * bits + bit;
            code | (codes[at / 8] >> (at % 8) & 1) << bit
        });
        let at = ((token * heads + head) * groups + channel / config.group) * size;
        let scale = float(config.scales, &page[begin[first + 1] + at..][..size]);
        let (min, value) = if config.symmetric {
            (0.0, scale * (f64::from(code) - f64::from(1 << (bits - 1))))
        } else {
            let min = float(config.scales, &page[begin[first + 2] + at..][..size]);
            (min, min + scale * f64::from(code))
        };
        Entry { code, scale, min, value }
    })
}

/// A page without rotation, written one number at a time.
pub fn written(config: &PageConfig, planes: &[Array3<f32>; 2]) -> Vec<u8> {
    assert!(!config.rotate);
    let begin = sections(config);
    let mut page = vec![0; begin[6]];
    page[..4].copy_from_slice(b"\x89TPG");
    page[4] = 1;
    page[5] = u8::from(!config.symmetric);
    (page[6], page[7]) = (config.key_bits as u8, config.value_bits as u8);
    let held = planes[0].dim().0;
    let counts = [config.tokens, held, config.kv_heads, config.head_dim, config.value_dim];
    for (i, count) in counts.into_iter().chain([config.group]).enumerate() {
        page[8 + 4 * i..][..4].copy_from_slice(&(count as u32).to_le_bytes());
    }
    page[32..40].copy_from_slice(&config.seed.to_le_bytes());
    page[40] =
        [DType::F32, DType::F16, DType::BF16].iter().position(|d| *d == config.scales).unwrap()
            as u8;
    for (plane, x) in planes.iter().enumerate() {
        let bits = [config.key_bits, config.value_bits][plane] as usize;
        let ((_, heads, dim), size) = (x.dim(), config.scales.size());
        let (groups, most) = (dim.div_ceil(config.group), ((1u32 << bits) - 1) as f32);
        let row = (heads * dim * bits).div_ceil(8);
        for (head, first) in (0..held * heads).flat_map(|h| (0..groups).map(move |g| (h, g))) {
            let (token, h) = (head / heads, head % heads);
            let channels = first * config.group..dim.min((first + 1) * config.group);
            let group: Vec<f32> = channels.clone().map(|c| x[[token, h, c]]).collect();
            let low = group.iter().copied().fold(f32::INFINITY, f32::min);
            let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let min = if config.symmetric { 0.0 } else { config.scales.round(low) };
            let span = if config.symmetric { 2.0 * high.max(-low) } else { (high - min).max(0.0) };
            let scale = config.scales.round(span / most);
            for (section, value) in
                [(1, scale), (2, min)].into_iter().filter(|(s, _)| *s == 1 || !config.symmetric)
            {
                let mut bytes = Vec::new();
                config.scales.write_f32(&[value], &mut bytes).unwrap();
                let at = begin[3 * plane + section] + (head * groups + first) * size;
                page[at..at + size].copy_from_slice(&bytes);
            }
            let zero = if config.symmetric { (1 << (bits - 1)) as f32 } else { 0.0 };
            for (c, v) in channels.zip(group) {
                let q = if scale > 0.0 { ((v - min) / scale).round_ties_even() } else { 0.0 };
                let code = (q + zero).clamp(0.0, most) as usize;
                for bit in 0..bits {
                    let at = (h * dim + c) * bits + bit;
                    let byte = &mut page[begin[3 * plane] + token * row + at / 8];
                    *byte |= ((code >> bit & 1) as u8) << (at % 8);
                }
            }
        }
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&page);
    page.extend(sum.to_le_bytes());
    page
}
