use std::hint::black_box;
use std::time::Instant;

use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress_tensor::half::f16;
use tensorpress_tensor::{DType, ndarray};

use crate::noise;

/// GB/s of the f16 side on one thread, best of many turns: `cargo test --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "prints what this machine does; asserts only that answers came"]
fn speed() {
    let new = PageConfig::new;
    for (name, config) in [
        ("default", new(16, 8, 128)),
        ("symmetric", new(16, 8, 128).with_symmetric(true)),
        ("not rotated", new(16, 8, 128).with_rotate(false)),
        ("8 bits", new(16, 8, 128).with_bits(8, 8)),
        ("3 bits", new(16, 8, 128).with_bits(3, 3)),
        ("group 32", new(16, 8, 128).with_group(32)),
        ("64 channels", new(64, 8, 64)),
        ("96 = 8 x 12 channels", new(64, 8, 96)),
        ("576 = 16 x 36 channels", new(64, 1, 576).with_value_dim(0)),
    ] {
        let codec = PageCodec::new(config).expect("a codec");
        let rows = |dim, seed| noise(config.tokens, config.kv_heads, dim, seed).mapv(f16::from_f32);
        let (keys, values) = (rows(config.head_dim, 1), rows(config.value_dim, 2));
        let (mut page, mut scratch) = (vec![0; codec.page_bytes()], PageScratch::default());
        let [mut k, mut v] = [&keys, &values].map(|x| Array3::from_elem(x.dim(), f16::ZERO));
        let [mut encode, mut decode] = [f64::INFINITY; 2];
        let bytes = config.raw_bytes(DType::F16) as f64;
        for _ in 0..400 {
            let start = Instant::now();
            let written =
                codec.encode(keys.view(), values.view(), black_box(&mut page), &mut scratch);
            written.expect("encodes");
            encode = encode.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            let read = codec.decode(black_box(&page), k.view_mut(), v.view_mut(), &mut scratch);
            assert_eq!(read.expect("decodes"), config.tokens);
            decode = decode.min(start.elapsed().as_secs_f64());
        }
        let [encode, decode] = [encode, decode].map(|s| bytes / s / 1e9);
        let ratio = codec.ratio(DType::F16);
        println!("{name}: ratio {ratio:.3}, encode {encode:.2} GB/s, decode {decode:.2} GB/s");
    }
}
