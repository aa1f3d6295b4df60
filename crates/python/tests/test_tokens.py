"""Fewer tokens."""

import numpy as np
import pytest

import tensorpress
from tensorpress import divprune, tome


@pytest.fixture
def states():
    return np.random.default_rng(6).standard_normal((24, 8)).astype(np.float32)


def test_pairs_of_equals_are_merged():
    states = np.repeat(np.random.default_rng(6).standard_normal((5, 8)).astype(np.float32), 2, axis=0)
    found = tome(states, 5)
    assert (found.sources, found.targets) == (10, 5) and found.counts.tolist() == [2] * 5
    assert found.assignment.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and found.firsts.tolist() == [0, 2, 4, 6, 8]
    merged = found.merge(states)
    assert np.allclose(merged, states[::2]) and np.allclose(found.unmerge(merged), states)


@pytest.mark.parametrize("keep", [1, 7, 12, 23, 24])
def test_merging_is_the_mean(states, keep):
    found = tome(states, keep)
    sizes = np.arange(1, 25, dtype=np.float32)
    assert found.targets == keep and found.counts.sum() == 24 and (found.assignment >= 0).all()
    for target in range(keep):
        members = found.assignment == target
        assert np.allclose(found.merge(states)[target], states[members].mean(0), atol=1e-6)
        weighted = np.average(states[members], axis=0, weights=sizes[members])
        assert np.allclose(found.merge(states, sizes)[target], weighted, atol=1e-5)
        assert found.sizes(sizes)[target] == sizes[members].sum() and found.sizes()[target] == members.sum()
    z = np.random.default_rng(8).standard_normal((keep, 2, 3)).astype(np.float32)
    assert np.array_equal(found.merge(found.unmerge(z)), z)
    assert found.merge(np.arange(24.0)).shape == (keep,)
    assert f"24 -> {keep}" in repr(found)


def test_diversity(states):
    """Greedy max-min, written here in full."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    chosen = [int(np.argmax(np.where(np.eye(24, dtype=bool), np.inf, distance).min(1)))]
    while len(chosen) < 9:
        nearest = distance[:, chosen].min(1)
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
    found = divprune(states, 9)
    assert np.flatnonzero(found.assignment >= 0).tolist() == sorted(chosen) == found.firsts.tolist()
    assert np.array_equal(found.merge(states), states[sorted(chosen)])
    assert not found.unmerge(found.merge(states))[found.assignment < 0].any()


def test_protected_tokens_stay(states):
    for method in (tome, divprune):
        found = method(states, 6, protected=[0, 23])
        for token in (0, 23):
            assert found.counts[found.assignment[token]] == 1
        assert np.array_equal(method(states.astype(np.float64), 6, protected=(0, 23)).assignment, found.assignment)


def test_maps_go_on(states):
    first = tome(states, 12)
    second = divprune(first.merge(states), 5)
    both = first.then(second)
    assert (both.sources, both.targets) == (24, 5)
    assert np.allclose(both.merge(states), second.merge(first.merge(states)), atol=1e-5)
    with pytest.raises(tensorpress.ShapeMismatchError):
        second.then(first)


def test_wrong_arguments(states):
    for method in (tome, divprune):
        for keep in (0, 25):
            with pytest.raises(tensorpress.InvalidArgumentError, match="keep"):
                method(states, keep)
        with pytest.raises(tensorpress.InvalidArgumentError, match="24"):
            method(states, 5, protected=[24])
        with pytest.raises(tensorpress.ShapeMismatchError):
            method(states[0], 1)
        with pytest.raises(tensorpress.InvalidArgumentError):
            method(states[:0], 1)
        bad = states.copy()
        bad[3, 2] = np.nan
        with pytest.raises(tensorpress.NumericalError, match=r"\[3, 2\]"):
            method(bad, 5)
    with pytest.raises(tensorpress.ShapeMismatchError):
        tome(states, 5, sizes=np.ones(23))
    found = tome(states, 5)
    for bad in (np.ones((23, 2)), np.float32(1), np.ones((25,))):
        with pytest.raises(tensorpress.ShapeMismatchError):
            found.merge(bad)
    with pytest.raises(tensorpress.ShapeMismatchError):
        found.unmerge(np.ones((6, 2)))
