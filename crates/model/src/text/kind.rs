//! What bytes are, before anything is read from them.

use tensorpress_tensor::{Error, Result};

/// What files that are no UTF-8 begin with, what they are, and what to do.
const FOREIGN: &[(&[u8], &str)] = &[
    (&[0xff, 0xfe, 0, 0], "is UTF-32; save it as UTF-8"),
    (&[0, 0, 0xfe, 0xff], "is UTF-32; save it as UTF-8"),
    (&[0xff, 0xfe], "is UTF-16; save it as UTF-8"),
    (&[0xfe, 0xff], "is UTF-16; save it as UTF-8"),
    (&[0x1f, 0x8b], "is packed by gzip; unpack it first (`gunzip`)"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "is packed by zstd; unpack it first (`unzstd`)"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "is packed by xz; unpack it first (`unxz`)"),
    (b"PK\x03\x04", "is a zip archive; unpack it first (`unzip`)"),
];

const PARQUET: &[u8] = b"PAR1";

/// The byte order mark, which may stand before UTF-8.
const MARK: char = '\u{FEFF}';

/// The bytes as text, without a byte order mark.
pub(super) fn utf8(bytes: Vec<u8>) -> Result<String> {
    if let Some((_, what)) = FOREIGN.iter().find(|(begin, _)| bytes.starts_with(begin)) {
        return Err(Error::unsupported(*what));
    }
    if bytes.len() > PARQUET.len() && bytes.starts_with(PARQUET) && bytes.ends_with(PARQUET) {
        let what = "is a Parquet file; write its texts as JSON lines first (`{\"text\": ...}`)";
        return Err(Error::unsupported(what));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(Error::corruption(format!(
            "byte {at} is NUL: not UTF-8 text, but a binary file, or UTF-16 without a mark"
        )));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        Error::corruption(format!("not UTF-8 after byte {}", e.utf8_error().valid_up_to()))
    })?;
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

/// Whether this is meant to be JSON: by its first character that is not blank.
pub(super) fn is_json(text: &str) -> bool {
    text.trim_start().starts_with(['{', '['])
}

/// Whether this is meant to be a safetensors file: eight bytes of length, the upper ones 0 (which no text has), and the
/// brace of the header.
pub(super) fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(5..9) == Some(&[0, 0, 0, b'{'])
}
