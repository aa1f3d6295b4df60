//! Finding test data: real models, texts and golden vectors that live outside the repository.
//!
//! `TENSORPRESS_SHARED` names the folder with `data/` and `golden/` (default: `shared` beside the workspace root);
//! `TENSORPRESS_MINILM` the folder of all-MiniLM-L6-v2. What is absent is skipped loudly, or a failure if
//! `TENSORPRESS_REQUIRE_DATA=1`.

use std::path::{Path, PathBuf};

/// The folder with `data/` and `golden/`, if it is there.
#[must_use]
pub fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("TENSORPRESS_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => workspace_root()?.parent()?.join("shared"),
    };
    folder.is_dir().then_some(folder)
}

/// The root of the workspace that is being tested: cargo runs tests in the package's folder.
fn workspace_root() -> Option<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from)?;
    package.ancestors().filter(|p| p.join("Cargo.toml").is_file()).last().map(Path::to_path_buf)
}

/// A file or folder under `shared()`; if it is absent the test says so and should return.
///
/// # Panics
/// If it is absent and `TENSORPRESS_REQUIRE_DATA=1`.
#[must_use]
pub fn find(relative: &str) -> Option<PathBuf> {
    let found = shared().map(|s| s.join(relative)).filter(|p| p.exists());
    if found.is_none() {
        skip(relative);
    }
    found
}

/// The folder of all-MiniLM-L6-v2; if it is absent the test says so and should return.
///
/// # Panics
/// As [`find`].
#[must_use]
pub fn minilm() -> Option<PathBuf> {
    let found = std::env::var_os("TENSORPRESS_MINILM").map(PathBuf::from).filter(|p| p.is_dir());
    if found.is_none() {
        skip("all-MiniLM-L6-v2 (set TENSORPRESS_MINILM to its folder)");
    }
    found
}

/// Golden vectors of one method: files `<method>__*.safetensors`, sorted.
///
/// # Panics
/// As [`find`], or if the folder cannot be listed.
#[must_use]
pub fn golden_weights(method: &str) -> Option<Vec<PathBuf>> {
    let folder = find("golden/weights")?;
    let prefix = format!("{method}__");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of golden vectors can be listed")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    files.sort();
    Some(files)
}

/// Says what a test skipped.
///
/// # Panics
/// If `TENSORPRESS_REQUIRE_DATA=1`.
pub fn skip(what: &str) {
    assert!(
        std::env::var("TENSORPRESS_REQUIRE_DATA").as_deref() != Ok("1"),
        "test data is required but absent: {what}"
    );
    eprintln!("SKIPPED: test data is absent: {what}");
}
