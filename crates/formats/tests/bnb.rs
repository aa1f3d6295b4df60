//! The tensors of bitsandbytes against those that it wrote.

mod official;

use official::{files, floats, ints, same, wrong_shapes, zeros};
use proptest::prelude::*;
use tensorpress_formats::bnb::{Blockwise, FourBit, Int8, QuantType, State, Statistics};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::KnownLevels;
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, RawTensor, Tensor};

fn flat(file: &Checkpoint, name: &str) -> Vec<f32> {
    floats(file, name).into_iter().collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn tensor(file: &Checkpoint, name: &str) -> RawTensor {
    file.tensor(name).expect("a tensor of the file")
}

#[test]
fn four_bits_are_those_of_the_official_code() {
    let (mut checked, mut minus_zeros) = (Vec::new(), 0);
    for (name, kind) in [("bnb_nf4", QuantType::Nf4), ("bnb_fp4", QuantType::Fp4)] {
        let Some(files) = files(name) else { return };
        let (_, file) = &files[0];
        assert_eq!(bits(kind.table().levels()), bits(&flat(file, "code")), "{name}: levels");
        for (case, input, block, nested) in [
            ("b64", "in", 64, false),
            ("b128", "in", 128, false),
            ("b256", "in", 256, false),
            ("sweep", "sweep.in", 64, false),
            ("dq64", "in", 64, true),
        ] {
            let values = flat(file, input);
            let encoded = Blockwise::encode(kind.table(), &values, block, nested).expect("finite");
            let shape = tensor(file, input).shape().to_vec();
            let state = State::new(kind, DType::F32, shape);
            let packed = FourBit::pack(&state, &encoded).expect("16 levels");
            same(&packed.weight, &tensor(file, &format!("{case}.packed")), case);
            if let Statistics::Nested { codes, offset } = &encoded.absmax {
                assert_eq!(*offset, flat(file, "dq64.offset")[0], "{name}: offset");
                assert_eq!(codes.levels, flat(file, "dq64.nested_code"), "{name}: levels");
                same(&packed.absmax, &tensor(file, "dq64.absmax_u8"), case);
                let nested = packed.nested_absmax.as_ref().expect("nested");
                same(nested, &tensor(file, "dq64.nested_absmax"), case);
                // As a model's state has it.
                let stored = |part: &str| tensor(file, &format!("qstate.{part}"));
                let text = stored(&format!("quant_state.bitsandbytes__{}", kind.name()));
                same(&packed.quant_state, &text, case);
                same(&packed.absmax, &stored("absmax"), case);
                same(&packed.quant_map, &stored("quant_map"), case);
                same(nested, &stored("nested_absmax"), case);
                let map = packed.nested_quant_map.as_ref().expect("nested");
                same(map, &stored("nested_quant_map"), case);
            } else {
                same(&packed.absmax, &tensor(file, &format!("{case}.absmax")), case);
            }
            let (read, unpacked) = packed.unpack().expect("just packed");
            assert_eq!((&read, &unpacked), (&state, &encoded), "{name} {case}");
            let decoded = unpacked.decode(DType::F32).expect("belongs together");
            let mut official = flat(file, &format!("{case}.dequant"));
            for (value, code) in official.iter_mut().zip(&unpacked.codes) {
                // The official code gives the second zero of FP4 either sign: plus in `sweep`, minus elsewhere.
                if kind == QuantType::Fp4 && *code == 8 && value.to_bits() == 1 << 31 {
                    (*value, minus_zeros) = (0.0, minus_zeros + 1);
                }
            }
            assert!(bits(&decoded) == bits(&official), "{name} {case}: values");
            checked.push(format!("{name} {case}"));
        }
    }
    println!("checked: bnb of 4 bits {}: {}", checked.len(), checked.join(", "));
    println!("checked: zeros of FP4 that differ in sign alone {minus_zeros}");
    assert_eq!(checked.len(), 10);
}

#[test]
fn eight_bits_are_those_of_the_official_code() {
    let Some(files) = files("bnb_8bit") else { return };
    let (_, file) = &files[0];
    let values = flat(file, "in");
    for (prefix, block) in [("", 256), ("b4096.", 4096)] {
        let encoded =
            Blockwise::encode(KnownLevels::Dynamic8, &values, block, false).expect("finite");
        assert_eq!(bits(&encoded.levels), bits(&flat(file, "code")));
        let packed = tensor(file, &format!("{prefix}packed"));
        assert!(encoded.codes == packed.bytes()[..], "codes in blocks of {block}");
        let Statistics::Plain(absmax) = &encoded.absmax else { panic!("not nested") };
        assert_eq!(bits(absmax), bits(&flat(file, &format!("{prefix}absmax"))));
        let decoded = encoded.decode(DType::F32).expect("belongs together");
        assert_eq!(bits(&decoded), bits(&flat(file, &format!("{prefix}dequant"))));
    }
    let input = floats(file, "llmint8.in_f16");
    let encoded = Int8::encode(input.view()).expect("finite");
    assert!(encoded.values.mapv(i64::from) == ints(file, "llmint8.q"), "integers");
    assert_eq!(bits(&encoded.absmax), bits(&flat(file, "llmint8.row_stats")));
    let [weight, scb] = encoded.pack().expect("belongs together");
    same(&weight, &tensor(file, "llmint8.q"), "integers");
    assert_eq!(Int8::unpack(&weight, &scb).expect("just packed"), encoded);
    let decoded = encoded.decode(DType::F32).expect("belongs together");
    for (at, value) in decoded.indexed_iter() {
        assert!((value - input[at]).abs() <= 0.5001 * encoded.absmax[at.0] / 127.0, "{at:?}");
    }
    println!("checked: bnb of 8 bits, blocks 2, rows of LLM.int8 {}", input.nrows());
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix::new(seed);
    (0..count).map(|_| random.next_f64() as f32 - 0.5).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_packed_unpacks(
        rows in 0usize..9, cols in 0usize..300, block in 1usize..200, fp4: bool, nested: bool, seed: u64,
    ) {
        let kind = if fp4 { QuantType::Fp4 } else { QuantType::Nf4 };
        let values = values(rows * cols, seed);
        let encoded = Blockwise::encode(kind.table(), &values, block, nested).expect("finite");
        let state = State::new(kind, DType::BF16, vec![rows, cols]);
        let packed = FourBit::pack(&state, &encoded).expect("16 levels");
        let (read, unpacked) = packed.unpack().expect("just packed");
        prop_assert_eq!(&read, &state);
        prop_assert_eq!(&unpacked, &encoded);
        let decoded = unpacked.decode(DType::F32).expect("belongs together");
        // No gap between levels is wider than a third of the largest magnitude; nested statistics err a little more.
        for (value, decoded) in values.iter().zip(&decoded) {
            prop_assert!((value - decoded).abs() <= 0.5 / 5.0 + 0.02, "{} {}", value, decoded);
        }
    }
}

#[test]
fn zero_blocks_stay_zero() {
    for kind in [QuantType::Nf4, QuantType::Fp4] {
        let mut values = values(192, 1);
        values[64..128].fill(0.0);
        values[70] = -0.0;
        let encoded = Blockwise::encode(kind.table(), &values, 64, false).expect("finite");
        let zero = if kind == QuantType::Nf4 { 7 } else { 0 };
        assert!(encoded.codes[64..128].iter().all(|code| *code == zero));
        let decoded = encoded.decode(DType::F32).expect("belongs together");
        assert!(decoded[64..128].iter().all(|value| *value == 0.0));
    }
}

#[test]
fn states_are_written_as_python_writes_them() {
    for (offset, text) in [
        (1.0, "1.0"),
        (0.5, "0.5"),
        (0.0, "0.0"),
        (1.0 / 3.0, "0.3333333432674408"),
        (123_456.0, "123456.0"),
        (1.5e-4, "0.0001500000071246177"),
        (1e-4, "9.999999747378752e-05"),
        (3e-5, "2.9999999242136255e-05"),
        (1e16, "1.0000000272564224e+16"),
        (1e20, "1.0000000200408773e+20"),
    ] {
        let codes = Blockwise::encode(KnownLevels::Dynamic8, &[], 256, false).expect("nothing");
        let absmax = Statistics::Nested { codes: Box::new(codes), offset };
        let levels = KnownLevels::Nf4.levels().to_vec();
        let nothing = Blockwise { levels, codes: Vec::new(), absmax, block: 64 };
        let state = State::new(QuantType::Nf4, DType::F16, vec![0, 3]);
        let packed = FourBit::pack(&state, &nothing).expect("16 levels");
        let written = String::from_utf8(packed.quant_state.bytes().to_vec()).expect("JSON");
        let wanted =
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [0, 3], "#
                .to_owned()
                + r#""nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": "#
                + text
                + "}";
        assert_eq!(written, wanted);
        let (read, unpacked) = packed.unpack().expect("just packed");
        assert_eq!((read, unpacked), (state, nothing));
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let encoded =
        Blockwise::encode(KnownLevels::Nf4, &values(40 * 100, 2), 64, true).expect("finite");
    let state = State::new(QuantType::Nf4, DType::F32, vec![40, 100]);
    let packed = FourBit::pack(&state, &encoded).expect("16 levels");
    type Pick = fn(&mut FourBit) -> &mut RawTensor;
    let parts: [(&str, Pick); 5] = [
        ("absmax", |l| &mut l.absmax),
        ("quant_map", |l| &mut l.quant_map),
        ("nested_absmax", |l| l.nested_absmax.as_mut().expect("nested")),
        ("nested_quant_map", |l| l.nested_quant_map.as_mut().expect("nested")),
        ("quant_state", |l| &mut l.quant_state),
    ];
    let mut tried = 0;
    for (part, pick) in parts {
        let mut forged = packed.clone();
        let original = pick(&mut forged).clone();
        *pick(&mut forged) = zeros(DType::I64, original.shape());
        let error = forged.unpack().map(drop).expect_err("of another type");
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some(part)));
        for shape in wrong_shapes(original.shape()) {
            *pick(&mut forged) = zeros(original.dtype(), &shape);
            let error = forged.unpack().map(drop).expect_err("of another shape");
            assert_eq!(error.tensor(), Some(part), "{shape:?}: {error}");
            tried += 1;
        }
    }
    for bytes in [0, 1, 1999, 2001, 4000] {
        let forged = FourBit { weight: zeros(DType::U8, &[bytes, 1]), ..packed.clone() };
        assert_eq!(forged.unpack().unwrap_err().tensor(), Some("weight"));
        tried += 1;
    }
    for forged in [
        FourBit { nested_absmax: None, ..packed.clone() },
        FourBit { nested_quant_map: None, ..packed.clone() },
    ] {
        assert_eq!(forged.unpack().unwrap_err().kind(), ErrorKind::InsufficientData);
    }
    println!("checked: bnb shapes that do not fit {tried}");

    let text = String::from_utf8(packed.quant_state.bytes().to_vec()).expect("JSON");
    for (from, to) in [
        ("nf4", "nf5"),
        ("\"nf4\"", "4"),
        (": 64", ": 0"),
        (": 64", ": -64"),
        (": 64", ": 1e300"),
        ("256", "0"),
        ("40, 100", "40, -100"),
        ("40, 100", "4294967296, 4294967296"),
        ("[40, 100]", "4000"),
        ("float32", "int32"),
        ("\"nested_offset\"", "\"offset\""),
        ("{", "["),
        ("}", ""),
    ] {
        let forged = text.replace(from, to).into_bytes();
        let quant_state =
            RawTensor::new(DType::U8, vec![forged.len()], forged.into()).expect("bytes");
        let error = FourBit { quant_state, ..packed.clone() }.unpack().map(drop).unwrap_err();
        assert_eq!(error.tensor(), Some("quant_state"), "{from} to {to}: {error}");
    }

    let mut bad = encoded.clone();
    bad.codes[77] = 16;
    let error = FourBit::pack(&state, &bad).map(drop).unwrap_err();
    assert!(error.to_string().contains("element 77"), "{error}");
    assert!(bad.decode(DType::F32).is_err());
    let mut bad = encoded.clone();
    bad.absmax = Statistics::Plain(vec![1.0; 62]);
    assert_eq!(bad.decode(DType::F32).unwrap_err().tensor(), Some("absmax"));
    bad.block = 0;
    assert_eq!(bad.decode(DType::F32).unwrap_err().kind(), ErrorKind::InvalidArgument);
    for value in [f32::NAN, f32::INFINITY] {
        let error = Blockwise::encode(KnownLevels::Fp4, &[0.0, value], 64, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerical);
        assert!(error.to_string().contains("element 1"), "{error}");
        let error = Int8::encode(Array2::from_elem((1, 2), value).view()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerical);
    }
    Blockwise::encode(KnownLevels::Fp4, &[0.0], 0, false).map(drop).expect_err("blocks of 0");
    let int8 = Int8::unpack(&zeros(DType::I8, &[3, 4]), &zeros(DType::F32, &[4]));
    assert_eq!(int8.unwrap_err().tensor(), Some("SCB"));
}
