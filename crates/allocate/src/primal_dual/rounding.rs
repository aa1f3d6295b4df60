//! Whole counts within a budget, from real ones.

use tensorpress_tensor::Result;

/// Loss and cost of counts.
type Judge<'a> = &'a dyn Fn(&[f64]) -> Result<(f64, f64)>;

/// Whole counts no dearer than `budget`, with their loss and cost: the real ones rounded down, then raised one at a time where
/// that gains the most for its cost, then exchanged, one up and others down, while that gains. The least counts fit.
pub(crate) fn within(
    budget: f64,
    bounds: &[(u64, u64)],
    relaxed: &[f64],
    judge: Judge<'_>,
) -> Result<(Vec<u64>, f64, f64)> {
    // What is a hair below a whole number is one.
    let down =
        |(at, (low, high)): (&f64, &(u64, u64))| ((at + 1e-6).floor() as u64).clamp(*low, *high);
    let mut search = Search {
        budget,
        bounds,
        judge,
        counts: relaxed.iter().zip(bounds).map(down).collect(),
        loss: 0.0,
        cost: 0.0,
    };
    search.here()?;
    search.lower(None)?;
    if search.cost > budget {
        search.counts = bounds.iter().map(|(low, _)| *low).collect();
        search.here()?;
    }
    loop {
        while search.raise()? {}
        if !search.exchange()? {
            return Ok((search.counts, search.loss, search.cost));
        }
    }
}

struct Search<'a> {
    budget: f64,
    bounds: &'a [(u64, u64)],
    judge: Judge<'a>,
    counts: Vec<u64>,
    loss: f64,
    cost: f64,
}

impl Search<'_> {
    fn here(&mut self) -> Result<()> {
        (self.loss, self.cost) = self.judge(&self.counts)?;
        Ok(())
    }

    fn judge(&self, counts: &[u64]) -> Result<(f64, f64)> {
        (self.judge)(&counts.iter().map(|count| *count as f64).collect::<Vec<f64>>())
    }

    /// The counts with one of them moved by one, where its bounds allow that.
    fn moved(&self, counts: &[u64], unit: usize, up: bool) -> Option<Vec<u64>> {
        let (low, high) = self.bounds[unit];
        let mut moved = counts.to_vec();
        moved[unit] = match up {
            true => counts[unit].checked_add(1)?,
            false => counts[unit].checked_sub(1)?,
        };
        (low..=high).contains(&moved[unit]).then_some(moved)
    }

    /// One count up, if one fits and gains: the one that gains the most for its cost.
    fn raise(&mut self) -> Result<bool> {
        let mut best: Option<(f64, Vec<u64>, f64, f64)> = None;
        for unit in 0..self.counts.len() {
            let Some(counts) = self.moved(&self.counts, unit, true) else { continue };
            let (loss, cost) = self.judge(&counts)?;
            let rate = (loss - self.loss) / (cost - self.cost).max(f64::MIN_POSITIVE);
            let gains = cost <= self.budget && loss < self.loss;
            if gains && best.as_ref().is_none_or(|(least, ..)| rate < *least) {
                best = Some((rate, counts, loss, cost));
            }
        }
        let Some((_, counts, loss, cost)) = best else { return Ok(false) };
        (self.counts, self.loss, self.cost) = (counts, loss, cost);
        Ok(true)
    }

    /// Counts down, but for one, that lose the least for what they save, until the rest fits or none saves anything.
    fn lower(&mut self, but: Option<usize>) -> Result<()> {
        while self.cost > self.budget {
            let mut best: Option<(f64, Vec<u64>, f64, f64)> = None;
            for unit in (0..self.counts.len()).filter(|unit| Some(*unit) != but) {
                let Some(counts) = self.moved(&self.counts, unit, false) else { continue };
                let (loss, cost) = self.judge(&counts)?;
                let rate = (loss - self.loss) / (self.cost - cost).max(f64::MIN_POSITIVE);
                if cost < self.cost && best.as_ref().is_none_or(|(least, ..)| rate < *least) {
                    best = Some((rate, counts, loss, cost));
                }
            }
            let Some((_, counts, loss, cost)) = best else { break };
            (self.counts, self.loss, self.cost) = (counts, loss, cost);
        }
        Ok(())
    }

    /// The exchange that gains the most: one up, and another down, or as many as it takes.
    fn exchange(&mut self) -> Result<bool> {
        let mut best: Option<(Vec<u64>, f64, f64)> = None;
        let mut consider = |counts: &[u64], loss: f64, cost: f64| {
            let least = best.as_ref().map_or(self.loss, |(_, loss, _)| *loss);
            if cost <= self.budget && loss < least {
                best = Some((counts.to_vec(), loss, cost));
            }
        };
        for up in 0..self.counts.len() {
            let Some(raised) = self.moved(&self.counts, up, true) else { continue };
            for down in (0..self.counts.len()).filter(|down| *down != up) {
                let Some(counts) = self.moved(&raised, down, false) else { continue };
                let (loss, cost) = self.judge(&counts)?;
                consider(&counts, loss, cost);
            }
            let mut chain = Search { counts: raised, ..*self };
            chain.here()?;
            chain.lower(Some(up))?;
            consider(&chain.counts, chain.loss, chain.cost);
        }
        let Some((counts, loss, cost)) = best else { return Ok(false) };
        (self.counts, self.loss, self.cost) = (counts, loss, cost);
        Ok(true)
    }
}
