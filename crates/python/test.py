#!/usr/bin/env python3
"""Builds the wheel, installs it into an environment of its own, and tests what was installed.

    python3 crates/python/test.py [--release] [PYTEST_ARGUMENT ...]

Everything lies in the target folder ($CARGO_TARGET_DIR, or the workspace's `target`): the environment in `python-venv`,
kept until tests/requirements.txt changes, the wheel in `python-wheels`. Python 3.11 or later with `venv` is needed, cargo,
and PyPI for the first run; models and texts come from $TENSORPRESS_SHARED, or `../shared` beside the repository.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE / "tests/requirements.txt"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target")).resolve()


def run(what, *command, **more):
    begun = time.monotonic()
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "PYTHONDONTWRITEBYTECODE": "1"}
    # Neither a folder beside the tests nor the user's own packages.
    environment.pop("PYTHONPATH", None)
    environment["PYTHONNOUSERSITE"] = "1"
    code = subprocess.run([str(part) for part in command], env=environment, **more).returncode
    print(f"{what}: {'ok' if code == 0 else 'FAILED'} in {time.monotonic() - begun:.1f} s", flush=True)
    if code != 0:
        sys.exit(code)


def environment():
    """The interpreter of an environment that has what the tests need."""
    venv = TARGET / "python-venv"
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = venv / "made-of.txt", f"{sys.version}\n{REQUIREMENTS.read_text()}"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(venv, ignore_errors=True)
        run("environment", sys.executable, "-m", "venv", venv)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
        run("packages", python, *install, "-r", REQUIREMENTS)
        stamp.write_text(wanted)
    return python


def build(python, profile):
    """The wheel, built anew; nothing else is beside it."""
    wheels = TARGET / "python-wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = ["-m", "maturin", "build", "--locked", "--profile", profile, "--out", wheels, "--interpreter", python]
    run("wheel", python, *command, "--compatibility", "linux", cwd=HERE)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def main(arguments):
    profile = "dev"
    if "--release" in arguments:
        arguments.remove("--release")
        profile = "release"
    python = environment()
    wheel = build(python, profile)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps", "--no-index"]
    run("install", python, *install, wheel)
    # What mypy remembers lies where it runs.
    types = TARGET / "python-types"
    types.mkdir(exist_ok=True)
    run("stubs", python, "-m", "mypy.stubtest", "tensorpress", cwd=types)
    run("types", python, "-m", "mypy", "--strict", HERE / "tests/uses.py", cwd=types)
    run("tests", python, "-m", "pytest", *arguments, cwd=HERE)


if __name__ == "__main__":
    main(sys.argv[1:])
