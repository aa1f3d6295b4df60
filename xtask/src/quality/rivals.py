"""Judges types of GGUF as ggml's own code fills them, matrices alone: rows padded with zeros to whole blocks, values back in
f32, embeddings, norms and head as they were. Usage: PROGRAM MODEL TEXT CALIBRATION FOLDER [TYPE[+] ...]; + is with importance."""
import ctypes, glob, json, os, re, struct, subprocess, sys, zipfile
import numpy as np

TYPES = {  # number, values and bytes of a block
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136),
}
USUAL = "Q2_K+ IQ3_XXS+ Q3_K+ IQ4_XS+ Q4_0 Q4_1 IQ4_NL+ Q4_K+ Q5_0 Q5_K+ Q6_K+ Q8_0".split()
NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down"}


def library(folder):
    wheel = os.path.join(folder, "wheel")
    found = glob.glob(wheel + "/**/libggml-base*", recursive=True)
    if not found:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheel, "pywhispercpp"], check=True)
        zipfile.ZipFile(glob.glob(wheel + "/*.whl")[0]).extractall(wheel)
        found = glob.glob(wheel + "/**/libggml-base*", recursive=True)
    ggml = ctypes.CDLL(found[0])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    return ggml


def through(ggml, weight, kind, importance):
    number, block, size = TYPES[kind]
    rows, cols = weight.shape
    wide = cols + -cols % block
    x = np.zeros((rows, wide), np.float32)
    x[:, :cols] = weight
    of = None
    if importance is not None:
        of = np.zeros(wide, np.float32)
        of[:cols] = importance
    blocks = np.zeros(rows * wide // block * size, np.uint8)
    ggml.ggml_quantize_init(number)
    ggml.ggml_quantize_chunk(number, x.ctypes.data, blocks.ctypes.data, 0, rows, wide, None if of is None else of.ctypes.data)
    back = getattr(ggml, "dequantize_row_" + (kind[0].lower() + kind[1:] if kind.endswith("_K") else kind.lower()))
    back.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    values = np.zeros_like(x)
    back(blocks.ctypes.data, values.ctypes.data, rows * wide)
    return values[:, :cols]


def tensors(path):
    data = np.memmap(path, np.uint8, "r")
    n = struct.unpack("<Q", data[:8].tobytes())[0]
    for name, entry in json.loads(data[8:8 + n].tobytes()).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], entry["shape"], data[8 + n + begin:8 + n + end]


def floats(dtype, shape, raw):
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return raw.view({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32).reshape(shape)


def write(path, made):
    header, at = {}, 0
    for name, (dtype, shape, raw) in made.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, raw in made.values():
            file.write(raw.tobytes())


def importance(path):
    """Mean squares of the inputs by llama.cpp's name, out of an importance file that is GGUF."""
    data, at = open(path, "rb").read(), 8

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, n = take("IQ")
            return [value(inner) for _ in range(n)]
        return take("BbHhIifB"[kind] if kind < 8 else {10: "Q", 11: "q", 12: "d"}[kind])

    count, keys = take("QQ")
    for _ in range(keys):
        text()
        value(take("I"))
    infos = []
    for _ in range(count):
        name, dims = text(), take("I")
        shape = [take("Q") for _ in range(dims)]
        infos.append((name, shape, take("I"), take("Q")))
    start = at + -at % 32
    found = {name: np.frombuffer(data, np.float32, int(np.prod(shape)), start + offset) for name, shape, _, offset in infos}
    return {name[:-8]: sums / max(1.0, float(found[name[:-8] + ".counts"][0])) for name, sums in found.items() if name.endswith(".in_sum2")}


def main(program, model, text, calibration, folder, *kinds):
    os.makedirs(folder, exist_ok=True)
    ggml = library(folder)
    file = os.path.join(folder, "importance.gguf")
    if not os.path.exists(file):
        subprocess.run([program, "imatrix", model, "--out", file, "--calib", calibration, "--calib-chars", "800000", "--calib-windows", "64",
                        "--calib-length", "256", "--bos", "always"], check=True, stdout=subprocess.DEVNULL)
    means = importance(file)
    print("| type | bits | KLD | x 4^bits |\n|---|---|---|---|", flush=True)
    for word in kinds or USUAL:
        kind, weighted = word.rstrip("+"), word.endswith("+")
        out = os.path.join(folder, "model")
        os.makedirs(out, exist_ok=True)
        made = {}
        for name, dtype, shape, raw in tensors(os.path.join(model, "model.safetensors")):
            of = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight", name)
            if of and of[2] in NAMES:
                of = means[f"blk.{of[1]}.{NAMES[of[2]]}.weight"] if weighted else None
                made[name] = "F32", shape, through(ggml, floats(dtype, shape, raw), kind, of)
            else:
                made[name] = dtype, shape, raw
        write(os.path.join(out, "model.safetensors"), made)
        del made
        for other in ("config.json", "tokenizer.json"):
            subprocess.run(["cp", os.path.join(model, other), out], check=True)
        judged = subprocess.run([program, "eval", out, "--reference", model, "--text", text, "--max-segments", "16", "--max-tokens", "512", "--bos", "always",
                                 "--json"], check=True, stdout=subprocess.PIPE)
        kld, (_, block, size) = json.loads(judged.stdout)["kld_mean"], TYPES[kind]
        bits = size * 8 / block
        with_importance = ", with importance" if weighted else ""
        print(f"| {kind}{with_importance} | {bits:.4f} | {kld:.5f} | {kld * 4 ** bits:.1f} |", flush=True)


main(*sys.argv[1:])
