"""Uses of the package that `mypy --strict` must accept, and others that it must not. Never run."""

from pathlib import Path

import numpy as np

import tensorpress as tp

weight = np.zeros((4, 8), np.float16)
layer: tp.Layer = tp.compress(weight, "w8", [[1.0] * 8], seed=3, threads=2)
rows, cols = layer.shape
product: np.ndarray = layer @ np.zeros(cols) + layer(weight)[0]
size: int = layer.storage["codes"] + len(layer.to_bytes())
same: tp.Layer = tp.Layer.from_bytes(memoryview(layer.to_bytes()))
dense = np.asarray(layer, dtype=np.float64)

model = tp.open_model(Path("model"))
name: str = model.names[0] if model.names[0] in model else model.config["model_type"]
report = tp.compress_model(model, "w4", "out", calibration_text=["a text"], progress=print)
tp.compress_model("model", "w4", Path("out"), calibration_text=[[1, 2, 3]], force=True)
tp.convert(model, "gguf(Q4_K)", "out.gguf", requantize=True)
perplexity: float = tp.evaluate(model, Path("text"), reference="model")["perplexity"]

cache = tp.KvCache("kivi(bits=4)", 2, 16, heads=4)
held: int = len(cache) + cache.bytes + sum(cache.held)
keys, values = tp.PageCodec(16, 2, 16).decode(b"")
packed: bytes = tp.pack(weight, "f16", effort="best")
back: bytes = tp.unpack(packed)
array = tp.unpack(packed, np.float16).reshape(4, 8)
merged = tp.tome(weight, 2, protected=[0]).merge(weight)

try:
    tp.open_model("nothing")
except tp.FileMissingError as error:
    where: str | None = error.file
    number: int | None = error.errno

tp.compress(weight)  # type: ignore[call-arg]
tp.compress(weight, 4)  # type: ignore[arg-type]
tp.pack(weight, "f33")  # type: ignore[arg-type]
tp.KvCache("f32", 2, "16")  # type: ignore[arg-type]
layer.shape = (1, 1)  # type: ignore[misc]
tp.nothing  # type: ignore[attr-defined]
