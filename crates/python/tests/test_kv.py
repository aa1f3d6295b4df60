"""Keys and values: attention as numpy computes it, and pages."""

import numpy as np
import pytest

import tensorpress
from tensorpress import KvCache, PageCodec

HEADS, KV_HEADS, DIM = 4, 2, 16


def arrays(tokens, seed=1):
    rng = np.random.default_rng(seed)
    make = lambda heads: rng.standard_normal((tokens, heads, DIM)).astype(np.float32)
    return make(HEADS), make(KV_HEADS), make(KV_HEADS)


def attention(queries, keys, values, window=None):
    """Causal softmax attention, the queries those of the last tokens."""
    first = len(keys) - len(queries)
    keys, values = (np.repeat(x, HEADS // KV_HEADS, axis=1).astype(np.float64) for x in (keys, values))
    scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(DIM)
    at = first + np.arange(len(queries))[:, None] - np.arange(len(keys))[None]
    scores = np.where((at < 0) | (at >= (window or len(keys))), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)


@pytest.mark.parametrize("recipe, error", [("f32", 1e-5), ("f16", 2e-3), ("bf16", 2e-2), ("kivi(bits=8)", 3e-2)])
def test_attention(recipe, error):
    queries, keys, values = arrays(96)
    cache = KvCache(recipe, KV_HEADS, DIM, heads=HEADS)
    cache.append(keys[:90], values[:90])
    expected = attention(queries[:90], keys[:90], values[:90])
    assert np.abs(cache.attend(queries[:90]) - expected).max() < error
    for at in range(90, 96):
        cache.append(keys[at : at + 1], values[at : at + 1])
    found = cache.attend(queries[90:])
    assert found.shape == (6, HEADS, DIM) and found.dtype == np.float32
    assert np.abs(found - attention(queries[90:], keys, values)).max() < error
    near = attention(queries[90:], keys, values, window=5)
    assert np.abs(cache.attend(queries[90:], window=5, threads=1) - near).max() < error
    assert len(cache) == 96 and cache.held == [96, 96] and "96 tokens" in repr(cache)


def test_bytes_and_budgets():
    queries, keys, values = arrays(256)
    sizes = {}
    for recipe in ("f32", "f16", "kivi(bits=4)", "kivi(bits=4) | h2o(keep=0.5)"):
        cache = KvCache(recipe, KV_HEADS, DIM, heads=HEADS)
        cache.append(keys, values)
        cache.attend(queries)
        sizes[recipe] = cache.bytes
        assert len(cache) == 256 and (max(cache.held) < 200) == ("h2o" in recipe)
    assert sizes["f32"] >= keys.nbytes + values.nbytes
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True) and sizes["f16"] < 0.6 * sizes["f32"]


def test_truncate_and_fork():
    queries, keys, values = arrays(40)
    cache = KvCache("f32", KV_HEADS, DIM, heads=HEADS)
    cache.append(keys[:30], values[:30])
    other = cache.fork()
    other.append(keys[30:], values[30:])
    assert (len(cache), len(other)) == (30, 40)
    other.truncate(30)
    assert np.array_equal(other.attend(queries[:30]), cache.attend(queries[:30]))
    with pytest.raises(tensorpress.TensorpressError):
        other.truncate(31)


def test_wrong_arguments():
    for arguments, says in [(("kivi(bits=3)", 2, 16), "bits = 3"), (("f32", 0, 16), "kv_heads = 0"), (("", 2, 16), "`"),
                            (("f32 | nothing", 2, 16), "nothing")]:
        with pytest.raises(tensorpress.InvalidArgumentError, match=says):
            KvCache(*arguments)
    with pytest.raises(tensorpress.InvalidArgumentError, match="layer = 3"):
        KvCache("f32", 2, 16, layer=3, layers=3)
    with pytest.raises(tensorpress.InvalidArgumentError, match="heads = 3"):
        KvCache("f32", 2, 16, heads=3)
    queries, keys, values = arrays(4)
    cache = KvCache("f32", KV_HEADS, DIM, heads=HEADS)
    for bad in [(keys[:, :1], values), (keys, values[:3]), (keys[0], values[0]), (keys[..., :3], values)]:
        with pytest.raises(tensorpress.ShapeMismatchError):
            cache.append(*bad)
    with pytest.raises(TypeError):
        cache.append(keys.astype(int), values)
    assert len(cache) == 0
    with pytest.raises(tensorpress.InvalidArgumentError):
        cache.attend(queries)
    cache.append(keys[:0], values[:0])
    assert cache.attend(queries[:0]).shape == (0, HEADS, DIM) and len(cache) == 0
    cache.append(keys.astype(np.float16), values.astype(np.float64))
    with pytest.raises(tensorpress.ShapeMismatchError):
        cache.attend(queries[:, :1])


def test_other_widths_of_values():
    rng = np.random.default_rng(7)
    cache = KvCache("f32", 1, 8, heads=2, value_dim=4)
    cache.append(rng.standard_normal((5, 1, 8)), rng.standard_normal((5, 1, 4)))
    assert cache.attend(rng.standard_normal((5, 2, 8))).shape == (5, 2, 4)


@pytest.mark.parametrize(
    "arguments", [{}, {"key_bits": 8, "value_bits": 8}, {"rotate": False, "symmetric": True, "scales": "F32"}]
)
def test_pages(arguments):
    _, keys, values = arrays(12)
    codec = PageCodec(16, KV_HEADS, DIM, **arguments)
    page = codec.encode(keys, values)
    assert len(page) == codec.page_bytes and codec.held(page) == 12 and codec.ratio() == codec.ratio("f32") / 2
    back = codec.decode(page)
    error = 0.02 if arguments.get("key_bits") else 0.5
    for found, was in zip(back, (keys, values)):
        assert found.shape == was.shape and found.dtype == np.float32 and np.abs(found - was).max() < error
    assert codec.encode(keys.astype(np.float64), values) == page
    assert [x.shape for x in codec.decode(codec.encode(keys[:0], values[:0]))] == [(0, KV_HEADS, DIM)] * 2


def test_pages_that_are_none():
    _, keys, values = arrays(4)
    codec = PageCodec(4, KV_HEADS, DIM)
    page = codec.encode(keys, values)
    for at in range(0, len(page), 5):
        changed = bytearray(page)
        changed[at] ^= 4
        with pytest.raises(tensorpress.TensorpressError):
            codec.decode(changed)
    with pytest.raises(tensorpress.InsufficientDataError):
        codec.decode(page[:20])
    with pytest.raises(tensorpress.InvalidArgumentError, match="key_bits"):
        PageCodec(4, KV_HEADS, DIM, key_bits=5).decode(page)
    with pytest.raises(tensorpress.InvalidArgumentError, match="group = 0"):
        PageCodec(4, KV_HEADS, DIM, group=0)
    with pytest.raises(tensorpress.InvalidArgumentError, match="I32"):
        PageCodec(4, KV_HEADS, DIM, scales="I32")
    with pytest.raises(tensorpress.ShapeMismatchError):
        codec.encode(np.zeros((5, KV_HEADS, DIM)), np.zeros((5, KV_HEADS, DIM)))
    keys[1, 1, 3] = np.nan
    with pytest.raises(tensorpress.NumericalError, match="token 1, head 1"):
        codec.encode(keys, values)
