"""Every command and every block of Python of the pages runs, at toy size, or says here why it does not.

All are read by their own parsers as they stand as well: tests/test_page_commands.py.
"""

import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.command_here import embed
from tests.page_workspace import Workspace
from tests.pages import PAGES, ROOT, blocks, commands

READERS = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "CHANGELOG.md")]
COMMANDS = {
    " ".join([shell.words[0].removeprefix(".venv/bin/"), shell.module, *shell.arguments]): shell
    for page in READERS
    for shell in commands(page)
    if shell.module and shell.words[3:4] != ("[RECIPE",)
}
"""Commands of ours by their text: the program that starts it, the module, the arguments."""

_MODEL = "model.kwargs='depth 1 embed_dim 24 num_heads 2' train.epochs=1 optim.warmup_epochs=0"
_SHAPES = f"data.shapes.train_size=64 data.shapes.val_size=32 data.image_size=16 train.batch_size=16 {_MODEL}"
_IMAGES = f"data.image_size=32 train.batch_size=4 data.num_loaders=0 {_MODEL}"
_RESNET = "model.name=test_resnet data.image_size=32 train.batch_size=4 data.num_loaders=0 train.epochs=1"


def options(changes: str) -> str:
    """PATH=VALUE ... as options."""
    return " ".join(f"--{path} {value}" for path, _, value in (word.partition("=") for word in shlex.split(changes)))


SHAPES, IMAGES, RESNET = map(options, (_SHAPES, _IMAGES, _RESNET))
AGAIN = "--run.overwrite True"
SEARCH = "--num-samples 1 --seeds 100 --final-seeds"  # nor a comparison of its winner, but for the first
EVALUATE = "python eval --models base=runs/shapes_baseline text=runs/shapes_textteacher"
TEACH = "python tt_ray.train shapes_textteacher --data.source imagefolder --data.root"
RUN = {
    "python tt_ray.caption_images --template": "",
    f"{TEACH} ROOT --text.captions": RESNET,
    f"{TEACH} ROOT --text.weight 0": RESNET,
    "python tt_ray.embed_captions captions.parquet --encoder": "",
    "python tt_ray.embed_captions captions.parquet --out": "--out STORE2",
    "python tt_ray.embed_captions ROOT/train/metadata.jsonl": "--out STORE3",
    f"{TEACH} ROOT --text.embeddings": f"{IMAGES} --run.name embedded",
    "python tt_ray.convert_captions SHARDS": "--out converted.parquet",
    "python tt_ray.embeddings inspect STORE": "",
    "python tt_ray.embeddings export STORE": "",
    "python tt_ray.embeddings import-dataset FOLDER": "--out STORE4",
    "python tt_ray.embeddings import-zip": "--out STORE5",
    "python tt_ray.pack --data.root ROOT --out": "",
    "python tt_ray.pack --data.root DIR": "",
    "python tt_ray.embed_captions DIR/index.parquet": "--out STORE6",
    "python tt_ray.train": SHAPES,
    "python tt_ray.train --text.loss my_losses:huber": f"{SHAPES} {AGAIN}",
    "python tt_ray.train shapes_textteacher --text.loss borlan": f"{SHAPES} {AGAIN}",
    "python tt_ray.train shapes_textteacher": f"{SHAPES} {AGAIN}",
    "python tt_ray.train shapes_baseline": SHAPES,
    "python tt_ray.train shapes_vision_teacher": SHAPES,
    "python tt_ray.train shapes_baseline --run.keep_checkpoints": f"{SHAPES} {AGAIN}",
    "python tt_ray.train shapes_textteacher --run.keep_checkpoints": SHAPES,
    f"{TEACH} EMOJI": IMAGES,
    "python tt_ray.train shapes_vision_teacher --data.source imagefolder": IMAGES,
    "python tt_ray.export RUN": "--out exported",
    "python tt_ray.audit --data.source clipart": "--data.subset 0.1 --out audit-clipart",
    "python tt_ray.audit --data.source imagefolder --data.root ROOT --out": "",
    "python tt_ray.audit --data.source imagefolder --data.root ROOT --text.embeddings": "",
    "python tt_ray.train shapes_baseline --data.source imagefolder": f"{RESNET} --run.name corrected",
    f"{EVALUATE} --tasks builtin --protocols linear knn": "--tasks digits --protocols knn --seeds 0",
    f"{EVALUATE} --tasks builtin --protocols linear linear_sgd": (
        "--tasks digits --protocols linear_sgd knn --set linear_sgd.steps=3 --seeds 0"
    ),
    f"{EVALUATE} --tasks digits": "--protocols knn --corruptions jpeg --severities 3",
    "python eval --models mine=RUN --protocols finetune": (
        "--tasks digits --set finetune.steps=1 finetune.rates=[0.001] --out finetuned"
    ),
    "python eval.report results": "",
    "python eval.similarity": "--images 64",
    "python eval.picture": "--images 64",
    "python eval.why runs/base runs/taught": "--images 16 --batches 1",
    "python eval.why RUN1": "--images 16 --batches 1",
    "python eval.efficiency": "--models a=RUN b=random:test_vit --batch-sizes 1",
    "python eval.text_until --out": "--seeds 0",
    "python tt_ray.compare --out compare": "--seeds 0 --tasks none",
    "python tt_ray.compare --seeds": "--seeds 0 --tasks none",
    "python tt_ray.compare --arms base=": "--seeds 0 --out compare-mine",
    "python tt_ray.compare --arms baseline=": "--seeds 0",
    "python tt_ray.tune loss_weight --out tune/mine": f"{SEARCH} 0 --num-samples 2 {SHAPES} --out tune/default",
    "python tt_ray.tune loss_weight --num-samples 12 --seeds 100 101 --base": f"{SEARCH} {SHAPES}",
    "python tt_ray.tune loss_weight --num-samples 12 --seeds 100 101 --train": f"{SEARCH} {SHAPES}",
    "python tt_ray.tune loss_weight --num-samples 12 --seeds 100 101 --data": f"{SEARCH} {IMAGES}",
    "python tt_ray.tune projection": f"{SEARCH} {SHAPES}",
    "python tt_ray.tune optim": f"{SEARCH} {SHAPES}",
    "python tt_ray.tune mine.py": f"{SEARCH} {SHAPES} --out tune/own",
    "python tt_ray.train tune/mine/best.yaml": SHAPES,
}
"""Commands by their beginning, in the order in which they run in one folder, and what is added to make them small."""
_CLUSTER = "needs a cluster; what it submits runs here with other names of folders"
_MEASURES = "measures for minutes; smaller ones run in tests/benchmarks/"
_IMAGENET = "needs ImageNet, or a bucket; tests/test_pack.py and tests/io/test_local_copy.py have smaller ones"
_STUDY = "takes hours; its rows and tables are tested by tests/test_page_figures.py"
READ = {
    "python eval.text_until --seeds": "the same command as without seeds",
    "ray tt_ray.train": _CLUSTER,
    "sbatch tt_ray.train": _CLUSTER,
    "torchrun tt_ray.train": "two processes of torchrun: tests/test_train_command.py::test_torchrun_runs_the_same_loop",
    "python tt_ray.caption_images --model": "downloads a captioner; small ones run in tests/test_caption_images.py",
    "python tt_ray.caption_images --llm.model": "downloads a language model; a small one runs in "
    "tests/test_caption_images.py",
    "python tt_ray.export runs/shapes_textteacher --out DIR --push-to-hub": "needs an account; a hub is played in "
    "tests/test_export.py",
    "python eval --protocols mine.nearest_mean": "left out words; tests/eval/test_adding_a_protocol.py",
    "python eval --task-file": "left out words; tests/eval/test_adding_a_task.py",
    "python tt_ray.pack --data.root IMAGENET": _IMAGENET,
    "python tt_ray.pack --data.root s3://": _IMAGENET,
    "python tt_ray.train in1k": _IMAGENET,
    "python eval --models mine=runs/in1k": _IMAGENET,
    "python benchmarks.what_text_buys": _STUDY,
    "python tt_ray.compare --arms plain=clipart": "a quarter of an hour; its arms are of recipes that run here",
    "python benchmarks.comparisons": _STUDY,
    "python benchmarks.does_it_help": "takes hours; its parts: tests/benchmarks/test_does_it_help.py",
    "python benchmarks.published": "takes minutes; a small one runs in tests/benchmarks/test_published.py",
    "python benchmarks.step_cost": _MEASURES,
    "python benchmarks.loading --images": _MEASURES,
    "python benchmarks.end_to_end --model": _MEASURES,
    "python benchmarks.ray_overhead": _MEASURES,
    "python benchmarks.text_loss": _MEASURES,
    "python benchmarks.scaling --negatives": "a smaller prediction runs in tests/benchmarks/test_scaling.py",
    "python benchmarks.linear_probe": "measures for minutes; a smaller one runs in tests/eval/test_linear_benchmark.py",
    "python benchmarks.audit": "measures for minutes; a smaller one runs in tests/benchmarks/test_audit.py",
    "python benchmarks.checkpoint_cost": "measures for minutes at sizes that are fixed",
}
"""Commands by their beginning that do not run here, and why."""
PYTHON = {
    "README.md": "below",
    "faq.md": "below",
    "extending.md": "lines of the tests that it links, tests/test_extending.py",
    "api.md": "signatures, which are those of the code, tests/test_docs.py",
}
"""Pages with code in Python, and where it runs."""


def begun(start: str) -> list[str]:
    """The command of just this text, or those that begin with it."""
    return [start] if start in COMMANDS else [text for text in COMMANDS if text.startswith(start)]


def test_each_command_runs_or_has_a_reason_not_to() -> None:
    chosen = [text for start in RUN for text in begun(start)]
    left = [text for start in READ for text in COMMANDS if text.startswith(start)]
    assert all(len(begun(start)) == 1 for start in RUN), [start for start in RUN if len(begun(start)) != 1]
    assert all(any(text.startswith(start) for text in COMMANDS) for start in READ)
    assert sorted(chosen + left) == sorted(COMMANDS)


def with_more_set(module: str, words: list[str]) -> list[str]:
    """The words, and after those of their --set further ones, which make the trainings of a comparison small."""
    if module not in ("tt_ray.compare", "eval.text_until"):
        return words
    sizes = {"data.root=ROOT": _RESNET, "data.root=EMOJI": _IMAGES}
    more = shlex.split(next((each for root, each in sizes.items() if root in words), _SHAPES))
    if "--set" not in words:
        return [*words, "--set", *more]
    start = words.index("--set") + 1
    stop = next((n for n in range(start, len(words)) if words[n].startswith("--")), len(words))
    return [*words[:stop], *more, *words[stop:]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of few images, steps and values
def test_every_command_runs_with_the_pages_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Workspace(tmp_path, monkeypatch)
    torch.set_num_threads(1)
    for start, smaller in RUN.items():
        (text,) = begun(start)
        shell = COMMANDS[text]
        words = with_more_set(shell.module, shell.arguments)
        try:
            here.run(shell.module, [*words, *shlex.split(smaller)])
        except BaseException as error:
            pytest.fail(f"{shell.page.name}: {text} {smaller}: {type(error).__name__}: {error}")
    for made in (
        "store.png",
        "DIR/index.parquet",
        "exported/model.safetensors",
        "results/report.html",
        "digits.svg",
        "why/why.md",
    ):
        assert (tmp_path / made).stat().st_size > 0, made
    for made in ("text", "base"):
        model = timm.create_model(f"local-dir:runs/{made}/export", pretrained=True)  # as the README opens it
        assert isinstance(model, torch.nn.Module)


def test_each_page_with_python_says_where_it_runs() -> None:
    assert {page.name for page in PAGES if blocks(page, "python")} == set(PYTHON)


def test_the_loop_of_the_readme_and_mixup_of_the_faq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [f"train/{number}.png" for number in range(4)]
    embed(tmp_path / "STORE", ids)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    loader = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), ids)]
    names: dict[str, Any] = {"torch": torch, "timm": timm, "model": model, "loader": loader}
    before = model.get_classifier().weight.detach().clone()
    (loop,), (mixup,) = blocks(ROOT / "README.md", "python"), blocks(ROOT / "docs" / "faq.md", "python")
    exec(loop.replace("range(90)", "range(2)"), names)
    assert not torch.equal(model.get_classifier().weight, before)
    assert timm.create_model("local-dir:OUT", pretrained=True).num_classes == 3
    names["out"] = None
    exec(mixup, names)
    assert names["out"].loss.isfinite() and names["out"].text.isfinite()
