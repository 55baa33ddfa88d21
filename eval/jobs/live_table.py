"""The live table of an evaluation: what runs, what came out last, how much is left."""

from collections import defaultdict, deque

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.jobs.plan import Job
from eval.jobs.scheduler import State
from eval.jobs.worker import Answer
from tt_ray.terminal.progress import Display, LiveTable

_SHOWN = 8


class JobTable(LiveTable):
    """A table on a terminal, an occasional line in a log; the scheduler calls `ended` and `looked`."""

    def __init__(self, jobs: list[Job], display: Display) -> None:
        self.left = {job.key: job for job in jobs}
        self.of, self.done, self.failed = len(jobs), 0, 0
        super().__init__(display)
        self.last: deque[tuple[str, str]] = deque(maxlen=_SHOWN)
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def ended(self, job: Job, answer: Answer, metric: str) -> None:
        """A job has ended; `metric` is its task's."""
        self.left.pop(job.key, None)
        self.done += not answer.kind
        self.failed += bool(answer.kind)
        if answer.result is not None:
            spent = self.seconds[job.protocol]
            spent[0] += answer.seconds
            spent[1] += job.cost
        value = "" if answer.result is None else f"{answer.result.metrics.get(metric, float('nan')):.2f}"
        self.last.append((job.label, f"failed: {answer.problem}" if answer.kind else value))

    def looked(self, state: State) -> None:
        """Shows it."""
        left = self.time_left(state.slots)
        detail = f"{self.failed} failed, {min(len(state.running), state.slots)} running" + (left and f", {left} left")
        if not self.display.console.is_terminal:
            self.display.show("jobs", self.done + self.failed, self.of, detail)
            return
        running = Table("running or next", "s", box=None, pad_edge=False)
        for label, seconds in state.running[:_SHOWN]:
            running.add_row(Text(label), f"{seconds:.0f}")
        latest = Table("ended", "", box=None, pad_edge=False)
        for label, text in self.last:
            latest.add_row(Text(label), Text(text[:80], "red" if text.startswith("failed") else ""))
        head = Text(f"{self.done} of {self.of} jobs done, {state.waiting} waiting, {detail}", "bold")
        self.live.update(Group(head, running, latest), refresh=True)

    def time_left(self, slots: int) -> str:
        """Time left, by what jobs of each protocol have taken so far; empty while nothing has ended."""
        spent, cost = (sum(each[i] for each in self.seconds.values()) for i in (0, 1))
        if not cost:
            return ""
        seconds = 0.0
        for job in self.left.values():
            own = self.seconds.get(job.protocol, [spent, cost])
            seconds += job.cost * own[0] / own[1]
        seconds /= slots
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
