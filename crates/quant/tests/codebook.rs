//! Codebooks: k-means, codewords of few numbers, residual levels, nested codebooks, communities; by slow references.

use tensorpress_quant::Lr2Vq;
use tensorpress_quant::codebook::{NestedCodebooks, ResidualSpec, StructuralEntropy, cluster};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, array, s};
use tensorpress_tensor::node::{decode, to_bytes};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Layer;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Compress, DType, ErrorKind, Group, Node, Registry, Storage, Target};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn far(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

fn square(m: &Array2<f32>) -> f64 {
    m.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// The nearest of all, and means that are means: a fixed point of Lloyd's steps.
#[test]
fn clusters_are_a_fixed_point() {
    let vectors = matrix(200, 3, 1);
    let weights: Vec<f32> = (0..200).map(|i| (i % 5) as f32).collect();
    for weights in [None, Some(&weights[..])] {
        let made = cluster(vectors.view(), weights, 6, 3, Par::Seq).unwrap();
        for (vector, code) in vectors.rows().into_iter().zip(&made.codes) {
            let own = far(vector, made.means.row(usize::from(*code)));
            let best = (0..6).map(|c| far(vector, made.means.row(c))).fold(f64::INFINITY, f64::min);
            assert!(own <= best + 1e-5);
        }
        for c in 0..6 {
            let (mut sum, mut total) = ([0f64; 3], 0.0);
            for (i, code) in
                made.codes.iter().enumerate().filter(|(_, code)| usize::from(**code) == c)
            {
                assert_eq!(usize::from(*code), c);
                let weight = weights.map_or(1.0, |w| f64::from(w[i]));
                total += weight;
                (0..3).for_each(|j| sum[j] += weight * f64::from(vectors[[i, j]]));
            }
            for j in 0..3 {
                assert!((sum[j] / total - f64::from(made.means[[c, j]])).abs() < 2e-3);
            }
        }
        assert_eq!(made.counts().iter().sum::<u64>(), 200);
        let shares = made.counts().into_iter().map(|c| c as f64 / 200.0).filter(|p| *p > 0.0);
        let entropy: f64 = shares.map(|p| -p * p.ln() / 2f64.ln()).sum();
        assert!((entropy - made.entropy()).abs() < 1e-9);
        assert!(cluster(vectors.view(), weights, 6, 3, Par::Rayon).unwrap() == made);
    }
    let kind = |v: &Array2<f32>, w: Option<&[f32]>, n| {
        cluster(v.view(), w, n, 0, Par::Seq).unwrap_err().kind()
    };
    assert_eq!(kind(&vectors, None, 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&vectors, None, 65537), ErrorKind::InvalidArgument);
    assert_eq!(kind(&vectors, Some(&[1.0]), 2), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&vectors, Some(&[-1.0; 200]), 2), ErrorKind::Numerical);
    assert_eq!(kind(&array![[f32::NAN]], None, 2), ErrorKind::Numerical);
    for v in [Array2::zeros((0, 3)), Array2::zeros((5, 0)), Array2::zeros((4, 3))] {
        let made = cluster(v.view(), None, 7, 0, Par::Seq).unwrap();
        assert!(made.codes.len() == v.nrows() && made.means.iter().all(|m| m.is_finite()));
    }
}

/// What is decoded is factor x codeword x basis; the loss is that of truncation and of clustering.
#[test]
fn codewords_of_few_numbers() {
    let weight = matrix(24, 60, 2);
    for (bits, size, dims) in [(4, 6, 3), (5, 4, 4), (3, 8, 1), (6, 7, 2)] {
        let method = Lr2Vq::new(bits, size).with_dims(dims).with_floats(DType::F32);
        let made = method.compress(weight.view(), &Calibration::none(60)).unwrap();
        let decoded = decode(&made.node).unwrap().mapv(f64::from);
        // Rows over their factors lie in a space of `dims`, and take at most 2^bits values.
        let places = 60usize.div_ceil(size);
        let whole = 60 / size;
        let mut seen: Vec<Vec<f64>> = Vec::new();
        let mut spanned: Vec<Vec<f64>> = Vec::new();
        for row in decoded.rows() {
            for place in 0..whole {
                let vector: Vec<f64> = row.slice(s![place * size..(place + 1) * size]).to_vec();
                let mut rest = vector.clone();
                for base in &spanned {
                    let along: f64 = rest.iter().zip(base).map(|(a, b)| a * b).sum();
                    rest.iter_mut().zip(base).for_each(|(r, b)| *r -= along * b);
                }
                let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
                if norm(&rest) > 1e-4 * norm(&vector) {
                    let length = norm(&rest);
                    spanned.push(rest.iter().map(|r| r / length).collect());
                }
                seen.push(vector);
            }
        }
        assert!(spanned.len() <= dims, "{} directions of {dims}", spanned.len());
        // No factor of a row brings it nearer.
        for (w, d) in weight.rows().into_iter().zip(decoded.rows()) {
            let along: f64 = w.iter().zip(d).map(|(w, d)| f64::from(*w) * d).sum();
            let own: f64 = d.iter().map(|d| d * d).sum();
            assert!((along - own).abs() < 1e-3 * own.max(1e-9));
        }
        let codes = 24 * (places * usize::from(bits)).div_ceil(8) * 8;
        let floats = (dims << bits) + dims * size + 24;
        assert_eq!(Storage::of(&made.node).unwrap().bits(), (codes + 32 * floats) as u64);
    }
}

#[test]
fn estimates_are_what_is_lost() {
    // Vectors near two directions, of which more than three numbers would follow the noise.
    let vectors = matrix(600, 2, 3).dot(&matrix(2, 6, 4)) + matrix(600, 6, 5) * 0.05;
    let losses = Lr2Vq::new(5, 6).estimate(vectors.view(), 0, Par::Seq).unwrap();
    assert_eq!(losses.len(), 6);
    let gram = vectors.mapv(f64::from).t().dot(&vectors.mapv(f64::from));
    let trace: f64 = gram.diag().sum();
    // Truncation by power iteration and deflation.
    let mut left = gram.clone();
    for (truncated, _) in &losses {
        let mut direction = tensorpress_tensor::ndarray::Array1::from_elem(6, 1.0f64);
        for _ in 0..3000 {
            direction = left.dot(&direction);
            let length = direction.dot(&direction).sqrt().max(1e-300);
            direction /= length;
        }
        let value = direction.dot(&left.dot(&direction));
        for i in 0..6 {
            for j in 0..6 {
                left[[i, j]] -= value * direction[i] * direction[j];
            }
        }
        let exact = left.diag().sum() / trace;
        assert!((truncated - exact).abs() < 1e-4, "{truncated}, {exact}");
    }
    assert!(losses.windows(2).all(|two| two[0].0 >= two[1].0 - 1e-9));
    assert!(losses[0].1 < losses[5].1);
    let wrong = Lr2Vq::new(5, 7).estimate(vectors.view(), 0, Par::Seq).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn lr2vq_obeys_the_laws_and_refuses_bad_input() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 37), (20, 64)] {
        for method in [Lr2Vq::new(4, 8), Lr2Vq::new(9, 5).with_dims(2), Lr2Vq::new(1, 1)] {
            let made =
                method.compress(matrix(rows, cols, 6).view(), &Calibration::none(cols)).unwrap();
            assert!(decode(&made.node).unwrap().iter().all(|w| w.is_finite()));
            check_node(made.node.boxed(), &Registry::default(), 1e-4);
        }
    }
    let none = Calibration::none(20);
    let mut weight = matrix(6, 20, 7);
    let made = Lr2Vq::new(3, 4).compress(weight.view(), &none).unwrap();
    check_damage(&made.node, &Registry::default());
    for (case, w) in [
        Array2::zeros((6, 20)),
        Array2::from_shape_fn((6, 20), |(r, _)| r as f32 - 2.0),
        weight.mapv(|w| w * 1e30),
        weight.mapv(|w| w * 1e-30),
    ]
    .into_iter()
    .enumerate()
    {
        let made = Lr2Vq::new(3, 4).compress(w.view(), &none).unwrap();
        let decoded = decode(&made.node).unwrap();
        assert!(decoded.iter().all(|w| w.is_finite()), "case {case}");
        assert!(case != 1 || square(&(&decoded - &w)) < 1e-3 * square(&w));
    }
    let kind = |method: Lr2Vq| method.compress(weight.view(), &none).unwrap_err().kind();
    for bad in [
        Lr2Vq::new(0, 8),
        Lr2Vq::new(13, 8),
        Lr2Vq::new(4, 0),
        Lr2Vq::new(4, 300),
        Lr2Vq::new(4, 8).with_dims(9),
        Lr2Vq::new(4, 8).with_floats(DType::U8),
    ] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument, "{bad:?}");
    }
    let run = |par: Par| {
        let mut group = Group::single(Target::new("w", weight.view()), none.clone());
        group.par = par;
        to_bytes(&Lr2Vq::new(4, 4).compress_group(group).unwrap().layers[0].node).unwrap()
    };
    assert!(run(Par::Seq) == run(Par::Rayon));
    weight[[2, 3]] = f32::NAN;
    let error = Lr2Vq::default().compress(weight.view(), &none).unwrap_err();
    assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("[2, 3]"));
}

#[test]
fn residual_codes_are_the_nearest_of_each_level() {
    let vectors = matrix(150, 8, 8);
    let spec = ResidualSpec::new(2, &[10, 6, 3]).with_seed(4);
    let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
    let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
    let decoded = quantizer.decode(codes.view()).unwrap();
    for (i, vector) in vectors.rows().into_iter().enumerate() {
        for group in 0..2 {
            let mut rest = vector.slice(s![4 * group..4 * group + 4]).to_owned();
            for level in 0..3 {
                let book = quantizer.codebook(group, level);
                let chosen = usize::from(codes[[i, 3 * group + level]]);
                let best = book
                    .rows()
                    .into_iter()
                    .map(|w| far(rest.view(), w))
                    .fold(f64::INFINITY, f64::min);
                assert!(far(rest.view(), book.row(chosen)) <= best + 1e-5);
                rest -= &book.row(chosen);
            }
            for j in 0..4 {
                let sum = vector[4 * group + j] - rest[j];
                assert!((sum - decoded[[i, 4 * group + j]]).abs() < 1e-5);
            }
        }
    }
    // Each level leaves less.
    let mut before = square(&vectors);
    for levels in 1..=3 {
        let some = ResidualSpec::new(2, &[10, 6, 3][..levels]).with_seed(4);
        let quantizer = some.train(vectors.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
        let error = square(&(&vectors - &quantizer.decode(codes.view()).unwrap()));
        assert!(error < before);
        before = error;
    }
    let (coded, packed) = quantizer.bits(codes.view()).unwrap();
    let entropy = |column: ArrayView1<'_, u16>| -> f64 {
        let share = |word: u16| column.iter().filter(|c| **c == word).count() as f64 / 150.0;
        (0..10).map(share).filter(|p| *p > 0.0).map(|p| -p * p.ln() / 2f64.ln()).sum()
    };
    let exact: f64 = codes.columns().into_iter().map(entropy).sum();
    assert!((coded - exact).abs() < 1e-9 && packed == 2.0 * (4.0 + 3.0 + 2.0) && coded <= packed);
    assert!(spec.train(vectors.view(), Par::Rayon).unwrap() == quantizer);
}

#[test]
fn assignments_are_softmaxes() {
    let vectors = matrix(80, 4, 9);
    let quantizer = ResidualSpec::new(1, &[5]).train(vectors.view(), Par::Seq).unwrap();
    let book = quantizer.codebook(0, 0);
    let rest = vectors.row(3);
    let exact: Vec<f64> = book.rows().into_iter().map(|w| (-far(rest, w) / 0.7).exp()).collect();
    let total: f64 = exact.iter().sum();
    let got = quantizer.probabilities(0, 0, rest, 0.7, None).unwrap();
    assert!(got.iter().zip(&exact).all(|(g, e)| (g - e / total).abs() < 1e-9));
    // Of the coldest draws with Gumbel noise each word comes as often as its probability at temperature 1 says.
    let warm = quantizer.probabilities(0, 0, rest, 1.0, None).unwrap();
    let mut counts = [0usize; 5];
    for seed in 0..4000 {
        let drawn = quantizer.probabilities(0, 0, rest, 1e-3, Some(seed)).unwrap();
        let best = (0..5).max_by(|a, b| drawn[*a].total_cmp(&drawn[*b])).unwrap();
        counts[best] += 1;
    }
    for (count, p) in counts.iter().zip(&warm) {
        assert!((*count as f64 / 4000.0 - p).abs() < 0.04, "{counts:?}, {warm:?}");
    }
    let kind = |rest, temperature| {
        quantizer.probabilities(0, 0, rest, temperature, None).unwrap_err().kind()
    };
    assert_eq!(kind(rest.slice(s![..3]), 1.0), ErrorKind::ShapeMismatch);
    assert_eq!(kind(rest, 0.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(array![1.0, f32::NAN, 0.0, 0.0].view(), 1.0), ErrorKind::Numerical);
}

#[test]
fn residual_quantisers_refuse_bad_input() {
    let vectors = matrix(20, 6, 10);
    let kind =
        |spec: ResidualSpec, v: &Array2<f32>| spec.train(v.view(), Par::Seq).unwrap_err().kind();
    for spec in [
        ResidualSpec::new(0, &[4]),
        ResidualSpec::new(4, &[4]),
        ResidualSpec::new(2, &[]),
        ResidualSpec::new(2, &[4, 0]),
        ResidualSpec::new(2, &[1 << 17]),
    ] {
        assert_eq!(kind(spec, &vectors), ErrorKind::InvalidArgument);
    }
    let spec = ResidualSpec::new(2, &[4, 30]);
    assert_eq!(kind(spec.clone(), &Array2::zeros((0, 6))), ErrorKind::InsufficientData);
    assert_eq!(kind(spec.clone(), &Array2::zeros((3, 0))), ErrorKind::InvalidArgument);
    assert_eq!(kind(spec.clone(), &Array2::from_elem((3, 6), f32::NAN)), ErrorKind::Numerical);
    for v in [Array2::zeros((5, 6)), Array2::from_elem((5, 6), 3.0), vectors.mapv(|v| v * 1e15)] {
        let quantizer = spec.train(v.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(v.view(), Par::Seq).unwrap();
        assert!(quantizer.decode(codes.view()).unwrap().iter().all(|v| v.is_finite()));
    }
    let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
    let short = quantizer.encode(matrix(2, 5, 1).view(), Par::Seq).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShapeMismatch);
    for codes in [Array2::from_elem((2, 4), 4u16), Array2::zeros((2, 3))] {
        assert_eq!(quantizer.decode(codes.view()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn smaller_codebooks_are_nested() {
    let latents = matrix(2000, 4, 11);
    let first = cluster(latents.view(), None, 64, 1, Par::Seq).unwrap();
    let counts = first.counts();
    let nested =
        NestedCodebooks::shrink(first.means.view(), Some(&counts), &[32, 16, 4, 1], 2, Par::Seq)
            .unwrap();
    assert_eq!(nested.levels(), 5);
    let mut lost = 0.0;
    for level in 0..5 {
        let codes = nested.recode(&first.codes, level).unwrap();
        // Words that are one at a level are one at all smaller ones.
        let finer = nested.recode(&first.codes, level.saturating_sub(1)).unwrap();
        for (a, fine) in codes.iter().zip(&finer) {
            let again = finer.iter().position(|f| f == fine).unwrap();
            assert_eq!(*a, codes[again]);
        }
        let words = nested.words(level);
        let error: f64 = latents
            .rows()
            .into_iter()
            .zip(&codes)
            .map(|(v, code)| far(v, words.row(usize::from(*code))))
            .sum();
        assert!(error > lost, "level {level}: {error}, {lost}");
        lost = error;
        // A word is the mean of the words that became it, weighted by use.
        if level > 0 {
            let before: Vec<u16> =
                nested.recode(&(0..64).map(|i| i as u16).collect::<Vec<_>>(), level).unwrap();
            for (word, row) in words.rows().into_iter().enumerate() {
                let of = (0..64).filter(|i| usize::from(before[*i]) == word);
                let total: f64 = of.clone().map(|i| counts[i] as f64).sum();
                for j in 0..4 {
                    let sum: f64 =
                        of.clone().map(|i| counts[i] as f64 * f64::from(first.means[[i, j]])).sum();
                    let exact = sum / total;
                    assert!((exact - f64::from(row[j])).abs() < 1e-3, "level {level}");
                }
            }
        }
        let share =
            |word: usize| codes.iter().filter(|c| usize::from(**c) == word).count() as f64 / 2000.0;
        let shares = (0..words.nrows()).map(share).filter(|p| *p > 0.0);
        let exact: f64 = shares.map(|p| -p * p.ln() / 2f64.ln()).sum();
        let (packed, coded) = nested.bits(level).unwrap();
        assert_eq!(packed, [6.0, 5.0, 4.0, 2.0, 0.0][level]);
        assert!((coded - exact).abs() < 1e-9);
        let nearest = nested.encode(latents.view(), level, Par::Seq).unwrap();
        let direct: f64 = latents
            .rows()
            .into_iter()
            .zip(&nearest)
            .map(|(v, code)| far(v, words.row(usize::from(*code))))
            .sum();
        assert!(direct <= error * 1.0001);
        println!(
            "{} words: error {error:.1} recoded, {direct:.1} nearest, {coded:.2} bits of {packed}",
            words.nrows()
        );
    }
    let words = matrix(8, 3, 12);
    let kind = |counts: Option<&[u64]>, sizes: &[usize]| {
        NestedCodebooks::shrink(words.view(), counts, sizes, 0, Par::Seq).unwrap_err().kind()
    };
    for sizes in [&[8][..], &[0], &[4, 4], &[3, 5]] {
        assert_eq!(kind(None, sizes), ErrorKind::InvalidArgument);
    }
    assert_eq!(kind(Some(&[1]), &[4]), ErrorKind::ShapeMismatch);
    let none = NestedCodebooks::shrink(Array2::zeros((0, 3)).view(), None, &[], 0, Par::Seq);
    assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidArgument);
    // Words that are never used.
    let unused = NestedCodebooks::shrink(words.view(), Some(&[0; 8]), &[3], 0, Par::Seq).unwrap();
    assert!(unused.words(1).iter().all(|v| v.is_finite()) && unused.bits(1).unwrap().1 == 0.0);
    let nested = NestedCodebooks::shrink(words.view(), None, &[3], 0, Par::Seq).unwrap();
    assert_eq!(nested.recode(&[8], 1).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(nested.recode(&[0], 2).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let wide = nested.encode(matrix(1, 4, 1).view(), 1, Par::Seq).unwrap_err();
    assert_eq!(wide.kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn real_layers() {
    let Some(folder) = data::find("golden/weights") else { return };
    let layer = Layer::read(&folder, "l2_query");
    let none = Calibration::none(384);
    for (bits, size) in [(8, 8), (8, 4)] {
        let mut best = (f64::INFINITY, 0);
        let mut errors = Vec::new();
        for dims in [1, 2, 3, 4, 8].into_iter().filter(|d| *d <= size) {
            let method = Lr2Vq::new(bits, size).with_dims(dims);
            let node = method.compress(layer.weight.view(), &none).unwrap().node;
            let error = layer.output_error(decode(&node).unwrap().view());
            let rate = Storage::of(&node).unwrap().bits() as f64 / (384.0 * 384.0);
            errors.push(format!("{dims}: {error:.4} ({rate:.3} bits)"));
            best = if error < best.0 { (error, dims) } else { best };
        }
        let node = Lr2Vq::new(bits, size).compress(layer.weight.view(), &none).unwrap().node;
        let own = layer.output_error(decode(&node).unwrap().view());
        println!("lr2vq, {bits} bits for {size}: {}; estimated {own:.4}", errors.join(", "));
        assert!(own < 1.1 * best.0);
    }
    // States of a model as latents.
    let x = layer.x.slice(s![..1024, ..]);
    for entries in [&[256][..], &[256, 256], &[256, 256, 256]] {
        let quantizer = ResidualSpec::new(48, entries).train(x, Par::Rayon).unwrap();
        let codes = quantizer.encode(x, Par::Rayon).unwrap();
        let error =
            square(&(&x - &quantizer.decode(codes.view()).unwrap())) / square(&x.to_owned());
        let (coded, packed) = quantizer.bits(codes.view()).unwrap();
        println!(
            "residual, {} levels: error {:.4}, {:.3} bits a number coded, {:.3} packed",
            entries.len(),
            error.sqrt(),
            coded / 384.0,
            packed / 384.0
        );
    }
    let states = layer.x.slice(s![..600, ..]);
    let book = StructuralEntropy::default().fit(states, Par::Rayon).unwrap();
    let words = book.codewords().nrows();
    let error =
        |rows: &Array2<f32>| (square(&(&states - rows)) / square(&states.to_owned())).sqrt();
    let own = book.codewords().select(tensorpress_tensor::ndarray::Axis(0), book.codes());
    let plain = cluster(states, None, words, 0, Par::Rayon).unwrap();
    println!(
        "structural entropy: {words} words, error {:.4}; k-means of as many {:.4}; entropy {:.3} bits",
        error(&own),
        error(&plain.decode()),
        book.entropy()
    );
}
