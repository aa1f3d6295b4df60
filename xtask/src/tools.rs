//! What is on this machine, and what can be brought to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Outcome, cargo, execute, output, root};

/// How long one download may take before it counts as not to be had.
const PATIENCE: &str = "120";

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into)
}

/// Whether a program answers when asked for its version.
pub fn found(program: &str) -> bool {
    output(Command::new(program).arg("--version")).is_ok()
}

/// What cargo knows of the workspace and everything it is built of.
pub fn metadata() -> Outcome<Value> {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// All packages in what cargo knows.
pub fn packages(metadata: &Value) -> Outcome<&[Value]> {
    metadata["packages"].as_array().map(Vec::as_slice).ok_or("no packages in the metadata".into())
}

/// The packages of the workspace.
pub fn members(metadata: &Value) -> Outcome<Vec<&Value>> {
    let members = metadata["workspace_members"].as_array().ok_or("no members in the metadata")?;
    Ok(packages(metadata)?.iter().filter(|p| members.contains(&p["id"])).collect())
}

/// The packages of the workspace that are published: name and folder.
pub fn published() -> Outcome<Vec<(String, PathBuf)>> {
    let metadata = metadata()?;
    let named = |package: &&Value| {
        let manifest = PathBuf::from(package["manifest_path"].as_str()?);
        Some((package["name"].as_str()?.to_owned(), manifest.parent()?.to_owned()))
    };
    let ours = members(&metadata)?;
    Ok(ours.iter().filter(|p| p["publish"].is_null()).filter_map(named).collect())
}

/// The files with an extension in a folder and all below it.
pub fn files(folder: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            match path.extension().is_some_and(|e| e == extension) {
                true => files.push(path),
                false if path.is_dir() => folders.push(path),
                false => {}
            }
        }
    }
    Ok(files)
}

/// Runs rustup, for as long as a download may take; says whether it did what was asked.
fn rustup(arguments: &[&str]) -> bool {
    execute(Command::new("timeout").args([PATIENCE, "rustup"]).args(arguments)).is_ok()
}

/// Whether a toolchain is here, or could be brought.
pub fn toolchain(name: &str) -> bool {
    let here = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    here.lines().any(|line| line.starts_with(name))
        || rustup(&["toolchain", "install", name, "--profile", "minimal"])
}

/// Whether parts of a toolchain are here, or could be brought.
pub fn components(toolchain: &str, names: &[&str]) -> bool {
    rustup(&[&["component", "add", "--toolchain", toolchain], names].concat())
}

/// Whether the standard library of a target is here, or could be brought.
pub fn target_library(target: &str) -> bool {
    rustup(&["target", "add", target])
}

/// Whether these programs are here, or could be had out of Debian's packages.
pub fn programs(programs: &[&str], packages: &[&str]) -> bool {
    let all = || programs.iter().all(|program| found(program));
    all() || (debian(packages) && all())
}

/// Installs Debian's packages; says whether that went well.
pub fn debian(packages: &[&str]) -> bool {
    let _ = execute(Command::new("apt-get").args(["update", "-qq"]));
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    execute(&mut install).is_ok()
}
