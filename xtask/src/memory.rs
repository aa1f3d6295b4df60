//! Peak resident memory of compressing and packing a billion parameters, measured by `/usr/bin/time -v`.

use std::path::Path;
use std::process::Command;

use crate::{Outcome, cargo, execute, made, root, tools};

/// Recipe, other arguments, and the bound in bytes.
type Run = (&'static str, &'static [&'static str], u64);

const WINDOWS: &[&str] = &["--calib-windows", "8", "--calib-length", "256"];

const RUNS: [Run; 2] = [
    ("rtn(bits=4, group=128)", &[], 700_000_000),
    ("gptq(bits=4, group=128)", WINDOWS, 1_200_000_000),
];

/// With a backward pass, of the dense one alone: a quarter of an hour.
const BACKWARD: Run = ("watersic(bits=3, states=0) | coded(rans)", WINDOWS, 3_000_000_000);

/// The bound of packing, verifying and unpacking, in bytes.
const PACKING: u64 = 300_000_000;

/// Compresses the made checkpoints by each recipe: one in `folder`, and one of experts beside it (each written first if
/// it is not there). Packs the first.
pub fn run(folder: &Path) -> Outcome {
    let experts = folder.with_extension("experts");
    for (folder, shape) in [(folder, &made::DENSE), (&experts, &made::EXPERTS)] {
        if !folder.join("model.safetensors.index.json").is_file() {
            made::write(folder, shape)?;
        }
    }
    execute(&mut cargo(&["build", "--release", "-p", "tensorpress-cli"]))?;
    let program = tools::target().join("release/tensorpress");
    let mut failures = Vec::new();
    let runs = [folder, &experts].into_iter().flat_map(|of| RUNS.map(|run| (of, run)));
    let runs = runs.chain([(folder, BACKWARD)]);
    for (folder, (recipe, arguments, bound)) in runs {
        let out = folder.with_extension("compressed");
        let mut command = timed(&program);
        command.arg("compress").arg(folder);
        command.args(["--recipe", recipe, "--force", "--json", "--out"]).arg(&out).args(arguments);
        command.arg("--calib").arg(root().join("crates/model/demo/calib.txt"));
        let name = format!("{}: {recipe}", folder.display());
        if measure(&name, &mut command)? > bound {
            failures.push(name);
        }
        std::fs::remove_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    }
    let [packed, unpacked] = ["tpk", "unpacked"].map(|name| folder.with_extension(name));
    let mut pack = timed(&program);
    pack.arg("pack").arg(folder).args(["--force", "--json", "--out"]).arg(&packed);
    let mut verify = timed(&program);
    verify.arg("verify").arg(&packed).arg("--json");
    let mut unpack = timed(&program);
    unpack.arg("unpack").arg(&packed).args(["--force", "--json", "--out"]).arg(&unpacked);
    for (name, mut command) in [("pack", pack), ("verify", verify), ("unpack", unpack)] {
        if measure(name, &mut command)? > PACKING {
            failures.push(name.into());
        }
    }
    execute(Command::new("diff").arg("-r").args([folder, &unpacked]))?;
    std::fs::remove_dir_all(&unpacked).map_err(|e| format!("{}: {e}", unpacked.display()))?;
    std::fs::remove_file(&packed).map_err(|e| format!("{}: {e}", packed.display()))?;
    if failures.is_empty() { Ok(()) } else { Err(format!("over the bound: {failures:?}")) }
}

fn timed(program: &Path) -> Command {
    let mut command = Command::new("/usr/bin/time");
    command.arg("-v").arg(program);
    command
}

/// Runs a command under `time`; prints and gives its peak resident memory in bytes.
fn measure(name: &str, command: &mut Command) -> Outcome<u64> {
    let output =
        command.output().map_err(|e| format!("{command:?}: {e} (Debian package `time`)"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{errors}", output.status));
    }
    let line = errors.lines().find(|l| l.contains("Maximum resident set size"));
    let kib = line.and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
    let peak = 1024 * kib.ok_or("no peak memory in the output of time")?;
    let elapsed = errors.lines().find(|l| l.contains("Elapsed")).unwrap_or_default().trim();
    println!("{name}: peak {:.3} GB, {elapsed}", peak as f64 / 1e9);
    Ok(peak)
}
