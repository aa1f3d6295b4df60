//! Pages about what was done.

use std::io::Write as _;
use std::path::Path;

use tensorpress::report::Page;
use tensorpress::tensor::checkpoint::write_atomically;
use tensorpress::{Error, Result};

use crate::args::Rivals;

/// That a page may be written there, which is better said before the work.
pub(crate) fn check(path: &Path, force: bool) -> Result<()> {
    if !force && std::fs::symlink_metadata(path).is_ok() {
        return Err(Error::exists("exists already").in_file(path));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(Error::invalid("is no folder to write a page into").in_file(folder)),
        None => Ok(()),
    }
}

impl Rivals {
    /// A page with them on it.
    pub(crate) fn on(&self, page: Page) -> Page {
        if self.all.is_empty() { page } else { page.with_rivals(self.all.clone()) }
    }
}

/// Writes a page, with the command that was given; it comes whole or not at all.
pub(crate) fn write(page: Page, path: &Path) -> Result<()> {
    let html = page.with_command(command()).html();
    let html = html.map_err(|e| Error::invalid(format!("the page: {e}")).in_file(path))?;
    write_file(html.as_bytes(), path)
}

/// Writes a file, whole or not at all.
pub(crate) fn write_file(bytes: &[u8], path: &Path) -> Result<()> {
    write_atomically(path, &mut |file| {
        file.write_all(bytes).map_err(|e| Error::io("write the file", path, e))
    })
}

/// The command of this process, as a shell takes it.
fn command() -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = |word: String| match !word.is_empty() && word.chars().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> =
        std::iter::once("tensorpress".to_owned()).chain(words.map(quoted)).collect();
    words.join(" ")
}
