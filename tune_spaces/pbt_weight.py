"""How should lambda move during training, if nothing is assumed about its shape?

Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): every INTERVAL epochs the worst quarter of the
trials goes on from a copy of one of the best, with another lambda. What comes out is a schedule, not a value: the
summary lists it. The whole population trains side by side and costs one training of the base recipe each.
"""

from ray import tune

SPACE = {"text.weight": tune.uniform(0.05, 0.95)}
METRIC = "top1"
MODE = "max"
NUM_SAMPLES = 8
SCHEDULER = "pbt"
SCHEDULER_OPTIONS = {"interval": 2}
