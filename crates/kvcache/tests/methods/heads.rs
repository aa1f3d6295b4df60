use tensorpress_kvcache::Ladder;
use tensorpress_kvcache::heads::{
    best, echo, entropy_classes, entropy_stages, eviction_error, induction, layer_tokens,
    matrix_entropy, retrieval_heads, semantic_retrieval,
};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, array};

use crate::noise;

/// A map whose queries all look at one key, where there is one.
fn looks(tokens: usize, at: impl Fn(usize) -> Option<usize>) -> Array2<f32> {
    let mut map = Array2::zeros((tokens, tokens));
    for query in 0..tokens {
        map[[query, at(query).unwrap_or(query)]] = 1.0;
    }
    map
}

/// A head that copies has induction 1, one that finds itself echo 1, one that looks at the first token neither.
#[test]
fn repeated_tokens_tell_heads_apart() {
    let (period, tokens) = (7, 28);
    let copying = looks(tokens, |q| (q + 1).checked_sub(period));
    let finding = looks(tokens, |q| q.checked_sub(period));
    let resting = looks(tokens, |_| Some(0));
    for (map, expected) in [(&copying, (0.0, 1.0)), (&finding, (1.0, 0.0))] {
        let found = (echo(map.view(), period).unwrap(), induction(map.view(), period).unwrap());
        assert_eq!(found, expected);
    }
    // It meets the repeated token by chance: once a period.
    assert!(echo(resting.view(), period).unwrap() < 0.2);
    assert!(induction(resting.view(), period).unwrap() < 0.2);
    // A slow reference over any map.
    let map = noise(tokens, tokens, 3).mapv(f32::abs);
    let mut sum = 0.0;
    for query in period..tokens {
        for key in 0..query {
            let same = |key: usize| key % period == query % period;
            sum += f64::from(map[[query, key]]) * f64::from(u8::from(key > 0 && same(key - 1)));
        }
    }
    let mean = sum / (tokens - period) as f64;
    assert!((induction(map.view(), period).unwrap() - mean).abs() < 1e-6);
    for period in [0, tokens, 100] {
        let error = echo(map.view(), period).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("period"));
    }
}

#[test]
fn retrieval_heads_are_the_best_of_both_tests() {
    let induction: Vec<f64> = (0..50).map(f64::from).collect();
    let mut echo = vec![0.0; 50];
    echo[3] = 1.0;
    let chosen = retrieval_heads(&induction, &echo, (0.14, 0.01)).expect("as many");
    let chosen: Vec<usize> = (0..50).filter(|h| chosen[*h]).collect();
    assert_eq!(chosen, [3, 43, 44, 45, 46, 47, 48, 49]);
    assert!(retrieval_heads(&induction, &echo[1..], (0.1, 0.1)).is_err());
    assert!(retrieval_heads(&induction, &echo, (1.1, 0.1)).is_err());
    assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 2), [1, 2]);
}

/// A head that looks at all of the needle counts, though never at the very token that is said.
#[test]
fn semantic_retrieval_counts_the_span() {
    let mut map = Array2::zeros((4, 10));
    let says_it = [false, true, true, false];
    for (step, key) in [(0, 4), (1, 6), (2, 4), (3, 5)] {
        map[[step, key]] = 0.75;
        map[[step, 0]] = 0.25;
    }
    assert_eq!(semantic_retrieval(map.view(), 4..7, &says_it).expect("a score"), 1.5);
    assert_eq!(semantic_retrieval(map.view(), 0..1, &says_it).expect("a score"), 0.5);
    assert!(semantic_retrieval(map.view(), 4..11, &says_it).is_err());
    assert!(semantic_retrieval(map.view(), 4..7, &says_it[1..]).is_err());
}

/// All directions alike have entropy 1, one direction none; fewer eigenvalues, less.
#[test]
fn entropy_is_that_of_directions() {
    let everywhere = Array2::from_shape_fn((16, 8), |(r, c)| {
        if r / 2 == c { if r % 2 == 0 { 1.0 } else { -1.0 } } else { 0.0 }
    });
    assert!((matrix_entropy(everywhere.view(), 0).expect("some") - 1.0).abs() < 1e-9);
    let line = Array2::from_shape_fn((16, 8), |(r, c)| (r as f32 - 7.5) * (c as f32 + 1.0));
    assert!(matrix_entropy(line.view(), 0).expect("some").abs() < 1e-6);
    let x = noise(40, 8, 1);
    let of = |top| matrix_entropy(x.view(), top).expect("some");
    assert!((1..8).all(|top| of(top) < of(top + 1)));
    assert_eq!(of(8), of(0));
    // Length and place of the vectors do not count.
    let moved = x.mapv(|x| 3.0 * x + 5.0);
    assert!((matrix_entropy(moved.view(), 0).expect("some") - of(0)).abs() < 1e-5);
    for empty in [Array2::zeros((0, 8)), Array2::ones((5, 8)), Array2::ones((5, 1))] {
        let error = matrix_entropy(empty.view(), 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InsufficientData);
    }
    assert_eq!(entropy_classes(&[0.3, 0.9, 0.1, 0.7], 2).expect("classes"), [0, 1, 0, 1]);
    assert_eq!(entropy_classes(&[0.3, 0.9, 0.1], 3).expect("classes"), [1, 2, 0]);
    assert!(entropy_classes(&[0.3], 0).is_err());
    assert_eq!(entropy_stages(&[0.9, 0.88, 0.7, 0.72, 0.5], 0.1), [0, 0, 1, 1, 2]);
}

#[test]
fn layers_get_what_they_would_lose() {
    let all = array![[3.0f32, 4.0], [0.0, 0.0]];
    let kept = array![[3.0f32, 1.0], [0.0, 4.0]];
    assert!((eviction_error(all.view(), kept.view()).expect("an error") - 1.0).abs() < 1e-9);
    assert_eq!(eviction_error(all.view(), all.view()).expect("none"), 0.0);
    for (errors, mean, least) in [
        (vec![0.1, 0.2, 0.7], 100, 10),
        (vec![0.0; 4], 7, 2),
        (vec![1.0, 0.0], 9, 9),
        (vec![0.3; 7], 31, 0),
    ] {
        let tokens = layer_tokens(&errors, mean, least).expect("tokens");
        assert_eq!(tokens.iter().sum::<usize>(), mean * errors.len());
        assert!(tokens.iter().all(|t| *t >= least));
        let sum = errors.iter().sum::<f64>().max(1e-300);
        let free = ((mean - least) * errors.len()) as f64;
        for (t, e) in tokens.iter().zip(&errors) {
            let exact = least as f64
                + free * if sum > 1e-200 { e / sum } else { 1.0 / errors.len() as f64 };
            assert!((*t as f64 - exact).abs() <= 1.0, "{t} for {exact}");
        }
    }
    assert!(layer_tokens(&[1.0], 3, 4).is_err());
    assert!(layer_tokens(&[f64::NAN], 3, 1).is_err());
}

/// Together the layers reach back farther than each of them; sinks and the newest are everywhere.
#[test]
fn ladders_reach_farther_together() {
    let mut ladder = Ladder::new(8, 64, 4, (4, 2)).expect("a ladder");
    let mut held: Vec<Vec<usize>> = vec![(0..200).collect(); 8];
    let slots = ladder.step(200).expect("too many");
    for (held, slots) in held.iter_mut().zip(slots) {
        let slots = Ladder::distinct(&slots, held.len());
        assert!(slots.len() <= ladder.size());
        *held = slots.into_iter().map(|s| held[s]).collect();
        assert_eq!(held[..4], [0, 1, 2, 3]);
        assert_eq!(held.last(), Some(&199));
    }
    let all: std::collections::BTreeSet<usize> = held.iter().flatten().copied().collect();
    assert!(all.len() > held[0].len() * 5 / 4, "{} and {}", all.len(), held[0].len());
    assert!(ladder.step(ladder.size()).is_none());
    for (layers, size, shape) in [(4, 64, (4, 2)), (8, 64, (4, 4)), (8, 12, (4, 2))] {
        assert!(Ladder::new(layers, size, 4, shape).is_err(), "{layers} {size} {shape:?}");
    }
}
