//! A campaign of faults: kills, races, full disks, folders that may not be written, inputs that move. Whatever happens, what
//! a command leaves is whole, can be resumed, or is not there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Outcome, cargo, execute, root, tools};

/// What is tried, and how often; a campaign may be a part of that.
const KILLS: usize = 200;
const RACES: usize = 100;
const FULL: usize = 50;
const MOVES: usize = 50;

const RECIPE: &str = "rtn(bits=4, group=64)";
const OTHER: &str = "rtn(bits=8)";

/// Files by path relative to a folder, or the file itself under no name.
type Contents = BTreeMap<PathBuf, Vec<u8>>;

fn contents(path: &Path) -> Contents {
    fn below(folder: &Path, prefix: &Path, all: &mut Contents) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), prefix.join(entry.file_name()));
            match path.is_dir() {
                true => below(&path, &name, all),
                false => drop(all.insert(name, fs::read(&path).unwrap_or_default())),
            }
        }
    }
    let mut all = Contents::new();
    match path.is_dir() {
        true => below(path, Path::new(""), &mut all),
        false => all.extend(fs::read(path).map(|bytes| (PathBuf::new(), bytes))),
    }
    all
}

/// Random numbers; the same ones in every campaign.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}

/// A command with an output, and what it writes when nothing happens.
struct Job {
    name: &'static str,
    arguments: Vec<String>,
    whole: Contents,
    takes: Duration,
}

struct Campaign {
    program: PathBuf,
    folder: PathBuf,
    random: Random,
    /// Everything is tried this many times less often.
    part: usize,
    jobs: Vec<Job>,
    counts: BTreeMap<String, usize>,
    failures: Vec<String>,
}

/// Runs the campaign in `folder`, which is made anew, and prints how often what came of it.
pub fn run(folder: &Path, part: usize) -> Outcome {
    execute(&mut cargo(&[
        "build",
        "--workspace",
        "--exclude",
        "tensorpress-benches",
        "--bin",
        "tensorpress",
    ]))?;
    let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(fail)?;
    }
    fs::create_dir_all(folder).map_err(fail)?;
    let mut campaign = Campaign {
        program: tools::target().join("debug/tensorpress"),
        folder: folder.to_owned(),
        random: Random(1),
        part: part.max(1),
        jobs: Vec::new(),
        counts: BTreeMap::new(),
        failures: Vec::new(),
    };
    campaign.prepare().map_err(fail)?;
    campaign.kills();
    campaign.races();
    campaign.full();
    campaign.forbidden();
    campaign.moves().map_err(fail)?;
    for (what, count) in &campaign.counts {
        println!("{count:5} {what}");
    }
    fs::remove_dir_all(folder).map_err(fail)?;
    match campaign.failures.as_slice() {
        [] => Ok(()),
        failures => Err(failures.join("\n")),
    }
}

impl Campaign {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(what());
        }
    }

    fn command(&self, arguments: &[String], out: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--out").arg(out).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A model, a folder to pack, a packed file, and what each command makes of them.
    fn prepare(&mut self) -> std::io::Result<()> {
        let (model, bulk) = (self.at("model"), self.at("bulk"));
        fs::create_dir_all(&model)?;
        fs::create_dir_all(bulk.join("deep"))?;
        let demo = root().join("crates/model/demo");
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            fs::copy(demo.join(name), model.join(name))?;
        }
        let mut bytes = Vec::with_capacity(48 << 20);
        while bytes.len() < 48 << 20 {
            bytes.extend(self.random.below(1 << 20).to_le_bytes());
        }
        fs::write(bulk.join("deep/bulk.bin"), bytes)?;
        for name in ["config.json", "model.safetensors"] {
            fs::copy(model.join(name), bulk.join(name))?;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let packed = self.at("packed.tpk");
        let jobs = [
            ("compress", vec!["compress".into(), text(&model), "--recipe".into(), RECIPE.into()]),
            ("pack", vec!["pack".into(), text(&bulk)]),
            ("unpack", vec!["unpack".into(), text(&packed)]),
        ];
        for (name, arguments) in jobs {
            let out = if name == "pack" { packed.clone() } else { self.at("whole") };
            let begun = Instant::now();
            let done = self.command(&arguments, &out).status()?;
            assert!(done.success(), "{name} of good inputs");
            let takes = begun.elapsed();
            self.jobs.push(Job { name, arguments, whole: contents(&out), takes });
            if name != "pack" {
                fs::remove_dir_all(&out)?;
            }
        }
        Ok(())
    }

    /// What beside the inputs is there.
    fn leftovers(&self) -> Vec<String> {
        let known = ["model", "bulk", "packed.tpk", "out"];
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !known.contains(&name.as_str())).collect()
    }

    fn clear(&self) {
        let out = self.at("out");
        let _ = fs::remove_file(&out);
        let _ = fs::remove_dir_all(&out);
        for name in self.leftovers() {
            let path = self.at(&name);
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }

    /// After a fault: the output is whole or absent, and the same command makes it whole and leaves nothing else.
    fn settle(&mut self, job: usize, fault: &str) {
        let out = self.at("out");
        let Job { name, arguments, whole, .. } = &self.jobs[job];
        let (name, arguments, whole) = (*name, arguments.clone(), whole.clone());
        let there = fs::symlink_metadata(&out).is_ok();
        let partial = self.at("out.partial").exists();
        let left = self.leftovers().len();
        let what = match (there, partial, left) {
            (true, ..) => "whole",
            (false, true, _) => "resumable",
            (false, false, 0) => "absent",
            (false, false, _) => "absent, a temporary file left",
        };
        self.count(&format!("{fault}, {name}: {what}"));
        if there {
            let found = contents(&out);
            self.check(found == whole, || format!("{fault}, {name}: damaged output"));
        } else {
            let done = self.command(&arguments, &out).status();
            self.check(done.is_ok_and(|done| done.success()), || {
                format!("{fault}, {name}: no rerun")
            });
            let found = contents(&out);
            self.check(found == whole, || format!("{fault}, {name}: another output after a rerun"));
            let left = self.leftovers();
            self.check(left.is_empty(), || {
                format!("{fault}, {name}: left after a rerun: {left:?}")
            });
        }
        self.clear();
    }

    fn kills(&mut self) {
        for job in 0..self.jobs.len() {
            for turn in 0..KILLS / self.part {
                let within = self.jobs[job].takes.as_micros() as u64 * 11 / 10;
                let wait = Duration::from_micros(self.random.below(within));
                let arguments = self.jobs[job].arguments.clone();
                let Ok(mut child) = self.command(&arguments, &self.at("out")).spawn() else {
                    continue;
                };
                std::thread::sleep(wait);
                let gently = turn % 4 == 0;
                stop(&mut child, gently);
                self.settle(job, if gently { "interrupted" } else { "killed" });
            }
        }
    }

    fn races(&mut self) {
        let second = |job: &Job| {
            let mut other = job.arguments.clone();
            match job.name {
                "compress" => other[3] = OTHER.to_owned(),
                "pack" => other[1] = other[1].replace("bulk", "model"),
                _ => {}
            }
            other
        };
        for job in 0..self.jobs.len() {
            let other = second(&self.jobs[job]);
            let alone = self.at("alone");
            let _ = self.command(&other, &alone).status();
            let another = contents(&alone);
            let _ = fs::remove_file(&alone);
            let _ = fs::remove_dir_all(&alone);
            for turn in 0..RACES / self.part {
                let (out, force) = (self.at("out"), turn % 2 == 1);
                let start = |arguments: &[String]| {
                    let mut command = self.command(arguments, &out);
                    command.args(force.then_some("--force"));
                    command.spawn()
                };
                let both = [start(&self.jobs[job].arguments), start(&other)];
                let both =
                    both.map(|child| child.is_ok_and(|mut c| c.wait().is_ok_and(|s| s.success())));
                let found = contents(&out);
                let (name, whole) =
                    (self.jobs[job].name, found == self.jobs[job].whole || found == another);
                let won = both.iter().filter(|won| **won).count();
                self.count(&format!("raced, {name}: {won} of 2 done"));
                self.check(whole && won > 0, || format!("race, {name}: damaged output, {both:?}"));
                let left = self.leftovers();
                let partial = left.iter().all(|name| name == "out.partial");
                self.check(partial, || format!("race, {name}: left {left:?}"));
                self.clear();
            }
        }
    }

    /// A limit on the size of files stands in for a full disk: writes fail in the same way.
    fn full(&mut self) {
        for job in 0..self.jobs.len() {
            let largest = self.jobs[job].whole.values().map(Vec::len).max().unwrap_or(0) as u64;
            for turn in 0..FULL / self.part {
                let blocks = largest * (turn * self.part) as u64 / FULL as u64 / 512;
                let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
                let mut command = Command::new("sh");
                command
                    .args(["-c", &script, "sh"])
                    .arg(&self.program)
                    .args(&self.jobs[job].arguments);
                command.arg("--out").arg(self.at("out"));
                let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
                let name = self.jobs[job].name;
                self.check(done.is_ok_and(|s| s.code() == Some(1)), || {
                    format!("full at {blocks} blocks, {name}: not an error")
                });
                self.settle(job, "disk full");
            }
        }
    }

    /// A folder that another user may not write.
    fn forbidden(&mut self) {
        let mut probe = Command::new("runuser");
        probe.args(["-u", "nobody", "--"]).arg(&self.program).arg("--help");
        let able = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !able.is_ok_and(|status| status.success()) {
            println!(
                "SKIPPED: folders that may not be written: no other user can run the program here"
            );
            return;
        }
        for job in 0..self.jobs.len() {
            let mut command = Command::new("runuser");
            command.args(["-u", "nobody", "--"]).arg(&self.program).args(&self.jobs[job].arguments);
            command.arg("--out").arg(self.at("out"));
            let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            let name = self.jobs[job].name;
            self.check(done.is_ok_and(|s| s.code() == Some(1)), || {
                format!("forbidden, {name}: not an error")
            });
            self.settle(job, "may not write");
        }
    }

    /// Inputs that are changed or cut while they are read.
    fn moves(&mut self) -> std::io::Result<()> {
        let inputs = ["model/model.safetensors", "bulk/deep/bulk.bin", "packed.tpk"];
        for (job, input) in inputs.into_iter().enumerate() {
            let path = self.at(input);
            let good = fs::read(&path)?;
            for turn in 0..MOVES / self.part {
                let within = self.jobs[job].takes.as_micros() as u64;
                let wait = Duration::from_micros(self.random.below(within));
                let at = self.random.below(good.len() as u64);
                let arguments = self.jobs[job].arguments.clone();
                let mut child = self.command(&arguments, &self.at("out")).spawn()?;
                std::thread::sleep(wait);
                let mut file = fs::File::options().write(true).open(&path)?;
                match turn % 2 {
                    0 => file.set_len(at)?,
                    _ => {
                        use std::io::{Seek, SeekFrom, Write};
                        file.seek(SeekFrom::Start(at))?;
                        file.write_all(b"moved")?;
                    }
                }
                drop(file);
                let code = child.wait()?.code();
                let name = self.jobs[job].name;
                self.check(matches!(code, Some(0 | 1)), || {
                    format!("moved, {name}: ended by {code:?}")
                });
                let there = self.at("out").exists();
                self.check(there == (code == Some(0)), || {
                    format!("moved, {name}: code {code:?}, output {there}")
                });
                // Moved before it was opened: an output of what it had become, which has to be whole too.
                if there && contents(&self.at("out")) != self.jobs[job].whole {
                    let look = if name == "pack" { "verify" } else { "inspect" };
                    let mut command = Command::new(&self.program);
                    command.arg(look).arg(self.at("out"));
                    let seen = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
                    let whole = name != "unpack" && seen.is_ok_and(|status| status.success());
                    self.check(whole, || format!("moved, {name}: damaged output"));
                    self.count(&format!("moved, {name}: whole, of the input as it became"));
                    fs::write(&path, &good)?;
                    self.clear();
                    continue;
                }
                // The file as it was, under a new date: work that is left is resumed.
                fs::write(&path, &good)?;
                if name == "compress" && self.at("out.partial").exists() {
                    self.count("moved, compress: kept");
                }
                self.settle(job, "moved");
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn stop(child: &mut Child, gently: bool) {
    if gently {
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    } else {
        let _ = child.kill();
    }
    let _ = child.wait();
}

#[cfg(not(unix))]
fn stop(child: &mut Child, _: bool) {
    let _ = child.kill();
    let _ = child.wait();
}
