//! From MODEL on the command line to an opened model.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tensorpress::entropy::container::MAGIC;
use tensorpress::entropy::{Base, PackedFile};
use tensorpress::formats::gguf::model::is_gguf;
use tensorpress::model::{Source, embedded};
use tensorpress::{Error, Result, open_model, open_packed_model, registry};

use crate::failure::Outcome;
use crate::output::say;

/// The name of the built-in model.
pub(crate) const DEMO: &str = "demo";

/// An opened model and its own texts, if it brings them.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) texts: Option<Texts>,
}

impl Opened {
    /// Passes on what came of reading the model. Where somebody has written to its files meanwhile, that is the error,
    /// whatever came of it.
    pub(crate) fn unmoved<T>(&self, outcome: Outcome<T>) -> Outcome<T> {
        self.source.checkpoint().check_unmoved()?;
        outcome
    }
}

/// Texts that a model brings along.
pub(crate) struct Texts {
    pub(crate) calibration: &'static str,
    pub(crate) held_out: &'static str,
}

/// Opens what MODEL names; `base` is what it was packed against, if it is a packed difference.
pub(crate) fn open(model: &str, base: Option<&Path>) -> Result<Opened> {
    if model == DEMO {
        let texts = Texts { calibration: embedded::CALIBRATION, held_out: embedded::HELD_OUT };
        return Ok(Opened { source: Source::demo(&registry())?, texts: Some(texts) });
    }
    let source = match (packed(model, base)?, model.strip_prefix("hf://")) {
        (Some(packed), _) => open_packed_model(packed)?,
        (None, Some(name)) => open_model(hub::fetch(name)?)?,
        (None, None) => open_path(Path::new(model))?,
    };
    tell_notes(&source);
    Ok(Opened { source, texts: None })
}

/// Says what a person should know of a model's files, each thing once.
pub(crate) fn tell_notes(source: &Source) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    source.notes().iter().filter(|note| told.insert((*note).clone())).for_each(|note| {
        say!("note: {note}");
    });
}

/// The packed file that MODEL names, if it names one.
pub(crate) fn packed(model: &str, base: Option<&Path>) -> Result<Option<PackedFile>> {
    let path = Path::new(model);
    let named = path.extension().is_some_and(|e| e == "tpk");
    if model == DEMO || !path.is_file() || !(named || begins_like_one(path)) {
        return Ok(None);
    }
    open_packed(path, base).map(Some)
}

/// Opens a packed file and its base.
pub(crate) fn open_packed(path: &Path, base: Option<&Path>) -> Result<PackedFile> {
    let packed = PackedFile::open(path)?;
    Ok(match base {
        Some(base) => packed.with_base(Base::open(base)?),
        None => packed,
    })
}

fn begins_like_one(path: &Path) -> bool {
    let mut bytes = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.is_ok() && bytes == MAGIC
}

fn open_path(path: &Path) -> Result<Source> {
    if !path.exists() {
        let what =
            "no such model: give a folder, a packed file, a GGUF file, hf://owner/name, or `demo`";
        return Err(Error::new(tensorpress::ErrorKind::Io, what).in_file(path));
    }
    let is_file = path.extension().is_some_and(|kind| kind == "safetensors") || is_gguf(path);
    if !path.is_dir() && !is_file {
        let what = "is no model: a model is a folder with .safetensors files, such a folder packed, one such file, or a GGUF file";
        return Err(Error::unsupported(what).in_file(path));
    }
    open_model(path)
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
