//! Pages: what is written is what `docs/methods/page.md` says, errors are bounded, damage is seen.

mod bad_input;
mod damage;
mod laws;
mod quality;
mod reference;
mod wire;

use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{DType, ndarray};

/// Sizes with a Hadamard matrix of a power of two (32, 64), of Paley's (96 = 8 x 12, 36), of blocks (100 = 25 x 4), and none
/// (33); groups that divide, that do not, and that are longer than a head; every width of codes; every type of scales.
pub(crate) fn cases() -> Vec<PageConfig> {
    let new = PageConfig::new;
    let mut cases = vec![
        new(4, 2, 64),
        new(4, 2, 64).with_symmetric(true),
        new(4, 2, 64).with_rotate(false),
        new(3, 1, 96).with_group(32).with_seed(7),
        new(3, 2, 100).with_value_dim(36).with_group(24).with_bits(5, 3),
        new(2, 3, 33).with_value_dim(7).with_group(10).with_bits(3, 2).with_scales(DType::BF16),
        new(2, 3, 33).with_group(10).with_bits(7, 5).with_symmetric(true).with_rotate(false),
        new(2, 1, 128).with_value_dim(0).with_bits(8, 2).with_scales(DType::F32),
        new(1, 1, 1).with_bits(2, 2),
        new(7, 5, 6).with_group(500).with_bits(6, 4).with_seed(u64::MAX),
    ];
    for bits in 2..=8 {
        let symmetric = bits % 2 == 0;
        cases.push(new(3, 2, 32).with_bits(bits, 10 - bits).with_symmetric(symmetric));
    }
    cases
}

/// Numbers in (-1, 1), a few channels 20 x larger.
pub(crate) fn noise(tokens: usize, heads: usize, dim: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, dim), |(_, _, c)| {
        let unit = (random.next_f64() * 2.0 - 1.0) as f32;
        unit * if c % 29 == 3 { 20.0 } else { 1.0 }
    })
}

/// Keys and values of a configuration.
pub(crate) fn inputs(config: &PageConfig, tokens: usize, seed: u64) -> [Array3<f32>; 2] {
    let rows = |dim, seed| noise(tokens, config.kv_heads, dim, seed);
    [rows(config.head_dim, seed), rows(config.value_dim, seed + 1)]
}

pub(crate) fn encode(codec: &PageCodec, [keys, values]: &[Array3<f32>; 2]) -> Vec<u8> {
    // Whatever stood there before.
    let mut page = vec![0xa5; codec.page_bytes()];
    let mut scratch = PageScratch::default();
    codec.encode(keys.view(), values.view(), &mut page, &mut scratch).expect("encodes");
    page
}

pub(crate) fn decode(codec: &PageCodec, page: &[u8]) -> [Array3<f32>; 2] {
    let config = codec.config();
    let held = codec.held(page).expect("a page");
    let mut out = [config.head_dim, config.value_dim]
        .map(|dim| Array3::from_elem((held, config.kv_heads, dim), f32::NAN));
    let [keys, values] = &mut out;
    let mut scratch = PageScratch::default();
    let decoded = codec.decode(page, keys.view_mut(), values.view_mut(), &mut scratch);
    assert_eq!(decoded.expect("decodes"), held);
    out
}

/// A page with a checksum that fits what it says now.
pub(crate) fn mend(page: &mut [u8]) {
    let (rest, sum) = page.split_last_chunk_mut::<8>().expect("a page");
    *sum = xxhash_rust::xxh3::xxh3_64(rest).to_le_bytes();
}
