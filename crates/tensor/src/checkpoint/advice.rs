//! What lies where a checkpoint should, and how it becomes one.

use std::path::Path;

use super::files::Files;
use crate::error::{Error, Result};

/// What a git-lfs pointer begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// Pointers are shorter than that.
const LONGEST: u64 = 1024;
/// What says that a folder holds an adapter.
pub(super) const ADAPTER: &str = "adapter_config.json";
/// Bytes that tell a pointer.
pub(super) const TELLS: u64 = POINTER.len() as u64;

/// `InsufficientData` if a file is a git-lfs pointer: a few lines that stand for a file which was not fetched. `begin`
/// is what it begins with, `size` its length.
///
/// # Errors
/// As said.
pub fn refuse_lfs_pointer(begin: &[u8], size: u64) -> Result<()> {
    if size < LONGEST && begin.starts_with(POINTER) {
        let what =
            "is a git-lfs pointer, not the file it stands for: run `git lfs pull` in its folder";
        return Err(Error::insufficient(what));
    }
    Ok(())
}

/// What a folder holds that has no safetensors file to read: an adapter, an unfinished download, weights in another format. The
/// error says what was found and what to do about it.
#[must_use]
pub fn explain_missing(folder: &dyn Files) -> Option<Error> {
    // Downloads into a folder keep what is unfinished in `.cache` there.
    let wanted = |path: &str| !path.contains('/') || path.starts_with(".cache/huggingface");
    let (names, broken) = match folder.below(&wanted) {
        Ok(names) => (names, None),
        // A link that leads nowhere may be all there is to say.
        Err(error) => (folder.names().ok()?, Some(error)),
    };
    let top: Vec<&str> = names.iter().map(String::as_str).filter(|n| !n.contains('/')).collect();
    if top.iter().any(|name| name.ends_with(".safetensors") && !is_adapter(name)) {
        return None;
    }
    let whole = folder.path("x").parent().map(Path::to_path_buf).unwrap_or_default();
    let error = adapter(folder, &top, &whole).or_else(|| unfinished(&names));
    let error = error.or_else(|| other_format(&top, &whole)).or(broken);
    error.map(|error| error.in_file(whole))
}

/// A LoRA adapter.
fn adapter(folder: &dyn Files, names: &[&str], whole: &Path) -> Option<Error> {
    names.contains(&ADAPTER).then_some(())?;
    let config = folder.read(ADAPTER).ok();
    let config = config.and_then(|text| serde_json::from_slice(&text).ok());
    let config: serde_json::Value = config.unwrap_or_default();
    let base = match config["base_model_name_or_path"].as_str() {
        Some(base) => format!("`{base}`"),
        None => format!("a model that {ADAPTER} does not name"),
    };
    let line = format!(
        "from peft import AutoPeftModelForCausalLM as M; \
         M.from_pretrained('{}').merge_and_unload().save_pretrained('MERGED')",
        whole.display()
    );
    Some(Error::unsupported(format!(
        "holds an adapter (PEFT, LoRA) of {base}, not a model: merge it into that base first, as by \
         `python -c \"{line}\"`, and name the merged model"
    )))
}

/// A download that was broken off.
fn unfinished(names: &[String]) -> Option<Error> {
    let found: Vec<&str> =
        names.iter().map(String::as_str).filter(|n| n.ends_with(".incomplete")).collect();
    (!found.is_empty()).then(|| {
        let found = listed(&found);
        Error::insufficient(format!("holds an unfinished download ({found}): download it again"))
    })
}

/// Weights that others read.
fn other_format(names: &[&str], whole: &Path) -> Option<Error> {
    let formats = [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"];
    let of = |format: &'static str| {
        let found = names.iter().copied().filter(|n| n.ends_with(format) && is_other_weights(n));
        let found: Vec<&str> = found.collect();
        (!found.is_empty()).then_some((format, found))
    };
    let (format, found) = formats.into_iter().find_map(of)?;
    let (folder, file) = (whole.display(), found[0]);
    let by_class = |more: &str| {
        format!(
            "import transformers as t; c = t.AutoConfig.from_pretrained('{folder}'); \
             getattr(t, c.architectures[0]).from_pretrained('{folder}'{more}).save_pretrained('CONVERTED')"
        )
    };
    let line = match format {
        ".bin" => by_class(""),
        ".h5" => by_class(", from_tf=True"),
        ".msgpack" => by_class(", from_flax=True"),
        ".gguf" => format!(
            "from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained('{folder}', gguf_file='{file}').save_pretrained('CONVERTED')"
        ),
        ".onnx" => {
            let what = "which nothing converts back: get the model it was exported from";
            return Some(Error::unsupported(format!("holds {}, {what}", listed(&found))));
        }
        _ => format!(
            "import torch, safetensors.torch as s; \
             w = torch.load('{folder}/{file}', map_location='cpu', weights_only=True); \
             s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{folder}/model.safetensors')"
        ),
    };
    Some(Error::unsupported(format!(
        "holds no .safetensors file but {}, which is not read here: convert it, as by `python -c \"{line}\"`",
        listed(&found)
    )))
}

/// Weights of an adapter, which are no model.
pub(super) fn is_adapter(name: &str) -> bool {
    name.starts_with("adapter_model.")
}

/// Whether a file, by its name, has weights in a format that is not read here. What trainers keep beside them counts as
/// such, but for the little that is no tensor.
#[must_use]
pub fn is_other_weights(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    let ends = [
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".ggml",
        ".h5",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".onnx.data",
        ".tflite",
        ".mlmodel",
        ".ot",
        ".npz",
        ".pdparams",
        ".nemo",
        ".engine",
    ];
    ends.iter().any(|end| name.ends_with(end)) && name != "training_args.bin"
}

/// `a, b, c and 4 more`
pub(super) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
