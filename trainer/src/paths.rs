//! Where the inputs lie and where the product goes.

use std::path::PathBuf;

/// Root of the workspace, found from the place this package was built at.
pub fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in a workspace")
        .into()
}

/// Folder of the shared models and texts: `TENSORPRESS_SHARED`, or `../shared` beside the workspace.
pub fn shared() -> PathBuf {
    match std::env::var_os("TENSORPRESS_SHARED") {
        Some(path) => path.into(),
        None => workspace_root().join("../shared"),
    }
}

/// A model folder of the shared data.
pub fn shared_model(name: &str) -> PathBuf {
    shared().join("data/models").join(name)
}

/// A text of the shared data.
pub fn shared_text(name: &str) -> PathBuf {
    shared().join("data/text").join(name)
}

/// The small mixture's folder.
pub fn mixture() -> PathBuf {
    workspace_root().join("trainer/models/moe")
}

/// The embedded demo model's folder.
pub fn demo() -> PathBuf {
    workspace_root().join("crates/model/demo")
}
