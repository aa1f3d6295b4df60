//! Models from the Hugging Face hub, kept in its usual cache.

use std::path::PathBuf;

use hf_hub::api::sync::ApiBuilder;
use tensorpress::{Error, ErrorKind, Result};

use crate::output::say;

/// Fetches config, tokenizer and safetensors files of a repository; gives the folder they lie in.
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
    let wanted = |file: &&String| {
        !file.contains('/')
            && (file.ends_with(".json")
                || file.ends_with(".safetensors")
                || file.ends_with(".model"))
    };
    if !files.iter().any(|file| file.ends_with(".safetensors")) {
        return Err(Error::unsupported(format!("hf://{name}: has no .safetensors files")));
    }
    let mut folder = None;
    for file in files.iter().filter(wanted) {
        say!("fetching {file}");
        let path = repository.get(file).map_err(|e| failed(&format!("fetch {file}"), &e))?;
        folder = path.parent().map(PathBuf::from);
    }
    folder.ok_or_else(|| Error::insufficient(format!("hf://{name}: has no files of a model")))
}
