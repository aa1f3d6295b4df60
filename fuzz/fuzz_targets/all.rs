#![no_main]
//! Every target in one program, built once; `TENSORPRESS_FUZZ` names the one that a process runs.

#[path = "../src/targets.rs"]
#[allow(dead_code)]
mod targets;

use std::sync::LazyLock;

static CHOSEN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("TENSORPRESS_FUZZ").unwrap_or_default();
    let found = targets::ALL.iter().find(|(name, _)| *name == wanted);
    let names = targets::ALL.map(|(name, _)| name);
    found.unwrap_or_else(|| panic!("TENSORPRESS_FUZZ names a target: one of {names:?}")).1
});

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&CHOSEN); }, |data: &[u8]| CHOSEN(data));
