//! Models that carry fewer and fewer tokens: a [`TokenReduce`] between attention and feed-forward network of every block of
//! an encoder, or behind the blocks of a decoder that reads a prompt.

mod decoder;
mod left;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, s};
use tensorpress_tensor::{Error, Result, Scratch, linalg};
use tensorpress_tokencomp::{Place, Schedule, TokenHints, TokenMap, TokenReduce, grid};

use crate::block::{Block, Ignore, Mix, Past, no_attention};
use crate::encoder::{Encoder, pool};
use crate::layers::{Attention, math};

use left::{Left, metric};

/// What reduces the tokens of an encoder, or of a decoder's prompt, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Reduction<'a> {
    /// Plans by the mean of the keys over the heads.
    pub method: &'a dyn TokenReduce,
    /// Tokens that each block takes away.
    pub schedule: &'a Schedule,
    /// Tokens that stay alone: class and separator tokens, a decoder's first. In images the class token does anyway, in
    /// prompts the last.
    pub protected: &'a [usize],
}

/// What a model made of a text whose tokens became fewer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reduced {
    /// The last block's output `[tokens left, hidden]`.
    pub hidden: Array2<f32>,
    /// From the text's tokens to those left.
    pub map: TokenMap,
}

impl Encoder {
    /// The last block's output of one text whose tokens are merged or dropped on the way. Attention weighs a merged token
    /// as the tokens it stands for (ln size is added to its scores).
    ///
    /// # Errors
    /// As [`Encoder::last_hidden_state`], and those of the method.
    pub fn reduced_hidden_state(
        &self,
        ids: &[u32],
        reduction: Reduction<'_>,
        scratch: &mut Scratch,
    ) -> Result<Reduced> {
        let hidden = self.embeddings(ids, &vec![0; ids.len()], scratch)?;
        self.reduce(hidden, reduction, None, scratch)
    }

    /// The last block's output of one image whose tokens are merged or dropped on the way, behind the norm that stands there,
    /// if one does. The class token is protected; methods know the places of the patches and what the class token
    /// attends to.
    ///
    /// # Errors
    /// As [`Encoder::image_embeddings`], and those of the method.
    pub fn image_hidden_state_reduced(
        &self,
        image: ArrayView3<'_, f32>,
        reduction: Reduction<'_>,
        scratch: &mut Scratch,
    ) -> Result<Reduced> {
        let hidden = self.image_embeddings(image, scratch)?;
        // Patches stand in a square behind the class token.
        let side = (hidden.nrows() - 1).isqrt();
        let places = std::iter::once(None).chain(grid(side, side, 1)).collect();
        let protected = [&[0][..], reduction.protected].concat();
        let reduction = Reduction { protected: &protected, ..reduction };
        self.reduce(hidden, reduction, Some(places), scratch)
    }

    fn reduce(
        &self,
        mut hidden: Array2<f32>,
        reduction: Reduction<'_>,
        mut places: Option<Vec<Option<Place>>>,
        scratch: &mut Scratch,
    ) -> Result<Reduced> {
        let mut left = Left::new(hidden.nrows(), reduction.protected.to_vec());
        for block in &self.blocks {
            let keep = left.keep(reduction, block.index());
            let sizes = left.sizes()?;
            let mut hook = Hook {
                reduction,
                sizes: &sizes,
                protected: left.protected(),
                places: places.as_deref(),
                keep,
                plan: None,
                weights: None,
            };
            hidden = block.forward_reduced(hidden, &mut hook, scratch)?;
            let Some(plan) = hook.plan else { continue };
            places = places.map(|places| plan.first_of(&places)).transpose()?;
            left.shrink(&plan, reduction)?;
        }
        self.last_norm.iter().for_each(|norm| norm.apply(hidden.view_mut()));
        Ok(Reduced { hidden, map: left.map })
    }

    /// The embedding of a text whose tokens are merged or dropped on the way: the mean of what is left, weighted by sizes,
    /// divided by its length.
    ///
    /// # Errors
    /// As [`Encoder::reduced_hidden_state`]; `InvalidArgument` without tokens.
    pub fn embed_ids_reduced(
        &self,
        ids: &[u32],
        reduction: Reduction<'_>,
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::invalid("a text without tokens has no embedding"));
        }
        let Reduced { hidden, map } = self.reduced_hidden_state(ids, reduction, scratch)?;
        Ok(pool(hidden.view(), &map.sizes(None)?))
    }
}

/// What a block needs to know to reduce its tokens, and what it planned.
struct Hook<'a> {
    reduction: Reduction<'a>,
    sizes: &'a [f32],
    protected: &'a [usize],
    /// Where the tokens of an image stand.
    places: Option<&'a [Option<Place>]>,
    keep: usize,
    plan: Option<TokenMap>,
    /// What tokens weigh in their group, where it is not their size.
    weights: Option<Vec<f32>>,
}

impl Hook<'_> {
    /// Plans by projected queries and keys `[tokens, heads * dim]`.
    fn plan(
        &mut self,
        q: ArrayView2<'_, f32>,
        k: ArrayView2<'_, f32>,
        bias: &[f32],
        dim: usize,
    ) -> Result<()> {
        if self.keep >= k.nrows() {
            return Ok(());
        }
        let metric = metric(k, dim);
        let mut hints = TokenHints::default().with_protected(self.protected).with_sizes(self.sizes);
        let method = self.reduction.method;
        let (attention, class);
        if method.needs_attention() {
            attention = received(q, k, bias, dim);
            hints = hints.with_attention(&attention);
        }
        if let Some(places) = self.places {
            hints = hints.with_places(places);
            if method.needs_attention() {
                class = received(q.slice(s![..1, ..]), k, bias, dim);
                hints = hints.with_class_attention(&class);
            }
        }
        let plan = method.plan(metric.view(), &hints, self.keep)?;
        self.weights = method.weights(metric.view(), &hints, &plan)?;
        self.plan = Some(plan);
        Ok(())
    }
}

/// Attention that each token receives from some queries: the mean over heads and them.
fn received(q: ArrayView2<'_, f32>, k: ArrayView2<'_, f32>, bias: &[f32], dim: usize) -> Vec<f32> {
    let (tokens, width) = k.dim();
    let (heads, scale) = (width / dim, 1.0 / (dim as f32).sqrt());
    let mut sums = vec![0.0; tokens];
    let mut scores = Array2::zeros((q.nrows(), tokens));
    for head in 0..heads {
        let part = s![.., head * dim..(head + 1) * dim];
        linalg::matmul_nt(q.slice(part), k.slice(part), scores.view_mut(), false, linalg::Par::Seq);
        for mut row in scores.rows_mut() {
            let row = row.as_slice_mut().expect("rows of a new matrix");
            row.iter_mut().zip(bias).for_each(|(p, bias)| *p = *p * scale + bias);
            math::softmax(row, 1.0);
            sums.iter_mut().zip(&*row).for_each(|(sum, p)| *sum += *p);
        }
    }
    let total = (heads * q.nrows()) as f32;
    sums.iter().map(|sum| sum / total).collect()
}

impl Block {
    /// Runs one sequence, whose tokens stand for several each, and reduces it after attention.
    fn forward_reduced(
        &self,
        mut hidden: Array2<f32>,
        hook: &mut Hook<'_>,
        scratch: &mut Scratch,
    ) -> Result<Array2<f32>> {
        let encodes = |attention: &&Attention| !attention.causal;
        let Some(attention) = self.attention().filter(encodes).filter(|_| !self.parallel) else {
            return Err(Error::unsupported("token reduction in a decoder"));
        };
        let bias: Vec<f32> = hook.sizes.iter().map(|size| size.ln()).collect();
        let mut attend = |q: ArrayViewMut2<'_, f32>,
                          k: ArrayViewMut2<'_, f32>,
                          v: ArrayView2<'_, f32>,
                          out: ArrayViewMut2<'_, f32>,
                          scratch: &mut Scratch| {
            hook.plan(q.view(), k.view(), &bias, attention.head_dim)?;
            attention.mix_weighted(q, k, v, &bias, out, scratch)
        };
        let mut mix = Mix { attend: &mut attend, past: Past::None(&[]) };
        // Nobody watches, so nothing ends the pass.
        let _ = self.run_parts(0..1, &mut hidden.view_mut(), &mut mix, &mut Ignore, scratch)?;
        if let Some(plan) = &hook.plan {
            let weights = hook.weights.as_deref().unwrap_or(hook.sizes);
            hidden = plan.merge(hidden.view(), Some(weights))?;
        }
        let rest = 1..self.parts.len();
        let mut nothing = Mix { attend: &mut no_attention, past: Past::None(&[]) };
        let _ = self.run_parts(rest, &mut hidden.view_mut(), &mut nothing, &mut Ignore, scratch)?;
        Ok(hidden)
    }
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::Registry;
    use tensorpress_tensor::testing::data;
    use tensorpress_tokencomp::ToMe;

    use super::*;
    use crate::source::Source;

    /// A token of size 2 is to all others what two equal tokens are.
    #[test]
    fn sizes_stand_for_equal_tokens() {
        let Some(folder) = data::minilm() else { return };
        let encoder = Source::open(folder, &Registry::default()).unwrap().encoder().unwrap();
        let mut scratch = Scratch::default();
        let ids = [101, 2023, 2003, 1037, 3231, 102];
        let few = encoder.embeddings(&ids, &[0; 6], &mut scratch).unwrap();
        let twice = [0, 1, 1, 1, 2, 3, 4, 4, 5];
        let mut all = few.select(ndarray::Axis(0), &twice);
        let (method, schedule) = (ToMe::new(), Schedule::Tokens(Vec::new()));
        let reduction = Reduction { method: &method, schedule: &schedule, protected: &[] };
        let sizes = [1.0, 3.0, 1.0, 1.0, 2.0, 1.0];
        let mut hook = Hook {
            reduction,
            sizes: &sizes,
            protected: &[],
            places: None,
            keep: 6,
            plan: None,
            weights: None,
        };
        let block = &encoder.blocks()[0];
        let few = block.forward_reduced(few, &mut hook, &mut scratch).unwrap();
        block.forward_sequences(all.view_mut(), &[9], None, &mut scratch).unwrap();
        for (row, token) in all.rows().into_iter().zip(twice) {
            let apart =
                row.iter().zip(few.row(token)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "token {token}: {apart}");
        }
        let ones = [1.0; 6];
        hook.sizes = &ones;
        let plain = encoder.embeddings(&ids, &[0; 6], &mut scratch).unwrap();
        let plain = block.forward_reduced(plain, &mut hook, &mut scratch).unwrap();
        assert!(plain.iter().zip(&few).any(|(a, b)| (a - b).abs() > 1e-3), "sizes matter");
    }
}
