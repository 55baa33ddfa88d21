"""Classification plus weighted alignment, with named parts: TextTeacher's total loss (arXiv 2605.22098)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tt_ray.config import Config
from tt_ray.data.sources.base import NOBODY
from tt_ray.losses import Loss, distillation, find_loss, kl
from tt_ray.models.classifier import Outputs
from tt_ray.terminal.errors import UserError
from tt_ray.training.collectives import gather_ahead, gather_rows, rank, sum_over_workers, world_size
from tt_ray.training.losses_by_rows import BY_ROWS, Part, loss_by_rows
from tt_ray.training.small_loss import mean_of_smallest

PARTS = ("loss", "loss_cls", "loss_text", "balance")


class Objective(NamedTuple):
    """L = lambda w L_text + (1 - lambda) L_cls, with w = |dL_cls/dz| / |dL_text/dz| at the features z.

    With a vision teacher L_text is the loss towards its embedding, or its logits.
    """

    loss: Loss | None
    """The alignment loss; None distils logits."""
    balance: bool
    gather: bool
    """Whether losses that compare images compare those of all workers."""
    label_smoothing: float
    eps: float
    temperature: float = 0.0
    """Temperature of distilled logits, or of the alignment loss; 0 is the loss's own."""
    shares: tuple[int, ...] = ()
    """Images of each worker in a step; empty where all have as many."""
    labelled: tuple[int, ...] = ()
    """Labelled images of each worker in a step; empty where all are."""
    statistics: tuple[Tensor, Tensor] | None = None
    """Mean and variance of each class's targets, (C, D), where the loss needs them."""
    own_balance: bool = False
    """Whether each worker has a w of its own, of its own images' losses."""
    argmax: bool = False
    """borlan: see there."""
    class_weights: Tensor | None = None
    """Weight of each class in the cross-entropy, (C,); None weighs all alike."""
    leave_out: float = 0.0
    """Share of a step's images, those of the largest cross-entropy, that the classification loss leaves out."""

    @classmethod
    def of(cls, config: Config) -> "Objective":
        text, optim, teacher = config.text, config.optim, config.teacher
        logits = bool(teacher.model) and teacher.target == "logits"
        loss = None if logits else find_loss(text.loss)
        gather = not text.local_negatives and loss is not None and not loss.per_image
        # A learned temperature starts at text.temperature (see Loss.initial_scalars) and is no option any more.
        temperature = teacher.temperature if loss is None else 0.0 if loss.learned else text.temperature
        own, argmax = text.scope == "worker", text.mixed_class == "argmax"
        smoothing = optim.label_smoothing
        return cls(loss, text.balance, gather, smoothing, optim.eps, temperature, own_balance=own, argmax=argmax)

    def __call__(
        self,
        outputs: Outputs,
        labels: Tensor,
        text: Tensor | Callable[[], Tensor] | None,
        weight: float,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The total loss and its detached parts, in the order of PARTS, shape (4,). Nothing waits for the device.

        Args:
            outputs: of the model; `features` must take part in the graph of `logits` and `text`.
            labels: class numbers (B,), -1 for none, or shares of classes (B, C), all 0 for none.
            text: what the text head is to reach, (B, D), or None without one; or, where it `sees_all`, that of all
                workers' images in rank order, looked up or as `text_ahead` returns it.
            weight: lambda.
            teacher: a vision teacher's logits (B, C), or the embedding that a loss compares with besides `text`.

        Raises:
            UserError: Labels on the CPU are no class numbers. On a GPU none is looked at, which would wait for it.
        """
        if labels.ndim == 1:
            check_labels(labels, outputs.logits.shape[1], NOBODY if self.labelled else 0)
        loss_cls = self._classification(outputs.logits, labels)
        if weight == 0 or (text is None and teacher is None):
            # A weight that fell to 0: the head gets zero gradients, which DDP waits for, and the rest is the baseline.
            return _idle(loss_cls, outputs.text, outputs.scalars), _parts(loss_cls, loss_cls, None, None)
        loss_text = self._alignment(outputs, labels, text() if callable(text) else text, teacher)
        ratio = self._ratio(loss_cls, loss_text, outputs.features) if self.balance else torch.ones_like(loss_cls)
        total = weight * ratio * loss_text + (1 - weight) * loss_cls
        return total, _parts(total, loss_cls, loss_text, ratio)

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Mixed labels are smoothed where they are mixed.
        smoothing = self.label_smoothing if labels.ndim == 1 else 0.0
        if self.class_weights is not None:
            return self._weighted(logits.float(), labels)
        if self.leave_out:
            losses = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
            return mean_of_smallest(losses, self.leave_out, self.shares)
        if not self.labelled:
            return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing) * self._part(len(labels))
        total = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, ignore_index=NOBODY, reduction="sum")
        return total * (len(self.labelled) / sum(self.labelled))

    def _weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of which each class's part is weighted, a mean over images, whatever classes these have.

        torch's would be divided by the weights of a worker's own labels, unless these are mixed.
        """
        shares = smoothed(labels, logits.shape[1], self.label_smoothing) if labels.ndim == 1 else labels
        total = F.cross_entropy(logits, shares, weight=self.class_weights, reduction="sum")
        if self.labelled:
            return total * (len(self.labelled) / sum(self.labelled))
        return total / len(labels) * self._part(len(labels))

    def _alignment(self, outputs: Outputs, labels: Tensor, text: Tensor | None, teacher: Tensor | None) -> Tensor:
        if self.loss is None:
            assert teacher is not None
            return distillation(outputs.logits.float(), teacher, self.temperature) * self._part(len(teacher))
        assert outputs.text is not None and text is not None
        pred = outputs.text.float()
        scalars = () if outputs.scalars is None else outputs.scalars.unbind()
        given = {"temperature": self.temperature, "argmax": self.argmax}
        options = {name: value for name, value in given.items() if value}
        if not self.sees_all:
            return self.loss(pred, text, *scalars, *self._needs(labels, teacher), **options) * self._part(len(pred))
        shares = self.shares or (len(pred),) * world_size()
        every = None if len(text) == len(pred) else text
        if self.loss.function in BY_ROWS:
            own = text if every is None else every.split(shares)[rank()]
            needs = self._needs(labels, teacher)
            return loss_by_rows(self.loss, Part(shares, every), pred, own, scalars, *needs, **options)
        every = gather_rows(text, shares) if every is None else every
        pred, labels = gather_rows(pred, shares), gather_rows(labels, shares)
        teacher = None if teacher is None else gather_rows(teacher, shares)
        return self.loss(pred, every, *scalars, *self._needs(labels, teacher), **options)

    def _needs(self, labels: Tensor, teacher: Tensor | None) -> list[Tensor | None]:
        """What the loss compares with besides the targets."""
        assert self.loss is not None
        means, variances = self.statistics or (None, None)
        known = {"teacher": teacher, "labels": labels, "means": means, "variances": variances}
        return [known[name] for name in self.loss.needs]

    def text_ahead(self, text: Tensor | None, rows: int) -> Tensor | Callable[[], Tensor] | None:
        """Starts to gather targets that the loss will need; called before the model's forward pass, which hides it.

        Args:
            text: of this worker's images, or looked up of all: then there is nothing to gather.
            rows: images of this worker.
        """
        if text is None or not self.sees_all or len(text) != rows or self.loss is None or self.loss.function is kl:
            return text
        return gather_ahead(text, self.shares or (rows,) * world_size())

    def adds_up(self, weight: float) -> bool:
        """Whether the loss of a batch is the sum of `of_part` over its parts, with no look at the others.

        It is where no image is compared with another one, and no gradient of the whole batch scales the text loss.
        """
        if self.leave_out:
            return False
        return weight == 0 or (not self.balance and (self.loss is None or self.loss.per_image))

    def of_part(
        self,
        shares: tuple[int, ...],
        outputs: Outputs,
        labels: Tensor,
        text: Tensor | None,
        weight: float,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What a part of this worker's images adds to the loss and its parts, where it `adds_up`.

        Args:
            shares: Images of each worker in the whole step, by which a part is weighed.
            outputs: As in a call, as all that follows.
            labels: Of the part.
            text: Of the part.
            weight: lambda.
            teacher: Of the part.
        """
        if len(labels) == 0:  # another worker has an image more, and waits for this one's gradients
            loss = _idle(outputs.logits.new_zeros((), dtype=torch.float32), *outputs)
            return loss, _parts(loss, loss, None, None)
        return self._replace(shares=shares)(outputs, labels, text, weight, teacher)

    @property
    def sees_all(self) -> bool:
        """Whether the alignment loss compares images of several workers."""
        return self.gather and world_size() > 1

    def _part(self, rows: int) -> float:
        """The weight of a worker's mean that makes the mean over workers that over images."""
        return rows * len(self.shares) / sum(self.shares) if self.shares else 1.0

    def _ratio(self, loss_cls: Tensor, loss_text: Tensor, features: Tensor) -> Tensor:
        # Gradients of means shrink with the batch and would vanish in half precision: take them of sums instead.
        rows = sum(self.shares) or len(features) * world_size()
        losses = (loss_cls, loss_text)
        grads = [torch.autograd.grad(loss * rows, features, retain_graph=True)[0].float() for loss in losses]
        squares = torch.stack([grad.square().sum() for grad in grads])
        if self.own_balance:
            norm_cls, norm_text = (squares.sqrt() / rows).unbind()
            return (norm_cls + self.eps) / (norm_text + self.eps)
        squares = sum_over_workers(squares)
        # Each worker's gradient is `world` times its share of the global loss's (see gather_rows).
        norm_cls, norm_text = (squares.sqrt() / (rows * world_size())).unbind()
        return (norm_cls + self.eps) / (norm_text + self.eps)


def _idle(loss: Tensor, *roots: Tensor | None) -> Tensor:
    """The loss, with a gradient of 0 at the roots. Times 0 before the sum, which overflows in half precision."""
    return loss + sum((0 * root).sum() for root in roots if root is not None)


def check_labels(labels: Tensor, classes: int, least: int = 0) -> None:
    """Raises UserError where labels (B,) on the CPU are not between `least` and the last class; elsewhere does nothing.

    torch would fail with less to say; on other devices looking at them would wait for the device.
    """
    if labels.device.type != "cpu" or not labels.numel():
        return
    wrong = labels[(labels < least) | (labels >= classes)]
    if len(wrong):
        raise UserError(
            f"{len(wrong)} of {len(labels)} labels, such as {int(wrong[0])}, are no class numbers from {least} to "
            f"{classes - 1} for logits of {classes} classes: number the classes from 0, or give the model more of them"
        )


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Shares of classes, (B, C), as torch's cross-entropy smooths labels (B,); all 0 for a label below 0."""
    shares = F.one_hot(labels.clamp(min=0), classes) * (1 - smoothing) + smoothing / classes
    return shares * (labels >= 0)[:, None]


def _parts(total: Tensor, loss_cls: Tensor, loss_text: Tensor | None, ratio: Tensor | None) -> Tensor:
    zero = torch.zeros_like(loss_cls)
    parts = (total, loss_cls, zero if loss_text is None else loss_text, zero if ratio is None else ratio)
    return torch.stack([part.detach() for part in parts])
