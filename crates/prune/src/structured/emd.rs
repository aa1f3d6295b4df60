//! The transport problem, exactly, by the network simplex.

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// The least costly way to bring what sources have to where it is wanted: `[sources, targets]` of whole masses, whose rows
/// sum to `supply` and columns to `demand`, and whose sum of mass x cost is least (the earth mover's plan).
///
/// By the primal network simplex from a star of artificial arcs; bases stay strongly feasible (Cunningham, 1976), so that
/// it ends also where many steps move nothing. Sums of masses are exact.
///
/// ```
/// use tensorpress_prune::structured::transport_plan;
/// use tensorpress_tensor::ndarray::array;
///
/// // What both would like best has room for one and a half.
/// let plan = transport_plan(array![[0.0, 3.0], [1.0, 2.0]].view(), &[2, 2], &[3, 1])?;
/// assert_eq!(plan, array![[2, 0], [1, 1]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `ShapeMismatch` unless there is a cost for each pair; `InvalidArgument` unless supply and demand sum to the same, up to
/// 2⁵³; `Numerical` for a cost that is not finite.
pub fn transport_plan(
    cost: ArrayView2<'_, f64>,
    supply: &[u64],
    demand: &[u64],
) -> Result<Array2<u64>> {
    if cost.dim() != (supply.len(), demand.len()) {
        let (rows, cols) = cost.dim();
        return Err(Error::shape(format!(
            "costs {rows} x {cols} for {} sources and {} targets",
            supply.len(),
            demand.len()
        )));
    }
    let sum = |masses: &[u64]| masses.iter().try_fold(0u64, |sum, m| sum.checked_add(*m));
    match (sum(supply), sum(demand)) {
        (Some(a), Some(b)) if a == b && a <= 1 << 53 => {}
        _ => {
            return Err(Error::invalid(
                "masses: allowed are such that sum to the same, up to 2^53",
            ));
        }
    }
    if let Some(((i, j), c)) = cost.indexed_iter().find(|(_, c)| !c.is_finite()) {
        return Err(Error::numerical(format!("the cost of [{i}, {j}] is {c}")));
    }
    let mut tree = Tree::new(cost, supply, demand);
    let mut prices = Prices { next: 0, block: block(cost.len()) };
    while let Some((source, target)) = prices.entering(&tree) {
        tree.pivot(source, target);
    }
    let mut plan = Array2::zeros(cost.dim());
    for node in 0..tree.root {
        if let Some((source, target)) = tree.pair(node) {
            plan[[source, target]] = tree.flow[node];
        }
    }
    Ok(plan)
}

/// Arcs that are looked at before one enters.
fn block(arcs: usize) -> usize {
    ((arcs as f64).sqrt() as usize * 4).max(16)
}

/// Searches for arcs that lower the cost, block after block.
struct Prices {
    next: usize,
    block: usize,
}

impl Prices {
    /// The arc of the block that lowers the cost most; of the first block that has one.
    fn entering(&mut self, tree: &Tree<'_>) -> Option<(usize, usize)> {
        let (sources, targets) = tree.cost.dim();
        let (mut best, mut found) = (-tree.tolerance, None);
        for looked in 0..sources * targets {
            let (source, target) = (self.next / targets, self.next % targets);
            let reduced = tree.cost[[source, target]] - tree.potential[source]
                + tree.potential[sources + target];
            if reduced < best {
                (best, found) = (reduced, Some((source, target)));
            }
            self.next = (self.next + 1) % (sources * targets);
            if found.is_some() && (looked + 1) % self.block == 0 {
                break;
            }
        }
        found
    }
}

/// A spanning tree of sources, targets and a root, each with the arc to its parent.
struct Tree<'a> {
    cost: ArrayView2<'a, f64>,
    root: usize,
    parent: Vec<usize>,
    children: Vec<Vec<usize>>,
    depth: Vec<usize>,
    /// The arc to the parent leads up, to it.
    up: Vec<bool>,
    flow: Vec<u64>,
    /// Of the tree's arcs from a to b: cost = potential a - potential b.
    potential: Vec<f64>,
    /// Dearer than any way around.
    artificial: f64,
    tolerance: f64,
}

impl<'a> Tree<'a> {
    fn new(cost: ArrayView2<'a, f64>, supply: &[u64], demand: &[u64]) -> Self {
        let root = supply.len() + demand.len();
        let most = cost.iter().fold(0.0f64, |most, c| most.max(c.abs()));
        let artificial = (most + f64::MIN_POSITIVE) * (root + 1) as f64;
        // Arcs without flow lead up: the basis is strongly feasible.
        let up: Vec<bool> =
            supply.iter().map(|_| true).chain(demand.iter().map(|mass| *mass == 0)).collect();
        let potential =
            up.iter().map(|up| if *up { artificial } else { -artificial }).chain([0.0]).collect();
        let mut children = vec![Vec::new(); root + 1];
        children[root] = (0..root).collect();
        Self {
            cost,
            root,
            parent: vec![root; root],
            children,
            depth: (0..root).map(|_| 1).chain([0]).collect(),
            up,
            flow: supply.iter().chain(demand).copied().collect(),
            potential,
            artificial,
            tolerance: artificial * 1e-13,
        }
    }

    /// Source and target of the arc to a node's parent; none for an artificial one.
    fn pair(&self, node: usize) -> Option<(usize, usize)> {
        let (sources, parent) = (self.cost.nrows(), self.parent[node]);
        match parent == self.root {
            true => None,
            false => Some((node.min(parent), node.max(parent) - sources)),
        }
    }

    fn arc_cost(&self, node: usize) -> f64 {
        self.pair(node).map_or(self.artificial, |(source, target)| self.cost[[source, target]])
    }

    /// Brings an arc into the tree, and the one out that first runs empty.
    fn pivot(&mut self, source: usize, target: usize) {
        let target = self.cost.nrows() + target;
        let (mut a, mut b) = (source, target);
        while a != b {
            match self.depth[a] >= self.depth[b] {
                true => a = self.parent[a],
                false => b = self.parent[b],
            }
        }
        let apex = a;
        // Around the cycle, in the direction of the new arc: down from the apex to the source, and up from the target. Of
        // the arcs that run empty the last one leaves.
        let (mut least, mut leaving, mut below) = (u64::MAX, None, source);
        let mut node = source;
        while node != apex {
            if self.up[node] && self.flow[node] < least {
                (least, leaving, below) = (self.flow[node], Some(node), source);
            }
            node = self.parent[node];
        }
        node = target;
        while node != apex {
            if !self.up[node] && self.flow[node] <= least {
                (least, leaving, below) = (self.flow[node], Some(node), target);
            }
            node = self.parent[node];
        }
        let Some(leaving) = leaving else { return };
        node = source;
        while node != apex {
            self.flow[node] = match self.up[node] {
                true => self.flow[node] - least,
                false => self.flow[node] + least,
            };
            node = self.parent[node];
        }
        node = target;
        while node != apex {
            self.flow[node] = match self.up[node] {
                true => self.flow[node] + least,
                false => self.flow[node] - least,
            };
            node = self.parent[node];
        }
        let above = if below == source { target } else { source };
        self.hang(below, above, leaving, least, below == source);
    }

    /// Hangs the part of the tree between `below` and the arc above `leaving` under `above`: parents turn round.
    fn hang(&mut self, below: usize, above: usize, leaving: usize, flow: u64, up: bool) {
        let (mut node, mut parent, mut arc) = (below, above, (flow, up));
        loop {
            let (before, old) = (self.parent[node], (self.flow[node], self.up[node]));
            self.children[before].retain(|child| *child != node);
            self.parent[node] = parent;
            self.children[parent].push(node);
            (self.flow[node], self.up[node]) = arc;
            if node == leaving {
                break;
            }
            // The same arc, seen from its other end.
            (parent, node, arc) = (node, before, (old.0, !old.1));
        }
        let mut left = vec![below];
        while let Some(node) = left.pop() {
            let (parent, cost) = (self.parent[node], self.arc_cost(node));
            self.depth[node] = self.depth[parent] + 1;
            self.potential[node] =
                self.potential[parent] + if self.up[node] { cost } else { -cost };
            left.extend(&self.children[node]);
        }
    }
}
