//! The interface from C: the header compiles, the tests of `tests/c` hold under sanitizers, and README's example runs.
//!
//! `CC` and `CXX` name the compilers (`cc` and `c++`); without them tests are skipped loudly, or fail if
//! `TENSORPRESS_REQUIRE_DATA=1`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use press::model::Source;
use press::pipeline::{Convert, write_model};
use press::prelude::*;
use press::tensor::Context;
use press::tensor::stats::Calibration;
use tensorpress as _; // it is built because it is named

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
const LIBRARIES: [&str; 3] = ["-lpthread", "-ldl", "-lm"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A compiler, where there is one.
fn compiler(variable: &str, default: &str) -> Option<String> {
    let name = std::env::var(variable).unwrap_or_else(|_| default.into());
    let found = Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(&format!("the compiler {name} ({variable})"));
    }
    found.then_some(name)
}

fn skip(what: &str) {
    let required = std::env::var("TENSORPRESS_REQUIRE_DATA").as_deref() == Ok("1");
    assert!(!required, "required but absent: {what}");
    eprintln!("SKIPPED: absent: {what}");
}

/// The folder with the libraries that this test was built beside.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.parent().expect("in a folder");
    assert!(folder.join("libtensorpress.a").is_file(), "no libtensorpress.a in {folder:?}");
    folder.into()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{complained}", output.status);
    said
}

/// A compiler of the header's folder, as strict as it gets.
fn strict(compiler: &str, standard: &str) -> Command {
    let mut command = Command::new(compiler);
    command.arg(format!("-std={standard}")).args(WARNINGS).arg("-I").arg(root().join("include"));
    command
}

/// A small model, compressed: in our folder, and as a GGUF file.
fn models(folder: &Path) -> press::Result<[PathBuf; 2]> {
    let paths = ["ours", "model.gguf"].map(|name| folder.join(name));
    let demo = Source::demo(&registry())?;
    let mut nodes = BTreeMap::new();
    for (i, spec) in (0..demo.blocks()).flat_map(|block| demo.linears(block)).enumerate() {
        let weight = demo.stored(&spec)?;
        let calibration = Calibration::none(spec.shape[1]);
        let recipe =
            ["rtn(bits=4, group=32)", "magnitude", "rtn(bits=8, group=32) | coded(rans)"][i % 3];
        let made = press::compress(&weight, recipe, &calibration).in_tensor(&spec.name)?;
        nodes.insert(spec.name, made.node);
    }
    write_model(&demo, &nodes, &paths[0])?;
    let _report = Convert::new("gguf(Q8_0)".parse()?).run(&demo, &paths[1])?;
    Ok(paths)
}

fn shared_model() -> Option<PathBuf> {
    let beside = root().join("../../../shared");
    let shared = std::env::var_os("TENSORPRESS_SHARED").map_or(beside, PathBuf::from);
    let model = shared.join("data/models/stories260k");
    if !model.is_dir() {
        skip("data/models/stories260k (TENSORPRESS_SHARED)");
        return None;
    }
    Some(model)
}

#[test]
fn everything_holds_under_sanitizers() {
    let Some(cc) = compiler("CC", "cc") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("tests");
    let mut sources: Vec<PathBuf> = std::fs::read_dir(root().join("tests/c"))
        .expect("tests in C")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "c"))
        .collect();
    sources.sort();
    // Nothing of the header is left untried.
    let header = std::fs::read_to_string(root().join("include/tensorpress.h")).unwrap();
    let text: String = sources.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let functions = header.match_indices("tp_").filter_map(|(at, _)| {
        let name = header[at..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        let begins = header[..at].ends_with([' ', '*']);
        (begins && header[at + name.len()..].starts_with('(')).then_some(name)
    });
    let mut tried = 0;
    for function in functions {
        assert!(text.contains(&format!("{function}(")), "no test in C calls {function}");
        tried += 1;
    }
    assert!(tried > 40, "{tried} functions in the header");

    let mut build = strict(&cc, "c99");
    build.args(["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]);
    build.args(["-fno-sanitize-recover=all", "-D_POSIX_C_SOURCE=200809L", "-o"]).arg(&program);
    build.args(&sources).arg(libraries().join("libtensorpress.a")).args(LIBRARIES);
    run(&mut build);

    let [ours, gguf] = models(folder.path()).expect("the demo model can be written");
    let mut tests = Command::new(&program);
    tests.env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1");
    tests.env("UBSAN_OPTIONS", "print_stacktrace=1").arg(folder.path()).args([ours, gguf]);
    tests.args(shared_model());
    let said = run(&mut tests);
    assert!(said.contains("every check held"), "{said}");
}

#[test]
fn the_header_is_cpp() {
    let Some(cxx) = compiler("CXX", "c++") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("header");
    let mut build = strict(&cxx, "c++11");
    build.arg(root().join("tests/c/header.cpp")).arg("-o").arg(&program);
    run(build.arg(libraries().join("libtensorpress.a")).args(LIBRARIES));
    run(&mut Command::new(&program));
}

/// As README says: linked to the shared library.
#[test]
fn the_example_runs() {
    let Some(cc) = compiler("CC", "cc") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let example = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next());
    let (source, program) = (folder.path().join("engine.c"), folder.path().join("engine"));
    std::fs::write(&source, example.expect("an example in C")).expect("can be written");
    let libraries = libraries();
    assert!(libraries.join("libtensorpress.so").is_file() || cfg!(not(target_os = "linux")));
    // No archive beside it that the linker could take instead.
    std::fs::copy(libraries.join("libtensorpress.so"), folder.path().join("libtensorpress.so"))
        .expect("the shared library");
    let mut build = strict(&cc, "c99");
    build.arg(&source).arg("-o").arg(&program).arg("-L").arg(folder.path());
    build.arg(format!("-Wl,-rpath,{}", folder.path().display()));
    run(build.arg("-ltensorpress").args(LIBRARIES));
    let said = run(&mut Command::new(&program));
    assert!(said.starts_with("y[0] = "), "{said}");
}
