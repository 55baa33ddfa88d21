"""Two workers, one after the other in this process, against the same step by hand."""

import pytest
import torch
from torch import Tensor

from tests.training.test_objective import _batch, _gradients, _losses_by_hand, _model, _norms
from tt_ray.config import Config, OptimConfig, TextConfig
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.training import objective
from tt_ray.training.objective import Objective

SHARES = (4, 2)


@pytest.mark.parametrize("loss", ["clip", "siglip", "cos"])
def test_with_local_negatives_workers_average_their_own_losses(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, text = _batch()
    by_hand = _model(loss)
    outputs = by_hand(images)
    assert outputs.text is not None
    scalars = () if outputs.scalars is None else outputs.scalars.unbind()
    parts = zip(SHARES, outputs.text.split(SHARES), text.split(SHARES), strict=True)
    loss_text = sum(rows / 6 * ALIGNMENT_LOSSES[loss](pred, target, *scalars) for rows, pred, target in parts)
    assert isinstance(loss_text, Tensor)
    loss_cls = _losses_by_hand(outputs, labels, text, loss)[0]
    norm_cls, norm_text = _norms([loss_cls, loss_text], outputs.features)
    (0.3 * norm_cls / norm_text * loss_text + 0.7 * loss_cls).backward()

    config = Config(text=TextConfig(loss=loss, negatives="local"), optim=OptimConfig(label_smoothing=0.1))
    local = Objective.of(config)._replace(shares=SHARES)
    squares: list[Tensor] = []
    monkeypatch.setattr(objective, "world_size", lambda: 2)

    def gradients() -> list[dict[str, Tensor]]:
        models = [_model(loss) for _ in SHARES]
        for model, *batch in zip(models, images.split(SHARES), labels.split(SHARES), text.split(SHARES), strict=True):
            local(model(batch[0]), batch[1], batch[2], 0.3)[0].backward()
        return [_gradients(model) for model in models]

    # Once for each worker's squares, and once more with their sum.
    monkeypatch.setattr(objective, "sum_over_workers", lambda mine: squares.append(mine) or mine)
    gradients()
    monkeypatch.setattr(objective, "sum_over_workers", lambda mine: torch.stack(squares).sum(0))
    first, second = gradients()
    for name, expected in _gradients(by_hand).items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=1e-4, atol=1e-6)
