"""Folders that ours make, for the peers that read them; and golden layers as folders."""
import json, os, shutil
import numpy as np
from common import (GOLDEN, MODELS, PROGRAM, SHARED, WORK, Skipped, convert, fetch, floats, metadata, our_logits, relative, run,
                    same_bits, tensors, write_tensors)

MODEL = MODELS / "stories3m"
TEXTS = ["Once upon a time there was a little girl"]
CALIBRATION = ["--calib", SHARED / "data/text/tinystories_train_2MB_calib.txt", "--calib-windows", 4]


def torch_and(*packages, **options):
    """PyTorch, transformers and packages beside them. On Linux the registry has torch with what it needs of CUDA: 5 GB."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", HF_HUB_OFFLINE="1",
                      TRANSFORMERS_VERBOSITY="error")
    if shutil.disk_usage(WORK).free < 8 << 30:
        try:
            import torch
        except ImportError:
            raise Skipped("PyTorch takes 5 GB, and fewer than 8 are free")
    fetch("torch", "transformers", "safetensors", "accelerate")
    for package in packages:
        fetch(package, **options)
    import torch, transformers
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    return torch


def made(recipe, target, *more):
    """A folder of the format, made of the model by a recipe (none: of its floats); and the values that we see in it."""
    source, folder = MODEL, WORK / "folder"
    if recipe:
        source = WORK / "compressed"
        needed = CALIBRATION if recipe.startswith("gptq") else []
        run(PROGRAM, "compress", MODEL, "--recipe", recipe, "--out", source, "--force", *needed)
    convert(source, target, folder, *more)
    return folder, seen(folder)


def seen(folder):
    """Our values of a folder's matrices."""
    convert(folder, "safetensors", WORK / "seen", "--dtype", "f32")
    return {name: floats(tensor) for name, tensor in tensors(WORK / "seen").items()}


def same_rounded(ours, theirs, by_way_of=None):
    """Whether their tensor of PyTorch is ours, in their type, or in another that it was computed in. Which zero is no matter:
    signs of zeros are lost by sums."""
    import torch
    rounded = torch.from_numpy(np.ascontiguousarray(ours)).to(by_way_of or theirs.dtype).float().numpy()
    return same_bits(rounded + 0.0, theirs.detach().float().contiguous().numpy() + 0.0)


def compare_layers(table, what, ours, layers, computed_in=None):
    """Checks {name of a module: its dequantised weight}; gives the cell of the table."""
    different = [name for name, weight in layers.items() if not same_rounded(ours[f"{name}.weight"], weight, computed_in)]
    table.must(layers and not different, f"{what}: {len(different)} of {len(layers)} layers differ, {different[:1]}")
    dtype = str(computed_in or next(iter(layers.values())).dtype).removeprefix("torch.") if layers else "?"
    return f"{len(layers) - len(different)} of {len(layers)} layers ({dtype})"


def compare_logits(table, what, folder, model, bound):
    """Their logits beside ours."""
    import torch
    (prompt, new, ours), = our_logits(folder, TEXTS, 8)
    with torch.no_grad():
        theirs = model(torch.tensor([prompt + new[:-1]])).logits[0].float().numpy()
    far = relative(theirs, ours)
    table.must(far <= bound, f"{what}: logits {far:.1e} from ours")
    return f"{far:.1e}"


def golden(prefix):
    """Golden layers whose names begin so: name, tensors, what the file says."""
    for path in sorted(GOLDEN.glob(f"{prefix}*.safetensors")):
        yield path.stem, tensors(path), metadata(path)


def golden_values(named, quantization):
    """Our values of one layer, whose tensors are called `l.PART`, as a folder."""
    folder = WORK / "golden"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_tensors(folder / "model.safetensors", named)
    (folder / "config.json").write_text(json.dumps({"model_type": "layers", "quantization_config": quantization}))
    return seen(folder)["l.weight"]


def part(named, prefix):
    """{PART: tensor} of what begins with a prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}


def to_torch(tensor):
    """A tensor of a file in PyTorch."""
    import torch
    dtype, values = tensor
    special = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    found = torch.from_numpy(np.array(values).view("<i2") if dtype == "BF16" else np.array(values))
    return found.view(special[dtype]) if dtype in special else found


def module(package, path, *parents):
    """One module of an installed package, without what its packages do when they are imported (they want a GPU, or what was
    removed from transformers since)."""
    import importlib, importlib.util, pathlib, sys, types
    missing = [parent for parent in (package, *parents) if parent not in sys.modules]
    for parent in missing:
        if parent == package:
            root = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
        stub = types.ModuleType(parent)
        stub.__path__ = [str(root.joinpath(*parent.split(".")[1:]))]
        sys.modules[parent] = stub
    return importlib.import_module(path)
