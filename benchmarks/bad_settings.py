"""Bad inputs that are no data: command lines, configurations, model sizes, search spaces, runs and results."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.bad_input import Case, prepare

TINY = "--train.batch_size 4 --train.epochs 1 --data.label_noise 0 --run.cpus_per_worker 1"
SHAPES = f"shapes_baseline --data.shapes.train_size 16 --data.shapes.val_size 8 {TINY}"
ALONE = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1", "RANK": "0"}
"""The command as the one process of torchrun: without Ray."""
GONE = {"RAY_ADDRESS": "127.0.0.1:1"}
REFUSED = 2


def train(what: str, more: str, *parts: str, **other: object) -> Case:
    """A training on the built-in shapes that is refused."""
    return Case(what, f"tt_ray.train {more}", {REFUSED: parts}, base=SHAPES, **other)  # type: ignore[arg-type]


def refused(what: str, command: str, *parts: str, **other: object) -> Case:
    """Any command that is refused."""
    return Case(what, command, {REFUSED: parts}, **other)  # type: ignore[arg-type]


# --- what cases need --------------------------------------------------------------------------------------------------


def writes(name: str, text: str | bytes) -> Callable[[Path], object]:
    """Makes a file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def both(*makes: Callable[[Path], object]) -> Callable[[Path], object]:
    """One after the other."""
    return lambda folder: [make(folder) for make in makes]


def space(text: str) -> Callable[[Path], object]:
    """Makes mine.py."""
    return writes("mine.py", f'"""Which?"""\nfrom ray import tune\n{text}\n')


WEIGHT = "SPACE = {'text.weight': tune.uniform(0, 1)}\n"


def finished(folder: Path) -> None:
    """A run that is complete."""
    prepare(f"tt_ray.train {SHAPES}", folder, ALONE)


def unfinished(folder: Path) -> None:
    """A run that a kill has ended after its checkpoint."""
    finished(folder)
    (folder / "runs" / "shapes_baseline" / "result.json").unlink()
    shutil.rmtree(folder / "runs" / "shapes_baseline" / "export")


def damaged(folder: Path) -> None:
    """A run whose only checkpoint has a flipped bit."""
    unfinished(folder)
    for path in (folder / "runs" / "shapes_baseline" / "checkpoints").rglob("model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def other_search(folder: Path) -> None:
    """A search folder of other settings."""
    writes("tune/loss_weight/search.json", json.dumps({"seeds": [1]}))(folder)


def full_of_papers(name: str) -> Callable[[Path], object]:
    """A folder of somebody else."""
    return writes(f"{name}/thesis.tex", "x")


def toy_task(folder: Path) -> None:
    """A task for eval, of two classes."""
    from benchmarks.bad_images import image

    for number in range(8):
        for split in ("train", "test"):
            image(folder / "toy" / split / "ab"[number % 2] / f"{number}.png", number)


TOY = "--task-root toy=toy --tasks toy --protocols knn --out results"

# --- command line -----------------------------------------------------------------------------------------------------

COMMAND_LINE = [
    train("unknown option", "--optim.lrr 1", "no option --optim.lrr", "--optim.lr"),
    train("option like nothing else", "--zzzz 1", "no option --zzzz", "more"),
    train("option without a value", "--data.source --train.epochs 1", "--data.source needs a value"),
    train("text for a number", "--optim.lr fast", "optim.lr is 'fast'"),
    train("infinite learning rate", "--optim.lr inf", "optim.lr is inf", "finite"),
    train("NaN for a number", "--optim.weight_decay nan", "optim.weight_decay is nan"),
    train("yes for a boolean", "--run.use_gpu yes", "run.use_gpu is 'yes'", "True or False"),
    train("two values for one", "--train.epochs 1 2", "train.epochs"),
    train("unknown choice", "--text.loss clop", "text.loss is 'clop'; did you mean clip?"),
    train("unknown schedule", "--text.schedule lim", "text.schedule", "'lim'"),
    train("negative epochs", "--train.epochs -1", "train.epochs is -1"),
    train("odd batch with mixup", "--data.mixup 1 --train.batch_size 3", "train.batch_size is 3", "even"),
    train("batch larger than the data", "--train.batch_size 64", "train.batch_size is 64", "only 16"),
    train("more workers than CPUs", "--run.num_workers 4096 --train.batch_size 4096", "run.num_workers 4096"),
    train("--model.kwargs without a value", "--model.kwargs depth", "depth has no value"),
    train("--model.kwargs with the same key twice", "--model.kwargs depth 1 depth 2", "depth twice"),
    train("--model.kwargs with equals signs", "--model.kwargs depth=1 heads=2", "'depth=1' is no key"),
    train("--model.kwargs.KEY that the model lacks", "--model.kwargs.dpeth 1", "timm cannot build", "dpeth"),
    Case(
        "--model.kwargs twice",
        "tt_ray.train --model.kwargs depth 1 --model.kwargs depth 2",
        {0: ("top-1",)},
        base=SHAPES,
        environment=ALONE,
    ),
    train("unknown model", "--model.name vit_tini_patch16_224", "model.name is 'vit_tini", "vit_tiny_patch16_224"),
    train("unknown optimiser", "--optim.name adamwx", "optim.name", "did you mean adamw"),
    train("run name that is a path", "--run.name a/b", "run.name is 'a/b'"),
    train("storage below a file", "--run.storage file/runs", "file is a file", make=writes("file", "")),
    refused("unknown recipe", "tt_ray.train shapes_basline", "no recipe 'shapes_basline'", "shapes_baseline"),
    refused(
        "configuration that is no YAML", "tt_ray.train a.yaml", "a.yaml is not YAML", make=writes("a.yaml", "a: [")
    ),
    refused(
        "configuration with an unknown field",
        "tt_ray.train a.yaml",
        "train.epoch",
        make=writes("a.yaml", "train: {epoch: 7}"),
    ),
    refused(
        "configuration that is an image", "tt_ray.train a.yaml", "a.yaml", make=writes("a.yaml", b"\x89PNG\r\n\x1a\n")
    ),
]

# --- models and their sizes -------------------------------------------------------------------------------------------

SIZES = [
    train("img_size 64 for images of 32 px", "--model.kwargs img_size 64", "does not run on images of 32 px"),
    train(
        "33 px for windows of 8",
        "--model.name test_maxvit --data.image_size 33",
        "test_maxvit does not run on images of 33 px",
    ),
    train(
        "33 px for branches that meet",
        "--model.name hrnet_w18_small --data.image_size 33",
        "does not run on images of 33 px",
    ),
    train(
        "4 px for patches of 16", "--model.name test_vit --data.image_size 4", "test_vit does not run on images of 4 px"
    ),
    train(
        "patches that 12 px are no multiple of",
        "--model.name xcit_nano_12_p8_224 --data.image_size 12",
        "does not run on images of 12 px",
    ),
    train(
        "32 px for convolutions without padding",
        "--model.name inception_v3",
        "inception_v3 does not run on images of 32 px",
    ),
    train(
        "the same under torchrun",
        "--model.name halonet26t",
        "halonet26t does not run on images of 32 px",
        environment=ALONE,
    ),
    refused(
        "the same in a search",
        f"tt_ray.tune loss_weight --base {SHAPES} --model.kwargs img_size 64",
        "does not run on images of 32 px",
    ),
    refused(
        "the same in a comparison",
        "tt_ray.compare --arms a=shapes_baseline b=shapes_baseline+optim.lr=0.1 --set data.image_size=33 "
        "model.name=test_maxvit data.shapes.train_size=64 --seeds 0 --tasks none --out compare",
        "test_maxvit does not run on images of 33 px",
    ),
    train("patches of 0 px", "--model.kwargs patch_size 0", "timm cannot build vit_tiny_patch16_224"),
    train("a width that heads do not divide", "--model.kwargs embed_dim 25", "timm cannot build", "embed_dim"),
    train("logits of every patch", "--model.kwargs global_pool ''", "logits of shape"),
    train("a model with more than a linear classifier", "--model.name levit_128", "not one linear layer"),
    train("batch norm over one value", "--model.name resnet10t --train.batch_size 1", "batch"),
    train("a teacher that is not there", "--text.weight 0.5 --teacher.model nowhere", "nowhere"),
]

# --- searches ---------------------------------------------------------------------------------------------------------


def search(what: str, text: str, *parts: str, more: str = "") -> Case:
    """A search of a space that is refused."""
    return refused(f"space: {what}", f"tt_ray.tune mine.py {more}".strip(), *parts, make=space(text))


SEARCHES = [
    search("val_loss is to be largest", f"{WEIGHT}METRIC = 'val_loss'\nMODE = 'max'", "MODE is 'max'", "val_loss"),
    search("a metric that nobody reports", f"{WEIGHT}METRIC = 'loss'", "METRIC is 'loss'", "val_loss"),
    search("METRICS for METRIC", f"{WEIGHT}METRICS = 'val_loss'", "METRICS has no effect", "METRIC"),
    search("NUM_SAMPLES in quotes", f"{WEIGHT}NUM_SAMPLES = '8'", "NUM_SAMPLES is '8'"),
    search("a scheduler that there is not", f"{WEIGHT}SCHEDULER = 'ahsa'", "SCHEDULER is 'ahsa'", "asha"),
    search(
        "a reduction by 1", f"{WEIGHT}SCHEDULER = 'asha'\nSCHEDULER_OPTIONS = {{'reduction_factor': 1}}", "is 1, but"
    ),
    search("tune.grid_search", "SPACE = {'text.weight': tune.grid_search([0, 1])}", "write tune.choice([0, 1])"),
    search("a list", "SPACE = {'text.weight': [0.2, 0.5]}", "write tune.choice([0.2, 0.5])"),
    search("a constant", "SPACE = {'text.weight': 0.5}", "--text.weight 0.5"),
    search("a function", "SPACE = {'text.weight': lambda: 0.5}", "is a function"),
    search("a nested dictionary", "SPACE = {'text': {'weight': tune.uniform(0, 1)}}", "'text.weight'"),
    search("a normal distribution", "SPACE = {'text.weight': tune.randn(0, 1)}", "has no ends"),
    search("ends in the wrong order", "SPACE = {'text.weight': tune.uniform(1, 0)}", "from 1 to 0"),
    search("an unknown field", "SPACE = {'text.wieght': tune.uniform(0, 1)}", "text.wieght", "text.weight"),
    search("values out of range", "SPACE = {'text.weight': tune.uniform(0, 2)}", "text.weight is"),
    search("an error in the file", "1 / 0", "line 3: ZeroDivisionError"),
    search(
        "top5 of four classes",
        f"{WEIGHT}METRIC = 'top5'",
        "top5",
        "classes",
        more="--base shapes_baseline --data.shapes.label count",
    ),
    refused("space that there is not", "tt_ray.tune loss_wieght", "no search space 'loss_wieght'", "loss_weight"),
    refused("seeds that are also final", "tt_ray.tune loss_weight --seeds 0", "--final-seeds"),
    refused("folder of another search", "tt_ray.tune loss_weight", "holds a search with another", make=other_search),
    refused(
        "search into a folder of papers",
        "tt_ray.tune loss_weight --out a",
        "is no search and not empty",
        make=full_of_papers("a"),
    ),
]

# --- runs that are there, and clusters that are not -------------------------------------------------------------------

RUNS = [
    train("finished run", "", "is finished", "--run.overwrite", make=finished),
    train("unfinished run of other settings", "--optim.lr 0.5", "was started with optim.lr", make=unfinished),
    train("unfinished run of other data", "--data.shapes.seed 1", "data.shapes.seed", make=unfinished),
    train("run folder of papers", "", "is not a run of tt-ray", make=full_of_papers("runs/shapes_baseline")),
    train(
        "papers to overwrite",
        "--run.overwrite True",
        "will not be deleted",
        make=full_of_papers("runs/shapes_baseline"),
    ),
    train(
        "run that is being trained",
        "--train.epochs 10000",
        "runs/shapes_baseline",
        beside="tt_ray.train --train.epochs 10000",
        environment=ALONE,
    ),
    train(
        "run that is being trained, to overwrite",
        "--run.overwrite True",
        "runs/shapes_baseline",
        beside="tt_ray.train --train.epochs 10000",
        environment=ALONE,
    ),
    train("cluster that is gone", "", "cannot join the Ray cluster", environment=GONE),
    refused(
        "cluster that is gone, in a search",
        f"tt_ray.tune loss_weight --base {SHAPES}",
        "cannot join the Ray",
        environment=GONE,
    ),
    refused("export of nothing", "tt_ray.export runs/none --out out", "no run or checkpoint runs/none"),
    refused("export of papers", "tt_ray.export a --out out", "a has no intact checkpoint", make=full_of_papers("a")),
    refused(
        "export of a damaged run", "tt_ray.export runs/shapes_baseline --out out", "no intact checkpoint", make=damaged
    ),
    refused(
        "export onto something", "tt_ray.export runs/shapes_baseline --out a", "a exists", make=full_of_papers("a")
    ),
]

# --- comparisons and evaluations --------------------------------------------------------------------------------------

EVALUATIONS = [
    refused("comparison of one arm", "tt_ray.compare --arms a=shapes_baseline --out out", "--arms needs at least two"),
    refused(
        "comparison without a name", "tt_ray.compare --arms shapes_baseline b=shapes_baseline --out out", "NAME=RECIPE"
    ),
    refused(
        "comparison of other data",
        "tt_ray.compare --arms a=shapes_baseline b=shapes_baseline+data.root=x --out out",
        "data.root",
    ),
    refused(
        "comparison on no task",
        "tt_ray.compare --arms a=shapes_baseline b=shapes_baseline --tasks none_such --out out",
        "none_such",
    ),
    refused("evaluation of no model", f"eval --models a=nowhere {TOY}", "no model 'nowhere'", make=toy_task),
    refused("evaluation without a name", f"eval --models random:test_resnet {TOY}", "NAME=MODEL", make=toy_task),
    refused(
        "evaluation of a damaged run",
        f"eval --models a=runs/shapes_baseline {TOY}",
        "no intact checkpoint",
        make=both(damaged, toy_task),
    ),
    refused(
        "evaluation on no task", "eval --models a=random:test_resnet --tasks digts --out results", "no task 'digts'"
    ),
    refused(
        "evaluation of a task without images",
        f"eval --models a=random:test_resnet {TOY}",
        "toy",
        make=writes("toy/train/a/x.txt", ""),
    ),
    refused(
        "unknown protocol", "eval --models a=random:test_resnet --protocols liner --out results", "liner", "linear"
    ),
    refused(
        "results onto a file",
        "eval --models a=random:test_resnet --out results",
        "results is a file",
        make=writes("results", ""),
    ),
    refused("report of nothing", "eval.report results", "no folder results"),
    refused("report of papers", "eval.report a", "a has no results", make=full_of_papers("a")),
    refused("batch size 0", "eval.efficiency --models a=random:test_resnet --batch-sizes 0", "at least 1"),
    refused("why of no run", "eval.why runs/none --out why", "runs/none"),
]

CASES = [*COMMAND_LINE, *SIZES, *SEARCHES, *RUNS, *EVALUATIONS]
