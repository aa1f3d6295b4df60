//! Trellises: which codes may follow one another along the rows of a column.

/// A rate-1/2 convolutional code of Ungerboeck (1982) over integers: from each state only the even codes may come, or
/// only the odd ones, and the code chooses the next state by its remainder modulo 4. Along a column, path by path, the
/// codes lie denser than the even or the odd ones alone, yet the parity of each is known.
///
/// It starts in state 0 at every [`Trellis::ROWS`]-th row, so that pieces of a column can be coded by themselves.
///
/// ```
/// use tensorpress_tensor::node::Trellis;
///
/// let trellis = Trellis::new(8).expect("one of those there are");
/// assert!(Trellis::new(7).is_none());
/// let mut state = 0;
/// for code in [2, -1, 3, 0] {
///     if !Trellis::allows(state, code) {
///         break;
///     }
///     state = trellis.next(state, code);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trellis {
    /// The next state by the second lowest bit of the code.
    next: Vec<[u8; 2]>,
}

/// Generators of Ungerboeck's codes for amplitudes: memory, those of the parity and of the bit above it.
const CODES: [(u32, u32, u32); 4] =
    [(2, 0o5, 0o2), (3, 0o13, 0o4), (5, 0o45, 0o10), (8, 0o515, 0o362)];

impl Trellis {
    /// Rows from one start in state 0 to the next.
    pub const ROWS: usize = 64;

    /// Numbers of states that there are.
    pub const STATES: [usize; 4] = [4, 8, 32, 256];

    /// The code of so many states; `None` if there is none.
    #[must_use]
    pub fn new(states: usize) -> Option<Self> {
        let (memory, parity, above) = CODES.into_iter().find(|(v, ..)| 1 << v == states)?;
        let next = |state: u32, bit: u32| {
            let mut next = state >> 1;
            for k in 1..=memory {
                let fed = (state & (parity >> k)) ^ (bit & (above >> k));
                next ^= (fed % 2) << (k - 1);
            }
            next as u8
        };
        Some(Self { next: (0..states as u32).map(|s| [next(s, 0), next(s, 1)]).collect() })
    }

    /// Number of states.
    #[must_use]
    pub fn states(&self) -> usize {
        self.next.len()
    }

    /// Whether a code may come from a state.
    #[must_use]
    pub fn allows(state: u8, code: i32) -> bool {
        code & 1 == i32::from(state & 1)
    }

    /// The state behind a code.
    ///
    /// # Panics
    /// If there is no such state.
    #[must_use]
    #[inline]
    pub fn next(&self, state: u8, code: i32) -> u8 {
        self.next[usize::from(state)][(code >> 1 & 1) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state is entered from two others or from one twice, by codes of one parity.
    #[test]
    fn each_state_has_two_ways_in() {
        for states in Trellis::STATES {
            let trellis = Trellis::new(states).unwrap();
            assert_eq!(trellis.states(), states);
            let mut ways = vec![0; states];
            trellis.next.iter().flatten().for_each(|n| ways[usize::from(*n)] += 1);
            assert!(ways.iter().all(|n| *n == 2), "{states}");
        }
    }

    /// Distances of the codes: two paths that part meet again no nearer than Ungerboeck's tables say (squared, in steps).
    #[test]
    fn free_distances_are_those_published() {
        for (states, expected) in [(4, 9), (8, 10), (32, 13), (256, 16)] {
            let trellis = Trellis::new(states).unwrap();
            // Codes 4 apart lead the same way.
            let mut best = 16;
            // Pairs of states by their least distance so far; codes as near as their remainders modulo 4 allow.
            let mut reached = vec![u32::MAX; states * states];
            let near = |a: i32, b: i32| [0u32, 1, 4, 1][((a - b) & 3) as usize];
            for s in 0..states as u8 {
                let codes = [i32::from(s & 1), i32::from(s & 1) + 2];
                let [a, b] = codes.map(|c| usize::from(trellis.next(s, c)));
                reached[a * states + b] = reached[a * states + b].min(4);
            }
            loop {
                let mut changed = false;
                for pair in 0..states * states {
                    let (a, b, d) = (pair / states, pair % states, reached[pair]);
                    if d >= best || a == b {
                        continue;
                    }
                    for (x, y) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
                        let (x, y) = (x + (a as i32 & 1), y + (b as i32 & 1));
                        let to =
                            [(a, x), (b, y)].map(|(s, c)| usize::from(trellis.next(s as u8, c)));
                        let d = d + near(x, y);
                        if to[0] == to[1] {
                            best = best.min(d);
                        } else if d < reached[to[0] * states + to[1]] {
                            reached[to[0] * states + to[1]] = d;
                            changed = true;
                        }
                    }
                }
                if !changed {
                    break;
                }
            }
            assert_eq!(best, expected, "{states} states");
        }
    }
}
