"""GPTQModel and auto-gptq unpack our folders to our values."""
import json, math
from common import Skipped, fetch, tensors, version
from folders import compare_layers, compare_logits, golden, golden_values, made, module, part, same_rounded, to_torch, torch_and

SYMMETRIC = ["rtn(bits=2, group=64, symmetric=true)", "rtn(bits=3, group=64, symmetric=true)", "rtn(bits=4, group=64, symmetric=true)",
             "rtn(bits=8, group=64, symmetric=true)", "rtn(bits=4, group=0, symmetric=true)", "rtn(bits=4, group=128, symmetric=true)",
             "gptq(bits=4, group=64, symmetric=true, act_order=true)"]
ASYMMETRIC = [recipe.replace(", symmetric=true", "") for recipe in SYMMETRIC]
# What GPTQModel imports, beside what its other peers here bring.
NEEDED = ["threadpoolctl", "device-smi", "pypcre", "tokenicer", "logbar", "defuser", "protobuf", "dill", "pillow"]


def gptqmodel(table, torch):
    fetch(*NEEDED, lonely=True, source=True)
    # What builds them asks for PyTorch.
    fetch("gptqmodel", "--no-build-isolation", lonely=True, source=True)
    from gptqmodel import BACKEND, GPTQModel
    table.head(f"{version('gptqmodel')} on the CPU", "folder", "format", "unpacked as ours, to the bit", "logits")
    cases = [(recipe, target, []) for target in ["gptq", "gptq_v2"] for recipe in SYMMETRIC]
    cases += [(recipe, "gptq_v2", []) for recipe in ASYMMETRIC]
    cases += [(None, target, ["--requantize"]) for target in ["gptq", "gptq_v2"]]
    for recipe, target, more in cases:
        what = recipe or "floats, requantised"
        try:
            folder, ours = made(recipe, target, *more)
            model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model
            layers = {name: layer.dequantize_weight().T for name, layer in model.named_modules() if hasattr(layer, "dequantize_weight")}
            cell = compare_layers(table, f"gptqmodel {target} {what}", ours, layers)
            # Half precision, all the way.
            table.row(what, target, cell, compare_logits(table, f"gptqmodel {target} {what}", folder, model, 2e-2))
        except Exception as error:
            table.row(what, target, f"FAILED: {error}", "")
            table.must(False, f"gptqmodel {target} {what}: {error}")


def by_auto_gptq(torch, stored, bits, group):
    """The layer's weight, out of a layer of auto-gptq: a product with the identity."""
    inputs = stored["qweight"].shape[0] * 32 // bits
    outputs = stored["qweight"].shape[1]
    ordered = stored["g_idx"].tolist() != [i // group for i in range(inputs)]
    name = "qlinear_cuda" if ordered or inputs % group else "qlinear_cuda_old"
    layer_of = module("auto_gptq", f"auto_gptq.nn_modules.qlinear.{name}", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    layer = layer_of.QuantLinear(bits, group, inputs, outputs, False)
    layer.load_state_dict(stored)
    return layer(torch.eye(inputs, dtype=torch.float16)).T


def auto_gptq(table, torch):
    fetch("auto-gptq", lonely=True)
    import logging
    logging.disable(logging.WARNING)
    table.head(f"{version('auto-gptq')}, its layers alone", "folder", "unpacked as ours, to the bit")
    for recipe in SYMMETRIC + ASYMMETRIC:
        try:
            folder, ours = made(recipe, "gptq")
            said = json.loads((folder / "config.json").read_text())["quantization_config"]
            stored = {name: to_torch(tensor) for name, tensor in tensors(folder).items()}
            names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
            layers = {}
            for name in names:
                layer = {key: value for key, value in part(stored, f"{name}.").items()}
                inputs = len(layer["g_idx"])
                group = said["group_size"] if said["group_size"] > 0 else inputs
                layers[name] = by_auto_gptq(torch, layer, said["bits"], group)
            table.row(recipe, compare_layers(table, f"auto-gptq {recipe}", ours, layers))
        except Exception as error:
            table.row(recipe, f"FAILED: {error}")
            table.must(False, f"auto-gptq {recipe}: {error}")
    for name, named, said in golden("gptq_v1"):
        stored = part(named, "ckpt.")
        bits, group = int(said["bits"]), int(said["group_size"])
        ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()}, {
            "quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": "gptq"})
        theirs = by_auto_gptq(torch, {key: to_torch(tensor) for key, tensor in stored.items()}, bits, group)
        same = table.must(same_rounded(ours, theirs), f"{name}: unpacked otherwise")
        table.row(f"golden layer {name}", "yes" if same else "NO")


def main(table, _):
    torch = torch_and()
    for peer in (auto_gptq, gptqmodel):
        try:
            peer(table, torch)
        except Skipped as why:
            table.skip(peer.__name__, why)
