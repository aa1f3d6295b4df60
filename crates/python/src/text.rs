//! Texts as Python hands them over.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyString;
use serde_json::json;
use tensorpress::Error;
use tensorpress::model::text::Corpus;

use crate::error::{raise, type_error};

/// A text, or some; read where the interpreter is not held up.
pub(crate) enum Text {
    Plain(String),
    File(PathBuf),
    /// JSON lines.
    Lines(Vec<u8>),
}

impl Text {
    /// `str` is a text, a `Path` a file of texts, and anything else is iterated: texts, or token ids of texts.
    pub(crate) fn of(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = given.cast::<PyString>() {
            let text = text.to_string_lossy().into_owned();
            // Nobody means to calibrate on a name.
            if !text.contains('\n') && Path::new(&text).is_file() {
                let message =
                    format!("`{text}` is the name of a file: for what it holds, give a Path");
                return Err(raise(Error::invalid(message)));
            }
            return Ok(Self::Plain(text));
        }
        if given.hasattr("__fspath__")? {
            return Ok(Self::File(given.extract()?));
        }
        let mut lines = Vec::new();
        for document in given.try_iter()? {
            let document = document?;
            let line = match document.cast::<PyString>() {
                Ok(text) => json!({ "text": text.to_string_lossy() }),
                Err(_) => json!({ "ids": ids(&document)? }),
            };
            lines.extend(format!("{line}\n").into_bytes());
        }
        if lines.is_empty() {
            return Err(raise(Error::insufficient("no text in an empty sequence")));
        }
        Ok(Self::Lines(lines))
    }

    /// The texts.
    pub(crate) fn read(self) -> tensorpress::Result<Corpus> {
        match self {
            Self::Plain(text) => Ok(text.into()),
            Self::File(path) => Corpus::read(&path),
            Self::Lines(lines) => Corpus::from_bytes(lines, Path::new("texts")),
        }
    }
}

fn ids(document: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let wrong = |_| {
        let kind = document.get_type();
        type_error(format!("a text is a str or a sequence of token ids, not {kind}"))
    };
    let ids: PyResult<Vec<u32>> =
        document.try_iter().and_then(|ids| ids.map(|id| id?.extract::<u32>()).collect());
    ids.map_err(wrong)
}
