//! What a method asks for.

use std::any::TypeId;
use std::borrow::Cow;
use std::fmt;

use super::statistic::{Ask, Erased, Kind, Statistic, Stream};
use super::{Gram, Moments, SampledRows, Supply};

/// The statistics a method wants: a set of keys, the types of the statistics ([`Gram`], [`Moments`], one of a user's
/// own), and for some of them an amount.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Needs {
    wanted: Cow<'static, [Need]>,
    supplied: Cow<'static, [Supply]>,
    /// X as the layers before it in its own transformer block will make it, once they are compressed ("true sequential"
    /// in the official code of GPTQ); else as they made it, behind blocks that are compressed. Small errors are made
    /// good one after another; what removes much does better on inputs that are not yet far off.
    pub true_sequential: bool,
}

/// One statistic, and how much of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Need {
    kind: Kind,
    amount: usize,
}

impl fmt::Debug for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.kind.what(), self.amount)
    }
}

/// The set of one statistic, as a constant.
struct Only<S>(std::marker::PhantomData<S>);

impl<S: Statistic> Only<S> {
    const WANTED: &'static [Need] = &[Need { kind: Kind::of::<S>(), amount: 1 }];
}

impl Needs {
    /// Nothing: the method looks at the weight alone.
    pub const NONE: Self =
        Self { wanted: Cow::Borrowed(&[]), supplied: Cow::Borrowed(&[]), true_sequential: false };
    /// The Gram matrix.
    pub const GRAM: Self = Self::of::<Gram>();
    /// Moments of every channel.
    pub const MOMENTS: Self = Self::of::<Moments>();

    /// This statistic.
    pub const fn of<S: Statistic>() -> Self {
        Self {
            wanted: Cow::Borrowed(Only::<S>::WANTED),
            supplied: Cow::Borrowed(&[]),
            true_sequential: false,
        }
    }

    /// This much of a statistic; of several amounts asked for the largest counts. Nothing, if 0.
    pub fn some<S: Statistic>(amount: usize) -> Self {
        let wanted = (amount > 0).then(|| Need { kind: Kind::of::<S>(), amount });
        Self { wanted: wanted.into_iter().collect(), ..Self::NONE }
    }

    /// Up to `rows` sampled rows.
    pub fn samples(rows: usize) -> Self {
        Self::some::<SampledRows>(rows)
    }

    /// What only the caller knows of each matrix: gradients, a Fisher diagonal.
    pub fn supplied(supply: Supply) -> Self {
        Self { supplied: vec![supply].into(), ..Self::NONE }
    }

    /// The same, of inputs as compressed layers make them.
    pub fn true_sequentially(self) -> Self {
        Self { true_sequential: true, ..self }
    }

    /// What serves both.
    pub fn union(mut self, other: Self) -> Self {
        self.true_sequential |= other.true_sequential;
        for need in other.wanted.iter() {
            match self.wanted.iter().position(|mine| mine.kind == need.kind) {
                Some(at) if self.wanted[at].amount >= need.amount => {}
                Some(at) => self.wanted.to_mut()[at].amount = need.amount,
                None => self.wanted.to_mut().push(*need),
            }
        }
        for supply in other.supplied.iter() {
            if !self.supplied.contains(supply) {
                self.supplied.to_mut().push(*supply);
            }
        }
        self
    }

    /// This statistic is wanted.
    #[must_use]
    pub fn has<S: Statistic>(&self) -> bool {
        self.amount::<S>() > 0
    }

    /// How much of this statistic is wanted: 0 if none, 1 for those of which there is no more or less.
    #[must_use]
    pub fn amount<S: Statistic>(&self) -> usize {
        let id = TypeId::of::<S>();
        self.wanted.iter().find(|need| need.kind.id() == id).map_or(0, |need| need.amount)
    }

    /// Some statistic is wanted by both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let theirs = |need: &Need| other.wanted.iter().any(|other| other.kind == need.kind);
        self.wanted.iter().any(theirs)
    }

    /// Some statistic wanted is of this stream.
    #[must_use]
    pub fn reads(&self, stream: Stream) -> bool {
        self.wanted.iter().any(|need| need.kind.reads(stream))
    }

    /// What the caller must supply.
    #[must_use]
    pub fn of_caller(&self) -> &[Supply] {
        &self.supplied
    }

    /// Nothing is wanted of the stream of activations.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.wanted.is_empty()
    }

    /// About the bytes that all of it holds while it is gathered of an input of this many channels.
    #[must_use]
    pub fn bytes(&self, channels: usize) -> u64 {
        let ask = |need: &Need| Ask { channels, amount: need.amount, seed: 0 };
        self.wanted.iter().map(|need| need.kind.bytes(ask(need))).sum()
    }

    /// Something to gather each with.
    pub(super) fn begin(&self, ask: Ask) -> Vec<(Kind, Box<dyn Erased>)> {
        let begin = |need: &Need| (need.kind, need.kind.begin(Ask { amount: need.amount, ..ask }));
        self.wanted.iter().map(begin).collect()
    }
}

/// Sets are equal whatever the order in which they were united.
impl PartialEq for Needs {
    fn eq(&self, other: &Self) -> bool {
        let within = |a: &Self, b: &Self| {
            a.wanted.iter().all(|need| b.wanted.contains(need))
                && a.supplied.iter().all(|supply| b.supplied.contains(supply))
        };
        self.true_sequential == other.true_sequential && within(self, other) && within(other, self)
    }
}

impl Eq for Needs {}

impl std::ops::BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}
