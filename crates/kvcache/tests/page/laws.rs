use ndarray::{Array3, s};
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageRows, PageRowsMut, PageScratch};
use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::{DType, ndarray};

use crate::{cases, decode, encode, inputs};

#[test]
fn part_of_a_page_is_that_part() {
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        let x = inputs(&config, config.tokens, 8);
        let whole = decode(&codec, &encode(&codec, &x));
        for held in 0..config.tokens {
            let part = [0, 1].map(|i| x[i].slice(s![..held, .., ..]).to_owned());
            let page = encode(&codec, &part);
            assert_eq!(codec.held(&page).expect("a page"), held);
            // Room for all, in which what is not held stays.
            let mut out = [0, 1].map(|i| Array3::from_elem(x[i].dim(), 7.5f32));
            let [keys, values] = &mut out;
            let mut scratch = PageScratch::default();
            let got = codec.decode(&page, keys.view_mut(), values.view_mut(), &mut scratch);
            assert_eq!(got.expect("decodes"), held);
            for (out, whole) in out.iter().zip(&whole) {
                assert_eq!(out.slice(s![..held, .., ..]), whole.slice(s![..held, .., ..]));
                assert!(out.slice(s![held.., .., ..]).iter().all(|x| *x == 7.5));
            }
        }
    }
}

fn bytes_of(dtype: DType, x: &Array3<f32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    dtype.write_f32(x.as_slice().expect("standard layout"), &mut bytes).expect("a float");
    bytes
}

/// Typed, as bytes, with heads before tokens, with channels far apart: the same page.
#[test]
fn rows_come_in_any_type_and_layout() {
    let config = PageConfig::new(5, 3, 24).with_value_dim(10).with_group(9);
    let codec = PageCodec::new(config).expect("a codec");
    // What every type holds.
    let x = inputs(&config, 4, 21).map(|x| x.mapv(|v| (v * 8.0).round() / 8.0));
    let expected = encode(&codec, &x);
    let mut scratch = PageScratch::default();
    let mut check = |name: &str, [keys, values]: [PageRows<'_>; 2]| {
        let mut page = vec![0; codec.page_bytes()];
        codec.encode(keys, values, &mut page, &mut scratch).expect(name);
        assert!(page == expected, "{name}");
    };
    let [k, v] = x.each_ref().map(|x| x.mapv(f16::from_f32));
    check("f16", [k.view().into(), v.view().into()]);
    let [k, v] = x.each_ref().map(|x| x.mapv(bf16::from_f32));
    check("bf16", [k.view().into(), v.view().into()]);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let shapes: [[usize; 3]; 2] = x.each_ref().map(|x| x.dim().into());
        let [k, v] = x.each_ref().map(|x| [&[1], &bytes_of(dtype, x)[..]].concat());
        let rows = |bytes, shape| PageRows::bytes(dtype, bytes, shape).expect("rows");
        check("unaligned bytes", [rows(&k[1..], shapes[0]), rows(&v[1..], shapes[1])]);
        // [heads, tokens, channels], a number behind each row.
        let padded = |x: &Array3<f32>| {
            let (tokens, heads, dim) = x.dim();
            let mut wide = Array3::from_elem((heads, tokens, dim + 1), 9.0);
            wide.slice_mut(s![.., .., ..dim]).assign(&x.view().permuted_axes([1, 0, 2]));
            (bytes_of(dtype, &wide), [dim + 1, tokens * (dim + 1)])
        };
        let [(k, by_k), (v, by_v)] = x.each_ref().map(padded);
        let rows = |bytes, shape, strides| {
            PageRows::strided_bytes(dtype, bytes, shape, strides).expect("rows")
        };
        check("heads first", [rows(&k, shapes[0], by_k), rows(&v, shapes[1], by_v)]);
    }
    let [k, v] =
        x.each_ref().map(|x| x.view().permuted_axes([1, 2, 0]).as_standard_layout().into_owned());
    let back = |x: &Array3<f32>| x.view().permuted_axes([2, 0, 1]).to_owned();
    assert_eq!(back(&k), x[0]);
    check(
        "channels apart",
        [k.view().permuted_axes([2, 0, 1]).into(), v.view().permuted_axes([2, 0, 1]).into()],
    );
    let [k, v] = x.each_ref().map(|x| {
        let (tokens, heads, dim) = x.dim();
        let mut wide = Array3::from_elem((2 * tokens, heads, dim), f32::NAN);
        wide.slice_mut(s![..;2, .., ..]).assign(x);
        wide
    });
    check("every other", [k.slice(s![..;2, .., ..]).into(), v.slice(s![..;2, .., ..]).into()]);
}

#[test]
fn rows_go_into_any_type_and_layout() {
    let config = PageConfig::new(5, 3, 24).with_value_dim(10).with_group(9);
    let codec = PageCodec::new(config).expect("a codec");
    let page = encode(&codec, &inputs(&config, 4, 22));
    let expected = decode(&codec, &page);
    let mut scratch = PageScratch::default();
    let mut into = |[keys, values]: [PageRowsMut<'_>; 2]| {
        assert_eq!(codec.decode(&page, keys, values, &mut scratch).expect("decodes"), 4);
    };
    let shapes = expected.each_ref().map(|x| x.dim());
    let [mut k, mut v] = shapes.map(|shape| Array3::from_elem(shape, f16::ZERO));
    into([k.view_mut().into(), v.view_mut().into()]);
    assert_eq!([k, v], expected.each_ref().map(|x| x.mapv(f16::from_f32)));
    let [mut k, mut v] = shapes.map(|shape| Array3::from_elem(shape, bf16::ZERO));
    into([k.view_mut().into(), v.view_mut().into()]);
    assert_eq!([k, v], expected.each_ref().map(|x| x.mapv(bf16::from_f32)));
    let [mut k, mut v] = shapes.map(|(t, h, d)| Array3::from_elem((h, d, t), 0.0f32));
    into([
        k.view_mut().permuted_axes([2, 0, 1]).into(),
        v.view_mut().permuted_axes([2, 0, 1]).into(),
    ]);
    let back = |x: &Array3<f32>| x.view().permuted_axes([2, 0, 1]).to_owned();
    assert_eq!([back(&k), back(&v)], expected);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let size = dtype.size();
        let [mut k, mut v] = expected.each_ref().map(|x| vec![1u8; x.len() * size]);
        let [a, b] = shapes.map(<[usize; 3]>::from);
        into([
            PageRowsMut::bytes(dtype, &mut k, a).expect("rows"),
            PageRowsMut::bytes(dtype, &mut v, b).expect("rows"),
        ]);
        assert_eq!([&k, &v], expected.each_ref().map(|x| bytes_of(dtype, x)).each_ref());
        // A gap of one number behind each head of the keys.
        let mut k = vec![0x5a; 4 * 3 * 25 * size];
        let rows = PageRowsMut::strided_bytes(dtype, &mut k, a, [75, 25]).expect("rows");
        into([rows, PageRowsMut::bytes(dtype, &mut v, b).expect("rows")]);
        for (row, x) in k.chunks(25 * size).zip(expected[0].rows()) {
            let mut bytes = Vec::new();
            dtype.write_f32(&x.to_vec(), &mut bytes).expect("a float");
            assert_eq!(row[..24 * size], bytes);
            assert!(row[24 * size..].iter().all(|b| *b == 0x5a), "what lies between stays");
        }
    }
}

#[test]
fn codecs_are_shared_by_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<PageCodec>();
    shared::<PageScratch>();
    let config = PageConfig::new(8, 4, 96);
    let codec = PageCodec::new(config).expect("a codec");
    let pages: Vec<_> = (0..4).map(|i| encode(&codec, &inputs(&config, 8, i))).collect();
    std::thread::scope(|scope| {
        for (i, page) in pages.iter().enumerate() {
            let (codec, config) = (&codec, &config);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert!(encode(codec, &inputs(config, 8, i as u64)) == *page);
                }
            });
        }
    });
}

/// One scratch serves codecs of all sizes, and leaves nothing of one page in the next.
#[test]
fn scratches_know_nothing() {
    let mut scratch = PageScratch::default();
    for config in cases().into_iter().chain(cases().into_iter().rev()) {
        let codec = PageCodec::new(config).expect("a codec");
        let x = inputs(&config, config.tokens, 30);
        let mut page = vec![0; codec.page_bytes()];
        codec.encode(x[0].view(), x[1].view(), &mut page, &mut scratch).expect("encodes");
        assert!(page == encode(&codec, &x), "{config:?}");
        let mut out = x.each_ref().map(|x| Array3::<f32>::zeros(x.dim()));
        let [k, v] = &mut out;
        codec.decode(&page, k.view_mut(), v.view_mut(), &mut scratch).expect("decodes");
        assert_eq!(out, decode(&codec, &page));
    }
}
