use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig};
use tensorpress_tensor::{DType, ndarray};

use crate::{cases, decode, encode, inputs, reference};

/// Largest of all magnitudes.
fn largest(x: &Array3<f32>) -> f64 {
    x.iter().fold(0.0, |most, x| f64::from(x.abs()).max(most))
}

#[test]
fn rotations_of_the_reference_are_orthogonal() {
    for config in cases() {
        for (values, dim) in [(false, config.head_dim), (true, config.value_dim)] {
            let t = reference::rotation(&config, values, config.kv_heads - 1);
            for (i, j) in (0..dim).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let dot = t.row(i).dot(&t.row(j));
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{config:?}");
            }
        }
    }
}

#[test]
fn pages_read_as_documented() {
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        let x = inputs(&config, config.tokens, 5);
        let page = encode(&codec, &x);
        for (i, decoded) in decode(&codec, &page).iter().enumerate() {
            let entries = reference::entries(&config, &page, i == 1).mapv(|e| e.value);
            let expected = reference::turned(&config, i == 1, entries.view(), true);
            let most = largest(&x[i]);
            for (at, expected) in expected.indexed_iter() {
                let error = (f64::from(decoded[at]) - expected).abs();
                assert!(error <= 4e-6 * (1.0 + most), "{config:?} {at:?}: {error}");
            }
        }
    }
}

#[test]
fn unrotated_pages_are_written_as_documented() {
    let mut seen = 0;
    for config in cases() {
        let config = config.with_rotate(false);
        let codec = PageCodec::new(config).expect("a codec");
        for held in 0..=config.tokens {
            let x = inputs(&config, held, 50);
            assert!(encode(&codec, &x) == reference::written(&config, &x), "{config:?}, {held}");
            seen += 1;
        }
    }
    assert!(seen > 60);
}

/// Of every number before it is rotated back: half a step, and what rounding scale and minimum takes.
#[test]
fn errors_are_bounded() {
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        let x = inputs(&config, config.tokens, 15);
        let page = encode(&codec, &x);
        let unit = match config.scales {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-8),
        };
        for (i, bits) in [config.key_bits, config.value_bits].into_iter().enumerate() {
            let exact = reference::turned(&config, i == 1, x[i].mapv(f64::from).view(), false);
            let rounding = 2e-6 * largest(&x[i]);
            for (at, entry) in reference::entries(&config, &page, i == 1).indexed_iter() {
                let most = f64::from((1u32 << bits) - 1);
                let span = entry.scale * most;
                let bound = entry.scale / 2.0 + unit * (entry.min.abs() + 2.0 * span) + rounding;
                let error = (entry.value - exact[at]).abs();
                assert!(error <= bound, "{config:?} {at:?}: {error} > {bound}, {entry:?}");
            }
        }
    }
}

/// Bytes and numbers are those of the machines that were here first: other instruction sets make and read the same.
#[test]
fn pages_are_the_same_everywhere() {
    let (mut pages, mut numbers) = (Vec::new(), Vec::new());
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        let page = encode(&codec, &inputs(&config, config.tokens, 99));
        for plane in decode(&codec, &page) {
            numbers.extend(plane.iter().flat_map(|x| x.to_le_bytes()));
        }
        pages.extend(page);
    }
    let digests = [pages, numbers].map(|bytes| xxhash_rust::xxh3::xxh3_64(&bytes));
    assert_eq!(digests, [PAGES, NUMBERS], "{digests:#x?}");
}

const PAGES: u64 = 0xe7e5_e2b5_f116_eff8;
const NUMBERS: u64 = 0x1abf_cb94_2818_7857;

#[test]
fn what_is_declared_is_what_is_written() {
    // By hand: 16 tokens of 8 heads of 128 + 128 channels, half a byte each, 2 + 2 groups of 2 x 2 bytes.
    let config = PageConfig::default();
    let codec = PageCodec::default();
    assert_eq!(codec.config(), &config);
    assert_eq!(codec.page_bytes(), 48 + 16 * 8 * (128 + 16) + 8);
    assert_eq!(config.raw_bytes(DType::F16), 16 * 8 * 256 * 2);
    assert_eq!(codec.ratio(DType::F16), 65536.0 / 18488.0);
    assert_eq!(codec.ratio(DType::BF16), codec.ratio(DType::F16));
    assert_eq!(codec.ratio(DType::F32), 2.0 * codec.ratio(DType::F16));
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        assert_eq!(codec.page_bytes(), reference::sections(&config)[6] + 8);
        assert_eq!(config.page_bytes().expect("allowed"), codec.page_bytes());
        let page = encode(&codec, &inputs(&config, 1, 3));
        assert_eq!(PageConfig::of(&page).expect("a page"), config);
    }
}
