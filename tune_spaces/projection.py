"""Does a bigger projection between feature and embedding help, or a smaller target?

hidden_dim and depth are drawn for kind mlp alone; out_dim 0 is the embedding's own size (384 for all-MiniLM-L6-v2),
less is a PCA of it. The projection is thrown away after training: none of this changes the deployed model. A trial
costs one training of the base recipe for each seed, a few per cent more for the widest heads.
"""

from ray import tune

SPACE = {
    "head.kind": tune.choice(["linear", "mlp"]),
    "head.hidden_dim": tune.choice([128, 512, 2048]),
    "head.depth": tune.choice([2, 3]),
    "head.out_dim": tune.choice([0, 32, 128]),
}
WHEN = {"head.hidden_dim": {"head.kind": "mlp"}, "head.depth": {"head.kind": "mlp"}}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 16
