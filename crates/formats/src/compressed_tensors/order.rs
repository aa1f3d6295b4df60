//! Where things lie in `marlin-24`: the orders of its kernel.

/// Outputs and inputs of a tile; inputs are counted without those that are dropped.
pub(super) const TILE: usize = 16;

/// Codes that are permuted together: four tiles side by side.
pub(super) const RUN: usize = 1024;

/// For each place of a run the code that lies there, counted along tiles, their inputs, and their outputs.
pub(super) fn codes(bits: u8) -> Vec<usize> {
    // What a thread unpacks at once comes apart in this order.
    let interleaved: &[usize] = if bits == 4 { &[0, 2, 4, 6, 1, 3, 5, 7] } else { &[0, 2, 1, 3] };
    let wide = interleaved.len();
    (0..RUN)
        .map(|place| {
            let place = place / wide * wide + interleaved[place % wide];
            // 32 threads with 32 codes each: 4 columns of 2 blocks of 2 pairs of inputs.
            let (thread, within) = (place / 32, place % 32);
            let (column, block, pair, input) =
                (within / 8, within % 8 / 4, within % 4 / 2, within % 2);
            let input = 2 * (thread % 4) + input + 8 * pair;
            let column = column + 4 * block + 8 * (thread / 4 % 2);
            256 * (thread / 8) + TILE * input + column
        })
        .collect()
}

/// The word that holds the places of 16 inputs (`chunk`) of an output.
pub(super) fn meta(outputs: usize, output: usize, chunk: usize) -> usize {
    let within = output % 64;
    let row = output / 64 * 64
        + 4 * (within / 8)
        + 2 * (within % 2)
        + within % 8 / 4
        + 32 * (within % 4 / 2);
    // Neighbours across the diagonal change places.
    let (row, chunk) = match (row % 2, chunk % 2) {
        (0, 1) => (row + 1, chunk - 1),
        (1, 0) => (row - 1, chunk + 1),
        _ => (row, chunk),
    };
    2 * (chunk / 2 * outputs + row) + chunk % 2
}

/// For each place in eight scales the one that lies there, of those that are permuted.
pub(super) const SCALES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
