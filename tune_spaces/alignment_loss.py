"""Which contrastive loss suits these captions, at what temperature, against whose negatives?

Losses without a temperature (cos, lncos, l2, kl, dist) are compared by a space of one's own. siglip and clip_learned
learn theirs, and start from it. text.negatives matters with several workers only: --workers-per-trial 2 or more. A
trial costs one training of the base recipe for each seed.
"""

from ray import tune

SPACE = {
    "text.loss": tune.choice(["clip", "normclip", "infonce", "clip_learned", "siglip"]),
    "text.temperature": tune.loguniform(0.02, 2.0),
    "text.negatives": tune.choice(["global", "local"]),
    "text.weight": tune.uniform(0.2, 0.8),
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 24
