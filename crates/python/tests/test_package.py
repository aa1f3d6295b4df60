"""What is installed, and what it says of itself."""

import importlib.metadata
import inspect
import pathlib

import pytest

import tensorpress


def test_the_wheel_is_what_is_tested():
    at = pathlib.Path(tensorpress.__file__)
    assert pathlib.Path(__file__).resolve().parents[1] not in at.parents
    assert (at.parent / "py.typed").is_file() and (at.parent / "__init__.pyi").is_file()


def test_metadata():
    found = importlib.metadata.metadata("tensorpress")
    assert found["Version"] == tensorpress.__version__
    assert found["License-Expression"] == "MIT OR Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE-MIT", "LICENSE-APACHE"]
    assert "pip install tensorpress" in found["Description"]


def test_every_name_is_there_and_documented():
    assert sorted(tensorpress.__all__) == tensorpress.__all__
    for name in tensorpress.__all__:
        thing = getattr(tensorpress, name)
        if inspect.isclass(thing) or callable(thing):
            assert thing.__doc__ and len(thing.__doc__) > 20, name
    for kind in (tensorpress.Layer, tensorpress.Model, tensorpress.KvCache, tensorpress.PageCodec, tensorpress.TokenMap):
        assert kind.__module__ == "tensorpress"
        for name, thing in vars(kind).items():
            if not name.startswith("_"):
                assert thing.__doc__, f"{kind.__name__}.{name}"


@pytest.mark.parametrize("kind", ["Layer", "Model", "TokenMap"])
def test_what_cannot_be_made_by_hand(kind):
    with pytest.raises(TypeError):
        getattr(tensorpress, kind)()


def test_the_readme_runs(tmp_path, monkeypatch):
    """Its first example, as it stands."""
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) >= 2
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "demo.gguf").is_file() and scope["model"].blocks
