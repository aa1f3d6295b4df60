//! Documents in a safetensors file.

use std::path::Path;

use tensorpress_tensor::{Checkpoint, Context, DType, Error, RawTensor, Result, Tensor};

use super::corpus::Document;
use super::json::unmasked;

const IDS: [&str; 2] = ["ids", "input_ids"];
const MASK: &str = "attention_mask";
const PIXELS: &str = "pixel_values";

/// The token ids of a file, and its images; whatever else is in it is no text, and stays unread.
pub(super) fn read(bytes: Vec<u8>, file: &Path) -> Result<(Vec<Document>, Option<RawTensor>)> {
    let checkpoint = Checkpoint::from_bytes(&file.to_string_lossy(), bytes)?;
    let ids = IDS.into_iter().filter(|name| checkpoint.contains(name)).collect::<Vec<_>>();
    let pixels = checkpoint.contains(PIXELS).then(|| checkpoint.tensor(PIXELS)).transpose()?;
    let documents = match ids.as_slice() {
        [] if pixels.is_none() || checkpoint.contains(MASK) => {
            let message = format!("has no `ids`, and no `{PIXELS}` by themselves");
            return Err(Error::insufficient(message));
        }
        [] => Vec::new(),
        [name] => documents(&checkpoint, name)?,
        _ => return Err(Error::corruption("has `ids` and `input_ids`, of which one is allowed")),
    };
    Ok((documents, pixels))
}

fn documents(checkpoint: &Checkpoint, name: &str) -> Result<Vec<Document>> {
    let ids = checkpoint.tensor(name)?;
    let length = match *ids.shape() {
        [_, length] | [length] => length,
        _ => {
            let message = format!("is {:?}; allowed is [documents, tokens]", ids.shape());
            return Err(Error::corruption(message).in_tensor(name));
        }
    };
    let mask = checkpoint.contains(MASK).then(|| checkpoint.tensor(MASK)).transpose()?;
    if let Some(mask) = mask.as_ref().filter(|mask| mask.shape() != ids.shape()) {
        let message = format!("is {:?}, `{name}` is {:?}", mask.shape(), ids.shape());
        return Err(Error::shape(message).in_tensor(MASK));
    }
    let ids = whole_numbers(&ids).in_tensor(name)?;
    let mask = mask.map(|mask| whole_numbers(&mask).in_tensor(MASK)).transpose()?;
    // Rows of no tokens are none, however many there are said to be.
    let length = length.max(1);
    let row = |(row, ids): (usize, &[u32])| match &mask {
        None => Ok(Document::Ids(ids.to_vec())),
        Some(mask) => {
            let mask = &mask[row * length..][..ids.len()];
            let seen = unmasked(ids, mask).map_err(|what| format!("row {row}: {what}"));
            seen.map(Document::Ids).map_err(|what| Error::corruption(what).in_tensor(MASK))
        }
    };
    ids.chunks(length).enumerate().map(row).collect()
}

/// The elements of an integer tensor, which fit 32 bits and are not negative.
fn whole_numbers(tensor: &RawTensor) -> Result<Vec<u32>> {
    macro_rules! elements {
        ($($dtype:ident $int:ty;)*) => { match tensor.dtype() {
            $(DType::$dtype => {
                let elements = tensor.bytes().as_chunks::<{ size_of::<$int>() }>().0.iter();
                let element = |(i, bytes): (usize, &[u8; size_of::<$int>()])| {
                    let value = <$int>::from_le_bytes(*bytes);
                    u32::try_from(value).map_err(|_| Error::corruption(format!(
                        "element {i} = {value}: allowed are 0 to {}", u32::MAX
                    )))
                };
                elements.enumerate().map(element).collect()
            })*
            other => Err(Error::corruption(format!("is {other:?}; allowed are integers"))),
        } };
    }
    elements! {
        I64 i64; I32 i32; I16 i16; I8 i8; U64 u64; U32 u32; U16 u16; U8 u8; BOOL u8;
    }
}
