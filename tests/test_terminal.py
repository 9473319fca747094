"""What a person sees: numbers are never cut, in narrow terminals too."""

import pytest

from tjd.commands.terminal import WIDE, counted, needed, print_numbers

HEAD = ("judge", "n")
COLUMNS = [f"balanced accuracy of judge {k}" for k in range(6)]
CELLS = {column: f"0.{k}12\n[-0.{k}1, 0.9{k}]" for k, column in enumerate(COLUMNS)}
LINES = [(("3-for-3 - zero-shot SmolLM2-135M-Instruct", "1234"), CELLS), None, (("short", "7"), CELLS)]


@pytest.mark.parametrize("width", [60, 80, 146, None])
def test_numbers_are_whole_at_any_usual_width(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    print_numbers("Agreement", HEAD, LINES)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= (width or WIDE)
    assert "…" not in shown
    for cell in CELLS.values():
        for number in cell.split("\n"):
            assert shown.count(f" {number} ") == 2
    assert shown.count("Agreement") == shown.count(" 1234 ")  # every piece says whose numbers it holds


def test_what_is_needed_is_what_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(needed(HEAD, LINES)))
    print_numbers("Agreement", HEAD, LINES)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == needed(HEAD, LINES)
    assert any(COLUMNS[0] in line and COLUMNS[-1] in line for line in lines)  # not folded


def test_one_is_singular() -> None:
    assert [counted(n, "judge") for n in (0, 1, 2)] == ["0 judges", "1 judge", "2 judges"]
