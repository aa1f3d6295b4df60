use tensorpress_tensor::node::Json;
use tensorpress_tensor::storage::{Part, PartSink};
use tensorpress_tensor::{Error, Node, Result};

/// What the blocks of a sum take ([`crate::BitStack`]), so that as many as fit are loaded.
///
/// ```
/// use tensorpress_lowrank::{BitStack, BlockBytes, first_blocks};
/// use tensorpress_tensor::{Compress, Node, Storage, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let node = BitStack::new(3, 1).compress(weight.view(), &Calibration::none(64))?.node;
/// let bytes = BlockBytes::of(&*node)?;
/// assert_eq!(bytes.of_first(3), Storage::of(&*node)?.bytes());
/// let description = first_blocks(&node.describe(), 2)?;
/// assert_eq!(description["terms"].as_array().map(Vec::len), Some(2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockBytes {
    /// What is needed with any block: scales of inputs.
    pub base: u64,
    /// Each block, in order.
    pub blocks: Vec<u64>,
}

impl BlockBytes {
    /// Of a sum, under any maps.
    ///
    /// # Errors
    /// `Unsupported` for any other node; those of its parts.
    pub fn of(node: &dyn Node) -> Result<Self> {
        let (depth, terms) = sum_of(&node.describe())
            .ok_or_else(|| Error::unsupported("blocks of a node that is no sum"))?;
        let mut counted = Counted { depth, bytes: Self { base: 0, blocks: vec![0; terms] } };
        node.parts("", &mut counted)?;
        Ok(counted.bytes)
    }

    /// What the first so many take together: what [`crate::Ranking::keep`] asks for.
    #[must_use]
    pub fn of_first(&self, blocks: usize) -> u64 {
        self.base + self.blocks.iter().take(blocks).sum::<u64>()
    }
}

/// How many nodes stand around the sum, and its terms.
fn sum_of(json: &Json) -> Option<(usize, usize)> {
    match json.get("terms").and_then(Json::as_array) {
        Some(terms) => Some((0, terms.len())),
        None => sum_of(json.get("inner")?).map(|(depth, terms)| (depth + 1, terms)),
    }
}

struct Counted {
    depth: usize,
    bytes: BlockBytes,
}

impl PartSink for Counted {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        let size = part.bytes.len() as u64;
        // `inner` for each node around, then the number of the term.
        let mut path = part.name.split('.');
        let within = (0..self.depth).all(|_| path.next() == Some("inner"));
        let term = path.next().filter(|_| within).and_then(|name| name.parse::<usize>().ok());
        match term.and_then(|term| self.bytes.blocks.get_mut(term)) {
            Some(block) => *block += size,
            None => self.bytes.base += size,
        }
        Ok(())
    }
}

/// The description of a sum's first blocks: a reader given it in the place of the whole one loads no part of the others.
///
/// # Errors
/// `InvalidArgument` for 0 blocks, or more than there are; `Unsupported` for a node that is no sum.
pub fn first_blocks(description: &Json, blocks: usize) -> Result<Json> {
    let (depth, terms) =
        sum_of(description).ok_or_else(|| Error::unsupported("blocks of a node that is no sum"))?;
    if !(1..=terms).contains(&blocks) {
        return Err(Error::invalid(format!("blocks = {blocks}: allowed are 1 to {terms}")));
    }
    let mut first = description.clone();
    let mut sum = &mut first;
    for _ in 0..depth {
        sum = &mut sum["inner"];
    }
    if let Some(terms) = sum["terms"].as_array_mut() {
        terms.truncate(blocks);
    }
    Ok(first)
}
