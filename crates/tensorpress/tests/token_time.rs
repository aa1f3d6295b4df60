//! A limit of time beside that of size.

use std::path::Path;
use std::time::Duration;

use tensorpress::pipeline::{Budget, Compressor, Mix, Report};
use tensorpress::prelude::*;
use tensorpress::{ErrorKind, Result, registry};

/// Good for its bits and slow to multiply (decoded each time); as small, fast, and worse; larger and fast.
const LEVELS: [&str; 3] = ["hadamard | e8", "rtn(bits=2, group=64)", "rtn(bits=4, group=64)"];

fn run(mix: Mix, out: &Path) -> Result<Report> {
    let source = Source::demo(&registry())?;
    Compressor::within(mix.with_levels(LEVELS)?).with_force(true).run(&source, out)
}

fn nanos(report: &Report) -> u64 {
    let decisions = &report.outlook.as_ref().expect("an outlook").decisions;
    decisions.iter().map(|decision| decision.token_nanos.expect("measured")).sum()
}

#[test]
fn tokens_take_no_longer_than_they_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let size = Budget::BitsPerWeight(2.6);
    let of = |report: &Report, level: usize| {
        let decisions = &report.outlook.as_ref().expect("an outlook").decisions;
        decisions.iter().filter(|decision| decision.level == level).count()
    };
    let slow = run(Mix::new(size).with_token_time(Duration::from_secs(1)), &out).expect("fits");
    assert!(of(&slow, 0) > of(&slow, 1), "of what is small, the better one");
    // Twice as fast.
    let limit = Duration::from_nanos(nanos(&slow) / 2);
    let fast = run(Mix::new(size).with_token_time(limit), &out).expect("fits");
    println!("{} ns, {} ns of {} ns", nanos(&slow), nanos(&fast), limit.as_nanos());
    assert!(u128::from(nanos(&fast)) <= limit.as_nanos());
    assert!(fast.bits_per_weight <= 2.6 && of(&fast, 0) < of(&slow, 0));
    // What nothing keeps is refused, and says what can be.
    let refused = |time: Duration| {
        let error = run(Mix::new(size).with_token_time(time), &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        error.to_string()
    };
    assert!(refused(Duration::from_nanos(10)).contains("at least about"));
    assert!(refused(Duration::ZERO).contains("above 0"));
    // Without a limit nothing is measured.
    let free = run(Mix::new(size), &out).expect("fits");
    let decisions = free.outlook.expect("an outlook").decisions;
    assert!(decisions.iter().all(|decision| decision.token_nanos.is_none()));
}
