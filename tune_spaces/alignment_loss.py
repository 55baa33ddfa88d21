"""Which alignment loss suits these captions, at what temperature, against whose negatives?

A temperature comes with its loss: none (clip), 1 (normclip), 0.1 (infonce), or learned from 0.07 (clip_learned) or 0.1
(siglip). text.negatives matters with several workers only: --workers-per-trial 2 or more. A trial costs one training of
the base recipe for each seed.
"""

from ray import tune

SPACE = {
    "text.loss": tune.choice(["clip", "clip_learned", "siglip", "normclip", "infonce", "cos", "l2", "kl"]),
    "text.negatives": tune.choice(["global", "local"]),
    "text.weight": tune.uniform(0.2, 0.8),
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 24
