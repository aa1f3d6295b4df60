use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

use super::precision::EmbeddingPrecision;
use super::store::{EmbeddingStore, Similarity, StoreSpec, normalised};
use super::{Pca, top};

/// A way to store embeddings, what it takes and what it finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoreFigure {
    /// The way.
    pub spec: StoreSpec,
    /// Bytes of all vectors and what stands beside.
    pub bytes: usize,
    /// Bytes of a vector.
    pub vector_bytes: usize,
    /// [`recall`].
    pub recall: f64,
}

/// The share of the `k` vectors most similar to a query, in full precision, that are among the `k` which the store finds; the
/// mean over all queries. 1 without queries or vectors.
///
/// # Errors
/// Those of [`EmbeddingStore::search`]; `ShapeMismatch` for vectors that are not those of the store.
pub fn recall(
    store: &EmbeddingStore,
    vectors: ArrayView2<'_, f32>,
    queries: ArrayView2<'_, f32>,
    k: usize,
) -> Result<f64> {
    let truth = truth(vectors, queries, store.spec().similarity, k)?;
    if vectors.nrows() != store.len() {
        let message = format!("{} vectors for a store of {}", vectors.nrows(), store.len());
        return Err(Error::shape(message));
    }
    recall_of(store, &truth, queries, k)
}

/// What is found in full precision; signs stand for angles.
fn truth(
    vectors: ArrayView2<'_, f32>,
    queries: ArrayView2<'_, f32>,
    similarity: Similarity,
    k: usize,
) -> Result<Vec<Vec<usize>>> {
    let similarity = if similarity == Similarity::Dot { similarity } else { Similarity::Cosine };
    let spec = StoreSpec::new(EmbeddingPrecision::F32).with_similarity(similarity);
    let exact = EmbeddingStore::build(vectors, spec, Par::Seq)?;
    let find = |query| {
        let scores = exact.scores(query)?;
        Ok(top(&scores, k).into_iter().map(|(i, _)| i).collect())
    };
    queries.rows().into_iter().map(find).collect()
}

fn recall_of(
    store: &EmbeddingStore,
    truth: &[Vec<usize>],
    queries: ArrayView2<'_, f32>,
    k: usize,
) -> Result<f64> {
    let (mut found, mut all) = (0usize, 0usize);
    for (query, truth) in queries.rows().into_iter().zip(truth) {
        let got = store.search(query, k)?;
        found += got.iter().filter(|(i, _)| truth.contains(i)).count();
        all += truth.len();
    }
    Ok(if all == 0 { 1.0 } else { found as f64 / all as f64 })
}

/// Every precision with every number of principal coordinates (`None`: all coordinates, as they are), and what each finds of
/// the `k` vectors nearest to the queries.
///
/// # Errors
/// Those of [`EmbeddingStore::build`] and [`recall`].
pub fn sweep(
    vectors: ArrayView2<'_, f32>,
    queries: ArrayView2<'_, f32>,
    dims: &[Option<usize>],
    precisions: &[EmbeddingPrecision],
    similarity: Similarity,
    k: usize,
    par: Par,
) -> Result<Vec<StoreFigure>> {
    let truth = truth(vectors, queries, similarity, k)?;
    let spec = StoreSpec::new(EmbeddingPrecision::F32).with_similarity(similarity);
    // Directions are found once: fewer of them are the first of more.
    let most = dims.iter().flatten().max();
    let pca =
        most.map(|most| Pca::fit(normalised(vectors, spec).view(), *most, par)).transpose()?;
    let mut figures = Vec::new();
    for dims in dims {
        if *dims == Some(0) {
            return Err(Error::invalid("dims = 0: allowed are 1 and more"));
        }
        for precision in precisions {
            let spec = StoreSpec::new(*precision).with_dims(*dims).with_similarity(similarity);
            let pca = dims.and_then(|dims| pca.as_ref().map(|pca| pca.truncated(dims)));
            let store = EmbeddingStore::with_pca(vectors, spec, pca, par)?;
            let recall = recall_of(&store, &truth, queries, k)?;
            let (bytes, vector_bytes) = (store.bytes(), store.vector_bytes());
            figures.push(StoreFigure { spec, bytes, vector_bytes, recall });
        }
    }
    Ok(figures)
}

/// Those that no other beats: every other takes more bytes or finds less. By rising bytes; the first of equals.
#[must_use]
pub fn pareto(figures: &[StoreFigure]) -> Vec<StoreFigure> {
    let mut order: Vec<&StoreFigure> = figures.iter().collect();
    order.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(b.recall.total_cmp(&a.recall)));
    let mut best = f64::NEG_INFINITY;
    let better = |figure: &&StoreFigure| {
        let better = figure.recall > best;
        best = best.max(figure.recall);
        better
    };
    order.into_iter().filter(better).copied().collect()
}

/// The one that finds most within a limit of bytes, of equals that of fewest bytes.
#[must_use]
pub fn best_within(figures: &[StoreFigure], bytes: usize) -> Option<StoreFigure> {
    pareto(figures).into_iter().rev().find(|figure| figure.bytes <= bytes)
}
