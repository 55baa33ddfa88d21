"""TextTeacher in a plain loop: the steps of `tt_ray.train` bit for bit, mixing, several processes, what is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.toy import DIM, toy_config
from tests.training.test_collectives import SHARES, on_two
from tt_ray.data.augment import normalize
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import find_store, open_data, open_images
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.models.classifier import TaughtClassifier, build_backbone
from tt_ray.terminal.errors import UserError
from tt_ray.training.context import LocalContext
from tt_ray.training.optim import build_optimizer, build_scheduler, clip_gradients
from tt_ray.training.step import Learner
from tt_ray.training.text_teacher import TextTeacher

ROWS, WIDTH, CLASSES = 6, 5, 4
NAMES = [f"{row}.png" for row in range(ROWS)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """An embedding for each of NAMES, in another order."""
    rows = np.random.default_rng(0).normal(1, 1, (ROWS, DIM)).astype(np.float32)
    path = tmp_path_factory.mktemp("embeddings") / "store"
    return write_store(path, pa.array(NAMES[::-1]), [rows], DIM, "float32", {"id": "random", "revision": "0"})


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(ROWS, 3, 4, 4, generator=generator)
    return images, torch.randint(CLASSES, (ROWS,), generator=generator)


class Net(nn.Module):
    """A model that returns what a teacher asks for, as DistributedDataParallel needs it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.fc = nn.Linear(48, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.body(images.flatten(1)))
        return features, self.fc(features)


def _gradients(*modules: nn.Module) -> list[Tensor]:
    return [cast(Tensor, each.grad).clone() for module in modules for each in module.parameters()]


@pytest.mark.parametrize(
    ("loss", "schedule", "on_device"), [("clip", "cos", False), ("siglip", "const", True), ("l2", "jump-0-1-0", False)]
)
def test_a_plain_loop_takes_the_steps_of_a_run_bit_for_bit(
    loss: str, schedule: str, on_device: bool, tmp_path: Path
) -> None:
    text = {"text__loss": loss, "text__schedule": schedule, "text__on_device": on_device, "head__kind": "mlp"}
    config = toy_config(tmp_path, **text, data__shapes__train_size=16, text__normalize_std="mean")
    data = open_data(config, find_store(config, open_images(config)[0]))
    learner = Learner(config, data, LocalContext(0, 1, torch.device("cpu")))
    learner.model.train()

    model = cast(Any, build_backbone(config, len(data.train.classes)).train())
    teacher = TextTeacher(
        model.num_features,
        open_store(config.text.embeddings),
        loss=loss,
        schedule=schedule,
        epochs=config.train.epochs,
        label_smoothing=config.optim.label_smoothing,
        head="mlp",
        normalize_std="mean",
        on_device=on_device,
        seed=config.train.seed,
    )
    both = TaughtClassifier(model, teacher.head)  # only for timm's groups of parameters
    optimizer = build_optimizer(config.optim, both)
    scheduler = build_scheduler(config.optim, optimizer, config.train.epochs, learner.order.steps_per_epoch)
    batches = TrainBatches(data.train, None if on_device else data.targets, learner.order, config)
    names = data.train.ids.to_pylist()
    for step in range(config.train.epochs * learner.order.steps_per_epoch):
        batch = batches[step]
        parts = learner.step(batch, step)
        scheduler.step_update(step)
        features = model.forward_head(
            model.forward_features(normalize(batch.images, config.data.mean, config.data.std)), pre_logits=True
        )
        ids = [names[row] for row in batch.rows]
        epoch = step // learner.order.steps_per_epoch
        out = teacher(features, model.get_classifier()(features), batch.labels, ids, epoch)
        out.loss.backward()
        clip_gradients(both.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(torch.stack([part.detach() for part in out]), parts[:4])
    ours, theirs = learner.model.state_dict(), both.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weight_0_is_plain_cross_entropy_without_a_store() -> None:
    images, labels = _batch()
    teacher, net, plain = TextTeacher(WIDTH, None, weight=0.0, label_smoothing=0.1), Net(), Net()
    features, logits = net(images)
    out = teacher(features, logits, labels, NAMES, epoch=0)
    out.loss.backward()
    expected = F.cross_entropy(plain(images)[1], labels, label_smoothing=0.1)
    expected.backward()
    assert torch.equal(out.loss, expected) and not list(teacher.parameters())
    assert all(torch.equal(one, other) for one, other in zip(_gradients(net), _gradients(plain), strict=True))


def test_a_head_leaves_the_random_numbers_alone_and_is_all_that_is_kept(store: EmbeddingStore) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    teacher = TextTeacher(WIDTH, store, loss="siglip")
    assert torch.equal(torch.get_rng_state(), before)
    assert set(teacher.state_dict()) == {"head.layers.0.weight", "head.layers.0.bias", "head.scalars"}
    images, labels = _batch()
    features, logits = Net()(images)
    losses = [
        each(features, logits, labels, NAMES, 0).loss
        for each in (teacher, copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher)))
    ]
    assert losses[0] == losses[1] == losses[2]


def test_ids_and_rows_find_the_same_embeddings(store: EmbeddingStore) -> None:
    teacher, by_row = TextTeacher(WIDTH, store), TextTeacher(WIDTH, store, by_row=True)
    rows = store.rows_of(NAMES)
    assert rows.tolist() == list(range(ROWS))[::-1]
    for ids in (NAMES, tuple(NAMES), np.array(NAMES)):
        assert teacher.rows_of(ids).tolist() == rows.tolist()
        with pytest.raises(UserError, match="pass store.rows_of"):
            by_row.rows_of(ids)
    for ids in (rows, torch.from_numpy(rows), rows.tolist()):
        assert by_row.rows_of(ids).tolist() == rows.tolist()
        with pytest.raises(UserError, match="by_row=True .an index in your data set is no row"):
            teacher.rows_of(ids)
    for wrong, words in (
        (
            store.rows_of([NAMES[0], "gone.png"]),
            r"1 of 2 images have no.*: image 1 of the batch \(row -1, not 0 to 5\);",
        ),
        ([0, ROWS], r"image 1 of the batch \(row 6, not 0 to 5\)"),
        (np.arange(2) / 2, "rows of the store"),
    ):
        with pytest.raises(UserError, match=words):
            by_row.rows_of(wrong)


def test_each_process_may_be_by_itself_and_one_alone_is_the_same(store: EmbeddingStore) -> None:
    images, labels = _batch()
    losses = []
    for scope, negatives, gathers in (("worker", "auto", False), ("worker", "global", True), ("global", "auto", True)):
        teacher = TextTeacher(WIDTH, store, scope=scope, negatives=negatives)  # type: ignore[arg-type]
        assert (teacher.objective.gather, teacher.objective.own_balance) == (gathers, scope == "worker")
        losses.append(teacher(*Net()(images), labels, NAMES).loss)
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_the_epoch_may_be_left_out_where_the_weight_is_constant(store: EmbeddingStore) -> None:
    images, labels = _batch()
    features, logits = Net()(images)
    constant = TextTeacher(WIDTH, store)
    given = (features, logits, labels, NAMES)
    assert constant(*given).loss == constant(*given, epoch=0).loss == constant(*given, epoch=7).loss
    for schedule in ("cos", "jump-1-1-0"):
        changing = TextTeacher(WIDTH, store, schedule=schedule, epochs=2)
        changing(*given, epoch=1)
        with pytest.raises(UserError, match=r"pass epoch="):
            changing(*given)


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}])
@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_shares_mix_labels_as_timm_does_and_captions_likewise(
    store: EmbeddingStore, options: dict[str, float], mode: str
) -> None:
    images, labels = _batch()
    images = images.repeat(1, 1, 4, 4)
    np.random.seed(3)
    usual, targets = Mixup(**options, mode=mode, label_smoothing=0.1, num_classes=CLASSES)(images.clone(), labels)
    np.random.seed(3)
    mixed, shares = Mixup(**options, mode=mode, label_smoothing=0.0, num_classes=ROWS)(images, torch.arange(ROWS))
    assert torch.equal(usual, mixed) and 0 < shares[0, 0] < 1

    teacher, net = TextTeacher(WIDTH, store, loss="l2", label_smoothing=0.1, normalize_mean=False), Net()
    features, logits = net(mixed[:, :, :4, :4])
    out = teacher(features, logits, labels, NAMES, 0, shares=shares)
    torch.testing.assert_close(out.classification, F.cross_entropy(logits, targets).detach())
    assert teacher.head is not None
    text = torch.from_numpy(store.embeddings[teacher.rows_of(NAMES)].astype(np.float32))
    torch.testing.assert_close(out.text, F.mse_loss(teacher.head(features), shares @ text).detach())


def test_in_mixed_precision_the_losses_are_in_full(store: EmbeddingStore) -> None:
    images, labels = _batch()
    teacher, net = TextTeacher(WIDTH, store), Net()
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = net(images)
        inside = teacher(features, logits, labels, NAMES, 0)
    outside = teacher(features, logits, labels, NAMES, 0)  # the head in float32
    assert features.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in (*inside, *outside))
    torch.testing.assert_close(inside.text, outside.text, rtol=0.02, atol=0.02)


def _on_a_worker(rank: int, path: str, loss: str, epoch: int, on_device: bool, mixes: str) -> list[Tensor]:
    teacher = TextTeacher(WIDTH, open_store(path), loss=loss, schedule="jump-0-2-0", epochs=3, on_device=on_device)
    net, taught = DistributedDataParallel(Net()), DistributedDataParallel(teacher)
    images, labels = (part.split(SHARES)[rank] for part in _batch())
    names = [NAMES[: SHARES[0]], NAMES[SHARES[0] :]][rank]
    features, logits = net(images)
    shares = _mixed().split(SHARES)[rank][:, slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], ROWS)]
    taught(features, logits, labels, names, epoch, shares if str(rank) in mixes else None).loss.backward()
    return _gradients(net, taught)


def _mixed(ranks: str = "01") -> Tensor:
    """Shares of images where the workers in `ranks` mix their own parts."""
    parts = [torch.eye(rows) * (0.7 if str(rank) in ranks else 1) for rank, rows in enumerate(SHARES)]
    return torch.block_diag(*(part + (1 - part[0, 0]) * part.sign().flip(0) for part in parts))


@pytest.mark.parametrize(
    ("loss", "epoch", "on_device", "mixes"),
    [
        ("clip", 1, False, ""),
        ("siglip", 1, True, ""),
        ("l2", 0, True, "0"),
        ("clip", 2, False, ""),
        ("clip", 1, True, "1"),
        ("kl", 1, False, "01"),
        ("infonce", 1, True, "01"),
    ],
)
def test_processes_with_unequal_parts_have_the_gradient_of_the_whole_batch(
    store: EmbeddingStore, loss: str, epoch: int, on_device: bool, mixes: str, tmp_path: Path
) -> None:
    """Also in epoch 2, when the weight has fallen to 0 and the head still has to take part."""
    teacher, net = TextTeacher(WIDTH, store, loss=loss, schedule="jump-0-2-0", epochs=3), Net()
    images, labels = _batch()
    teacher(*net(images), labels, NAMES, epoch, _mixed(mixes) if mixes else None).loss.backward()
    for found in on_two(tmp_path, _on_a_worker, str(store.path), loss, epoch, on_device, mixes):
        for mine, whole in zip(found, _gradients(net, teacher), strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "clop"}, "did you mean clip"),
        ({"weight": 1.5}, "between 0 and 1"),
        ({"schedule": "cosine"}, "did you mean cos"),
        ({"schedule": "cos"}, "pass epochs="),
        ({"loss": "borlan"}, "means and variances"),
        ({"loss": "vl2lite"}, "choose another|vision teacher"),
        ({"loss": "l2", "temperature": 0.5}, "no text.temperature"),
        ({"out_dim": DIM + 1}, "out_dim"),
        ({"store": None}, "needs a store"),
        ({"store": "STORE"}, "open_store"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(options: dict[str, Any], words: str, store: EmbeddingStore) -> None:
    with pytest.raises(UserError, match=words):
        TextTeacher(WIDTH, **{"store": store, **options})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_ids": [*NAMES[:-1], "gone.png"]}, "1 of 6 images have no embedding.*gone.png"),
        ({"image_ids": list(range(ROWS))}, "by_row=True"),
        ({"epoch": -1}, "counted from 0"),
        ({"epoch": 3}, "epoch is 3, but epochs=3"),
        ({"labels": [0] * ROWS}, "not a list"),
        *(
            ({"labels": torch.tensor([0, 1, 2, 3, 0, wrong]), **more}, f"1 of 6 labels, such as {wrong}, .* 0 to 3 for")
            for wrong in (CLASSES, -1, -100, 255)
            for more in ({}, {"shares": torch.eye(ROWS)})
        ),
        ({"shares": 0.3}, "not float"),
        ({"shares": torch.full((ROWS, ROWS), 1 / ROWS)}, "label_smoothing=0"),
        ({"shares": torch.zeros(ROWS, ROWS)}, "must be 1 in each row"),
        ({"image_ids": NAMES[:-1]}, "as many of each"),
        ({"labels": torch.full((ROWS, CLASSES), 1 / CLASSES)}, "shares="),
        ({"shares": torch.eye(CLASSES)}, r"must be \(6, 6\)"),
        ({"features": torch.zeros(ROWS, WIDTH, 2, 2)}, "pre_logits=True"),
        ({"features": torch.zeros(ROWS, WIDTH + 1)}, r"get_classifier\(\).in_features"),
        ({"features": torch.zeros(ROWS, WIDTH)}, "balance=False"),
        ({"features": torch.zeros(ROWS, WIDTH, requires_grad=True)}, "do not depend"),
    ],
)
def test_batches_that_would_give_a_wrong_loss_are_refused(
    change: dict[str, Any], words: str, store: EmbeddingStore
) -> None:
    images, labels = _batch()
    features, logits = Net()(images)
    given = {"features": features, "logits": logits, "labels": labels, "image_ids": NAMES, "epoch": 0}
    with pytest.raises(UserError, match=words):
        TextTeacher(WIDTH, store, epochs=3)(**{**given, **change})


def test_it_teaches_models_of_timm_with_pooled_features(store: EmbeddingStore) -> None:
    model = cast(Any, timm.create_model("test_resnet", num_classes=CLASSES))
    images = torch.randn(ROWS, 3, 32, 32)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    teacher = TextTeacher(model.get_classifier().in_features, store)
    teacher(features, model.get_classifier()(features), _batch()[1], NAMES, 0).loss.backward()
    assert all(bool(gradient.isfinite().all()) for gradient in _gradients(model, teacher))
