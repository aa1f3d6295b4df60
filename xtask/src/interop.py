"""Checks that official readers accept what tensorpress writes, and prints the lines of docs/interop.md.

    python interop.py PROGRAM SHARED WORK

llama.cpp itself (through its binding xllamacpp) loads a GGUF of every type that it knows and continues a text; `gguf`
decodes each file's blocks to what our `--to safetensors` gives."""
import json, os, pathlib, shutil, subprocess, sys
import gguf, numpy as np, xllamacpp

program, shared, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
         "IQ3_XXS", "IQ3_S", "IQ2_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]
PROMPTS = ["Once upon a time there was a little girl", "The dog saw a big red ball", "One day Tom and his mom"]
# llama.cpp multiplies by activations of 8 bits: nearer calls than this may go either way.
MARGIN = 0.1


def ours(*arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def theirs(path, prompts, count):
    """For each prompt the tokens that llama.cpp takes, each with its lead over the next."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
    params.cpuparams.n_threads, params.warmup = 2, False
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, "n_predict": count, "temperature": 0, "top_k": 1, "n_probs": 2,
                                            "cache_prompt": False, "ignore_eos": True})
        steps = answer["choices"][0]["logprobs"]["content"]
        found.append([(s["id"], s["top_logprobs"][0]["logprob"] - s["top_logprobs"][1]["logprob"]) for s in steps])
    return found


def same_until_close(a, b):
    """Tokens that are the same, and whether the first that is not was a close call."""
    for at, (mine, (token, lead)) in enumerate(zip(a, b)):
        if mine != token:
            return at, lead <= MARGIN
    return min(len(a), len(b)), True


def check(model, ty, count=24):
    target = f"gguf({ty})" if ty else "gguf"
    path = work / f"{model.name}-{ty or 'as-it-is'}.gguf"
    path.unlink(missing_ok=True)
    try:
        ours("convert", model, "--to", target, "--out", path)
    except RuntimeError as refused:
        return f"not made: {refused}"
    tensors, decoded = 0, 0
    try:
        reader = gguf.GGUFReader(path)
    except ValueError:  # types that the package does not know yet
        reader = None
    for tensor in reader.tensors if reader else []:
        tensors += 1
        try:
            gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            decoded += 1
        except NotImplementedError:
            pass
    parsed = f"{tensors} tensors, {decoded} decoded by gguf" if reader else "not known to gguf"
    equal, close, wrong = 0, 0, 0
    for prompt, found in zip(PROMPTS, theirs(path, PROMPTS, count)):
        mine = json.loads(ours("run", path, "--prompt", prompt, "--max-tokens", count, "--json"))["ids"]
        same, was_close = same_until_close(mine, found)
        equal += same
        if same < min(len(mine), len(found)):
            close, wrong = close + was_close, wrong + (not was_close)
    path.unlink()
    return f"{parsed}; {equal} of {count * len(PROMPTS)} tokens alike, then {close} close calls, {wrong} others"


def main():
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    import importlib.metadata as metadata
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ["gguf", "xllamacpp"])
    print(f"Checked with {versions}:\n\n| model | type | |\n|---|---|---|", flush=True)
    bad = 0
    models = [shared / "data/models" / name for name in ["stories3m", "stories260k"]]
    for model in models:
        for ty in ["", *TYPES]:
            try:
                said = check(model, ty)
            except Exception as error:  # a reader that refuses is what is looked for
                said, bad = f"REFUSED: {str(error).splitlines()[0]}", bad + 1
            print(f"| {model.name} | {ty or 'as it is'} | {said} |", flush=True)
    sys.exit(1 if bad else 0)


main()
