"""What compiled loops share: dealing out work, memory of any layout, and code that is kept."""

import threading
from types import ModuleType

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.kernels import backends
from ropewalk.kernels.compiled.compiler import Loop
from ropewalk.kernels.compiled.memory import flat
from ropewalk.kernels.compiled.sequences import Sequences
from ropewalk.kernels.compiled.threads import Plan, plan


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=9),
    st.integers(1, 700),
    st.integers(1, 9),
    st.sampled_from([1, 256, 1024]),
)
def test_every_block_of_channels_is_dealt_out_once(lengths, channels, count, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: count)
        shares = plan(np.array(lengths), channels, 10.0, most)
    blocks = -(-channels // shares.width)
    assert shares.width <= most
    assert shares.bounds[0] == 0
    assert shares.bounds[-1] == len(lengths) * blocks
    assert list(shares.bounds) == sorted(set(shares.bounds))
    assert 1 <= shares.workers <= count


def test_a_thread_must_be_worth_it(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert plan(np.full(8, 100), 64, 1.0, 256).workers == 1
    assert plan(np.full(8, 100_000), 64, 1.0, 256).workers == 4
    alone = plan(np.array([100_000]), 256, 1.0, 256)
    assert (alone.width, alone.workers) == (64, 4)


def test_long_sequences_are_not_dealt_to_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    lengths = np.array([60_000, 10_000, 10_000, 10_000, 10_000, 20_000])
    assert plan(lengths, 32, 1.0, 256).bounds == (0, 1, 6)


def test_all_workers_end_before_an_error_is_raised():
    ended = []

    def work(worker, _first, _end):
        if worker == 1:
            raise FloatingPointError("of one worker")
        ended.append(worker)

    with pytest.raises(FloatingPointError, match="of one worker"):
        Plan(1, (0, 1, 2, 3)).run(work)
    assert sorted(ended) == [0, 2]


def test_a_broadcast_tensor_is_not_written_out():
    row = torch.arange(5.0).to(torch.bfloat16)
    memory, strides = flat(row.expand(1000, 1000, 5), torch.float32)
    assert memory.tolist() == [0, 1, 2, 3, 4]
    assert strides == (0, 0)


def test_memory_is_shared_where_channels_are_neighbours():
    x = torch.randn(7, 3, 6).transpose(0, 1)[:, 1:, 2:]
    memory, strides = flat(x, torch.float32)
    assert memory.ctypes.data == x.data_ptr()
    assert strides == x.stride()[:2]
    memory[strides[0] + 2 * strides[1] + 3] = 9
    assert x[1, 2, 3] == 9


@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[..., ::2], lambda x: x.conj()])
def test_other_layouts_are_copied(view):
    x = view(torch.randn(2, 3, 4, dtype=torch.complex64))
    memory, strides = flat(x, torch.complex64)
    for i, j in np.ndindex(*x.shape[:2]):
        at = i * strides[0] + j * strides[1]
        assert memory[at : at + x.shape[2]].tolist() == x[i, j].tolist()


def test_where_packed_sequences_begin():
    cu = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    forward = Sequences.of(1, 7, cu)
    begins, step = forward.walk(70, 10)
    assert (begins.tolist(), step, forward.lengths.tolist()) == ([0, 30, 30], 10, [3, 0, 4])
    begins, step = Sequences.of(1, 7, cu, reverse=True).walk(70, 10)
    assert (begins.tolist(), step) == ([20, 30, 60], -10)


def doubled(x):
    for i in range(x.size):
        x[i] *= 2


def called(loop):
    x = np.arange(3.0)
    loop(x)
    return x.tolist()


def test_without_a_folder_for_the_code_it_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert called(Loop(doubled)) == [0, 2, 4]


def test_a_disk_that_is_full_when_code_is_written(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    loop = Loop(doubled)
    assert called(loop) == called(loop) == [0, 2, 4]


@pytest.mark.parametrize("kept", [b"", b"\x80\x04\x95", None])
def test_what_was_kept_cannot_be_read(monkeypatch, tmp_path, kept):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert called(Loop(doubled)) == [0, 2, 4]
    for index in tmp_path.rglob("*.nbi"):
        index.unlink()
        index.mkdir() if kept is None else index.write_bytes(kept)
    loop = Loop(doubled)
    assert called(loop) == called(loop) == [0, 2, 4]


def test_threads_that_are_not_to_be_had(monkeypatch):
    """The second is refused; every worker's share is done all the same."""
    start, wanted, done = threading.Thread.start, [], []

    def refuse(thread):
        wanted.append(thread)
        if len(wanted) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Plan(1, (0, 1, 3, 4, 8)).run(lambda *share: done.append(share))
    assert sorted(done) == [(0, 0, 1), (1, 1, 3), (2, 3, 4), (3, 4, 8)]
    assert len(wanted) == 2


def test_a_numba_that_cannot_be_imported(monkeypatch):
    """It is there, but refuses a NumPy newer than itself: by itself another backend is taken."""

    def refuse(name):
        assert name == "numba"
        raise ImportError("Numba needs NumPy 2.4 or less. Got NumPy 2.5.")

    backends._import_error.cache_clear()
    monkeypatch.setattr(backends.importlib, "import_module", refuse)
    x, reference = torch.zeros(1), ModuleType("reference")
    try:
        assert backends.implementation(x, "auto", reference, "triton", "loops") is reference
        with pytest.raises(ValueError, match=r"'numba' cannot run: numba is installed but.*NumPy"):
            backends.implementation(x, "numba", reference, "triton", "loops")
    finally:
        backends._import_error.cache_clear()
