"""The table of bad inputs: its runner sees what is wrong with an answer, and its cases are of every command."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks import bad_images, bad_settings, bad_text
from benchmarks.bad_input import Answer, Case, files, main, play, table

CASES = [*bad_settings.CASES, *bad_images.CASES, *bad_text.CASES]
LIMIT_S = 20.0


def command(code: str) -> Callable[[Path], None]:
    """A command for `python -m fake`, and a file of the user's."""

    def make(folder: Path) -> None:
        (folder / "fake.py").write_text(f"import sys, time\nfrom pathlib import Path\n{code}\n")
        (folder / "mine.txt").write_text("mine")

    return make


def answer(code: str, right: Mapping[int, tuple[str, ...]] | None = None, limit_s: float = LIMIT_S) -> Answer:
    return play(Case("a case", "fake --out 'a b'", right or {2: ("no such",)}, command(code)), limit_s)


REFUSES = "print('error: no such thing', file=sys.stderr)"
EXIT = "raise SystemExit(2)"


def test_a_refusal_as_it_should_be_has_no_problems() -> None:
    found = answer(f"print('starting', file=sys.stderr); {REFUSES}; {EXIT}")
    assert (found.problems, found.code, found.line) == ((), 2, "no such thing")
    assert found.case.words == ["fake", "--out", "a b"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (f"{REFUSES}; raise SystemExit(1)", "exit code 1, not 2"),
        (REFUSES, "exit code 0, not 2"),
        ("1 / 0", "lines of others, such as 'Traceback (most recent call last):'"),
        (f"{REFUSES}; {REFUSES}; {EXIT}", "2 error lines"),
        (f"{REFUSES}; print('ERROR: again', file=sys.stderr); {EXIT}", "2 error lines"),
        (f"{REFUSES}; print('and more', file=sys.stderr); {EXIT}", "the last line 'and more'"),
        (EXIT, "0 error lines"),
        (f"print('error: no such ' + 'x' * 2000, file=sys.stderr); {EXIT}", "a line of 2015 characters"),
        (f"print('error: odd', file=sys.stderr); {EXIT}", "the line lacks 'no such'"),
        (f"print('a.py:3: UserWarning: x', file=sys.stderr); {REFUSES}; {EXIT}", "1 lines of others"),
        (f"print('(Worker pid=3) hello'); {REFUSES}; {EXIT}", "1 lines of others"),
        (f"Path('half').mkdir(); Path('half/.written').touch(); {REFUSES}; {EXIT}", "left half/.written (1 files)"),
        (f"Path('mine.txt').unlink(); {REFUSES}; {EXIT}", "deleted mine.txt (1 files)"),
        (f"Path('mine.txt').write_text('yours'); {REFUSES}; {EXIT}", "changed mine.txt (1 files)"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(code: str, problem: str) -> None:
    found = answer(code)
    assert any(problem in each for each in found.problems), found.problems


def test_a_slow_answer_is_seen_and_a_command_without_an_end_is_killed() -> None:
    assert any(", over 0" in problem for problem in answer(f"{REFUSES}; {EXIT}", limit_s=1e-3).problems)
    endless = answer("while True: time.sleep(1)", limit_s=0.5)
    assert endless.code == -9 and any("exit code -9" in problem for problem in endless.problems)


def test_what_must_be_read_may_write_but_must_say_so() -> None:
    code = "Path('out').write_text('x'); print('top-1 100 %')"
    found = answer(code, {0: ("top-1 100 %",), 2: ("no such",)})
    assert (found.problems, found.line) == ((), "accepted: top-1 100 %")
    assert answer(code, {0: ("top-1 50 %",)}).problems == ("the line lacks 'top-1 50 %'",)


def test_a_command_beside_it_must_live_on() -> None:
    waits = "Path('run').mkdir(exist_ok=True); Path('run/config.yaml').touch(); Path('run/manifest.json').touch()\n"
    waits += f"if 'first' in sys.argv: time.sleep(60)\n{REFUSES}\n"
    good = Case("beside", "fake", {2: ()}, command(f"{waits}{EXIT}"), beside="fake first")
    assert play(good, LIMIT_S).problems == ()
    spoils = f"Path('run/config.yaml').unlink()\n{EXIT}"
    found = play(Case("beside", "fake", {2: ()}, command(waits + spoils), beside="fake first"), LIMIT_S)
    assert found.problems[-1].startswith("the command that was there before has ended, or lost its files")


def test_the_table_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    good = Case("good | fine", "fake", {2: ("no such",)}, command(f"{REFUSES}; {EXIT}"))
    bad = Case("bad", "fake", {2: ()}, command("1 / 0"))
    main(["--only", "good", "--processes", "2"], [good, bad])
    out = capsys.readouterr().out
    assert out.startswith("| input | command | exit code | seconds | the one line |\n")
    assert "| good \\| fine | `fake` | 2 |" in out and "1 cases, 0 of them wrong." in out
    for only in ("", "neither"):
        with pytest.raises(SystemExit, match="1"):
            main(["--only", only], [good, bad])
    assert "- bad: exit code 1, not 2; " in capsys.readouterr().out


def test_the_folder_of_a_case_is_not_in_the_table() -> None:
    found = answer(f"print(f'error: no such {{Path.cwd()}}/file', file=sys.stderr); {EXIT}")
    assert found.line == "no such ./file" and "./file" in table([found])


def test_names_that_are_no_text_are_files_too(tmp_path: Path) -> None:
    bad_images.image(tmp_path / "a.png")
    bad_images.images(tmp_path)
    bad_images.latin(tmp_path)
    assert len(files(tmp_path)) == 1 + 2 * (6 + 2) + 1


def test_there_are_cases_of_every_command_and_none_twice() -> None:
    commands = Counter(case.command.split()[0] for case in CASES)
    assert len(CASES) >= 80 and len({case.what for case in CASES}) == len(CASES)
    assert {f"tt_ray.{name}" for name in ("train", "tune", "compare", "export", "embeddings")} <= set(commands)
    assert {"tt_ray.embed_captions", "tt_ray.caption_images", "tt_ray.convert_captions"} <= set(commands)
    assert {"eval", "eval.report", "eval.efficiency", "eval.why"} <= set(commands)
    for case in CASES:
        assert case.right and all(code in (0, 1, 2) for code in case.right)


@pytest.mark.parametrize(
    "what",
    ["unknown recipe", "--model.kwargs with equals signs", "space: tune.grid_search", "caption table of one word"],
)
def test_a_case_as_a_process(what: str) -> None:
    case = next(case for case in CASES if case.what == what)
    assert play(case, 6 * LIMIT_S).problems == ()
