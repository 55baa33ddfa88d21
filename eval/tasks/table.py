"""All tasks by name. A change that can change a number makes a new version of the task.

Sizes are those of the official splits; where authors give none, the origin draws one from hashes, the same everywhere.
Metrics are those of the authors, as Kornblith et al., 2019 (arXiv 1805.08974, table 1) collected them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from eval.tasks.layouts import ClassFolders, Cub, ImageNet, INaturalist, Subset, Sun397
from eval.tasks.origins import Digits, Hub, Origin, Shapes, Split, Torchvision
from eval.tasks.shards import Shards
from eval.tasks.vtab import GROUPS, NAMES, ClipBenchmark
from tt_ray.data.sources.clipart import FOLDER as CLIPART

Metric = Literal["top1", "mean_per_class"]
_TRAIN_TEST: Mapping[Split, str] = {"train": "train", "test": "test"}
_HUB_SPLITS: Mapping[Split, str] = {"train": "train", "val": "validation", "test": "test"}
_TRAIN_VAL_TEST: Mapping[Split, str] = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Definition:
    """One line of the table."""

    classes: int
    metric: Metric
    sizes: Mapping[Split, int]
    """Images of the official splits; without val, validation images are taken from train."""
    origins: tuple[Origin, ...]
    """Ways to open it: the first that finds its files is taken."""
    citation: str
    version: int = 1
    subset: Subset | None = field(default=None)
    """Evaluation only: which of ImageNet's classes it has."""


def _sizes(train: int, val: int, test: int) -> Mapping[Split, int]:
    return {"train": train, "test": test} if not val else {"train": train, "val": val, "test": test}


def _shapes(label: Literal["shape", "colour", "count", "relation", "background"], classes: int) -> Definition:
    origin = Shapes(label)
    sizes = _sizes(origin.train_size, 0, origin.test_size)
    return Definition(classes, "top1", sizes, (origin,), f"drawn by this package: the main object's or scene's {label}")


def _vtab(classes: int, train: int, test: int, origin: ClipBenchmark, citation: str) -> Definition:
    return Definition(classes, "top1", _sizes(train, 0, test), (origin,), f"{citation}; split by VTAB", version=_PHOTOS)


_INAT_2018 = "Van Horn et al., 2018, arXiv 1707.06642; github.com/visipedia/inat_comp/tree/master/2018"
_CLEVR = "Johnson et al., 2017, arXiv 1612.06890"
_DSPRITES = "Matthey et al., 2017, github.com/deepmind/dsprites-dataset"
_SMALLNORB = "LeCun et al., 2004, doi 10.1109/CVPR.2004.1315150"
_IMAGENET = ("imagenet", "ILSVRC2012", "imagenet-1k")
_IMAGENET_URL = "image-net.org/challenges/LSVRC/2012"

_PHOTOS = 2
"""Version of the sets that are read from image files: 2 turns photographs upright by their EXIF, and reads 16-bit and
transparent ones otherwise than 1 did."""

TABLE: dict[str, Definition] = {
    "digits": Definition(
        10, "top1", _sizes(1438, 0, 359), (Digits(),), "Alpaydin and Kaynak, 1998, doi 10.24432/C50P49; scikit-learn"
    ),
    "clipart": Definition(
        12,
        "top1",
        _sizes(3017, 0, 1251),
        (Shards(str(CLIPART)),),
        "Open Clip Art Library, release 0.18; comes with this package, labels are the library's top folders",
    ),
    "shapes_shape": _shapes("shape", 16),
    "shapes_colour": _shapes("colour", 8),
    "shapes_count": _shapes("count", 4),
    "shapes_relation": _shapes("relation", 5),
    "shapes_background": _shapes("background", 6),
    "aircraft": Definition(
        100,
        "mean_per_class",
        _sizes(3334, 3333, 3333),
        (
            Torchvision("FGVCAircraft", _TRAIN_VAL_TEST, {"annotation_level": "variant"}),
            Hub("HuggingFaceM4/FGVC-Aircraft", _HUB_SPLITS, label="variant"),
        ),
        "Maji et al., 2013, arXiv 1306.5151",
        version=_PHOTOS,
    ),
    "cars": Definition(
        196,
        "top1",
        _sizes(8144, 0, 8041),
        (Torchvision("StanfordCars", _TRAIN_TEST, downloads=False), Hub("tanganke/stanford_cars", _TRAIN_TEST)),
        "Krause et al., 2013, doi 10.1109/ICCVW.2013.77",
        version=_PHOTOS,
    ),
    "flowers102": Definition(
        102,
        "mean_per_class",
        _sizes(1020, 1020, 6149),
        (Torchvision("Flowers102", _TRAIN_VAL_TEST), Hub("dpdl-benchmark/oxford_flowers102", _HUB_SPLITS)),
        "Nilsback and Zisserman, 2008, doi 10.1109/ICVGIP.2008.47",
        version=_PHOTOS,
    ),
    "food101": Definition(
        101,
        "top1",
        _sizes(75750, 0, 25250),
        (Torchvision("Food101", _TRAIN_TEST), Hub("ethz/food101", {"train": "train", "test": "validation"})),
        "Bossard et al., 2014, doi 10.1007/978-3-319-10599-4_29",
        version=_PHOTOS,
    ),
    "pets": Definition(
        37,
        "mean_per_class",
        _sizes(3680, 0, 3669),
        (
            Torchvision("OxfordIIITPet", {"train": "trainval", "test": "test"}),
            Hub("timm/oxford-iiit-pet", _TRAIN_TEST),
        ),
        "Parkhi et al., 2012, doi 10.1109/CVPR.2012.6248092",
        version=_PHOTOS,
    ),
    "cub200": Definition(
        200,
        "top1",
        _sizes(5994, 0, 5794),
        (Cub(), Hub("Donghyun99/CUB-200-2011", _TRAIN_TEST)),
        "Wah et al., 2011, Caltech CNS-TR-2011-001",
        version=_PHOTOS,
    ),
    "cifar10": Definition(
        10, "top1", _sizes(50000, 0, 10000), (Torchvision("CIFAR10", _TRAIN_TEST, flag=True),), "Krizhevsky, 2009"
    ),
    "cifar100": Definition(
        100, "top1", _sizes(50000, 0, 10000), (Torchvision("CIFAR100", _TRAIN_TEST, flag=True),), "Krizhevsky, 2009"
    ),
    "dtd": Definition(
        47,
        "top1",
        _sizes(1880, 1880, 1880),
        (Torchvision("DTD", _TRAIN_VAL_TEST, {"partition": 1}),),
        "Cimpoi et al., 2014, arXiv 1311.3618; the first of ten partitions",
        version=_PHOTOS,
    ),
    "sun397": Definition(
        397,
        "top1",
        _sizes(19850, 0, 19850),
        (Sun397(),),
        "Xiao et al., 2010, doi 10.1109/CVPR.2010.5539970; the first of ten partitions",
        version=_PHOTOS,
    ),
    "caltech101": Definition(
        101,
        "mean_per_class",
        _sizes(3030, 0, 5647),
        (
            ClassFolders(
                ("caltech101/101_ObjectCategories", "101_ObjectCategories"),
                "data.caltech.edu/records/mzrjq-6wc02",
                leave_out=("BACKGROUND_Google",),
                train_per_class=30,
            ),
        ),
        "Fei-Fei et al., 2004, doi 10.1109/CVPR.2004.383; 30 training images per class, tested on the others",
        version=_PHOTOS,
    ),
    "eurosat": Definition(
        10,
        "top1",
        _sizes(21600, 0, 5400),
        (ClassFolders(("eurosat/2750", "2750", "EuroSAT"), "github.com/phelber/EuroSAT"),),
        "Helber et al., 2019, arXiv 1709.00029; their 80/20 split was not published, this one is drawn",
        version=_PHOTOS,
    ),
    "fashion_mnist": Definition(
        10,
        "top1",
        _sizes(60000, 0, 10000),
        (Torchvision("FashionMNIST", _TRAIN_TEST, flag=True),),
        "Xiao et al., 2017, arXiv 1708.07747",
    ),
    "svhn": Definition(
        10,
        "top1",
        _sizes(73257, 0, 26032),
        (Torchvision("SVHN", _TRAIN_TEST),),
        "Netzer et al., 2011, ufldl.stanford.edu/housenumbers; without the extra images",
    ),
    "places365": Definition(
        365,
        "top1",
        _sizes(1803460, 0, 36500),
        (Torchvision("Places365", {"train": "train-standard", "test": "val"}, {"small": True}),),
        "Zhou et al., 2018, doi 10.1109/TPAMI.2017.2723009; images of 256 px; tested on val, as test has no labels",
        version=_PHOTOS,
    ),
    "inat2018": Definition(8142, "top1", _sizes(437513, 0, 24426), (INaturalist(2018),), _INAT_2018, version=_PHOTOS),
    "imagenet": Definition(
        1000,
        "top1",
        _sizes(1281167, 0, 50000),
        (ImageNet(_IMAGENET, _IMAGENET_URL, splits=True),),
        "Russakovsky et al., 2015, arXiv 1409.0575; tested on val, as test has no labels",
        version=_PHOTOS,
    ),
    "imagenet_real": Definition(
        1000,
        "top1",
        {"test": 46837},
        (ImageNet(_IMAGENET, _IMAGENET_URL, splits=True, real=True),),
        "Beyer et al., 2020, arXiv 2006.07159",
        subset="imagenet",
        version=_PHOTOS,
    ),
    "imagenet_v2": Definition(
        1000,
        "top1",
        {"test": 10000},
        (ImageNet(("imagenetv2-matched-frequency-format-val",), "huggingface.co/datasets/vaishaal/ImageNetV2"),),
        "Recht et al., 2019, arXiv 1902.10811; matched frequency",
        subset="imagenet",
        version=_PHOTOS,
    ),
    "imagenet_a": Definition(
        200,
        "top1",
        {"test": 7500},
        (ImageNet(("imagenet-a",), "github.com/hendrycks/natural-adv-examples", "imagenet_a"),),
        "Hendrycks et al., 2021, arXiv 1907.07174",
        subset="imagenet_a",
        version=_PHOTOS,
    ),
    "imagenet_r": Definition(
        200,
        "top1",
        {"test": 30000},
        (ImageNet(("imagenet-r",), "github.com/hendrycks/imagenet-r", "imagenet_r"),),
        "Hendrycks et al., 2021, arXiv 2006.16241",
        subset="imagenet_r",
        version=_PHOTOS,
    ),
    "imagenet_sketch": Definition(
        1000,
        "top1",
        {"test": 50889},
        (ImageNet(("sketch", "imagenet-sketch"), "github.com/HaohanWang/ImageNet-Sketch"),),
        "Wang et al., 2019, arXiv 1905.13549",
        subset="imagenet",
        version=_PHOTOS,
    ),
    "patch_camelyon": _vtab(2, 262144, 32768, ClipBenchmark("pcam"), "Veeling et al., 2018, arXiv 1806.03962"),
    "resisc45": _vtab(45, 18900, 6300, ClipBenchmark("resisc45"), "Cheng et al., 2017, arXiv 1703.00121"),
    "diabetic_retinopathy": _vtab(
        5,
        35126,
        42670,
        ClipBenchmark("diabetic_retinopathy"),
        "Kaggle and EyePACS, 2015, retinopathy detection",
    ),
    "clevr_count": _vtab(8, 63000, 15000, ClipBenchmark("clevr_count_all"), f"{_CLEVR}; number of objects"),
    "clevr_distance": _vtab(
        6, 63000, 15000, ClipBenchmark("clevr_closest_object_distance"), f"{_CLEVR}; distance of the nearest object"
    ),
    "dmlab": _vtab(6, 65550, 22735, ClipBenchmark("dmlab"), "Beattie et al., 2016, arXiv 1612.03801"),
    "kitti_distance": _vtab(
        4,
        5077,
        634,
        ClipBenchmark("kitti_closest_vehicle_distance"),
        "Geiger et al., 2012, doi 10.1109/CVPR.2012.6248074; distance of the nearest vehicle",
    ),
    "dsprites_location": _vtab(
        16, 589824, 73728, ClipBenchmark("dsprites_label_x_position", 32, 16), f"{_DSPRITES}; place from left to right"
    ),
    "dsprites_orientation": _vtab(
        16, 589824, 73728, ClipBenchmark("dsprites_label_orientation", 40, 16), f"{_DSPRITES}; orientation"
    ),
    "smallnorb_azimuth": _vtab(18, 24300, 12150, ClipBenchmark("smallnorb_label_azimuth"), f"{_SMALLNORB}; azimuth"),
    "smallnorb_elevation": _vtab(
        9, 24300, 12150, ClipBenchmark("smallnorb_label_elevation"), f"{_SMALLNORB}; elevation"
    ),
}
"""Tasks by name."""

SUITES: dict[str, tuple[str, ...]] = {
    "all": tuple(TABLE),
    "paper": ("aircraft", "cars", "flowers102", "food101", "pets", "cub200"),
    "vtab": NAMES,
    "vtab-natural": GROUPS["natural"],
    "vtab-specialized": GROUPS["specialized"],
    "vtab-structured": GROUPS["structured"],
    "builtin": (
        "digits",
        "shapes_shape",
        "shapes_colour",
        "shapes_count",
        "shapes_relation",
        "shapes_background",
    ),
}
"""Tasks under one name: the TextTeacher paper's, VTAB's (Zhai et al., 2019, arXiv 1910.04867, here with all their
training images; `vtab1k` has 1,000 of each, see `eval.tasks.vtab`), and those that need no download."""
