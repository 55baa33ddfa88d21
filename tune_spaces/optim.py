"""How good can the baseline be? Its own search, so that a comparison with text is fair.

Give it a base without text, and as many trials as the search that it is compared with:
python -m tt_ray.tune optim --base shapes_baseline. ASHA ends bad trials early: on average a trial costs about a third
of a training of the base recipe.
"""

from ray import tune

SPACE = {
    "optim.lr": tune.loguniform(1e-4, 5e-3),
    "optim.weight_decay": tune.loguniform(1e-3, 0.3),
    "optim.warmup_epochs": tune.uniform(0.0, 3.0),
    "optim.label_smoothing": tune.uniform(0.0, 0.2),
    "model.drop_path": tune.uniform(0.0, 0.2),
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 24
SCHEDULER = "asha"
