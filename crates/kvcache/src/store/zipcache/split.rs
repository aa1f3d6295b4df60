use tensorpress_tensor::{Error, Result};

/// Packs a row of codes as ZipCache's released code does: as many parts as a byte has codes, one after another, of which each
/// byte takes one code, the first part's in the lowest bits. (Here codes that are neighbours share a byte; this is for whoever
/// reads or writes the other.)
///
/// ```
/// use tensorpress_kvcache::store::{join_split, split_codes};
///
/// let codes = [3, 0, 1, 2, 0, 1, 2, 3];
/// let bytes = split_codes(&codes, 2)?;
/// // Codes 0, 2, 4 and 6 of the row; then 1, 3, 5 and 7.
/// assert_eq!(bytes, [3 | 1 << 2 | 2 << 6, 2 << 2 | 1 << 4 | 3 << 6]);
/// assert_eq!(join_split(&bytes, 2)?, codes);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` unless `bits` is 1, 2, 4 or 8 and the codes fill whole bytes.
pub fn split_codes(codes: &[u8], bits: u32) -> Result<Vec<u8>> {
    let parts = parts(bits)?;
    if !codes.len().is_multiple_of(parts) {
        let n = codes.len();
        return Err(Error::invalid(format!(
            "{n} codes of {bits} bits: whole bytes of them expected"
        )));
    }
    let len = codes.len() / parts;
    let mask = ((1u32 << bits) - 1) as u8;
    let byte =
        |i: usize| (0..parts).fold(0, |b, p| b | (codes[p * len + i] & mask) << (p as u32 * bits));
    Ok((0..len).map(byte).collect())
}

/// The codes of [`split_codes`].
///
/// # Errors
/// `InvalidArgument` unless `bits` is 1, 2, 4 or 8.
pub fn join_split(bytes: &[u8], bits: u32) -> Result<Vec<u8>> {
    let parts = parts(bits)?;
    let mask = ((1u32 << bits) - 1) as u8;
    let part = |p: usize| bytes.iter().map(move |b| b >> (p as u32 * bits) & mask);
    Ok((0..parts).flat_map(part).collect())
}

/// Codes of a byte.
fn parts(bits: u32) -> Result<usize> {
    if !matches!(bits, 1 | 2 | 4 | 8) {
        return Err(Error::invalid(format!("bits = {bits}: allowed are 1, 2, 4 and 8")));
    }
    Ok((8 / bits) as usize)
}
