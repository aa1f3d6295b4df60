"""Whole models: opened, compressed, converted, judged."""

import json
import pathlib

import numpy as np
import pytest

import tensorpress
from conftest import contents
from tensorpress import Model, compress_model, convert, evaluate, open_model

RECIPE = "gptq(bits=4, group=32)"


@pytest.fixture(scope="module")
def compressed(stories, calibration, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "w4"
    report = compress_model(stories, RECIPE, out, calibration_text=calibration, calibration_windows=8)
    return out, report


def test_a_plain_model(stories):
    model = open_model(stories)
    assert model.config == json.loads((stories / "config.json").read_text())
    assert model.blocks == 5 and len(model.linears) == 35 and model.compressed == [] and model.notes == []
    assert model.names == sorted(model.names) and set(model.linears) < set(model.names)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert name in model and "nothing" not in model and model.dtype(name) == "F32"
    values = model.tensor(name)
    assert values.dtype == np.float32 and values.shape == (64, 64) and model.bits_per_weight == 32
    assert np.array_equal(model.layer(name).decode(), values)
    assert model.tensor("model.norm.weight").shape == (64,)
    values[:] = 0
    assert model.tensor(name).any()
    assert "5 blocks" in repr(model)
    for wrong in (model.layer, model.tensor, model.dtype):
        with pytest.raises(tensorpress.InvalidArgumentError, match="nothing") as raised:
            wrong("nothing")
        assert raised.value.tensor == "nothing"


def test_compressed(stories, compressed):
    out, report = compressed
    assert len(report["layers"]) == 35 and all(layer["error"] < 0.2 for layer in report["layers"])
    model, plain = open_model(str(out)), open_model(stories)
    assert model.names == plain.names and sorted(model.linears) == model.compressed
    bill = model.bill()
    assert bill["bits_per_weight"] == report["bits_per_weight"] == model.bits_per_weight < 6
    parts = sum(bill["storage"].values())
    assert bill["layers"][0]["storage"] == model.layer(bill["layers"][0]["name"]).storage
    assert parts + bill["uncompressed_bytes"] + bill["container_bytes"] == bill["file_bytes"]
    assert bill["file_bytes"] == sum(at.stat().st_size for at in out.glob("*.safetensors"))
    name = model.compressed[0]
    assert model.dtype(name) is None
    layer, was = model.layer(name), plain.tensor(name)
    assert np.array_equal(model.tensor(name), layer.decode())
    assert np.linalg.norm(layer.decode() - was) < 0.2 * np.linalg.norm(was)
    with pytest.raises(tensorpress.InvalidArgumentError):
        model.tensor(f"{name}.codes")
    with pytest.raises(tensorpress.UnsupportedError, match="compressed already"):
        compress_model(model, "rtn", out.parent / "again")


def test_what_is_there_is_not_replaced(stories, compressed):
    out, _ = compressed
    was = contents(out)
    with pytest.raises(FileExistsError) as raised:
        compress_model(stories, "rtn(bits=8, group=32)", out)
    assert isinstance(raised.value, tensorpress.ExistsError) and contents(out) == was
    with pytest.raises(tensorpress.MissingCalibrationError):
        compress_model(stories, RECIPE, out.parent / "uncalibrated")
    assert not (out.parent / "uncalibrated").exists()


def test_force(stories, tmp_path):
    out = tmp_path / "out"
    compress_model(stories, "rtn(bits=8, group=32)", out)
    was = contents(out)
    report = compress_model(stories, "rtn(bits=4, group=32)", out, force=True)
    assert contents(out) != was and report["bits_per_weight"] == open_model(out).bits_per_weight


def test_progress_is_told_on_this_thread(stories, tmp_path):
    import threading

    told = []
    compress_model(stories, "rtn(bits=4, group=32)", tmp_path / "out",
                   progress=lambda event: told.append((threading.get_ident(), event)))
    assert {thread for thread, _ in told} == {threading.get_ident()}
    events = [event for _, event in told]
    assert events[0] == {"event": "begun", "blocks": 5, "resumed": 0} and events[-1] == {"event": "finished"}
    assert [event["block"] for event in events if event["event"] == "block"] == [0, 1, 2, 3, 4]
    layers = [event for event in events if event["event"] == "layer"]
    assert len(layers) == 35 and all(layer["bits_per_weight"] < 7 and layer["method"] for layer in layers)


def test_texts_of_every_kind(stories, calibration, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(calibration)
    made = {}
    for name, given in {"text": calibration, "path": text, "texts": [calibration[:3000]] * 2,
                        "ids": [np.arange(3, 200), list(range(5, 90))]}.items():
        compress_model(stories, "gptq(bits=4, group=32)", tmp_path / name, calibration_text=given, calibration_windows=2,
                       calibration_length=64)
        made[name] = contents(tmp_path / name)
    assert made["text"] == made["path"] != made["ids"]
    for bad, error in [(7, TypeError), ([7], TypeError), ([["x"]], TypeError), ([[-1]], TypeError), ([], Exception),
                       (tmp_path / "none", FileNotFoundError),
                       (str(text), tensorpress.InvalidArgumentError)]:
        with pytest.raises(error):
            compress_model(stories, "gptq(bits=4, group=32)", tmp_path / "bad", calibration_text=bad)
    assert not (tmp_path / "bad").exists()


def test_gguf_and_back(stories, compressed, tmp_path):
    out, _ = compressed
    for source, to, lossless in [(stories, "gguf", True), (out, "gguf(F16)", False), (stories, "gguf(Q8_0)", False)]:
        file = tmp_path / f"{source.name}-{to}.gguf"
        report = convert(source, to, file, requantize=not lossless)
        assert report["lossless"] == lossless and report["bytes_after"] == file.stat().st_size
        model, plain = open_model(file), open_model(source)
        assert model.blocks == 5 and set(model.linears) == set(plain.linears)
        for name in plain.linears[:9]:
            error = np.abs(model.tensor(name) - plain.tensor(name)).max()
            assert error == 0 if lossless else error < 0.02
    with pytest.raises(tensorpress.TensorpressError, match="gguf"):
        convert(stories, "gguf(Q9)", tmp_path / "x.gguf")
    with pytest.raises(FileExistsError):
        convert(stories, "gguf", file)


def test_other_formats(stories, compressed, tmp_path):
    out, _ = compressed
    for to in ("safetensors", "compressed-tensors", "bnb"):
        told = []
        # Rows of 172 have no groups of 32 in compressed-tensors.
        source = open_model(out) if to == "bnb" else Model.demo()
        report = convert(source, to, tmp_path / to, requantize=True, progress=told.append)
        assert report["target"].startswith(to.split("-")[0]) and told[-1] == {"event": "finished"}
        assert open_model(tmp_path / to).blocks == source.blocks


def test_packed_models_and_differences(stories, tmp_path):
    packed, tuned = tmp_path / "model.tpk", tmp_path / "tuned"
    tensorpress.pack_file(stories, packed)
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(open_model(packed).tensor(name), open_model(stories).tensor(name))
    convert(stories, "safetensors", tuned, dtype="f32")
    difference = tmp_path / "tuned.tpk"
    report = tensorpress.pack_file(tuned, difference, base=stories)
    if report["delta_tensors"] or report["duplicate_bytes"]:
        with pytest.raises(tensorpress.MissingBaseError):
            open_model(difference).tensor(name)
    assert np.array_equal(open_model(difference, base=stories).tensor(name), open_model(stories).tensor(name))


def test_stored_types(tmp_path):
    """A safetensors file of every type, written here by hand."""
    arrays = {kind: (np.arange(6) * 9).astype(kind).reshape(2, 3) for kind in
              ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
               "bool"]}
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"}
    header, data = {}, b""
    for kind, array in arrays.items():
        dtype = names.get(kind) or kind.replace("uint", "U").replace("int", "I")
        header[kind] = {"dtype": dtype, "shape": [2, 3], "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    header["bf16"] = {"dtype": "BF16", "shape": [3], "data_offsets": [len(data), len(data) + 6]}
    data += bits.tobytes()
    header["scalar"] = {"dtype": "F32", "shape": [], "data_offsets": [len(data), len(data) + 4]}
    data += np.float32(2.5).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "all.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    model = open_model(tmp_path / "all.safetensors")
    assert model.names == sorted(header)
    for kind, array in arrays.items():
        found = model.tensor(kind)
        assert found.dtype == array.dtype and np.array_equal(found, array)
    assert model.tensor("bf16").tolist() == [1.0, -2.0, np.inf] and model.dtype("bf16") == "BF16"
    assert model.tensor("scalar").shape == () and model.tensor("scalar") == np.float32(2.5)
    with pytest.raises(tensorpress.UnsupportedError):
        model.layer("int32")


def test_judged(stories, compressed, held_out):
    out, _ = compressed
    told = []
    found = evaluate(out, held_out, reference=stories, max_segments=6, max_tokens=400, progress=told.append)
    assert found["tokens"] > 500 and 2 < found["reference_perplexity"] < found["perplexity"] < 6
    assert 0 < found["kld_mean"] < found["kld_p99"] < 2 and 0.7 < found["top1_agreement"] < 1
    assert sorted(event["done"] for event in told) == [1, 2, 3, 4, 5, 6]
    alone = evaluate(open_model(stories), pathlib.Path(held_out), max_segments=6, max_tokens=400)
    assert alone["perplexity"] == pytest.approx(found["reference_perplexity"], rel=1e-6)
    assert alone["kld_mean"] is None and alone["reference_perplexity"] is None
    cached = evaluate(stories, held_out, max_segments=1, max_tokens=40, kv="kivi(bits=8)", reference=stories)
    assert 0 <= cached["kld_mean"] < 0.1
    with pytest.raises(tensorpress.InsufficientDataError):
        evaluate(stories, [[1]])
    with pytest.raises(ZeroDivisionError):
        evaluate(stories, held_out, max_segments=50, progress=lambda event: 1 / 0)


def test_the_demo():
    model, texts = Model.demo(), tensorpress.demo_texts()
    assert model.blocks > 0 and len(texts["calibration"]) > 1000 and len(texts["held_out"]) > 5
    assert evaluate(model, texts["held_out"], max_segments=3)["perplexity"] < 10


def test_one_call_writes_a_format_and_files_have_a_length(tmp_path):
    demo = Model.demo()
    recipe = "rtn(bits=4, group=32, symmetric=true)"
    report = compress_model(demo, recipe, tmp_path / "w4.gguf", format="gguf")
    assert (tmp_path / "w4.gguf").is_file() and len(report["converted"]) >= len(report["layers"])
    assert open_model(tmp_path / "w4.gguf").blocks == demo.blocks
    with pytest.raises(tensorpress.UnsupportedError, match="gptq"):
        compress_model(demo, "nf4", tmp_path / "no", format="gptq")
    assert not (tmp_path / "no").exists() and not (tmp_path / "no.partial").exists()
    report = convert(demo, "safetensors", tmp_path / "short", shard_size=600_000)
    files = list((tmp_path / "short").glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size <= 600_000 for file in files)
    assert report["bytes_after"] == sum(file.stat().st_size for file in files)
    with pytest.raises(ValueError):
        convert(demo, "gguf", tmp_path / "x.gguf", shard_size=600_000)
