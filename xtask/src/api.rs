//! The public interface of every library, one item a line, in `api/`: what changes it shows in a commit.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use public_api::Builder;

use crate::ci::{Done, PASSED, Verdict};
use crate::{Outcome, cargo, execute, root, tools};

/// Set for the process in which this program stands for rustdoc.
const STAND_IN: &str = "XTASK_RUSTDOC";

/// The version of rustdoc's JSON by which the committed listing was made: another one may print otherwise.
const FORMAT: u64 = 57;

/// What the line of an `impl` already says.
const IMPLIED: [&str; 4] = [
    "::clone(&self) -> ",
    "::eq(&self, ",
    "::fmt(&self, &mut core::fmt::Formatter",
    "impl core::marker::StructuralPartialEq ",
];

/// Writes the listing anew.
pub fn write() -> Outcome {
    let folder = root().join("api");
    let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
    let Some(listings) = listings()? else {
        return Err(format!("rustdoc here does not write its format {FORMAT}"));
    };
    if folder.is_dir() {
        std::fs::remove_dir_all(&folder).map_err(fail)?;
    }
    std::fs::create_dir_all(&folder).map_err(fail)?;
    for (path, text) in listings {
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Fails where the listing is not the committed one.
pub fn check() -> Verdict {
    let Some(listings) = listings()? else {
        return Ok(Done::Skipped(format!("rustdoc here does not write its format {FORMAT}")));
    };
    let mut differences = Vec::new();
    for (path, now) in &listings {
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let missing = |from: &str, of: &str, sign: &str| -> Vec<String> {
            let of: std::collections::HashSet<&str> = of.lines().collect();
            from.lines().filter(|l| !of.contains(l)).map(|l| format!("{sign}{l}")).collect()
        };
        differences.extend(missing(&committed, now, "-"));
        differences.extend(missing(now, &committed, "+"));
    }
    if differences.is_empty() {
        println!("{} libraries as in api/", listings.len());
        return PASSED;
    }
    Err(format!(
        "the public interface is not that of api/ (`cargo xtask api` writes it anew):\n{}",
        differences.join("\n")
    ))
}

/// Path and text of the listing of each library; none where rustdoc writes another format.
fn listings() -> Outcome<Option<Vec<(PathBuf, String)>>> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let flags = "-Zunstable-options --output-format=json --cap-lints=allow";
    let mut command = cargo(&["doc", "--no-deps", "--lib", "--quiet"]);
    for (name, _) in tools::published()? {
        command.args(["-p", &name]);
    }
    execute(command.env("RUSTDOC", program).env(STAND_IN, "1").env("RUSTDOCFLAGS", flags))?;
    let mut listings = Vec::new();
    for (name, folder) in tools::published()? {
        if !folder.join("src/lib.rs").is_file() {
            continue;
        }
        let json = tools::target().join(format!("doc/{}.json", name.replace('-', "_")));
        if format(&json)? != FORMAT {
            return Ok(None);
        }
        let api = Builder::from_rustdoc_json(&json).omit_blanket_impls(true);
        let api = api.omit_auto_trait_impls(true).build().map_err(|e| format!("{name}: {e}"))?;
        let lines = api.items().map(|item| format!("{item}\n"));
        let text: String = lines.filter(|l| !IMPLIED.iter().any(|i| l.contains(i))).collect();
        listings.push((root().join(format!("api/{name}.txt")), text));
    }
    Ok(Some(listings))
}

/// The version of the format that a file says it has.
fn format(json: &Path) -> Outcome<u64> {
    let text = std::fs::read(json).map_err(|e| format!("{}: {e}", json.display()))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    value["format_version"].as_u64().ok_or(format!("{}: no version", json.display()))
}

/// In a process that cargo starts as rustdoc: runs the real one, and lets it write JSON, which no stable release
/// allows yet. Only rustdoc sees this, so that nothing is compiled once more for it.
pub fn stand_in() -> Option<ExitCode> {
    std::env::var_os(STAND_IN)?;
    let arguments = std::env::args_os().skip(1);
    let status = Command::new("rustdoc").args(arguments).env("RUSTC_BOOTSTRAP", "1").status();
    Some(if status.is_ok_and(|s| s.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
