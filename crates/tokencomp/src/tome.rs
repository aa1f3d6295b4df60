//! Token merging: Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, *Token Merging: Your ViT But Faster*, 2023.

use ndarray::ArrayView2;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Error, Result};

use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, check_row};
use crate::similarity::nearest;
use crate::stage::{TokenPart, reduction};

/// Bipartite soft matching as a [`TokenReduce`]: each round merges at most half of the tokens, into those most similar;
/// as many rounds as it takes. Memory is linear in the tokens.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ToMe;

impl ToMe {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    reduction("tome", "merges the most similar tokens, at most half of them a round", ToMe::new)
}

impl TokenReduce for ToMe {
    fn id(&self) -> &'static str {
        "tome"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let mut protected = hints.check_merging(x, keep)?;
        let mut map = TokenMap::identity(x.nrows());
        let mut states = x.as_standard_layout();
        let mut sizes = hints.sizes.map(<[f32]>::to_vec);
        loop {
            let more = map.targets() - keep;
            if more == 0 {
                return Ok(map);
            }
            let round = match_split(states.view(), more, &split(&protected))?.map()?.sorted();
            states = round.merge(states.view(), sizes.as_deref())?.into();
            sizes = Some(round.sizes(sizes.as_deref())?);
            protected = round.first_of(&protected)?;
            map = map.then(&round)?;
        }
    }
}

/// Sources and destinations: even and odd tokens, as in the paper, or, where one side would be empty, every other one of
/// the unprotected.
fn split(protected: &[bool]) -> [Vec<usize>; 2] {
    let free: Vec<usize> = (0..protected.len()).filter(|t| !protected[*t]).collect();
    let side = |parity: usize| free.iter().copied().filter(|t| t % 2 == parity).collect::<Vec<_>>();
    let halves = [side(0), side(1)];
    if halves.iter().all(|half| !half.is_empty()) {
        return halves;
    }
    let side = |parity| free.iter().copied().skip(parity).step_by(2).collect();
    [side(0), side(1)]
}

/// One round of bipartite matching, in the terms of the paper's code.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Matching {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Tokens that are merged, the most similar pair first.
    pub merged: Vec<usize>,
    /// What each of them is merged into.
    pub into: Vec<usize>,
    /// Even tokens that are not merged: by falling similarity, or in the order of the sequence where tokens are protected.
    pub unmerged: Vec<usize>,
    /// Destinations, merged into or not.
    pub destinations: Vec<usize>,
    /// Tokens that take no part.
    dropped: Vec<usize>,
}

impl Matching {
    /// The map, its targets in the order of the paper's code: unmerged tokens, then destinations.
    ///
    /// # Errors
    /// None for a matching of this crate.
    pub fn map(&self) -> Result<TokenMap> {
        let mut assignment = vec![None; self.tokens];
        let alone = self.unmerged.iter().chain(&self.destinations);
        alone.enumerate().for_each(|(target, token)| assignment[*token] = Some(target));
        for (source, into) in self.merged.iter().zip(&self.into) {
            assignment[*source] = assignment[*into];
        }
        TokenMap::new(&assignment, self.tokens - self.merged.len() - self.dropped.len())
    }
}

/// Bipartite soft matching of the tokens of `metric` `[tokens, channels]` (in a model, the mean of the keys over the
/// heads): even tokens are sources, odd ones destinations; the `r` sources with the most similar destination are merged.
/// At most (tokens - protected) / 2 of them. The first of equals wins.
///
/// # Errors
/// `InvalidArgument` for a protected token out of range, `Numerical` for a metric that is not finite.
pub fn match_tokens(
    metric: ArrayView2<'_, f32>,
    r: usize,
    protected: &[usize],
) -> Result<Matching> {
    let tokens = metric.nrows();
    if let Some(bad) = protected.iter().find(|p| **p >= tokens) {
        return Err(Error::invalid(format!("protected token {bad} of {tokens} tokens")));
    }
    // Those that are matched are looked at on the way.
    protected.iter().try_for_each(|token| check_row(*token, metric.row(*token)))?;
    let free =
        |parity: usize| (parity..tokens).step_by(2).filter(|t| !protected.contains(t)).collect();
    let r = r.min(tokens.saturating_sub(protected.len()) / 2);
    let mut matching = match_split(metric, r, &[free(0), free(1)])?;
    if !protected.is_empty() {
        // The paper's code keeps the class token first, and the distillation token first of the destinations.
        matching.unmerged.sort_unstable();
        matching.destinations.sort_unstable();
    }
    Ok(matching)
}

/// Matches given sources to given destinations; all other tokens stay alone.
fn match_split(
    metric: ArrayView2<'_, f32>,
    r: usize,
    [from, to]: &[Vec<usize>; 2],
) -> Result<Matching> {
    let tokens = metric.nrows();
    let best = nearest(metric.as_standard_layout().view(), from, to)?;
    let mut order: Vec<usize> = (0..from.len()).collect();
    order.sort_by(|a, b| best[*b].0.total_cmp(&best[*a].0));
    let r = if to.is_empty() { 0 } else { r.min(from.len()) };
    let merged: Vec<usize> = order[..r].iter().map(|i| from[*i]).collect();
    let into = order[..r].iter().map(|i| to[best[*i].1]).collect();
    let mut place = vec![Place::Alone; tokens];
    to.iter().for_each(|t| place[*t] = Place::Destination);
    from.iter().for_each(|t| place[*t] = Place::Source);
    let mut unmerged: Vec<usize> = order[r..].iter().map(|i| from[*i]).collect();
    let mut destinations = to.clone();
    for token in (0..tokens).filter(|t| place[*t] == Place::Alone) {
        if token % 2 == 0 { &mut unmerged } else { &mut destinations }.push(token);
    }
    Ok(Matching { tokens, merged, into, unmerged, destinations, dropped: Vec::new() })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Alone,
    Source,
    Destination,
}

/// Merges every token into one of every k-th: `tokens / k` are left. As in the paper's code, the last `tokens % k` tokens
/// are dropped.
///
/// # Errors
/// `InvalidArgument` for k of 0, or more than there are tokens; `Numerical` for a metric that is not finite.
pub fn kth_matching(metric: ArrayView2<'_, f32>, k: usize) -> Result<Matching> {
    let tokens = metric.nrows();
    if k == 0 || k > tokens {
        return Err(Error::invalid(format!(
            "k = {k} of {tokens} tokens; allowed are 1 to {tokens}"
        )));
    }
    let whole = tokens / k * k;
    (whole..tokens).try_for_each(|token| check_row(token, metric.row(token)))?;
    let (to, from): (Vec<_>, Vec<_>) = (0..whole).partition(|t| t % k == k - 1);
    let best = nearest(metric.as_standard_layout().view(), &from, &to)?;
    let into = best.iter().map(|(_, at)| to[*at]).collect();
    let dropped = (whole..tokens).collect();
    Ok(Matching { tokens, merged: from, into, unmerged: Vec::new(), destinations: to, dropped })
}
