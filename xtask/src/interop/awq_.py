"""AutoAWQ's layers, and GPTQModel's for AWQ, unpack our folders to our values."""
import json
from common import Skipped, fetch, tensors, version
from folders import compare_layers, compare_logits, golden, golden_values, made, module, part, same_rounded, to_torch, torch_and

RECIPES = [f"rtn(bits=4, group={group}, symmetric={symmetric})" for group in [64, 32, 0] for symmetric in ["true", "false"]]
RECIPES += ["rtn(bits=3, group=64)", "gptq(bits=4, group=64)"]


def by_autoawq(torch, stored, group):
    """The layer's weight, out of a layer of AutoAWQ. (Its product wants a GPU: without one it trips over itself.)"""
    inputs, outputs = stored["qweight"].shape[0], stored["qweight"].shape[1] * 8
    gemm = module("awq", "awq.modules.linear.gemm", "awq.modules", "awq.modules.linear", "awq.utils", "awq.modules.triton")
    layer = gemm.WQLinear_GEMM(4, group, inputs, outputs, False, "cpu")
    layer.load_state_dict(stored)
    return gemm.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, layer.group_size).T


def autoawq(table, torch):
    fetch("autoawq>=0.2.9", "--no-build-isolation", lonely=True, source=True)
    table.head(f"{version('autoawq')}, its layers alone", "folder", "unpacked as ours, to the bit")
    for recipe, more in [(recipe, []) for recipe in RECIPES] + [(None, ["--requantize"])]:
        what = recipe or "floats, requantised"
        try:
            folder, ours = made(recipe, "awq", *more)
            group = json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"]
            stored = {name: to_torch(tensor) for name, tensor in tensors(folder).items()}
            names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
            layers = {name: by_autoawq(torch, part(stored, f"{name}."), group) for name in names}
            table.row(what, compare_layers(table, f"autoawq {what}", ours, layers))
        except Exception as error:
            table.row(what, f"FAILED: {error}")
            table.must(False, f"autoawq {what}: {error}")
    for name, named, said in golden("awq_gemm"):
        stored, group = part(named, "ckpt."), int(said["group_size"])
        ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()}, {
            "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"})
        theirs = by_autoawq(torch, {key: to_torch(tensor) for key, tensor in stored.items()}, group)
        same = table.must(same_rounded(ours, theirs), f"{name}: unpacked otherwise")
        table.row(f"golden layer {name}", "yes" if same else "NO")
    table.row("golden layers of `gemv` and `gemv_fast`", "SKIPPED: AutoAWQ decodes them on a GPU alone")


def gptqmodel(table, torch):
    from gptq import NEEDED
    fetch(*NEEDED, lonely=True, source=True)
    # What builds them asks for PyTorch.
    fetch("gptqmodel", "--no-build-isolation", lonely=True, source=True)
    from gptqmodel import BACKEND, GPTQModel
    table.head(f"{version('gptqmodel')} on the CPU, AWQ", "folder", "unpacked as ours, to the bit", "logits")
    for recipe, more in [(recipe, []) for recipe in RECIPES] + [(None, ["--requantize"])]:
        what = recipe or "floats, requantised"
        try:
            folder, ours = made(recipe, "awq", *more)
            model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.AWQ_TORCH, dtype=torch.float16).model
            layers = {}
            for name, layer in model.named_modules():
                if hasattr(layer, "qweight"):
                    layers[name] = layer(torch.eye(layer.in_features, dtype=torch.float16)).T
            cell = compare_layers(table, f"gptqmodel awq {what}", ours, layers)
            table.row(what, cell, compare_logits(table, f"gptqmodel awq {what}", folder, model, 2e-2))
        except Exception as error:
            table.row(what, f"FAILED: {error}", "")
            table.must(False, f"gptqmodel awq {what}: {error}")


def main(table, _):
    torch = torch_and()
    for peer in (autoawq, gptqmodel):
        try:
            peer(table, torch)
        except Skipped as why:
            table.skip(peer.__name__, why)
