import pytest

from tt_ray.terminal.progress import Display, Standing


def test_what_a_standing_says_stays_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever of those that carry it is shown: some are replaced before they are read."""
    display = Display()
    for step, note in ((1, ""), (2, "loaders are slow"), (3, "loaders are slow")):
        display.training(Standing(step, 9, 0, 2.0, 3.0, 0.5, None, note))
    assert capsys.readouterr().err == "note: loaders are slow\n"
