"""The step-size example, short: it trains, reports and draws, and explains bad settings."""

import pytest
import step_size


def test_a_short_run_ends_in_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_size, "LINES", step_size.LINES[1::2])
    monkeypatch.setattr(step_size, "FACTORS", (0.01, 1.0))
    picture = tmp_path / "new" / "step_size.png"
    assert step_size.main(f"--steps 40 --seeds 1 --out {picture}".split()) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "with gains before the momentum" in printed
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if "with" in line]
    errors = [[float(cell) for cell in row[1:]] for row in rows]
    assert [len(row) for row in errors] == [2, 2]
    assert all(tuned < 40 < far for far, tuned in errors)


@pytest.mark.parametrize("name", ["steps", "seeds", "batch"])
def test_a_setting_below_one_is_refused(name, capsys):
    assert step_size.main([f"--{name}", "0"]) == 2
    assert f"--{name} 0: must be at least 1" in capsys.readouterr().err
