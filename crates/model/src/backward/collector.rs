//! Means of gradients, matrix by matrix.

use std::collections::BTreeMap;
use std::fmt;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use tensorpress_tensor::linalg::{Par, matmul_tn};
use tensorpress_tensor::stats::{Gram, Supply};
use tensorpress_tensor::{Context, Error, Result};

use super::guided::{self, Guided};
use super::observer::{GradientObserver, Piece};
use crate::layers::Linear;

/// What is wanted of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// Second moments of the outputs' gradients: all of them for up to so many outputs, the diagonal for more.
    pub second_moments: Option<usize>,
    /// The mean square of each weight's gradient.
    pub fisher: bool,
    /// The mean of each weight's gradient.
    pub mean: bool,
    /// Gram matrices of the inputs, a token weighted by its gradients: one for each of so many groups of outputs.
    pub guided_grams: usize,
}

impl Wanted {
    /// Nothing: the layer is not looked at.
    pub const NONE: Self =
        Self { second_moments: None, fisher: false, mean: false, guided_grams: 0 };

    /// And second moments, the diagonal alone for more than so many outputs: 4 out² bytes while they are gathered.
    #[must_use]
    pub const fn with_second_moments(mut self, full_up_to: usize) -> Self {
        self.second_moments = Some(full_up_to);
        self
    }

    /// And the mean squares of the weights' gradients: 8 bytes a weight while they are gathered.
    #[must_use]
    pub const fn with_fisher(mut self) -> Self {
        self.fisher = true;
        self
    }

    /// And their means: 8 bytes a weight.
    #[must_use]
    pub const fn with_mean(mut self) -> Self {
        self.mean = true;
        self
    }

    /// And Gram matrices weighted by gradients, one for each of so many groups of outputs, as
    /// [`Supply::guided_gram`] says: 4 in² bytes each.
    #[must_use]
    pub const fn with_guided_grams(mut self, groups: usize) -> Self {
        self.guided_grams = groups;
        self
    }
}

/// E[g gᵀ] of the gradients g of a layer's outputs, nats² (a token).
#[derive(Debug, Clone, PartialEq)]
pub enum SecondMoment {
    /// `[out, out]`, symmetric.
    Full(Array2<f32>),
    /// Its diagonal, one value an output.
    Diagonal(Vec<f32>),
}

impl SecondMoment {
    /// Its diagonal.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f32> {
        match self {
            Self::Full(all) => all.diag().to_vec(),
            Self::Diagonal(diagonal) => diagonal.clone(),
        }
    }
}

/// What was found of a matrix. Means are over all tokens that have a label; a token that did not go to an expert adds 0 to
/// those of the expert.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// Tokens that means are over.
    pub tokens: u64,
    /// Tokens that were there: fewer in experts; in a window's end more, where the last token has no label.
    pub seen: u64,
    /// E[g gᵀ].
    pub second_moment: Option<SecondMoment>,
    /// E[(g_i x_j)²] `[out, in]`, token by token: what a token's gradient of a weight squares to, not the square of a whole
    /// window's gradient.
    pub fisher: Option<Array2<f32>>,
    /// E[g_i x_j] `[out, in]`: the gradient of the mean loss by the weight, nats a token.
    pub mean: Option<Array2<f32>>,
    /// For each group of outputs the mean of x xᵀ, a token weighted by the mean of its squared gradients by the group's
    /// outputs, `[groups in, in]`: 0 where all of these are. See [`Supply::guided_gram`].
    pub guided_grams: Option<Array2<f32>>,
}

/// Takes what was found of a matrix of some name.
type Give<'a> = dyn FnMut(&str, Gradients) -> Result<()> + Send + Sync + 'a;

/// An observer that hands over what is wanted of each matrix, by its full name, when its block is done. It holds what is
/// wanted of one block.
///
/// Products of up to 256 tokens are in f32, their sums in f64: the bytes depend neither on threads nor on how a pass is
/// cut.
pub struct Collector<'a> {
    wanted: Box<dyn Fn(&str) -> Wanted + Send + Sync + 'a>,
    give: Box<Give<'a>>,
    sums: BTreeMap<String, Sums>,
}

impl fmt::Debug for Collector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("layers", &self.sums.len()).finish_non_exhaustive()
    }
}

impl<'a> Collector<'a> {
    /// Collects what is `wanted` of the weight of a name, and gives it to `give`.
    #[must_use]
    pub fn new(
        wanted: impl Fn(&str) -> Wanted + Send + Sync + 'a,
        give: impl FnMut(&str, Gradients) -> Result<()> + Send + Sync + 'a,
    ) -> Self {
        Self { wanted: Box::new(wanted), give: Box::new(give), sums: BTreeMap::new() }
    }
}

impl GradientObserver for Collector<'_> {
    fn wants(&self, layer: &Linear) -> bool {
        (self.wanted)(layer.name()) != Wanted::NONE
    }

    fn see(&mut self, pieces: &[Piece<'_>], par: Par) -> Result<()> {
        for Piece { layer, .. } in pieces {
            if !self.sums.contains_key(layer.name()) {
                let sums = Sums::new(layer.shape(), (self.wanted)(layer.name()));
                self.sums.insert(layer.name().to_owned(), sums);
            }
        }
        let mut own: BTreeMap<&str, Vec<&Piece<'_>>> = BTreeMap::new();
        for piece in pieces {
            own.entry(piece.layer.name()).or_default().push(piece);
        }
        let mut each: Vec<(&mut Sums, Vec<&Piece<'_>>)> = Vec::new();
        for (name, sums) in &mut self.sums {
            each.extend(own.remove(name.as_str()).map(|pieces| (sums, pieces)));
        }
        // The largest first, so that threads end together.
        each.sort_by_key(|(sums, _)| std::cmp::Reverse(sums.shape[0] * sums.shape[1]));
        let add = |(sums, pieces): (&mut Sums, Vec<&Piece<'_>>), par: Par| {
            pieces.into_iter().for_each(|piece| sums.update(piece.x, piece.g, par));
        };
        match each.len() < 2 * par.threads() {
            true => each.into_iter().for_each(|one| add(one, par)),
            false => par.for_each(each.into_iter(), |one| add(one, Par::Seq)),
        }
        Ok(())
    }

    fn finished(&mut self, layers: &[&Linear], tokens: u64) -> Result<()> {
        for layer in layers {
            let name = layer.name();
            // An expert that no token went to has none.
            let sums = self.sums.remove(name);
            let sums = sums.unwrap_or_else(|| Sums::new(layer.shape(), (self.wanted)(name)));
            (self.give)(name, sums.finish(tokens).in_tensor(name)?)?;
        }
        Ok(())
    }
}

/// Tokens multiplied in f32 before the product is added in f64.
const ROWS: usize = 256;
/// Outputs of a piece of a sum: what a thread takes.
const OUTPUTS: usize = 256;

/// Sums of one matrix.
struct Sums {
    shape: [usize; 2],
    seen: u64,
    gram: Option<Gram>,
    diagonal: Option<Vec<f64>>,
    fisher: Option<Array2<f64>>,
    mean: Option<Array2<f64>>,
    guided: Vec<Guided>,
    /// Tokens that do not fill a block yet: x and g.
    waiting: [Vec<f32>; 2],
}

impl Sums {
    fn new(shape: [usize; 2], wanted: Wanted) -> Self {
        let [out, inp] = shape;
        let full = wanted.second_moments.is_some_and(|most| out <= most);
        let weights = |wanted: bool| wanted.then(|| Array2::zeros((out, inp)));
        Self {
            shape,
            seen: 0,
            gram: full.then(|| Gram::new(out)),
            diagonal: (wanted.second_moments.is_some() && !full).then(|| vec![0.0; out]),
            fisher: weights(wanted.fisher),
            mean: weights(wanted.mean),
            guided: match wanted.guided_grams {
                0 => Vec::new(),
                groups => {
                    Supply::guided_gram(groups).rows(out).map(|r| Guided::new(r, inp)).collect()
                }
            },
            waiting: Default::default(),
        }
    }

    fn update(&mut self, x: ArrayView2<'_, f32>, g: ArrayView2<'_, f32>, par: Par) {
        self.seen += g.nrows() as u64;
        if let Some(gram) = &mut self.gram {
            gram.update(g, par);
        }
        if let Some(diagonal) = &mut self.diagonal {
            for row in g.rows() {
                diagonal.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(*g).powi(2));
            }
        }
        self.guided.iter_mut().for_each(|group| group.update(x, g, par));
        if self.fisher.is_none() && self.mean.is_none() {
            return;
        }
        let (mut x, mut g) = (x, g);
        while g.nrows() > 0 {
            let waiting = self.waiting[1].len() / self.shape[0].max(1);
            let count = g.nrows().min(ROWS - waiting);
            let (x_now, x_later) = x.split_at(Axis(0), count);
            let (g_now, g_later) = g.split_at(Axis(0), count);
            (x, g) = (x_later, g_later);
            if count == ROWS {
                self.add(x_now, g_now, par);
                continue;
            }
            self.waiting[0].extend(x_now);
            self.waiting[1].extend(g_now);
            if waiting + count == ROWS {
                self.flush(par);
            }
        }
    }

    fn flush(&mut self, par: Par) {
        let [x, g] = std::mem::take(&mut self.waiting);
        let [out, inp] = self.shape;
        let rows = g.len() / out.max(1);
        if rows > 0 {
            let view = |values, width| ArrayView2::from_shape((rows, width), values);
            let (x_rows, g_rows) = (view(&x[..], inp), view(&g[..], out));
            self.add(x_rows.expect("whole rows"), g_rows.expect("whole rows"), par);
        }
        self.waiting = [x, g];
        self.waiting.iter_mut().for_each(Vec::clear);
    }

    /// Adds the products of at most [`ROWS`] tokens.
    fn add(&mut self, x: ArrayView2<'_, f32>, g: ArrayView2<'_, f32>, par: Par) {
        if let Some(mean) = &mut self.mean {
            add_product(mean, g, x, par);
        }
        if let Some(fisher) = &mut self.fisher {
            let (g, x) = (g.mapv(|g| g * g), x.mapv(|x| x * x));
            add_product(fisher, g.view(), x.view(), par);
        }
    }

    fn finish(mut self, tokens: u64) -> Result<Gradients> {
        self.flush(Par::Seq);
        let share = 1.0 / tokens.max(1) as f64;
        let mean = |sum: Option<Array2<f64>>, what: &str| -> Result<Option<Array2<f32>>> {
            let Some(sum) = sum else { return Ok(None) };
            let mean = sum.mapv(|v| (v * share) as f32);
            match mean.indexed_iter().find(|(_, v)| !v.is_finite()) {
                None => Ok(Some(mean)),
                Some(((i, j), v)) => {
                    Err(Error::numerical(format!("the {what} of weight [{i}, {j}] is {v}")))
                }
            }
        };
        let second_moment = match (self.gram, self.diagonal) {
            (Some(gram), _) => {
                let mut all = gram.into_matrix()?;
                all.mapv_inplace(|v| (f64::from(v) * share) as f32);
                Some(SecondMoment::Full(all))
            }
            (None, Some(diagonal)) => {
                let diagonal: Vec<f32> = diagonal.iter().map(|v| (v * share) as f32).collect();
                if let Some(i) = diagonal.iter().position(|v| !v.is_finite()) {
                    let message = format!("the mean squared gradient of output {i} is too large");
                    return Err(Error::numerical(message));
                }
                Some(SecondMoment::Diagonal(diagonal))
            }
            (None, None) => None,
        };
        Ok(Gradients {
            tokens,
            seen: self.seen,
            second_moment,
            fisher: mean(self.fisher, "mean squared gradient")?,
            mean: mean(self.mean, "mean gradient")?,
            guided_grams: guided::stacked(self.guided, self.shape[1])?,
        })
    }
}

/// `sum += gᵀ x`; threads share the outputs out, so that each sum has one order.
fn add_product(sum: &mut Array2<f64>, g: ArrayView2<'_, f32>, x: ArrayView2<'_, f32>, par: Par) {
    let pieces = sum.axis_chunks_iter_mut(Axis(0), OUTPUTS).enumerate();
    let add = |product: &mut Vec<f32>, (i, mut sum): (usize, ArrayViewMut2<'_, f64>)| {
        product.resize(sum.len(), 0.0);
        let first = i * OUTPUTS;
        let g = g.slice_axis(Axis(1), Slice::from(first..first + sum.nrows()));
        let mut product =
            ArrayViewMut2::from_shape(sum.dim(), product).expect("the shape of the sum");
        matmul_tn(g, x, product.view_mut(), false, Par::Seq);
        sum.zip_mut_with(&product, |sum, p| *sum += f64::from(*p));
    };
    par.for_each_init(pieces, Vec::new, add);
}
