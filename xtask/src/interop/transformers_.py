"""transformers with compressed-tensors loads our folders, and dequantises what we do."""
import json, subprocess, sys
import numpy as np
from common import WORK, fetch, floats, tensors, version
from folders import compare_layers, compare_logits, golden, golden_values, made, part, same_rounded, to_torch, torch_and

RECIPES = [f"rtn(bits={bits}, group={group}, symmetric={symmetric})"
           for bits in [4, 8] for group in [64, 0] for symmetric in ["true", "false"]]
RECIPES += [f"rtn(bits={bits}, group=32)" for bits in [2, 3, 5, 6, 7]]
RECIPES += ["rtn(bits=4, group=64, scale=bf16)", "gptq(bits=4, group=64, act_order=true, static_groups=true)"]
ORDERED = "gptq(bits=4, group=64, act_order=true)"
# Read by this version and before, no more by today's.
SPARSE = "compressed-tensors==0.11.0"


# Sums in another order, and weights that it rounds to the type of their scales.
BOUND = 1e-2


def loaded(folder, torch):
    """The model, and the type that its weights were computed in if that is not their own. The package packs zero points
    when it writes (0.20.1), but not in the empty model that it reads them into: those it can read as floats, at once."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    try:
        return AutoModelForCausalLM.from_pretrained(folder), None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    scales = next(kind for name, (kind, _) in tensors(folder).items() if name.endswith("weight_scale"))
    return model, {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[scales]


def models(table, torch):
    columns = ["folder", "dequantised as ours, to the bit", "logits"]
    table.head(f"{version('transformers')} with {version('compressed-tensors')}, torch {torch.__version__}", *columns)
    for recipe, more in [(recipe, []) for recipe in RECIPES] + [(None, ["--requantize"])]:
        what = recipe or "floats, requantised"
        try:
            folder, ours = made(recipe, "compressed-tensors", *more)
            model, computed_in = loaded(folder, torch)
            logits = compare_logits(table, f"compressed-tensors {what}", folder, model, BOUND)  # dequantises it
            linears = {name: layer.weight for name, layer in model.named_modules()
                       if isinstance(layer, torch.nn.Linear) and name != "lm_head"}
            same = compare_layers(table, f"compressed-tensors {what}", ours, linears, computed_in)
            table.row(what, same + (", read as floats" if computed_in else ""), logits)
        except Exception as error:
            table.row(what, f"FAILED: {error}", "")
            table.must(False, f"compressed-tensors {what}: {error}")
    try:
        made(ORDERED, "compressed-tensors")
        table.must(False, f"compressed-tensors {ORDERED}: written, and its readers refuse it")
    except RuntimeError as refused:
        table.row(ORDERED, f"not written: {refused}", "")


def layers(table):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    table.head(f"Golden layers by {version('compressed-tensors')}", "layer", "format", "decompressed as ours, to the bit")
    for name, named, said in golden("ct_"):
        stored = part(named, "ckpt.")
        if not stored:
            continue
        what = said["format"]
        args = json.loads(said["weights_args"])
        quantization = {"quant_method": "compressed-tensors", "format": what, "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": args}}}
        ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()}, quantization)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        reader = BaseCompressor.get_value_from_registry(what)
        theirs = reader.decompress({key: to_torch(tensor) for key, tensor in stored.items()}, scheme)["weight"]
        same = table.must(same_rounded(ours, theirs), f"{name}: decompressed otherwise")
        table.row(name, what, f"{'yes' if same else 'NO'} ({str(theirs.dtype).removeprefix('torch.')})")


OLD = """
import sys, torch
from safetensors.torch import load_file, save_file
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.config import SparsityCompressionConfig
layer, format, out = sys.argv[1:]
stored = load_file(layer)
reader = BaseCompressor.load_from_registry(format)
save_file({"weight": reader.decompress_weight(stored).contiguous()}, out)
"""


def sparse(table):
    """The masks, with the last version that knew them, in a process of its own."""
    import os
    old, layer, out = WORK / "old", WORK / "layer.safetensors", WORK / "out.safetensors"
    fetch("--target", str(old), SPARSE, "frozendict", lonely=True)
    from common import write_tensors
    for name, named, said in golden("ct_sparse"):
        stored = part(named, "layer.")
        # A layer's name, which one of the formats writes and the other does not.
        ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()}, {
            "quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}})
        write_tensors(layer, {key.removeprefix("weight."): tensor for key, tensor in stored.items()})
        environment = {**os.environ, "PYTHONPATH": str(old)}
        done = subprocess.run([sys.executable, "-c", OLD, layer, said["format"], out], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            table.row(name, said["format"], f"FAILED: {done.stderr.strip().splitlines()[-1]}")
            table.must(False, f"{name}: {done.stderr.strip().splitlines()[-1]}")
            continue
        same = table.must((floats(tensors(out)["weight"]) == ours).all(), f"{name}: decompressed otherwise")
        table.row(name, f"{said['format']} ({SPARSE})", "yes" if same else "NO")


def main(table, _):
    torch = torch_and("compressed-tensors")
    models(table, torch)
    layers(table)
    sparse(table)
    table.row("ct_marlin24_*", "marlin-24", "SKIPPED: the package only writes it; see the tests of `tensorpress-formats`")
