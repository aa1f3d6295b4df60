//! What other languages see of tensorpress: workspaces of their own, as what they need is nobody else's.

use std::path::PathBuf;
use std::process::Command;

use super::{PASSED, Verdict};
use crate::{Outcome, execute, output, root, tools};

const DOORS: [&str; 2] = ["crates/c", "crates/python"];

/// A call of cargo in one of them, whose builds lie beside all others: third parties are built once.
fn cargo(door: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.current_dir(root().join(door)).args(arguments).env("CARGO_TARGET_DIR", target());
    command
}

fn target() -> PathBuf {
    let target = tools::target();
    if target.is_absolute() { target } else { root().join(target) }
}

/// The C interface: its header is the committed one, and a program in C calls all of it under the address sanitizer.
pub fn c() -> Verdict {
    execute(&mut cargo("crates/c", &["fmt", "--check"]))?;
    // As the wheel is built, so that third parties serve both.
    let mut test = cargo("crates/c", &["test", "--profile", "dev", "--locked"]);
    execute(test.env("TENSORPRESS_REQUIRE_DATA", "1"))?;
    PASSED
}

/// The Python package: the wheel is built, installed into an environment of its own, and tested there with its stubs.
pub fn python() -> Verdict {
    execute(&mut cargo("crates/python", &["fmt", "--check"]))?;
    if output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        tools::debian(&["python3-venv"]);
    }
    let mut test = Command::new("python3");
    test.current_dir(root()).arg("crates/python/test.py");
    execute(test.env("CARGO_TARGET_DIR", target()).env("TENSORPRESS_REQUIRE_DATA", "1"))?;
    PASSED
}

/// Lints and pages of both; and the program that is compared with official readers is built.
pub fn lints() -> Verdict {
    let both = |door: &&str| -> Outcome {
        execute(&mut cargo(door, &["clippy", "--all-targets", "--", "-D", "warnings"]))?;
        execute(cargo(door, &["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    };
    DOORS.iter().try_for_each(both)?;
    execute(&mut crate::cargo(&["check", "-p", "xtask", "--features", "interop"]))?;
    PASSED
}
