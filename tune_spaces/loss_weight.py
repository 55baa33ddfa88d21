"""How much of the loss should be the text's: which lambda, falling how, balanced or not?

The first thing to search when the data or the backbone are new. All trials go to their end, so that the plot of
accuracy over lambda has no gaps. A trial costs one training of the base recipe for each seed.
"""

from ray import tune

SPACE = {
    "text.weight": tune.uniform(0.05, 0.95),
    "text.schedule": tune.choice(["const", "cos"]),
    "text.balance": tune.choice([True, False]),
}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 16
