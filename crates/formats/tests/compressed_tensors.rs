//! The tensors of compressed-tensors against those that the package wrote.

mod official;

use official::{bits, files, floats, ints, said, same, wrong_shapes, zeros};
use proptest::prelude::*;
use tensorpress_formats::compressed_tensors::{
    FloatQuantized, Granularity, IntQuantized, Integers, Marlin24, Mx, MxFormat, Nvfp4,
    PackQuantized, Packing, Scales, Sparse24Bitmask, SparseBitmask, UnpackedMx, UnpackedNvfp4,
    pack_words, unpack_words,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::{DType, Error, ErrorKind, RawTensor, Tensor};

#[test]
fn words_are_those_of_both_versions() {
    let Some(files) = files("ct_pack_int32_bits") else { return };
    let (_, file) = &files[0];
    let mut checked = 0;
    for width in 1..=8u8 {
        let values = ints(file, &format!("b{width}.values")).mapv(|v| v as i8);
        for (packing, name) in [(Packing::Dense, "dense"), (Packing::WordAligned, "wordaligned")] {
            for axis in [0, 1] {
                let name = format!("b{width}.packed_dim{axis}_{name}");
                let stored = file.tensor(&name).expect("there");
                let packed =
                    pack_words(values.view(), width, packing, Axis(axis)).expect("in range");
                same(&packed, &stored, &name);
                let again = unpack_words(&stored, width, packing, Axis(axis), values.dim().into());
                assert!(again.expect("official words") == values, "{name}");
                checked += 1;
            }
        }
    }
    println!("checked: compressed-tensors words {checked}");
    assert_eq!(checked, 32);
}

#[test]
fn packed_integers_unpack_decode_and_pack() {
    let Some(files) = files("ct_pack_w") else { return };
    for (name, file) in &files {
        let width: u8 = name[9..10].parse().expect("a number");
        let layer = PackQuantized::read(file, "ckpt").expect("a layer");
        let integers = layer.unpack(width, Packing::Dense).expect("an official layer");
        assert_eq!(integers.zeros.is_some(), name.contains("asym"), "{name}");
        let weight = integers.decode(integers.scales.dtype).expect("parts that belong together");
        assert!(bits(&weight) == bits(&floats(file, "out.weight")), "{name}: weights");

        let packed = PackQuantized::pack(&integers, width, Packing::Dense).expect("in range");
        same(&packed.weight_packed, &layer.weight_packed, name);
        same(&packed.weight_scale, &layer.weight_scale, name);
        same(&packed.weight_shape, &layer.weight_shape, name);
        match (&packed.weight_zero_point, &layer.weight_zero_point) {
            (Some(ours), Some(stored)) => same(ours, stored, name),
            (ours, stored) => assert!(ours.is_none() && stored.is_none(), "{name}"),
        }
        if width == 5 {
            let error = layer.unpack(width, Packing::WordAligned).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{error}");
        }
    }
    println!("checked: pack-quantized layers {}", files.len());
    assert_eq!(files.len(), 8, "golden files are missing");
}

#[test]
fn bytes_unpack_decode_and_pack() {
    let (Some(whole), Some(small)) = (files("ct_int8"), files("ct_fp8")) else { return };
    for (name, file) in &whole {
        let layer = IntQuantized::read(file, "ckpt").expect("a layer");
        let integers = layer.unpack(None).expect("an official layer");
        let weight = integers.decode(integers.scales.dtype).expect("parts that belong together");
        assert!(bits(&weight) == bits(&floats(file, "out.weight")), "{name}: weights");
        let packed = IntQuantized::pack(&integers).expect("in range");
        same(&packed.weight, &layer.weight, name);
        same(&packed.weight_scale, &layer.weight_scale, name);
    }
    for (name, file) in &small {
        let block = name.contains("block").then_some([128, 128]);
        let layer = FloatQuantized::read(file, "ckpt").expect("a layer");
        let values = layer.unpack(block).expect("an official layer");
        let weight = values.decode(values.scales.dtype).expect("parts that belong together");
        assert!(bits(&weight) == bits(&floats(file, "out.weight")), "{name}: weights");
        let packed = FloatQuantized::pack(&values).expect("in range");
        same(&packed.weight, &layer.weight, name);
        same(&packed.weight_scale, &layer.weight_scale, name);
    }
    println!("checked: int-quantized layers {}, float-quantized {}", whole.len(), small.len());
    assert_eq!((whole.len(), small.len()), (2, 3), "golden files are missing");
}

#[test]
fn blocks_of_small_floats_unpack_decode_and_pack() {
    let mut checked = 0;
    for (name, format) in
        [("ct_mxfp4", MxFormat::Fp4), ("ct_mxfp6", MxFormat::Fp6), ("ct_mxfp8", MxFormat::Fp8)]
    {
        let Some(files) = files(name) else { return };
        let (_, file) = &files[0];
        let layer = Mx::read(file, "ckpt", format).expect("a layer");
        let unpacked = layer.unpack(format).expect("an official layer");
        let weight = unpacked.decode(DType::BF16).expect("parts that belong together");
        assert!(bits(&weight) == bits(&floats(file, "out.weight")), "{name}: weights");
        let packed = unpacked.pack().expect("in range");
        same(&packed.weight, &layer.weight, name);
        same(&packed.weight_scale, &layer.weight_scale, name);
        checked += 1;
    }
    let Some(files) = files("ct_nvfp4") else { return };
    for (name, file) in &files {
        let layer = Nvfp4::read(file, "ckpt").expect("a layer");
        let unpacked = layer.unpack().expect("an official layer");
        let weight = unpacked.decode(DType::BF16).expect("parts that belong together");
        assert!(bits(&weight) == bits(&floats(file, "out.weight")), "{name}: weights");
        let packed = unpacked.pack().expect("in range");
        same(&packed.weight_packed, &layer.weight_packed, name);
        same(&packed.weight_scale, &layer.weight_scale, name);
        same(&packed.weight_global_scale, &layer.weight_global_scale, name);
        checked += 1;
    }
    println!("checked: layers of mxfp4, mxfp6, mxfp8, nvfp4 {checked}");
    assert_eq!(checked, 4, "golden files are missing");
}

#[test]
fn sparse_tensors_unpack_and_pack() {
    let (Some(any), Some(half)) = (files("ct_sparse_bitmask"), files("ct_sparse24")) else {
        return;
    };
    let plain = |tensor: &RawTensor| tensor.to_matrix().expect("floats");
    for (name, file) in &any {
        let layer = SparseBitmask::read(file, "layer.weight").expect("a layer");
        let dense = layer.unpack().expect("an official layer");
        assert!(plain(&dense) == floats(file, "in"), "{name}");
        // From what was given to the package too, which has minus zeros.
        for input in [dense, file.tensor("in").expect("there")] {
            let packed = SparseBitmask::pack(&input).expect("a matrix");
            same(&packed.shape, &layer.shape, name);
            same(&packed.compressed, &layer.compressed, name);
            same(&packed.bitmask, &layer.bitmask, name);
            same(&packed.row_offsets, &layer.row_offsets, name);
        }
    }
    for (name, file) in &half {
        let layer = Sparse24Bitmask::read(file, "layer").expect("a layer");
        let dense = layer.unpack().expect("an official layer");
        assert!(plain(&dense) == floats(file, "in"), "{name}");
        for input in [dense, file.tensor("in").expect("there")] {
            let packed = Sparse24Bitmask::pack(&input).expect("a matrix");
            same(&packed.shape, &layer.shape, name);
            same(&packed.compressed, &layer.compressed, name);
            same(&packed.bitmask, &layer.bitmask, name);
        }
    }
    println!("checked: sparse-bitmask {}, sparse-24-bitmask {}", any.len(), half.len());
}

#[test]
fn marlin_layers_unpack_and_pack() {
    let Some(files) = files("ct_marlin24") else { return };
    for (name, file) in &files {
        let width = if name.contains("w4") { 4 } else { 8 };
        let layer = Marlin24::read(file, "layer").expect("a layer");
        let integers = layer.unpack(width).expect("an official layer");
        assert!(integers.values.mapv(i64::from) == ints(file, "q_int"), "{name}: integers");
        assert!(integers.scales.values == floats(file, "in.scale"), "{name}: scales");
        let packed = Marlin24::pack(&integers, width).expect("in range");
        same(&packed.weight_packed, &layer.weight_packed, name);
        same(&packed.scale_packed, &layer.scale_packed, name);
        same(&packed.meta, &layer.meta, name);
        // Within half a step, computed in f16, of what was quantised, where that is kept and not clamped.
        let (weight, input) =
            (integers.decode(DType::F32).expect("a layer"), floats(file, "in.weight"));
        let run = 512 / integers.scales.values.ncols();
        let most = 1 << (width - 1);
        for (at, value) in integers.values.indexed_iter() {
            if *value != 0 && i32::from(*value).abs() < most - 1 {
                let scale = integers.scales.values[[at.0, at.1 / run]];
                assert!((weight[at] - input[at]).abs() <= 0.55 * scale, "{name}: {at:?}");
            }
        }
    }
    println!("checked: marlin-24 layers {}", files.len());
    assert_eq!(files.len(), 4, "golden files are missing");
    assert_eq!(said(&files[0].1, "format"), "marlin-24");
}

/// Two of four at most are not zero.
fn halved(random: &mut SplitMix, dims: (usize, usize), bits: u8) -> Array2<i8> {
    let mut below = |n: f64| (random.next_f64() * n) as i64;
    let mut values = Array2::zeros(dims);
    for row in 0..dims.0 {
        for four in 0..dims.1 / 4 {
            for at in [below(4.0), below(4.0)] {
                let half = 1i64 << (bits - 1);
                values[[row, 4 * four + at as usize]] = (below(2.0 * half as f64) - half) as i8;
            }
        }
    }
    values
}

fn scales(dims: [usize; 2], dtype: DType, granularity: Granularity) -> Scales {
    let values = Array2::from_shape_fn(dims, |(r, c)| 0.5 + (r * 7 + c) as f32 / 64.0);
    Scales { values: values.mapv(|v| dtype.round(v)), dtype, granularity }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn words_that_are_packed_unpack(
        width in 1u8..=8, rows in 1usize..40, cols in 1usize..40, axis in 0usize..2, aligned: bool, seed: u64,
    ) {
        let mut random = SplitMix::new(seed);
        let half = 1i64 << (width - 1);
        let any = || ((random.next_f64() * 2.0 * half as f64) as i64 - half) as i8;
        let values = Array2::from_shape_simple_fn((rows, cols), any);
        let packing = if aligned { Packing::WordAligned } else { Packing::Dense };
        let packed = pack_words(values.view(), width, packing, Axis(axis)).expect("in range");
        prop_assert_eq!(unpack_words(&packed, width, packing, Axis(axis), [rows, cols]).expect("packed"), values);
    }

    #[test]
    fn layers_that_are_packed_unpack(
        width in 1u8..=8, rows in 1usize..20, groups in 1usize..4, run in 1usize..20, kind in 0usize..3,
        asymmetric: bool, seed: u64,
    ) {
        let cols = groups * run;
        let mut random = SplitMix::new(seed);
        let half = 1i64 << (width - 1);
        let mut any = || ((random.next_f64() * 2.0 * half as f64) as i64 - half) as i8;
        let values = Array2::from_shape_simple_fn((rows, cols), &mut any);
        let (dims, granularity) = match kind {
            0 => ([1, 1], Granularity::Tensor),
            1 => ([rows, groups], Granularity::Group),
            _ => ([rows, groups], Granularity::Indexed((0..cols).map(|k| (k % groups) as u32).collect())),
        };
        let zeros = asymmetric.then(|| Array2::from_shape_simple_fn(dims, &mut any));
        let integers = Integers { values, zeros, scales: scales(dims, DType::BF16, granularity) };
        let packed = PackQuantized::pack(&integers, width, Packing::Dense).expect("in range");
        prop_assert_eq!(&packed.unpack(width, Packing::Dense).expect("packed"), &integers);
        if kind < 2 {
            let packed = IntQuantized::pack(&integers).expect("in range");
            prop_assert_eq!(&packed.unpack(None).expect("packed"), &integers);
        }
        integers.decode(DType::BF16).expect("parts that belong together");
    }

    #[test]
    fn blocks_that_are_packed_unpack(rows in 1usize..5, blocks in 1usize..5, seed: u64) {
        let mut random = SplitMix::new(seed);
        let mut bytes = |dims: (usize, usize), most: f64| {
            Array2::from_shape_simple_fn(dims, || (random.next_f64() * most) as u8)
        };
        for format in [MxFormat::Fp4, MxFormat::Fp6, MxFormat::Fp8] {
            let most = f64::from(1u32 << format.element().bits());
            let codes = bytes((rows, 32 * blocks), most);
            let unpacked = UnpackedMx { format, codes, scales: bytes((rows, blocks), 256.0) };
            prop_assert_eq!(unpacked.pack().expect("in range").unpack(format).expect("packed"), unpacked);
        }
        let codes = bytes((rows, 16 * blocks), 16.0);
        let unpacked = UnpackedNvfp4 { codes, scales: bytes((rows, blocks), 256.0), global: 3.5 };
        prop_assert_eq!(unpacked.pack().expect("in range").unpack().expect("packed"), unpacked);
    }

    #[test]
    fn sparse_tensors_that_are_packed_unpack(
        rows in 1usize..6, cols in 1usize..40, share in 0.0f64..1.0, seed: u64,
    ) {
        let mut random = SplitMix::new(seed);
        let any = || if random.next_f64() < share { 1.5f32 } else { 0.0 };
        let values = Array2::from_shape_simple_fn((rows, cols), any);
        for dtype in [DType::F32, DType::BF16] {
            let dense = RawTensor::from_f32(values.view().into_dyn(), dtype).expect("floats");
            let packed = SparseBitmask::pack(&dense).expect("a matrix");
            same(&packed.unpack().expect("packed"), &dense, "dense");
        }
        let bytes: Vec<u8> = halved(&mut random, (rows, 4 * cols), 8).iter().map(|v| *v as u8).collect();
        let dense = RawTensor::new(DType::I8, vec![rows, 4 * cols], bytes.into()).expect("bytes");
        let packed = Sparse24Bitmask::pack(&dense).expect("two of four");
        same(&packed.unpack().expect("packed"), &dense, "dense");
    }

    #[test]
    fn marlin_layers_that_are_packed_unpack(
        eight: bool, outputs in 1usize..3, chunks in 1usize..4, groups in 1usize..4, seed: u64,
    ) {
        let width = if eight { 8 } else { 4 };
        let (outputs, inputs) = (64 * outputs, 32 * chunks * groups);
        let values = halved(&mut SplitMix::new(seed), (outputs, inputs), width);
        let scales = scales([outputs, groups], DType::F16, Granularity::Group);
        let integers = Integers { values, zeros: None, scales };
        let packed = Marlin24::pack(&integers, width).expect("two of four");
        prop_assert_eq!(packed.unpack(width).expect("packed"), integers);
    }
}

/// Where a part is in a layer.
type Pick<L> = fn(&mut L) -> &mut RawTensor;

/// Tries every part with another type and with shapes that do not fit.
fn forge<L: Clone, T>(
    layer: &L,
    parts: &[(&str, Pick<L>)],
    unpack: impl Fn(&L) -> Result<T, Error>,
) -> usize {
    let mut tried = 0;
    for (part, pick) in parts {
        let mut forged = layer.clone();
        let original = pick(&mut forged).clone();
        if *part != "compressed" {
            *pick(&mut forged) = zeros(DType::F64, original.shape());
            let error = unpack(&forged).map(drop).expect_err("of another type");
            assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some(*part)));
        }
        for shape in wrong_shapes(original.shape()) {
            *pick(&mut forged) = zeros(original.dtype(), &shape);
            let Err(error) = unpack(&forged) else {
                // These say themselves how many groups there are.
                assert_eq!((*part, shape[1]), ("scale_packed", original.shape()[1]));
                continue;
            };
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::ShapeMismatch | ErrorKind::Corruption),
                "{part} {shape:?}: {error}"
            );
            assert!(error.tensor().is_some(), "{part} {shape:?}: {error}");
            tried += 1;
        }
    }
    tried
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let mut random = SplitMix::new(5);
    let mut tried = 0;
    let values = Array2::from_shape_simple_fn((40, 96), || (random.next_f64() * 16.0) as i8 - 8);
    let zero_points = Array2::from_elem((40, 3), -3);
    let integers = Integers {
        values,
        zeros: Some(zero_points),
        scales: scales([40, 3], DType::BF16, Granularity::Group),
    };
    let packed = PackQuantized::pack(&integers, 4, Packing::Dense).expect("in range");
    tried += forge(
        &packed,
        &[
            ("weight_packed", |l| &mut l.weight_packed),
            ("weight_shape", |l| &mut l.weight_shape),
            ("weight_zero_point", |l| l.weight_zero_point.as_mut().expect("there")),
        ],
        |l| l.unpack(4, Packing::Dense),
    );
    let bytewise = IntQuantized::pack(&integers).expect("in range");
    let zero: (&str, Pick<IntQuantized>) =
        ("weight_zero_point", |l| l.weight_zero_point.as_mut().expect("there"));
    tried +=
        forge(&bytewise, &[("weight_scale", |l| &mut l.weight_scale), zero], |l| l.unpack(None));
    let floats = FloatQuantized {
        weight: zeros(DType::U8, &[300, 200]),
        weight_scale: zeros(DType::BF16, &[3, 2]),
    };
    tried += forge(&floats, &[("weight_scale", |l| &mut l.weight_scale)], |l| {
        l.unpack(Some([128, 128]))
    });
    for block in [[0, 1], [1, 0], [usize::MAX, usize::MAX], [300, 128]] {
        floats.unpack(Some(block)).map(drop).expect_err("other tiles");
    }
    for format in [MxFormat::Fp4, MxFormat::Fp6, MxFormat::Fp8] {
        let codes = Array2::zeros((3, 64));
        let layer =
            UnpackedMx { format, codes, scales: Array2::zeros((3, 2)) }.pack().expect("in range");
        let part = if format == MxFormat::Fp8 { "weight" } else { "weight_packed" };
        let parts: [(&str, Pick<Mx>); 2] =
            [(part, |l| &mut l.weight), ("weight_scale", |l| &mut l.weight_scale)];
        tried += forge(&layer, &parts, |l| l.unpack(format));
    }
    let unpacked =
        UnpackedNvfp4 { codes: Array2::zeros((3, 32)), scales: Array2::zeros((3, 2)), global: 1.0 };
    tried += forge(
        &unpacked.pack().expect("in range"),
        &[
            ("weight_packed", |l| &mut l.weight_packed),
            ("weight_scale", |l| &mut l.weight_scale),
            ("weight_global_scale", |l| &mut l.weight_global_scale),
        ],
        Nvfp4::unpack,
    );
    let dense = halved(&mut random, (5, 40), 8).mapv(f32::from);
    let dense = RawTensor::from_f32(dense.view().into_dyn(), DType::F32).expect("floats");
    tried += forge(
        &SparseBitmask::pack(&dense).expect("a matrix"),
        &[
            ("shape", |l| &mut l.shape),
            ("compressed", |l| &mut l.compressed),
            ("bitmask", |l| &mut l.bitmask),
            ("row_offsets", |l| &mut l.row_offsets),
        ],
        SparseBitmask::unpack,
    );
    tried += forge(
        &Sparse24Bitmask::pack(&dense).expect("two of four"),
        &[
            ("shape", |l| &mut l.shape),
            ("compressed", |l| &mut l.compressed),
            ("bitmask", |l| &mut l.bitmask),
        ],
        Sparse24Bitmask::unpack,
    );
    let values = halved(&mut random, (64, 96), 4);
    let integers =
        Integers { values, zeros: None, scales: scales([64, 3], DType::F16, Granularity::Group) };
    tried += forge(
        &Marlin24::pack(&integers, 4).expect("two of four"),
        &[
            ("weight_packed", |l| &mut l.weight_packed),
            ("scale_packed", |l| &mut l.scale_packed),
            ("meta", |l| &mut l.meta),
        ],
        |l| l.unpack(4),
    );
    println!("checked: compressed-tensors shapes that do not fit {tried}");
}

#[test]
fn forged_numbers_are_named() {
    let numbers = |numbers: &[i64], shape: &[usize]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        RawTensor::new(DType::I64, shape.to_vec(), bytes.into()).expect("as many")
    };
    let dense = Array2::from_shape_fn((2, 12), |(r, c)| if (r + c) % 4 < 2 { 1.0f32 } else { 0.0 });
    let dense = RawTensor::from_f32(dense.view().into_dyn(), DType::F32).expect("floats");
    let sparse = SparseBitmask::pack(&dense).expect("a matrix");
    let refused = |layer: &SparseBitmask| {
        let error = layer.unpack().map(drop).expect_err("a forged layer");
        (error.kind(), error.tensor().expect("a part").to_owned())
    };
    for lengths in [[-1, 12], [2, -12], [i64::MIN, i64::MAX]] {
        let forged = SparseBitmask { shape: numbers(&lengths, &[2]), ..sparse.clone() };
        assert_eq!(refused(&forged), (ErrorKind::Corruption, "shape".into()));
    }
    for lengths in [[i64::MAX, i64::MAX], [1 << 32, 1 << 32], [2, 0], [0, 12]] {
        let forged = SparseBitmask { shape: numbers(&lengths, &[2]), ..sparse.clone() };
        assert_eq!(refused(&forged), (ErrorKind::ShapeMismatch, "bitmask".into()));
    }
    let forged = SparseBitmask { row_offsets: numbers(&[0, 5], &[2]), ..sparse.clone() };
    assert_eq!(refused(&forged), (ErrorKind::Corruption, "row_offsets".into()));
    let mask =
        |bytes: [u8; 4]| RawTensor::new(DType::U8, vec![2, 2], bytes.to_vec().into()).expect("4");
    let forged = SparseBitmask { bitmask: mask([0x33, 0x83, 0x99, 9]), ..sparse.clone() };
    assert_eq!(refused(&forged), (ErrorKind::Corruption, "bitmask".into()));
    let half = Sparse24Bitmask::pack(&dense).expect("two of four");
    let forged = Sparse24Bitmask { bitmask: mask([0x37, 3, 0x99, 9]), ..half };
    assert_eq!(forged.unpack().unwrap_err().tensor(), Some("bitmask"));

    let values = halved(&mut SplitMix::new(8), (64, 64), 4);
    let integers =
        Integers { values, zeros: None, scales: scales([64, 1], DType::F16, Granularity::Group) };
    let mut marlin = Marlin24::pack(&integers, 4).expect("two of four");
    for width in [0, 3, 5, 255] {
        assert_eq!(marlin.unpack(width).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    marlin.meta = zeros(DType::I16, &[2, 128]);
    let error = marlin.unpack(4).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corruption, Some("meta")));
    let mut three = integers.clone();
    (0..3).for_each(|k| three.values[[7, 8 + k]] = 1);
    let error = Marlin24::pack(&three, 4).map(drop).unwrap_err();
    assert!(error.to_string().contains("[7, 8]"), "{error}");
    let mut wide = integers.clone();
    wide.values[[0, 0]] = 9;
    wide.values[[0, 1]] = 0;
    wide.values[[0, 2]] = 0;
    assert_eq!(Marlin24::pack(&wide, 4).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        PackQuantized::pack(&wide, 4, Packing::Dense).unwrap_err().tensor(),
        Some("weight_packed")
    );

    let packed = PackQuantized::pack(&integers, 4, Packing::Dense).expect("in range");
    for width in [0, 9, 255] {
        let error = packed.unpack(width, Packing::Dense).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    for lengths in [[64, -64], [-1, -1]] {
        let forged = PackQuantized { weight_shape: numbers(&lengths, &[2]), ..packed.clone() };
        assert_eq!(forged.unpack(4, Packing::Dense).unwrap_err().tensor(), Some("weight_shape"));
    }
    for lengths in [[64, i64::MAX], [i64::MAX, 64], [64, 65], [63, 64]] {
        let forged = PackQuantized { weight_shape: numbers(&lengths, &[2]), ..packed.clone() };
        assert_eq!(forged.unpack(4, Packing::Dense).unwrap_err().tensor(), Some("weight_packed"));
    }
    // Lengths that nothing backs.
    for shape in [[0, 1 << 60], [1 << 60, 0]] {
        let empty = |dtype| RawTensor::new(dtype, shape.to_vec(), Vec::new().into());
        let weight = empty(DType::U8).expect("no bytes");
        let layer = FloatQuantized { weight, weight_scale: zeros(DType::F32, &[1]) };
        assert_eq!(layer.unpack(None).unwrap_err().tensor(), Some("weight"));
        let weight_scale = empty(DType::F32).expect("no bytes");
        let layer = FloatQuantized { weight: zeros(DType::U8, &[1, 1]), weight_scale };
        assert_eq!(layer.unpack(None).unwrap_err().tensor(), Some("weight_scale"));
    }
}
