"""The configuration tree: one namespace of dotted paths for the command line, YAML files and search spaces.

Nothing changes after parsing: what follows from a field is a property, and `override` returns a new tree.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError

from tt_ray.config_checks import check_config, first_problem, workers_range
from tt_ray.errors import UserError, nearest
from tt_ray.storage import is_uri, local_root

_STRICT = ConfigDict(extra="forbid")
# Strict, so that 1 stays 1 and true stays true; the lax float reads 1e-4, which YAML 1.1 takes for a string.
Kwarg = Annotated[bool, Strict()] | Annotated[int, Strict()] | float | str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in captioned shapes (`data.source shapes`)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    train_size: int = 8192
    """Number of training images."""
    val_size: int = 2048
    """Number of validation images."""
    label: Literal["shape", "colour", "count", "relation", "background"] = "shape"
    """The attribute that is the label."""
    caption: Literal["full", "brief", "class"] = "brief"
    """What captions tell: every attribute, the main object's shape and one more attribute, or the shape alone."""
    seed: int = 0
    """Seed of the images; an image is a function of (seed, index)."""


@dataclass(frozen=True)
class DataConfig:
    """Images and labels."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: Literal["shapes", "imagefolder", "datasets", "torchvision"] = "shapes"
    """Where images come from: built-in shapes, split folders, Parquet/Arrow/hub data sets, torchvision."""
    root: str = ""
    """Folder, file, URI of Parquet or hub id of the data; for torchvision the folder that holds or receives the set."""
    name: str = ""
    """torchvision: the data set's class name, such as CIFAR10; datasets: the configuration, if it has several."""
    train_split: str = "train"
    """Name of the training split."""
    val_split: str = "test"
    """Name of the validation split."""
    val_share: float = 0.0
    """Share of the training images to validate on in place of val_split, stratified, for selection; 0 is val_split."""
    group_column: str = ""
    """Column (or metadata.jsonl key) shared by images of one thing, which val_share keeps together; empty is none."""
    image_column: str = "image"
    """datasets: column of the image."""
    label_column: str = "label"
    """Column (or metadata.jsonl key) of the label; folders without it take the sub-folder's name."""
    caption_column: str = "caption"
    """Column (or metadata.jsonl key) of the caption; not needed where text.captions or text.embeddings is given."""
    id_column: str = ""
    """datasets: column of the image id; empty takes the row number."""
    image_size: int = 32
    """Height and width of the model's input, in pixels."""
    crop_pct: float = 1.0
    """Validation: centre crop's share of the resized image's side."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means that are subtracted, on the 0-1 scale."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations that are divided by, on the 0-1 scale."""
    augment: Literal["none", "crop_flip", "crop", "three_augment", "deit"] = "crop_flip"
    """Augmentation: crop is a padded random crop, flip is horizontal; three_augment and deit as in the papers."""
    color_jitter: float = 0.3
    """three_augment: strength of the colour jitter."""
    mixup: float = 0.0
    """Beta parameter of mixup; 0 is off."""
    cutmix: float = 0.0
    """Beta parameter of cutmix; 0 is off."""
    repeats: int = 1
    """Repeated augmentation: copies of an image in a batch, each augmented on its own; an epoch keeps its length."""
    subset: float = 1.0
    """Share of training images that are kept, alike in each class, fixed by image id and train.seed."""
    label_noise: float = 0.0
    """Share of training images whose label is replaced by another class, fixed by image id and train.seed."""
    unlabelled: float = 0.0
    """Share of training images whose label is not used, only text or teacher; the rest is at least half of a batch."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable image: stop and name it, or leave it out and count it."""
    cache_gb: float = 1.0
    """Decoded images of a split stay in memory when they fit in this many GiB (augment none, crop, crop_flip)."""
    num_loaders: int = 4
    """Loader processes per worker; splits held in memory need none."""
    shapes: ShapesConfig = ShapesConfig()


@dataclass(frozen=True)
class TextConfig:
    """The language teacher."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    weight: float = 0.5
    """Lambda in lambda * w * L_text + (1 - lambda) * L_cls; 0 is the baseline and needs no captions."""
    schedule: str = "const"
    """How lambda moves over epochs: const, lin, cos, fullcos, shiftcos, cntrcos or jump-A-B-R."""
    # fmt: off
    loss: Literal[
        "clip", "normclip", "infonce", "cos", "lncos", "l2", "kl", "dist", "siglip",
        "clip_learned", "vl2litetext", "vl2lite", "borlan",
    ] = "clip"
    # fmt: on
    """Alignment loss between the text head's output and the embedding; vl2lite needs text and a teacher."""
    temperature: float = 0.0
    """What contrastive losses divide similarities by, or start to where they learn it; 0 is the loss's own."""
    balance: bool = True
    """Scale the text loss by w, the ratio of the two losses' gradient norms at the feature; False sets w = 1."""
    negatives: Literal["global", "local"] = "global"
    """Contrastive losses compare with the whole batch, or with the worker's own part of it."""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Frozen text encoder: Hugging Face id or local folder; CLIP's projected output with +projection behind it."""
    captions: str = ""
    """Caption table (Parquet, CSV, TSV, JSONL); empty takes the data source's own captions."""
    embeddings: str = ""
    """Embedding store, in place of captions; empty embeds the captions, once, into <run.storage>/embeddings."""
    max_missing: float = 0.0
    """Largest share of training images without an embedding that is accepted; they are left out."""
    normalize_mean: bool = True
    """Subtract the store's mean from embeddings."""
    normalize_std: Literal["none", "mean", "full"] = "none"
    """Divide embeddings by nothing, by the average standard deviation, or by each dimension's own."""
    on_device: bool = False
    """Hold the embeddings on the worker's device, where they must fit: 2.7 GB for ImageNet at D = 1024."""
    control: Literal["none", "shuffle", "random_class"] = "none"
    """Control experiments: captions shuffled among images, or one random vector per (true) class."""


@dataclass(frozen=True)
class TeacherConfig:
    """An online vision teacher in the place of the language teacher; text.weight, schedule and balance are its too."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: str = ""
    """timm:NAME, hf:ID (CLIP's projected output with +projection behind it), or a run or export folder; empty: none."""
    target: Literal["embedding", "logits"] = "embedding"
    """What is learned: its embedding, by text.loss; or its logits as soft labels, plainly with text.balance False."""
    temperature: float = 4.0
    """logits: what both sides' logits are divided by."""
    image_size: int = 0
    """Height and width of the teacher's input, in pixels; 0 is its own."""


@dataclass(frozen=True)
class HeadConfig:
    """The text head: the projection that is thrown away after training."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: Literal["linear", "mlp"] = "linear"
    """One linear layer, or an MLP with GELU."""
    hidden_dim: int = 512
    """mlp: width of the hidden layers."""
    depth: int = 2
    """mlp: number of linear layers."""
    out_dim: int = 0
    """Size of the target: 0 is the embedding's own; less reduces the embeddings by a PCA fitted on the store."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: any timm image classifier."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = "vit_tiny_patch16_224"
    """timm model name."""
    kwargs: dict[str, Annotated[Kwarg, Field(union_mode="left_to_right")]] = field(default_factory=dict)
    """Further arguments of timm.create_model: key value pairs, such as embed_dim 96 depth 4."""
    drop_path: float = 0.0
    """Stochastic depth rate."""
    drop: float = 0.0
    """Dropout rate before the classifier."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning rate."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = "adamw"
    """timm optimiser name: adamw, lamb, sgd, lion, ..."""
    lr: float = 1e-3
    """Peak learning rate, for the whole batch (not scaled)."""
    min_lr: float = 1e-5
    """Learning rate that the cosine ends at."""
    warmup_lr: float = 1e-6
    """Learning rate that the warm-up starts from."""
    warmup_epochs: float = 1.0
    """Length of the linear warm-up, in epochs."""
    weight_decay: float = 0.05
    """Weight decay; biases and norms have none."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the backbone to the one before it, for fine-tuning; 1 is off."""
    eps: float = 1e-8
    """The optimiser's eps; also the eps of the balance w."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 is no clipping."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    epochs: int = 20
    """Number of epochs."""
    batch_size: int = 64
    """Images per step, over all workers."""
    max_batch_per_worker: int = 0
    """Images that a worker holds; a larger share runs in parts, each with dropout of its own; 0 is no limit."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and mixing."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision of the model."""
    compile: bool = False
    """torch.compile the backbone."""
    channels_last: bool = False
    """Channels-last memory format, for convolutions on GPUs."""
    ema: float = 0.0
    """Decay of the exponential moving average of weights, which is then validated and exported; 0 is off."""
    eval_every: int = 1
    """Epochs between validations; the last epoch is always validated."""


@dataclass(frozen=True)
class RunConfig:
    """Where and on what to run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = ""
    """Run's name, its folder below storage; empty takes the recipe's name."""
    storage: str = "runs"
    """Folder of runs that all nodes see, or a URI of pyarrow.fs (s3://, gs://)."""
    num_workers: int | str = 1
    """Ray Train workers, one process (and one GPU) each; MIN:MAX for as many as the cluster has at the time."""
    use_gpu: bool = False
    """One GPU per worker."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the model: each holds all of it, or (FSDP2) a part, for models that do not fit on one GPU."""
    cpus_per_worker: int = 0
    """CPUs per worker; 0 shares all CPUs of the cluster among CPU workers, and asks for 1 beside a GPU."""
    max_failures: int = 3
    """Worker failures after which the run gives up, -1 for never; each restarts from the last checkpoint."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 is one per epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest ones; 0 keeps all."""
    log_every: int = 20
    """Steps between writes of metrics and progress."""
    resize_every: float = 60.0
    """Seconds between looks for nodes that have joined, when num_workers is MIN:MAX."""
    async_validation: bool = False
    """Validate in a Ray task beside the training, on a CPU or GPU that the workers leave free; the last one is not."""
    accept_changed_data: bool = False
    """On resume: train on, although images, labels, classes or text have changed; the summary says what did."""
    overwrite: bool = False
    """Delete a run of this name and start anew."""


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    teacher: TeacherConfig = TeacherConfig()
    head: HeadConfig = HeadConfig()
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        """Raises UserError, naming the path, for values that no run could use."""
        check_config(self)

    @property
    def workers(self) -> tuple[int, int]:
        """The fewest and the most workers; raises UserError when run.num_workers is neither N nor MIN:MAX."""
        return workers_range(self.run.num_workers)

    @property
    def run_dir(self) -> Path:
        """The run folder on this machine, absolute: workers start in another folder."""
        return local_root(self.run.storage) / self.run.name

    @property
    def storage_place(self) -> str:
        """Where runs live, for other processes: the absolute folder, or the URI."""
        return self.run.storage if is_uri(self.run.storage) else str(local_root(self.run.storage))

    @property
    def run_place(self) -> str:
        """Where users find the run: its folder, or its URI."""
        if not is_uri(self.run.storage):
            return str(self.run_dir)
        base, mark, query = self.run.storage.partition("?")
        return f"{base.rstrip('/')}/{self.run.name}{mark}{query}"

    @property
    def teaches(self) -> bool:
        """Whether a text or teacher loss takes part at all."""
        return self.text.weight > 0

    @property
    def reads_text(self) -> bool:
        """Whether captions or their embeddings are needed."""
        return self.teaches and (not self.teacher.model or self.text.loss == "vl2lite")

    @property
    def has_text_head(self) -> bool:
        """Whether there is a projection: logits are distilled without one."""
        return self.teaches and not (self.teacher.model and self.teacher.target == "logits")

    def get(self, path: str) -> Any:
        """The value at a dotted path."""
        return reduce(getattr, path.split("."), self)

    def override(self, path: str, value: Any) -> Self:
        """A new tree with `value` at the dotted `path`; raises UserError on an unknown path or a bad value."""
        tree = self.to_dict()
        if path not in self.paths():
            raise UserError(f"no field {path}; {nearest(path, self.paths())}")
        *groups, name = path.split(".")
        node = tree
        for group in groups:
            node = node[group]
        node[name] = value
        return self.from_dict(tree)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars."""
        return _adapter(type(self)).dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "") -> Self:
        """Reads plain dictionaries; raises UserError on unknown keys and bad values, naming path and `where`."""
        try:
            return _adapter(cls).validate_python(tree)
        except ValidationError as error:
            raise UserError(first_problem(cls, error, where)) from None

    def to_yaml(self, path: Path) -> None:
        """Writes the whole tree."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Reads a YAML file; fields that it leaves out have their defaults."""
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(tree, dict):
            groups = ", ".join(item.name for item in fields(cls))
            raise UserError(f"{path} must hold a mapping with keys such as {groups}")
        return cls.from_dict(tree, where=f"{path}: ")

    @classmethod
    def paths(cls) -> list[str]:
        """All dotted paths, in the order of the tree."""
        return list(_walk(cls()))


@cache
def _adapter(cls: type[Config]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _walk(node: Any, prefix: str = "") -> list[str]:
    paths: list[str] = []
    for item in fields(node):
        value = getattr(node, item.name)
        paths += _walk(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return paths
