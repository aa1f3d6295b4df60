//! What the stages of all policies share: a budget, and what always stays.

use std::sync::Arc;

use tensorpress_tensor::stage::{Auto, Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::Policy;
use crate::budget::{Budget, Layers, Rule};
use crate::rope::Rope;
use crate::score::Score;
use crate::stage::{KvModel, KvPart, KvRole};

/// The policy of a paper, and its score, whose knobs can still be turned.
#[derive(Debug, Clone)]
pub(super) struct Paper<S> {
    policy: Policy,
    pub(super) score: S,
    recent: Auto<usize>,
    /// Newest tokens that always stay where nothing else is said, as the score has it.
    own_recent: Option<fn(&S) -> usize>,
    /// Where nothing is said, they are a share of the budget.
    shares: bool,
    given: Given,
}

/// One of three ways to say how much stays.
#[derive(Debug, Clone, Copy, Default)]
struct Given {
    keep: Option<f64>,
    tokens: Option<usize>,
    bytes: Option<u64>,
}

/// Stands for a budget that a recipe must give.
pub(super) const UNSAID: Budget = Budget::Keep(1.0);

impl<S> Paper<S> {
    pub(super) fn new(policy: Policy, score: S) -> Self {
        let (recent, given) = (Auto::Auto, Given::default());
        let shares = policy.recent_share > 0.0;
        Self { policy, score, recent, own_recent: None, shares, given }
    }

    /// The score says how many of the newest tokens stay.
    pub(super) fn with_own_recent(mut self, recent: fn(&S) -> usize) -> Self {
        self.own_recent = Some(recent);
        self
    }

    pub(super) fn sinks(&self) -> usize {
        self.policy.sinks
    }

    pub(super) fn recent(&self) -> usize {
        self.policy.recent
    }

    /// The policy with another score.
    pub(super) fn with_score(&self, score: Arc<dyn Score>) -> Policy {
        Policy { score, ..self.policy.clone() }
    }
}

impl Given {
    fn budget(self) -> Result<Budget> {
        match (self.keep, self.tokens, self.bytes) {
            (Some(keep), None, None) => Ok(Budget::Keep(keep)),
            (None, Some(tokens), None) => Ok(Budget::Tokens(tokens)),
            (None, None, Some(bytes)) => Ok(Budget::Bytes(bytes)),
            (keep, tokens, bytes) => {
                let given = [
                    ("keep", keep.is_some()),
                    ("tokens", tokens.is_some()),
                    ("bytes", bytes.is_some()),
                ];
                let given: Vec<&str> =
                    given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
                let given = if given.is_empty() { "none".into() } else { given.join(" and ") };
                let message =
                    format!("budget = {given}: exactly one of keep, tokens and bytes is allowed");
                Err(Error::invalid(message))
            }
        }
    }
}

/// Names of rules.
pub(super) const RULES: [(&str, Rule); 2] =
    [("authors", Rule::Authors), ("kvpress", Rule::Kvpress)];

const MOST: i64 = 1 << 40;

impl<S: Knobs> Knobs for Paper<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let given = &mut self.given;
        keys.optional_float("keep", &mut given.keep, 0.0..=1.0, "share of the tokens that stays")?;
        keys.optional("tokens", &mut given.tokens, 0..=MOST, "tokens of a head that stay")?;
        keys.optional("bytes", &mut given.bytes, 0..=MOST, "bytes of a layer that stay")?;
        self.score.knobs(keys)?;
        if let Layers::Pyramid { beta, rule, .. } = &mut self.policy.layers {
            let about = "how much more the first layer holds than the last";
            keys.float("beta", beta, 1.0..=1e6, about)?;
            keys.choice("rule", rule, &RULES, "whose arithmetic spreads the budget")?;
        }
        let policy = &mut self.policy;
        keys.int("sinks", &mut policy.sinks, 0..=MOST, "first tokens that always stay")?;
        let own = self.own_recent.map_or(policy.recent, |of| of(&self.score));
        keys.auto("recent", &mut self.recent, own, 0..=MOST, "newest tokens that always stay")?;
        policy.recent = self.recent.or(own);
        if self.shares {
            let about =
                "share of what stays that the newest tokens make up, unless `recent` says how many";
            let (number, share) = (keys.peek("recent"), keys.peek("recent_share"));
            if let (Some(number), Some(share)) = (number, share) {
                let both = format!("recent = {number} and recent_share = {share}");
                return Err(Error::invalid(format!("{both}: allowed is one of them")));
            }
            keys.float("recent_share", &mut policy.recent_share, 0.0..=1.0, about)?;
            if number.is_some() {
                policy.recent_share = 0.0;
            }
        }
        keys.int("stride", &mut policy.stride, 1..=MOST, "tokens that go at once")?;
        if let Layers::Pyramid { window, .. } = &mut policy.layers {
            *window = own;
        }
        Ok(())
    }
}

/// The stage of a paper whose score is ready as it is.
pub(super) fn row<S: Score + Knobs + Clone + 'static>(
    name: &'static str,
    about: &'static str,
    default: impl Fn() -> Paper<S> + Send + Sync + 'static,
) -> Row<KvPart> {
    row_with(name, about, default, |paper, _| Ok(Arc::new(paper.score.clone())))
}

/// Makes the score for a model.
type MakeScore<S> = fn(&Paper<S>, &KvModel) -> Result<Arc<dyn Score>>;

/// The stage of a paper whose score depends on the model.
pub(super) fn row_with<S: Knobs + Send + Sync + 'static>(
    name: &'static str,
    about: &'static str,
    default: impl Fn() -> Paper<S> + Send + Sync + 'static,
    score: MakeScore<S>,
) -> Row<KvPart> {
    row_made(name, about, default, move |paper, model| Ok(paper.with_score(score(paper, model)?)))
}

/// The stage of a paper that is more than a score: `make` gives the policy, within the budget of the paper's own.
pub(super) fn row_made<S: Knobs + Send + Sync + 'static>(
    name: &'static str,
    about: &'static str,
    default: impl Fn() -> Paper<S> + Send + Sync + 'static,
    make: impl Fn(&Paper<S>, &KvModel) -> Result<Policy> + Copy + Send + Sync + 'static,
) -> Row<KvPart> {
    let build = move |mut paper: Paper<S>, _| {
        let named = move |e: Error| Error::new(e.kind(), format!("{name}: {}", e.message()));
        paper.policy.budget = paper.given.budget().map_err(named)?;
        let policy = move |model: &KvModel| {
            let policy = make(&paper, model)?;
            policy.check().map_err(named)?;
            Ok(policy)
        };
        Ok(KvPart::Policy(Box::new(policy)))
    };
    Row::new(name, KvRole::Policy, about, default, build)
}

/// A score before the model's rotary embedding is known.
#[derive(Debug, Clone)]
pub(super) struct Turned<S> {
    theta: Option<f64>,
    pub(super) score: S,
}

/// Of a model that is not known.
const THETA: f64 = 1e4;

impl<S> Turned<S> {
    pub(super) fn new(score: S) -> Self {
        Self { theta: None, score }
    }

    /// An embedding that stands for the model's.
    pub(super) fn any() -> Rope {
        Rope::new(2, THETA).expect("an even number of channels")
    }

    pub(super) fn theta(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about =
            "of the rotary embedding, in the place of the model's (of a model not known: 10000)";
        keys.optional_float("theta", &mut self.theta, 0.0..=1e12, about)
    }

    pub(super) fn rope(&self, model: &KvModel) -> Result<Rope> {
        match (&model.rope, self.theta) {
            (Some(rope), None) => Ok(rope.clone()),
            (_, theta) => Rope::new(model.head_dim, theta.unwrap_or(THETA)),
        }
    }
}
