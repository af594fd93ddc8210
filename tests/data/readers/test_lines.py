"""Lines of a text file, with a limit on their length."""

from pathlib import Path

import pytest

from peftlab.data.readers import lines


def test_a_line_too_long_by_its_line_ending_does_not_affect_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_text("12345678\nnext\n123456789\nlast\n")
    result = [(line.number, line.text, line.fault is None) for line in lines.read_lines(path)]
    assert result == [(1, "", False), (2, "next\n", True), (3, "", False), (4, "last\n", True)]
