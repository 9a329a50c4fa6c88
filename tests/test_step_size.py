"""The step-size example, short: it trains, reports and draws, and explains bad settings."""

import pytest

import step_size


@pytest.mark.slow
def test_a_short_run_ends_in_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_size, "LINES", step_size.LINES[3:4])
    monkeypatch.setattr(step_size, "FACTORS", (0.01, 1.0))
    picture = tmp_path / "new" / "step_size.png"
    assert step_size.main(f"--steps 40 --seeds 1 --out {picture}".split()) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    row = next(line for line in capsys.readouterr().out.splitlines() if "with gains" in line)
    far, tuned = (float(cell) for cell in row.split("│")[2:-1])
    assert tuned < 40 < far


@pytest.mark.parametrize("name", ["steps", "seeds", "batch"])
def test_a_setting_below_one_is_refused(name, capsys):
    assert step_size.main([f"--{name}", "0"]) == 2
    assert f"--{name} 0: must be at least 1" in capsys.readouterr().err
