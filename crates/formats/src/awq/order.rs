use tensorpress_tensor::{Error, Result};

/// The nibble of a word that holds each of eight outputs.
pub(crate) const GEMM: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Word and nibble, in tiles of 4 outputs and 64 inputs, of the code of an output and an input.
pub(crate) fn fast_place(inputs: usize, output: usize, input: usize) -> (usize, usize) {
    let (tile, within) = (input / 64, input % 64);
    // Pairs of four octets side by side first, then the even pair members of eight before the odd ones.
    let (octet, member) = (within % 32 / 8, within % 8);
    let moved = 2 * octet + member % 2;
    let place = within / 32 * 32 + 8 * (member / 2) + GEMM[moved];
    let flat = 64 * (output % 4) + place;
    (output / 4 * inputs + 64 * tile + flat / 4, flat % 4)
}

/// Groups of so many inputs, and what they are padded to.
pub(super) fn padded_groups(inputs: usize, group: usize) -> Result<(usize, usize)> {
    let multiple = match group {
        128.. => 1,
        64 => 2,
        32 => 4,
        _ => {
            let what = format!("group = {group}: allowed are 32, 64, 128 and more");
            return Err(Error::invalid(what));
        }
    };
    if inputs == 0 || !inputs.is_multiple_of(group) {
        let what = format!("{inputs} inputs are not in groups of {group}");
        return Err(Error::shape(what).in_tensor("qweight"));
    }
    let groups = inputs / group;
    Ok((groups, 8 * groups.div_ceil(8).next_multiple_of(multiple)))
}
