//! Chunks come back bit for bit, whatever is in them and whichever instruction set reads them.

use proptest::prelude::*;
use tensorpress_entropy::chunk::{CHUNK_BYTES, Effort, decode, decode_on, describe, encode};
use tensorpress_entropy::value::ValueType;
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::kernels::Isa;

const EFFORTS: [Effort; 2] = [Effort::Fast, Effort::Best];

/// Encodes, decodes on every instruction set, returns the stored length.
fn round_trip(values: ValueType, data: &[u8], base: Option<&[u8]>, effort: Effort) -> usize {
    let stored = encode(values, data, base, effort).unwrap();
    assert!(stored.len() <= data.len() + 1, "{values:?}: {} from {}", stored.len(), data.len());
    for isa in Isa::available() {
        let mut out = vec![0xa5; data.len()];
        decode_on(isa, values, &stored, base, &mut out).unwrap();
        assert!(out == data, "{values:?} {effort:?} {isa:?}, {} bytes", data.len());
    }
    stored.len()
}

/// Numbers from a fixed generator.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// Nearly normal values.
fn normal(seed: u64) -> impl Iterator<Item = f32> {
    noise(seed).map(|x| {
        let parts = [x & 0xffff, x >> 16 & 0xffff, x >> 32 & 0xffff, x >> 48];
        parts.iter().map(|p| *p as f32 / 65536.0 - 0.5).sum::<f32>() * 0.03
    })
}

fn floats(values: ValueType, count: usize, seed: u64) -> Vec<u8> {
    let of = |v: f32| match values {
        ValueType::BF16 => half::bf16::from_f32(v).to_le_bytes().to_vec(),
        ValueType::F16 => half::f16::from_f32(v).to_le_bytes().to_vec(),
        ValueType::F64 => f64::from(v).to_le_bytes().to_vec(),
        ValueType::F8 => vec![(half::f16::from_f32(v).to_bits() >> 8) as u8],
        _ => v.to_le_bytes().to_vec(),
    };
    normal(seed).take(count).flat_map(of).collect()
}

#[test]
fn every_type_and_many_lengths() {
    for values in ValueType::ALL {
        let data = floats(values, 70_000, 3);
        let lengths =
            [0, 1, 2, 3, 5, 7, 8, 9, 127, 128, 129, 255, 256, 257, 1000, 4095, 4096, 4097, 20_000];
        for effort in EFFORTS {
            for n in lengths.into_iter().chain([65_535, 65_536, 65_537, 70_000]) {
                round_trip(values, &data[..n.min(data.len())], None, effort);
            }
        }
    }
}

#[test]
fn special_values_keep_their_bits() {
    // NaNs with payloads, infinities, subnormals, both zeros, extremes: every 16-bit pattern there is.
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for values in ValueType::ALL {
        for effort in EFFORTS {
            round_trip(values, &all, None, effort);
        }
    }
    let f32s = [
        f32::NAN.to_bits(),
        0x7f80_0001,
        0xffff_ffff,
        0x7f80_0000,
        0xff80_0000,
        1,
        0x8000_0001,
        0x8000_0000,
        0,
    ];
    let data: Vec<u8> = f32s.iter().cycle().take(9999).flat_map(|b| b.to_le_bytes()).collect();
    assert!(round_trip(ValueType::F32, &data, None, Effort::Fast) < data.len() / 7, "a palette");
}

#[test]
fn what_is_regular_becomes_small() {
    let n = 100_000usize;
    let constant: Vec<u8> = (0..n).flat_map(|_| 1.5f32.to_le_bytes()).collect();
    assert_eq!(round_trip(ValueType::F32, &constant, None, Effort::Fast), 5);
    let positions: Vec<u8> = (0..n as u64).flat_map(u64::to_le_bytes).collect();
    assert!(round_trip(ValueType::I64, &positions, None, Effort::Fast) < 4000);
    let levels: Vec<u8> =
        noise(9).take(n).flat_map(|x| ((x % 16) as f32 * 0.37).to_le_bytes()).collect();
    let stored = round_trip(ValueType::F32, &levels, None, Effort::Fast);
    assert!(stored < n / 2 + n / 100, "4 bits a value: {stored}");
    // Values rounded to bf16 and stored as f32.
    let rounded: Vec<u8> =
        normal(5).take(n).flat_map(|v| half::bf16::from_f32(v).to_f32().to_le_bytes()).collect();
    let narrow: Vec<u8> =
        normal(5).take(n).flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let [wide, narrow] = [(ValueType::F32, &rounded), (ValueType::BF16, &narrow)]
        .map(|(values, data)| round_trip(values, data, None, Effort::Fast));
    assert!(wide < narrow + narrow / 50, "{wide} against {narrow}");
}

#[test]
fn noise_is_stored_as_it_is() {
    let data: Vec<u8> = noise(1).take(CHUNK_BYTES / 8).flat_map(u64::to_le_bytes).collect();
    for values in ValueType::ALL {
        assert_eq!(round_trip(values, &data, None, Effort::Fast), data.len() + 1, "{values:?}");
    }
}

#[test]
fn differences_from_a_base() {
    for values in ValueType::ALL {
        let base = floats(values, 50_000, 7);
        let mut data = base.clone();
        for (i, x) in noise(2).take(5000).enumerate() {
            let at = (i * 10 * values.width()) % data.len();
            data[at] = data[at].wrapping_add((x % 3) as u8);
        }
        for effort in EFFORTS {
            let alone = round_trip(values, &data, None, effort);
            let stored = round_trip(values, &data, Some(&base), effort);
            assert!(stored < alone / 2, "{values:?}: {stored} against {alone}");
            assert!(round_trip(values, &base, Some(&base), effort) < 64, "{values:?}");
        }
        let stored = encode(values, &data, Some(&base), Effort::Fast).unwrap();
        let mut out = vec![0; data.len()];
        let error = decode(values, &stored, None, &mut out).expect_err("needs its base");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{values:?}");
        // Not a whole number of values.
        let cut = data.len() - values.width().min(2) / 2;
        round_trip(values, &data[..cut], Some(&base[..cut]), Effort::Best);
    }
}

#[test]
fn escapes_beyond_fifteen_exponents() {
    // Values over 60 binades: a narrow table lets most of them escape, a wide one does not.
    let data: Vec<u8> = normal(4)
        .zip(noise(8))
        .take(200_000)
        .map(|(v, x)| if x % 50 == 0 { v * 2f32.powi((x >> 32) as i32 % 60) } else { v })
        .flat_map(|v| half::bf16::from_f32(v).to_le_bytes())
        .collect();
    for effort in EFFORTS {
        round_trip(ValueType::BF16, &data, None, effort);
    }
}

/// The plans that are there are really taken, and come back on every path.
#[test]
fn every_coding_is_used() {
    let mut found = std::collections::BTreeSet::new();
    let mut cases = vec![(ValueType::BF16, floats(ValueType::BF16, 300_000, 2))];
    cases.push((ValueType::F16, floats(ValueType::F16, 300_000, 3)));
    // Rows of two scales; rows that end in zeros; few values.
    let two: Vec<u8> = normal(4)
        .take(200_000)
        .enumerate()
        .flat_map(|(i, v)| {
            let v = if i / 1024 % 2 == 0 { v } else { v * 0.1 };
            half::bf16::from_f32(v).to_le_bytes()
        })
        .collect();
    cases.push((ValueType::BF16, two));
    let mut parts = floats(ValueType::F32, 100_000, 5);
    parts.chunks_mut(2048).step_by(3).for_each(|row| {
        row.chunks_mut(4).for_each(|v| v[..2].fill(0));
    });
    cases.push((ValueType::F32, parts));
    cases.push((
        ValueType::I32,
        noise(6).take(9000).flat_map(|x| (x as u32 % 7 * 123_456_789).to_le_bytes()).collect(),
    ));
    for (values, data) in cases {
        for effort in EFFORTS {
            round_trip(values, &data, None, effort);
            let stored = encode(values, &data, None, effort).unwrap();
            for plane in describe(values, &stored, data.len()).unwrap() {
                found.extend([plane.coding.to_owned(), plane.plane.into_owned()]);
            }
        }
    }
    for needed in ["raw", "rans", "classes", "packed", "huffman", "palette", "groups"] {
        assert!(found.contains(needed), "no plane is {needed}: {found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn anything_comes_back(
        data in prop::collection::vec(any::<u8>(), 0..3000),
        repeat in 1usize..40,
        skew in 1u8..=255,
        values in prop::sample::select(ValueType::ALL.to_vec()),
        best in any::<bool>(),
    ) {
        let data: Vec<u8> = data.iter().map(|b| b % skew).collect::<Vec<_>>().repeat(repeat);
        round_trip(values, &data, None, if best { Effort::Best } else { Effort::Fast });
    }

    /// Damage is an error or another value, never a panic, on every path.
    #[test]
    fn damage_does_no_harm(
        seed in any::<u64>(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
        values in prop::sample::select(ValueType::ALL.to_vec()),
        count in prop::sample::select(vec![100usize, 5000, 40_000]),
        best in any::<bool>(),
    ) {
        let mut data = floats(values, count, seed);
        if seed % 2 == 0 && values == ValueType::F32 {
            // Some rows end in zeros: two parts.
            data.chunks_mut(2560).step_by(3).for_each(|row| {
                row.chunks_mut(4).for_each(|v| v[..2].fill(0));
            });
        }
        let stored = encode(values, &data, None, if best { Effort::Best } else { Effort::Fast }).unwrap();
        let mut flipped = stored.clone();
        flipped[at.index(stored.len())] ^= 1 << bit;
        for isa in Isa::available() {
            let mut out = vec![0; data.len()];
            let _ = decode_on(isa, values, &flipped, None, &mut out);
            let cut = cut.index(stored.len());
            prop_assert!(decode_on(isa, values, &stored[..cut], None, &mut out).is_err());
        }
    }
}
