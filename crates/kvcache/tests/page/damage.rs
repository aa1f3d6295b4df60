use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress_tensor::{DType, Error, ErrorKind, ndarray};

use crate::{cases, encode, inputs, mend, reference};

fn fails(codec: &PageCodec, page: &[u8]) -> Error {
    let c = codec.config();
    let mut out = [c.head_dim, c.value_dim]
        .map(|dim| Array3::<f32>::from_elem((c.tokens, c.kv_heads, dim), 7.5));
    let [k, v] = &mut out;
    let decoded = codec.decode(page, k.view_mut(), v.view_mut(), &mut PageScratch::default());
    let error = decoded.expect_err("a damaged page");
    if let Err(held) = codec.held(page) {
        assert_eq!(held.kind(), error.kind());
        assert!(
            out.iter().flatten().all(|x| *x == 7.5),
            "nothing is written before all is checked"
        );
    }
    error
}

#[test]
fn every_prefix_and_every_flipped_bit_is_seen() {
    for config in cases() {
        let codec = PageCodec::new(config).expect("a codec");
        for held in [0, config.tokens] {
            let page = encode(&codec, &inputs(&config, held, 40));
            for len in 0..page.len() {
                let kind = fails(&codec, &page[..len]).kind();
                assert_eq!(kind, ErrorKind::InsufficientData, "{len} bytes of {config:?}");
                assert_eq!(PageConfig::of(&page[..len]).expect_err("cut").kind(), kind);
            }
            for bit in 0..8 * page.len() {
                let mut flipped = page.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let kind = fails(&codec, &flipped).kind();
                let expected = match bit / 8 {
                    4 => [ErrorKind::Version; 2],
                    // A larger page, of which this is a part.
                    6..32 | 40 => [ErrorKind::Corruption, ErrorKind::InsufficientData],
                    _ => [ErrorKind::Corruption; 2],
                };
                // Flags decide the length too.
                let flags = bit / 8 == 5 && kind == ErrorKind::InsufficientData;
                assert!(expected.contains(&kind) || flags, "bit {bit} of {config:?}: {kind:?}");
                assert!(PageConfig::of(&flipped).is_err());
            }
            let longer = [&page[..], &[0]].concat();
            assert_eq!(fails(&codec, &longer).kind(), ErrorKind::Corruption);
        }
    }
}

#[test]
fn pages_of_other_codecs_are_refused() {
    let config = PageConfig::new(4, 2, 64).with_group(32);
    let codec = PageCodec::new(config).expect("a codec");
    let mut others = vec![
        ("seed", config.with_seed(1)),
        ("rotate", config.with_rotate(false)),
        ("symmetric", config.with_symmetric(true)),
        ("scales", config.with_scales(DType::BF16)),
        ("scales", config.with_scales(DType::F32)),
        ("group", config.with_group(33)),
        ("value_dim", config.with_value_dim(65)),
        ("key_bits", config.with_bits(5, 4)),
        ("value_bits", config.with_bits(4, 5)),
    ];
    let change = |change: fn(&mut PageConfig)| {
        let mut other = config;
        change(&mut other);
        other
    };
    others.push(("tokens", change(|c| c.tokens += 1)));
    others.push(("kv_heads", change(|c| c.kv_heads += 1)));
    others.push(("head_dim", change(|c| c.head_dim += 1)));
    for (name, other) in others {
        let page = encode(&PageCodec::new(other).expect("a codec"), &inputs(&other, 2, 1));
        let error = fails(&codec, &page);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(&format!("{name} = ")), "{name}: {error}");
        assert_eq!(PageConfig::of(&page).expect("a page"), other);
    }
}

/// Headers and scales that no encoder writes, with a checksum that fits.
#[test]
fn well_sealed_nonsense_is_refused() {
    let config = PageConfig::new(4, 2, 64).with_group(32);
    let codec = PageCodec::new(config).expect("a codec");
    let page = encode(&codec, &inputs(&config, 3, 2));
    let with = |at: usize, bytes: &[u8]| {
        let mut page = page.clone();
        page[at..at + bytes.len()].copy_from_slice(bytes);
        mend(&mut page);
        page
    };
    assert_eq!(with(0, &[]), page);
    let (corrupt, version) = (ErrorKind::Corruption, ErrorKind::Version);
    for (at, bytes, kind) in [
        (0, &b"\x89TPF"[..], corrupt),
        (4, &[2], version),
        (5, &[7], version),
        (40, &[3], version),
        (47, &[1], version),
        (12, &[5, 0, 0, 0], corrupt),
        (12, &[255; 4], corrupt),
    ] {
        let page = with(at, bytes);
        assert_eq!(fails(&codec, &page).kind(), kind, "byte {at}");
        assert_eq!(PageConfig::of(&page).expect_err("nonsense").kind(), kind);
    }
    // Parameters beyond their range, and others than the length says.
    for (at, bytes) in [(6, &[9][..]), (7, &[1]), (16, &[0; 4]), (8, &[255; 4]), (20, &[65, 0])] {
        let page = with(at, bytes);
        assert_eq!(fails(&codec, &page).kind(), ErrorKind::InvalidArgument, "byte {at}");
        assert_eq!(PageConfig::of(&page).expect_err("nonsense").kind(), corrupt);
    }
    // NaN, infinity and a negative scale; NaN and infinity as minima. Of the second token's last group.
    let begin = reference::sections(&config);
    for (section, wrong) in
        [(1, 0x7e00u16), (1, 0x7c00), (1, 0xbc00), (2, 0x7e00), (2, 0xfc00), (4, 0x7c00)]
    {
        let page = with(begin[section] + 2 * (2 * 4 - 1), &wrong.to_le_bytes());
        let error = fails(&codec, &page);
        assert_eq!(error.kind(), corrupt);
        assert_eq!(error.tensor(), Some(if section < 3 { "keys" } else { "values" }));
        assert!(error.message().contains("token 1, head 1"), "{error}");
    }
}
