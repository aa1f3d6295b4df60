use tensorpress_kvcache::stream::{Bins, Choice, Chunk, Deadline, Level, Profile};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};

use crate::noise;

const LAYERS: usize = 3;

/// Layers whose neighbouring tokens are alike, as a text's are.
fn smooth(tokens: usize, channels: usize, seed: u64) -> Vec<Array2<f32>> {
    let layer = |layer: usize| {
        let mut x = noise(tokens, channels, seed + layer as u64);
        for t in 1..tokens {
            for c in 0..channels {
                x[[t, c]] = 0.97 * x[[t - 1, c]] + 0.2 * x[[t, c]];
            }
        }
        x
    };
    (0..LAYERS).map(layer).collect()
}

fn views(x: &[Array2<f32>]) -> Vec<ArrayView2<'_, f32>> {
    x.iter().map(|x| x.view()).collect()
}

fn chunk(tokens: usize, level: &Level) -> Chunk {
    let (k, v) = (smooth(tokens, 8, 1), smooth(tokens, 6, 50));
    Chunk::quantise(&views(&k), &views(&v), level).expect("a chunk")
}

fn level(group: usize) -> Level {
    Level::graded(LAYERS, [32, 16, 8]).expect("a level").with_group(group)
}

/// Chunks of any length come back bit by bit, with and without anchors, with their own tables and a profile of other texts.
#[test]
fn chunks_come_back() {
    for group in [0, 1, 4, 10] {
        let other = chunk(64, &level(group)).profile().expect("tables");
        for tokens in [1, 9, 10, 11, 64, 130] {
            let chunk = chunk(tokens, &level(group));
            for profile in [None, Some(&other)] {
                let bytes = chunk.write(profile).expect("writes");
                let back = Chunk::read(&bytes, profile).expect("reads");
                assert_eq!(back, chunk, "{group} {tokens}");
                assert_eq!(back.write(profile).expect("writes"), bytes);
            }
            let (keys, values) = chunk.dequantise();
            assert_eq!(keys.len(), LAYERS);
            assert!(values.iter().all(|v| v.dim() == (tokens, 6)));
        }
    }
}

/// No number is farther off than half a level of its own token, or of its difference to the anchor.
#[test]
fn errors_stay_within_a_level() {
    let (k, v) = (smooth(50, 8, 1), smooth(50, 6, 50));
    for group in [0, 10] {
        let level = level(group);
        let chunk = Chunk::quantise(&views(&k), &views(&v), &level).expect("a chunk");
        let (keys, _) = chunk.dequantise();
        for (layer, (x, held)) in k.iter().zip(&keys).enumerate() {
            let most = (level.bins(layer, false).symbols() / 2) as f32;
            for (t, (row, held_row)) in x.rows().into_iter().zip(held.rows()).enumerate() {
                let anchor = if group == 0 { None } else { Some(held.row(t / group * group)) };
                let is_anchor = group > 0 && t % group == 0;
                let step = match &anchor {
                    Some(_) if is_anchor => row.fold(0.0f32, |m, x| m.max(x.abs())) / 127.0,
                    Some(anchor) => (&row - anchor).fold(0.0f32, |m, x| m.max(x.abs())) / most,
                    None => row.fold(0.0f32, |m, x| m.max(x.abs())) / most,
                };
                for (a, b) in row.iter().zip(held_row) {
                    assert!((a - b).abs() <= 0.5001 * step, "layer {layer}, token {t}: {a} {b}");
                }
            }
        }
    }
}

/// Where neighbours are alike, differences to an anchor are held more exactly in about as many bits.
#[test]
fn anchors_help_where_tokens_are_alike() {
    let (k, v) = (smooth(400, 8, 1), smooth(400, 6, 50));
    let off = |group: usize| {
        let chunk = Chunk::quantise(&views(&k), &views(&v), &level(group)).expect("a chunk");
        let error: f32 =
            chunk.dequantise().0.iter().zip(&k).map(|(a, b)| (a - b).mapv(|x| x * x).sum()).sum();
        let profile = chunk.profile().expect("tables");
        (error, chunk.write(Some(&profile)).expect("writes").len())
    };
    let ((alone, bytes), (anchored, more)) = (off(0), off(10));
    assert!(anchored < 0.6 * alone, "{anchored} and {alone}");
    assert!((more as f64) < 1.2 * bytes as f64, "{more} and {bytes}");
}

/// Coarser levels take fewer bytes.
#[test]
fn levels_trade_bytes() {
    let sizes: Vec<usize> = [[64, 64, 64], [32, 16, 16], [8, 8, 4]]
        .iter()
        .map(|bins| {
            let level = Level::graded(LAYERS, *bins).expect("a level");
            chunk(256, &level).write(None).expect("writes").len()
        })
        .collect();
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
}

/// Every flipped bit and every cut is an error; behind the head it names layer and channel.
#[test]
fn damage_is_named() {
    let level = level(0);
    for (profile, group) in [(false, 0), (true, 0), (false, 4)] {
        let chunk = chunk(12, &level.clone().with_group(group));
        let profile: Option<Profile> = profile.then(|| chunk.profile().expect("tables"));
        let bytes = chunk.write(profile.as_ref()).expect("writes");
        let head = 8 + 5 * 4 + 8 + LAYERS * 4 + 4;
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Chunk::read(&damaged, profile.as_ref()).unwrap_err();
            if bit / 8 >= head {
                assert!(error.message().contains("layer "), "{bit}: {error}");
            }
        }
        for cut in 0..bytes.len() {
            let error = Chunk::read(&bytes[..cut], profile.as_ref()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InsufficientData, "{cut}: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Chunk::read(&longer, profile.as_ref()).is_err());
    }
    // The stream of one channel.
    let chunk = chunk(40, &level);
    let mut bytes = chunk.write(None).expect("writes");
    let last = bytes.len() - 1;
    bytes[last] ^= 16;
    let error = Chunk::read(&bytes, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert_eq!(error.message(), "layer 2, values, channel 5: damaged");
    let profile = chunk.profile().expect("tables");
    let bytes = chunk.write(Some(&profile)).expect("writes");
    let other =
        profile.clone().and(&chunk).expect("as many").and(&self::chunk(9, &level)).expect("too");
    for wrong in [None, Some(&other)] {
        assert_eq!(Chunk::read(&bytes, wrong).unwrap_err().kind(), ErrorKind::MissingBase);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for bins in [0, 2, 3, 33, 258] {
        assert_eq!(Bins::new(bins).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(Level::new(&[32], &[32, 16]).is_err());
    let (mut k, v) = (smooth(5, 8, 1), smooth(5, 6, 50));
    let quantise = |k: &[Array2<f32>], v: &[Array2<f32>]| {
        Chunk::quantise(&views(k), &views(v), &level(0)).unwrap_err()
    };
    assert_eq!(quantise(&k[1..], &v).kind(), ErrorKind::ShapeMismatch);
    assert_eq!(quantise(&smooth(4, 8, 1), &v).kind(), ErrorKind::ShapeMismatch);
    assert_eq!(quantise(&smooth(0, 8, 1), &smooth(0, 6, 1)).kind(), ErrorKind::InsufficientData);
    k[1][[2, 7]] = f32::NAN;
    let error = quantise(&k, &v);
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.message().contains("layer 1, keys, channel 7"), "{error}");
    let small = chunk(9, &Level::graded(LAYERS, [8, 8, 8]).expect("a level"));
    let profile = small.profile().expect("tables");
    assert!(chunk(9, &level(0)).profile().expect("tables").and(&chunk(9, &level(4))).is_err());
    let wide = chunk(9, &Level::graded(LAYERS, [64, 64, 64]).expect("a level"));
    assert_eq!(wide.write(Some(&profile)).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

/// At a bandwidth that never changes all chunks come in time, at the best level that allows it; where bandwidth falls the
/// level does too, and where nothing fits the smallest is taken.
#[test]
fn deadlines_are_kept() {
    let chunks = vec![vec![900, 500, 200]; 10];
    let load = |seconds: f64, at: &dyn Fn(f64) -> f64, text: Option<(u64, f64)>| {
        let mut deadline = Deadline::new(seconds, at(0.0), chunks.clone()).expect("a deadline");
        if let Some(text) = text {
            deadline = deadline.with_text(&[text; 10]).expect("texts");
        }
        let (mut now, mut choices) = (0.0, Vec::new());
        for next in 0..10 {
            let choice = deadline.choose(next, now).expect("a chunk");
            let (bytes, more) = match choice {
                Choice::Stream(level) => (chunks[next][level], 0.0),
                Choice::Text => text.expect("a text"),
            };
            let took = bytes as f64 / at(now);
            deadline.measured(bytes, took);
            now += took + more;
            choices.push(choice);
        }
        assert_eq!(deadline.choose(10, now), None);
        (now, choices)
    };
    let steady = |_: f64| 1000.0;
    for (seconds, level) in [(9.0, 0), (8.9, 1), (5.0, 1), (4.9, 2), (2.0, 2)] {
        let (took, choices) = load(seconds, &steady, None);
        assert!(took <= seconds + 1e-9, "{took} of {seconds}");
        assert_eq!(choices[0], Choice::Stream(level), "{seconds}");
    }
    assert!(load(1.0, &steady, None).1.iter().all(|c| *c == Choice::Stream(2)));
    // Bandwidth falls to a third: what follows comes coarser, and in time.
    let falls = |now: f64| if now < 2.0 { 1000.0 } else { 350.0 };
    let (took, choices) = load(9.0, &falls, None);
    assert!(took <= 9.0, "{took}");
    assert_eq!((choices[0], choices[9]), (Choice::Stream(0), Choice::Stream(2)));
    // Text is best where it can be computed in time.
    assert_eq!(load(9.0, &steady, Some((10, 0.3))).1[0], Choice::Text);
    assert_eq!(load(9.0, &steady, Some((10, 3.0))).1[0], Choice::Stream(0));
    assert!(Deadline::new(0.0, 1.0, chunks.clone()).is_err());
    assert!(Deadline::new(1.0, f64::NAN, chunks.clone()).is_err());
    assert!(Deadline::new(1.0, 1.0, vec![vec![1], vec![1, 2]]).is_err());
    let deadline = Deadline::new(1.0, 1.0, chunks).expect("a deadline");
    assert!(deadline.clone().with_text(&[(1, 1.0)]).is_err());
    assert!(deadline.with_text(&[(1, f64::NAN); 10]).is_err());
}
