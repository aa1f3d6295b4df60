"""What the tests share: the workspace's data, and matrices that are the same in every run."""

import os
import pathlib

import numpy as np
import pytest


HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared():
    """The folder of models and texts, a fixture that is missing only where nobody insists on it."""
    at = pathlib.Path(os.environ.get("TENSORPRESS_SHARED", HERE.parents[3] / "shared"))
    if not at.is_dir():
        if os.environ.get("TENSORPRESS_REQUIRE_DATA"):
            pytest.fail(f"{at} is not there, and TENSORPRESS_REQUIRE_DATA is set")
        pytest.skip(f"{at} is not there")
    return at


@pytest.fixture(scope="session")
def stories(shared):
    return shared / "data/models/stories260k"


@pytest.fixture(scope="session")
def calibration(shared):
    return (shared / "data/text/tinystories_train_2MB_calib.txt").read_text()[:40_000]


@pytest.fixture(scope="session")
def held_out(shared):
    return shared / "data/text/tinystories_val_250stories.jsonl"


@pytest.fixture
def weight():
    return np.random.default_rng(1).standard_normal((48, 128)).astype(np.float32)


@pytest.fixture
def samples():
    return np.random.default_rng(2).standard_normal((256, 128)).astype(np.float32)


def contents(folder):
    """Every file of a folder, by its name."""
    folder = pathlib.Path(folder)
    return {str(at.relative_to(folder)): at.read_bytes() for at in sorted(folder.rglob("*")) if at.is_file()}
