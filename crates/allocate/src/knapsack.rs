//! The multiple-choice knapsack: of each unit one item, least value within a limit of weight.

/// What a choice weighs and what it is worth; less is better.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    pub(crate) weight: f64,
    pub(crate) value: f64,
    /// Its place among the choices of its unit.
    pub(crate) index: usize,
}

/// The items that no other beats in both, by rising weight and falling value.
pub(crate) fn undominated(mut items: Vec<Item>) -> Vec<Item> {
    items.sort_by(|a, b| a.weight.total_cmp(&b.weight).then(a.value.total_cmp(&b.value)));
    let mut kept: Vec<Item> = Vec::with_capacity(items.len());
    for item in items {
        if kept.last().is_none_or(|last| item.value < last.value) {
            kept.push(item);
        }
    }
    kept
}

/// Places of the lower convex hull of undominated items.
fn hull(items: &[Item]) -> Vec<usize> {
    let slope = |a: usize, b: usize| {
        (items[b].value - items[a].value) / (items[b].weight - items[a].weight)
    };
    let mut hull: Vec<usize> = Vec::with_capacity(items.len());
    for at in 0..items.len() {
        while let [.., before, last] = hull[..] {
            if slope(before, last) < slope(last, at) {
                break;
            }
            hull.pop();
        }
        hull.push(at);
    }
    hull
}

/// What Lagrange's multiplier finds.
pub(crate) struct Relaxed {
    /// The item of each unit, as its place among the undominated ones.
    pub(crate) chosen: Vec<usize>,
    /// Value that a unit of weight is worth where the limit is met; 0 where all have their best.
    pub(crate) price: f64,
    /// Nothing within the limit has a lower value.
    pub(crate) bound: f64,
}

/// From one item of a unit's hull to the next.
pub(crate) struct Step {
    pub(crate) unit: usize,
    /// Place among the undominated items.
    pub(crate) to: usize,
    weight: f64,
    value: f64,
}

/// All steps along the hulls, the steepest first.
pub(crate) fn steps(units: &[Vec<Item>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (unit, items) in units.iter().enumerate() {
        steps.extend(hull(items).windows(2).map(|pair| Step {
            unit,
            to: pair[1],
            weight: items[pair[1]].weight - items[pair[0]].weight,
            value: items[pair[0]].value - items[pair[1]].value,
        }));
    }
    // Steps of a unit are ever less steep, so that they keep their order.
    steps.sort_by(|a, b| (b.value / b.weight).total_cmp(&(a.value / a.weight)));
    steps
}

/// Steps along the hulls, the steepest first, until the next does not fit; then whatever still does.
///
/// Without fractions the steps up to there are the optimum for what they weigh, and with a fraction of the next they are
/// that of all mixtures: the bound. `limit` is at least the weight of the lightest items.
pub(crate) fn relax(units: &[Vec<Item>], limit: f64) -> Relaxed {
    let steps = steps(units);
    let mut chosen = vec![0; units.len()];
    let mut weight: f64 = units.iter().map(|items| items[0].weight).sum();
    let mut value: f64 = units.iter().map(|items| items[0].value).sum();
    let mut split = None;
    for step in &steps {
        if weight + step.weight > limit {
            split = Some(step);
            break;
        }
        weight += step.weight;
        value -= step.value;
        chosen[step.unit] = step.to;
    }
    let price = split.map_or(0.0, |step| step.value / step.weight);
    let bound = value - price * (limit - weight).max(0.0);
    fill(units, &mut chosen, limit - weight);
    Relaxed { chosen, price, bound }
}

/// Spends what is left on the changes of single units that gain the most, as long as any fits.
fn fill(units: &[Vec<Item>], chosen: &mut [usize], mut left: f64) {
    loop {
        let mut best: Option<(f64, f64, usize, usize)> = None;
        for (unit, items) in units.iter().enumerate() {
            let now = items[chosen[unit]];
            // Values fall with weights: the heaviest that fits is the best of the unit.
            let fits = items.partition_point(|item| item.weight - now.weight <= left);
            if fits > chosen[unit] + 1 {
                let item = items[fits - 1];
                let gain = now.value - item.value;
                if best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, item.weight - now.weight, unit, fits - 1));
                }
            }
        }
        let Some((_, weight, unit, item)) = best else { return };
        left -= weight;
        chosen[unit] = item;
    }
}

/// A partial choice: items of the units so far.
#[derive(Clone, Copy)]
struct State {
    weight: f64,
    value: f64,
    /// How much worse than the best for the price.
    excess: f64,
    item: u32,
    parent: u32,
}

/// The best choice of items, and whether it is proven to be.
///
/// Units come one after another; of the partial choices only those go on that no other beats in both weight and value, and
/// that could still come below the best that is known: with every unit of weight paid for at Lagrange's price, what they
/// are worse by adds up. If more than `most` are left, those that look best are kept, and nothing is proven any more.
pub(crate) fn solve(
    units: &[Vec<Item>],
    limit: f64,
    relaxed: &Relaxed,
    most: usize,
) -> (Vec<usize>, bool) {
    let Relaxed { chosen, price, bound } = relaxed;
    let known: f64 = units.iter().zip(chosen).map(|(items, at)| items[*at].value).sum();
    let scale: f64 = units.iter().map(|items| items[0].value.abs()).sum();
    // What is worse by more cannot win; a little more, as sums are rounded.
    let gap = known - bound + 1e-12 * scale;
    let reduced = |items: &[Item]| -> Vec<f64> {
        // Above the lightest, as a price times all of a large weight has no digits left.
        let paid = |item: &Item| item.value + price * (item.weight - items[0].weight);
        let paid: Vec<f64> = items.iter().map(paid).collect();
        let least = paid.iter().copied().fold(f64::INFINITY, f64::min);
        paid.iter().map(|paid| paid - least).collect()
    };
    struct Open {
        unit: usize,
        /// Places of the items that can be part of the optimum, with what they are worse by.
        items: Vec<(usize, f64)>,
    }
    let mut open: Vec<Open> = Vec::with_capacity(units.len());
    for (unit, items) in units.iter().enumerate() {
        let excess = reduced(items).into_iter().enumerate();
        open.push(Open { unit, items: excess.filter(|(_, excess)| *excess <= gap).collect() });
    }
    // What is all but decided comes first, and multiplies nothing.
    open.sort_by_key(|open| open.items.len());
    let extreme = |open: &Open, last: bool| {
        let at = if last { open.items.last() } else { open.items.first() };
        at.map_or(0.0, |(at, _)| units[open.unit][*at].weight)
    };
    // What the units after each weigh at least, or at most.
    let after = |last: bool| -> Vec<f64> {
        let mut sum = 0.0;
        let later = |open: &Open| {
            let later = sum;
            sum += extreme(open, last);
            later
        };
        let mut after: Vec<f64> = open.iter().rev().map(later).collect();
        after.reverse();
        after
    };
    let (lightest, heaviest) = (after(false), after(true));
    let mut proven = true;
    let mut trail: Vec<Vec<(u32, u32)>> = Vec::with_capacity(units.len());
    let mut states = vec![State { weight: 0.0, value: 0.0, excess: 0.0, item: 0, parent: 0 }];
    for (step, Open { unit, items }) in open.iter().enumerate() {
        let mut next = Vec::with_capacity(states.len() * items.len());
        for (at, excess) in items {
            let item = units[*unit][*at];
            next.extend(states.iter().enumerate().filter_map(|(parent, state)| {
                let state = State {
                    weight: state.weight + item.weight,
                    value: state.value + item.value,
                    excess: state.excess + excess,
                    item: *at as u32,
                    parent: parent as u32,
                };
                // Weight that can no longer be used is paid for as well.
                let unused = (limit - state.weight - heaviest[step]).max(0.0) * price;
                let possible =
                    state.weight + lightest[step] <= limit && state.excess + unused <= gap;
                possible.then_some(state)
            }));
        }
        // Sorted runs, one an item, which a stable sort merges.
        next.sort_by(|a, b| a.weight.total_cmp(&b.weight).then(a.value.total_cmp(&b.value)));
        states.clear();
        for state in next {
            if states.last().is_none_or(|last: &State| state.value < last.value) {
                states.push(state);
            }
        }
        if states.len() > most {
            proven = false;
            thin(&mut states, most);
        }
        trail.push(states.iter().map(|state| (state.item, state.parent)).collect());
    }
    // The heaviest is the best.
    let best = states.last().filter(|best| best.value < known);
    let mut choices = chosen.clone();
    if best.is_some() {
        let mut at = states.len() - 1;
        for (Open { unit, .. }, states) in open.iter().zip(&trail).rev() {
            let (item, parent) = states[at];
            choices[*unit] = item as usize;
            at = parent as usize;
        }
    }
    (choices, proven)
}

/// Of each run of neighbours the one that looks best, and the lightest of all, which fits whatever comes.
fn thin(states: &mut Vec<State>, most: usize) {
    let run = states.len().div_ceil(most.max(2) - 1);
    let lightest = states[0];
    let mut kept = vec![lightest];
    kept.extend(
        states[1..]
            .chunks(run)
            .filter_map(|run| run.iter().copied().min_by(|a, b| a.excess.total_cmp(&b.excess))),
    );
    *states = kept;
}
