//! Viterbi's algorithm over the rows of a column.

use tensorpress_tensor::node::Trellis;

/// Pieces of a column that are decided together.
pub(super) const LANES: usize = 8;

/// Rows of a piece.
pub(super) const ROWS: usize = Trellis::ROWS;

/// What no path has cost yet.
const NEVER: f32 = 1e30;

/// Codes larger than this cost no more bits than this one, so that their sum stays exact.
const DEAREST: f32 = 255.0;

/// Targets beyond this, in steps, count as this: f32 tells even from odd there.
pub(super) const FARTHEST: f32 = (1 << 22) as f32;

type Lane = [f32; LANES];

/// A trellis, seen from where its ways lead to.
#[derive(Debug)]
pub(super) struct Paths {
    trellis: Trellis,
    /// The two ways into each state: whence, and the remainder of the code modulo 4.
    into: Vec<[(u8, u8); 2]>,
}

/// What one thread works in.
#[derive(Debug)]
pub(super) struct Buffers {
    cost: Vec<Lane>,
    next: Vec<Lane>,
    /// By row, state and lane: the second way was taken.
    back: Vec<[u8; LANES]>,
    /// By row, remainder and lane.
    picks: Vec<[i32; LANES]>,
    /// By state and row: what errors of rows before add to those to come.
    fed: [Vec<f32>; 2],
    /// By row and state: whence, and the code.
    ways: Vec<(u8, i32)>,
}

impl Paths {
    pub(super) fn new(trellis: Trellis) -> Self {
        let mut ways = vec![Vec::new(); trellis.states()];
        for state in 0..trellis.states() {
            for bit in 0..2 {
                let code = (state as i32 & 1) + 2 * bit;
                let to = trellis.next(state as u8, code);
                ways[usize::from(to)].push((state as u8, code as u8));
            }
        }
        let into = ways.into_iter().map(|ways| [ways[0], ways[1]]).collect();
        Self { trellis, into }
    }

    pub(super) fn buffers(&self) -> Buffers {
        let states = self.trellis.states();
        Buffers {
            cost: vec![[0.0; LANES]; states],
            next: vec![[0.0; LANES]; states],
            back: vec![[0; LANES]; states * ROWS],
            picks: vec![[0; LANES]; 4 * ROWS],
            fed: [vec![0.0; states * ROWS], vec![0.0; states * ROWS]],
            ways: vec![(0, 0); states * ROWS],
        }
    }

    /// The codes of pieces of a column, by row and lane as the targets `x` (in steps, none beyond [`FARTHEST`]) are; each piece has so many rows. They
    /// minimise the sum of (x - code)² + `rate` |code| over all paths that begin in state 0.
    #[inline(always)]
    pub(super) fn decide(
        &self,
        buffers: &mut Buffers,
        x: &[f32],
        rate: f32,
        rows: &[usize; LANES],
        codes: &mut [i32],
    ) {
        let states = self.into.len();
        let Buffers { cost, next, back, picks, .. } = buffers;
        cost.fill([NEVER; LANES]);
        cost[0] = [0.0; LANES];
        let mut ends = [0u8; LANES];
        let longest = rows.iter().copied().max().unwrap_or(0);
        for i in 0..longest {
            let x: &Lane = x[i * LANES..(i + 1) * LANES].try_into().expect("a lane each");
            let mut metric = [[0.0f32; LANES]; 4];
            for z in 0..4 {
                let picked = &mut picks[4 * i + z];
                for lane in 0..LANES {
                    (metric[z][lane], picked[lane]) = nearest(x[lane], z as f32, rate);
                }
            }
            let back = &mut back[i * states..(i + 1) * states];
            for ((next, back), [first, second]) in next.iter_mut().zip(back).zip(&self.into) {
                let (a, b) = (&cost[usize::from(first.0)], &cost[usize::from(second.0)]);
                let (da, db) =
                    (&metric[usize::from(first.1 & 3)], &metric[usize::from(second.1 & 3)]);
                for lane in 0..LANES {
                    let (a, b) = (a[lane] + da[lane], b[lane] + db[lane]);
                    next[lane] = if b < a { b } else { a };
                    back[lane] = u8::from(b < a);
                }
            }
            std::mem::swap(cost, next);
            for lane in (0..LANES).filter(|lane| rows[*lane] == i + 1) {
                let best = (0..states).min_by(|a, b| cost[*a][lane].total_cmp(&cost[*b][lane]));
                ends[lane] = best.unwrap_or(0) as u8;
            }
        }
        for lane in 0..LANES {
            let mut state = usize::from(ends[lane]);
            for i in (0..rows[lane]).rev() {
                let way = usize::from(back[i * states + state][lane]);
                let (from, z) = self.into[state][way];
                codes[i * LANES + lane] = picks[4 * i + usize::from(z)][lane];
                state = usize::from(from);
            }
        }
    }

    /// The codes of one piece whose rows feed each other: the error of row i, in weights, times `feedback[i][k]` is taken
    /// off the target of row k. Every state keeps what its own path feeds. Returns nothing but `codes`.
    pub(super) fn decide_fed(
        &self,
        buffers: &mut Buffers,
        fed: &Fed<'_>,
        rate: f32,
        codes: &mut [i32],
    ) {
        let (states, rows) = (self.into.len(), codes.len());
        let Buffers { cost, next, fed: [now, then], ways, .. } = buffers;
        let (cost, next) = (&mut cost[..], &mut next[..]);
        cost.iter_mut().for_each(|cost| cost[0] = NEVER);
        cost[0][0] = 0.0;
        now[..ROWS].fill(0.0);
        let mut errors = [0.0f32; 256];
        for i in 0..rows {
            let step = fed.steps[i];
            let ways = &mut ways[i * states..(i + 1) * states];
            for (n, into) in self.into.iter().enumerate() {
                next[n][0] = NEVER;
                for (from, z) in into {
                    let s = usize::from(*from);
                    if cost[s][0] >= NEVER {
                        continue;
                    }
                    let x = (fed.targets[i] - fed.before[i] - now[s * ROWS + i]) / step;
                    let x = x.clamp(-FARTHEST, FARTHEST);
                    let (metric, code) = nearest(x, f32::from(*z), rate);
                    if cost[s][0] + metric < next[n][0] {
                        next[n][0] = cost[s][0] + metric;
                        ways[n] = (*from, code);
                        errors[n] = code as f32 * step - fed.targets[i];
                    }
                }
            }
            let row = &fed.feedback[i * ROWS..(i + 1) * ROWS];
            for n in (0..states).filter(|n| next[*n][0] < NEVER) {
                let from = usize::from(ways[n].0) * ROWS;
                let (from, to) = (&now[from..from + ROWS], &mut then[n * ROWS..(n + 1) * ROWS]);
                for ((to, from), u) in to[i..].iter_mut().zip(&from[i..]).zip(&row[i..]) {
                    *to = from + errors[n] * u;
                }
            }
            std::mem::swap(now, then);
            for (cost, next) in cost.iter_mut().zip(&*next) {
                cost[0] = next[0];
            }
        }
        let best = (0..states).min_by(|a, b| cost[*a][0].total_cmp(&cost[*b][0]));
        let mut state = best.unwrap_or(0);
        for i in (0..rows).rev() {
            let (from, code) = ways[i * states + state];
            codes[i] = code;
            state = usize::from(from);
        }
    }
}

/// Rows of one piece that feed each other.
#[derive(Debug)]
pub(super) struct Fed<'a> {
    /// Targets, in weights.
    pub targets: &'a [f32],
    /// What the pieces before feed into each.
    pub before: &'a [f32],
    /// Steps.
    pub steps: &'a [f32],
    /// Unit upper, [`ROWS`] a row.
    pub feedback: &'a [f32],
}

/// The cheaper of the two codes about `x` that are `z` modulo 4, and its cost.
#[inline(always)]
fn nearest(x: f32, z: f32, rate: f32) -> (f32, i32) {
    let near = 4.0 * ((x - z) * 0.25 + 0.5).floor() + z;
    let other = if x > near { near + 4.0 } else { near - 4.0 };
    let cost = |code: f32| (x - code) * (x - code) + rate * code.abs().min(DEAREST);
    let (a, b) = (cost(near), cost(other));
    if b < a { (b, other as i32) } else { (a, near as i32) }
}
