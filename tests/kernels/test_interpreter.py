"""Our reading of TRITON_INTERPRET against Triton's own."""

import pytest

from ropewalk.kernels.interpreter import interpreted


@pytest.mark.parametrize(
    "value", ["1", "true", "TRUE", "yes", "On", "y", "0", "false", "no", "2", ""]
)
def test_the_switch_is_read_as_triton_reads_it(monkeypatch, value):
    knobs = pytest.importorskip("triton.knobs")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreted() is knobs.runtime.interpret


def test_no_switch_is_no(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert interpreted() is False
