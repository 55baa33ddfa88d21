"""What a run writes down while it trains: metrics.jsonl, a row per step and per validation, and TensorBoard scalars."""

import json
from pathlib import Path
from typing import Any, Self

from tt_ray.io.files import new_file
from tt_ray.training.objective import PARTS

STEP_COLUMNS = (*PARTS, "grad_norm")
_SCALARS = {
    "loss": "loss/total",
    "loss_cls": "loss/classification",
    "loss_text": "loss/text",
    "balance": "text/balance_w",
    "text_weight": "text/weight",
    "grad_norm": "optim/grad_norm",
    "lr": "optim/lr",
    "images_per_s": "speed/images_per_s",
    "data_wait_share": "speed/data_wait_share",
    "top1": "val/top1",
    "top5": "val/top5",
    "val_loss": "val/loss",
}


class Logbook:
    """Appends rows; on resuming, first drops those of steps that will be run again."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        keep_rows(path, first_step)
        self._validated = {row["step"] for row in read_rows(path) if row["kind"] == "validation"}
        self._file = path.open("a")
        # purge_step hides events of the steps that an interrupted run had written beyond its last checkpoint.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def steps(self, rows: list[dict[str, Any]]) -> None:
        """Rows of consecutive steps; TensorBoard gets the last one."""
        for row in rows:
            self._file.write(json.dumps({"kind": "step", **row}) + "\n")
        self._show(rows[-1])

    def validation(self, row: dict[str, Any]) -> None:
        """The row of a validation after `row["step"]` steps."""
        self._validated.add(row["step"])
        self._file.write(json.dumps({"kind": "validation", **row}) + "\n")
        self._show(row)

    def validated(self, step: int) -> bool:
        """Whether there is a validation after `step` steps."""
        return step in self._validated

    def flush(self) -> None:
        """Hands the rows so far to the operating system."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
        self.flush()
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, row: dict[str, Any]) -> None:
        for key, tag in _SCALARS.items():
            if key in row:
                self._board.add_scalar(tag, row[key], row["step"])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Complete rows of a metrics.jsonl; an interrupted last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def keep_rows(path: Path, first_step: int) -> None:
    """Drops rows of steps from `first_step` on, and validations after them."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] < first_step + (row["kind"] == "validation")]
    if path.exists():
        with new_file(path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
