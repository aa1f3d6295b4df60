//! Everything that must hold before a change lands (`ci`), and what takes too long for that (`more`).

mod builds;
mod doors;
mod fuzz;
mod packages;
mod targets;
mod tests;

use std::time::Instant;

use crate::Outcome;

/// How a step ended that did not fail.
pub enum Done {
    /// It found nothing wrong.
    Passed,
    /// It could not be tried here, and why.
    Skipped(String),
}

pub type Verdict = Outcome<Done>;
pub const PASSED: Verdict = Ok(Done::Passed);

type Step = (&'static str, fn() -> Verdict);

/// What is quick to fail comes first; what shares a build stands together.
const CI: &[Step] = &[
    ("fmt", builds::fmt),
    ("msrv", builds::msrv),
    ("package", packages::package),
    ("deny", packages::deny),
    ("clippy", builds::clippy),
    ("doc", builds::doc),
    ("api", builds::api),
    ("features", builds::features),
    ("test", tests::test),
    ("demo", tests::demo),
    ("report", tests::report),
    ("examples", tests::examples),
    ("benches", tests::benches),
    ("c", doors::c),
    ("python", doors::python),
    ("wasm32", targets::wasm32),
    ("neon", targets::neon),
    ("fuzz", fuzz::short),
];

const MORE: &[Step] = &[
    ("release", tests::release),
    ("tables", tests::tables),
    ("lapack", tests::lapack),
    ("doors", doors::lints),
    ("aarch64", targets::aarch64),
    ("miri", targets::miri),
    ("32-bit", targets::narrow),
    ("big-endian", targets::big_endian),
    ("oldest", builds::oldest),
    ("publish", packages::publish),
    ("advisories", packages::advisories),
    ("fuzz-long", fuzz::long),
];

/// The steps of `ci`, or those named among all; what CI asks for is printed as it goes and in a table at the end.
pub fn run(wanted: &[&str]) -> Outcome {
    run_of(CI, wanted)
}

/// The steps that are too long for CI.
pub fn more(wanted: &[&str]) -> Outcome {
    run_of(MORE, wanted)
}

/// One line for each list of steps.
pub fn names() -> String {
    let line = |steps: &[Step]| steps.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(" ");
    format!("steps of ci: {}\nsteps of more: {}", line(CI), line(MORE))
}

/// Runs the named steps, or all of them; stops at the first that fails.
fn run_of(steps: &[Step], wanted: &[&str]) -> Outcome {
    if let Some(unknown) = wanted.iter().find(|w| !steps.iter().any(|(name, _)| name == *w)) {
        return Err(format!("no step `{unknown}`\n{}", names()));
    }
    let mut table = Table::default();
    for (name, step) in steps.iter().filter(|(n, _)| wanted.is_empty() || wanted.contains(n)) {
        println!("== {name}");
        let start = Clock::now();
        let done = step();
        let (wall, processor) = start.elapsed();
        let (word, outcome) = match done {
            Ok(Done::Passed) => ("passed".to_owned(), Ok(())),
            Ok(Done::Skipped(why)) => (format!("SKIPPED: {why}"), Ok(())),
            Err(e) => ("FAILED".to_owned(), Err(format!("step {name}: {e}"))),
        };
        println!("== {name}: {wall:.0} s, {word}");
        table.rows.push((name, wall, processor, word));
        if outcome.is_err() {
            table.print();
            return outcome;
        }
    }
    table.print();
    Ok(())
}

/// What each step took.
#[derive(Default)]
struct Table {
    rows: Vec<(&'static str, f64, f64, String)>,
}

impl Table {
    fn print(&self) {
        println!("\n| step | seconds | of one core | |\n|---|---|---|---|");
        let (mut all, mut busy) = (0.0, 0.0);
        for (name, wall, processor, word) in &self.rows {
            println!("| {name} | {wall:.0} | {processor:.0} | {word} |");
            (all, busy) = (all + wall, busy + processor);
        }
        println!("| all | {all:.0} | {busy:.0} | |");
    }
}

/// The time on the wall, and what the processes of a step that have ended used of one core.
struct Clock {
    wall: Instant,
    processor: f64,
}

impl Clock {
    fn now() -> Self {
        Self { wall: Instant::now(), processor: children() }
    }

    fn elapsed(&self) -> (f64, f64) {
        (self.wall.elapsed().as_secs_f64(), children() - self.processor)
    }
}

/// Seconds of one core that ended children have used, by Linux's count of them in hundredths; 0 elsewhere.
fn children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets, which may hold spaces, cutime and cstime are the 14th and 15th field.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
