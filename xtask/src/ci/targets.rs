//! Other machines: AArch64, 32 bits and big-endian under emulation, WebAssembly as far as the compiler goes, and the
//! interpreter that finds undefined behaviour.

use std::process::Command;

use super::{Done, PASSED, Verdict};
use crate::{cargo, execute, root, tools};

/// A machine that an emulator stands for.
struct Machine {
    target: &'static str,
    emulator: &'static str,
    linker: &'static str,
    libraries: &'static str,
    packages: &'static [&'static str],
}

const AARCH64: Machine = Machine {
    target: "aarch64-unknown-linux-gnu",
    emulator: "qemu-aarch64",
    linker: "aarch64-linux-gnu-gcc",
    libraries: "/usr/aarch64-linux-gnu",
    packages: &["qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
};

const I686: Machine = Machine {
    target: "i686-unknown-linux-gnu",
    emulator: "qemu-i386",
    linker: "i686-linux-gnu-gcc",
    libraries: "/usr/i686-linux-gnu",
    packages: &["qemu-user", "gcc-i686-linux-gnu", "libc6-dev-i386-cross"],
};

const S390X: Machine = Machine {
    target: "s390x-unknown-linux-gnu",
    emulator: "qemu-s390x",
    linker: "s390x-linux-gnu-gcc",
    libraries: "/usr/s390x-linux-gnu",
    packages: &["qemu-user", "gcc-s390x-linux-gnu", "libc6-dev-s390x-cross"],
};

impl Machine {
    /// Runs tests there, each with the arguments of one `cargo test`.
    fn run(&self, tests: &[&[&str]]) -> Verdict {
        if !tools::target_library(self.target) {
            return Ok(Done::Skipped(format!("no standard library for {}", self.target)));
        }
        if !tools::programs(&[self.emulator, self.linker], self.packages) {
            return Ok(Done::Skipped(format!("no {} or {}", self.emulator, self.linker)));
        }
        let variable = |what: &str| {
            let target = self.target.to_uppercase().replace('-', "_");
            format!("CARGO_TARGET_{target}_{what}")
        };
        for arguments in tests {
            // Under emulation building takes longer than running.
            let mut command = cargo(&["test", "--profile", "dev", "--target", self.target]);
            command.args(*arguments).env(variable("LINKER"), self.linker);
            let runner = format!("{} -L {}", self.emulator, self.libraries);
            execute(command.env(variable("RUNNER"), runner))?;
        }
        PASSED
    }
}

/// Every kernel against its definition, on what the machine has.
const KERNELS: &[&str] = &["-p", "tensorpress-kernels", "--lib"];

/// Coders and chunks; what takes minutes under emulation (training) is left out.
const ENTROPY: &[&str] =
    &["-p", "tensorpress-entropy", "--lib", "--test", "chunks", "--", "--skip", "fine_tunes"];

/// The laws of nodes.
const NODES: &[&str] = &["-p", "tensorpress-tensor", "--test", "laws"];

/// NEON kernels against the portable ones; all loops are in one crate.
pub fn neon() -> Verdict {
    AARCH64.run(&[KERNELS])
}

/// What stands on the kernels: attention over caches, and the entropy coders, portable there.
pub fn aarch64() -> Verdict {
    AARCH64.run(&[&["-p", "tensorpress-kvcache", "--lib"], ENTROPY])
}

/// Where `usize` has 32 bits.
pub fn narrow() -> Verdict {
    I686.run(&[NODES, ENTROPY])
}

/// Where the first byte of a number is its largest.
pub fn big_endian() -> Verdict {
    S390X.run(&[NODES, ENTROPY])
}

/// The rooms that engines embed compile for WebAssembly.
pub fn wasm32() -> Verdict {
    const TARGET: &str = "wasm32-unknown-unknown";
    if !tools::target_library(TARGET) {
        return Ok(Done::Skipped(format!("no standard library for {TARGET}")));
    }
    // Without what factorises: faer waits for threads that are not there. What is for other instruction sets alone is not
    // to be left over here.
    let rooms = ["-p", "tensorpress-kvcache", "-p", "tensorpress-entropy", "--no-default-features"];
    execute(cargo(&["check", "--target", TARGET]).args(rooms).env("RUSTFLAGS", "-Dwarnings"))?;
    PASSED
}

/// Undefined behaviour, looked for where no SIMD is: what interprets programs knows none of it. Tests that would take
/// minutes there are left out.
pub fn miri() -> Verdict {
    if !tools::toolchain("nightly") || !tools::components("nightly", &["miri", "rust-src"]) {
        return Ok(Done::Skipped("miri cannot be had here".into()));
    }
    for (package, tests) in MIRI {
        let mut command = Command::new("cargo");
        command
            .current_dir(root())
            .args(["+nightly", "miri", "test", "-p", package, "--lib", "--"]);
        command.args(*tests).env("TENSORPRESS_ISA", "generic");
        execute(command.env("MIRIFLAGS", "-Zmiri-disable-isolation"))?;
    }
    PASSED
}

/// Package, and names of tests.
const MIRI: &[(&str, &[&str])] = &[
    ("tensorpress-kernels", &["packing", "surplus", "refused", "integer_dots", "outside"]),
    ("tensorpress-entropy", &["model::", "coder::range", "coder::slots", "window", "container::"]),
];
