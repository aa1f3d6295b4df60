//! Products of ggml beside ours, out of the sources that llama-cpp-python carries, built for this CPU.

use std::process::Command;

use crate::{Outcome, cargo, execute, root};

/// Options of the build: nothing but ggml, one thread as we measure it, and the products for many tokens that llama.cpp has.
const OPTIONS: [&str; 12] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_LLAMAFILE=ON",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_CURL=OFF",
    "-GNinja",
];

/// Builds ggml once (with a C++ compiler of the system) and runs the bench `blocks` beside it; `words` go to the bench.
pub fn run(words: &[&str]) -> Outcome {
    let folder = root().join("target/peers");
    let (venv, built) = (folder.join("venv/bin"), folder.join("build"));
    let libraries = built.join("bin");
    if !libraries.join("libggml-cpu.so").exists() {
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        execute(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
        let pip = || {
            let mut pip = Command::new(venv.join("python"));
            pip.args(["-m", "pip", "-q"]).current_dir(&folder);
            pip
        };
        execute(pip().args(["install", "cmake", "ninja"]))?;
        let package = "llama-cpp-python";
        execute(pip().args(["download", "--no-deps", "--no-binary", package, package]))?;
        let unpack = "import glob,tarfile\n\
                      for name in glob.glob('*.tar.gz'): tarfile.open(name).extractall('source')\n\
                      print(glob.glob('source/*/vendor/llama.cpp')[0])";
        let source = crate::output(
            Command::new(venv.join("python")).args(["-c", unpack]).current_dir(&folder),
        )?;
        let cmake = || {
            let mut cmake = Command::new(venv.join("cmake"));
            cmake.current_dir(&folder);
            cmake
        };
        let ninja = format!("-DCMAKE_MAKE_PROGRAM={}", venv.join("ninja").display());
        execute(cmake().args(["-S", source.trim(), "-B"]).arg(&built).args(OPTIONS).arg(ninja))?;
        execute(cmake().arg("--build").arg(&built).args(["--target", "ggml-cpu"]))?;
    }
    let bench = ["bench", "-p", "tensorpress-benches", "--bench", "blocks", "--"];
    execute(cargo(&bench).args(words).env("TENSORPRESS_GGML", libraries))
}
