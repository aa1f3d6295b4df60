use tensorpress_kvcache::kernel_hash::{HashConfig, HashedTokens, KernelHash, similar_pairs};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, array, s};

use crate::{noise, softmax};

/// Vectors around a few directions, and the attention they pay each other.
fn clustered(n: usize) -> (Array2<f32>, Array2<f32>) {
    let (centres, off) = (noise(6, 8, 1), noise(n, 8, 2));
    let x = Array2::from_shape_fn((n, 8), |(r, c)| 2.0 * centres[[r % 6, c]] + 0.3 * off[[r, c]]);
    let map = softmax(x.mapv(f64::from).dot(&x.t().mapv(f64::from)) / 8f64.sqrt());
    (x, map.mapv(|w| w as f32))
}

/// What codes miss of the pairs, over what there is: 1 where products of codes say nothing.
fn missed(hash: &KernelHash, x: &Array2<f32>, pairs: &Array2<f32>) -> f64 {
    let codes = hash.codes(x.view()).expect("codes").mapv(f64::from);
    let products = codes.dot(&codes.t()) / hash.bits() as f64;
    let square = |x: f64| x * x;
    let off: f64 = products.iter().zip(pairs).map(|(a, b)| square(a - f64::from(*b))).sum();
    off / pairs.iter().map(|p| square(f64::from(*p))).sum::<f64>()
}

/// Bits that are fitted say more of the pairs than as many by chance, and more bits more; vectors that were not fitted
/// to too.
#[test]
fn codes_follow_attention() {
    let (all, map) = clustered(180);
    let x = all.slice(s![..120, ..]).to_owned();
    let pairs = similar_pairs(map.slice(s![..120, ..120]), 0.15).expect("pairs");
    let fit = |bits, steps| {
        let config = HashConfig::default().with_bits(bits).with_steps(steps);
        KernelHash::fit(x.view(), pairs.view(), &config).expect("a hash")
    };
    let falls: Vec<f64> = [1, 4, 16].iter().map(|b| missed(&fit(*b, 20), &x, &pairs)).collect();
    assert!(falls.is_sorted_by(|a, b| a > b), "{falls:?}");
    // Pairs that say nothing: what is fitted to them is chance.
    let random = noise(120, 120, 7);
    let random = (&random + &random.t()).mapv(f32::signum);
    let config = HashConfig::default();
    let chance = KernelHash::fit(x.view(), random.view(), &config).expect("a hash");
    let (fitted, chance) = (missed(&fit(16, 20), &x, &pairs), missed(&chance, &x, &pairs));
    assert!(fitted < 0.8 * chance, "{fitted} and {chance}");
    // The gradient never takes what the spectral start had.
    assert!(missed(&fit(1, 20), &x, &pairs) <= missed(&fit(1, 0), &x, &pairs) + 1e-9);
    // Of vectors seen first here, those of a cluster agree.
    let codes = fit(16, 20).codes(all.slice(s![120.., ..])).expect("codes");
    let agree = |i: usize, j: usize| -> f64 {
        (0..16).filter(|b| codes[[i, *b]] == codes[[j, *b]]).count() as f64 / 16.0
    };
    let mean = |same: bool| {
        let pairs = (0..60).flat_map(|i| (0..i).map(move |j| (i, j)));
        let of: Vec<f64> =
            pairs.filter(|(i, j)| (i % 6 == j % 6) == same).map(|(i, j)| agree(i, j)).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean(true) > mean(false) + 0.2, "{} and {}", mean(true), mean(false));
}

/// Sums over tokens are attention with the share of agreeing bits as weights, written out; one by one or all at once.
#[test]
fn sums_are_attention_by_agreement() {
    let (x, map) = clustered(60);
    let pairs = similar_pairs(map.view(), 0.15).expect("pairs");
    let hash = KernelHash::fit(x.view(), pairs.view(), &HashConfig::default()).expect("a hash");
    let (codes, values) = (hash.codes(x.view()).expect("codes"), noise(60, 5, 4));
    let mut state = HashedTokens::new(16, 5);
    assert_eq!(state.attend(codes.row(0)).expect("nothing yet"), [0.0; 5]);
    for query in 0..60 {
        state.push(codes.row(query), values.row(query)).expect("pushes");
        let mine = state.attend(codes.row(query)).expect("attends");
        let agree =
            |key: usize| (0..16).filter(|b| codes[[query, *b]] == codes[[key, *b]]).count() as f64;
        let sum: f64 = (0..=query).map(agree).sum();
        for c in 0..5 {
            let exact: f64 = (0..=query).map(|k| agree(k) / sum * f64::from(values[[k, c]])).sum();
            assert!(
                (f64::from(mine[c]) - exact).abs() < 1e-5,
                "query {query}: {} {exact}",
                mine[c]
            );
        }
    }
    // A key that agrees in no bit has no weight.
    let mut state = HashedTokens::new(2, 1);
    state.push(array![1, -1].view(), array![3.0].view()).expect("pushes");
    assert_eq!(state.attend(array![-1i8, 1].view()).expect("attends"), [0.0]);
    assert!(state.push(array![1, -1, 1].view(), array![3.0].view()).is_err());
    assert!(state.attend(array![1i8].view()).is_err());
}

#[test]
fn bad_fits_are_refused() {
    let (x, map) = clustered(20);
    let pairs = similar_pairs(map.view(), 0.2).expect("pairs");
    assert_eq!(pairs, pairs.t());
    let count = |sign: f32| pairs.iter().filter(|p| **p == sign).count();
    assert_eq!((count(1.0), count(-1.0)), (20 + 2 * 38, 2 * 38));
    assert!(similar_pairs(map.slice(s![.., 1..]), 0.2).is_err());
    assert!(similar_pairs(map.view(), 0.6).is_err());
    let config = HashConfig::default().with_anchors(10);
    let fit = |config: HashConfig| KernelHash::fit(x.view(), pairs.view(), &config);
    for bad in [config.with_bits(0), config.with_anchors(0), config.with_anchors(21)] {
        assert_eq!(fit(bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let hash = fit(config).expect("a hash");
    assert_eq!(hash, fit(config).expect("the same"));
    assert!(hash.codes(x.slice(s![.., 1..])).is_err());
    let mut nan = x.clone();
    nan[[0, 0]] = f32::NAN;
    let error = KernelHash::fit(nan.view(), pairs.view(), &config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
}
