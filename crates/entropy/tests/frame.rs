//! Frames give every number back, and no damage gets past them.

use std::io::{Read, Write};

use half::{bf16, f16};
use proptest::prelude::*;
use tensorpress_entropy::chunk::{CHUNK_BYTES, encode};
use tensorpress_entropy::frame::{FrameReader, FrameWriter};
use tensorpress_entropy::{
    Effort, ErrorKind, Frame, Number, ValueType, compress, compress_with, decompress,
};
use xxhash_rust::xxh3::xxh3_64;

/// There and back by slices and by streams, which must agree.
fn round_trip<T: Number>(numbers: &[T], values: ValueType) -> Vec<u8> {
    let frame = compress(numbers, values);
    let mut bytes = Vec::new();
    T::write_le(numbers, &mut bytes);
    let most = bytes.len() + 30 + 17 * bytes.len().div_ceil(CHUNK_BYTES);
    assert!(frame.len() <= most, "{values:?}: {} of {}", frame.len(), bytes.len());
    let opened = Frame::open(&frame).unwrap();
    assert_eq!((opened.values(), opened.byte_len()), (values, bytes.len() as u64));
    let mut back = Vec::new();
    T::write_le(&decompress::<T>(&frame).unwrap(), &mut back);
    assert!(back == bytes, "{values:?}, {} bytes", bytes.len());
    assert!(decompress::<u8>(&frame).unwrap() == bytes);
    assert!(written(&bytes, values, Effort::Fast, 70_001) == frame, "{values:?}");
    assert!(read(&frame).unwrap() == bytes);
    frame
}

/// The frame of bytes that come in pieces.
fn written(bytes: &[u8], values: ValueType, effort: Effort, piece: usize) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), values).unwrap().with_effort(effort);
    for piece in bytes.chunks(piece) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn read(frame: &[u8]) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = Vec::new();
    FrameReader::new(frame).map_err(|e| e.kind())?.read_to_end(&mut bytes).map_err(|e| {
        let inner = e.into_inner().expect("an error of this library");
        inner.downcast::<tensorpress_entropy::Error>().expect("an error of this library").kind()
    })?;
    Ok(bytes)
}

fn noise(count: usize) -> impl Iterator<Item = u64> {
    (0..count as u64).map(|i| {
        let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    })
}

fn normal(count: usize) -> impl Iterator<Item = f32> {
    noise(count).map(|x| {
        let parts = [x & 0xffff, x >> 16 & 0xffff, x >> 32 & 0xffff, x >> 48];
        parts.iter().map(|p| *p as f32 / 65536.0 - 0.5).sum::<f32>() * 0.03
    })
}

#[test]
fn every_number_and_every_layout() {
    let n = 5003;
    for values in ValueType::ALL {
        round_trip(&normal(n).map(bf16::from_f32).collect::<Vec<_>>(), values);
        round_trip(&normal(n).map(f16::from_f32).collect::<Vec<_>>(), values);
        round_trip(&normal(n).collect::<Vec<f32>>(), values);
        round_trip(&normal(n).map(f64::from).collect::<Vec<_>>(), values);
        round_trip(&noise(n).collect::<Vec<u64>>(), values);
        round_trip(&noise(n).map(|x| x as i64).collect::<Vec<_>>(), values);
        round_trip(&(0..n as u32).collect::<Vec<_>>(), values);
        round_trip(&(0..n as i32).map(|x| 7 - x).collect::<Vec<_>>(), values);
        round_trip(&noise(n).map(|x| x as u16).collect::<Vec<_>>(), values);
        round_trip(&noise(n).map(|x| x as i16 % 9).collect::<Vec<_>>(), values);
        round_trip(&noise(n).map(|x| x as i8).collect::<Vec<_>>(), values);
        round_trip(&noise(n).map(|x| x as u8 & 3).collect::<Vec<_>>(), values);
    }
    // NaNs with payloads, infinities, both zeros: every pattern of 16 bits.
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for values in [ValueType::BF16, ValueType::F16, ValueType::I16] {
        round_trip(&all, values);
    }
}

#[test]
fn any_length() {
    let edges = [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 65_535, 65_536, 65_537];
    let chunks = [1, 2, 3].map(|n| n * CHUNK_BYTES);
    let around = chunks.iter().flat_map(|n| (n - 9)..=(n + 9));
    let bytes: Vec<u8> =
        normal(4 * CHUNK_BYTES / 2).flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect();
    for len in edges.into_iter().chain(around) {
        let frame = compress(&bytes[..len], ValueType::BF16);
        assert!(decompress::<u8>(&frame).unwrap() == bytes[..len], "{len}");
        if len < 100_000 || len.is_multiple_of(3) {
            assert!(written(&bytes[..len], ValueType::BF16, Effort::Fast, 333_333) == frame);
            assert!(read(&frame).unwrap() == bytes[..len], "{len}");
        }
    }
    // A chunk says no, it does not panic.
    let long = encode(ValueType::BF16, &bytes[..CHUNK_BYTES + 1], None, Effort::Fast);
    assert_eq!(long.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let base = encode(ValueType::BF16, &bytes[..10], Some(&bytes[..9]), Effort::Fast);
    assert_eq!(base.unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn frames_become_small() {
    let n = 1 << 20;
    let weights: Vec<bf16> = normal(n).map(bf16::from_f32).collect();
    let [fast, best] = [Effort::Fast, Effort::Best].map(|effort| {
        let frame = compress_with(&weights, ValueType::BF16, effort);
        assert!(decompress::<bf16>(&frame).unwrap() == weights);
        frame.len()
    });
    println!("{n} bf16 values: {fast} bytes fast, {best} best");
    assert!(best < fast && fast < 2 * n * 70 / 100, "{fast} {best}");
    assert!(round_trip(&vec![7u32; n], ValueType::I32).len() < 150);
}

#[test]
fn no_damage_gets_past() {
    let numbers: Vec<bf16> = normal(700).map(bf16::from_f32).collect();
    let frames = [
        compress(&numbers, ValueType::BF16),
        compress(&[0u8; 5], ValueType::Bytes),
        compress::<u64>(&[], ValueType::I64),
    ];
    let error = |frame: &[u8]| {
        let kind = decompress::<u8>(frame).expect_err("damaged").kind();
        // A stream ends with its frame: what lies behind is not looked at.
        assert_eq!(read(frame).expect_err("damaged"), kind);
        kind
    };
    for frame in &frames {
        for at in 0..frame.len() {
            assert_eq!(error(&frame[..at]), ErrorKind::InsufficientData, "{at}");
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                error(&flipped);
            }
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert_eq!(decompress::<u8>(&longer).unwrap_err().kind(), ErrorKind::Corruption);
    }
    let odd = decompress::<u32>(&compress(&[1u8; 5], ValueType::Bytes)).unwrap_err();
    assert_eq!(odd.kind(), ErrorKind::InvalidArgument);
    let mut later = frames[0].clone();
    later[4] = 2;
    assert_eq!(decompress::<u8>(&later).unwrap_err().kind(), ErrorKind::Version);
}

/// Two frames one after the other in one stream.
#[test]
fn streams_end_where_their_frame_does() {
    let (a, b) = (compress(&[1u16, 2, 3], ValueType::I16), compress(&[9u8; 99], ValueType::Bytes));
    let both = [a, b].concat();
    let mut first = FrameReader::new(&both[..]).unwrap();
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [1, 0, 2, 0, 3, 0]);
    assert!(read(first.into_inner()).unwrap() == [9; 99]);
}

/// A frame with right checksums and wrong records.
fn forged(records: &[(u32, &[u8])]) -> Vec<u8> {
    let mut frame = b"\x89TPF\x01\x00".to_vec();
    for (len, stored) in records {
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        frame.extend_from_slice(stored);
        frame.extend_from_slice(&xxh3_64(&frame).to_le_bytes());
    }
    frame
}

#[test]
fn contradictions_are_found() {
    let end = |len: u64| (0, len.to_le_bytes());
    let good = forged(&[(3, &[1, 5]), (0, &end(3).1)]);
    assert_eq!(decompress::<u8>(&good).unwrap(), [5; 3]);
    let million = CHUNK_BYTES as u32;
    let bad: [&[(u32, &[u8])]; 8] = [
        &[(3, &[1, 5]), (0, &end(4).1)],
        &[(3, &[1, 5]), (3, &[1, 5]), (0, &end(6).1)],
        &[(million + 1, &[1, 5]), (0, &end(u64::from(million) + 1).1)],
        &[(3, &[0, 1, 2, 3, 4]), (0, &end(3).1)],
        &[(3, &[]), (0, &end(3).1)],
        &[(3, &[9, 5]), (0, &end(3).1)],
        &[(0, &[1])],
        // A difference from a base that nobody has.
        &[(3, &[3, 1, 1, 1, 0]), (0, &end(3).1)],
    ];
    for records in bad {
        let frame = forged(records);
        let kind = decompress::<u8>(&frame).expect_err("a contradiction").kind();
        assert!(matches!(kind, ErrorKind::Corruption | ErrorKind::Version), "{kind:?} {records:?}");
        assert_eq!(read(&frame).expect_err("a contradiction"), kind, "{records:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn anything_comes_back(
        data in prop::collection::vec(any::<u8>(), 0..3000),
        repeat in 1usize..500,
        skew in 1u8..=255,
        values in prop::sample::select(ValueType::ALL.to_vec()),
        best in any::<bool>(),
        piece in 1usize..100_000,
    ) {
        let data: Vec<u8> = data.iter().map(|b| b % skew).collect::<Vec<_>>().repeat(repeat);
        let effort = if best { Effort::Best } else { Effort::Fast };
        let frame = compress_with(&data, values, effort);
        prop_assert!(written(&data, values, effort, piece) == frame);
        prop_assert!(decompress::<u8>(&frame).unwrap() == data);
        prop_assert!(read(&frame).unwrap() == data);
    }

    #[test]
    fn anything_else_is_an_error(data in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decompress::<u8>(&data).is_err());
        prop_assert!(decompress::<u8>(&[b"\x89TPF\x01\x03", &data[..]].concat()).is_err());
    }
}
