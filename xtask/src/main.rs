//! What a maintainer runs: `cargo xtask ci`, `more` (what is too long for CI), `api` (the listing of the public interface),
//! `tables`, `wrap` (lines of docs), `made-checkpoint [experts] DIR`, `made-moe DIR`, `memory [DIR]`, `faults [ONE_IN]`,
//! `interop [PEER ...]` (official readers of others' formats, fetched from PyPI, accept what we write), `peers [WORD ...]` (the
//! speed of ggml beside ours), `ablation MODEL [WORD ...]` (what the best recipe owes to each of its parts), `methods MODEL`
//! (each of them), `mixes MODEL` (targets beside one level for all), `embeddings MODEL` (whole files), `report` (a page in a browser, light and dark) and `rivals MODEL [TYPE ...]` (types of
//! GGUF, as ggml fills them and as we do).

mod api;
mod ci;
mod faults;
mod interop;
mod made;
mod memory;
mod peers;
mod quality;
mod report;
mod tools;
#[cfg(test)]
mod unsafety;
mod wrap;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Result whose error is a sentence for the terminal.
pub type Outcome<T = ()> = Result<T, String>;

fn main() -> ExitCode {
    if let Some(code) = api::stand_in() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["ci", steps @ ..] => ci::run(steps),
        ["more", steps @ ..] => ci::more(steps),
        ["api"] => api::write(),
        ["wrap"] => wrap::run(),
        ["tables"] => tables(),
        ["stages"] => stages(),
        ["made-checkpoint", folder] => made::write(Path::new(folder), &made::DENSE),
        ["made-checkpoint", "experts", folder] => made::write(Path::new(folder), &made::EXPERTS),
        ["made-moe", folder] => {
            let tokenizer = shared().join("data/models/stories260k");
            made::write_with(Path::new(folder), &made::FEW_EXPERTS, &tokenizer)
        }
        ["faults"] => faults::run(&root().join("target/faults"), 1),
        ["faults", part] => {
            let part = part.parse().map_err(|e| format!("faults {part}: {e}"));
            part.and_then(|part| faults::run(&root().join("target/faults"), part))
        }
        ["interop", peers @ ..] => interop::run(peers),
        ["ablation", model, only @ ..] => quality::ablation(model, only),
        ["caches", model, only @ ..] => quality::caches(model, only),
        ["embeddings", model] => quality::embeddings(model),
        ["mixes", model] => quality::mixes(model),
        ["methods", model] => quality::methods(model),
        ["peers", words @ ..] => peers::run(words),
        ["report"] => report::run(),
        ["rivals", model, types @ ..] => quality::rivals(model, types),
        ["memory"] => memory::run(&root().join("target/made-1b")),
        ["memory", folder] => memory::run(Path::new(folder)),
        _ => Err(format!(
            "usage: cargo xtask ci [STEP ...] | more [STEP ...] | api | stages | tables | wrap | made-checkpoint [experts] DIR | made-moe DIR | memory [DIR] | faults [ONE_IN] | interop [PEER ...] | peers [WORD ...] | ablation MODEL [WORD ...] | caches MODEL [WORD ...] | methods MODEL | mixes MODEL | embeddings MODEL | report | rivals MODEL [TYPE ...]\n{}",
            ci::names()
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the lists of stages in docs/recipes.md anew, as the stages say.
fn stages() -> Outcome {
    let test = ["test", "-p", "tensorpress", "--test", "stages", "--", "the_page"];
    execute(cargo(&test).env("TENSORPRESS_WRITE_TABLES", "1"))
}

/// Measures compositions and caches on real models, and writes their pages in docs/benchmarks anew.
fn tables() -> Outcome {
    let test = ["test", "-p", "tensorpress", "--test", "tables", "--"];
    let mut command = cargo(
        &[
            &test[..],
            &["--include-ignored", "compositions", "caches", "--nocapture", "--skip", "smaller"],
        ]
        .concat(),
    );
    command.env("TENSORPRESS_WRITE_TABLES", "1").env("TENSORPRESS_REQUIRE_DATA", "1");
    execute(&mut command)
}

/// Root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Data that is no part of the project.
pub fn shared() -> PathBuf {
    let named = std::env::var_os("TENSORPRESS_SHARED");
    named.map_or_else(|| root().join("../shared"), Into::into)
}

/// Runs a command to its end; a failure names it.
pub fn execute(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(e) => Err(format!("{shown}: {e}")),
    }
}

/// Standard output of a command.
pub fn output(command: &mut Command) -> Outcome<String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{shown}: {}\n{errors}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{shown}: {e}"))
}

/// A cargo command in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}
