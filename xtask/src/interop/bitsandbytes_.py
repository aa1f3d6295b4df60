"""transformers with bitsandbytes loads our folders on the CPU, and dequantises what we do."""
from common import version
from folders import compare_layers, compare_logits, golden, golden_values, made, part, same_rounded, to_torch, torch_and

RECIPES = [f"{kind}(block={block}, double_quant={nested})" for kind in ["nf4", "fp4"] for block in [64, 128] for nested in ["true", "false"]]


def models(table, torch):
    import bitsandbytes
    from transformers import AutoModelForCausalLM
    four_bit = bitsandbytes.functional.dequantize_4bit
    columns = ["folder", "dequantised as ours, to the bit", "logits"]
    table.head(f"{version('transformers')} with {version('bitsandbytes')} on the CPU, torch {torch.__version__}", *columns)
    for recipe, more in [(recipe, []) for recipe in RECIPES] + [(None, ["--requantize"])]:
        what = recipe or "floats, requantised"
        try:
            folder, ours = made(recipe, "bnb", *more)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
            # Its code for CPUs (0.50.2) does not read back what it wrote itself where blocks do not divide a row.
            whole = {name: four_bit(layer.weight.data, layer.weight.quant_state) for name, layer in layers.items()
                     if layer.in_features % layer.weight.quant_state.blocksize == 0}
            cell = compare_layers(table, f"bitsandbytes {what}", ours, whole)
            # It multiplies in bfloat16.
            every = len(whole) == len(layers)
            logits = compare_logits(table, f"bitsandbytes {what}", folder, model, 5e-2) if every else "its own fault, see below"
            table.row(what, cell, logits)
        except Exception as error:
            table.row(what, f"FAILED: {error}", "")
            table.must(False, f"bitsandbytes {what}: {error}")


def layers(table):
    import bitsandbytes.functional as official
    table.head(f"Golden layers by {version('bitsandbytes')}", "layer", "dequantised as ours, to the bit")
    for kind in ["nf4", "fp4"]:
        named = next(golden(f"bnb_{kind}"))[1]
        stored = {"weight": named["dq64.packed"], **{f"weight.{key}": tensor for key, tensor in part(named, "qstate.").items()}}
        ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()},
                             {"quant_method": "bitsandbytes", "load_in_4bit": True})
        parts = {key: to_torch(tensor) for key, tensor in stored.items() if key != "weight"}
        state = official.QuantState.from_dict(parts, device="cpu")
        theirs = official.dequantize_4bit(to_torch(stored["weight"]), state)
        same = table.must(same_rounded(ours, theirs), f"bitsandbytes {kind}: dequantised otherwise")
        table.row(f"{kind}, nested", "yes" if same else "NO")
    named = next(golden("bnb_8bit"))[1]
    stored = {"weight": named["llmint8.q"], "SCB": named["llmint8.row_stats"]}
    ours = golden_values({f"l.{key}": tensor for key, tensor in stored.items()},
                         {"quant_method": "bitsandbytes", "load_in_8bit": True})
    theirs = official.int8_vectorwise_dequant(to_torch(stored["weight"]), to_torch(stored["SCB"]))
    same = table.must(same_rounded(ours, theirs), "bitsandbytes LLM.int8: dequantised otherwise")
    table.row("LLM.int8", "yes" if same else "NO")


def main(table, _):
    torch = torch_and("bitsandbytes")
    models(table, torch)
    layers(table)
