"""Batch transfer benchmarks: `python -m eval --models NAME=MODEL ... --tasks ... --protocols ... --out DIR`."""

import shlex

from eval.evaluate import Arguments, check, open_evaluation, run_evaluation
from tt_ray.terminal.command import program, read_arguments, run_command


def main(arguments: list[str]) -> None:
    """Runs the command; exit status 1 when a job failed, 2 when all did by the user's mistake."""
    given = read_arguments(Arguments, arguments, program("eval"))
    check(given)
    if given.check:
        print(f"{len(open_evaluation(given).jobs)} jobs")
        return
    run_evaluation(given, shlex.join([*program("eval").split(), *arguments]))


if __name__ == "__main__":
    run_command(main)
