"""Draws captioned pictures for the other examples: 16 classes of coloured shapes, half of the training labels wrong.

    python examples/pictures.py

It needs `pip install '.[demo]'`, and leaves what the other examples read, of data of your own too: ROOT/train and
ROOT/test with a folder for each class, and ROOT/store, the embeddings of captions by path below ROOT/train.
ROOT/train/metadata.jsonl has the captions themselves.
"""

import json
from itertools import product
from pathlib import Path
from random import Random

import tyro
from PIL import Image, ImageDraw

import tt_ray

SIDES = {"triangle": 3, "square": 4, "hexagon": 6, "circle": 60}
CLASSES = list(product(("red", "green", "blue", "yellow"), SIDES))
RADII, COLUMNS, ROWS = {"small": 0.14, "large": 0.26}, {"left": 0.33, "right": 0.67}, {"upper": 0.33, "lower": 0.67}


def draw(colour: str, shape: str, size: int, random: Random) -> tuple[Image.Image, str]:
    """A picture of `size` by `size` pixels, and its caption."""
    scale, column, row = (random.choice(list(each)) for each in (RADII, COLUMNS, ROWS))
    ground = random.choice(["black", "white", "gray"])
    circle = ((size * COLUMNS[column], size * ROWS[row]), size * RADII[scale])
    picture = Image.new("RGB", (size, size), ground)
    ImageDraw.Draw(picture).regular_polygon(circle, SIDES[shape], random.randrange(360), fill=colour)
    return picture, f"a {scale} {colour} {shape} on {ground}, in the {row} {column}"


def main(root: Path = Path("pictures"), train: int = 1600, test: int = 400, wrong: float = 0.5, size: int = 64) -> None:
    """Draws `train` and `test` pictures; a share of `wrong` of the training labels is drawn by lot."""
    random, rows = Random(0), list[dict[str, str]]()
    for number in range(train + test):
        split, by_lot = ("train", random.random() < wrong) if number < train else ("test", False)
        colour, shape = CLASSES[number % len(CLASSES)]
        label = " ".join(random.choice(CLASSES) if by_lot else (colour, shape))
        picture, caption = draw(colour, shape, size, random)
        file = root / split / label / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        rows.append({"file_name": f"{label}/{file.name}", "label": label, "caption": caption})
    (root / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:train]))
    tt_ray.embed({row["file_name"]: row["caption"] for row in rows[:train]}, out=root / "store")


if __name__ == "__main__":
    tyro.cli(main)
