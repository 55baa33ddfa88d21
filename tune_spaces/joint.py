"""What is best when weight, loss, projection and learning rate may all move together?

The text changes which learning rate is best, so a fair claim needs both searched, and `optim` for the baseline with as
many trials. text.negatives is searched with several workers only (--workers-per-trial 2). ASHA ends bad trials early:
on average a trial costs about a third of a training of the base recipe.
"""

from ray import tune

SPACE = {
    "optim.lr": tune.loguniform(2e-4, 5e-3),
    "text.weight": tune.uniform(0.1, 0.9),
    "text.schedule": tune.choice(["const", "cos"]),
    "text.balance": tune.choice([True, False]),
    "text.loss": tune.choice(["clip", "clip_learned", "siglip", "cos"]),
    "text.negatives": tune.choice(["global", "local"]),
    "head.kind": tune.choice(["linear", "mlp"]),
    "head.hidden_dim": tune.choice([256, 1024]),
    "head.depth": tune.choice([2, 3]),
    "head.out_dim": tune.choice([0, 64, 128]),
}
WHEN = {
    "text.negatives": {"text.loss": ["clip", "clip_learned", "siglip"], "run.num_workers": range(2, 10_000)},
    "head.hidden_dim": {"head.kind": "mlp"},
    "head.depth": {"head.kind": "mlp"},
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 48
SEARCHER = "optuna"
SCHEDULER = "asha"
