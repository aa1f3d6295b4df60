use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::node::{BlockDiagonal, Product, TensorTrain};
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::{Error, Node, Result, Usable};

use super::form::{Effort, Fitted, Form, Operator};
use super::split::{Split, energy, least_keeping, spectrum, unfolded};
use crate::rank::Rank;

/// W ~ Σ A_i ⊗ (S_i T_i), `terms` Kronecker products of a small rule A_i `[order, order]` with a low-rank matrix.
///
/// Karimi Mahabadi, Henderson, Ruder: *Compacter: Efficient Low-Rank Hypercomplex Adapter Layers*, 2021, equations 4 to 6;
/// there with `terms` = `order`, rank 1, and rules that all layers share ([`Compacter::fit`]). The order must divide both
/// sides.
///
/// Fit: in the rearrangement R(W) `[order², out in / order²]` a Kronecker product is an outer product vec(A) vec(B)ᵀ, so
/// that the leading singular triplets are the closest sum (Van Loan, Pitsianis: *Approximation with Kronecker products*,
/// 1993). With orthonormal vec(A_i) the best S_i T_i is the truncated SVD of B_i; then `sweeps` rounds of alternating least
/// squares, of which no step can lose.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Compacter {
    /// Side of the rules, 1 to 32. Default 4.
    pub order: usize,
    /// Kronecker products in the sum, 1 to order². Default 4.
    pub terms: usize,
    /// Rank of every S_i T_i; an energy is that of all B_i together. Default a fifth of the parameters goes.
    pub rank: Rank,
    /// Rounds of alternating least squares, up to 1000. Default 5.
    pub sweeps: usize,
}

impl Default for Compacter {
    fn default() -> Self {
        Self { order: 4, terms: 4, rank: Rank::default(), sweeps: 5 }
    }
}

/// [`Compacter`] with as many terms as the order of its rules, as in the paper.
///
/// ```
/// use tensorpress_lowrank::{Rank, operator::compacter};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = compacter(2, Rank::Number(1)).compress(weight.view(), &Calibration::none(64))?;
/// assert!(made.fallback.is_none() && made.node.shape() == [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn compacter(order: usize, rank: Rank) -> Operator<Compacter> {
    Operator::new(Compacter { order, terms: order, rank, ..Compacter::default() })
}

/// Rules that several layers share, and what each of them adds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KroneckerFit {
    /// A_i `[order, order]`.
    pub rules: Vec<Array2<f64>>,
    /// S_i `[out / order, rank]` and T_i `[rank, in / order]` of each layer.
    pub layers: Vec<Vec<[Array2<f64>; 2]>>,
    /// ‖W - Ŵ‖² of each layer.
    pub lost: Vec<f64>,
    /// The same of all layers together: at the start, and after each sweep.
    pub losses: Vec<f64>,
}

impl Compacter {
    /// Sets the number of Kronecker products.
    #[must_use]
    pub fn with_terms(mut self, terms: usize) -> Self {
        self.terms = terms;
        self
    }

    /// Sets the number of rounds of alternating least squares.
    #[must_use]
    pub fn with_sweeps(mut self, sweeps: usize) -> Self {
        self.sweeps = sweeps;
        self
    }

    fn check_all(&self) -> Result<()> {
        let Self { order, terms, sweeps, .. } = *self;
        if !(1..=32).contains(&order) {
            return Err(Error::invalid(format!("order = {order}: allowed are 1 to 32")));
        }
        if !(1..=order * order).contains(&terms) {
            let most = order * order;
            return Err(Error::invalid(format!(
                "terms = {terms}: allowed are 1 to order² = {most}"
            )));
        }
        if sweeps > 1000 {
            return Err(Error::invalid(format!("sweeps = {sweeps}: allowed are 0 to 1000")));
        }
        self.rank.check()
    }

    /// The rank of the matrices B_i `[terms, out in / order²]` of a layer.
    fn rank_of(&self, [o, i]: [usize; 2], whole: &Array2<f64>) -> Result<usize> {
        let rank = match self.rank {
            Rank::Number(rank) => rank,
            Rank::Ratio(ratio) => {
                let all = (self.order * self.order) as f64;
                let left = (all * (o * i) as f64) * (1.0 - ratio) - self.terms as f64 * all;
                let each = left / self.terms as f64 + 1e-9;
                if each >= (o * i) as f64 { o.min(i) } else { (each / (o + i) as f64) as usize }
            }
            Rank::Energy(fraction) => {
                let mut pooled = vec![0.0; o.min(i)];
                for row in whole.rows() {
                    let own = spectrum(shaped(row, [o, i]))?;
                    pooled.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                }
                least_keeping(&pooled, fraction)
            }
        };
        Ok(rank.clamp(1, o.min(i)))
    }

    /// Rules that all these matrices share, and the best of everything else; finite matrices, of any shapes that the order
    /// divides. A rank by ratio or energy is each layer's own.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible parameters and without matrices, `ShapeMismatch` if the order does not divide a
    /// side or a matrix is empty, `Numerical` for entries that are not finite, or without convergence.
    pub fn fit(&self, weights: &[ArrayView2<'_, f64>], effort: Effort) -> Result<KroneckerFit> {
        self.check_all()?;
        let n = self.order;
        if weights.is_empty() {
            return Err(Error::invalid("rules of no layers"));
        }
        let mut layers = Vec::with_capacity(weights.len());
        for weight in weights {
            let (out, inp) = weight.dim();
            if weight.is_empty() || out % n != 0 || inp % n != 0 {
                return Err(Error::shape(format!("order = {n} does not divide {out} x {inp}")));
            }
            let small = [out / n, inp / n];
            let rearranged = unfolded(weight.view(), &[[n, n], small]);
            layers.push(Layer::new(rearranged, small));
        }
        let mut rules = leading_rules(&layers, self.terms, effort.par)?;
        for layer in &mut layers {
            let mut best = Array2::zeros((rules.ncols(), layer.seen.ncols()));
            linalg::matmul_tn(rules.view(), layer.seen.view(), best.view_mut(), false, effort.par);
            let rank = self.rank_of(layer.small, &best)?;
            // Orthonormal rules: what one of them leaves over is no other's.
            for term in 0..rules.ncols() {
                layer.set(term, best.row(term), rank, effort)?;
            }
        }
        let lost_by = |rules: &Array2<f64>, layers: &[Layer]| -> Vec<f64> {
            layers.iter().map(|layer| layer.loss(rules)).collect()
        };
        let mut lost = lost_by(&rules, &layers);
        let mut losses = vec![lost.iter().sum()];
        for _ in 0..self.sweeps {
            rules = best_rules(&rules, &layers, effort.par)?;
            for layer in &mut layers {
                layer.sweep(&rules, effort)?;
            }
            lost = lost_by(&rules, &layers);
            losses.push(lost.iter().sum());
        }
        let rule = |rule: ArrayView1<'_, f64>| shaped(rule, [n, n]).to_owned();
        let rules = rules.t().as_standard_layout().rows().into_iter().map(rule).collect();
        let layers = layers.into_iter().map(|layer| layer.terms).collect();
        Ok(KroneckerFit { rules, layers, lost, losses })
    }
}

impl KroneckerFit {
    /// Numbers that are stored: the rules once, and of every layer the factors, or their products where those are smaller.
    #[must_use]
    pub fn weights(&self) -> usize {
        let of = |terms: &Vec<[Array2<f64>; 2]>| {
            let factors = terms.iter().flatten().map(Array2::len).sum::<usize>();
            if are_whole(terms) { terms.iter().map(size).sum() } else { factors }
        };
        let layers: usize = self.layers.iter().map(of).sum();
        self.rules.iter().map(Array2::len).sum::<usize>() + layers
    }

    /// One layer as a tree, with the rules in it: Σ A_i ⊗ (S_i T_i) as a matrix product operator of two cores. The second is
    /// S diag(T), or \[S_1 T_1, S_2 T_2, ...\] where that is smaller.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Fitted {
        let (terms, order) = (&self.layers[layer], self.rules[0].nrows());
        let first = Array2::from_shape_fn((order * terms.len(), order), |(row, j)| {
            self.rules[row % terms.len()][[row / terms.len(), j]]
        });
        let small = [terms[0][0].nrows(), terms[0][1].ncols()];
        let beside = |matrices: Vec<Array2<f64>>| {
            let views: Vec<_> = matrices.iter().map(|m| m.view()).collect();
            concatenate(Axis(1), &views).expect("as many rows each")
        };
        let mut factors = vec![first];
        if are_whole(terms) {
            factors.push(beside(terms.iter().map(|[s, t]| s.dot(t)).collect()));
        } else {
            factors.push(beside(terms.iter().map(|[s, _]| s.clone()).collect()));
            factors.extend(terms.iter().map(|[_, t]| t.clone()));
        }
        let tree = move |nodes: Vec<Box<dyn Node>>| {
            let mut nodes = nodes.into_iter();
            let [Some(first), Some(second)] = [nodes.next(), nodes.next()] else {
                return Err(Error::invalid("a node for each factor"));
            };
            let right: Vec<_> = nodes.collect();
            let second = match right.is_empty() {
                true => second,
                false => Product::new(second, BlockDiagonal::new(right)?.boxed())?.boxed(),
            };
            Ok(TensorTrain::new(vec![[order, order], small], vec![first, second])?.boxed())
        };
        Fitted { factors, tree: Box::new(tree), lost: self.lost[layer] }
    }
}

/// Entries of S T.
fn size([s, t]: &[Array2<f64>; 2]) -> usize {
    s.nrows() * t.ncols()
}

/// Whether the products of these factors are no larger than the factors.
fn are_whole(terms: &[[Array2<f64>; 2]]) -> bool {
    terms.iter().all(|term| size(term) <= term[0].len() + term[1].len())
}

/// One matrix during a fit.
struct Layer {
    /// R(W) `[order², p]`, p = o i for small matrices `[o, i]`.
    seen: Array2<f64>,
    small: [usize; 2],
    terms: Vec<[Array2<f64>; 2]>,
    /// vec(S_i T_i), line by line `[terms, p]`.
    made: Array2<f64>,
}

impl Layer {
    fn new(seen: Array2<f64>, small: [usize; 2]) -> Self {
        let made = Array2::zeros((0, seen.ncols()));
        Self { seen, small, terms: Vec::new(), made }
    }

    /// The low-rank matrix closest to this one becomes that of a term; the next one, if there are not so many.
    fn set(
        &mut self,
        term: usize,
        best: ArrayView1<'_, f64>,
        rank: usize,
        effort: Effort,
    ) -> Result<()> {
        let Split { left, right } = Split::of(shaped(best, self.small), rank, effort)?.balanced();
        let product = left.dot(&right);
        let line = product.as_standard_layout();
        let line = line.view().into_shape_with_order(product.len()).expect("row-major");
        if term == self.terms.len() {
            self.terms.push([left, right]);
            self.made.push_row(line).map_err(|e| Error::shape(e.to_string()))?;
        } else {
            self.terms[term] = [left, right];
            self.made.row_mut(term).assign(&line);
        }
        Ok(())
    }

    /// ‖R - A B‖², entry by entry: differences of large numbers would hide small losses.
    fn loss(&self, rules: &Array2<f64>) -> f64 {
        energy(&(&self.seen - &rules.dot(&self.made)))
    }

    /// Each low-rank matrix in turn becomes the best for the others.
    fn sweep(&mut self, rules: &Array2<f64>, effort: Effort) -> Result<()> {
        let (inner, onto) = (rules.t().dot(rules), rules.t().dot(&self.seen));
        for term in 0..self.terms.len() {
            let own = inner[[term, term]];
            if own <= 0.0 {
                continue;
            }
            // aᵀ (R - what the others make) / aᵀa.
            let mut others: Array1<f64> = inner.row(term).to_owned();
            others[term] = 0.0;
            let best = (&onto.row(term) - &others.dot(&self.made)) / own;
            let rank = self.terms[term][1].nrows();
            self.set(term, best.view(), rank, effort)?;
        }
        Ok(())
    }
}

/// A row as a matrix.
fn shaped(row: ArrayView1<'_, f64>, [rows, cols]: [usize; 2]) -> ArrayView2<'_, f64> {
    row.into_shape_with_order((rows, cols)).expect("a row of a row-major matrix")
}

/// The leading left singular vectors of all R(W) side by side `[order², terms]`: eigenvectors of Σ R Rᵀ.
fn leading_rules(layers: &[Layer], terms: usize, par: Par) -> Result<Array2<f64>> {
    let side = layers[0].seen.nrows();
    // Squares of squares: to a usual size first.
    let most = layers.iter().flat_map(|l| &l.seen).fold(0.0f64, |most, v| most.max(v.abs()));
    let unit = if most > 0.0 && most.is_finite() { most } else { 1.0 };
    let mut sum = Array2::zeros((side, side));
    for layer in layers {
        let seen = layer.seen.mapv(|v| v / unit);
        linalg::matmul_nt(seen.view(), seen.view(), sum.view_mut(), true, par);
    }
    let vectors = linalg::symmetric_eigen(sum.view())?.vectors;
    Ok(vectors.slice(s![.., side - terms..;1]).slice(s![.., ..;-1]).to_owned())
}

/// The rules that lose least with these low-rank matrices, R Bᵀ (B Bᵀ)⁺ over all layers side by side.
fn best_rules(before: &Array2<f64>, layers: &[Layer], par: Par) -> Result<Array2<f64>> {
    let (side, terms) = before.dim();
    let (mut gram, mut onto) = (Array2::zeros((terms, terms)), Array2::zeros((terms, side)));
    for layer in layers {
        let made = layer.made.view();
        linalg::matmul_nt(made, made, gram.view_mut(), true, par);
        linalg::matmul_nt(made, layer.seen.view(), onto.view_mut(), true, par);
    }
    Ok(linalg::least_squares(gram.view(), onto.view(), None, par)?.solution.reversed_axes())
}

impl Form for Compacter {
    fn id(&self) -> &'static str {
        "compacter"
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("order", &mut self.order, 1..=32, "side of the rules; has to divide both sides")?;
        keys.int(
            "terms",
            &mut self.terms,
            1..=1024,
            "Kronecker products in the sum, up to order²",
        )?;
        self.rank.knobs(keys)?;
        keys.int("sweeps", &mut self.sweeps, 0..=1000, "rounds of alternating least squares")
    }

    fn check(&self) -> Result<()> {
        self.check_all()
    }

    fn fit(&self, weight: ArrayView2<'_, f64>, effort: Effort) -> Result<Usable<Fitted>> {
        let (n, (out, inp)) = (self.order, weight.dim());
        if out % n != 0 || inp % n != 0 {
            return Ok(Usable::no(format!("order = {n} does not divide {out} x {inp}")));
        }
        Ok(Usable::Yes(Self::fit(self, &[weight], effort)?.layer(0)))
    }
}
