use std::collections::{BTreeMap, BinaryHeap};

use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, Target};

/// SECodec's codebook (Wang et al., 2025): vectors as a graph of similarities, cut into communities by the least two-dimensional
/// structural entropy (Li, Pan, 2016); the means of communities are the codewords, as many as there come to be.
///
/// Each vector is joined with its `neighbours` nearest; an edge weighs `exp(-distance² / mean distance²)`. From one community
/// a vector on, the two joined communities whose merging lowers the entropy most are merged, until none does.
///
/// ```
/// use tensorpress_quant::codebook::StructuralEntropy;
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2};
///
/// // Three heaps of ten.
/// let vectors = Array2::from_shape_fn((30, 2), |(i, j)| (10 * (i / 10) * (1 + j)) as f32 + ((i * 7 + j) % 10) as f32 / 10.0);
/// let book = StructuralEntropy::default().with_neighbours(9).fit(vectors.view(), Par::Seq)?;
/// assert_eq!(book.codewords().nrows(), 3);
/// assert_eq!(book.encode(vectors.row(12))?, book.codes()[12]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StructuralEntropy {
    /// Nearest vectors that each is joined with. Default 10.
    pub neighbours: usize,
}

impl Default for StructuralEntropy {
    fn default() -> Self {
        Self { neighbours: 10 }
    }
}

/// A codebook found by [`StructuralEntropy`].
#[derive(Debug, Clone)]
pub struct StructuralCodebook {
    vectors: Array2<f32>,
    neighbours: usize,
    /// What distances are divided by.
    width: f64,
    degrees: Vec<f64>,
    codes: Vec<usize>,
    communities: Vec<Community>,
    codewords: Array2<f32>,
}

/// What the entropy needs to know of a community.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Community {
    /// Degrees.
    volume: f64,
    /// Weight of edges that leave it.
    cut: f64,
    /// Sum of d log2 d over the degrees.
    degrees: f64,
}

impl Community {
    /// Its part of the entropy, times the volume of the graph.
    fn entropy(&self, whole: f64) -> f64 {
        if self.volume <= 0.0 {
            return 0.0;
        }
        let out = self.cut.max(0.0) * (self.volume / whole).log2();
        -(out + self.degrees - self.volume * self.volume.log2())
    }

    fn with(&self, other: &Self, between: f64) -> Self {
        Self {
            volume: self.volume + other.volume,
            cut: self.cut + other.cut - 2.0 * between,
            degrees: self.degrees + other.degrees,
        }
    }
}

fn d_log_d(d: f64) -> f64 {
    if d > 0.0 { d * d.log2() } else { 0.0 }
}

/// The two-dimensional structural entropy of a partition of a weighted graph, in bits: with V the volume (sum of degrees d), of
/// each community X its volume V_X and the weight g_X of edges that leave it, the sum over X of
/// `-g_X / V log2(V_X / V) - sum over v in X of d_v / V log2(d_v / V_X)`.
///
/// `edges` are `(a, b, weight)`, each once; `community[v]` says where v belongs. 0 for a graph without edges.
///
/// # Errors
/// `InvalidArgument` for edges of vertices that are not there or of one with itself, `Numerical` for weights that are negative or
/// not finite.
pub fn structural_entropy(edges: &[(usize, usize, f64)], community: &[usize]) -> Result<f64> {
    let mut degrees = vec![0f64; community.len()];
    let mut cuts: BTreeMap<usize, Community> = BTreeMap::new();
    for (a, b, weight) in edges {
        if *a >= community.len() || *b >= community.len() || a == b {
            return Err(Error::invalid(format!(
                "an edge of {a} and {b}, {} vertices",
                community.len()
            )));
        }
        if !(weight.is_finite() && *weight >= 0.0) {
            return Err(Error::numerical(format!("the edge of {a} and {b} weighs {weight}")));
        }
        degrees[*a] += weight;
        degrees[*b] += weight;
        if community[*a] != community[*b] {
            cuts.entry(community[*a]).or_default().cut += weight;
            cuts.entry(community[*b]).or_default().cut += weight;
        }
    }
    for (degree, community) in degrees.iter().zip(community) {
        let own = cuts.entry(*community).or_default();
        own.volume += degree;
        own.degrees += d_log_d(*degree);
    }
    let whole: f64 = degrees.iter().sum();
    if whole <= 0.0 {
        return Ok(0.0);
    }
    Ok(cuts.values().map(|own| own.entropy(whole)).sum::<f64>() / whole)
}

/// A merge that would lower the entropy, and when it was judged.
#[derive(Debug, PartialEq)]
struct Merge {
    gain: f64,
    pair: (usize, usize),
    ages: (u32, u32),
}

impl Eq for Merge {}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The largest gain, of equal ones the first pair.
        self.gain.total_cmp(&other.gain).then(other.pair.cmp(&self.pair))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl StructuralEntropy {
    /// Sets the vectors that each is joined with.
    #[must_use]
    pub fn with_neighbours(mut self, neighbours: usize) -> Self {
        self.neighbours = neighbours;
        self
    }

    /// The codebook of vectors `[vectors, size]`; takes time in the square of their number.
    ///
    /// # Errors
    /// `InvalidArgument` without neighbours, `InsufficientData` without vectors, `Numerical` for vectors that are not finite.
    pub fn fit(&self, vectors: ArrayView2<'_, f32>, par: Par) -> Result<StructuralCodebook> {
        if self.neighbours == 0 {
            return Err(Error::invalid("neighbours = 0: allowed are 1 and more"));
        }
        let count = vectors.nrows();
        if count == 0 {
            return Err(Error::insufficient("no vector to make a codebook of"));
        }
        Target::new("vectors", vectors).check_finite()?;
        let vectors = vectors.as_standard_layout().into_owned();
        let mut near = vec![Vec::new(); count];
        par.for_each(near.iter_mut().enumerate(), |(i, near)| {
            *near = nearest(&vectors, vectors.row(i), self.neighbours, Some(i));
        });
        let (sum, pairs) =
            near.iter().flatten().fold((0f64, 0f64), |(s, n), (_, d)| (s + d, n + 1.0));
        let width = if sum > 0.0 { sum / pairs } else { 1.0 };
        let mut edges: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for (i, near) in near.iter().enumerate() {
            for (j, distance) in near {
                edges.insert((i.min(*j), i.max(*j)), (-distance / width).exp());
            }
        }
        let mut degrees = vec![0f64; count];
        for ((a, b), weight) in &edges {
            degrees[*a] += weight;
            degrees[*b] += weight;
        }
        let (codes, communities) = merged(&edges, &degrees);
        let mut sums = Array2::<f64>::zeros((communities.len(), vectors.ncols()));
        let mut counts = vec![0f64; communities.len()];
        for (vector, code) in vectors.rows().into_iter().zip(&codes) {
            counts[*code] += 1.0;
            sums.row_mut(*code).zip_mut_with(&vector, |sum, v| *sum += f64::from(*v));
        }
        let codewords =
            Array2::from_shape_fn(sums.dim(), |(c, j)| (sums[[c, j]] / counts[c]) as f32);
        let neighbours = self.neighbours;
        Ok(StructuralCodebook {
            vectors,
            neighbours,
            width,
            degrees,
            codes,
            communities,
            codewords,
        })
    }
}

/// The nearest vectors and their squared distances, nearest first.
fn nearest(
    vectors: &Array2<f32>,
    of: ArrayView1<'_, f32>,
    count: usize,
    but: Option<usize>,
) -> Vec<(usize, f64)> {
    let far = |row: ArrayView1<'_, f32>| -> f64 {
        row.iter().zip(of).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    };
    let all = vectors.rows().into_iter().enumerate().filter(|(i, _)| Some(*i) != but);
    let mut all: Vec<(usize, f64)> = all.map(|(i, row)| (i, far(row))).collect();
    let by = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, by);
        all.truncate(count);
    }
    all.sort_unstable_by(by);
    all
}

/// Greedy merging: the community of every vertex, numbered by their first vertices, and what is known of each.
fn merged(edges: &BTreeMap<(usize, usize), f64>, degrees: &[f64]) -> (Vec<usize>, Vec<Community>) {
    let whole: f64 = degrees.iter().sum();
    let alone = |d: &f64| Community { volume: *d, cut: *d, degrees: d_log_d(*d) };
    let mut communities: Vec<Community> = degrees.iter().map(alone).collect();
    let mut between: Vec<BTreeMap<usize, f64>> = vec![BTreeMap::new(); degrees.len()];
    for ((a, b), weight) in edges {
        between[*a].insert(*b, *weight);
        between[*b].insert(*a, *weight);
    }
    let mut parent: Vec<usize> = (0..degrees.len()).collect();
    let mut ages = vec![0u32; degrees.len()];
    let gain = |communities: &[Community], a: usize, b: usize, weight: f64| {
        let (x, y) = (&communities[a], &communities[b]);
        x.entropy(whole) + y.entropy(whole) - x.with(y, weight).entropy(whole)
    };
    let mut heap = BinaryHeap::new();
    for ((a, b), weight) in edges {
        let gain = gain(&communities, *a, *b, *weight);
        heap.push(Merge { gain, pair: (*a, *b), ages: (0, 0) });
    }
    while let Some(Merge { gain: lowers, pair: (a, b), ages: judged }) = heap.pop() {
        // Rounding is no gain.
        if lowers <= 1e-12 * whole {
            break;
        }
        if parent[a] != a || parent[b] != b || judged != (ages[a], ages[b]) {
            continue;
        }
        let weight = between[a].remove(&b).unwrap_or(0.0);
        communities[a] = communities[a].with(&communities[b], weight);
        parent[b] = a;
        ages[a] += 1;
        let of_b = std::mem::take(&mut between[b]);
        for (other, weight) in of_b.into_iter().filter(|(other, _)| *other != a) {
            between[other].remove(&b);
            *between[other].entry(a).or_insert(0.0) += weight;
            *between[a].entry(other).or_insert(0.0) += weight;
        }
        for (other, weight) in &between[a] {
            let pair = (a.min(*other), a.max(*other));
            let gain = gain(&communities, pair.0, pair.1, *weight);
            heap.push(Merge { gain, pair, ages: (ages[pair.0], ages[pair.1]) });
        }
    }
    let root = |mut v: usize| {
        while parent[v] != v {
            v = parent[v];
        }
        v
    };
    let mut numbers = BTreeMap::new();
    let mut kept = Vec::new();
    let codes = (0..degrees.len()).map(|v| {
        let root = root(v);
        *numbers.entry(root).or_insert_with(|| {
            kept.push(communities[root]);
            kept.len() - 1
        })
    });
    let codes = codes.collect();
    (codes, kept)
}

impl StructuralCodebook {
    /// The means of communities, `[codewords, size]`.
    #[must_use]
    pub fn codewords(&self) -> ArrayView2<'_, f32> {
        self.codewords.view()
    }

    /// The community of every vector that the codebook was made of.
    #[must_use]
    pub fn codes(&self) -> &[usize] {
        &self.codes
    }

    /// The structural entropy that was reached, in bits.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        let whole: f64 = self.degrees.iter().sum();
        if whole <= 0.0 {
            return 0.0;
        }
        self.communities.iter().map(|own| own.entropy(whole)).sum::<f64>() / whole
    }

    /// The community for which the entropy of the graph with one more vector, joined with its nearest, is least; the first of
    /// equals.
    ///
    /// # Errors
    /// `ShapeMismatch` for a vector of another size, `Numerical` for one that is not finite.
    pub fn encode(&self, vector: ArrayView1<'_, f32>) -> Result<usize> {
        if vector.len() != self.vectors.ncols() {
            let message = format!("a vector of {}, not of {}", vector.len(), self.vectors.ncols());
            return Err(Error::shape(message));
        }
        Target::new("vector", vector.insert_axis(Axis(0))).check_finite()?;
        let near = nearest(&self.vectors, vector, self.neighbours, None);
        let least = near.first().map_or(0, |(i, _)| self.codes[*i]);
        let mut joined: BTreeMap<usize, (Community, f64)> = BTreeMap::new();
        let mut degree = 0.0;
        for (i, distance) in near {
            let (weight, code) = ((-distance / self.width).exp(), self.codes[i]);
            let (own, to) = joined.entry(code).or_insert((self.communities[code], 0.0));
            own.degrees += d_log_d(self.degrees[i] + weight) - d_log_d(self.degrees[i]);
            own.volume += weight;
            own.cut += weight;
            *to += weight;
            degree += weight;
        }
        if degree <= 0.0 {
            // Too far from all to be joined with any.
            return Ok(least);
        }
        let whole = self.degrees.iter().sum::<f64>() + 2.0 * degree;
        let alone = Community { volume: degree, cut: degree, degrees: d_log_d(degree) };
        let mut best = (f64::INFINITY, least);
        for (code, (own, to)) in &joined {
            // All other communities cost the same whichever is chosen.
            let change = own.with(&alone, *to).entropy(whole) - own.entropy(whole);
            if change < best.0 {
                best = (change, *code);
            }
        }
        Ok(best.1)
    }
}
