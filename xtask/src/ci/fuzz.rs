//! Fuzzing: one program that holds every target, built once; `TENSORPRESS_FUZZ` names the one that a process runs.

use std::process::Command;

use super::{Done, PASSED, Verdict};
use crate::{Outcome, execute, root, tools};

/// What libFuzzer needs to see which code an input reaches, and the address sanitizer.
const FLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Cdebug-assertions";

/// Every target for 20 seconds, from its seeds.
pub fn short() -> Verdict {
    fuzz(20)
}

/// Every target for 10 minutes.
pub fn long() -> Verdict {
    fuzz(600)
}

fn fuzz(seconds: u32) -> Verdict {
    if !tools::toolchain("nightly") {
        return Ok(Done::Skipped("no nightly toolchain, which fuzzing needs".into()));
    }
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = Command::new("cargo");
    build.current_dir(root().join("fuzz")).env("RUSTFLAGS", FLAGS);
    // A target is named, so that build scripts and macros are not instrumented.
    execute(build.args(["+nightly", "build", "--release", "--target", &host]))?;
    let program = &format!("fuzz/target/{host}/release/all");
    // Two at a time: a target uses one core.
    for pair in targets()?.chunks(2) {
        let runs: Vec<Outcome> = std::thread::scope(|scope| {
            let threads: Vec<_> = pair
                .iter()
                .map(|target| scope.spawn(move || run(program, target, seconds)))
                .collect();
            threads.into_iter().map(|t| t.join().map_err(|_| "a panic".to_owned())?).collect()
        });
        runs.into_iter().collect::<Outcome>()?;
    }
    PASSED
}

/// Each target has a folder of seeds.
fn targets() -> Outcome<Vec<String>> {
    let folder = root().join("fuzz/seeds");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    names.sort();
    Ok(names)
}

fn run(program: &str, target: &str, seconds: u32) -> Outcome {
    let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    let artifacts = format!("fuzz/artifacts/{target}/");
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(root().join(folder)).map_err(|e| format!("{folder}: {e}"))?;
    }
    let mut command = Command::new(root().join(program));
    command.current_dir(root()).env("TENSORPRESS_FUZZ", target).args([&corpus, &seeds]);
    command.arg(format!("-artifact_prefix={artifacts}"));
    command.arg(format!("-max_total_time={seconds}"));
    execute(command.args(["-rss_limit_mb=2048", "-verbosity=0", "-print_funcs=0"]))
}
