"""Claim: whatever is wrong with what a command is given, it says so in one line, soon, and leaves everything as it was.

    python -m benchmarks.bad_input                       # all cases, a Markdown table
    python -m benchmarks.bad_input --only 'tune|space' --processes 2

Each case makes a small bad input in a temporary folder and runs the command on it as users do, as a process of its own.
Exit status 1 where an exit code is not the expected one, the line lacks what it should name, there is a traceback, a
second error line or a line after it, the case takes too long, or any file has changed. Inputs that look bad and must be
read all the same are among the cases, with exit code 0.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FOREIGN = re.compile(r"^Traceback |^\s+File \"|Warning: |^\(\w+ pid=|^\[\d{4}-\d\d-\d\d|^\[\w\d{4} ")
"""Lines of Python, of libraries and of Ray's processes."""
_LINE = 1000
"""Characters that a line may have: what is in a file is not printed whole."""
_START_LIMIT_S = 60.0


def nothing(folder: Path) -> None:
    """Makes no input."""


@dataclass(frozen=True)
class Case:
    """A bad input and what is right."""

    what: str
    """The input, in words."""
    command: str
    """Words after `python -m`, as one types them; the folder of the case is the working directory."""
    right: Mapping[int, tuple[str, ...]]
    """Exit codes that are right, and what the line (or for 0, the output) must then have in it."""
    make: Callable[[Path], object] = nothing
    """Makes the input in the folder of the case."""
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""
    """A command that runs meanwhile, in the same folder, and must still run afterwards."""
    base: str = ""
    """Words in the middle of the command that many cases share; the table leaves them out."""

    @property
    def words(self) -> list[str]:
        """All of the command."""
        first, _, rest = self.command.partition(" ")
        return shlex.split(f"{first} {self.base} {rest}")


@dataclass(frozen=True)
class Answer:
    """What a command said, and what is wrong with that."""

    case: Case
    code: int
    seconds: float
    line: str
    """Its error, or for exit code 0 what it printed."""
    problems: tuple[str, ...]


def play(case: Case, limit_s: float) -> Answer:
    """Makes the input, runs the command and judges what came of it."""
    with tempfile.TemporaryDirectory(prefix="tt-ray-bad-input-") as name:
        folder = Path(name).resolve()
        case.make(folder)
        with _beside(case, folder) as problems:
            before = files(folder)
            started = time.monotonic()
            code, out, err = _run(case.words, folder, case.environment, 3 * limit_s)
            seconds = time.monotonic() - started
            if code and not case.beside:
                problems += changes(before, files(folder))
        problems += judge(case, code, out, err, seconds, limit_s)
        line = next((line for line in reversed(err.splitlines()) if line.startswith("error: ")), "")
        told = line.removeprefix("error: ") if code else _shown(out + err, case.right.get(0, ()))
        return Answer(case, code, seconds, told.replace(str(folder), "."), tuple(problems))


def judge(case: Case, code: int, out: str, err: str, seconds: float, limit_s: float) -> list[str]:
    """What is wrong with a command's exit code, its output and its time."""
    problems = list[str]()
    lines = [line for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error\b", line, re.IGNORECASE)]
    if code not in case.right:
        problems.append(f"exit code {code}, not {' or '.join(map(str, case.right))}")
    if foreign := [line for line in [*lines, *out.splitlines()] if _FOREIGN.search(line)]:
        problems.append(f"{len(foreign)} lines of others, such as {foreign[0].strip()[:100]!r}")
    if code and (len(errors) != 1 or lines[-1] != errors[0]):
        problems.append(f"{len(errors)} error lines, the last line {(lines or [''])[-1][:100]!r}")
    said = (errors or [""])[-1] if code else out + err
    if lacks := [part for part in case.right.get(code, ()) if part not in said]:
        problems.append(f"the line lacks {', '.join(map(repr, lacks))}")
    if len(said) > _LINE and code:
        problems.append(f"a line of {len(said)} characters")
    if seconds > limit_s:
        problems.append(f"{seconds:.0f} s, over {limit_s:g}")
    return problems


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; Python's own bytecode is not the command's."""
    found: dict[str, tuple[int, int]] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            stat = os.lstat(os.path.join(parent, name))
            path = os.path.relpath(os.path.join(parent, name), folder)
            found[os.fsencode(path).decode(errors="replace")] = (stat.st_size, stat.st_mtime_ns)
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Files that a command which has failed has left, changed or deleted."""
    kinds = {
        "left": [name for name in after if name not in before],
        "deleted": [name for name in before if name not in after],
        "changed": [name for name in before if name in after and before[name] != after[name]],
    }
    return [f"{kind} {', '.join(names[:3])} ({len(names)} files)" for kind, names in kinds.items() if names]


def _shown(text: str, parts: Sequence[str]) -> str:
    """The line of an output that has what is looked for, or else its first one."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return "accepted: " + next((line for line in lines if parts and parts[0] in line), lines[0])


def _run(words: Sequence[str], folder: Path, environment: Mapping[str, str], limit_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a command that takes much too long is killed."""
    process = _start(words, folder, environment)
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        out, err = process.communicate()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def prepare(words: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Runs a command that makes what a case needs; raises RuntimeError where it fails."""
    code, _, err = _run(shlex.split(words), folder, environment, 10 * _START_LIMIT_S)
    if code:
        raise RuntimeError(f"{words} has failed: {err.strip()}")


def _start(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"RAY_ADDRESS": "local", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that it can be killed with its children
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _beside(case: Case, folder: Path) -> Iterator[list[str]]:
    """The other command, from its first checkpoint on; gives a list that problems end up in."""
    problems = list[str]()
    if not case.beside:
        yield problems
        return
    first, _, rest = case.beside.partition(" ")
    process = _start(shlex.split(f"{first} {case.base} {rest}"), folder, case.environment)
    deadline = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline and not any(folder.rglob("manifest.json")):
        time.sleep(0.1)
    runs = sorted(path.parent for path in folder.rglob("config.yaml") if path.parent.name[:4] != "step")
    try:
        yield problems
        if process.poll() is not None or not all((run / "config.yaml").exists() for run in runs):
            problems.append("the command that was there before has ended, or lost its files")
    finally:
        _kill(process)
        process.communicate()


def table(answers: Sequence[Answer]) -> str:
    """Markdown: a row for each case, then what is wrong."""
    lines = ["| input | command | exit code | seconds | the one line |", "| --- | --- | --- | --- | --- |"]
    for answer in answers:
        cells = [answer.case.what, f"`{answer.case.command}`", str(answer.code), f"{answer.seconds:.1f}", answer.line]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    wrong = [answer for answer in answers if answer.problems]
    lines += ["", f"{len(answers)} cases, {len(wrong)} of them wrong{':' if wrong else '.'}"]
    return "\n".join([*lines, *(f"- {each.case.what}: {'; '.join(each.problems)}" for each in wrong)])


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose input or command has it in them")
    parser.add_argument("--processes", type=int, default=1, help="cases at a time")
    parser.add_argument("--limit", type=float, default=20.0, metavar="SECONDS", help="what a case may take")
    given = parser.parse_args(arguments)
    if cases is None:
        from benchmarks import bad_images, bad_settings, bad_text

        cases = [*bad_settings.CASES, *bad_images.CASES, *bad_text.CASES]
    chosen = [case for case in cases if re.search(given.only, f"{case.what} {case.command}")]

    def one(case: Case) -> Answer:
        answer = play(case, given.limit)
        verdict = "; ".join(answer.problems) or "as it should"
        print(f"{case.what}: {answer.code}, {answer.seconds:.1f} s, {verdict}", file=sys.stderr, flush=True)
        return answer

    with ThreadPoolExecutor(given.processes) as pool:
        answers = list(pool.map(one, chosen))
    print(table(answers))
    if any(answer.problems for answer in answers) or not answers:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
