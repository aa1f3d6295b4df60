//! The block types of ggml against its own code: values, tables and quantisers, to the bit.

use proptest::prelude::*;
use tensorpress_formats::ggml::{self, Flavour, Type};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, ErrorKind};

fn open(name: &str) -> Option<Checkpoint> {
    let path = data::find(&format!("golden/formats/gguf_{name}.safetensors"))?;
    Some(Checkpoint::open(path).unwrap())
}

fn bytes(file: &Checkpoint, name: &str) -> Vec<u8> {
    file.bytes(name).unwrap().to_vec()
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let floats = bytes(file, name);
    floats.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Equal to the bit, but NaNs as a class.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[test]
fn types_have_their_numbers_names_and_sizes() {
    let mut types = 0;
    for (place, ty) in Type::all().enumerate() {
        assert_eq!(place, ty as usize);
        assert_eq!(Type::from_id(ty.id()), Some(ty));
        assert_eq!(Type::from_name(ty.name()), Some(ty));
        let Some(file) = open(ty.name()) else { return };
        let about = file.metadata().next().unwrap();
        assert_eq!(about["ggml_type_id"], ty.id().to_string());
        assert_eq!(about["block_elems"], ty.block_len().to_string());
        assert_eq!(about["block_bytes"], ty.block_bytes().to_string());
        types += 1;
    }
    assert_eq!(types, 29);
    assert_eq!((Type::from_id(4), Type::from_name("Q4_2")), (None, None));
    println!("checked: {types} types");
}

#[test]
fn values_are_the_official_ones() {
    let (mut values, mut tensors) = (0, 0);
    for ty in Type::all() {
        let Some(file) = open(ty.name()) else { return };
        for name in file.names().filter(|n| n.ends_with(".dequant")) {
            let official = floats(&file, name);
            let packed = bytes(&file, &name.replace("dequant", "packed"));
            let mut found = vec![f32::MAX; official.len()];
            ggml::decode(ty, &packed, &mut found).unwrap();
            for (i, (&a, &b)) in found.iter().zip(&official).enumerate() {
                assert!(same(a, b), "{} {name} {i}: {a}, not {b}", ty.name());
            }
            values += found.len();
            tensors += 1;
        }
    }
    println!("checked: {values} values of {tensors} tensors");
    assert_eq!(tensors, 70);
}

proptest! {
    /// Any bytes are values or an error; any lengths that do not fit are errors.
    #[test]
    fn any_bytes_decode(which in 0..29_usize, bytes in prop::collection::vec(any::<u8>(), 0..700), more in 0..3_usize) {
        let ty = Type::all().nth(which).unwrap();
        let blocks = bytes.len() / ty.block_bytes();
        let mut out = vec![0.0; blocks * ty.block_len() + more];
        let result = ggml::decode(ty, &bytes, &mut out).map_err(|e| e.kind());
        let whole = bytes.len() % ty.block_bytes() == 0;
        let wanted = match (whole, more) {
            (false, _) => Err(ErrorKind::Corruption),
            (true, 0) => Ok(()),
            (true, _) => Err(ErrorKind::ShapeMismatch),
        };
        prop_assert_eq!(result, wanted);

        let mut out = vec![f32::from_bits(0x1234); blocks * ty.block_len()];
        ggml::decode(ty, &bytes[..blocks * ty.block_bytes()], &mut out).unwrap();
        prop_assert!(out.iter().all(|v| v.to_bits() != 0x1234), "{}: not every value is written", ty.name());
    }
}

/// How bytes of a name were made: by which flavour, of which input, with importance or not.
fn case(name: &str) -> Option<(Flavour, &str, bool)> {
    let (case, kind) = name.split_once('.')?;
    let (flavour, input, weighted) = match case {
        "real" | "edge" => (Flavour::File, case, false),
        "real_imat" => (Flavour::File, "real", true),
        "real_ref" => (Flavour::Plain, "real", false),
        "edge_ref" => (Flavour::Plain, "edge", false),
        "edge_avx512" => (Flavour::Simd, "edge", false),
        _ => return None,
    };
    (kind == "packed").then_some((flavour, input, weighted))
}

/// Blocks whose codes ggml leaves as memory was: the plain IQ4_NL of what counts as zero.
fn unset(ty: Type, flavour: Flavour, values: &[f32]) -> bool {
    (ty, flavour) == (Type::IQ4_NL, Flavour::Plain) && values.iter().all(|v| v.abs() < 1e-15)
}

#[test]
fn quantised_bytes_are_the_official_ones() {
    let Some(inputs) = open("inputs") else { return };
    let importance = floats(&inputs, "imatrix");
    let (mut tensors, mut blocks, mut weighted_ones, mut unset_ones) = (0, 0, 0, 0);
    for ty in Type::all() {
        let Some(file) = open(ty.name()) else { return };
        for name in file.names() {
            let Some((flavour, input, weighted)) = case(name) else { continue };
            let (values, official) = (floats(&inputs, input), bytes(&file, name));
            let mut found = vec![0xaa; official.len()];
            let importance = weighted.then_some(importance.as_slice());
            ggml::encode_as(flavour, ty, &values, importance, &mut found).unwrap();
            let (len, size) = (ty.block_len(), ty.block_bytes());
            let pairs = found.chunks(size).zip(official.chunks(size));
            for (i, (a, b)) in pairs.enumerate() {
                if unset(ty, flavour, &values[i * len..][..len]) {
                    assert_eq!(a[..2], b[..2], "{} {name}: scale of block {i}", ty.name());
                    unset_ones += 1;
                } else {
                    assert_eq!(a, b, "{} {name}: block {i}", ty.name());
                }
            }
            tensors += 1;
            weighted_ones += usize::from(weighted);
            blocks += official.len() / size;
        }
    }
    println!(
        "checked: {blocks} blocks of {tensors} tensors, {weighted_ones} of them with importance; \
         {unset_ones} blocks by their scale alone"
    );
    assert_eq!((tensors, weighted_ones, unset_ones), (74, 18, 35));
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let mut out = [0; 66];
    let kind = |ty, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]| {
        ggml::encode(ty, values, importance, out).map_err(|e| e.kind())
    };
    let row = [0.5; 256];
    assert_eq!(kind(Type::Q4_0, &row[..33], None, &mut out[..18]), Err(ErrorKind::ShapeMismatch));
    assert_eq!(kind(Type::Q4_0, &row[..32], None, &mut out[..19]), Err(ErrorKind::ShapeMismatch));
    assert_eq!(
        kind(Type::Q4_0, &row[..32], Some(&[]), &mut out[..18]),
        Err(ErrorKind::ShapeMismatch)
    );
    assert_eq!(
        kind(Type::Q4_0, &row[..32], Some(&[-1.0; 32]), &mut out[..18]),
        Err(ErrorKind::Numerical)
    );
    assert_eq!(kind(Type::Q4_0, &[f32::NAN; 32], None, &mut out[..18]), Err(ErrorKind::Numerical));
    assert_eq!(kind(Type::BF16, &[f32::INFINITY], None, &mut out[..2]), Ok(()));
    assert_eq!(kind(Type::IQ2_XXS, &row, None, &mut out), Err(ErrorKind::MissingCalibration));
    assert_eq!(kind(Type::IQ2_XXS, &row, Some(&row), &mut out), Ok(()));
}

/// Values from nothing to what f16 scales cannot hold, with zeros in runs.
fn any_values() -> impl Strategy<Value = Vec<f32>> {
    let value = (-2.0_f32..2.0, prop_oneof![Just(-30_i32), Just(0), Just(0), Just(30)]);
    let part = prop_oneof![
        prop::collection::vec(value.prop_map(|(x, power)| x * 2_f32.powi(power)), 32),
        (-2.0_f32..2.0).prop_map(|x| vec![x; 32]),
        Just(vec![0.0; 32]),
    ];
    prop::collection::vec(part, 8).prop_map(|parts| parts.concat())
}

proptest! {
    /// Every quantiser takes any finite values and any weights, zeros among them, and its blocks are decoded.
    #[test]
    fn any_values_encode(values in any_values(), weights in any_values(), which in 0..29_usize) {
        let ty = Type::all().nth(which).unwrap();
        let weights: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
        let mut out = vec![0; 256 / ty.block_len() * ty.block_bytes()];
        let mut back = vec![0.0; 256];
        for importance in [None, Some(weights.as_slice())] {
            match ggml::encode(ty, &values, importance, &mut out) {
                Ok(()) => ggml::decode(ty, &out, &mut back).unwrap(),
                Err(e) => prop_assert_eq!(e.kind(), ErrorKind::MissingCalibration),
            }
        }
    }

    /// Values that f16 scales hold come back finite, whatever the weights.
    #[test]
    fn what_comes_back_is_finite(
        values in prop::collection::vec(prop_oneof![-1.0_f32..1.0, Just(0.0)], 256),
        weights in prop::collection::vec(prop_oneof![0.0_f32..4.0, Just(0.0)], 8),
        which in 0..29_usize,
    ) {
        let ty = Type::all().nth(which).unwrap();
        let weights: Vec<f32> = weights.iter().flat_map(|w| [*w; 32]).collect();
        let mut out = vec![0; 256 / ty.block_len() * ty.block_bytes()];
        let mut back = vec![f32::NAN; 256];
        ggml::encode(ty, &values, Some(&weights), &mut out).unwrap();
        ggml::decode(ty, &out, &mut back).unwrap();
        prop_assert!(back.iter().all(|v| v.is_finite()), "{}", ty.name());
    }

    /// Of plain values what comes back is near: within the step of the coarsest of the types of four bits and more.
    #[test]
    fn what_comes_back_is_near(values in prop::collection::vec(-1.0_f32..1.0, 256), which in 0..16_usize) {
        let fine = |ty: &Type| ty.block_bytes() * 8 > ty.block_len() * 4;
        let ty = Type::all().filter(fine).nth(which).unwrap();
        let mut out = vec![0; 256 / ty.block_len() * ty.block_bytes()];
        let mut back = vec![0.0; 256];
        ggml::encode(ty, &values, None, &mut out).unwrap();
        ggml::decode(ty, &out, &mut back).unwrap();
        for (a, b) in values.iter().zip(&back) {
            prop_assert!((a - b).abs() < 0.26, "{}: {a} came back as {b}", ty.name());
        }
    }
}

/// Every type as a node: the laws, on values of all sizes, stored and made for this machine.
#[test]
fn blocks_are_lawful_nodes() {
    use tensorpress_tensor::testing::laws::check_node;
    let mut registry = tensorpress_tensor::Registry::default();
    tensorpress_formats::register(&mut registry).expect("nothing is there twice");
    let mut checked = 0;
    for ty in Type::all() {
        for (rows, blocks) in [(1, 1), (3, 2), (17, 3)] {
            let cols = blocks * ty.block_len();
            let mut random = tensorpress_tensor::linalg::SplitMix::new(rows as u64);
            let mut any = || (random.next_f64() as f32 - 0.5) * 0.1;
            let values: Vec<f32> = (0..rows * cols).map(|_| any()).collect();
            let importance = vec![1.0; cols];
            let mut bytes = vec![0; rows * blocks * ty.block_bytes()];
            ggml::encode(ty, &values, Some(&importance), &mut bytes).expect("finite");
            let node = ggml::blocks(ty, [rows, cols], bytes.into()).expect("whole blocks");
            check_node(Box::new(node), &registry, 1e-4);
            checked += 1;
        }
    }
    println!("checked: nodes of blocks {checked}");
    assert_eq!(checked, 87);
}
