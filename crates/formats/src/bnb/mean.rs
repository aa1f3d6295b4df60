//! The mean as PyTorch sums it on machines with 8 lanes, so that offsets are those of the official code.

const LANES: usize = 8;
/// Vectors that are summed side by side.
const SIDE: usize = 4;
/// Partial sums that are added up before they are carried to the next level.
const RUN: usize = 16;

type Sums = [[f32; LANES]; SIDE];

fn add(to: &mut [f32; LANES], from: &[f32; LANES]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// The mean in f32; 0 of nothing.
pub(super) fn mean(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (rows, single) = vectors.as_chunks::<SIDE>();
    let mut levels = [Sums::default(); 4];
    for (done, row) in (1..).zip(rows) {
        levels[0].iter_mut().zip(row).for_each(|(to, from)| add(to, from));
        // A full run is carried, and so may be the one that it fills.
        let mut runs: usize = done;
        for level in 1..levels.len() {
            if !runs.is_multiple_of(RUN) {
                break;
            }
            runs /= RUN;
            let full = std::mem::take(&mut levels[level - 1]);
            levels[level].iter_mut().zip(&full).for_each(|(to, from)| add(to, from));
        }
    }
    let [mut sums, higher @ ..] = levels;
    for level in &higher {
        sums.iter_mut().zip(level).for_each(|(to, from)| add(to, from));
    }
    let [mut sum, others @ ..] = sums;
    single.iter().chain(&others).for_each(|from| add(&mut sum, from));
    let total = rest.iter().chain(&sum).fold(0.0, |total, value| total + value);
    total / values.len().max(1) as f32
}
