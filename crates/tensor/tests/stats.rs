//! Calibration statistics against naive f64 arithmetic, and the guarantees their documentation gives.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use proptest::prelude::*;
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::stats::*;

const PARS: [Par; 4] = [Par::Seq, Par::Threads(2), Par::Threads(7), Par::Rayon];

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut i = 0;
    Array2::from_shape_simple_fn((rows, cols), || {
        i += 1;
        gaussian(seed, i) as f32
    })
}

fn naive_gram(x: ArrayView2<'_, f32>) -> Array2<f64> {
    let x = x.mapv(f64::from);
    x.t().dot(&x)
}

fn gram_of(x: ArrayView2<'_, f32>, chunk: usize, par: Par) -> Gram {
    let mut gram = Gram::new(x.ncols());
    x.axis_chunks_iter(Axis(0), chunk).for_each(|chunk| gram.update(chunk, par));
    gram
}

#[track_caller]
fn assert_close(a: &Array2<f32>, b: &Array2<f64>, relative: f64) {
    assert_eq!(a.dim(), b.dim());
    let scale = b.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (index, &v) in a.indexed_iter() {
        let difference = (f64::from(v) - b[index]).abs();
        assert!(difference <= relative * scale, "{index:?}: {v} and {}", b[index]);
    }
}

#[test]
fn gram_matches_naive_at_odd_sizes() {
    for (tokens, channels) in
        [(0, 5), (3, 0), (1, 1), (255, 7), (256, 64), (257, 65), (700, 130), (300, 513), (9, 1025)]
    {
        let x = random(tokens, channels, 1);
        let gram = gram_of(x.view(), 100, Par::Seq);
        assert_eq!((gram.tokens(), gram.channels()), (tokens as u64, channels));
        let expected = naive_gram(x.view());
        let diagonal = gram.diagonal().unwrap();
        assert!((&diagonal - &expected.diag()).iter().all(|d| d.abs() < 1e-3));
        let matrix = gram.matrix().unwrap();
        assert_close(&matrix, &expected, 1e-6);
        assert_eq!(matrix, matrix.t(), "symmetric to the last bit");
        assert_eq!(matrix, gram.into_matrix().unwrap());
    }
}

#[test]
fn gram_does_not_depend_on_chunks_layout_or_threads() {
    let x = random(1000, 600, 2);
    let expected = gram_of(x.view(), 1000, Par::Seq).into_matrix().unwrap();
    for (chunk, par) in [1, 3, 255, 256, 257, 999].into_iter().zip(PARS.into_iter().cycle()) {
        assert_eq!(
            expected,
            gram_of(x.view(), chunk, par).into_matrix().unwrap(),
            "{chunk} {par:?}"
        );
    }
    let by_columns = x.t().as_standard_layout().into_owned();
    let gram = gram_of(by_columns.t(), 300, Par::Rayon);
    assert_eq!(expected, gram.into_matrix().unwrap());
}

#[test]
fn reading_a_gram_matrix_midway_changes_nothing() {
    let x = random(400, 20, 3);
    let mut gram = Gram::new(20);
    for chunk in x.axis_chunks_iter(Axis(0), 70) {
        gram.update(chunk, Par::Seq);
        gram.matrix().unwrap();
        gram.diagonal().unwrap();
    }
    assert_eq!(gram.into_matrix().unwrap(), gram_of(x.view(), 400, Par::Seq).matrix().unwrap());
}

#[test]
fn gram_merges() {
    let x = random(900, 520, 4);
    let expected = naive_gram(x.view());
    let part = |rows: std::ops::Range<usize>| gram_of(x.slice(s![rows, ..]), 128, Par::Seq);
    let merged = || {
        let mut gram = part(0..300);
        gram.merge(part(300..301));
        gram.merge(Gram::new(520));
        gram.merge(part(301..900));
        assert_eq!(gram.tokens(), 900);
        gram.into_matrix().unwrap()
    };
    assert_close(&merged(), &expected, 1e-6);
    assert_eq!(merged(), merged());
    // Parts of whole blocks merge into the very bytes of the whole... of a sum that is exact.
    let ones = Array2::<f32>::ones((512, 9));
    let mut gram = gram_of(ones.slice(s![..256, ..]), 256, Par::Seq);
    gram.merge(gram_of(ones.slice(s![256.., ..]), 100, Par::Seq));
    assert_eq!(gram.into_matrix().unwrap(), Array2::<f32>::from_elem((9, 9), 512.0));
}

#[test]
fn long_streams_lose_no_accuracy() {
    // f32 sums would stop growing near 2^24 tokens of ones; 0.1 squared would drift long before.
    let x = Array2::<f32>::from_elem((4096, 2), 0.1);
    let mut gram = Gram::new(2);
    for _ in 0..500 {
        gram.update(x.view(), Par::Seq);
    }
    let expected = 4096.0 * 500.0 * f64::from(0.1f32) * f64::from(0.1f32);
    assert_close(&gram.into_matrix().unwrap(), &Array2::from_elem((2, 2), expected), 1e-6);
}

#[test]
fn gram_finds_nan_and_overflow() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = random(300, 6, 5);
        x[[270, 4]] = bad;
        let mut gram = gram_of(x.view(), 50, Par::Seq);
        gram.merge(gram_of(random(10, 6, 6).view(), 50, Par::Seq));
        assert!(!gram.is_finite());
        assert_eq!(gram.tokens(), 310);
        for error in [gram.diagonal().unwrap_err(), gram.into_matrix().unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Numerical);
            assert!(error.message().contains("channel 4"), "{error}");
            assert!(error.message().contains("token 270"), "{error}");
        }
        let mut later = gram_of(random(10, 6, 6).view(), 50, Par::Seq);
        later.merge(gram_of(x.view(), 50, Par::Seq));
        assert!(later.into_matrix().unwrap_err().message().contains("token 280"));
    }
    let mut x = random(5, 3, 7);
    x[[2, 1]] = 1e20;
    let gram = gram_of(x.view(), 5, Par::Seq);
    assert!(gram.is_finite());
    let error = gram.into_matrix().unwrap_err();
    assert!(error.message().contains("channel 1"), "{error}");
}

fn naive_moments(x: ArrayView2<'_, f32>) -> [Array1<f64>; 6] {
    let x = x.mapv(f64::from);
    let n = x.nrows() as f64;
    let per_channel =
        |f: &dyn Fn(ndarray::ArrayView1<'_, f64>) -> f64| x.columns().into_iter().map(f).collect();
    let variance = |c: ndarray::ArrayView1<'_, f64>| {
        let mean = c.sum() / n;
        c.mapv(|v| (v - mean).powi(2)).sum() / n
    };
    [
        per_channel(&|c| c.sum() / n),
        per_channel(&variance),
        per_channel(&|c| c.mapv(f64::abs).sum() / n),
        per_channel(&|c| c.mapv(|v| v * v).sum()),
        per_channel(&|c| c.fold(f64::INFINITY, |m, &v| m.min(v))),
        per_channel(&|c| c.fold(f64::NEG_INFINITY, |m, &v| m.max(v))),
    ]
}

#[track_caller]
fn assert_moments(moments: &Moments, x: ArrayView2<'_, f32>) {
    let found = [
        moments.mean().to_owned(),
        moments.variance(),
        moments.mean_abs(),
        moments.sum_of_squares().to_owned(),
        moments.min().mapv(f64::from),
        moments.max().mapv(f64::from),
    ];
    for (which, (a, b)) in found.iter().zip(&naive_moments(x)).enumerate() {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-10 * (1.0 + b.abs()), "moment {which}: {a} and {b}");
        }
    }
    let abs_max = x.map_axis(Axis(0), |c| c.fold(0.0, |m: f32, v| m.max(v.abs())));
    assert_eq!(moments.abs_max(), abs_max);
}

#[test]
fn moments_match_naive_and_merge() {
    for (tokens, channels) in
        [(1, 1), (2, 7), (127, 3), (128, 3), (129, 65), (500, 33), (131, 1030)]
    {
        // A large mean: the textbook formula for the variance would lose all digits.
        let x = random(tokens, channels, 8) * 0.01 + 100.0;
        for chunk in [1, 50, 128, 1000] {
            let mut whole = Moments::new(channels);
            let mut parts = Moments::new(channels);
            for chunk in x.axis_chunks_iter(Axis(0), chunk) {
                whole.update(chunk);
                let mut part = Moments::new(channels);
                part.update(chunk);
                parts.merge(part);
            }
            assert_eq!(whole.tokens(), tokens as u64);
            assert_moments(&whole, x.view());
            assert_moments(&parts, x.view());
        }
    }
}

#[test]
fn moments_of_nothing_and_of_nan() {
    let mut empty = Moments::new(2);
    empty.merge(Moments::new(2));
    empty.update(Array2::zeros((0, 2)).view());
    assert_eq!((empty.tokens(), empty.is_finite()), (0, true));
    for zeros in [empty.mean().to_owned(), empty.variance(), empty.mean_abs(), empty.l2_norm()] {
        assert_eq!(zeros, Array1::<f64>::zeros(2));
    }
    assert_eq!(empty.abs_max(), Array1::<f32>::zeros(2));
    assert_eq!(empty.min()[0], f32::INFINITY);

    let mut moments = Moments::new(3);
    moments.update(random(4, 3, 9).view());
    let mut x = random(4, 3, 9);
    x[[1, 2]] = f32::NAN;
    moments.update(x.view());
    assert_eq!(moments.tokens(), 8);
    let error = moments.check().unwrap_err();
    assert!(
        error.message().contains("channel 2") && error.message().contains("token 5"),
        "{error}"
    );
}

/// Rows that carry their own index.
fn numbered(tokens: usize) -> Array2<f32> {
    Array2::from_shape_fn((tokens, 2), |(i, j)| (2 * i + j) as f32)
}

fn sample(x: ArrayView2<'_, f32>, capacity: usize, seed: u64, start: u64) -> SampledRows {
    let mut rows = SampledRows::new(x.ncols(), capacity, seed).starting_at(start);
    rows.update(x);
    rows
}

#[test]
fn samples_are_rows_in_order_without_repetition() {
    let x = numbered(1000);
    for capacity in [0, 1, 7, 999, 1000, 2000] {
        let rows = sample(x.view(), capacity, 1, 0);
        assert_eq!((rows.len(), rows.is_empty()), (capacity.min(1000), capacity == 0));
        let rows = rows.into_matrix();
        assert!(rows.rows().into_iter().all(|r| r[1] == r[0] + 1.0 && r[0] % 2.0 == 0.0));
        assert!(rows.column(0).windows(2).into_iter().all(|w| w[0] < w[1]));
    }
    assert_eq!(sample(x.view(), 1000, 1, 0).into_matrix(), x);
}

#[test]
fn samples_are_spread_evenly_over_the_stream() {
    let x = numbered(10_000);
    let mut quarters = [0; 4];
    let mut phases = [0; 4];
    for seed in 0..40 {
        for row in sample(x.view(), 100, seed, 0).into_matrix().rows() {
            let token = row[0] as usize / 2;
            quarters[token / 2500] += 1;
            phases[token % 4] += 1;
        }
    }
    for count in quarters.into_iter().chain(phases) {
        assert!((880..1120).contains(&count), "{quarters:?} {phases:?}");
    }
}

#[test]
fn samples_merge_into_those_of_the_whole() {
    let x = numbered(777);
    let whole = sample(x.view(), 50, 3, 0).into_matrix();
    let mut merged = sample(x.slice(s![400.., ..]), 50, 3, 400);
    merged.merge(sample(x.slice(s![..10, ..]), 50, 3, 0));
    merged.merge(sample(x.slice(s![10..400, ..]), 50, 3, 10));
    assert_eq!(merged.into_matrix(), whole);
    let mut by_one = SampledRows::new(2, 50, 3);
    x.axis_chunks_iter(Axis(0), 1).for_each(|row| by_one.update(row));
    assert_eq!(by_one.into_matrix(), whole);
    assert_ne!(sample(x.view(), 50, 4, 0).into_matrix(), whole);
}

#[test]
fn needs_unite() {
    let all = Needs::GRAM | Needs::MOMENTS | Needs::samples(5) | Needs::samples(3);
    assert!(all.has::<Gram>() && all.has::<Moments>() && all.amount::<SampledRows>() == 5);
    assert_eq!(all, Needs::samples(5) | Needs::MOMENTS | Needs::GRAM);
    assert_eq!(Needs::NONE, Needs::default());
    assert!(Needs::NONE.is_none() && !all.is_none() && !Needs::samples(1).is_none());
}

#[test]
fn collector_collects_what_is_needed_and_no_more() {
    let x = random(300, 12, 10);
    for (needs, has) in [
        (Needs::NONE, [false, false, false]),
        (Needs::GRAM, [true, false, false]),
        (Needs::MOMENTS, [false, true, false]),
        (Needs::samples(9), [false, false, true]),
        (Needs::GRAM | Needs::MOMENTS | Needs::samples(9), [true, true, true]),
    ] {
        let mut collector = Collector::new(12, needs.clone(), 1);
        collector.update(x.slice(s![..100, ..]), Par::Seq);
        collector.update(x.slice(s![100.., ..]), Par::Rayon);
        let mut calibration = collector.finish();
        assert_eq!((calibration.tokens(), calibration.channels()), (300, 12));
        let found = [
            calibration.gram().is_ok(),
            calibration.moments().is_ok(),
            calibration.samples().is_ok(),
        ];
        assert_eq!(found, has);
        if needs.has::<Gram>() {
            assert_close(calibration.gram().unwrap(), &naive_gram(x.view()), 1e-6);
            assert_close(&calibration.take_gram().unwrap(), &naive_gram(x.view()), 1e-6);
        }
        if needs.has::<Moments>() {
            assert_moments(calibration.moments().unwrap(), x.view());
        }
        if needs.has::<SampledRows>() {
            assert_eq!(calibration.samples().unwrap().dim(), (9, 12));
        }
        assert_eq!(calibration.gram().unwrap_err().kind(), ErrorKind::MissingCalibration);
        assert_eq!(calibration.take_gram().unwrap_err().kind(), ErrorKind::MissingCalibration);
    }
}

#[test]
fn collectors_merge() {
    let x = random(600, 40, 11);
    let needs = Needs::GRAM | Needs::MOMENTS | Needs::samples(30);
    let part = |rows: std::ops::Range<usize>| {
        let mut part = Collector::new(40, needs.clone(), 7).starting_at(rows.start as u64);
        part.update(x.slice(s![rows, ..]), Par::Seq);
        part
    };
    let whole = part(0..600).finish();
    let mut merged = part(0..250);
    merged.merge(part(250..600));
    assert_eq!(merged.tokens(), 600);
    let merged = merged.finish();
    assert_close(merged.gram().unwrap(), &naive_gram(x.view()), 1e-6);
    assert_moments(merged.moments().unwrap(), x.view());
    assert_eq!(merged.samples().unwrap(), whole.samples().unwrap());
}

#[test]
fn collectors_report_nan_on_access() {
    let mut collector = Collector::new(5, Needs::GRAM | Needs::MOMENTS | Needs::samples(3), 0);
    collector.update(random(20, 5, 12).view(), Par::Seq);
    let mut x = random(20, 5, 13);
    x[[3, 1]] = f32::INFINITY;
    collector.update(x.view(), Par::Seq);
    let mut whole = Collector::new(5, Needs::GRAM | Needs::MOMENTS | Needs::samples(3), 0);
    whole.update(random(1, 5, 14).view(), Par::Seq);
    whole.merge(collector.clone());
    for (collector, token) in [(collector, "token 23"), (whole, "token 24")] {
        let calibration = collector.finish();
        assert!(!calibration.is_finite());
        let errors = [
            calibration.gram().unwrap_err(),
            calibration.moments().unwrap_err(),
            calibration.samples().unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Numerical);
            assert!(error.message().contains("channel 1"), "{error}");
            assert!(error.message().contains(token), "{error}");
        }
    }
    let overflow = Calibration::from_samples(Array2::from_elem((2, 2), 1e30), Par::Seq);
    assert_eq!(overflow.gram().unwrap_err().kind(), ErrorKind::Numerical);
    assert!(overflow.moments().is_ok());
}

#[test]
fn calibration_from_parts_and_of_nothing() {
    let x = random(50, 4, 15);
    let all = Calibration::from_samples(x.clone(), Par::Seq);
    assert_eq!((all.tokens(), all.samples().unwrap()), (50, &x));
    assert_moments(all.moments().unwrap(), x.view());
    let gram = all.gram().unwrap().clone();
    let from_gram = Calibration::from_gram(gram.clone(), 50).unwrap();
    assert_eq!(from_gram.gram().unwrap(), &gram);
    assert_eq!(from_gram.moments().unwrap_err().kind(), ErrorKind::MissingCalibration);
    let error = Calibration::from_gram(Array2::zeros((2, 3)), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    let error = Calibration::from_gram(Array2::from_elem((1, 1), f32::NAN), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    let none = Calibration::none(4);
    assert_eq!((none.tokens(), none.channels()), (0, 4));
    assert!(none.samples().is_err());

    let nothing = Collector::new(3, Needs::GRAM | Needs::MOMENTS | Needs::samples(2), 0).finish();
    assert_eq!(nothing.gram().unwrap(), &Array2::<f32>::zeros((3, 3)));
    assert_eq!(nothing.samples().unwrap().dim(), (0, 3));
    assert_eq!(nothing.moments().unwrap().tokens(), 0);
}

#[test]
fn scaling_statistics_is_scaling_the_stream() {
    let x = random(200, 6, 16);
    let s = [0.5, 2.0, 1.0, 3.0, 0.1, 10.0];
    let scaled = &x / &ndarray::arr1(&s);
    let calibration = Calibration::from_samples(x, Par::Seq).scaled(&s).unwrap();
    let expected = Calibration::from_samples(scaled.clone(), Par::Seq);
    assert_close(calibration.gram().unwrap(), &naive_gram(scaled.view()), 1e-5);
    assert_eq!(calibration.gram().unwrap(), calibration.gram().unwrap().t());
    assert_eq!(calibration.samples().unwrap(), &scaled);
    let (a, b) = (calibration.moments().unwrap(), expected.moments().unwrap());
    for (a, b) in
        [(a.variance(), b.variance()), (a.l2_norm(), b.l2_norm()), (a.mean_abs(), b.mean_abs())]
    {
        assert!((&a - &b).iter().zip(&b).all(|(d, b)| d.abs() <= 1e-5 * b));
    }
    assert_eq!(a.abs_max(), b.abs_max());
    for bad in [&[1.0f32; 5][..], &[0.0; 6], &[-1.0; 6], &[f32::NAN; 6]] {
        assert!(calibration.scaled(bad).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_cut_of_a_stream_gives_the_same_bytes(
        tokens in 0usize..700,
        channels in 1usize..40,
        cuts in prop::collection::vec(0usize..700, 0..6),
        seed in any::<u64>(),
    ) {
        let x = random(tokens, channels, seed);
        let needs = Needs::GRAM | Needs::samples(20);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tokens)).collect();
        cuts.extend([0, tokens]);
        cuts.sort_unstable();
        let mut pieces = Collector::new(channels, needs.clone(), seed);
        for cut in cuts.windows(2) {
            pieces.update(x.slice(s![cut[0]..cut[1], ..]), Par::Threads(3));
        }
        let mut whole = Collector::new(channels, needs, seed);
        whole.update(x.view(), Par::Seq);
        let (pieces, whole) = (pieces.finish(), whole.finish());
        prop_assert_eq!(pieces.gram().unwrap(), whole.gram().unwrap());
        prop_assert_eq!(pieces.samples().unwrap(), whole.samples().unwrap());
        assert_close(whole.gram().unwrap(), &naive_gram(x.view()), 1e-5);
    }
}
