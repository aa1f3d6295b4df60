//! Scales that lose least, sixteen rows at a time.
//!
//! What a column loses is `w (x - q)²`: w is what its rounding costs once later columns have made good for what they can,
//! so that the best scale is another one than that of the plain error.

use tensorpress_tensor::half::f16;
use tensorpress_tensor::obs::{LANES, Lanes};

use super::super::tables::{half_e8m0, half_ue4m3};
use super::plan::{Even, Grid, MOST_GROUPS, NOTHING, Plan, Scaling};

/// The f16 scales of a block of each row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    pub(super) d: Lanes,
    pub(super) dmin: Lanes,
}

/// Scale and offset of a group of each row, as they are stored and as they count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) scale: Lanes,
    pub(super) offset: Lanes,
    /// Numbers of scale and minimum, where those are whole.
    pub(super) stored: [Lanes; 2],
    error: Lanes,
}

impl Default for Best {
    fn default() -> Self {
        let zero = [0.0; LANES];
        Self { scale: zero, offset: NOTHING, stored: [zero; 2], error: [f32::NAN; LANES] }
    }
}

impl Best {
    /// Takes a candidate where it loses less.
    #[inline(always)]
    fn consider<G: Grid>(
        &mut self,
        grid: G,
        x: &[Lanes],
        w: &[Lanes],
        (scale, offset): (&Lanes, &Lanes),
        stored: [&Lanes; 2],
    ) {
        let inverse = inverse(scale);
        let mut error = [0.0; LANES];
        for (x, w) in x.iter().zip(w) {
            for lane in 0..LANES {
                let level = grid.level((x[lane] - offset[lane]) * inverse[lane]);
                let difference = level * scale[lane] + offset[lane] - x[lane];
                error[lane] += w[lane] * difference * difference;
            }
        }
        for lane in 0..LANES {
            // The first candidate is taken whatever it loses.
            let keep = error[lane] >= self.error[lane];
            let pick = |old: &mut f32, new: f32| *old = if keep { *old } else { new };
            pick(&mut self.error[lane], error[lane]);
            pick(&mut self.scale[lane], scale[lane]);
            pick(&mut self.offset[lane], offset[lane]);
            pick(&mut self.stored[0][lane], stored[0][lane]);
            pick(&mut self.stored[1][lane], stored[1][lane]);
        }
    }
}

#[inline(always)]
fn inverse(scale: &Lanes) -> Lanes {
    let mut inverse = [0.0; LANES];
    for lane in 0..LANES {
        inverse[lane] = if scale[lane] == 0.0 { 0.0 } else { 1.0 / scale[lane] };
    }
    inverse
}

/// As f16 holds it, the largest instead of infinity.
#[inline(always)]
fn halves(values: &Lanes) -> Lanes {
    let limit = f16::MAX.to_f32();
    values.map(|value| f16::from_f32(value.clamp(-limit, limit)).to_f32())
}

/// Candidates of a search.
const STEPS: usize = 20;

/// What is brought to the last level, as a part of the largest value: beyond it (1.3), or cutting it (0.54).
#[inline(always)]
fn reach(candidate: usize) -> f32 {
    1.3 - 0.04 * candidate as f32
}

/// The interval of all levels, as a part of that of all values.
#[inline(always)]
fn span(candidate: usize) -> f32 {
    1.1 - 0.03 * candidate as f32
}

/// The scale, of either sign, whose levels fit best: least squares for the codes of each candidate, and twice more from
/// the best of them.
#[inline(always)]
fn symmetric<G: Grid>(grid: G, x: &[Lanes], w: &[Lanes]) -> Lanes {
    let mut largest = [0.0f32; LANES];
    for x in x {
        for lane in 0..LANES {
            let more = x[lane].abs() > largest[lane].abs();
            largest[lane] = if more { x[lane] } else { largest[lane] };
        }
    }
    let [lo, hi] = grid.edges();
    let (mut best, mut scale) = ([-1.0; LANES], [0.0; LANES]);
    for candidate in 0..2 * STEPS + 2 {
        let edge = if candidate < STEPS { hi } else { lo };
        let mut from = scale;
        if candidate < 2 * STEPS {
            if edge == 0.0 {
                continue;
            }
            let reach = reach(candidate % STEPS) / edge;
            from = largest.map(|largest| largest * reach);
        }
        let inverse = inverse(&from);
        let (mut xl, mut ll) = ([0.0; LANES], [0.0; LANES]);
        for (x, w) in x.iter().zip(w) {
            for lane in 0..LANES {
                let level = grid.level(x[lane] * inverse[lane]);
                let weighted = w[lane] * level;
                xl[lane] += weighted * x[lane];
                ll[lane] += weighted * level;
            }
        }
        for lane in 0..LANES {
            let counts = ll[lane] > 0.0;
            let fitted = if counts { xl[lane] / ll[lane] } else { from[lane] };
            let gain = if counts { fitted * xl[lane] } else { 0.0 };
            let better = gain > best[lane];
            best[lane] = if better { gain } else { best[lane] };
            scale[lane] = if better { fitted } else { scale[lane] };
        }
    }
    scale
}

/// Scale and offset, this not above 0 if `below`, whose levels 0 and up fit best.
#[inline(always)]
fn affine(grid: Even, x: &[Lanes], w: &[Lanes], below: bool) -> Best {
    let (mut min, mut max) = (x[0], x[0]);
    for x in x {
        for lane in 0..LANES {
            min[lane] = min[lane].min(x[lane]);
            max[lane] = max[lane].max(x[lane]);
        }
    }
    if below {
        min = min.map(|min| min.min(0.0));
    }
    let mut best = Best::default();
    for candidate in 0..STEPS + 2 {
        let (mut scale, mut offset) = (best.scale, best.offset);
        if candidate < STEPS {
            for lane in 0..LANES {
                let (middle, half) = ((min[lane] + max[lane]) * 0.5, (max[lane] - min[lane]) * 0.5);
                scale[lane] = 2.0 * span(candidate) * half / grid.hi;
                offset[lane] = middle - span(candidate) * half;
                offset[lane] = if below { offset[lane].min(0.0) } else { offset[lane] };
            }
        }
        let inverse = inverse(&scale);
        let [mut one, mut l, mut ll, mut y, mut yl] = [[0.0f32; LANES]; 5];
        for (x, w) in x.iter().zip(w) {
            for lane in 0..LANES {
                // From the offset, so that sums of squares stay small.
                let above = x[lane] - offset[lane];
                let level = grid.level(above * inverse[lane]);
                let weighted = w[lane] * level;
                one[lane] += w[lane];
                l[lane] += weighted;
                ll[lane] += weighted * level;
                y[lane] += w[lane] * above;
                yl[lane] += weighted * above;
            }
        }
        let (mut fitted, mut at) = (scale, offset);
        for lane in 0..LANES {
            let determinant = one[lane] * ll[lane] - l[lane] * l[lane];
            if determinant > 0.0 {
                fitted[lane] = (one[lane] * yl[lane] - y[lane] * l[lane]) / determinant;
                at[lane] += (ll[lane] * y[lane] - l[lane] * yl[lane]) / determinant;
            }
            if below && at[lane] > 0.0 {
                let raw = yl[lane] + offset[lane] * l[lane];
                fitted[lane] = if ll[lane] > 0.0 { raw / ll[lane] } else { 0.0 };
                at[lane] = 0.0;
            }
            fitted[lane] = fitted[lane].max(0.0);
        }
        best.consider(grid, x, w, (&fitted, &at), [&at; 2]);
    }
    best
}

/// The f16 scales of a block: those in whose steps the scales of its groups, each the best for itself, are nearest.
#[inline(always)]
pub(super) fn head<G: Grid>(plan: &Plan, grid: G, x: &[Lanes], w: &[Lanes]) -> Head {
    let mut scales = [[0.0; LANES]; MOST_GROUPS];
    let (mut minima, mut weights) = (scales, scales);
    let groups = x.len() / plan.group;
    let values = x.chunks_exact(plan.group).zip(w.chunks_exact(plan.group));
    for (group, (x, w)) in values.enumerate() {
        match plan.scaling {
            Scaling::StepsAndMins(_) => {
                let free = affine(all_even(grid), x, w, true);
                (scales[group], minima[group]) = (free.scale, free.offset.map(|offset| -offset));
            }
            _ => scales[group] = symmetric(grid, x, w),
        }
        for w in w {
            for lane in 0..LANES {
                weights[group][lane] += w[lane];
            }
        }
    }
    match plan.scaling {
        Scaling::Steps(steps) => {
            let d = symmetric(steps, &scales[..groups], &weights[..groups]);
            Head { d: halves(&d), dmin: [0.0; LANES] }
        }
        Scaling::StepsAndMins(steps) => {
            let d = symmetric(steps, &scales[..groups], &weights[..groups]);
            let dmin = symmetric(steps, &minima[..groups], &weights[..groups]);
            Head { d: halves(&d), dmin: halves(&dmin) }
        }
        _ => Head::default(),
    }
}

/// Levels with an offset are whole numbers from 0 up in every type.
#[inline(always)]
fn all_even<G: Grid>(grid: G) -> Even {
    Even { lo: 0.0, hi: grid.edges()[1], zero: 0.0 }
}

/// Scale and offset of a group, as its type can store them.
#[inline(always)]
pub(super) fn group<G: Grid>(plan: &Plan, grid: G, head: &Head, x: &[Lanes], w: &[Lanes]) -> Best {
    let mut best = Best::default();
    let none = [0.0; LANES];
    match plan.scaling {
        Scaling::Half => {
            let scale = halves(&symmetric(grid, x, w));
            best.consider(grid, x, w, (&scale, &NOTHING), [&none; 2]);
        }
        Scaling::HalfAndMin => {
            let free = affine(all_even(grid), x, w, false);
            let (scale, offset) = (halves(&free.scale), halves(&free.offset));
            best.consider(grid, x, w, (&scale, &offset), [&none; 2]);
        }
        Scaling::Power => {
            let first = largest(x).map(first_power);
            for by in [0.0, 1.0, -1.0] {
                let power = first.map(|first| (first + by).clamp(0.0, 254.0));
                let scale = power.map(|power| half_e8m0(power as u8));
                best.consider(grid, x, w, (&scale, &NOTHING), [&power, &none]);
            }
        }
        Scaling::Small => {
            let first = symmetric(grid, x, w).map(|scale| nearest_small(scale.abs()));
            for by in [0.0, 1.0, -1.0, 2.0, -2.0] {
                let code = first.map(|first| (first + by).clamp(0.0, 126.0));
                let scale = code.map(|code| half_ue4m3(code as u8));
                best.consider(grid, x, w, (&scale, &NOTHING), [&code, &none]);
            }
        }
        Scaling::Steps(steps) => {
            let free = symmetric(grid, x, w);
            let first = in_steps(&free, &head.d, steps);
            for by in [0.0, 1.0, -1.0] {
                let number = first.map(|first| steps.level(first + by));
                let scale = times(&head.d, &number);
                best.consider(grid, x, w, (&scale, &NOTHING), [&number, &none]);
            }
        }
        Scaling::StepsAndMins(steps) => {
            let free = affine(all_even(grid), x, w, true);
            best.stored[0] = in_steps(&free.scale, &head.d, steps);
            best.stored[1] = in_steps(&free.offset.map(|offset| -offset), &head.dmin, steps);
            for _ in 0..2 {
                let first = best.stored;
                for (by, min_by) in NEIGHBOURS {
                    let number = first[0].map(|first| steps.level(first + by));
                    let min = first[1].map(|first| steps.level(first + min_by));
                    let scale = times(&head.d, &number);
                    let offset = times(&head.dmin, &min).map(|min| -min);
                    best.consider(grid, x, w, (&scale, &offset), [&number, &min]);
                }
            }
        }
    }
    best
}

/// The numbers about a scale's and a minimum's.
const NEIGHBOURS: [(f32, f32); 9] = [
    (0.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (1.0, 0.0),
    (1.0, 1.0),
    (1.0, -1.0),
    (-1.0, 0.0),
    (-1.0, 1.0),
    (-1.0, -1.0),
];

#[inline(always)]
fn times(d: &Lanes, number: &Lanes) -> Lanes {
    let mut product = *d;
    for lane in 0..LANES {
        product[lane] *= number[lane];
    }
    product
}

#[inline(always)]
fn in_steps(scale: &Lanes, d: &Lanes, steps: Even) -> Lanes {
    let mut number = inverse(d);
    for lane in 0..LANES {
        number[lane] = steps.level(scale[lane] * number[lane]);
    }
    number
}

fn largest(x: &[Lanes]) -> Lanes {
    let mut largest = [0.0f32; LANES];
    for x in x {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(x[lane].abs());
        }
    }
    largest
}

/// The number of the power of two that brings a magnitude to 4..8, 6 being the largest level.
fn first_power(largest: f32) -> f32 {
    if largest > 0.0 { (largest.log2().floor() + 125.0).clamp(0.0, 254.0) } else { 0.0 }
}

/// The code of the nearest half scale of E4M3.
fn nearest_small(scale: f32) -> f32 {
    let (mut below, mut above) = (0u8, 126u8);
    while above - below > 1 {
        let middle = below.midpoint(above);
        if half_ue4m3(middle) <= scale { below = middle } else { above = middle }
    }
    let nearer = scale - half_ue4m3(below) <= half_ue4m3(above) - scale;
    f32::from(if nearer { below } else { above })
}
