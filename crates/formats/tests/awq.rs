//! The tensors of AWQ against those that AutoAWQ wrote.

mod official;

use official::{bits, files, floats, ints, same, wrong_shapes, zeros};
use proptest::prelude::*;
use tensorpress_formats::awq::{Layer, Layout, Unpacked, Zeros};
use tensorpress_formats::gptq;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{DType, ErrorKind, Tensor};

fn check_same(ours: &Layer, stored: &Layer, what: &str) {
    same(&ours.qweight, &stored.qweight, what);
    same(&ours.qzeros, &stored.qzeros, what);
    same(&ours.scales, &stored.scales, what);
}

#[test]
fn official_layers_unpack_decode_and_pack() {
    let mut checked = Vec::new();
    for (prefix, layout) in [
        ("awq_gemm", Layout::Gemm),
        ("awq_gemv_", Layout::Gemv),
        ("awq_gemvfast", Layout::GemvFast),
    ] {
        let Some(files) = files(prefix) else { return };
        for (name, file) in &files {
            let group = if name.contains("g128") { 128 } else { 64 };
            let layer = Layer::read(file, "ckpt").expect("a layer");
            let unpacked = layer.unpack(layout, group).expect("an official layer");
            assert!(unpacked.codes.mapv(i64::from) == ints(file, "q_out_by_in"), "{name}: codes");
            assert!(unpacked.scales == floats(file, "in.scales"), "{name}: scales");
            check_same(&unpacked.pack(layout).expect("an official layer"), &layer, name);

            let zero_codes = ints(file, "in.zeros");
            let integers =
                Unpacked { zeros: Zeros::Codes(zero_codes.mapv(|z| z as u8)), ..unpacked.clone() };
            check_same(&integers.pack(layout).expect("an official layer"), &layer, name);
            if let Zeros::Codes(zeros) = &unpacked.zeros {
                assert!(zeros.mapv(i64::from) == zero_codes, "{name}: zero points");
            }
            let weight = unpacked.decode(DType::F16).expect("parts that belong together");
            if file.contains("out.weight_in_by_out") {
                let official = floats(file, "out.weight_in_by_out").reversed_axes();
                assert!(bits(&weight) == bits(&official), "{name}: weights");
            }
            // Offsets are rounded, to 11 bits of a product that is at most 15 steps.
            let exact = integers.decode(DType::F32).expect("parts that belong together");
            for (at, value) in weight.indexed_iter() {
                let step = unpacked.scales[[at.0, at.1 / group]];
                assert!((value - exact[at]).abs() <= 15.0 * step / 1024.0, "{name}: {at:?}");
            }
            checked.push(format!("{layout:?} in groups of {group}"));
        }
    }
    println!("checked: awq layers {}: {}", checked.len(), checked.join(", "));
    assert_eq!(checked.len(), 6, "golden files are missing");
}

/// What AutoAWQ's own conversion makes of its layers is a GPTQ layer of version 1.
#[test]
fn official_conversions_are_gptq_layers() {
    let Some(files) = files("awq_gemm") else { return };
    for (name, file) in &files {
        let group = if name.contains("g128") { 128 } else { 64 };
        let layer = Layer::read(file, "ckpt").expect("a layer");
        let unpacked = layer.unpack(Layout::Gemm, group).expect("an official layer");
        let Zeros::Codes(zeros) = &unpacked.zeros else { panic!("codes of zero") };
        let converted = gptq::Unpacked {
            codes: unpacked.codes.clone(),
            zeros: zeros.mapv(u16::from),
            scales: unpacked.scales.clone(),
            dtype: unpacked.dtype,
            group_of: (0..256).map(|k| k / group as u32).collect(),
        };
        let packed = converted.pack(gptq::Format::new(4, gptq::Version::V1)).expect("in range");
        same(&packed.qweight, &file.tensor("exllama.qweight").expect("there"), name);
        same(&packed.qzeros, &file.tensor("exllama.qzeros").expect("there"), name);
    }
    println!("checked: awq layers converted to gptq {}", files.len());
}

fn made(dims: [usize; 3], seed: u64) -> Unpacked {
    let [outputs, inputs, groups] = dims;
    let mut random = tensorpress_tensor::linalg::SplitMix::new(seed);
    let mut below = |n: u64| (random.next_f64() * n as f64) as u64;
    let codes = Array2::from_shape_fn((outputs, inputs), |_| below(16) as u8);
    let zeros = Zeros::Codes(Array2::from_shape_fn((outputs, groups), |_| below(16) as u8));
    let scales = Array2::from_shape_fn((outputs, groups), |_| below(1000) as f32 / 1024.0);
    Unpacked { codes, scales, dtype: DType::F16, zeros }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_packed_unpacks(
        layout in proptest::sample::select(vec![Layout::Gemm, Layout::Gemv, Layout::GemvFast]),
        group in proptest::sample::select(vec![32usize, 64, 128]),
        outputs in 1usize..3, groups in 1usize..4, seed: u64,
    ) {
        let groups = if group == 32 { 2 * groups } else { groups };
        let unpacked = made([8 * outputs, group * groups, groups], seed);
        let packed = unpacked.pack(layout).expect("in range");
        let again = packed.unpack(layout, group).expect("just packed");
        prop_assert_eq!(&again.codes, &unpacked.codes);
        prop_assert_eq!(&again.scales, &unpacked.scales);
        if layout != Layout::GemvFast {
            prop_assert_eq!(&again.zeros, &unpacked.zeros);
        }
        check_same(&again.pack(layout).expect("in range"), &packed, "packed again");
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let mut tried = 0;
    for layout in [Layout::Gemm, Layout::Gemv, Layout::GemvFast] {
        let layer = made([16, 256, 4], 2).pack(layout).expect("in range");
        let refused = |layer: &Layer, group: usize| {
            layer.unpack(layout, group).map(drop).expect_err("parts that do not fit")
        };
        for part in ["qweight", "qzeros", "scales"] {
            fn pick<'a>(layer: &'a mut Layer, part: &str) -> &'a mut tensorpress_tensor::RawTensor {
                match part {
                    "qweight" => &mut layer.qweight,
                    "qzeros" => &mut layer.qzeros,
                    _ => &mut layer.scales,
                }
            }
            let mut forged = layer.clone();
            let original = pick(&mut forged, part).clone();
            *pick(&mut forged, part) = zeros(DType::U8, original.shape());
            let error = refused(&forged, 64);
            assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some(part)));
            for shape in wrong_shapes(original.shape()) {
                *pick(&mut forged, part) = zeros(original.dtype(), &shape);
                if layout != Layout::Gemm && forged.unpack(layout, 64).is_ok() {
                    // Layers of other lengths whose groups are padded to as many.
                    assert_eq!((part, shape[0]), ("qweight", original.shape()[0]));
                    continue;
                }
                let error = refused(&forged, 64);
                assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{part} {shape:?}: {error}");
                assert!(error.tensor().is_some(), "{part} {shape:?}: {error}");
                tried += 1;
            }
        }
        for group in [0, 1, 48, 512, usize::MAX] {
            refused(&layer, group);
        }
    }
    println!("checked: awq shapes that do not fit {tried}");
    let mut bad = made([16, 256, 4], 3);
    bad.codes[[0, 9]] = 16;
    assert_eq!(bad.pack(Layout::Gemv).unwrap_err().tensor(), Some("qweight"));
    let mut bad = made([16, 256, 4], 3);
    bad.zeros = Zeros::Offsets(Array2::zeros((16, 4)));
    assert_eq!(bad.pack(Layout::Gemm).unwrap_err().tensor(), Some("qzeros"));
    bad.zeros = Zeros::Offsets(Array2::zeros((16, 5)));
    assert_eq!(bad.decode(DType::F32).unwrap_err().tensor(), Some("qzeros"));
    let odd = made([10, 256, 4], 3);
    assert_eq!(odd.pack(Layout::Gemm).unwrap_err().tensor(), Some("qweight"));
    assert_eq!(odd.pack(Layout::GemvFast).unwrap_err().tensor(), Some("qweight"));
    let odd = made([8, 100, 1], 3);
    assert_eq!(odd.pack(Layout::Gemv).unwrap_err().kind(), ErrorKind::InvalidArgument);
}
