"""The pages for readers, taken apart: links, commands, option names, code in Python."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tt_ray.terminal.command import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    + [ROOT / folder / "README.md" for folder in ("eval", "tune_spaces", "clusters")]
)
OURS = ("tt_ray", "eval", "benchmarks", "docs", "tests")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STARTS = ("python", "tt-ray ", "torchrun", "ray ", "pip ", "ruff", "sbatch", "kubectl", "sudo")


@dataclass(frozen=True)
class Shell:
    """One command of a page: the words of a line between `&&`."""

    page: Path
    words: tuple[str, ...]

    @property
    def module(self) -> str:
        """Our module that it runs, directly or by another program; empty for none."""
        if self.words[0] == "tt-ray" and len(self.words) > 1 and self.words[1] in COMMANDS:
            return COMMANDS[self.words[1]].module
        return self.words[self._place() + 1] if self._place() else ""

    @property
    def arguments(self) -> list[str]:
        """The words after the module."""
        return list(self.words[2 if self.words[0] == "tt-ray" else self._place() + 2 :])

    def _place(self) -> int:
        """Position of the `-m` before a module of ours; 0 for none."""
        pairs = zip(self.words, self.words[1:], strict=False)
        found = (n for n, (flag, name) in enumerate(pairs) if flag == "-m" and name.split(".")[0] in OURS)
        return next(found, 0)


def blocks(page: Path, *languages: str) -> list[str]:
    """Texts of the page's code blocks in these languages; "" is a block without one."""
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


@cache
def spans(page: Path) -> list[str]:
    """Texts between backticks, outside code blocks; one that goes over the end of a line is put together."""
    text = _FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> list[Shell]:
    """Every command of a page: those of blocks, variables filled in, and those with arguments between backticks."""
    lines = [line for text in blocks(page, "bash", "") for line in text.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(page) if span.startswith(_STARTS) and "(" not in span and not _mention(span)]
    found, variables = list[Shell](), dict[str, str]()
    for line in lines:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        while words:
            stop = words.index("&&") if "&&" in words else len(words)
            first = next((n for n, word in enumerate(words[:stop]) if not re.match(r"\w+=", word)), stop)
            if first < stop:
                found.append(Shell(page, tuple(words[first:stop])))
            else:
                variables |= dict(word.split("=", 1) for word in words[:stop])
            words = words[stop + 1 :]
    return found


def _mention(span: str) -> bool:
    """Whether it only names a command: `python -m MODULE`, `tt-ray NAME` or one word."""
    return bool(re.fullmatch(r"python -m [\w.]+|tt-ray [\w-]+|\S+", span))


def links(page: Path) -> list[str]:
    """Links of a page that are no addresses."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
