//! The tensors of GPTQ against those that official packages wrote.

mod official;

use official::{bits, files, floats, ints, said, same, wrong_shapes, zeros};
use proptest::prelude::*;
use tensorpress_formats::gptq::{Format, Layer, Unpacked, Version};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{DType, ErrorKind, Tensor};

#[test]
fn official_layers_unpack_decode_and_pack() {
    let mut checked = Vec::new();
    for (prefix, version) in [("gptq_v1", Version::V1), ("gptq_v2", Version::V2)] {
        let Some(files) = files(prefix) else { return };
        for (name, file) in &files {
            let width: u8 = said(file, "bits").parse().expect("a number");
            let format = Format::new(width, version);
            let layer = Layer::read(file, "ckpt").expect("a layer");
            let unpacked = layer.unpack(format).expect("an official layer");
            assert!(unpacked.codes.mapv(i64::from) == ints(file, "q_out_by_in"), "{name}: codes");
            let zeros = ints(file, "in.zero_out_by_group");
            assert!(unpacked.zeros.mapv(i64::from) == zeros, "{name}: zero points");
            assert!(unpacked.scales == floats(file, "in.scale_out_by_group"), "{name}: scales");

            let weight = unpacked.decode(DType::F16).expect("parts that belong together");
            let official = floats(file, "out.weight_in_by_out").reversed_axes();
            assert!(bits(&weight) == bits(&official), "{name}: weights");

            let packed = unpacked.pack(format).expect("an official layer");
            same(&packed.qweight, &layer.qweight, name);
            same(&packed.qzeros, &layer.qzeros, name);
            same(&packed.scales, &layer.scales, name);
            same(
                packed.g_idx.as_ref().expect("written"),
                layer.g_idx.as_ref().expect("there"),
                name,
            );

            // Without the index where groups are runs.
            let group: usize = said(file, "group_size").parse().expect("a number");
            if !name.contains("actorder") {
                let bare = Layer { g_idx: None, ..layer.clone() };
                assert!(bare.unpack(format).expect("equal groups") == unpacked, "{name}");
                assert!(bare.unpack(format.with_group(group)).expect("runs") == unpacked, "{name}");
                bare.unpack(format.with_group(group / 2)).map(drop).expect_err("other groups");
            }
            checked.push(format!("{width} bits {version:?}"));
        }
    }
    println!("checked: gptq layers {}: {}", checked.len(), checked.join(", "));
    assert_eq!(checked.len(), 12, "golden files are missing");
}

fn made(width: u8, dims: [usize; 3], version: Version, seed: u64) -> Unpacked {
    let [outputs, inputs, groups] = dims;
    let mut random = tensorpress_tensor::linalg::SplitMix::new(seed);
    let mut below = |n: u64| (random.next_f64() * n as f64) as u64;
    let codes = Array2::from_shape_fn((outputs, inputs), |_| below(1 << width) as u8);
    let first = u16::from(version == Version::V1);
    let zeros = Array2::from_shape_fn((outputs, groups), |_| below(1 << width) as u16 + first);
    let scales = Array2::from_shape_fn((outputs, groups), |_| below(1000) as f32 / 1024.0);
    let group_of = (0..inputs).map(|_| below(groups as u64) as u32).collect();
    Unpacked { codes, zeros, scales, dtype: DType::F16, group_of }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_packed_unpacks(
        width in proptest::sample::select(vec![2u8, 3, 4, 8]),
        outputs in 1usize..4, inputs in 1usize..4, groups in 1usize..5, seed: u64,
        version in proptest::sample::select(vec![Version::V1, Version::V1Wrapped, Version::V2]),
    ) {
        let unpacked = made(width, [32 * outputs, 32 * inputs, groups], version, seed);
        let format = Format::new(width, version);
        let packed = unpacked.pack(format).expect("in range");
        prop_assert_eq!(packed.unpack(format).expect("just packed"), unpacked);
    }
}

#[test]
fn the_greatest_stored_zero_point_has_two_readings() {
    let mut unpacked = made(4, [8, 8, 1], Version::V1, 1);
    unpacked.zeros.fill(16);
    let packed = unpacked.pack(Format::new(4, Version::V1)).expect("in range");
    assert!(packed.qzeros.bytes().iter().all(|byte| *byte == 0xff));
    let wrapped = packed.unpack(Format::new(4, Version::V1Wrapped)).expect("a layer");
    assert!(wrapped.zeros.iter().all(|zero| *zero == 0));
    let again = wrapped.pack(Format::new(4, Version::V1Wrapped)).expect("in range");
    same(&again.qzeros, &packed.qzeros, "zero points");
    unpacked.zeros.fill(1);
    for (version, bad) in
        [(Version::V1, 0), (Version::V1, 17), (Version::V1Wrapped, 16), (Version::V2, 16)]
    {
        unpacked.zeros[[3, 0]] = bad;
        let error = unpacked.pack(Format::new(4, version)).map(drop).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidArgument, Some("qzeros")));
        assert!(error.to_string().contains("[3, 0]"), "{error}");
        unpacked.zeros[[3, 0]] = 1;
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let format = Format::new(4, Version::V2);
    let layer = made(4, [32, 64, 4], Version::V2, 2).pack(format).expect("in range");
    let refused = |layer: &Layer, format: Format| {
        layer.unpack(format).map(drop).expect_err("parts that do not fit")
    };
    let mut tried = 0;
    for part in ["qweight", "qzeros", "scales", "g_idx"] {
        let get = |layer: &mut Layer| match part {
            "qweight" => std::mem::replace(&mut layer.qweight, zeros(DType::I32, &[0])),
            "qzeros" => std::mem::replace(&mut layer.qzeros, zeros(DType::I32, &[0])),
            "scales" => std::mem::replace(&mut layer.scales, zeros(DType::I32, &[0])),
            _ => layer.g_idx.take().expect("written"),
        };
        let set = |layer: &mut Layer, value| match part {
            "qweight" => layer.qweight = value,
            "qzeros" => layer.qzeros = value,
            "scales" => layer.scales = value,
            _ => layer.g_idx = Some(value),
        };
        let original = get(&mut layer.clone());
        let other = if part == "scales" { DType::I32 } else { DType::U8 };
        let mut forged = layer.clone();
        set(&mut forged, zeros(other, original.shape()));
        let error = refused(&forged, format);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some(part)));
        for shape in wrong_shapes(original.shape()) {
            set(&mut forged, zeros(original.dtype(), &shape));
            let error = refused(&forged, format);
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{part} {shape:?}: {error}");
            assert!(error.tensor().is_some(), "{part} {shape:?}: {error}");
            tried += 1;
        }
    }
    println!("checked: gptq shapes that do not fit {tried}");
    let mut forged = layer.clone();
    for group in [4i32, -1] {
        let index: Vec<u8> = [group; 64].iter().flat_map(|group| group.to_le_bytes()).collect();
        let index = tensorpress_tensor::RawTensor::new(DType::I32, vec![64], index.into());
        forged.g_idx = Some(index.expect("64 numbers"));
        let error = refused(&forged, format);
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corruption, Some("g_idx")));
    }
    for width in [0, 1, 5, 7, 9, 255] {
        let error = refused(&layer, Format::new(width, Version::V2));
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let error = refused(&layer, format.with_group(0));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    // And those of what is to be packed.
    let unpacked = layer.unpack(format).expect("a layer");
    let mut bad = unpacked.clone();
    bad.codes[[1, 2]] = 16;
    let error = bad.pack(format).map(drop).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidArgument, Some("qweight")));
    let mut bad = unpacked.clone();
    bad.group_of[5] = 4;
    assert_eq!(bad.decode(DType::F32).unwrap_err().tensor(), Some("g_idx"));
    let mut bad = unpacked.clone();
    bad.zeros = Array2::zeros((32, 3));
    assert_eq!(bad.decode(DType::F32).unwrap_err().tensor(), Some("qzeros"));
    let odd = made(3, [31, 32, 1], Version::V2, 3);
    assert_eq!(odd.pack(Format::new(3, Version::V2)).unwrap_err().tensor(), Some("qzeros"));
}
