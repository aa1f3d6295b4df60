//! What the compiler says: style, lints, pages, features, the oldest compiler.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use super::{Done, PASSED, Verdict};
use crate::{Outcome, api, cargo, execute, output, tools};

/// Formatting; and where a manifest says that a library or program has no tests in it, it has none.
pub fn fmt() -> Verdict {
    execute(&mut cargo(&["fmt", "--all", "--check"]))?;
    for package in tools::members(&tools::metadata()?)? {
        for target in package["targets"].as_array().into_iter().flatten() {
            let path = Path::new(target["src_path"].as_str().ok_or("a target has no source")?);
            let sources = path.parent().ok_or("a source has no folder")?;
            let inside = ["lib", "bin"].iter().any(|kind| target["kind"][0] == *kind);
            if inside && target["test"] == false {
                no_tests_in(sources)?;
            }
        }
    }
    PASSED
}

/// Tests there would never run.
fn no_tests_in(folder: &Path) -> Outcome {
    for path in tools::files(folder, "rs")? {
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if ["#[test]", "cfg(test)", "proptest!"].iter().any(|mark| text.contains(mark)) {
            return Err(format!(
                "{} has tests, but its manifest says `test = false`",
                path.display()
            ));
        }
    }
    Ok(())
}

pub fn clippy() -> Verdict {
    execute(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    PASSED
}

/// The pages; without what only tests turn on, so that the crates are checked as users build them.
pub fn doc() -> Verdict {
    let mut command = cargo(&["doc", "--no-deps"]);
    for (name, _) in tools::published()? {
        command.args(["-p", &name]);
    }
    execute(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    PASSED
}

/// The public interface is the committed one.
pub fn api() -> Verdict {
    api::check()
}

/// What no other step turns on; never all features at once. (`kvcache` without its own is checked for WebAssembly, and the
/// benches turn on what `tokencomp` needs C for.)
pub fn features() -> Verdict {
    // With all of the workspace, so that what others need is as clippy has checked it.
    execute(&mut cargo(&["check", "--workspace", "--features", "tensorpress-cli/hub"]))?;
    execute(&mut cargo(&["check", "-p", "tensorpress", "--no-default-features"]))?;
    let pages = ["check", "-p", "tensorpress", "--no-default-features", "--features", "report"];
    execute(&mut cargo(&pages))?;
    PASSED
}

/// No crate that users build may ask for a newer compiler than the workspace states, or for one of C. (Newer standard library
/// features in our own code are found by clippy's `incompatible_msrv`.)
pub fn msrv() -> Verdict {
    let stated = stated()?;
    let metadata = tools::metadata()?;
    let packages = tools::packages(&metadata)?;
    // What the embedding user builds: the facade and the program, without what only tests and benches pull in.
    let mut needed = BTreeSet::new();
    for package in ["tensorpress", "tensorpress-cli"] {
        let tree = ["tree", "-p", package, "-e", "normal,build", "--prefix", "none", "-f", "{p}"];
        let tree = output(&mut cargo(&tree))?;
        needed.extend(tree.lines().filter_map(|l| {
            let mut words = l.split(' ');
            Some((words.next()?.to_owned(), words.next()?.trim_start_matches('v').to_owned()))
        }));
    }
    if let Some((name, _)) = needed.iter().find(|(name, _)| name == "cc") {
        return Err(format!("the default build needs C: `{name}` is in it"));
    }
    let version = |v: &str| -> Vec<u32> { v.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    for package in packages {
        let field = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let wants = field("rust_version");
        let used = needed.contains(&(field("name"), field("version")));
        if used && !wants.is_empty() && version(&wants) > version(&stated) {
            return Err(format!("{} needs Rust {wants}, we state {stated}", field("name")));
        }
    }
    println!("{} packages need no more than Rust {stated}", needed.len());
    PASSED
}

/// The program, built by the oldest compiler that the workspace states.
pub fn oldest() -> Verdict {
    let stated = stated()?;
    if !tools::toolchain(&stated) {
        return Ok(Done::Skipped(format!("Rust {stated} cannot be had here")));
    }
    let mut command = Command::new("cargo");
    command.arg(format!("+{stated}")).args(["check", "-p", "tensorpress-cli"]);
    execute(command.current_dir(crate::root()))?;
    PASSED
}

/// The compiler version that the workspace states.
fn stated() -> Outcome<String> {
    let metadata = tools::metadata()?;
    let ours = tools::packages(&metadata)?.iter().find(|p| p["name"] == "tensorpress");
    let stated = ours.and_then(|p| p["rust_version"].as_str()).ok_or("no rust-version stated")?;
    Ok(stated.to_owned())
}
