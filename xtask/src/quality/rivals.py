"""Writes a model whose matrices went through a type of GGUF as ggml's own code fills it (rows padded with zeros to whole blocks,
values back in f32; embeddings, norms and head as they were): ggml MODEL FOLDER TYPE[+] IMPORTANCE OUT, with importance where the
type ends in +. Or one that is padded itself, so that blocks of 256 divide every row, and computes the same: padded MODEL OUT."""
import ctypes, glob, json, os, re, struct, subprocess, sys, zipfile
import numpy as np

TYPES = {  # number, values and bytes of a block
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136),
}
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


def copied(model, out):
    for other in ("config.json", "tokenizer.json"):
        subprocess.run(["cp", os.path.join(model, other), out], check=True)


def ggml_model(model, folder, word, importances, out):
    kind = word.rstrip("+")
    means = importance(importances) if word.endswith("+") else None
    ggml, made = library(folder), {}
    for name, dtype, shape, raw in tensors(os.path.join(model, "model.safetensors")):
        of = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight", name)
        if of and of[2] in NAMES:
            mean = None if means is None else means[f"blk.{of[1]}.{NAMES[of[2]]}.weight"]
            made[name] = "F32", shape, through(ggml, floats(dtype, shape, raw), kind, mean)
        else:
            made[name] = dtype, shape, raw
    write(os.path.join(out, "model.safetensors"), made)
    copied(model, out)


def padded_model(model, out):
    config = json.load(open(os.path.join(model, "config.json")))
    hidden, heads, groups = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    size = config.get("head_dim") or hidden // heads
    up = lambda n: n + -n % 256
    more = groups
    while more * size % 256 or more * (heads // groups) * size % 256:
        more += 1
    wide = {hidden: up(hidden), config["intermediate_size"]: up(config["intermediate_size"])}
    rows = {"q_proj": more * (heads // groups) * size, "k_proj": more * size, "v_proj": more * size}
    shrink, made = np.sqrt(np.float32(hidden / wide[hidden])), {}
    for name, dtype, shape, raw in tensors(os.path.join(model, "model.safetensors")):
        part = name.split(".")[-2]
        # Heads are zeros behind those there are; a mean of squares over more channels is smaller by their share.
        out_, in_ = (shape[0], shape[-1])
        if len(shape) == 1:
            values = np.zeros(wide[hidden], np.float32)
            values[:hidden] = floats(dtype, shape, raw) * shrink
        else:
            height = rows.get(part) or (out_ if part in ("embed_tokens", "lm_head") else wide[out_])
            values = np.zeros((height, rows["q_proj"] if part == "o_proj" else wide[in_]), np.float32)
            values[:out_, :in_] = floats(dtype, shape, raw)
            # As wide as they were: what is judged is the matrices.
            if dtype == "BF16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
        made[name] = "BF16" if values.dtype == np.uint16 else "F32", values.shape, values
    write(os.path.join(out, "model.safetensors"), made)
    copied(model, out)
    config.update(hidden_size=wide[hidden], intermediate_size=wide[config["intermediate_size"]], head_dim=size,
                  num_attention_heads=more * (heads // groups), num_key_value_heads=more,
                  rms_norm_eps=config["rms_norm_eps"] * hidden / wide[hidden])
    json.dump(config, open(os.path.join(out, "config.json"), "w"), indent=1)


{"ggml": ggml_model, "padded": padded_model}[sys.argv[1]](*sys.argv[2:])
