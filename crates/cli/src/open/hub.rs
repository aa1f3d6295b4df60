//! Models from the Hugging Face hub, kept in its usual cache.

use std::path::PathBuf;

use hf_hub::api::sync::ApiBuilder;
use tensorpress::tensor::checkpoint::{is_other_weights, stays_inside};
use tensorpress::{Error, ErrorKind, Result};

use crate::output::say;

/// Fetches a repository, but for hidden files and weights in other forms; gives the folder it lies in.
pub(super) fn fetch(name: &str) -> Result<PathBuf> {
    if name.split('/').filter(|part| !part.is_empty()).count() != 2 || name.split('/').count() != 2
    {
        return Err(Error::invalid(format!("hf://{name}: allowed is hf://owner/name")));
    }
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Io, format!("hf://{name}: cannot {what}: {e}"))
    };
    // No progress bars: standard output belongs to the result.
    let api = ApiBuilder::from_env().with_progress(false).build();
    let api = api.map_err(|e| failed("begin", &e))?;
    let repository = api.model(name.to_owned());
    let info = repository.info().map_err(|e| failed("reach the hub", &e))?;
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let has_modules = files.iter().any(|file| file == "modules.json");
    let wanted = |file: &&String| {
        let hidden = file.split('/').any(|part| part.starts_with('.'));
        // What the checkpoint was converted from.
        let original = file.starts_with("original/") && file.ends_with(".safetensors");
        // A part of the model in a form of its own: 2_Dense/pytorch_model.bin.
        let module = file.rsplit_once('/').is_some_and(|(folder, name)| {
            let beside = |other: &String| {
                other.starts_with(&format!("{folder}/")) && other.ends_with(".safetensors")
            };
            name == "pytorch_model.bin" && has_modules && !files.iter().any(beside)
        });
        stays_inside(file) && !hidden && !original && (module || !is_other_weights(file))
    };
    if !files.iter().any(|file| !file.contains('/') && file.ends_with(".safetensors")) {
        return Err(Error::unsupported(format!("hf://{name}: has no .safetensors files")));
    }
    let mut folder = None;
    for file in files.iter().filter(wanted) {
        say!("fetching {file}");
        let path = repository.get(file).map_err(|e| failed(&format!("fetch {file}"), &e))?;
        let above = 1 + file.matches('/').count();
        folder = path.ancestors().nth(above).map(PathBuf::from);
    }
    folder.ok_or_else(|| Error::insufficient(format!("hf://{name}: has no files of a model")))
}
