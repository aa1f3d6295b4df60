//! The path through a graph of layers that loses least within a budget: the core of every programme whose choices meet
//! their neighbours (segments of a depth, counts of tokens from layer to layer).

use tensorpress_tensor::{Error, Result};

use crate::table::{MOST, check_least};

/// A way from one node to a later one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) cost: u64,
    pub(crate) loss: f64,
}

/// More partial paths than these are not kept: they are 768 MiB.
const STATES: usize = 1 << 25;

/// A path, its cost and loss.
#[derive(Clone)]
struct Path {
    edges: Vec<usize>,
    cost: u64,
    loss: f64,
}

/// Nodes in order, edges sorted by where they begin.
struct Graph<'a> {
    edges: &'a [Edge],
    /// Edges of each node, as places among `edges`.
    leaving: Vec<Vec<usize>>,
}

/// Places of the edges of the path from node 0 to the last that loses least and costs no more than `budget`.
///
/// # Errors
/// `InvalidArgument` if no path ends, even the cheapest costs more, or costs add up to more than 2⁵³; `Numerical` for a
/// loss that is no finite number; `Unsupported` where costs have too little in common to keep all that could win.
pub(crate) fn best(nodes: usize, edges: &[Edge], budget: u64) -> Result<Vec<usize>> {
    let mut leaving = vec![Vec::new(); nodes];
    for (at, edge) in edges.iter().enumerate() {
        if !edge.loss.is_finite() {
            return Err(Error::numerical(format!("a loss is {}", edge.loss)));
        }
        leaving[edge.from].push(at);
    }
    let graph = Graph { edges, leaving };
    let heavy = graph.behind(|edge, behind: u64| edge.cost.saturating_add(behind), |a, b| a > b);
    if heavy.first().copied().flatten().is_some_and(|(cost, _)| cost > MOST) {
        return Err(Error::invalid("costs add up to more than 2^53"));
    }
    let light = graph.behind(
        |edge, (cost, loss): (u64, f64)| (edge.cost.saturating_add(cost), edge.loss + loss),
        |a, b| a < b,
    );
    let Some(((least, _), _)) = light.first().copied().flatten() else {
        return Err(Error::invalid("no choice leads from the first layer to the last"));
    };
    check_least(least, budget)?;
    let cheapest = graph.path(&light).edges;
    // From here on costs are what a path takes above the cheapest, as a price times all of a large cost has no digits left.
    // (What no path from the first node meets may have any cost: sums are saturating.)
    let above = |edge: &Edge| match (light[edge.from], light[edge.to]) {
        (Some(((from, _), _)), Some(((to, _), _))) => {
            Edge { cost: edge.cost.saturating_add(to).saturating_sub(from), ..*edge }
        }
        _ => *edge,
    };
    let edges: Vec<Edge> = edges.iter().map(above).collect();
    let (graph, budget) = (Graph { edges: &edges, leaving: graph.leaving }, budget - least);
    let known = graph.walk(cheapest);
    // The best of all, if it fits.
    let free = graph.path(&graph.priced(0.0));
    if free.cost <= budget {
        return Ok(free.edges);
    }
    let (known, price) = graph.relax(known, free, budget);
    graph.search(budget, known, price)
}

/// For each node the best that can be behind it, and the edge that leads there.
type Behind<T> = Vec<Option<(T, usize)>>;

impl Graph<'_> {
    fn behind<T: Copy + Default>(
        &self,
        add: impl Fn(&Edge, T) -> T,
        better: impl Fn(&T, &T) -> bool,
    ) -> Behind<T> {
        let mut behind: Behind<T> = vec![None; self.leaving.len()];
        if let Some(end) = behind.last_mut() {
            *end = Some((T::default(), usize::MAX));
        }
        for node in (0..self.leaving.len().saturating_sub(1)).rev() {
            for at in &self.leaving[node] {
                let edge = &self.edges[*at];
                let Some((rest, _)) = behind[edge.to] else { continue };
                let sum = add(edge, rest);
                if behind[node].is_none_or(|(best, _)| better(&sum, &best)) {
                    behind[node] = Some((sum, *at));
                }
            }
        }
        behind
    }

    /// With every unit of cost paid for at a price; the cheaper of equals.
    fn priced(&self, price: f64) -> Behind<(f64, u64)> {
        self.behind(
            |edge, (sum, cost)| {
                (edge.loss + price * edge.cost as f64 + sum, edge.cost.saturating_add(cost))
            },
            |a, b| a < b,
        )
    }

    fn path<T: Copy>(&self, behind: &Behind<T>) -> Path {
        let (mut edges, mut node) = (Vec::new(), 0);
        while node + 1 < behind.len() {
            let Some((_, at)) = behind[node] else { break };
            edges.push(at);
            node = self.edges[at].to;
        }
        self.walk(edges)
    }

    fn walk(&self, edges: Vec<usize>) -> Path {
        let cost = edges.iter().map(|at| self.edges[*at].cost).sum();
        let loss = edges.iter().map(|at| self.edges[*at].loss).sum();
        Path { edges, cost, loss }
    }

    /// The best path that fits of those that a price finds, and the price at which it was found, from one path that fits and
    /// one that does not.
    fn relax(&self, mut fits: Path, mut dear: Path, budget: u64) -> (Path, f64) {
        let mut best = fits.clone();
        let mut price = 0.0;
        for _ in 0..100 {
            // The price at which both are as good; a better one is below their line.
            price = ((fits.loss - dear.loss) / (dear.cost - fits.cost) as f64).max(0.0);
            let paid = |path: &Path| path.loss + price * path.cost as f64;
            let found = self.path(&self.priced(price));
            if paid(&found) >= paid(&fits).min(paid(&dear)) - 1e-12 * paid(&fits).abs() {
                break;
            }
            if found.cost > budget {
                dear = found;
            } else {
                if found.loss < best.loss {
                    best = found.clone();
                }
                fits = found;
            }
        }
        (best, price)
    }

    /// All partial paths that no other to the same node beats in both, and that could still beat the best that is known.
    fn search(&self, budget: u64, known: Path, price: f64) -> Result<Vec<usize>> {
        #[derive(Clone, Copy)]
        struct State {
            cost: u64,
            loss: f64,
            edge: u32,
            parent: u32,
        }
        let behind = self.priced(price);
        // Sums are rounded.
        let most = self.edges.iter().map(|edge| edge.loss.abs()).fold(0.0, f64::max);
        let limit = known.loss + price * budget as f64 + 1e-12 * most * self.leaving.len() as f64;
        let mut states: Vec<Vec<State>> = vec![Vec::new(); self.leaving.len()];
        states[0].push(State { cost: 0, loss: 0.0, edge: u32::MAX, parent: u32::MAX });
        let mut kept = 1;
        for node in 0..self.leaving.len() {
            let mut here = std::mem::take(&mut states[node]);
            here.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
            kept -= here.len();
            let mut least = f64::INFINITY;
            here.retain(|state| {
                let better = state.loss < least;
                least = least.min(state.loss);
                better
            });
            kept += here.len();
            for at in &self.leaving[node] {
                let edge = &self.edges[*at];
                let Some(((rest, _), _)) = behind[edge.to] else { continue };
                let before = states[edge.to].len();
                states[edge.to].extend(here.iter().enumerate().filter_map(|(parent, state)| {
                    let (cost, loss) = (state.cost + edge.cost, state.loss + edge.loss);
                    let possible = cost <= budget && loss + price * cost as f64 + rest <= limit;
                    possible.then_some(State {
                        cost,
                        loss,
                        edge: *at as u32,
                        parent: parent as u32,
                    })
                }));
                kept += states[edge.to].len() - before;
                if kept > STATES {
                    return Err(Error::unsupported(
                        "costs have too little in common: round them to a coarser measure",
                    ));
                }
            }
            states[node] = here;
        }
        // The dearest is the best.
        let last = states.len() - 1;
        let better = |best: &&State| (best.loss, best.cost) < (known.loss, known.cost);
        if states[last].last().filter(better).is_none() {
            return Ok(known.edges);
        }
        let (mut edges, mut node, mut at) = (Vec::new(), last, states[last].len() - 1);
        while node > 0 {
            let State { edge, parent, .. } = states[node][at];
            edges.push(edge as usize);
            (node, at) = (self.edges[edge as usize].from, parent as usize);
        }
        edges.reverse();
        Ok(edges)
    }
}
