//! Small floats against ml_dtypes and torch: every code, and thousands of values under each rounding rule.

use proptest::prelude::*;
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
