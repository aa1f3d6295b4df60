//! Official readers of others' formats accept what we write: fetched from PyPI into an environment of their own.

use std::process::Command;

use crate::{Outcome, cargo, execute, made, root, shared};

/// The checks, which print tables of docs/interop.md.
const SCRIPTS: [(&str, &str); 10] = [
    ("main.py", include_str!("interop/main.py")),
    ("common.py", include_str!("interop/common.py")),
    ("binding.py", include_str!("interop/binding.py")),
    ("llama_cpp.py", include_str!("interop/llama_cpp.py")),
    ("folders.py", include_str!("interop/folders.py")),
    ("transformers_.py", include_str!("interop/transformers_.py")),
    ("plain.py", include_str!("interop/plain.py")),
    ("gptq.py", include_str!("interop/gptq.py")),
    ("awq_.py", include_str!("interop/awq_.py")),
    ("bitsandbytes_.py", include_str!("interop/bitsandbytes_.py")),
];

/// Runs the checks of these peers, by the names of their scripts; of all if there are none.
pub fn run(peers: &[&str]) -> Outcome {
    let programs = ["--bin", "tensorpress", "--bin", "logits"];
    let packages = ["-p", "tensorpress-cli", "-p", "xtask", "--features", "xtask/interop"];
    execute(cargo(&["build", "--release"]).args(packages).args(programs))?;
    let folder = root().join("target/interop");
    let scripts = folder.join("scripts");
    std::fs::create_dir_all(&scripts).map_err(|e| format!("{}: {e}", scripts.display()))?;
    for (name, text) in SCRIPTS {
        let path = scripts.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
    }
    execute(Command::new(&python).args(["-m", "pip", "install", "-q", "numpy"]))?;
    let experts = folder.join("experts");
    made::write_with(&experts, &made::FEW_EXPERTS, &shared().join("data/models/stories260k"))?;
    let release = root().join("target/release");
    let mut command = Command::new(&python);
    command.arg(scripts.join("main.py"));
    command.args([release.join("tensorpress"), release.join("logits"), shared()]);
    execute(command.args([folder.join("files"), experts]).args(peers))
}
