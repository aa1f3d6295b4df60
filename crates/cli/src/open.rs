//! From MODEL on the command line to an opened model.

use std::path::Path;

use tensorpress::model::{Source, embedded};
use tensorpress::{Error, Result, registry};

/// The name of the built-in model.
pub(crate) const DEMO: &str = "demo";

/// An opened model and its own texts, if it brings them.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) texts: Option<Texts>,
}

/// Texts that a model brings along.
pub(crate) struct Texts {
    pub(crate) calibration: &'static str,
    pub(crate) held_out: &'static str,
}

/// Opens what MODEL names.
pub(crate) fn open(model: &str) -> Result<Opened> {
    if model == DEMO {
        let texts = Texts { calibration: embedded::CALIBRATION, held_out: embedded::HELD_OUT };
        return Ok(Opened { source: Source::demo(&registry())?, texts: Some(texts) });
    }
    let source = match model.strip_prefix("hf://") {
        Some(name) => Source::open(hub::fetch(name)?, &registry())?,
        None => open_path(Path::new(model))?,
    };
    Ok(Opened { source, texts: None })
}

fn open_path(path: &Path) -> Result<Source> {
    if path.extension().is_some_and(|e| e == "tpk") {
        return Err(Error::unsupported("packed files come in a later version").in_file(path));
    }
    if !path.exists() {
        let what = "no such model: give a folder, hf://owner/name, or `demo`";
        return Err(Error::new(tensorpress::ErrorKind::Io, what).in_file(path));
    }
    if !path.is_dir() {
        let what = "is no folder: a model is a folder with config.json and .safetensors files";
        return Err(Error::unsupported(what).in_file(path));
    }
    Source::open(path, &registry())
}

#[cfg(not(feature = "hub"))]
mod hub {
    use std::path::PathBuf;

    use tensorpress::{Error, Result};

    pub(super) fn fetch(name: &str) -> Result<PathBuf> {
        Err(Error::unsupported(format!(
            "hf://{name}: this program was built without the hub; install it with `cargo install tensorpress-cli \
             --features hub`, or download the model's folder yourself"
        )))
    }
}

#[cfg(feature = "hub")]
mod hub;
