//! What a file will take, before it is known of what types its matrices are.

use std::path::Path;

use tensorpress_formats::export::fitting;
use tensorpress_model::Source;
use tensorpress_tensor::{Node, Result};

use super::super::Convert;
use super::plan::Plan;
use crate::pipeline::Target;
use crate::pipeline::folder::converting;
use crate::pipeline::mix::Outline;

/// The file that a model becomes at `out`: types of matrices change nothing but their lengths.
pub(in crate::pipeline) fn outline(source: &Source, out: &Path) -> Result<Outline> {
    // By the name that the file will say.
    let job = Convert::new(Target::Gguf(None)).with_folder(converting(out));
    let plan = Plan::new(&job, source, out, None)?;
    let alignment = plan.header.alignment();
    let tensors = plan.header.tensors_in_place().into_iter().map(|info| {
        let from = plan.entries.get(&info.name).map_or(Vec::new(), |entry| entry.from.clone());
        (from, info.bytes.next_multiple_of(alignment))
    });
    let tensors = tensors.collect();
    // Its last tensor may be filled up, whatever the file did that the model came from.
    let bytes = plan.size.next_multiple_of(alignment);
    Ok(Outline { bytes, tensors, alignment, takes })
}

fn takes(node: &dyn Node) -> Result<u64> {
    Ok(fitting(node)?.bytes(node.shape()))
}
