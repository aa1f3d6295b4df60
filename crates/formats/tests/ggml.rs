//! The block types of ggml against its own code: values, tables and quantisers, to the bit.

use proptest::prelude::*;
use tensorpress_formats::ggml::{self, Type};
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
