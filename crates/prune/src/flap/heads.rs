use tensorpress_tensor::{Error, Result};

use super::saliency::lowest;

/// Heads of an attention: query heads, in as many consecutive groups of one size as there are key and value heads.
///
/// What remains must be such an attention too. So whole groups go, or as many query heads in every group that stays, or
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadLayout {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// How heads go: whole groups, and query heads in each group that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HeadCut {
    groups: usize,
    per_group: usize,
}

impl HeadLayout {
    /// A layout.
    ///
    /// # Errors
    /// `InvalidArgument` unless all are 1 and more and `kv_heads` divides `heads`.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        let layout = Self { heads, kv_heads, head_dim };
        if heads > 0 && kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads) {
            return Ok(layout);
        }
        Err(Error::invalid(format!(
            "{heads} heads of width {head_dim}, {kv_heads} for keys and values: allowed are 1 and more, the second \
             a divisor of the first"
        )))
    }

    /// Query heads of a group.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Mean of the values of each head's channels.
    pub(super) fn head_means(&self, channels: &[f64]) -> Vec<f64> {
        let heads = channels.chunks_exact(self.head_dim);
        heads.map(|head| head.iter().sum::<f64>() / self.head_dim as f64).collect()
    }

    /// The cut that removes most heads, but no more than `number`, from every block alike; of those that remove as
    /// many, the one that removes the smallest share of the blocks' saliency (sum over the blocks), and of those the one
    /// that removes more groups. `blocks` has the scores of each block's heads.
    pub(super) fn closest(&self, blocks: &[&[f64]], number: usize) -> HeadCut {
        let group = self.group();
        let mut best = (0, 0.0, HeadCut::default());
        for groups in (0..self.kv_heads).rev() {
            for per_group in 0..group {
                let cut = HeadCut { groups, per_group };
                let removed = self.removed(cut);
                if removed == 0 || removed > number || removed < best.0 {
                    continue;
                }
                let lost = blocks.iter().map(|scores| self.share(scores, cut)).sum::<f64>();
                if removed > best.0 || lost < best.1 {
                    best = (removed, lost, cut);
                }
            }
        }
        best.2
    }

    fn removed(&self, cut: HeadCut) -> usize {
        self.heads - (self.kv_heads - cut.groups) * (self.group() - cut.per_group)
    }

    /// The share of the saliency that goes with a cut.
    fn share(&self, scores: &[f64], cut: HeadCut) -> f64 {
        let total: f64 = scores.iter().sum();
        let (heads, _) = self.kept(scores, cut);
        let kept: f64 = heads.iter().map(|head| scores[*head]).sum();
        if total > 0.0 { 1.0 - kept / total } else { 0.0 }
    }

    /// Query heads and key/value heads that stay: in each group the highest scores, of the groups those whose staying
    /// heads have the highest sums.
    pub(super) fn kept(&self, scores: &[f64], cut: HeadCut) -> (Vec<usize>, Vec<usize>) {
        let group = self.group();
        let stay: Vec<Vec<usize>> = (0..self.kv_heads)
            .map(|g| {
                let gone = lowest(&scores[g * group..(g + 1) * group], cut.per_group);
                (0..group).filter(|i| !gone[*i]).map(|i| g * group + i).collect()
            })
            .collect();
        let sums: Vec<f64> =
            stay.iter().map(|heads| heads.iter().map(|head| scores[*head]).sum()).collect();
        let gone = lowest(&sums, cut.groups);
        let kv_heads: Vec<usize> = (0..self.kv_heads).filter(|g| !gone[*g]).collect();
        (kv_heads.iter().flat_map(|g| stay[*g].clone()).collect(), kv_heads)
    }
}
