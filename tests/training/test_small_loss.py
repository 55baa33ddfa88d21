"""Small-loss selection: which images count, by how much, from when on, whatever the workers' shares."""

import pytest
import torch

from tt_ray.config import Config, DataConfig, OptimConfig
from tt_ray.terminal.errors import UserError
from tt_ray.training.small_loss import mean_of_smallest, share_left_out


@pytest.mark.parametrize(("leave_out", "kept"), [(0.0, 5), (0.2, 4), (0.4, 3), (0.9, 1), (0.99, 1)])
def test_the_largest_losses_have_no_part_in_the_mean_nor_in_its_gradient(leave_out: float, kept: int) -> None:
    losses = torch.tensor([0.3, 2.0, 0.1, 1.0, 0.5], requires_grad=True)
    mean = mean_of_smallest(losses, leave_out, ())
    assert mean.item() == pytest.approx(losses.detach().sort().values[:kept].mean().item())
    mean.backward()
    assert losses.grad is not None
    smallest = losses.detach().argsort()[:kept]
    assert losses.grad.nonzero()[:, 0].tolist() == sorted(smallest.tolist())
    assert losses.grad[smallest].tolist() == pytest.approx([1 / kept] * kept)


def test_equal_losses_all_count() -> None:
    assert mean_of_smallest(torch.tensor([1.0, 1.0, 1.0, 5.0]), 0.5, ()).item() == 1.0


def test_the_share_grows_in_the_first_tenth() -> None:
    assert [share_left_out(0.4, step, 100) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_a_selection_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UserError, match=r"small_loss needs the label of each image"):
        Config(data=DataConfig(unlabelled=0.5), optim=OptimConfig(small_loss=0.2))
    with pytest.raises(UserError, match=r"small_loss compares losses"):
        Config(optim=OptimConfig(small_loss=0.2, class_weights="balanced"))
