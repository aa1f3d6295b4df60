"""One matrix: the numbers are those of numpy, whatever arrays come in."""

import copy
import pickle

import numpy as np
import pytest

import tensorpress
from tensorpress import Layer, compress

RECIPES = [
    "rtn(bits=4, group=32)",
    "rtn(bits=8, group=64) | coded(rans)",
    "gptq(bits=4, group=64, clip=mse)",
    "awq(bits=4, group=64)",
    "hadamard | gptq(bits=4)",
    "nf4",
    "wanda(sparsity=0.5)",
    "sparsegpt(pattern=2:4) | gptq(bits=4)",
    "svd_llm(ratio=0.2)",
    "gptq(bits=3) | residual(eora(rank=8))",
]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("recipe", RECIPES)
def test_products_are_those_of_the_decoded_matrix(recipe, weight, samples):
    layer = compress(weight, recipe, samples)
    dense = layer.decode()
    assert dense.dtype == np.float32 and dense.shape == weight.shape == layer.shape
    x = samples[:7]
    expected = x.astype(np.float64) @ dense.astype(np.float64).T
    assert relative(layer.multiply(x), expected) < 1e-5
    assert relative(layer.multiply(x[0]), expected[0]) < 1e-5
    assert layer.multiply(x[0]).shape == (48,)
    assert relative(layer @ x.T, expected.T) < 1e-5 and relative(layer @ x[0], expected[0]) < 1e-5
    assert np.array_equal(layer(x), layer.multiply(x))
    rows = np.linspace(-1, 1, 48, dtype=np.float32)
    assert np.array_equal(rows @ layer, rows @ dense) and np.array_equal(rows.tolist() @ layer, rows.tolist() @ dense)
    # Calibrated, so it is the output that is near.
    assert relative(samples @ dense.T, samples @ weight.T) < 0.8


def test_eight_bits_are_near_and_bits_are_counted(weight):
    layer = compress(weight, "rtn(bits=8, group=32)")
    assert np.abs(layer.decode() - weight).max() <= (weight.max() - weight.min()) / 255
    storage = layer.storage
    assert storage["codes"] == weight.size and set(storage) == {"codes", "scales", "zeros"}
    assert layer.bits_per_weight == 8 * sum(storage.values()) / weight.size
    assert layer.kind == layer.tree["node"] == "grouped_affine.v1" and layer.multiplies_by in ("fused", "decode")
    assert layer.bias is None and layer.fallback is None
    assert "48, 128" in repr(layer) and "bits per weight" in repr(layer)


def test_calibration_helps(weight, samples):
    mixed = samples @ np.random.default_rng(3).standard_normal((128, 128)).astype(np.float32)
    error = lambda layer: relative(mixed @ layer.decode().T, mixed @ weight.T)
    assert error(compress(weight, "gptq(bits=3)", mixed)) < 0.8 * error(compress(weight, "rtn(bits=3)", mixed))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", "<f4"])
def test_types_of_floats(weight, dtype):
    given = weight.astype(dtype)
    layer = compress(given, "rtn(bits=8, group=32)")
    assert relative(layer.decode(), given.astype(np.float32)) < 0.01
    assert layer.multiply(given[:3]).dtype == np.float32


def test_bfloat16(weight):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = weight.astype(ml_dtypes.bfloat16)
    layer = compress(given, "rtn(bits=4, group=32)")
    assert relative(layer.decode(), given.astype(np.float32)) < 0.15
    bits = given.view(np.uint16)
    assert compress(bits, "rtn(bits=4, group=32)", dtype="bfloat16").to_bytes() == layer.to_bytes()
    # What is kept, is kept in the type it had.
    assert compress(given, "magnitude(sparsity=0.5)").storage["values"] == weight.size


def test_any_strides(weight):
    expected = compress(weight, "rtn(bits=4, group=32)").to_bytes()
    wide = np.zeros((96, 256), np.float32)
    wide[::2, ::2] = weight
    flipped = np.ascontiguousarray(weight[::-1, ::-1])
    raw = np.zeros(weight.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(weight.shape)
    unaligned[:] = weight
    frozen = weight.copy()
    frozen.flags.writeable = False
    for given in [
        np.asfortranarray(weight), weight.T.copy().T, wide[::2, ::2], flipped[::-1, ::-1], unaligned, frozen, weight.tolist(),
        weight.astype(">f4"),
    ]:
        assert compress(given, "rtn(bits=4, group=32)").to_bytes() == expected
    layer, x = Layer.from_bytes(expected), np.random.default_rng(4).standard_normal((128, 5)).astype(np.float32)
    assert np.array_equal(layer.multiply(x.T), layer.multiply(x.T.copy()))


def test_the_same_for_any_number_of_threads(weight, samples):
    one = compress(weight, "gptq(bits=4, group=32)", samples, threads=1)
    assert compress(weight, "gptq(bits=4, group=32)", samples, threads=2).to_bytes() == one.to_bytes()
    assert compress(weight, "gptq(bits=4, group=32)", samples).to_bytes() == one.to_bytes()
    assert np.array_equal(one.multiply(samples, threads=1), one.multiply(samples, threads=3))


def test_the_seed_decides(weight):
    made = [compress(weight, "hadamard | rtn(bits=4)", seed=seed).to_bytes() for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_bytes_and_pickles(weight, samples):
    layer = compress(weight, "gptq(bits=4, group=64) | coded(rans)", samples)
    data = layer.to_bytes()
    for given in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert np.array_equal(Layer.from_bytes(given).decode(), layer.decode())
    for back in [pickle.loads(pickle.dumps(layer, protocol)) for protocol in range(2, 6)] + [copy.deepcopy(layer)]:
        assert back.to_bytes() == data
    for bias, fallback in [([1.0, 2.0], None), (None, "why")]:
        back = pickle.loads(pickle.dumps(tensorpress._native._restore_layer(data, bias, fallback)))
        assert back.fallback == fallback and (bias is None) == (back.bias is None)
        assert bias is None or back.bias.tolist() == bias


def test_every_changed_byte_is_found(weight):
    data = compress(weight, "rtn(bits=4, group=32)").to_bytes()
    for at in [*range(0, 700, 7), *range(700, len(data), 97), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(tensorpress.TensorpressError):
            Layer.from_bytes(changed)
    for end in (0, 1, 8, 100, len(data) - 1):
        with pytest.raises((tensorpress.CorruptionError, tensorpress.InsufficientDataError)):
            Layer.from_bytes(data[:end])
    with pytest.raises(TypeError):
        Layer.from_bytes("text")
    with pytest.raises(TypeError):
        Layer.from_bytes(7)


def test_numpy_takes_it_for_an_array(weight):
    layer = compress(weight, "rtn(bits=8)")
    assert np.array_equal(np.asarray(layer), layer.decode())
    assert np.asarray(layer, dtype=np.float64).dtype == np.float64
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="copy=False"):
            np.asarray(layer, copy=False)


def test_nothing_is_shared_with_inputs(weight):
    given = weight.copy()
    layer = compress(given, "magnitude(sparsity=0.5)")
    was = layer.decode()
    given[:] = 0
    was_too = layer.decode()
    assert np.array_equal(was, was_too) and was.any()
    was[:] = 1
    assert np.array_equal(layer.decode(), was_too)


@pytest.mark.parametrize("shape", [(1, 1), (1, 128), (48, 1), (3, 33), (0, 4), (4, 0), (0, 0)])
def test_odd_shapes(shape):
    given = np.ones(shape, np.float32)
    try:
        layer = compress(given, "rtn(bits=4, group=32)")
    except tensorpress.TensorpressError as error:
        assert not isinstance(error, tensorpress.InternalError), error
        return
    assert layer.shape == shape and layer.decode().shape == shape
    for tokens in (0, 1, 3):
        assert layer.multiply(np.ones((tokens, shape[1]), np.float32)).shape == (tokens, shape[0])
    assert Layer.from_bytes(layer.to_bytes()).shape == shape
