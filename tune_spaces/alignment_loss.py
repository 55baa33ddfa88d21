"""Which loss suits these captions, at what temperature, against whose negatives?

cos has neither; siglip and clip_learned learn their temperature, and start from it. text.negatives is searched with
several workers only: --workers-per-trial 2 or more. A trial costs one training of the base recipe for each seed.
"""

from ray import tune

_CONTRASTIVE = ["clip", "normclip", "infonce", "clip_learned", "siglip"]
SPACE = {
    "text.loss": tune.choice([*_CONTRASTIVE, "cos"]),
    "text.temperature": tune.loguniform(0.02, 2.0),
    "text.negatives": tune.choice(["global", "local"]),
    "text.weight": tune.uniform(0.2, 0.8),
}
WHEN = {
    "text.temperature": {"text.loss": _CONTRASTIVE},
    "text.negatives": {"text.loss": _CONTRASTIVE, "run.num_workers": range(2, 10_000)},
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 24
