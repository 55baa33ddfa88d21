"""The total loss against autograd done by hand: the balance w, what flows through it, and a weight of 0 or 1."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_losses import extras
from tt_ray.config import Config, HeadConfig, OptimConfig, TeacherConfig, TextConfig
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.models.classifier import Outputs, TaughtClassifier, TextHead
from tt_ray.terminal.errors import UserError
from tt_ray.training.objective import PARTS, Objective, check_labels

BATCH, WIDTH, CLASSES, DIM = 6, 5, 4, 3


class _Backbone(nn.Module):
    """What TaughtClassifier asks of a timm model, with random but fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3 * 4 * 4, WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.body(images.flatten(1)))

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return features


def _model(loss: str = "clip", head: bool = True) -> TaughtClassifier:
    torch.manual_seed(0)
    backbone = _Backbone()
    return TaughtClassifier(
        backbone, TextHead(HeadConfig(), WIDTH, DIM, ALIGNMENT_LOSSES[loss].initial_scalars()) if head else None
    )


def _batch(soft: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 4, 4, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    if soft:
        labels = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * F.one_hot(labels.flip(0), CLASSES)
    return images, labels, torch.randn(BATCH, DIM, generator=generator)


def _objective(loss: str = "clip", balance: bool = True, smoothing: float = 0.1, eps: float = 1e-8) -> Objective:
    text, optim = TextConfig(loss=loss, balance=balance), OptimConfig(label_smoothing=smoothing, eps=eps)
    teacher = TeacherConfig("timm:any") if loss == "vl2lite" else TeacherConfig()
    objective = Objective.of(Config(text=text, optim=optim, teacher=teacher))
    if loss != "borlan":
        return objective
    _, means, variances = extras(loss, BATCH, DIM, CLASSES)
    return objective._replace(statistics=(means.float(), variances.float()))


def _vision(loss: str) -> Tensor | None:
    """What a vision teacher gives, where the loss wants it."""
    return extras(loss, BATCH, DIM, CLASSES)[0].float() if loss == "vl2lite" else None


def _losses_by_hand(outputs: Outputs, labels: Tensor, text: Tensor, loss: str, smoothing: float = 0.1) -> list[Tensor]:
    """Classification and alignment, with smoothed cross-entropy written out."""
    shares = labels
    if labels.ndim == 1:
        shares = (1 - smoothing) * F.one_hot(labels, CLASSES) + smoothing / CLASSES
    loss_cls = -(shares * outputs.logits.log_softmax(1)).sum(1).mean()
    assert outputs.text is not None
    scalars = () if outputs.scalars is None else outputs.scalars.unbind()
    more = [each.float() for each in extras(loss, len(text), DIM, CLASSES)]
    if "labels" in ALIGNMENT_LOSSES[loss].needs:
        more[0] = labels
    return [loss_cls, ALIGNMENT_LOSSES[loss](outputs.text, text, *scalars, *more)]


def _norms(losses: list[Tensor], features: Tensor) -> list[float]:
    return [torch.autograd.grad(loss, features, retain_graph=True)[0].norm().item() for loss in losses]


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("loss", ALIGNMENT_LOSSES)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_balance_sets_the_ratio_of_the_gradients_at_the_feature(loss: str, soft: bool, weight: float) -> None:
    images, labels, text = _batch(soft)
    outputs = _model(loss)(images)
    _, parts = _objective(loss)(outputs, labels, text, weight, _vision(loss))
    norm_cls, norm_text = _norms(_losses_by_hand(outputs, labels, text, loss), outputs.features)
    ratio = parts[PARTS.index("balance")].item()
    assert ratio == pytest.approx(norm_cls / norm_text, rel=1e-4)
    assert weight * ratio * norm_text / ((1 - weight) * norm_cls) == pytest.approx(weight / (1 - weight), rel=1e-4)


@pytest.mark.parametrize("loss", ALIGNMENT_LOSSES)
@pytest.mark.parametrize("balance", [True, False])
def test_gradients_are_those_of_the_formula_with_a_constant_w(loss: str, balance: bool) -> None:
    images, labels, text = _batch()
    model, by_hand = _model(loss), _model(loss)
    total, _ = _objective(loss, balance)(model(images), labels, text, 0.3, _vision(loss))
    total.backward()
    outputs = by_hand(images)
    loss_cls, loss_text = _losses_by_hand(outputs, labels, text, loss)
    norm_cls, norm_text = _norms([loss_cls, loss_text], outputs.features)
    ratio = norm_cls / norm_text if balance else 1.0
    expected = 0.3 * ratio * loss_text + 0.7 * loss_cls
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert _gradients(model).keys() == _gradients(by_hand).keys() == dict(model.named_parameters()).keys()
    for name, grad in _gradients(by_hand).items():
        torch.testing.assert_close(_gradients(model)[name], grad, rtol=1e-4, atol=1e-6)


def test_eps_is_added_to_both_norms() -> None:
    images, labels, text = _batch()
    outputs = _model()(images)
    norm_cls, norm_text = _norms(_losses_by_hand(outputs, labels, text, "clip"), outputs.features)
    _, parts = _objective(eps=0.5)(outputs, labels, text, 0.5)
    assert parts[PARTS.index("balance")].item() == pytest.approx((norm_cls + 0.5) / (norm_text + 0.5), rel=1e-4)


def test_w_is_finite_without_any_text_gradient() -> None:
    images, labels, _ = _batch()
    outputs = _model("l2")(images)
    assert outputs.text is not None
    total, parts = _objective("l2")(outputs, labels, outputs.text.detach(), 0.5)
    total.backward()
    assert torch.isfinite(parts).all()


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_weight_0_with_a_head_trains_the_backbone_bit_for_bit_as_without(loss: str) -> None:
    images, labels, text = _batch()
    taught, plain = _model(loss), _model(head=False)
    total, parts = _objective(loss)(taught(images), labels, text, 0.0)
    total.backward()
    baseline, baseline_parts = _objective(loss)(plain(images), labels, None, 0.0)
    baseline.backward()
    assert torch.equal(total, baseline) and torch.equal(parts, baseline_parts)
    for name, grad in _gradients(plain).items():
        assert torch.equal(_gradients(taught)[name], grad), name
    # DDP waits for a gradient of every parameter.
    head = [parameter.grad for parameter in taught.text_head.parameters()]
    assert all(grad is not None and not grad.any() for grad in head)


def test_weight_0_survives_a_head_whose_sum_overflows() -> None:
    images, labels, text = _batch()
    outputs = _model()(images)
    half = outputs._replace(text=torch.full((BATCH, DIM), 60000.0, dtype=torch.float16, requires_grad=True))
    total, _ = _objective()(half, labels, text, 0.0)
    assert torch.isfinite(total)


@pytest.mark.parametrize("balance", [True, False])
def test_weight_1_leaves_the_classifier_alone(balance: bool) -> None:
    images, labels, text = _batch()
    model = _model()
    total, parts = _objective(balance=balance)(model(images), labels, text, 1.0)
    total.backward()
    loss, _, loss_text, ratio = parts.tolist()
    assert loss == pytest.approx(ratio * loss_text, rel=1e-6)
    gradients = _gradients(model)
    assert not gradients["backbone.fc.weight"].any() and not gradients["backbone.fc.bias"].any()
    assert gradients["backbone.body.weight"].any() and gradients["text_head.layers.0.weight"].any()


def test_parts_are_named_detached_and_add_up() -> None:
    images, labels, text = _batch()
    outputs = _model()(images)
    total, parts = _objective()(outputs, labels, text, 0.3)
    assert PARTS == ("loss", "loss_cls", "loss_text", "balance") and parts.shape == (4,)
    assert total.requires_grad and not parts.requires_grad
    named = dict(zip(PARTS, parts.tolist(), strict=True))
    by_hand = [loss.item() for loss in _losses_by_hand(outputs, labels, text, "clip")]
    assert [named["loss_cls"], named["loss_text"]] == pytest.approx(by_hand, rel=1e-5)
    expected = 0.3 * named["balance"] * named["loss_text"] + 0.7 * named["loss_cls"]
    assert named["loss"] == pytest.approx(expected, rel=1e-6) == pytest.approx(total.item())


def test_without_balance_w_is_1() -> None:
    images, labels, text = _batch()
    total, parts = _objective(balance=False)(_model()(images), labels, text, 0.25)
    _, loss_cls, loss_text, ratio = parts.tolist()
    assert ratio == 1 and total.item() == pytest.approx(0.25 * loss_text + 0.75 * loss_cls, rel=1e-6)


@pytest.mark.parametrize("loss", [name for name, loss in ALIGNMENT_LOSSES.items() if loss.learned])
def test_learned_scalars_get_a_gradient(loss: str) -> None:
    images, labels, text = _batch()
    model = _model(loss)
    _objective(loss)(model(images), labels, text, 0.5)[0].backward()
    grad = _gradients(model)["text_head.scalars"]
    assert grad.shape == (len(ALIGNMENT_LOSSES[loss].learned),) and (grad != 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_soft_labels_are_taken_as_they_are(smoothing: float) -> None:
    images, hard, text = _batch()
    outputs = _model()(images)
    soft = F.one_hot(hard, CLASSES).float()
    exact, smooth = _objective(smoothing=0.0), _objective(smoothing=smoothing)
    index = PARTS.index("loss_cls")
    expected = exact(outputs, hard, text, 0.5)[1][index]
    assert smooth(outputs, soft, text, 0.5)[1][index].item() == pytest.approx(expected.item(), rel=1e-6)
    by_hand = _losses_by_hand(outputs, hard, text, "clip", smoothing)[0]
    assert smooth(outputs, hard, text, 0.5)[1][index].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_tiny_gradients_keep_their_ratio_in_half_precision() -> None:
    """Means over a large batch give gradients below half precision's smallest number, 6e-8."""
    images, labels, text = _batch()
    many = 4096
    outputs = _model()(images.repeat(many // BATCH + 1, 1, 1, 1)[:many])
    labels, text = labels.repeat(many // BATCH + 1)[:many], text.repeat(many // BATCH + 1, 1)[:many]
    features = outputs.features.detach().half().requires_grad_()
    weights = torch.randn(WIDTH, CLASSES + DIM, generator=torch.Generator().manual_seed(2))

    def project(rows: Tensor) -> Outputs:
        out = rows @ (weights * 1e-4).to(rows.dtype)
        return Outputs(rows, out[:, :CLASSES], out[:, CLASSES:], None)

    single = features.detach().float().requires_grad_()
    expected = _objective("l2", eps=1e-12)(project(single), labels, text, 0.5)[1][-1].item()
    assert _objective("l2", eps=1e-12)(project(features), labels, text, 0.5)[1][-1].item() == pytest.approx(
        expected, rel=0.05
    )


def _distils(balance: bool) -> Objective:
    teacher = TeacherConfig("timm:any", "logits", 3.0)
    return Objective.of(Config(text=TextConfig(balance=balance), teacher=teacher))


@pytest.mark.parametrize("balance", [True, False])
def test_logits_are_distilled_without_a_head(balance: bool) -> None:
    images, labels, _ = _batch()
    theirs = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(3))
    outputs = _model(head=False)(images)
    total, parts = _distils(balance)(outputs, labels, None, 0.3, theirs)
    ours = (outputs.logits / 3).log_softmax(1)
    soft = (theirs / 3).softmax(1)
    distilled = 9 * (soft * (soft.log() - ours)).sum(1).mean()
    plain = _losses_by_hand(outputs._replace(text=outputs.logits), labels, theirs, "l2")[0]
    norm_cls, norm_text = _norms([plain, distilled], outputs.features)
    ratio = norm_cls / norm_text if balance else 1.0
    assert parts[2].item() == pytest.approx(distilled.item(), rel=1e-5)
    assert parts[3].item() == pytest.approx(ratio, rel=1e-4)
    assert total.item() == pytest.approx(0.3 * ratio * distilled.item() + 0.7 * plain.item(), rel=1e-4)


def test_weight_0_forgets_the_logits_of_a_teacher() -> None:
    images, labels, _ = _batch()
    outputs = _model(head=False)(images)
    assert torch.equal(
        _distils(True)(outputs, labels, None, 0.0, torch.ones(BATCH, CLASSES))[0],
        _objective()(outputs, labels, None, 0.0)[0],
    )


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_images_without_a_label_count_for_text_alone(soft: bool) -> None:
    images, labels, text = _batch(soft)
    known = torch.tensor([True, False, True, True, False, True])
    outputs = _model()(images)
    spoiled = labels * known[:, None] if soft else torch.where(known, labels, -1)
    objective = _objective()._replace(labelled=(4,))
    parts = objective(outputs, spoiled, text, 0.5)[1].tolist()
    rest = Outputs(*(None if part is None else part[known] for part in outputs))
    assert parts[1] == pytest.approx(_losses_by_hand(rest, labels[known], text[known], "clip")[0].item(), rel=1e-5)
    assert parts[2] == pytest.approx(_losses_by_hand(outputs, labels, text, "clip")[1].item(), rel=1e-5)


def test_a_worker_counts_by_its_labelled_images() -> None:
    """Two workers with 3 and 1 labelled images: the mean of their losses is that over the four."""
    images, labels, _ = _batch()
    outputs = _model()(images)
    each = []
    for rows, known in ((slice(0, 3), [1, 1, 1]), (slice(3, 6), [0, 1, 0])):
        part = Outputs(*(None if side is None else side[rows] for side in outputs))
        spoiled = torch.where(torch.tensor(known) > 0, labels[rows], -1)
        each.append(_objective()._replace(labelled=(3, 1))._classification(part.logits, spoiled).item())
    chosen = torch.tensor([0, 1, 2, 4])
    expected = F.cross_entropy(outputs.logits[chosen], labels[chosen], label_smoothing=0.1).item()
    assert sum(each) / 2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [name for name, loss in ALIGNMENT_LOSSES.items() if loss.contrastive])
def test_a_run_takes_its_temperature(loss: str) -> None:
    config = Config().override("text.loss", loss).override("text.temperature", 0.4)
    images, labels, text = _batch(False)
    model = _model(loss)
    assert model.text_head is not None
    if ALIGNMENT_LOSSES[loss].learned:
        with torch.no_grad():
            model.text_head.scalars = torch.nn.Parameter(torch.tensor(ALIGNMENT_LOSSES[loss].initial_scalars(0.4)))
    outputs = model(images)
    assert outputs.text is not None
    pred = outputs.text if loss == "clip" else F.normalize(outputs.text, dim=1)
    logits = pred @ (text if loss == "clip" else F.normalize(text, dim=1)).T / 0.4
    rows = torch.arange(len(text))
    if loss == "siglip":
        expected = -F.logsigmoid((2 * torch.eye(len(text)) - 1) * (logits - 10)).sum() / len(text)
    else:
        expected = F.cross_entropy(logits, rows)
        if loss != "infonce":
            expected = (expected + F.cross_entropy(logits.T, rows)) / 2
    _, parts = Objective.of(config)(outputs, labels, text, 0.5)
    assert parts[PARTS.index("loss_text")].item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_that_are_no_classes_are_named_and_none_is_looked_at_on_a_device() -> None:
    images, labels, text = _batch()
    outputs = _model()(images)
    whole, some = _objective(), _objective()._replace(labelled=(BATCH - 1,))
    for objective, least in ((whole, 0), (some, -1)):
        for wrong in (least - 1, CLASSES, -100):
            spoilt = torch.cat([labels[:-1], torch.tensor([wrong])])
            with pytest.raises(
                UserError, match=f"1 of 6 labels, such as {wrong}, .* from {least} to 3 for logits of 4"
            ):
                objective(outputs, spoilt, text, 0.5)
    assert some(outputs, torch.cat([labels[:-1], torch.tensor([-1])]), text, 0.5)[0].isfinite()
    check_labels(torch.full((3,), 99, device="meta"), CLASSES)  # which has no values to look at


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_weighted_classes_are_a_mean_over_images_of_weighted_terms(soft: bool) -> None:
    images, labels, text = _batch(soft)
    outputs, weights = _model()(images), torch.tensor([0.5, 2.0, 0.0, 3.0])
    shares = labels if soft else 0.9 * F.one_hot(labels, CLASSES) + 0.1 / CLASSES
    expected = -(weights * shares * outputs.logits.log_softmax(1)).sum(1).mean().item()
    objective = _objective()._replace(class_weights=weights)
    assert objective(outputs, labels, text, 0.5)[1][1].item() == pytest.approx(expected, rel=1e-5)
    equal = _objective()._replace(class_weights=torch.ones(CLASSES))
    assert equal(outputs, labels, text, 0.5)[1][1].item() == pytest.approx(
        _objective()(outputs, labels, text, 0.5)[1][1].item(), rel=1e-6
    )
    # Workers of 4 and 2 images: the mean of theirs is that over all.
    parts = []
    for rows, known in ((slice(0, 4), (4, 2)), (slice(4, 6), (4, 2))):
        part = Outputs(*(None if side is None else side[rows] for side in outputs))
        parts.append(objective._replace(shares=known)._classification(part.logits, labels[rows]).item())
    assert sum(parts) / 2 == pytest.approx(expected, rel=1e-5)
    if not soft:
        some = objective._replace(labelled=(4,))
        known = torch.tensor([True, False, True, True, False, True])
        found = some._classification(outputs.logits, torch.where(known, labels, -1)).item()
        terms = -(weights * shares * outputs.logits.log_softmax(1)).sum(1)[known]
        assert found == pytest.approx(terms.mean().item(), rel=1e-5)
