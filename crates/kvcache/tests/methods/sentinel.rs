use tensorpress_kvcache::{Bias, Causal, KvShape, KvStore, Layer, SentinelSpans, StoreForm};
use tensorpress_tensor::ndarray::{Array3, s};
use tensorpress_tensor::{DType, ErrorKind, Scratch};

use crate::noise;

fn tokens(count: usize, heads: usize, seed: u64) -> Array3<f32> {
    let flat = noise(count, heads * 8, seed);
    flat.into_shape_with_order((count, heads, 8)).expect("as many")
}

/// What was freed is what the mask hides: attention over the smaller cache is attention with the mask over all of it.
#[test]
fn freeing_is_masking() {
    let (n, later) = (40, 12);
    let mut spans = SentinelSpans::new();
    for (open, close) in [(3, 9), (10, 11), (20, 30)] {
        spans.open(open).expect("opens");
        spans.close(close).expect("closes");
    }
    assert_eq!(spans.freed(), 5 + 9);
    let shape = KvShape::new(4, 2, 8).expect("a shape");
    let layer = || Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
    let (k, v, q) = (tokens(n + later, 2, 1), tokens(n + later, 2, 2), tokens(later, 4, 3));
    let mut all = layer();
    all.append(k.view(), v.view()).expect("appends");
    let mask = spans.mask(n..n + later, n + later);
    let bias = Array3::from_shape_fn((4, later, n + later), |(_, row, key)| mask[[row, key]]);
    let (mut masked, mut freed) = (Array3::zeros(q.raw_dim()), Array3::zeros(q.raw_dim()));
    let mut scratch = Scratch::default();
    let bias = Bias { values: bias.view(), from: 0 };
    all.attend_with(q.view(), Causal::from(n), Some(bias), masked.view_mut(), &mut scratch, None)
        .expect("attends");
    let mut small = layer();
    small.append(k.slice(s![..n, .., ..]), v.slice(s![..n, .., ..])).expect("appends");
    small.retain(&spans.slots(&small)).expect("retains");
    assert_eq!(small.positions(0).len(), n - spans.freed());
    small.append(k.slice(s![n.., .., ..]), v.slice(s![n.., .., ..])).expect("appends");
    small.attend(q.view(), Causal::from(n), freed.view_mut(), &mut scratch, None).expect("attends");
    let off = masked.iter().zip(&freed).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off < 1e-5, "{off}");
}

/// The closing sentinel sees its span, what comes behind it does not, and both sentinels stay in sight.
#[test]
fn only_the_closing_sentinel_sees_its_span() {
    let mut spans = SentinelSpans::new();
    spans.open(2).expect("opens");
    assert!(spans.sees(9, 4), "an open span hides nothing");
    spans.close(6).expect("closes");
    for key in 3..6 {
        assert!((key..=6).all(|query| spans.sees(query, key)));
        assert!((7..20).all(|query| !spans.sees(query, key)));
    }
    assert!((7..20).all(|query| [0, 1, 2, 6, 7].iter().all(|key| spans.sees(query, *key))));
    assert!(!spans.sees(3, 4));
    let mask = spans.mask(5..9, 9);
    for ((row, key), value) in mask.indexed_iter() {
        assert_eq!(*value == 0.0, spans.sees(5 + row, key));
    }
    for error in [spans.clone().open(6).unwrap_err(), spans.clone().close(9).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("position"));
    }
    spans.open(7).expect("opens");
    assert!(spans.clone().open(9).is_err() && spans.clone().close(7).is_err());
    // Going back opens what was closed.
    spans.close(9).expect("closes");
    let mut back = spans.clone();
    back.truncate(9);
    assert!(back.sees(20, 8) && !back.sees(20, 4) && back.freed() == 3);
    back.close(8).expect("is open again");
    spans.truncate(4);
    assert!(spans.freed() == 0 && spans.open(4).is_err());
    spans.truncate(2);
    assert!(spans.open(2).is_ok());
}
