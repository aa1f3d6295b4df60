use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageRows, PageRowsMut, PageScratch};
use tensorpress_tensor::half::f16;
use tensorpress_tensor::{DType, ErrorKind, ndarray};

use crate::{encode, inputs};

#[test]
fn configurations_are_checked() {
    let config = PageConfig::default();
    for (name, wrong) in [
        ("tokens = 0", PageConfig::new(0, 1, 1)),
        ("tokens = 65536", PageConfig::new(65536, 1, 1)),
        ("kv_heads = 0", PageConfig::new(1, 0, 1)),
        ("head_dim = 0", PageConfig::new(1, 1, 0)),
        ("value_dim = 70000", config.with_value_dim(70000)),
        ("group = 0", config.with_group(0)),
        ("key_bits = 1", config.with_bits(1, 4)),
        ("key_bits = 9", config.with_bits(9, 4)),
        ("value_bits = 0", config.with_bits(4, 0)),
        ("value_bits = 4294967295", config.with_bits(4, u32::MAX)),
        ("scales = F64", config.with_scales(DType::F64)),
        ("scales = I8", config.with_scales(DType::I8)),
    ] {
        for error in [PageCodec::new(wrong).expect_err(name), wrong.page_bytes().expect_err(name)] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().starts_with(name), "{error}");
        }
    }
}

/// NaN, infinity and what is too large: named, in every type; the page holds nothing.
#[test]
fn numbers_that_no_page_holds_are_named() {
    for config in [
        PageConfig::new(4, 2, 64),
        PageConfig::new(4, 2, 64).with_rotate(false).with_symmetric(true).with_scales(DType::F32),
        PageConfig::new(4, 2, 96).with_scales(DType::BF16),
    ] {
        let codec = PageCodec::new(config).expect("a codec");
        let good = inputs(&config, 4, 3);
        let mut page = encode(&codec, &good);
        let mut scratch = PageScratch::default();
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e29, -f32::MAX] {
            for plane in 0..2 {
                let mut x = good.clone();
                x[plane][[2, 1, 37]] = wrong;
                let failed = codec.encode(x[0].view(), x[1].view(), &mut page, &mut scratch);
                let error = failed.expect_err("not finite");
                assert_eq!(error.kind(), ErrorKind::Numerical);
                assert_eq!(error.tensor(), Some(["keys", "values"][plane]));
                let place = "token 2, head 1, channel 37 is ";
                assert!(error.message().starts_with(place), "{error}");
                assert_eq!(codec.held(&page).expect_err("no page").kind(), ErrorKind::Corruption);
                codec
                    .encode(good[0].view(), good[1].view(), &mut page, &mut scratch)
                    .expect("good");
                assert_eq!(codec.held(&page).expect("a page"), 4);
            }
        }
        let mut x = good.each_ref().map(|x| x.mapv(f16::from_f32));
        x[0][[0, 0, 0]] = f16::NAN;
        let failed = codec.encode(x[0].view(), x[1].view(), &mut page, &mut scratch);
        assert_eq!(failed.expect_err("NaN").kind(), ErrorKind::Numerical);
    }
}

#[test]
fn what_scales_do_not_hold_is_named() {
    let config = PageConfig::new(4, 2, 64).with_group(32);
    for (symmetric, rotate) in [(false, false), (false, true), (true, false), (true, true)] {
        let config = config.with_symmetric(symmetric).with_rotate(rotate);
        let codec = PageCodec::new(config).expect("a codec");
        let mut x = inputs(&config, 4, 3);
        x[1][[3, 1, 9]] = 1e8;
        let mut page = vec![0; codec.page_bytes()];
        let mut scratch = PageScratch::default();
        let failed = codec.encode(x[0].view(), x[1].view(), &mut page, &mut scratch);
        let error = failed.expect_err("too large");
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("values")));
        assert!(error.message().starts_with("token 3, head 1: "), "{error}");
        assert!(codec.held(&page).is_err());
        // Wider scales hold it.
        for scales in [DType::F32, DType::BF16] {
            encode(&PageCodec::new(config.with_scales(scales)).expect("a codec"), &x);
        }
    }
}

#[test]
fn shapes_and_lengths_are_checked() {
    let config = PageConfig::new(4, 2, 16).with_value_dim(8);
    let codec = PageCodec::new(config).expect("a codec");
    let zeros = |t, h, d| Array3::<f32>::zeros((t, h, d));
    let mut scratch = PageScratch::default();
    let mut page = encode(&codec, &inputs(&config, 3, 3));
    let before = page.clone();
    for (keys, values, named) in [
        (zeros(5, 2, 16), zeros(5, 2, 8), "5 tokens for a page of 4"),
        (zeros(3, 2, 16), zeros(4, 2, 8), "[4, 2, 8]"),
        (zeros(3, 1, 16), zeros(3, 2, 8), "[3, 1, 16]"),
        (zeros(3, 2, 17), zeros(3, 2, 8), "[3, 2, 17]"),
        (zeros(3, 2, 16), zeros(3, 2, 16), "[3, 2, 16]"),
        (zeros(3, 2, 16), zeros(3, 3, 8), "[3, 3, 8]"),
    ] {
        let error = codec.encode(keys.view(), values.view(), &mut page, &mut scratch);
        let error = error.expect_err(named);
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
        assert!(error.message().contains(named), "{error}");
        assert!(page == before, "what cannot begin leaves the page");
    }
    for len in [0, codec.page_bytes() - 1, codec.page_bytes() + 1] {
        let (k, v) = (zeros(1, 2, 16), zeros(1, 2, 8));
        let failed = codec.encode(k.view(), v.view(), &mut vec![0; len], &mut scratch);
        assert_eq!(failed.expect_err("a length").kind(), ErrorKind::ShapeMismatch);
    }
    for (mut keys, mut values) in [
        (zeros(2, 2, 16), zeros(2, 2, 8)),
        (zeros(3, 2, 16), zeros(4, 2, 8)),
        (zeros(3, 2, 15), zeros(3, 2, 8)),
        (zeros(3, 2, 16), zeros(3, 1, 8)),
    ] {
        let failed = codec.decode(&page, keys.view_mut(), values.view_mut(), &mut scratch);
        assert_eq!(failed.expect_err("a shape").kind(), ErrorKind::ShapeMismatch);
    }
}

#[test]
fn rows_in_bytes_are_checked() {
    let bytes = vec![0; 2 * 3 * 4 * 2];
    let shape = [2, 3, 4];
    assert!(PageRows::bytes(DType::F16, &bytes, shape).is_ok());
    let kind =
        |rows: Result<PageRows<'_>, tensorpress_tensor::Error>| rows.expect_err("wrong").kind();
    assert_eq!(kind(PageRows::bytes(DType::I8, &bytes, shape)), ErrorKind::Unsupported);
    assert_eq!(kind(PageRows::bytes(DType::F64, &bytes, shape)), ErrorKind::Unsupported);
    let mismatch = ErrorKind::ShapeMismatch;
    for (dtype, len, shape) in [
        (DType::F32, 48, shape),
        (DType::BF16, 47, shape),
        (DType::F16, 48, [2, 3, 3]),
        (DType::F16, 48, [usize::MAX, usize::MAX, 4]),
        (DType::F16, 0, [1, usize::MAX, usize::MAX]),
    ] {
        assert_eq!(kind(PageRows::bytes(dtype, &bytes[..len], shape)), mismatch);
        assert!(PageRowsMut::bytes(dtype, &mut vec![0; len], shape).is_err());
    }
    // The last row ends with the bytes.
    for (strides, fits) in [
        ([12, 4], true),
        ([4, 8], true),
        ([4, 9], false),
        ([13, 4], false),
        ([0, 0], true),
        ([usize::MAX, 4], false),
    ] {
        let rows = PageRows::strided_bytes(DType::F16, &bytes, shape, strides);
        assert_eq!(rows.is_ok(), fits, "{strides:?}");
        let mut bytes = bytes.clone();
        assert_eq!(
            PageRowsMut::strided_bytes(DType::F16, &mut bytes, shape, strides).is_ok(),
            fits
        );
    }
}
