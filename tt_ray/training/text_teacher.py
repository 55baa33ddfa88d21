"""TextTeacher for training loops of any kind: text head, alignment loss, balance and weight in one module."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from tt_ray.config import Config, HeadConfig, OptimConfig, TextConfig, TrainConfig
from tt_ray.data.text_targets import DeviceTargets, TextTargets, hold_targets, targets_of_rows
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.losses import find_loss
from tt_ray.models.classifier import Outputs, TextHead, build_head
from tt_ray.schedules import SHAPES, VL2, build_schedule
from tt_ray.terminal.errors import UserError, some
from tt_ray.terminal.python_calls import from_python
from tt_ray.training.collectives import gather_rows, numbers_of_workers
from tt_ray.training.objective import Objective, check_labels, smoothed

ImageIds = Sequence[str] | Sequence[int] | np.ndarray | Tensor
"""Image ids, or their rows in the store as `EmbeddingStore.rows_of` returns them."""


class Taught(NamedTuple):
    """What a step has to learn from: `loss` carries the gradient, the rest is for the log."""

    loss: Tensor
    """lambda * w * text + (1 - lambda) * classification, a scalar."""
    classification: Tensor
    """Cross-entropy, a scalar without gradient."""
    text: Tensor
    """Alignment loss, a scalar without gradient; 0 in epochs in which lambda is 0."""
    balance: Tensor
    """w, the ratio of the gradients' norms at the features, a scalar without gradient; 0 where lambda is 0."""


class TextTeacher(nn.Module):
    """Adds TextTeacher's loss (arXiv 2605.22098) to a training loop of your own.

    L = lambda w L_text + (1 - lambda) L_cls with w = |dL_cls/dz| / |dL_text/dz| at the features z, as in
    `tt_ray.train`, which uses the same parts. The head is initialised by `seed` and leaves torch's random numbers as
    they are. Of several processes (torch.distributed) each sees its part of the batch, of any size; wrap the teacher in
    DistributedDataParallel too, as its head is learned: the mean of all gradients is then that of the whole batch.
    The head computes in the autocast of your loop, the losses in float32. No setting of torch is changed: for TF32 in
    them call `torch.set_float32_matmul_precision("high")`, as `tt_ray.train` does on a GPU.

    Args:
        num_features: Length d of the classifier's input (`model.num_features`, or
            `model.get_classifier().in_features`).
        store: Embeddings of captions by image id; None with weight 0.
        loss: clip, normclip, infonce, cos, lncos, l2, kl, dist, siglip, clip_learned, vl2litetext, or MODULE:NAME.
        weight: lambda, from 0 (plain training) to 1.
        schedule: How lambda changes over epochs: const, lin, cos, fullcos, shiftcos, cntrcos, jump-A-B-R or vl2.
        epochs: Epochs of the training, which all schedules but const and jump need.
        balance: Whether w is computed; otherwise it is 1.
        scope: Whether the balance, and the negatives where `negatives` is auto, are of the whole batch (global), or of
            each process's own part (worker) as in TextTeacher's code.
        negatives: Whether contrastive losses see the whole batch (global), of which each process computes the rows of
            its own images, or this process's part of it alone (local); auto as `scope` says.
        temperature: Temperature of contrastive losses; 0 is the loss's own.
        label_smoothing: Label smoothing of the cross-entropy.
        head: Kind of projection: one linear layer, or an MLP with GELU.
        hidden_dim: Width of the MLP's hidden layers.
        depth: Number of the MLP's linear layers.
        out_dim: Components to which a PCA, fitted on the store, reduces embeddings; 0 takes them as they are.
        normalize_mean: Whether the store's mean is subtracted from embeddings.
        normalize_std: Divide embeddings by nothing, by the average standard deviation, or by each dimension's own.
        by_row: `image_ids` are rows of the store, as `store.rows_of(ids)` returns them, which is faster than ids.
        on_device: Hold the embeddings on the device of the features, from the first step on; processes then look up one
            another's instead of exchanging them, unless one mixes images.
        seed: Seed of the head.

    Raises:
        UserError: A value is out of range or unknown, or two contradict each other.
    """

    head: TextHead | None
    """The projection from features (B, d) to embeddings (B, D); None with weight 0."""

    @from_python()
    def __init__(
        self,
        num_features: int,
        store: EmbeddingStore | None,
        *,
        loss: str = "clip",
        weight: float = 0.5,
        schedule: str = "const",
        epochs: int | None = None,
        balance: bool = True,
        scope: Literal["global", "worker"] = "global",
        negatives: Literal["auto", "global", "local"] = "auto",
        temperature: float = 0.0,
        label_smoothing: float = 0.0,
        head: Literal["linear", "mlp"] = "linear",
        hidden_dim: int = 512,
        depth: int = 2,
        out_dim: int = 0,
        normalize_mean: bool = True,
        normalize_std: Literal["none", "mean", "full"] = "none",
        by_row: bool = False,
        on_device: bool = False,
        seed: int = 0,
    ) -> None:
        text = TextConfig(
            weight=weight,
            schedule=schedule,
            loss=loss,
            temperature=temperature,
            balance=balance,
            scope=scope,
            negatives=negatives,
            normalize_mean=normalize_mean,
            normalize_std=normalize_std,
            on_device=on_device,
        )
        config = Config(
            text=text,
            head=HeadConfig(head, hidden_dim, depth, out_dim),
            optim=OptimConfig(label_smoothing=label_smoothing),
            # Schedules are 0 after the last epoch: without a number there is none.
            train=TrainConfig(epochs=sys.maxsize if epochs is None else epochs, seed=seed),
        )
        _check(config, store, epochs)
        super().__init__()
        self._by_row = by_row
        targets = targets_of_rows(store, config) if store is not None and config.teaches else None
        built = build_head(config, num_features, targets.dim) if targets else None
        self._num_features = num_features
        self._hold(built, Objective.of(config), config, targets)

    @classmethod
    def of_run(cls, config: Config, head: TextHead | None, objective: Objective, targets: TextTargets | None) -> Self:
        """The teacher of a run that is configured as a whole; it looks up rows of `targets`, not of the store."""
        teacher = cls.__new__(cls)
        nn.Module.__init__(teacher)
        teacher._hold(head, objective, config, targets)
        return teacher

    def _hold(self, head: TextHead | None, objective: Objective, config: Config, targets: TextTargets | None) -> None:
        self.head, self.objective, self.targets = head, objective, targets
        self._schedule = (config.text.schedule, config.text.weight, config.train.epochs)
        self._on_device = config.text.on_device
        self.held: DeviceTargets | None = None
        """The targets on the device, where they are held there."""
        self._row_of: dict[str, int] = {}

    def weight(self, epoch: int) -> float:
        """lambda in an epoch, counted from 0."""
        return build_schedule(*self._schedule)(epoch)

    def forward(
        self,
        features: Tensor,
        logits: Tensor,
        labels: Tensor,
        image_ids: ImageIds,
        epoch: int | None = None,
        shares: Tensor | None = None,
    ) -> Taught:
        """The loss of one batch.

        Args:
            features: Input of the classifier, (B, d), of which `logits` were computed.
            logits: (B, C).
            labels: Class numbers (B,), from 0 to C - 1.
            image_ids: Ids of the batch's images, length B; with `by_row` their rows in the store, on the CPU.
            epoch: Epoch, counted from 0; may be left out with schedule const, whose weight is the same in all epochs.
            shares: After mixup or cutmix: how much of image j is in image i, (B, B). Mixing the numbers 0 to B - 1 in
                the place of classes returns it, as in `Mixup(num_classes=B, label_smoothing=0)(images, arange(B))`.

        Raises:
            UserError: An image has no embedding, labels are no class numbers, the epoch is missing or not one of
                `epochs`, shares are none of images, or the balance cannot be computed.
        """
        self._check_batch(features, logits, labels, len(image_ids), shares)
        if epoch is None and self._schedule[0] != "const":
            raise UserError(f"schedule {self._schedule[0]!r} changes the weight over epochs: pass epoch=")
        if not 0 <= (epoch or 0) < self._schedule[2]:
            raise UserError(f"epoch is {epoch}, but epochs={self._schedule[2]}: epochs are counted from 0")
        counts, mixed = numbers_of_workers(len(features), shares is not None)
        objective = self.objective._replace(shares=() if len(set(counts)) == 1 else counts)
        weight, text = self.weight(epoch or 0), None
        if weight and self.targets is not None:
            rows, held = self.rows_of(image_ids), self.hold(features.device)
            if held is None:
                text = self.targets[rows].to(features.device)
            else:  # where any worker mixes, what it has mixed is gathered: others do not know its shares
                all_look_up = objective.sees_all and not any(mixed)
                text = self.look_up(torch.from_numpy(rows), counts if all_look_up else ())
        if shares is not None:
            shares = shares.to(logits.device, torch.float32)
            labels = shares @ smoothed(labels.long(), logits.shape[1], self.objective.label_smoothing)
            text = None if text is None else shares @ text
        # The losses are computed in full precision, as in a training by `tt_ray.train`.
        outputs = self._project(features, logits)
        if weight and objective.balance and not (features.requires_grad and torch.is_grad_enabled()):
            raise UserError(
                "the balance needs the gradient at the features, which have none: in a validation take the "
                "cross-entropy alone; with a frozen backbone pass balance=False"
            )
        try:
            with torch.autocast(features.device.type, enabled=False):
                loss, parts = objective(outputs, labels if shares is not None else labels.long(), text, weight)
        except RuntimeError as error:
            if "have been used in the graph" not in str(error):
                raise
            raise UserError(
                "the logits do not depend on these features: compute them as model.get_classifier()(features)"
            ) from None
        return Taught(loss, *parts[1:])

    def _project(self, features: Tensor, logits: Tensor) -> Outputs:
        if self.head is None:
            return Outputs(features, logits, None, None)
        kind = next(self.head.parameters()).dtype
        mixed = torch.is_autocast_enabled(features.device.type)
        return Outputs(features, logits, self.head(features if mixed else features.to(kind)), self.head.scalars)

    def hold(self, device: torch.device) -> DeviceTargets | None:
        """Puts the targets on the device where `on_device` asks for it.

        Raises:
            UserError: They do not fit there.
        """
        if self.held is None or self.held.index.device != device:
            self.held = hold_targets(self.targets, self._on_device, device)
        return self.held

    def look_up(self, rows: Tensor, shares: tuple[int, ...] = ()) -> Tensor:
        """Targets of rows (b,) among those that are held; with everyone's `shares` of images, of all workers' rows.

        These are in rank order, (B, D): row numbers are gathered, a thousandth of what the targets would be.
        """
        assert self.held is not None
        rows = rows.to(self.held.index.device, non_blocking=True)
        return self.held[gather_rows(rows, shares) if shares else rows]

    def rows_of(self, image_ids: ImageIds) -> np.ndarray:
        """The store's rows of images, (B,).

        Raises:
            UserError: One has no embedding.
        """
        assert self.targets is not None, "nothing is looked up where the weight is 0"
        named = len(image_ids) > 0 and isinstance(image_ids[0], str)
        if named == self._by_row:
            raise UserError(
                "by_row=True takes rows of the store: pass store.rows_of(ids)"
                if named
                else "image_ids must be ids as in the store: to pass its rows, which store.rows_of(ids) returns, make "
                "the TextTeacher with by_row=True (an index in your data set is no row of the store)"
            )
        if named:
            if not self._row_of:
                self._row_of = {name: row for row, name in enumerate(self.targets.store.ids.to_pylist())}
            rows = np.array([self._row_of.get(str(name), -1) for name in image_ids])
        else:
            rows = np.asarray(image_ids.cpu() if isinstance(image_ids, Tensor) else image_ids)
        if rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise UserError(f"image_ids must be strings or rows of the store, not {rows.dtype} of shape {rows.shape}")
        if len(wrong := np.flatnonzero((rows < 0) | (rows >= len(self.targets)))):
            names = [str(image_ids[int(place)]) for place in wrong]
            if self._by_row:  # a row that is none has no name
                last = len(self.targets) - 1
                names = [f"image {place} of the batch (row {rows[place]}, not 0 to {last})" for place in wrong]
            raise UserError(
                f"{len(wrong)} of {len(rows)} images have no embedding in {self.targets.store.path}: {some(names)}; "
                "embed their captions, or leave these images out (store.rows_of(ids) >= 0)"
            )
        return rows

    def _check_batch(self, features: Tensor, logits: Tensor, labels: Tensor, count: int, shares: Tensor | None) -> None:
        """Raises UserError for what would give an error that says less, or a wrong loss."""
        rows = len(features)
        if not isinstance(labels, Tensor):
            raise UserError(f"labels must be a tensor of class numbers (B,), not a {type(labels).__name__}")
        if logits.ndim != 2 or features.ndim != 2:
            raise UserError(
                f"features must be (B, d) and logits (B, C), not {tuple(features.shape)} and {tuple(logits.shape)}: "
                "take model.forward_head(..., pre_logits=True)"
            )
        if len({rows, len(logits), len(labels), count}) > 1:
            counts = f"{rows} features, {len(logits)} logits, {len(labels)} labels and {count} image_ids"
            raise UserError(f"a batch has {counts}: there must be as many of each")
        if self.head is not None and features.shape[1] != self._num_features:
            raise UserError(
                f"features have {features.shape[1]} columns, but this TextTeacher was made for {self._num_features}: "
                "take model.get_classifier().in_features, which differs from num_features in some models"
            )
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(
                "labels must be class numbers (B,): where images are mixed pass the numbers before, and shares=, which "
                "mixes labels and captions as the images were (see TextTeacher.forward)"
            )
        if shares is not None:
            check_labels(labels, logits.shape[1])  # those of an image alone are checked with the loss
            _check_shares(shares, rows)


def _check_shares(shares: Tensor, rows: int) -> None:
    """Raises UserError unless they are the shares of images in a batch."""
    if not isinstance(shares, Tensor) or shares.shape != (rows, rows):
        given = tuple(shares.shape) if isinstance(shares, Tensor) else type(shares).__name__
        raise UserError(
            f"shares must be ({rows}, {rows}) for a batch of {rows}, not {given}: mix the numbers 0 to B - 1 in the "
            "place of classes, with num_classes=B and drop the last, smaller batch"
        )
    if shares.device.type != "cpu":  # there it would wait for the device
        return
    if ((shares != 0).sum(1) > 2).any() or (shares.sum(1) - 1).abs().max() > 1e-2:
        raise UserError(
            "shares must be 1 in each row, of at most two images: mix the numbers 0 to B - 1 with label_smoothing=0 "
            "(the TextTeacher smooths labels itself)"
        )


def _check(config: Config, store: EmbeddingStore | None, epochs: int | None) -> None:
    """Raises UserError where arguments contradict each other, or ask for what a loop of one's own has not."""
    if not config.teaches:
        return
    if isinstance(store, str | Path):
        raise UserError(f"store is a path: pass tt_ray.open_store({str(store)!r})")
    if store is None:
        raise UserError("a TextTeacher needs a store of embeddings, as tt_ray.open_store returns, unless weight is 0")
    if epochs is None and config.text.schedule in {*SHAPES, VL2} - {"const"}:
        raise UserError(f"schedule {config.text.schedule!r} needs the number of epochs: pass epochs=")
    if lacking := {"teacher", "means", "variances"} & set(find_loss(config.text.loss).needs):
        needs = " and ".join(sorted(lacking))
        raise UserError(f"loss {config.text.loss!r} needs {needs}, which only tt_ray.train has: choose another")
