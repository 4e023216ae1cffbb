"""The comparison of `reset="full"` with the default, once through on a small scale."""

from __future__ import annotations

import pytest

from benchmarks import __main__, resets

pytestmark = pytest.mark.slow


def test_each_way_has_its_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With `full` each return costs one transaction, and one line of the log, more than a clean request has."""
    monkeypatch.setattr(resets, "DELAYS", (0.0,))
    assert __main__.main(["resets", "flask_poolkit", "--quick", "--count", "50"]) == 0
    out, _ = capsys.readouterr()
    tables = [[line.split() for line in table.splitlines()] for table in out.split("\n\n")]
    dirty, full = ([float(cell) for cell in row[-5:-1]] for row in tables[0][1:])
    assert (dirty[2], full[2]) == (pytest.approx(1, abs=0.2), pytest.approx(2, abs=0.2))
    assert (dirty[3], full[3]) == (3, pytest.approx(4, abs=0.1))  # BEGIN, SELECT, COMMIT; the reset, nobody waits for
    assert [len(table) for table in tables[1:]] == [2, 2, 4]
    assert all(float(row[-1]) > 0 for table in tables[1:] for row in table[1:])
