//! Small floats against ml_dtypes and torch: every code, and thousands of values under each rounding rule.

use proptest::prelude::*;
use tensorpress_formats::float::mx::{self, ScaleRule};
use tensorpress_formats::float::{Rounding, Small};
use tensorpress_tensor::Checkpoint;
use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::testing::data;

fn open(name: &str) -> Option<Checkpoint> {
    let path = data::find(&format!("golden/formats/{name}.safetensors"))?;
    Some(Checkpoint::open(path).unwrap())
}

fn bytes(file: &Checkpoint, name: &str) -> Vec<u8> {
    file.tensor(name).unwrap().bytes().to_vec()
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    bytes(file, name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Equal to the bit, but NaNs as a class: their payloads differ between machines.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[test]
fn every_code_has_the_official_value() {
    let Some(file) = open("fp_decode_tables") else { return };
    let mut codes = 0;
    for format in Small::ALL {
        let table = floats(&file, &format!("decode.{}", format.name()));
        assert_eq!(table.len(), 1 << format.bits());
        for (code, &value) in table.iter().enumerate() {
            let found = format.decode(code as u8);
            assert!(same(found, value), "{}: {code:#x} is {found}, not {value}", format.name());
        }
        codes += table.len();
    }
    type Decode = fn(u16) -> f32;
    let wide: [(&str, Decode); 2] = [
        ("decode.f16", |bits| f16::from_bits(bits).to_f32()),
        ("decode.bf16", |bits| bf16::from_bits(bits).to_f32()),
    ];
    for (name, decode) in wide {
        let table = floats(&file, name);
        assert_eq!(table.len(), 1 << 16);
        assert!((0..=u16::MAX).all(|bits| same(decode(bits), table[usize::from(bits)])), "{name}");
        codes += table.len();
    }
    println!("checked: {codes} codes of {} formats", Small::ALL.len() + 2);
    assert_eq!(codes, 2 * 65536 + 8 * 256 + 2 * 64 + 16);
}

#[test]
fn every_rounding_rule_gives_the_official_code() {
    let Some(file) = open("fp_encode") else { return };
    let input = floats(&file, "input");
    let rules = [
        ("rne", Rounding::NearestEven),
        ("sat", Rounding::Saturate),
        ("torch_to", Rounding::TorchTo),
    ];
    let mut checked = 0;
    for (rule, rounding) in rules {
        let mut formats = 0;
        for format in Small::ALL {
            let name = format!("{rule}.{}", format.name());
            if !file.contains(&name) {
                continue;
            }
            let codes = bytes(&file, &name);
            assert_eq!(codes.len(), input.len());
            for (&value, &code) in input.iter().zip(&codes) {
                let found = format.encode(value, rounding);
                let nan = format.decode(found).is_nan() && format.decode(code).is_nan();
                // What ml_dtypes makes of a NaN where there is none is a zero of either sign.
                let zero = value.is_nan() && found == 0 && format.decode(code) == 0.0;
                let (bits, name) = (value.to_bits(), &name);
                assert!(
                    found == code || nan || zero,
                    "{name} of {value} ({bits:#x}) is {found:#x}, not {code:#x}"
                );
            }
            formats += 1;
        }
        println!("checked: {formats} formats by {rule}, {} values each", input.len());
        checked += formats;
    }
    assert_eq!(checked, 11 + 10 + 5);
}

proptest! {
    /// What is stored comes back, by every rule.
    #[test]
    fn values_of_codes_are_kept(code: u8, which in 0..Small::ALL.len()) {
        let format = Small::ALL[which];
        let value = format.decode(code);
        for rounding in [Rounding::NearestEven, Rounding::Saturate, Rounding::TorchTo] {
            let back = format.decode(format.encode(value, rounding));
            let clamped = value.is_infinite() && rounding == Rounding::Saturate;
            let kept = same(back, value) || (clamped && back == value.signum() * format.max());
            prop_assert!(kept, "{}: {code:#x}", format.name());
        }
    }

    /// No finite value lies nearer than the one chosen, and saturating stays finite.
    #[test]
    fn the_nearest_value_is_chosen(bits: u32, which in 0..10_usize) {
        let (format, value) = (Small::ALL[which], f32::from_bits(bits));
        prop_assume!(value.is_finite());
        let found = format.decode(format.encode(value, Rounding::Saturate));
        prop_assert!(found.is_finite());
        let distance = |v: f32| (f64::from(v) - f64::from(value)).abs();
        for &other in format.table().iter().filter(|v| v.is_finite()) {
            prop_assert!(distance(found) <= distance(other), "{}: {value} to {found}", format.name());
        }
    }
}

/// Codes of `bits` bits, one a byte; four bits lie in pairs, the low ones first.
fn unpacked(bytes: Vec<u8>, bits: u32) -> Vec<u8> {
    if bits == 4 { bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect() } else { bytes }
}

#[test]
fn blocks_of_mx_are_the_official_ones() {
    let Some(file) = open("mx_torchao") else { return };
    let elements = [
        ("mxfp4", Small::E2m1Fn),
        ("mxfp6_e2m3", Small::E2m3Fn),
        ("mxfp6_e3m2", Small::E3m2Fn),
        ("mxfp8_e4m3", Small::E4m3Fn),
        ("mxfp8_e5m2", Small::E5m2),
    ];
    let (mut tensors, mut blocks) = (0, 0);
    for input in ["real", "edge", "nan"] {
        let values = floats(&file, &format!("{input}.input"));
        for ((name, element), rule) in elements.iter().flat_map(|e| ScaleRule::ALL.map(|r| (e, r)))
        {
            let name = format!("{input}.{name}.{}", rule.name());
            let scales = bytes(&file, &format!("{name}.scale"));
            let data = unpacked(bytes(&file, &format!("{name}.data")), element.bits());
            let dequant = floats(&file, &format!("{name}.dequant"));
            for (i, x) in values.chunks(32).enumerate() {
                let here = 32 * i..32 * i + 32;
                let mut codes = [0; 32];
                let scale = mx::encode_block(rule, *element, x, &mut codes).unwrap();
                assert_eq!(scale, scales[i], "{name}: scale of block {i}");
                // Under NaN codes mean nothing.
                if scale != 0xff {
                    assert_eq!(codes, data[here.clone()], "{name}: block {i}");
                }
                let mut back = [0.0; 32];
                mx::decode_block(scale, *element, &data[here.clone()], &mut back).unwrap();
                let official = &dequant[here];
                assert!(back.iter().zip(official).all(|(a, b)| same(*a, *b)), "{name}: values {i}");
                blocks += 1;
            }
            tensors += 1;
        }
    }
    println!("checked: {blocks} blocks of {tensors} tensors in MX");
    assert_eq!(tensors, 60);
}

#[test]
fn blocks_of_nvfp4_are_the_official_ones() {
    let Some(file) = open("nvfp4_torchao") else { return };
    let mut blocks = 0;
    for input in ["real", "edge"] {
        let values = floats(&file, &format!("{input}.input"));
        for levels in ["1level", "2level"] {
            let name = format!("{input}.nvfp4_{levels}");
            let tensor_scale = match levels {
                "1level" => 1.0,
                _ => floats(&file, &format!("{name}.per_tensor_scale"))[0],
            };
            if levels == "2level" {
                let max = values.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
                assert_eq!(mx::nvfp4_tensor_scale(max), tensor_scale);
            }
            let scales = bytes(&file, &format!("{name}.scale"));
            let data = unpacked(bytes(&file, &format!("{name}.data")), 4);
            let dequant = floats(&file, &format!("{name}.dequant"));
            for (i, x) in values.chunks(16).enumerate() {
                let here = 16 * i..16 * i + 16;
                let mut codes = [0; 16];
                let scale = mx::encode_nvfp4(tensor_scale, x, &mut codes).unwrap();
                assert_eq!(
                    (scale, codes.as_slice()),
                    (scales[i], &data[here.clone()]),
                    "{name}: {i}"
                );
                let mut back = [0.0; 16];
                mx::decode_nvfp4(tensor_scale, scale, &codes, &mut back).unwrap();
                let official = &dequant[here];
                assert!(back.iter().zip(official).all(|(a, b)| same(*a, *b)), "{name}: values {i}");
                blocks += 1;
            }
        }
    }
    println!("checked: {blocks} blocks of NVFP4");
}
