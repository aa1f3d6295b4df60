"""llama.cpp loads a GGUF of every type, decodes what we decode, and computes what we compute."""
import collections, pathlib
import numpy as np
from common import MODELS, WORK, Skipped, compress, convert, fetch, our_logits, relative, run, same_bits, version

TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
         "IQ3_XXS", "IQ3_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]
# What a budget makes of a model: three types in one file.
MIXED = "mixed"
LEVELS = "; ".join(f"rtn(bits={bits}, group=32, symmetric=true)" for bits in (4, 5, 8))
WITH_IMATRIX = ["IQ2_XS", "IQ2_XXS", "IQ1_S"]
TEXTS = ["Once upon a time there was a little girl", "The dog saw a big red ball", "One day Tom and his mom"]
NEW = 24
# llama.cpp multiplies by activations of 8 bits: which of two tokens leads by less than this may differ.
MARGIN = 0.1
# Of its logits from ours, where it multiplies floats; we multiply by activations of 16 bits.
IN_FLOATS = 1e-2


def importance(path, out):
    """Writes an importance matrix for a file: real squares of the embeddings where a matrix reads states, seeded ones elsewhere."""
    import gguf
    from binding import decoded
    reader, random = gguf.GGUFReader(path), np.random.default_rng(27)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    hidden = shapes["token_embd.weight"][0]
    embedding = decoded(path)["token_embd.weight"][1].reshape(-1, hidden)
    states = (embedding**2 / (embedding**2).mean(1, keepdims=True)).mean(0)
    writer = gguf.GGUFWriter(out, arch="", endianess=gguf.GGUFEndian.LITTLE)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["seeded"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (inputs, _, *experts) in ((name, shape) for name, shape in shapes.items() if len(shape) > 1):
        count = experts[0] if experts else 1
        squares = states if inputs == hidden else np.exp(random.standard_normal(inputs))
        sums = 512 * np.tile(squares, (count, 1)).astype("<f4")
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.full((count, 1), 512, "<f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_gguf(path, values):
    """How many tensors the package `gguf` decodes, and whether to these values."""
    import gguf
    try:
        reader = gguf.GGUFReader(path)
    except ValueError:
        return "type unknown to it", True
    known, same = 0, True
    for tensor in reader.tensors:
        try:
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            continue
        known, same = known + 1, same and same_bits(found.reshape(-1), values[tensor.name])
    return f"{known} of {len(reader.tensors)}", same


def their_logits(path, found):
    """What llama.cpp computes for the tokens that we took, as in `found`."""
    from binding import Model
    theirs = []
    with Model(path) as model:
        for text, (prompt, new, _) in zip(TEXTS, found):
            if model.tokens(text) != prompt:
                raise RuntimeError(f"llama.cpp takes {text!r} for other tokens: {model.tokens(text)}, not {prompt}")
            theirs.append((prompt, new, model.logits(prompt + new[:-1])))
    return theirs


def compare(found, with_these):
    """The distance of logits, the greedy tokens alike, and the greatest lead among those that are not."""
    alike, steps, lead = 0, 0, 0.0
    for (prompt, _, one), (_, _, other) in zip(found, with_these):
        for mine, theirs in zip(one[len(prompt) - 1:], other[len(prompt) - 1:]):
            a, b = mine.argmax(), theirs.argmax()
            steps, alike = steps + 1, alike + (a == b)
            # By how much each prefers its own.
            lead = max(lead, min(mine[a] - mine[b], theirs[b] - theirs[a]))
    values = [np.concatenate([logits for *_, logits in some]) for some in (found, with_these)]
    return relative(*values), alike, steps, float(lead)


def check(table, model, ty, matrix):
    """One type of one model."""
    quantised, folder, plain = WORK / "quantised.gguf", WORK / "decoded", WORK / "decoded.gguf"
    target = f"gguf({ty})" if ty else "gguf"
    if ty == MIXED:
        notes = compress(model, quantised, "--format", "gguf", "--target-bpw", 6, "--levels", LEVELS)
    else:
        notes = convert(model, target, quantised, *(["--imatrix", matrix] if ty in WITH_IMATRIX else []))
    # Which of the values we see in the file are those that ggml sees, under its names: as a file of floats.
    convert(quantised, "safetensors", folder, "--dtype", "f32")
    convert(folder, "gguf", plain)
    from binding import decoded
    theirs, seen = decoded(quantised), {name: values for name, (_, values) in decoded(plain).items()}
    what = f"{model.name} {ty or 'as it is'}"
    same = theirs.keys() == seen.keys() and all(same_bits(values, seen[name]) for name, (_, values) in theirs.items())
    table.must(same, f"{what}: ggml decodes other values than we do")
    there = collections.Counter(kind for name, (kind, _) in theirs.items() if ".ffn_" in name or ".attn_" in name)
    named = [note for note in notes if " is " in note and "blocks of" in note]
    for note in named:
        name, said = note.split("`")[1], note.split(" is ")[1].split(":")[0]
        table.must(theirs[name][0].upper() == said.upper(), f"{what}: {name} is {theirs[name][0]}, the report says {said}")
    parsed, same = by_gguf(quantised, seen)
    table.must(same, f"{what}: gguf decodes other values than we do")
    found = our_logits(quantised, TEXTS, NEW)
    theirs, floats = their_logits(quantised, found), their_logits(plain, found)
    in_floats, *_, float_lead = compare(floats, found)
    table.must(in_floats <= IN_FLOATS and float_lead <= MARGIN, f"{what}: {in_floats:.1e} from ours in floats")
    far, alike, steps, lead = compare(theirs, found)
    # What its activations of 8 bits cost it: we may not be further from it than it is from its own floats.
    own, *_, own_lead = compare(theirs, floats)
    table.must(far <= own + IN_FLOATS, f"{what}: {far:.1e} from ours, {own:.1e} from its own floats")
    table.must(lead <= max(MARGIN, 1.05 * own_lead), f"{what}: another token that leads by {lead:.3f}, against its own floats by {own_lead:.3f}")
    kinds = ", ".join(f"{count} {kind.upper()}" for kind, count in there.most_common() if kind != "f32")
    tokens = f"{alike} of {steps}"
    table.row(ty or "as it is", kinds, parsed, f"{in_floats:.1e}", f"{far:.1e}", f"{own:.1e}", tokens, f"{lead:.3f}", f"{own_lead:.3f}")
    quantised.unlink(), plain.unlink()


def models(experts):
    yield MODELS / "stories3m"
    yield pathlib.Path(experts)
    smollm2 = WORK.parent / "smollm2"
    if not (smollm2 / "tokenizer.json").exists():
        import sys
        try:
            run(sys.executable, MODELS.parents[1] / "tools/smollm2.py", smollm2)
        except RuntimeError as error:
            raise Skipped(f"SmolLM2: {error}")
    yield smollm2


def main(table, experts):
    fetch("numpy", "gguf", "xllamacpp")
    matrix = WORK / "imatrix.gguf"
    for model in models(experts):
        plain = WORK / "plain.gguf"
        convert(model, "gguf", plain)
        importance(plain, matrix)
        title = f"{model.name}: {version('xllamacpp')} (llama.cpp), {version('gguf')}"
        columns = ["type", "matrices of blocks", "decoded by `gguf`", "logits, in floats", "logits", "its own from its floats"]
        table.head(title, *columns, "tokens alike", "lead", "its own lead")
        for ty in [None, *TYPES, MIXED]:
            try:
                check(table, model, ty, matrix)
            except RuntimeError as error:
                table.row(ty or "as it is", f"FAILED: {error}")
                table.must(False, f"{model.name} {ty or 'as it is'}: {error}")
