//! LLM.int8 as a node.

use tensorpress_tensor::node::{Encoding, Format, Json, Leaf, Slot, Symbols};
use tensorpress_tensor::{Error, PartKind, Result};

/// Integers with the largest magnitude of each row: `w = (code - 128) * absmax[row] / 127`.
pub type Int8Rows = Leaf<Int8Format>;

/// The format of [`Int8Rows`]: its slot is `absmax`, floats `[out, 1]`. As in the official code, the integer is multiplied
/// first, and the quotient is a product with the nearest f32 to 1 / 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Int8Format;

impl Format for Int8Format {
    const ID: &'static str = "int8_rows.v1";

    fn read_from(_: &Json) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self, _: &mut Json) {}

    fn slots(&self, [rows, _]: [usize; 2]) -> Vec<Slot> {
        let (name, kind, encoding) = ("absmax", PartKind::Scales, Encoding::Floats);
        vec![Slot { name, kind, shape: [rows, 1], encoding }]
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        match alphabet {
            0..=256 => Ok(()),
            _ => Err(Error::invalid(format!("{alphabet} codes, where there are 256"))),
        }
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let absmax = beside[0][row];
        for (out, code) in out.iter_mut().zip(codes.iter()) {
            *out = (f32::from(code) - 128.0) * absmax * (1.0 / 127.0);
        }
    }
}
