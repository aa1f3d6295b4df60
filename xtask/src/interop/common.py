"""What the checks of all peers share: our programs, files of tensors, and the lines that are printed."""
import importlib.metadata, json, os, pathlib, struct, subprocess, sys
import numpy as np

PROGRAM, LOGITS, SHARED, WORK = (pathlib.Path(argument) for argument in sys.argv[1:5])
MODELS = SHARED / "data/models"
GOLDEN = SHARED / "golden/formats"


class Skipped(Exception):
    """A peer, or a part of one, that is not to be had here; says why."""


def fetch(*packages, lonely=False, source=False):
    """Has pip install packages: without what they depend on where they are `lonely`; of wheels alone, or also of `source`."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--disable-pip-version-check"]
    command += ([] if source else ["--only-binary", ":all:"]) + ["--no-deps"] * lonely
    done = subprocess.run(command + list(packages), capture_output=True, text=True)
    if done.returncode != 0:
        raise Skipped(f"pip install {' '.join(packages)}: {last_line(done.stderr)}")


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def version(package):
    return f"{package} {importlib.metadata.version(package)}"


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(last_line(done.stderr))
    return done.stdout, done.stderr


def convert(model, target, out, *more):
    """Converts a model; the notes of the report."""
    return notes(run(PROGRAM, "convert", model, "--to", target, "--out", out, "--force", *more)[1])


def compress(model, out, *more):
    """Compresses a model; the notes of the report."""
    return notes(run(PROGRAM, "compress", model, "--out", out, "--force", *more)[1])


def notes(said):
    return [line.removeprefix("note: ") for line in said.splitlines() if line.startswith("note: ")]


def our_logits(model, texts, count):
    """For each text the ids of its tokens and of the `count` that our engine takes next, and the logits of all but the last."""
    out = WORK / "logits.bin"
    said = json.loads(run(LOGITS, model, out, count, *texts)[0])
    values, at, found = np.fromfile(out, "<f4").reshape(-1, said["vocab"]), 0, []
    for text in said["texts"]:
        rows = len(text["prompt"]) + count - 1
        found.append((text["prompt"], text["new"], values[at:at + rows]))
        at += rows
    out.unlink()
    return found


TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
         "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "U32": "<u4"}


def tensors(path):
    """Tensors of a file of safetensors, or of all in a folder: (type, array) by name. BF16 and 8-bit floats are their bits."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = {}
    for file in files:
        data = np.memmap(file, "u1", "r")
        length = struct.unpack("<Q", data[:8].tobytes())[0]
        for name, info in json.loads(data[8:8 + length].tobytes()).items():
            if name != "__metadata__":
                begin, end = (8 + length + at for at in info["data_offsets"])
                values = np.frombuffer(data[begin:end].tobytes(), TYPES[info["dtype"]]).reshape(info["shape"])
                found[name] = (info["dtype"], values)
    return found


def metadata(path):
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0])).get("__metadata__", {})


def floats(tensor):
    dtype, values = tensor
    return (values.astype("<u4") << 16).view("<f4") if dtype == "BF16" else values.astype("<f4")


def write_tensors(path, named):
    """Writes {name: (type, array)} as a file of safetensors."""
    header, at = {}, 0
    for name, (dtype, values) in named.items():
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in named.values():
            file.write(np.ascontiguousarray(values).tobytes())


def same_bits(a, b):
    """Whether two arrays are the same f32 values to the bit, but for what NaNs say."""
    a, b = np.ascontiguousarray(a, "<f4"), np.ascontiguousarray(b, "<f4")
    return a.shape == b.shape and bool(((a.view("<u4") == b.view("<u4")) | (np.isnan(a) & np.isnan(b))).all())


def relative(a, b):
    """How far a is from b: |a - b| / |b|."""
    a, b = a.astype("f8"), b.astype("f8")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


class Table:
    """Lines as they come, and what was not as it must be."""

    def __init__(self):
        self.failures, self.skipped = [], []

    def head(self, title, *columns):
        print(f"\n**{title}**\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *cells):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def skip(self, peer, why):
        self.skipped.append(f"SKIPPED {peer}: {why}")
        print(f"\n{self.skipped[-1]}", flush=True)

    def must(self, holds, what):
        if not holds:
            self.failures.append(what)
            print(f"FAILED: {what}", file=sys.stderr, flush=True)
        return bool(holds)
