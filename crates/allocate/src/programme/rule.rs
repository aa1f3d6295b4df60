/// What a weighted count of chosen levels has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    pub(super) terms: Vec<(usize, usize, i64)>,
    pub(super) relation: Relation,
    pub(super) limit: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    AtLeast,
    AtMost,
    Exactly,
}

impl Rule {
    /// At least `limit`, where each unit, level and weight counts the weight if the unit has that level. Those that are named
    /// more than once add up.
    #[must_use]
    pub fn at_least(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::AtLeast, limit }
    }

    /// At most `limit`.
    #[must_use]
    pub fn at_most(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::AtMost, limit }
    }

    /// `limit` exactly.
    #[must_use]
    pub fn exactly(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::Exactly, limit }
    }

    /// Whether choices keep it.
    #[must_use]
    pub fn holds(&self, choices: &[usize]) -> bool {
        let above = self.above(choices);
        match self.relation {
            Relation::AtLeast => above >= 0,
            Relation::AtMost => above <= 0,
            Relation::Exactly => above == 0,
        }
    }

    /// By how much the count is above the limit.
    pub(super) fn above(&self, choices: &[usize]) -> i128 {
        let counts = self.terms.iter().filter(|(unit, level, _)| choices.get(*unit) == Some(level));
        let sum: i128 = counts.map(|(_, _, weight)| i128::from(*weight)).sum();
        sum - i128::from(self.limit)
    }
}
