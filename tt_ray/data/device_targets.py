"""Text targets held on the device (`text.on_device`): a step's lookup is then one gather, and nothing is sent."""

import numpy as np
import torch
from torch import Tensor

from tt_ray.data.text_targets import TextTargets
from tt_ray.terminal.errors import UserError

# Rows that are copied at a time: 16 MiB of float16 at D = 1024.
_BLOCK = 8192


class DeviceTargets:
    """The targets of a `TextTargets`, looked up by rows on `device`; made by `hold_targets`."""

    def __init__(self, targets: TextTargets, device: torch.device) -> None:
        rows, index = np.unique(targets.index, return_inverse=True)  # only what the split uses, once
        source = targets.store.embeddings if targets.table is None else targets.table
        kind = torch.from_numpy(np.zeros(0, source.dtype)).dtype
        self.embeddings = torch.empty((len(rows), source.shape[1]), dtype=kind, device=device)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            self.embeddings[start : start + len(block)] = torch.from_numpy(source[block])
        self.index = torch.from_numpy(index.astype(np.int64)).to(device)
        self.shift, self.scale = (torch.from_numpy(part).to(device) for part in (targets.shift, targets.scale))
        self.projection = None
        if targets.projection is not None:
            self.projection = torch.from_numpy(targets.projection.T.copy()).to(device)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Targets of the rows (B,), on any device: float32, (B, D'), on this one. Does not wait for it."""
        chosen = self.index[rows.to(self.index.device, non_blocking=True)]
        text = (self.embeddings[chosen].float() - self.shift) * self.scale
        return text if self.projection is None else text @ self.projection


def hold_targets(targets: TextTargets | None, wanted: bool, device: torch.device) -> DeviceTargets | None:
    """The targets on the device where that is wanted; raises UserError when they do not fit there."""
    if targets is None or not wanted:
        return None
    try:
        return DeviceTargets(targets, device)
    except torch.OutOfMemoryError:
        gib = len(np.unique(targets.index)) * targets.store.dim * targets.store.embeddings.itemsize / 2**30
        raise UserError(f"text.on_device: {gib:.1f} GiB of embeddings do not fit on {device}: leave it off") from None
