"""Every bit comes back, and every changed one is found."""

import numpy as np
import pytest

import tensorpress
from conftest import contents
from tensorpress import pack, pack_file, unpack, unpack_file, unpacked_size, verify_file


@pytest.mark.parametrize("data", [b"", b"\0", b"abc" * 1000, bytes(range(256)) * 30, b"\0" * 3_000_000])
@pytest.mark.parametrize("kind", [None, "f32", "bf16", "i64"])
def test_bytes(data, kind):
    packed = pack(data, kind)
    assert unpack(packed) == data and unpacked_size(packed) == len(data)
    assert pack(bytearray(data), kind) == pack(memoryview(data), kind) == packed


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint32", "int16", "uint8", "bool", ">f4", "c8"])
def test_arrays(dtype):
    array = (np.random.default_rng(1).standard_normal((300, 70)) * 20).astype(dtype)
    for given in (array, array[::2, ::-3], array[:0], array.T):
        packed = pack(given)
        back = unpack(packed, dtype)
        assert back.dtype == array.dtype and np.array_equal(back.reshape(given.shape), given)
        assert back.flags.writeable
        assert unpack(packed) == np.ascontiguousarray(given).astype(given.dtype.newbyteorder("<")).tobytes()
    nans = np.array([np.nan, -0.0, 0.0, np.inf], np.float32)
    assert unpack(pack(nans)) == nans.tobytes()


def test_the_layout_makes_it_smaller():
    weights = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
    assert len(pack(bits, "bf16")) < 0.8 * bits.nbytes
    assert len(pack(bits, "bf16", effort="best")) <= len(pack(bits, "bf16"))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert pack(bits.view(ml_dtypes.bfloat16)) == pack(bits, "bf16")
    assert np.array_equal(unpack(pack(bits, "bf16"), ml_dtypes.bfloat16).view(np.uint16), bits)


def test_damage_and_nonsense():
    packed = pack(np.arange(2000, dtype=np.float32))
    for at in range(0, len(packed), 11):
        changed = bytearray(packed)
        changed[at] ^= 16
        with pytest.raises(tensorpress.TensorpressError):
            unpack(changed)
    for end in (0, 4, len(packed) - 1):
        with pytest.raises((tensorpress.InsufficientDataError, tensorpress.CorruptionError)):
            unpack(packed[:end])
    with pytest.raises(tensorpress.InvalidArgumentError, match="f33.*bf16"):
        pack(b"x", "f33")
    with pytest.raises(tensorpress.InvalidArgumentError, match="slow"):
        pack(b"x", effort="slow")
    with pytest.raises(tensorpress.InvalidArgumentError, match="3 bytes"):
        unpack(pack(b"abc"), "float32")
    for bad in ("text", 7, None, np.array([None])):
        with pytest.raises(TypeError):
            pack(bad)


def test_files(stories, tmp_path):
    told = []
    report = pack_file(stories, tmp_path / "model.tpk", progress=told.append)
    size = (tmp_path / "model.tpk").stat().st_size
    assert report["bytes_after"] == size < report["bytes_before"] and told[-1]["done"] == told[-1]["total"]
    assert verify_file(tmp_path / "model.tpk")["damages"] == []
    unpack_file(tmp_path / "model.tpk", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(stories)
    for again in (lambda **k: pack_file(stories, tmp_path / "model.tpk", **k),
                  lambda **k: unpack_file(tmp_path / "model.tpk", tmp_path / "back", **k)):
        with pytest.raises(FileExistsError):
            again()
        again(force=True)
    data = bytearray((tmp_path / "model.tpk").read_bytes())
    data[size // 2] ^= 1
    (tmp_path / "bad.tpk").write_bytes(data)
    found = verify_file(tmp_path / "bad.tpk")["damages"]
    assert len(found) == 1 and "tensor" in found[0]
    with pytest.raises(tensorpress.CorruptionError) as raised:
        unpack_file(tmp_path / "bad.tpk", tmp_path / "never")
    assert raised.value.tensor in found[0] and not (tmp_path / "never").exists()
    with pytest.raises(FileNotFoundError):
        pack_file(tmp_path / "nothing", tmp_path / "x.tpk")


def test_differences(stories, tmp_path):
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for name, content in contents(stories).items():
        (tuned / name).write_bytes(content)
    data = bytearray((tuned / "model.safetensors").read_bytes())
    for at in range(500_000, 600_000, 4096):
        data[at] ^= 1
    (tuned / "model.safetensors").write_bytes(data)
    report = pack_file(tuned, tmp_path / "tuned.tpk", base=stories)
    assert report["delta_tensors"] > 0 and report["bytes_after"] < 0.2 * report["bytes_before"]
    with pytest.raises(tensorpress.MissingBaseError):
        unpack_file(tmp_path / "tuned.tpk", tmp_path / "back")
    unpack_file(tmp_path / "tuned.tpk", tmp_path / "back", base=stories)
    assert contents(tmp_path / "back") == contents(tuned)
    assert verify_file(tmp_path / "tuned.tpk", base=stories)["damages"] == []
