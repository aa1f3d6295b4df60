"""What is wrong is raised as what it is."""

import errno
import os
import pickle

import numpy as np
import pytest

import tensorpress
from tensorpress import Layer, compress, open_model

ALSO = {
    "InvalidArgumentError": ValueError,
    "ShapeMismatchError": ValueError,
    "MissingCalibrationError": ValueError,
    "UnsupportedError": ValueError,
    "NumericalError": ArithmeticError,
    "IoError": OSError,
    "FileMissingError": FileNotFoundError,
    "ExistsError": FileExistsError,
    "MissingBaseError": ValueError,
    "InternalError": RuntimeError,
}


def test_the_hierarchy():
    names = [name for name in tensorpress.__all__ if name.endswith("Error")]
    for name in names:
        kind = getattr(tensorpress, name)
        assert issubclass(kind, tensorpress.TensorpressError) and issubclass(kind, ALSO.get(name, Exception))
        assert kind.__module__ == "tensorpress"
        assert isinstance(pickle.loads(pickle.dumps(kind("why"))), kind)
    assert issubclass(tensorpress.FileMissingError, tensorpress.IoError)


@pytest.mark.parametrize(
    "error, says, matrix, recipe, arguments",
    [
        ("InvalidArgumentError", "bits = 12", (4, 64), "rtn(bits=12)", {}),
        ("InvalidArgumentError", "gtpq", (4, 64), "gtpq", {}),
        ("InvalidArgumentError", "threads = 0", (4, 64), "rtn", {"threads": 0}),
        ("UnsupportedError", "no matrix", (4, 64), "drop_blocks(count=1)", {}),
        ("UnsupportedError", "rewrites", (4, 64), "flap(sparsity=0.2) | rtn", {}),
        ("ShapeMismatchError", r"\[rows, cols\]", (4,), "rtn", {}),
        ("ShapeMismatchError", r"\[2, 3, 4\]", (2, 3, 4), "rtn", {}),
        ("ShapeMismatchError", "60 columns", (4, 64), "gptq", {"calibration": np.ones((9, 60))}),
        ("ShapeMismatchError", r"\[tokens, cols\]", (4, 64), "gptq", {"calibration": np.ones(64)}),
    ],
)
def test_arguments(error, says, matrix, recipe, arguments):
    with pytest.raises(getattr(tensorpress, error), match=says) as raised:
        compress(np.ones(matrix, np.float32), recipe, **arguments)
    assert isinstance(raised.value, ValueError)


def test_calibration_that_is_missing(weight):
    for recipe in ("wanda(sparsity=0.5)", "gptq(bits=4) | coded(rans)"):
        with pytest.raises(tensorpress.MissingCalibrationError, match="needs calibration"):
            compress(weight, recipe)
        layer = compress(weight, recipe, np.ones((0, 128)))
        assert "no calibration token" in layer.fallback and pickle.loads(pickle.dumps(layer)).fallback == layer.fallback


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(weight, bad):
    weight[3, 5] = bad
    with pytest.raises(tensorpress.NumericalError, match=r"\[3, 5\]") as raised:
        compress(weight, "rtn(bits=4)")
    assert raised.value.tensor == "matrix" and raised.value.file is None


@pytest.mark.parametrize("bad", [np.ones((4, 64), np.int32), np.ones((4, 64), bool), np.ones((4, 64), np.uint16),
                                 np.ones((4, 64), np.complex64), np.full((4, 64), "x"), np.full((4, 64), None), None, "text",
                                 object(), [[1.0], [2.0, 3.0]]])
def test_what_is_no_array_of_floats(bad):
    with pytest.raises((TypeError, ValueError)) as raised:
        compress(bad, "rtn")
    assert not isinstance(raised.value, tensorpress.InternalError)


def test_arguments_of_other_types(weight):
    for arguments in [(weight, None), (weight, 4), (weight,)]:
        with pytest.raises(TypeError):
            compress(*arguments)
    with pytest.raises(TypeError, match="bfloat16"):
        compress(weight, "rtn", dtype="float16")
    with pytest.raises(OverflowError):
        compress(weight, "rtn", seed=-1)
    with pytest.raises(TypeError):
        open_model(None)


def test_products_of_other_shapes(weight):
    layer = compress(weight, "rtn(bits=4)")
    for bad in [np.ones((2, 127)), np.ones(48), np.ones((2, 2, 128)), np.float32(1), np.ones((0, 0))]:
        with pytest.raises(tensorpress.ShapeMismatchError):
            layer.multiply(bad)
    with pytest.raises(tensorpress.ShapeMismatchError):
        layer @ np.ones((2, 128))
    with pytest.raises(TypeError):
        layer.multiply(np.ones((2, 128), int))


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        open_model(tmp_path / "no" / "model")
    assert isinstance(raised.value, tensorpress.FileMissingError) and raised.value.errno == errno.ENOENT
    assert "model" in raised.value.file and "model" in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="other numbers")
def test_what_the_system_refuses(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(tensorpress.IoError, match="config.json") as raised:
        open_model(tmp_path)
    assert raised.value.errno == errno.EISDIR and not isinstance(raised.value, FileNotFoundError)


def test_files_that_are_no_models(tmp_path):
    for name, content in [("a.safetensors", b""), ("b.safetensors", b"\xff" * 64), ("c.tpk", b"TPK?"), ("d.gguf", b"GGUF"),
                          ("e", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(tensorpress.TensorpressError, match=name) as raised:
            open_model(tmp_path / name)
        assert not isinstance(raised.value, tensorpress.InternalError)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_panic_is_an_exception(threaded, weight, capfd):
    provoke = getattr(tensorpress._native, "_panic", None)
    if provoke is None:
        pytest.skip("built without assertions")
    with pytest.raises(tensorpress.InternalError, match="on purpose.*defect") as raised:
        provoke(threaded)
    assert isinstance(raised.value, RuntimeError)
    # And all goes on.
    assert isinstance(compress(weight, "rtn(bits=4)"), Layer)
