"""A picture of models' features: t-SNE or UMAP of the same test images, a panel a model, coloured by class.

    python -m eval.picture --models base=RUN text=RUN2 --task digits --out digits.svg

Nearness in a panel is nearness of features; sizes of groups and distances between them mean nothing in such pictures,
and panels are turned and mirrored at will. For numbers see knn, linear and `eval.similarity`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tt_ray.io.files import new_file
from tt_ray.io.resumable import OTHERWISE, disk_problems, make_room
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of
from tt_ray.terminal.progress import Display

_NAMES = {"tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class Arguments:
    """A picture of models' features on a task's test images, by t-SNE or UMAP: the same images for all models."""

    models: tuple[str, ...]
    """NAME=MODEL, as for python -m eval."""
    task: str
    """Task whose test images are drawn."""
    out: Path = Path("picture.svg")
    """SVG file to write."""
    method: Literal["tsne", "umap"] = "tsne"
    """tsne by scikit-learn, or umap by umap-learn: pip install 'tt-ray[umap]'."""
    images: int = 2000
    """Test images to draw at most, the same share of each class."""
    classes: int = 20
    """Classes to draw at most: of more, that many are drawn by the seed, since colours become alike."""
    seed: int = 0
    """Seed of images, classes and the method."""
    data_root: Path = Path("data")
    """Folder that holds the files of tasks."""
    task_root: str = ""
    """The task's own folder, DIR or, as for python -m eval, NAME=DIR."""
    cache: Path = Path("features")
    """Folder of extracted features, such as OUT/features of python -m eval."""
    device: str = "cpu"
    """cpu or cuda: where features are extracted that the cache lacks."""


def main(arguments: list[str]) -> None:
    """Draws the picture, and prints how many images lie next to one of their class."""
    given = read_arguments(Arguments, arguments, program("eval.picture"))
    if given.out.suffix.lower() != ".svg":
        raise UserError(f"--out {given.out} must be an SVG file, such as picture.svg")
    if not given.models:
        raise UserError("--models is empty: give NAME=MODEL, as for python -m eval")
    if given.images < 1 or given.classes < 1 or given.seed < 0:
        raise UserError("--images and --classes must be at least 1, --seed at least 0")
    make_room(given.out)
    # Only now: they bring torch and timm, which take seconds.
    import torch

    from eval.contract import EvalConfig
    from eval.features.backbone import open_backbone, parse_models
    from eval.features.cache import test_features
    from eval.features.projection import check_method, neighbours_alike, projection, stratified
    from eval.report.feature_picture import Projected, draw
    from eval.tasks.registry import tasks

    check_method(given.method)
    device_of(given.device)
    roots = {given.task: given.task_root.removeprefix(f"{given.task}=")} if given.task_root else {}
    task = tasks([given.task], roots, given.data_root)[given.task]
    specs = parse_models(given.models)
    config = EvalConfig(None, given.cache, device=given.device, threads=torch.get_num_threads())
    source = task.open("test")
    rows = stratified(source.labels, given.images, given.classes, given.seed)
    labels = source.labels[rows]
    projected: list[Projected] = []
    with Display() as display:
        for number, (name, spec) in enumerate(specs.items()):
            display.show(f"{_NAMES[given.method]} of {name}", number, len(specs))
            features = test_features(open_backbone(name, spec), task, config)[0][rows]
            try:
                places = projection(features, given.method, given.seed)
            except UserError as error:
                raise UserError(f"{name} on {task.name}: {error}") from None
            projected.append(Projected(name, places, neighbours_alike(places, labels)))
    title = f"{_NAMES[given.method]} of features of {len(rows):,} test images of {task.name}, coloured by class"
    with disk_problems(given.out, OTHERWISE), new_file(given.out, durable=False) as partial:
        partial.write_text(draw(title, projected, labels, source.classes), encoding="utf-8")
    for each in projected:
        print(f"{each.model}: {each.alike:.1f} % of images lie next to one of their class in the picture")
    print(given.out)


if __name__ == "__main__":
    run_command(main)
