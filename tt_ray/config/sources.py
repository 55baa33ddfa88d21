"""Names that data.source can have. A source and its libraries are imported when it is opened."""

from tt_ray.terminal.errors import UserError, nearest

SOURCES = {
    "clipart": "tt_ray.data.sources.clipart:SOURCE",
    "datasets": "tt_ray.data.sources.hf_datasets:SOURCE",
    "imagefolder": "tt_ray.data.sources.image_folder:SOURCE",
    "shapes": "tt_ray.data.sources.shapes:SOURCE",
    "torchvision": "tt_ray.data.sources.torchvision:SOURCE",
    "webdataset": "tt_ray.data.sources.webdataset:SOURCE",
}
"""Module and attribute of each `DataSource`; `data.source MODULE:NAME` names one that is not listed here."""


def check_source(name: str) -> None:
    """Raises UserError unless the name is listed or has the form MODULE:NAME; nothing is imported."""
    module, colon, attribute = name.partition(":")
    if name not in SOURCES and not (colon and all(map(str.isidentifier, [*module.split("."), attribute]))):
        near = nearest(name, SOURCES).rstrip("?")
        mark = "?" if near.startswith("did") else ""
        raise UserError(f"data.source is {name!r}; {near}{mark} (or MODULE:NAME of your own DataSource)")
