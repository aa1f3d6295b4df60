//! Official readers of others' formats accept what we write: fetched from PyPI into an environment of their own.

use std::process::Command;

use crate::{Outcome, cargo, execute, root};

/// The checks, which print lines of docs/interop.md.
const SCRIPT: &str = include_str!("interop.py");

pub fn run() -> Outcome {
    execute(&mut cargo(&["build", "--release", "-p", "tensorpress-cli"]))?;
    let folder = root().join("target/interop");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
    }
    let fetch = ["-m", "pip", "install", "-q", "--only-binary", ":all:", "gguf", "xllamacpp"];
    execute(Command::new(&python).args(fetch))?;
    let script = folder.join("interop.py");
    std::fs::write(&script, SCRIPT).map_err(|e| format!("{}: {e}", script.display()))?;
    let shared =
        std::env::var_os("TENSORPRESS_SHARED").map_or_else(|| root().join("../shared"), Into::into);
    let program = root().join("target/release/tensorpress");
    execute(Command::new(&python).arg(&script).args([&program, &shared, &folder.join("files")]))
}
