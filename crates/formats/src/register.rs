use tensorpress_tensor::Result;
use tensorpress_tensor::node::{Format, Leaf, Registry};
use tensorpress_tensor::stage::{Row, WeightPart};

use crate::awq::OffsetFormat;
use crate::bnb::Int8Format;
use crate::float::SmallFormat;
use crate::ggml::{self, GgmlFormat};
use crate::words;

/// Adds the readers of this crate's nodes and planes.
///
/// # Errors
/// `InvalidArgument` if one is there already.
pub fn register(registry: &mut Registry) -> Result<()> {
    registry.add_node(GgmlFormat::ID, Leaf::<GgmlFormat>::read_from)?;
    registry.add_node(SmallFormat::ID, Leaf::<SmallFormat>::read_from)?;
    registry.add_node(OffsetFormat::ID, Leaf::<OffsetFormat>::read_from)?;
    registry.add_node(Int8Format::ID, Leaf::<Int8Format>::read_from)?;
    words::register(registry)
}

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    vec![ggml::stage()]
}
