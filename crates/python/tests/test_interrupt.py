"""Ctrl-C and callbacks that raise: the work stops, nothing half-done is left, and the same call goes on from there."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from conftest import contents
from tensorpress import Model, compress, compress_model, convert, demo_texts, pack_file, unpack_file

RECIPE = "gptq(bits=4, group=32)"

CHILD = """
import signal, sys, tensorpress
# Who is started in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
model, out = sys.argv[1:]
text = tensorpress.demo_texts()["calibration"]
print("begins", flush=True)
try:
    tensorpress.compress_model(model, {recipe!r}, out, calibration_text=text, calibration_windows={windows})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    # The interpreter is as it was.
    assert tensorpress.Model.demo().blocks
    sys.exit(3)
"""


def wait_for(condition, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_ctrl_c(shared, tmp_path):
    # On one thread, and with enough to see that seconds of work are left when the signal comes.
    model, out, windows = shared / "data/models/stories3m", tmp_path / "out", 32
    partial = tmp_path / "out.partial"
    arguments = dict(calibration_text=demo_texts()["calibration"], calibration_windows=windows)
    code = CHILD.format(recipe=RECIPE, windows=windows)
    child = subprocess.Popen([sys.executable, "-c", code, str(model), str(out)], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "RAYON_NUM_THREADS": "1"})
    try:
        # A block is done, some are not.
        wait_for(lambda: len(list(partial.glob("*.safetensors"))) >= 2 or child.poll() is not None)
        assert child.poll() is None, "it ended before it could be interrupted"
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(300) == 3 and "interrupted" in child.stdout.read()
    finally:
        child.kill()
        child.stdout.close()
    assert not out.exists() and partial.is_dir()
    told = []
    compress_model(model, RECIPE, out, progress=told.append, **arguments)
    assert told[0]["resumed"] >= 1 and not partial.exists()
    compress_model(model, RECIPE, tmp_path / "whole", **arguments)
    assert contents(out) == contents(tmp_path / "whole")


class Stop(Exception):
    pass


def stop_at(event, at):
    def progress(told):
        if told["event"] == event and told.get("block", at) == at:
            raise Stop(told)
    return progress


def test_what_a_callback_raises_is_raised(stories, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stop):
        compress_model(stories, "rtn(bits=4, group=32)", out, progress=stop_at("block", 2))
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    told = []
    compress_model(stories, "rtn(bits=4, group=32)", out, progress=told.append)
    assert told[0] == {"event": "begun", "blocks": 5, "resumed": 2}
    compress_model(stories, "rtn(bits=4, group=32)", tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_conversions_stop_as_well(stories, tmp_path):
    with pytest.raises(Stop):
        convert(stories, "gguf(Q8_0)", tmp_path / "x.gguf", requantize=True, progress=stop_at("block", 1))
    assert not (tmp_path / "x.gguf").exists()
    convert(stories, "gguf(Q8_0)", tmp_path / "x.gguf", requantize=True)
    convert(stories, "gguf(Q8_0)", tmp_path / "y.gguf", requantize=True)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()


def test_files_stop_as_well(stories, tmp_path):
    for work in (lambda: pack_file(stories, tmp_path / "a.tpk", progress=stop_at("bytes", None)),
                 lambda: unpack_file(tmp_path / "b.tpk", tmp_path / "back", progress=stop_at("bytes", None))):
        pack_file(stories, tmp_path / "b.tpk", force=True)
        with pytest.raises(Stop):
            work()
        assert [at.name for at in tmp_path.iterdir()] == ["b.tpk"]


def test_a_callback_that_cannot_be_called(stories, tmp_path):
    with pytest.raises(TypeError):
        compress_model(stories, "rtn(bits=4, group=32)", tmp_path / "out", progress=7)
    assert not (tmp_path / "out").exists()


def test_other_threads_go_on(tmp_path):
    """A clock in another thread ticks all through a long call."""
    ticks, stop = [], threading.Event()

    def clock():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.002)

    rng = np.random.default_rng(5)
    weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in [(1536, 1024), (1024, 1024)])
    thread = threading.Thread(target=clock)
    thread.start()
    try:
        wait_for(lambda: len(ticks) > 3)
        for work in (lambda: compress(weight, "gptq(bits=4, group=64, clip=mse)", x, threads=1),
                     lambda: compress_model(Model.demo(), RECIPE, tmp_path / "out",
                                            calibration_text=demo_texts()["calibration"], calibration_windows=8)):
            begun = time.monotonic()
            work()
            ended = time.monotonic()
            within = [begun, *(tick for tick in ticks if begun < tick < ended), ended]
            assert ended - begun > 0.05, "too quick to tell"
            longest = max(b - a for a, b in zip(within, within[1:]))
            assert longest < 0.5 * (ended - begun) and len(within) > 10
    finally:
        stop.set()
        thread.join()


def test_many_threads_at_once(weight, samples, stories, tmp_path):
    expected = compress(weight, "gptq(bits=4, group=32)", samples).to_bytes()
    found, layer = [], compress(weight, "rtn(bits=8)")
    product = layer.multiply(samples)

    def work(i):
        made = compress(weight, "gptq(bits=4, group=32)", samples).to_bytes()
        compress_model(stories, "rtn(bits=4, group=32)", tmp_path / str(i))
        found.append((made == expected, np.array_equal(layer.multiply(samples), product)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [(True, True)] * 4
    assert all(contents(tmp_path / str(i)) == contents(tmp_path / "0") for i in range(4))
