//! Product quantisation, its gradients and training; stores of embeddings, their codes, sweeps and choices.

use tensorpress_quant::embedding::{
    EmbeddingPrecision, EmbeddingStore, Jpq, Pca, ProductQuantizer, ProductSpec, Similarity,
    StoreFigure, StoreSpec, best_within, pareto, recall, sweep,
};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array1, Array2, s};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Vectors near a subspace, as embeddings are.
fn embeddings(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let rank = cols.div_ceil(3);
    let spread = Array2::from_shape_fn((rows, rank), |(r, j)| {
        gaussian(seed, (r * rank + j) as u64) as f32 / (1.0 + j as f32).sqrt()
    });
    spread.dot(&matrix(rank, cols, 99)) + matrix(rows, cols, seed + 1) * 0.1 + 0.3
}

fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn codes_are_the_nearest_and_scores_those_of_what_is_decoded() {
    let vectors = embeddings(300, 12, 1);
    for rotations in [0, 6] {
        let spec = ProductSpec::new(4, 20).with_rotations(rotations).with_seed(5);
        let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
        let rotation = quantizer.rotation().map_or(Array2::eye(12), |r| r.to_owned());
        let identity = rotation.mapv(f64::from).t().dot(&rotation.mapv(f64::from));
        assert!((&identity - &Array2::<f64>::eye(12)).iter().all(|v| v.abs() < 1e-5));
        let turned = vectors.mapv(f64::from).dot(&rotation.mapv(f64::from));
        let mut decoded = Array2::<f64>::zeros((300, 12));
        for (i, row) in turned.rows().into_iter().enumerate() {
            for part in 0..4 {
                let far = |entry: usize| -> f64 {
                    let centroid = quantizer.centroids();
                    let centroid = centroid.row(part * 20 + entry);
                    (0..3).map(|j| (row[3 * part + j] - f64::from(centroid[j])).powi(2)).sum()
                };
                let best = (0..20).map(far).fold(f64::INFINITY, f64::min);
                let chosen = usize::from(codes.row(i)[part]);
                assert!(far(chosen) <= best + 1e-5);
                for j in 0..3 {
                    decoded[[i, 3 * part + j]] =
                        f64::from(quantizer.centroids()[[part * 20 + chosen, j]]);
                }
            }
        }
        let decoded = decoded.dot(&rotation.mapv(f64::from).t());
        let got = quantizer.decode(&codes, Par::Seq).unwrap();
        assert!(got.iter().zip(&decoded).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
        let query = matrix(1, 12, 7);
        let exact = decoded.dot(&query.row(0).mapv(f64::from));
        let table = quantizer.table(query.row(0)).unwrap();
        let scores = quantizer.scan(table.view(), &codes).unwrap();
        assert!(scores.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
        let mut order: Vec<usize> = (0..300).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let found = quantizer.search(query.row(0), &codes, 10).unwrap();
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), order[..10]);
        assert_eq!(quantizer.search(query.row(0), &codes, 1000).unwrap().len(), 300);
        assert_eq!(codes.bytes(), 1200);
    }
}

#[test]
fn a_rotation_brings_vectors_nearer() {
    let vectors = embeddings(1000, 16, 11);
    let error = |rotations: usize| {
        let spec = ProductSpec::new(4, 16).with_rotations(rotations);
        let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
        distance(&quantizer.decode(&codes, Par::Seq).unwrap(), &vectors)
    };
    let (plain, rotated) = (error(0), error(30));
    println!("squared error {plain:.1} plain, {rotated:.1} rotated");
    assert!(rotated < 0.9 * plain);
}

/// Scores are linear in centroids and query: differences of scores are the gradient.
#[test]
fn gradients_are_differences() {
    let (vectors, queries) = (embeddings(60, 8, 21), matrix(2, 8, 22));
    for rotations in [0, 3] {
        let spec = ProductSpec::new(2, 5).with_rotations(rotations);
        let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
        let weights = [(3, 0.5), (17, -2.0), (3, 1.0), (40, 0.3)];
        let value = |quantizer: &ProductQuantizer, query: &Array1<f32>| -> f64 {
            let table = quantizer.table(query.view()).unwrap();
            let scores = quantizer.scan(table.view(), &codes).unwrap();
            weights.iter().map(|(i, w)| f64::from(*w) * f64::from(scores[*i])).sum()
        };
        let query = queries.row(0).to_owned();
        let made = quantizer.score_gradients(query.view(), &codes, &weights).unwrap();
        for (at, gradient) in made.centroids.indexed_iter() {
            let mut direction = Array2::zeros(made.centroids.dim());
            direction[at] = 1.0;
            let (mut up, mut down) = (quantizer.clone(), quantizer.clone());
            up.step(0.5, direction.view());
            down.step(-0.5, direction.view());
            let slope = value(&up, &query) - value(&down, &query);
            assert!((slope - f64::from(*gradient)).abs() < 1e-3, "{at:?}: {slope}, {gradient}");
        }
        for (j, gradient) in made.query.iter().enumerate() {
            let (mut up, mut down) = (query.clone(), query.clone());
            (up[j], down[j]) = (up[j] + 0.5, down[j] - 0.5);
            let slope = value(&quantizer, &up) - value(&quantizer, &down);
            assert!((slope - f64::from(*gradient)).abs() < 1e-3, "query {j}: {slope}, {gradient}");
        }
    }
}

/// The loss by its definition, its gradient by differences, and what training does for queries it has not seen.
#[test]
fn centroids_learn_to_rank() {
    let vectors = embeddings(120, 8, 31);
    let queries = &vectors.slice(s![..20, ..]) + &(matrix(20, 8, 32) * 0.1);
    let relevant: Vec<Vec<usize>> = (0..20).map(|i| vec![i]).collect();
    let quantizer =
        ProductSpec::new(2, 4).with_rotations(0).train(vectors.view(), Par::Seq).unwrap();
    let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
    let jpq = Jpq::default().with_negatives(5).with_temperature(0.7);
    let (loss, gradient) = jpq.loss(&quantizer, &codes, queries.view(), &relevant).unwrap();
    let decoded = quantizer.decode(&codes, Par::Seq).unwrap().mapv(f64::from);
    let mut exact = 0.0;
    for (i, query) in queries.rows().into_iter().enumerate() {
        let scores = decoded.dot(&query.mapv(f64::from));
        // What the product ranks first: ties are by number.
        let found = quantizer.search(query, &codes, 120).unwrap();
        let wrong = found.iter().map(|f| f.0).filter(|j| *j != i).take(5);
        exact += wrong.map(|j| (1.0 + ((scores[j] - scores[i]) / 0.7).exp()).ln()).sum::<f64>();
    }
    assert!((loss - exact / 100.0).abs() < 1e-4, "{loss}, {}", exact / 100.0);
    for at in [[0, 0], [1, 3], [5, 2], [7, 1]] {
        let mut direction = Array2::zeros(gradient.dim());
        direction[at] = 1.0;
        let value = |step: f32| {
            let mut moved = quantizer.clone();
            moved.step(step, direction.view());
            jpq.loss(&moved, &codes, queries.view(), &relevant).unwrap().0
        };
        let slope = (value(1e-3) - value(-1e-3)) / 2e-3;
        let got = f64::from(gradient[at]);
        assert!((slope - got).abs() < 0.02 * got.abs().max(0.05), "{at:?}: {slope}, {got}");
    }
    let mut trained = quantizer.clone();
    let jpq = jpq.with_rounds(60, 0.3);
    let losses = jpq.train(&mut trained, &codes, queries.view(), &relevant).unwrap();
    println!("loss {:.4} to {:.4}", losses[0], losses[59]);
    assert!(losses[59] < 0.9 * losses[0]);
}

#[test]
fn bad_vectors_are_refused_by_product_quantisers() {
    let vectors = embeddings(40, 12, 41);
    let kind =
        |spec: ProductSpec, v: &Array2<f32>| spec.train(v.view(), Par::Seq).unwrap_err().kind();
    for (parts, entries) in [(0, 4), (5, 4), (13, 4), (3, 0), (3, 257)] {
        assert_eq!(kind(ProductSpec::new(parts, entries), &vectors), ErrorKind::InvalidArgument);
    }
    let spec = ProductSpec::new(3, 8).with_rotations(4);
    assert_eq!(kind(spec, &Array2::zeros((0, 12))), ErrorKind::InsufficientData);
    assert_eq!(kind(spec, &Array2::zeros((4, 0))), ErrorKind::InvalidArgument);
    let mut bad = vectors.clone();
    bad[[3, 4]] = f32::NAN;
    assert_eq!(kind(spec, &bad), ErrorKind::Numerical);
    // More centroids than vectors, vectors that are all alike, zeros, huge ones.
    for v in [
        vectors.slice(s![..3, ..]).to_owned(),
        Array2::from_elem((30, 12), 0.7),
        Array2::zeros((30, 12)),
        vectors.mapv(|v| v * 1e15),
        vectors.mapv(|v| v * 1e-20),
    ] {
        let quantizer = spec.train(v.view(), Par::Seq).unwrap();
        let codes = quantizer.encode(v.view(), Par::Seq).unwrap();
        assert!(quantizer.decode(&codes, Par::Seq).unwrap().iter().all(|v| v.is_finite()));
    }
    let quantizer = spec.train(vectors.view(), Par::Seq).unwrap();
    let codes = quantizer.encode(vectors.view(), Par::Seq).unwrap();
    let short = quantizer.encode(matrix(2, 11, 1).view(), Par::Seq).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShapeMismatch);
    let other = ProductSpec::new(4, 8).train(vectors.view(), Par::Seq).unwrap();
    assert_eq!(other.decode(&codes, Par::Seq).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let missing = quantizer.score_gradients(vectors.row(0), &codes, &[(40, 1.0)]).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::InvalidArgument);
    let queries = vectors.slice(s![..2, ..]);
    let jpq = Jpq::default();
    let kind = |jpq: Jpq, relevant: &[Vec<usize>]| {
        jpq.loss(&quantizer, &codes, queries, relevant).unwrap_err().kind()
    };
    assert_eq!(kind(jpq, &[vec![0]]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(jpq, &[vec![0], vec![40]]), ErrorKind::InvalidArgument);
    let two = [vec![0], vec![1]];
    for bad in [jpq.with_negatives(0), jpq.with_temperature(0.0), jpq.with_rounds(1, f32::NAN)] {
        assert_eq!(kind(bad, &two), ErrorKind::InvalidArgument);
    }
    let none = jpq.loss(&quantizer, &codes, queries, &[vec![], vec![]]).unwrap();
    assert_eq!(none.0, 0.0);
    assert!(spec.train(vectors.view(), Par::Rayon).unwrap() == quantizer);
}

#[test]
fn principal_directions_explain_most() {
    let vectors = embeddings(200, 10, 51);
    let pca = Pca::fit(vectors.view(), 4, Par::Seq).unwrap();
    let wide = vectors.mapv(f64::from);
    let mean = wide.mean_axis(tensorpress_tensor::ndarray::Axis(0)).unwrap();
    let centred = &wide - &mean;
    let basis = pca.basis().mapv(f64::from);
    let eye = basis.t().dot(&basis);
    assert!((&eye - &Array2::<f64>::eye(4)).iter().all(|v| v.abs() < 1e-5));
    // Orthogonal iteration finds the same subspace.
    let mut other = matrix(10, 4, 52).mapv(f64::from);
    for _ in 0..500 {
        other = centred.t().dot(&centred.dot(&other));
        for j in 0..4 {
            for i in 0..j {
                let along = other.column(i).dot(&other.column(j));
                let shift = other.column(i).mapv(|v| v * along);
                other.column_mut(j).zip_mut_with(&shift, |v, s| *v -= s);
            }
            let length = other.column(j).dot(&other.column(j)).sqrt();
            other.column_mut(j).mapv_inplace(|v| v / length);
        }
    }
    for j in 0..4 {
        let along = other.column(j).dot(&basis.column(j));
        assert!((along.abs() - 1.0).abs() < 1e-3, "direction {j}: {along}");
    }
    let projected = pca.project(vectors.view(), Par::Seq).unwrap();
    let exact = centred.dot(&basis);
    assert!(projected.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
    let kind = |dims| Pca::fit(vectors.view(), dims, Par::Seq).unwrap_err().kind();
    assert!(kind(0) == ErrorKind::InvalidArgument && kind(11) == ErrorKind::InvalidArgument);
    let none = Pca::fit(Array2::zeros((0, 4)).view(), 2, Par::Seq).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InsufficientData);
}

/// Numbers of 8-bit floats, by their definition.
fn small_floats(exponent_bits: u32, last: u32) -> Vec<f64> {
    let mantissa = 7 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let value = |code: u32| {
        let (e, m) = (code >> mantissa, f64::from(code % (1 << mantissa)));
        let unit = m / f64::from(1u32 << mantissa);
        if e == 0 { unit * 2f64.powi(1 - bias) } else { (1.0 + unit) * 2f64.powi(e as i32 - bias) }
    };
    (0..=last).flat_map(|code| [value(code), -value(code)]).collect()
}

#[test]
fn every_precision_holds_the_nearest_number() {
    let vectors = embeddings(80, 20, 61);
    let store = |precision, similarity| {
        let spec = StoreSpec::new(precision).with_similarity(similarity);
        EmbeddingStore::build(vectors.view(), spec, Par::Seq).unwrap()
    };
    let largest = vectors.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    for (precision, numbers) in [
        (EmbeddingPrecision::E4M3, small_floats(4, 0x7e)),
        (EmbeddingPrecision::E5M2, small_floats(5, 0x7b)),
    ] {
        let most = numbers.iter().copied().fold(0.0, f64::max);
        assert_eq!(most, if precision == EmbeddingPrecision::E4M3 { 448.0 } else { 57344.0 });
        let mut scale = 1.0;
        while scale * most < largest {
            scale *= 2.0;
        }
        while scale * most * 0.5 >= largest {
            scale *= 0.5;
        }
        let decoded = store(precision, Similarity::Dot).decode().unwrap();
        for (got, v) in decoded.iter().zip(&vectors) {
            let off = |n: &f64| (n * scale - f64::from(*v)).abs();
            let best = numbers.iter().map(off).fold(f64::INFINITY, f64::min);
            assert!((f64::from(*got) - f64::from(*v)).abs() <= best + 1e-9, "{got} for {v}");
        }
    }
    let plain = store(EmbeddingPrecision::F32, Similarity::Dot);
    assert_eq!(plain.decode().unwrap(), vectors);
    let signs = store(EmbeddingPrecision::Binary, Similarity::Dot).decode().unwrap();
    assert!(signs.iter().zip(&vectors).all(|(s, v)| *s == if *v < 0.0 { -1.0 } else { 1.0 }));
    let bytes = store(EmbeddingPrecision::Int8, Similarity::Dot).decode().unwrap();
    for (got, v) in bytes.rows().into_iter().zip(vectors.rows()) {
        let step = v.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        assert!(got.iter().zip(v).all(|(g, v)| (g - v).abs() <= 0.5001 * step));
    }
}

#[test]
fn scores_are_those_of_what_is_held() {
    let (vectors, queries) = (embeddings(60, 18, 71), matrix(5, 18, 72));
    let norm = |v: &Array1<f64>| v.dot(v).sqrt();
    for precision in EmbeddingPrecision::ALL {
        for dims in [None, Some(7), Some(18)] {
            for similarity in [Similarity::Cosine, Similarity::Dot] {
                let spec = StoreSpec::new(precision).with_dims(dims).with_similarity(similarity);
                let store = EmbeddingStore::build(vectors.view(), spec, Par::Seq).unwrap();
                let d = dims.unwrap_or(18);
                let each = match precision {
                    EmbeddingPrecision::F32 => 4 * d,
                    EmbeddingPrecision::F16 => 2 * d,
                    EmbeddingPrecision::Int8 => d + 4,
                    EmbeddingPrecision::Binary => d.div_ceil(8),
                    _ => d,
                };
                assert_eq!((store.vector_bytes(), store.len()), (each, 60));
                let unit = |v: Array1<f64>| {
                    if similarity == Similarity::Cosine { &v / norm(&v) } else { v }
                };
                let (mean, basis) = match dims {
                    None => (Array1::zeros(18), Array2::eye(18)),
                    Some(dims) => {
                        let own = Array2::from_shape_fn((60, 18), |(i, j)| {
                            unit(vectors.row(i).mapv(f64::from))[j] as f32
                        });
                        let pca = Pca::fit(own.view(), dims, Par::Seq).unwrap();
                        (pca.mean().mapv(f64::from), pca.basis().mapv(f64::from))
                    }
                };
                let held = store.decode().unwrap().mapv(f64::from);
                for query in queries.rows() {
                    let query = unit(query.mapv(f64::from));
                    let along = basis.t().dot(&query);
                    let exact = held.dot(&along) + query.dot(&mean);
                    let scores = store.scores(queries.row(0)).unwrap();
                    assert_eq!(scores.len(), 60);
                    let got = store.scores(query.mapv(|v| v as f32).view()).unwrap();
                    // Bytes are compared with bytes.
                    let step = if precision == EmbeddingPrecision::Int8 { 0.02 } else { 1e-5 };
                    for ((got, exact), held) in got.iter().zip(&exact).zip(held.rows()) {
                        let bound =
                            step * (norm(&held.to_owned()) * norm(&along) + exact.abs()) + 1e-6;
                        assert!(
                            (f64::from(*got) - exact).abs() < bound,
                            "{spec:?}: {got}, {exact}"
                        );
                    }
                }
            }
        }
    }
    let spec = StoreSpec::new(EmbeddingPrecision::Binary).with_similarity(Similarity::Hamming);
    let store = EmbeddingStore::build(vectors.view(), spec, Par::Seq).unwrap();
    let scores = store.scores(queries.row(1)).unwrap();
    for (score, v) in scores.iter().zip(vectors.rows()) {
        let differ = v.iter().zip(queries.row(1)).filter(|(a, b)| (**a < 0.0) != (**b < 0.0));
        assert_eq!(*score, -(differ.count() as f32));
    }
    let mut order: Vec<usize> = (0..60).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let found = store.search(queries.row(1), 9).unwrap();
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), order[..9]);
}

#[test]
fn sweeps_find_what_is_worth_its_bytes() {
    let (vectors, queries) = (embeddings(400, 24, 81), embeddings(30, 24, 82));
    let dims = [None, Some(4), Some(12)];
    let precisions = EmbeddingPrecision::ALL;
    let figures =
        sweep(vectors.view(), queries.view(), &dims, &precisions, Similarity::Cosine, 10, Par::Seq)
            .unwrap();
    assert_eq!(figures.len(), 18);
    for figure in &figures {
        let store = EmbeddingStore::build(vectors.view(), figure.spec, Par::Seq).unwrap();
        assert_eq!(store.bytes(), figure.bytes);
        let again = recall(&store, vectors.view(), queries.view(), 10).unwrap();
        assert!((again - figure.recall).abs() < 0.011, "{figure:?}: {again}");
    }
    assert_eq!(figures[0].recall, 1.0);
    let beats = |a: &StoreFigure, b: &StoreFigure| {
        a.bytes <= b.bytes && a.recall >= b.recall && (a.bytes < b.bytes || a.recall > b.recall)
    };
    let front = pareto(&figures);
    assert!(front.iter().all(|a| !figures.iter().any(|b| beats(b, a))));
    for left in figures.iter().filter(|f| !front.contains(f)) {
        let equal = |a: &StoreFigure| (a.bytes, a.recall) == (left.bytes, left.recall);
        assert!(front.iter().any(|a| beats(a, left) || equal(a)));
    }
    for limit in [0, 3000, 10_000, 1 << 20] {
        let most = figures.iter().filter(|f| f.bytes <= limit).map(|f| f.recall);
        let most = most.fold(f64::NEG_INFINITY, f64::max);
        match best_within(&figures, limit) {
            None => assert_eq!(most, f64::NEG_INFINITY),
            Some(best) => assert!(best.recall == most && best.bytes <= limit),
        }
    }
    let bad = sweep(
        vectors.view(),
        queries.view(),
        &[Some(0)],
        &precisions,
        Similarity::Dot,
        10,
        Par::Seq,
    );
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn bad_embeddings_are_refused() {
    let vectors = embeddings(10, 6, 91);
    let plain = StoreSpec::new(EmbeddingPrecision::E4M3);
    let kind =
        |v: &Array2<f32>, spec| EmbeddingStore::build(v.view(), spec, Par::Seq).unwrap_err().kind();
    for dims in [0, 7] {
        assert_eq!(kind(&vectors, plain.with_dims(Some(dims))), ErrorKind::InvalidArgument);
    }
    let hamming = plain.with_similarity(Similarity::Hamming);
    assert_eq!(kind(&vectors, hamming), ErrorKind::InvalidArgument);
    assert_eq!(kind(&Array2::zeros((3, 0)), plain), ErrorKind::InvalidArgument);
    let none = Array2::zeros((0, 6));
    assert_eq!(kind(&none, plain.with_dims(Some(2))), ErrorKind::InsufficientData);
    let mut bad = vectors.clone();
    bad[[1, 2]] = f32::INFINITY;
    assert_eq!(kind(&bad, plain), ErrorKind::Numerical);
    for precision in EmbeddingPrecision::ALL {
        let spec = StoreSpec::new(precision);
        let empty = EmbeddingStore::build(none.view(), spec, Par::Seq).unwrap();
        assert!(empty.is_empty() && empty.search(vectors.row(0), 3).unwrap().is_empty());
        for v in [Array2::zeros((5, 6)), vectors.mapv(|v| v * 1e30), vectors.mapv(|v| v * 1e-30)] {
            for similarity in [Similarity::Cosine, Similarity::Dot] {
                if precision == EmbeddingPrecision::F16 && similarity == Similarity::Dot {
                    continue;
                }
                let spec = spec.with_similarity(similarity);
                let store = EmbeddingStore::build(v.view(), spec, Par::Seq).unwrap();
                let scores = store.scores(vectors.row(1)).unwrap();
                assert!(scores.iter().all(|s| s.is_finite()), "{spec:?}");
            }
        }
        let store = EmbeddingStore::build(vectors.view(), spec, Par::Seq).unwrap();
        let short = store.scores(matrix(1, 5, 1).row(0)).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::ShapeMismatch);
        let nan = store.scores(Array1::from_elem(6, f32::NAN).view()).unwrap_err();
        assert_eq!(nan.kind(), ErrorKind::Numerical);
    }
}
