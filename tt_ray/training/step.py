"""One training step on one worker: a batch in, the gradient of the objective, one update of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from tt_ray.config import Config
from tt_ray.data.finish import finish
from tt_ray.data.loader import Batch
from tt_ray.data.mixing import build_mixing
from tt_ray.data.prepare import Data
from tt_ray.data.sampling import train_order
from tt_ray.models.classifier import Outputs, TaughtClassifier, build_model, mixed_precision
from tt_ray.models.device_profile import precision_on, use_gpu_profile
from tt_ray.models.teacher import Teacher, load_teacher
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import UserError
from tt_ray.training.batch_norm import synchronize_batch_norms
from tt_ray.training.class_statistics import class_statistics, class_weights
from tt_ray.training.collectives import sum_over_workers
from tt_ray.training.context import Context
from tt_ray.training.objective import Objective
from tt_ray.training.optim import build_optimizer, build_scheduler, clip_gradients
from tt_ray.training.parallelism import Sharing, distribute, gradients_exchanged, place
from tt_ray.training.small_loss import share_left_out
from tt_ray.training.text_teacher import TextTeacher

_STEP_SEED = 6
Loss = Callable[[Outputs], tuple[Tensor, Tensor]]
Targets = tuple[Tensor, Tensor | None, Tensor | None]
"""Labels, targets of the text head, and a teacher's output, each by images."""


class Learner:
    """The model of one worker, and all that an update of it needs."""

    def __init__(self, config: Config, data: Data, context: Context) -> None:
        self.config, self.data, self.context = config, data, context
        device = context.device
        use_gpu_profile(device)
        self.precision = common_precision(device, config.train.precision)
        self.order = train_order(config, len(data.train), context.rank, context.world, data.train.labels)
        self.teacher, dim = self._load_teacher()
        self.model = build_model(config, len(data.train.classes), dim)
        sharing = Sharing.of(config.run, config.train, device, self.precision)
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        if sharing.mesh is None:  # fully_shard takes contiguous weights alone; a convolution's output is as its input
            self.model.to(memory_format=self.memory_format)
        if config.train.sync_batchnorm:
            synchronize_batch_norms(self.model)
        # The average copies the model before it is compiled, sharded or wrapped: it is only validated and exported.
        self.ema = _average(self.model, config.train.ema, sharing) if config.train.ema else None
        if config.train.compile:
            self.model.compile_backbone(config.train.compile_mode)
        self.net = distribute(self.model, sharing, device)
        if self.ema is not None:
            place(cast(TaughtClassifier, self.ema.module), sharing, device)
        # After the model is on its device, or sharded: the optimiser must hold the parameters that training updates.
        self.optimizer = build_optimizer(config.optim, self.model)
        self.scheduler = build_scheduler(config.optim, self.optimizer, config.train.epochs, self.order.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.text_teacher = TextTeacher.of_run(config, self.model.text_head, self._build_objective(), data.targets)
        limit = config.train.max_batch_per_worker or config.train.batch_size
        self.parts = -(-max(self.order.shares) // limit)
        self.text_teacher.hold(device)
        self.mixing = build_mixing(config, len(data.train.classes))

    def _load_teacher(self) -> tuple[Teacher | None, int]:
        """The vision teacher, if there is one, and the size of the text head's targets."""
        config, data = self.config, self.data
        text_dim = data.targets.dim if data.targets else 0
        if not (config.teaches and config.teacher.model):
            return None, text_dim
        teacher, dim = load_teacher(config, data.train, self.context.device)
        if text_dim and dim != text_dim:
            raise UserError(
                f"text.loss {config.text.loss} multiplies the teacher's embedding with that of text, but {dim} and "
                f"{text_dim} dimensions differ: choose a teacher that shares the encoder's space (CLIP's +projection)"
            )
        return teacher, text_dim or dim

    def _build_objective(self) -> Objective:
        order, train, statistics = self.order, self.data.train, None
        objective = Objective.of(self.config)
        if self.config.teaches and objective.loss is not None and "means" in objective.loss.needs:
            assert self.data.targets is not None
            targets, labels = self.data.class_texts or (self.data.targets, train.labels)
            where = (self.context.device, order.rank, order.world)
            sample = self.config.text.class_variance == "sample"
            statistics = class_statistics(targets, labels, len(train.classes), *where, sample=sample)
        weighs = self.config.optim.class_weights == "balanced"
        weights = class_weights(train.labels, len(train.classes)) if weighs else None
        return objective._replace(
            class_weights=None if weights is None else weights.to(self.context.device),
            shares=() if len(set(order.shares)) == 1 else order.shares,
            labelled=() if order.labelled is None else order.labelled_shares,
            statistics=statistics,
        )

    def step(self, batch: Batch, step: int) -> Tensor:
        """One update; returns the columns STEP_COLUMNS, shape (5,), on the device. Does not wait for the device."""
        if self.config.train.replays_graphs:
            # Nothing of the last step's graphs is read any more: they may overwrite it.
            torch.compiler.cudagraph_mark_step_begin()
        self.scheduler.step_update(step)  # the rate is a function of the step, so a resumed run has the same
        images, labels, text = self.on_device(batch, step)
        weight = self.text_teacher.weight(step // self.order.steps_per_epoch)
        text, teacher = self.ask_teacher(images, text) if weight else (text, None)
        objective = self.text_teacher.objective
        if share := self.config.optim.small_loss:
            steps = self.config.train.epochs * self.order.steps_per_epoch
            objective = objective._replace(leave_out=share_left_out(share, step, steps))
        text = objective.text_ahead(text, len(labels)) if weight else text
        # All workers in parts, or none: where the model is sharded they wait for one another in each.
        if self.parts > 1 and objective.adds_up(weight):
            own = text if weight else None
            assert own is None or isinstance(own, Tensor), "no image is compared with another worker's"
            parts = self._backward_part_by_part(images, (labels, own, teacher), weight, step)
        else:
            backward = self._backward_in_parts if self.parts > 1 else self._backward
            whole = partial(objective, labels=labels, text=text, weight=weight, teacher=teacher)
            parts = backward(images, whole, step)
        # Unscaled before they are clipped: the limit is meant for the gradients themselves.
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return torch.cat([parts, norm.detach().reshape(1)])

    def on_device(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, finished, labels and text targets, mixed as configured.

        Text targets are those of all workers' images where they are held here and the loss compares with them all.
        """
        device = self.context.device
        images = finish(batch.images.to(device, non_blocking=True), batch.rest, self.config.data)
        images = images.contiguous(memory_format=self.memory_format)
        labels = batch.labels.to(device, non_blocking=True)
        text = None if batch.text is None else batch.text.to(device, non_blocking=True)
        if self.text_teacher.held is not None:
            all_look_up = self.text_teacher.objective.sees_all
            text = self.text_teacher.look_up(batch.rows, self.order.shares if all_look_up else ())
        if self.mixing is not None:
            seed, shares = self.config.train.seed, self.order.shares
            images, labels, text = self.mixing.mix(images, labels, text, seed, step, shares, self.order.rank)
        return images, labels, text

    def ask_teacher(self, images: Tensor, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Targets of the text head, and the teacher's output that the objective needs; teachers see mixed images."""
        if self.teacher is None:
            return text, None
        target = torch.cat([self.teacher(chunk) for chunk in images.tensor_split(self.parts)])
        return (target, None) if text is None and self.model.text_head is not None else (text, target)

    def _backward(self, images: Tensor, objective: Loss, step: int) -> Tensor:
        self._seed(step, 0)
        with self.autocast():
            outputs = self.net(images)
        with self._loss_precision():
            loss, parts = objective(outputs)
        self.scaler.scale(loss).backward()
        return parts

    def _backward_part_by_part(self, images: Tensor, targets: Targets, weight: float, step: int) -> Tensor:
        """The same gradient in less memory, for a loss that is a sum over parts: each runs once, forward and back."""
        objective, columns = self.text_teacher.objective, list[Tensor]()
        chunks, *cut = (
            [None] * self.parts if rows is None else rows.tensor_split(self.parts) for rows in (images, *targets)
        )
        for number, (chunk, labels, text, teacher) in enumerate(zip(chunks, *cut, strict=True)):
            self._seed(step, number)
            with gradients_exchanged(self.net, number == self.parts - 1):
                with self.autocast():
                    outputs = self.net(chunk)
                with self._loss_precision():
                    loss, parts = objective.of_part(self.order.shares, outputs, labels, text, weight, teacher)
                self.scaler.scale(loss).backward()
            columns.append(parts)
        # Losses are sums; the balance is 1 or 0 in each part.
        sums = torch.stack(columns)
        return torch.cat([sums[:, :-1].sum(0), sums[:, -1].amax(0, keepdim=True)])

    def _backward_in_parts(self, images: Tensor, objective: Loss, step: int) -> Tensor:
        """The same gradient in less memory: the loss needs features of all parts, which come first, without a graph.

        Each part then runs again, with the same random numbers, to carry its share of the gradient back (GradCache,
        arXiv 2101.06983). Batch-norm statistics see every part twice.
        """
        chunks = images.tensor_split(self.parts)
        pooled: list[Tensor] = []
        for number, chunk in enumerate(chunks):
            self._seed(step, number)
            with torch.no_grad(), self.autocast():
                pooled.append(self.net(chunk).features)
        with self.autocast():
            outputs = self.model.heads(torch.cat(pooled).requires_grad_())
        with self._loss_precision():
            loss, parts = objective(outputs)
        roots = [root for root in (outputs.logits, outputs.text, outputs.scalars) if root is not None]
        grads = torch.autograd.grad(self.scaler.scale(loss), roots)
        start = 0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            self._seed(step, number)  # as in the first pass: dropout must leave out the same units
            # DDP decides in the forward pass whether the backward pass exchanges gradients, so both are inside.
            with gradients_exchanged(self.net, last):
                with self.autocast():
                    again: Outputs = self.net(chunk)
                heads = [root for root in (again.logits, again.text) if root is not None]
                part = [grad[start : start + len(chunk)] for grad in grads[: len(heads)]]
                if last and again.scalars is not None:
                    heads, part = [*heads, again.scalars], [*part, grads[-1]]
                torch.autograd.backward(heads, part)
            start += len(chunk)
        return parts

    def _seed(self, step: int, part: int) -> None:
        seed = seed_of(self.config.train.seed, _STEP_SEED, step, self.context.rank, part)
        # torch.manual_seed seeds every kind of device there is, which takes ten times as long.
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _loss_precision(self) -> AbstractContextManager[object]:
        """Losses are computed in single precision, unless they are to be rounded as the model is."""
        return self.autocast() if self.config.text.loss_precision == "autocast" else nullcontext()

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        return mixed_precision(self.context.device, self.precision)


def _average(model: TaughtClassifier, decay: float, sharing: Sharing) -> ModelEmaV3:
    """The moving average of weights, and of batch norms' statistics, which no worker shards."""
    statistics = any(buffer.is_floating_point() for buffer in model.buffers())
    # One kernel for all of them takes sharded tensors or whole ones, not both.
    return ModelEmaV3(model, decay=decay, foreach=sharing.mesh is None or not statistics)


def common_precision(device: torch.device, precision: str) -> str:
    """`precision_on` a device, the same for all workers, which must all call: fp32 where one of them has no bf16."""
    own = precision_on(device, precision)
    return "fp32" if sum_over_workers(torch.tensor(float(own == "fp32"), device=device)) else own
