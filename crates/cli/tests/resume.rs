//! Work that was stopped: it leaves nothing half done, and resumes to the same bytes.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{arg, assert_fails, contents, demo_text, json, run, stderr, tensorpress};

const RECIPE: &str = "awq | gptq(bits=3, group=32, clip=mse)";

/// Starts to compress the demo model and kills the program as soon as shard number `shard` is there.
fn start_and_kill(out: &Path, shard: usize) {
    let mut child = tensorpress()
        .args(["compress", "demo", "--recipe", RECIPE, "--out", arg(out)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let name = format!("{}.partial/model-{shard:05}-of-00007.safetensors", arg(out));
    while !Path::new(&name).exists() {
        assert!(child.try_wait().expect("a status").is_none(), "ended before it was killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("a status");
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let report =
        json(&run(&["compress", "demo", "--recipe", RECIPE, "--out", arg(&whole), "--json"]));
    let out = folder.path().join("out");
    let partial = folder.path().join("out.partial");
    for shard in [1, 3, 5] {
        start_and_kill(&out, shard);
        assert!(!out.exists() && partial.is_dir());
    }
    // Another recipe, seed or calibration is another work.
    let other = |extra: &[&str]| {
        let mut args = vec!["compress", "demo", "--out", arg(&out)];
        args.extend(extra);
        run(&args)
    };
    assert_fails(
        &other(&["--recipe", "w8"]),
        1,
        &["out.partial", "the recipe was `awq(", "is `rtn(bits=8", "the calibration was"],
    );
    let seed = other(&["--recipe", RECIPE, "--seed", "7"]);
    assert_fails(&seed, 1, &["the seed was `0`, is `7`"]);
    let short = other(&["--recipe", RECIPE, "--calib-windows", "3"]);
    assert_fails(&short, 1, &["the calibration was `", "is `3 windows"]);

    let done = run(&["compress", "demo", "--recipe", RECIPE, "--out", arg(&out), "--json"]);
    let resumed = json(&done);
    assert!(stderr(&done).contains("resuming") || resumed["layers"] == report["layers"]);
    assert_eq!(resumed["layers"], report["layers"]);
    assert!(contents(&out) == contents(&whole));
    assert!(!partial.exists());
}

#[test]
fn force_begins_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    start_and_kill(&out, 3);
    let args = ["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--json", "--force"];
    let report = json(&run(&args));
    assert_eq!(report["layers"][0]["method"], "rtn(bits=8, group=128)");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn damaged_work_is_done_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    json(&run(&["compress", "demo", "--recipe", RECIPE, "--out", arg(&whole), "--json"]));
    let out = folder.path().join("out");
    start_and_kill(&out, 4);
    let shard = folder.path().join("out.partial/model-00002-of-00007.safetensors");
    let bytes = std::fs::read(&shard).expect("a shard");
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).expect("written");
    json(&run(&["compress", "demo", "--recipe", RECIPE, "--out", arg(&out), "--json"]));
    assert!(contents(&out) == contents(&whole));
}

/// A limit on the size of files stands in for a full disk: writes fail in the same way.
#[test]
#[cfg(unix)]
fn a_full_disk_is_an_error_that_resumes() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec '{}' compress demo --recipe w8 --out '{}'",
        env!("CARGO_BIN_EXE_tensorpress"),
        arg(&out)
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert_fails(&output, 1, &["model-00001-of-00007.safetensors", "cannot write", "resumes"]);
    assert!(!out.exists() && folder.path().join("out.partial").is_dir());
    json(&run(&["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--json"]));
    let fresh = folder.path().join("fresh");
    json(&run(&["compress", "demo", "--recipe", "w8", "--out", arg(&fresh), "--json"]));
    assert!(contents(&out) == contents(&fresh));
}

/// While the result is judged nothing is written any more: whoever asks once ends the program, and the result stays.
#[test]
#[cfg(unix)]
fn judging_is_ended_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    // So long a text that no machine has judged it before it is stopped.
    let texts = tempfile::tempdir().expect("a folder");
    let text = texts.path().join("long.jsonl");
    let held_out = std::fs::read_to_string(demo_text("heldout.jsonl")).expect("a text");
    std::fs::write(&text, held_out.repeat(50)).expect("written");
    let mut child = tensorpress()
        .args(["compress", "demo", "--recipe", "w8", "--out", arg(&out), "--eval", arg(&text)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    while !out.exists() {
        assert!(child.try_wait().expect("a status").is_none(), "ended before it was stopped");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The folder has its name a moment before the work is over: whoever asks in between is heard after it.
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill");
    assert!(kill.success());
    assert_eq!(child.wait().expect("a status").code(), Some(130));
    json(&run(&["inspect", arg(&out), "--json"]));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_mount_point_is_said_before_the_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("a new folder");
    // In a name space of its own, which ends with the program.
    let script = "mount -t tmpfs none \"$1\" || exit 77; shift; exec \"$@\"";
    let inside = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_tensorpress");
        let mut command = std::process::Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh", arg(&out), program]).args(args).output()
    };
    match inside(&["--version"]) {
        Ok(tried) if tried.status.success() => {}
        tried => {
            println!("SKIPPED: mount points: nothing can be mounted here: {tried:?}");
            return;
        }
    }
    let packed = folder.path().join("demo.tpk");
    let model = common::model_folder(folder.path());
    json(&run(&["pack", arg(&model), "--out", arg(&packed), "--json"]));
    for args in [
        &["compress", "demo", "--recipe", RECIPE, "--out", arg(&out), "--force"][..],
        &["unpack", arg(&packed), "--out", arg(&out), "--force"],
    ] {
        let refused = inside(args).expect("it ran before");
        assert_fails(&refused, 1, &["mount point"]);
        assert!(!stderr(&refused).contains("block"), "before the work");
        assert!(!folder.path().join("out.partial").exists());
    }
}

/// Files below a folder, or a file, and their contents; nothing if it is not there.
fn whole(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), std::fs::read(path).expect("a file"))];
    }
    let mut files = if path.is_dir() { contents(path) } else { Default::default() };
    // A kill between the name and the last removal leaves these, which harm nobody and go with the folder.
    for name in ["tensorpress.state.json", "tensorpress.lock"] {
        files.remove(name);
    }
    files.into_iter().collect()
}

/// Runs a command that writes `out`, and kills it at random moments, 20 times: what it writes is not there or whole, and
/// where it was not, the work that is left goes on. In the end the bytes are those of a run that nobody stopped, and
/// nothing lies beside them.
fn survives_kills(command: &[&str], out: &str, seed: u64) {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name).join(out);
    let start = |to: &Path, force: bool| {
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
        let mut child = tensorpress();
        child.args(command).args(["--out", arg(to)]);
        child.args(force.then_some("--force")).stdout(Stdio::null()).stderr(Stdio::piped());
        child.spawn().expect("the program starts")
    };
    let clock = std::time::Instant::now();
    let ended = start(&path("whole"), false).wait_with_output().expect("an end");
    assert!(ended.status.success(), "{}", stderr(&ended));
    let mut took = clock.elapsed();
    let good = whole(&path("whole"));
    let (to, mut random, mut cut) = (path("out"), seed, 0);
    for point in 0..20 {
        // A step of Knuth's generator: moments all over the run, and a little past its end.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 40) as f64 / (1u64 << 24) as f64;
        // Half of them replace what is there, as the runs before have left it.
        let mut child = start(&to, point % 2 == 1);
        std::thread::sleep(took.mul_f64(1.1 * share));
        child.kill().expect("killed");
        let ended = child.wait_with_output().expect("an end");
        cut += usize::from(!ended.status.success());
        let is = whole(&to);
        let names =
            |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
        let half = format!("{command:?}: half written at {share}: {:?}", names(&is));
        assert!(is.is_empty() || is == good, "{half}");
        if point % 5 == 4 {
            let clock = std::time::Instant::now();
            let ended = start(&to, true).wait_with_output().expect("an end");
            assert!(ended.status.success(), "{command:?} at {share}: {}", stderr(&ended));
            // The machine may be busier or idler than it was.
            took = clock.elapsed();
            assert!(whole(&to) == good, "{command:?}: other bytes after {point}");
            let beside = std::fs::read_dir(to.parent().expect("a parent")).expect("a folder");
            assert_eq!(beside.count(), 1, "{command:?}: something lies beside the result");
            std::fs::remove_dir_all(to.parent().expect("a parent")).expect("removed");
        }
    }
    assert!(cut >= 5, "{command:?}: only {cut} of 20 came in time");
}

#[test]
fn conversions_survive_kills_at_random_moments() {
    let parent = tempfile::tempdir().expect("a folder");
    let w4 = parent.path().join("w4");
    let recipe = "rtn(bits=4, group=32, symmetric=true)";
    json(&run(&["compress", "demo", "--recipe", recipe, "--out", arg(&w4), "--json"]));
    let file = parent.path().join("w4.gguf");
    json(&run(&["convert", arg(&w4), "--to", "gguf", "--out", arg(&file), "--json"]));
    survives_kills(&["convert", "demo", "--to", "gguf(Q4_K)"], "model.gguf", 1);
    survives_kills(&["convert", arg(&w4), "--to", "compressed-tensors"], "model", 2);
    survives_kills(&["convert", arg(&file), "--to", "tensorpress"], "model", 3);
    let short = ["convert", arg(&w4), "--to", "safetensors", "--shard-size", "300kB"];
    survives_kills(&short, "model", 4);
}

#[test]
fn formats_in_one_go_survive_kills_at_random_moments() {
    let recipe = "rtn(bits=4, group=32, symmetric=true)";
    survives_kills(&["compress", "demo", "--recipe", recipe, "--format", "gguf"], "model.gguf", 5);
    survives_kills(&["compress", "demo", "--recipe", recipe, "--format", "gptq"], "model", 6);
}
