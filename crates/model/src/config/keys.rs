//! Typed access to the keys of a `config.json`, with errors that name the key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tensorpress_tensor::{Error, Result};

/// A JSON object and where it comes from.
pub(crate) struct Keys<'a> {
    json: &'a Value,
    /// Path of enclosing keys, with a trailing dot.
    path: String,
    file: PathBuf,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(json: &'a Value, file: &Path) -> Result<Self> {
        let keys = Self { json, path: String::new(), file: file.to_path_buf() };
        if json.is_object() { Ok(keys) } else { Err(keys.bad("the file is no JSON object")) }
    }

    /// These keys with other values, of the same place.
    pub(crate) fn over<'b>(&self, json: &'b Value) -> Keys<'b> {
        Keys { json, path: self.path.clone(), file: self.file.clone() }
    }

    /// Where they come from.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The values.
    pub(crate) fn json(&self) -> &'a Value {
        self.json
    }

    /// The object under `key`, if it is there and not null.
    pub(crate) fn child(&self, key: &str) -> Result<Option<Self>> {
        let Some(json) = self.present(key) else { return Ok(None) };
        if !json.is_object() {
            return Err(self.bad(format!("`{}{key}` = {json} is no object", self.path)));
        }
        let path = format!("{}{key}.", self.path);
        Ok(Some(Self { json, path, file: self.file.clone() }))
    }

    /// The objects in the list under `key`, if it is there and not null.
    pub(crate) fn children(&self, key: &str) -> Result<Option<Vec<Self>>> {
        let Some(json) = self.present(key) else { return Ok(None) };
        let Some(list) = json.as_array().filter(|list| list.iter().all(Value::is_object)) else {
            return Err(self.bad(format!("`{}{key}` is no list of objects", self.path)));
        };
        let child = |(i, json)| {
            let path = format!("{}{key}[{i}].", self.path);
            Self { json, path, file: self.file.clone() }
        };
        Ok(Some(list.iter().enumerate().map(child).collect()))
    }

    /// A key with its path, for errors.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("`{}{key}`", self.path)
    }

    /// The value of `key`; null counts as absent.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        T::deserialize(value)
            .map(Some)
            .map_err(|e| self.bad(format!("`{}{key}` = {value}: {e}", self.path)))
    }

    /// The name, of several for the same, that is there; the first if none is.
    pub(crate) fn known<'n>(&self, names: &[&'n str]) -> &'n str {
        names.iter().find(|name| self.present(name).is_some()).unwrap_or(&names[0])
    }

    pub(crate) fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    pub(crate) fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| {
            Error::insufficient(format!("key `{}{key}` is missing", self.path)).in_file(&self.file)
        })
    }

    /// A size that must lie in `1..=max`.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<usize> {
        let value = self.require(key)?;
        self.check_size(key, value, max)
    }

    pub(crate) fn check_size(&self, key: &str, value: usize, max: usize) -> Result<usize> {
        if (1..=max).contains(&value) {
            return Ok(value);
        }
        Err(self.bad(format!("`{}{key}` = {value}, allowed is 1 to {max}", self.path)))
    }

    /// A finite number greater than 0.
    pub(crate) fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let value: f64 = match default {
            Some(default) => self.or(key, default)?,
            None => self.require(key)?,
        };
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(self.bad(format!("`{}{key}` = {value} must be positive and finite", self.path)))
    }

    pub(crate) fn present(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    /// The file contradicts itself.
    pub(crate) fn bad(&self, message: impl Into<String>) -> Error {
        Error::corruption(message).in_file(&self.file)
    }

    /// The file asks for something that does not exist here.
    pub(crate) fn unsupported(&self, message: impl Into<String>) -> Error {
        Error::unsupported(message).in_file(&self.file)
    }
}
