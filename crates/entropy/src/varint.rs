//! Lengths in files: seven bits a byte, least significant first.

use tensorpress_tensor::{Error, Result};

pub(crate) fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number from the front of `bytes`.
pub(crate) fn read_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        let part = u64::from(byte & 0x7f);
        if i == 9 && part > 1 {
            break;
        }
        value |= part << (7 * i);
        if byte & 0x80 == 0 {
            if i > 0 && *byte == 0 {
                // Longer than it need be: one number, one form.
                break;
            }
            *bytes = &bytes[i + 1..];
            return Ok(value);
        }
    }
    Err(Error::corruption("a length that does not end"))
}
