"""The sections of a configuration: each field with its default, its bounds and what it does."""

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, Strict

STRICT = ConfigDict(extra="forbid")
# Strict, so that 1 stays 1 and true stays true; the lax float reads 1e-4, which YAML 1.1 takes for a string.
Kwarg = Annotated[bool, Strict()] | Annotated[int, Strict()] | float | str | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of a number."""

    low: float
    high: float = inf


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in captioned shapes (`data.source shapes`)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    train_size: Annotated[int, Range(1)] = 8192
    """Number of training images."""
    val_size: Annotated[int, Range(1)] = 2048
    """Number of validation images."""
    label: Literal["shape", "colour", "count", "relation", "background"] = "shape"
    """The attribute that is the label."""
    caption: Literal["full", "brief", "class"] = "brief"
    """Content of captions: every attribute, the main object's shape and one more attribute, or the shape alone."""
    seed: int = 0
    """Seed of the images; an image is a function of (seed, index)."""


@dataclass(frozen=True)
class DataConfig:
    """Images and labels."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    source: str = "shapes"
    """Where images come from: shapes or clipart (built in), imagefolder (split folders), datasets (Parquet, Arrow,
    hub), torchvision, webdataset (tar shards), or MODULE:NAME of a DataSource of your own."""
    root: str = ""
    """Folder, file, URI of Parquet or hub id of the data; torchvision: the folder that holds or receives the set;
    webdataset: folder, URI or pattern of shards, such as s3://bucket/train-{000000..001023}.tar."""
    index: str = ""
    """webdataset: file, folder or URI of the index; empty takes index.parquet next to the shards."""
    name: str = ""
    """torchvision: the data set's class name, such as CIFAR10; datasets: the configuration, if it has several."""
    train_split: str = "train"
    """Name of the training split."""
    val_split: str = "test"
    """Name of the validation split."""
    val_share: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of training images, stratified, to validate on instead of val_split, for selection; 0 takes val_split."""
    group_column: str = ""
    """Column (or metadata.jsonl key) of each image's group, such as photos of one thing; val_share keeps it whole.
    webdataset and clipart have it under the name group."""
    image_column: str = "image"
    """datasets: column of the image."""
    label_column: str = "label"
    """Column (or metadata.jsonl key) of the label; folders without it take the sub-folder's name."""
    labels: str = ""
    """Table (Parquet, CSV, TSV, JSONL) of image_id and label, the class's name: replaces labels of training images, and
    leaves out those whose label is empty. Validation labels stay. The audit writes such tables."""
    caption_column: str = "caption"
    """Column (or metadata.jsonl key) of the caption; not needed with text.captions or text.embeddings."""
    id_column: str = ""
    """datasets: column of the image id; empty takes the row number."""
    image_size: Annotated[int, Range(1)] = 32
    """Height and width of the model's input, in pixels."""
    crop_pct: Annotated[float, Range(0.001, 1)] = 1.0
    """Validation: centre crop's share of the resized image's side."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means to subtract, on the 0-1 scale."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations to divide by, on the 0-1 scale."""
    augment: Literal["none", "crop_flip", "crop", "three_augment", "deit"] = "crop_flip"
    """Augmentation: crop is a padded random crop, flip is horizontal; three_augment and deit as in the papers."""
    augment_on: Literal["auto", "loader", "device"] = "auto"
    """Where three_augment and deit do what follows cutting and resizing: in loader processes, on the worker's device,
    or (auto) on a GPU where it is one. Both agree within two grey levels in each operation."""
    decoder: Literal["auto", "pillow"] = "auto"
    """three_augment, deit and their validation: auto decodes JPEGs at the scale that is needed and resizes them with
    vector instructions, within two grey levels of Pillow where it decodes the whole, and has OpenCV do three_augment;
    pillow has Pillow do it all."""
    color_jitter: float = 0.3
    """Strength of three_augment's colour jitter; 0 where captions or labels name colours, which it would falsify."""
    mixup: Annotated[float, Range(0)] = 0.0
    """Beta parameter of mixup; 0 is off."""
    cutmix: Annotated[float, Range(0)] = 0.0
    """Beta parameter of cutmix; 0 is off."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Order of an epoch: every image once, or (balanced) every class equally often, images of small classes repeatedly;
    an epoch keeps its length."""
    repeats: Annotated[int, Range(1)] = 1
    """Repeated augmentation: copies of an image in a batch, each augmented on its own; an epoch keeps its length."""
    subset: Annotated[float, Range(0.001, 1)] = 1.0
    """Share of training images to keep, the same in each class, fixed by image id and train.seed."""
    label_noise: Annotated[float, Range(0, 1)] = 0.0
    """Share of training images that get the label of another class, fixed by image id and train.seed."""
    label_noise_kind: Literal["symmetric", "pair"] = "symmetric"
    """label_noise: the other class is any, each as likely; or (pair) always the next one."""
    unlabelled: Annotated[float, Range(0, 0.999)] = 0.0
    """Share of training images used without label, for text or teacher only; the rest is at least half of a batch."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Unreadable image: stop and name it, or leave it out and count it."""
    local_cache: str = ""
    """Folder of copies of shards and embeddings that lie in object storage, on a disk of each node; empty takes
    tt-ray/data in the user's cache (~/.cache)."""
    cache_gb: Annotated[float, Range(0)] = 1.0
    """Decoded images of a split stay in memory if they fit in this many GiB (augment none, crop, crop_flip)."""
    num_loaders: Annotated[int, Range(0)] = 0
    """Loader processes per worker; 0 takes the worker's CPUs less one. A split held in memory needs none."""
    shapes: ShapesConfig = ShapesConfig()


@dataclass(frozen=True)
class TextConfig:
    """The language teacher."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    weight: Annotated[float, Range(0, 1)] = 0.5
    """Lambda in lambda * w * L_text + (1 - lambda) * L_cls; 0 is the baseline and needs no captions."""
    schedule: str = "const"
    """How lambda changes over epochs: const, lin, cos, fullcos, shiftcos, cntrcos, jump-A-B-R, or vl2, which does not
    look at text.weight (but for 0)."""
    loss: str = "clip"
    """Alignment loss: clip, siglip, cos, l2 or another of tt_ray/losses.py, or MODULE:NAME of one of your own."""
    temperature: Annotated[float, Range(0)] = 0.0
    """Temperature of contrastive losses, or its initial value where they learn it; 0 is the loss's own."""
    balance: bool = True
    """Scale the text loss by w, the ratio of the two losses' gradient norms at the feature; False sets w = 1."""
    scope: Literal["global", "worker"] = "global"
    """What the negatives, the balance w, and mixing's coefficient and box are of: the whole batch, so that the number
    of workers does not matter; or each worker's own part, as where processes know nothing of one another. Mixing
    follows it without text too."""
    negatives: Literal["auto", "global", "local"] = "auto"
    """Negatives of contrastive losses, if not as text.scope says (auto): the whole batch (global), of which each worker
    computes its own images' rows; or the worker's own part of it alone (local)."""
    loss_precision: Literal["fp32", "autocast"] = "fp32"
    """Precision of the alignment loss: single, or train.precision's, which rounds similarities."""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Frozen text encoder: Hugging Face id or local folder; CLIP's projected output with +projection after it."""
    captions: str = ""
    """Caption table (Parquet, CSV, TSV, JSONL); empty takes the data source's own captions."""
    embeddings: str = ""
    """Embedding store, instead of captions; empty embeds the captions, once, into <run.storage>/embeddings."""
    max_missing: Annotated[float, Range(0, 1)] = 0.0
    """Largest accepted share of training images without an embedding; these images are left out. Above 0 where captions
    are made by a model that skips images it cannot read, and a few missing ones are no mistake."""
    normalize_mean: bool = True
    """Subtract the store's mean from embeddings."""
    normalize_std: Literal["none", "mean", "full"] = "none"
    """Divide embeddings by nothing, by the average standard deviation, or by each dimension's own."""
    on_device: bool = False
    """Hold the embeddings in the memory of the worker's device: 2.7 GB for ImageNet at D = 1024. Workers then look up
    one another's targets instead of exchanging them."""
    class_embeddings: str = ""
    """borlan: embedding store of texts about the classes, with ids CLASS or CLASS/ANYTHING, whose mean and variance
    classes have; empty takes the embeddings of the classes' images."""
    class_variance: Literal["population", "sample"] = "population"
    """borlan: variances of a class's n embeddings, divided by n, or (sample) by n - 1."""
    mixed_class: Literal["shares", "argmax"] = "shares"
    """borlan: the class of an image mixed of two in the term that is added: both by their shares, or the larger."""
    control: Literal["none", "shuffle", "random_class"] = "none"
    """Control experiment: captions shuffled among images, or one random vector per (true) class."""

    @property
    def local_negatives(self) -> bool:
        """Whether a worker's contrastive losses see its own images alone."""
        return self.negatives == "local" or (self.negatives == "auto" and self.scope == "worker")


@dataclass(frozen=True)
class TeacherConfig:
    """An online vision teacher instead of the language teacher; text.weight, schedule and balance apply to it too."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: str = ""
    """timm:NAME, hf:ID (CLIP's projected output with +projection after it), open_clip:ARCHITECTURE/WEIGHTS (or its
    folder), or a run or export folder; empty: none."""
    target: Literal["embedding", "logits"] = "embedding"
    """Target from the teacher: its embedding, by text.loss, or its logits (plain distillation: text.balance False)."""
    temperature: Annotated[float, Range(0.001)] = 4.0
    """logits: temperature that divides both sides' logits."""
    image_size: Annotated[int, Range(0)] = 0
    """Height and width of the teacher's input, in pixels; 0 is the teacher's default."""


@dataclass(frozen=True)
class HeadConfig:
    """The text head: the projection that is discarded after training."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["linear", "mlp"] = "linear"
    """One linear layer, or an MLP with GELU."""
    hidden_dim: Annotated[int, Range(1)] = 512
    """mlp: width of the hidden layers."""
    depth: Annotated[int, Range(1)] = 2
    """mlp: number of linear layers."""
    out_dim: Annotated[int, Range(0)] = 0
    """Size of the target: 0 is the embedding's own; a smaller one reduces embeddings by a PCA fitted on the store."""
    freeze: bool = False
    """Keep the projection as it was initialised; what the loss itself learns, such as a temperature, is learned."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: any timm image classifier."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = "vit_tiny_patch16_224"
    """timm model name."""
    kwargs: dict[str, Annotated[Kwarg, Field(union_mode="left_to_right")]] = field(default_factory=dict)
    """Further arguments of timm.create_model: key value pairs, such as embed_dim 96 depth 4."""
    drop_path: Annotated[float, Range(0, 0.999)] = 0.0
    """Stochastic depth rate."""
    drop: Annotated[float, Range(0, 0.999)] = 0.0
    """Dropout rate before the classifier."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning rate."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = "adamw"
    """timm optimiser name: adamw, lamb, sgd, lion, ..."""
    lr: Annotated[float, Range(0)] = 1e-3
    """Peak learning rate, for the whole batch (not scaled)."""
    min_lr: Annotated[float, Range(0)] = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_lr: Annotated[float, Range(0)] = 1e-6
    """Learning rate at the start of the warm-up."""
    warmup_epochs: Annotated[float, Range(0)] = 1.0
    """Length of the linear warm-up, in epochs."""
    schedule_per: Literal["step", "epoch"] = "step"
    """When the rate changes: at each step; or at each epoch, late by one, as where a schedule is stepped after an epoch
    with that epoch's number: epochs 0 and 1 have warmup_lr, and epoch e > 1 what belongs to e - 1."""
    weight_decay: Annotated[float, Range(0)] = 0.05
    """Weight decay; biases and norms have none."""
    layer_decay: Annotated[float, Range(0.001, 1)] = 1.0
    """Factor of the learning rate from each layer of the backbone to the one before it, for fine-tuning; 1 is off."""
    eps: Annotated[float, Range(0)] = 1e-8
    """Epsilon of the optimiser and of the balance w."""
    grad_clip: Annotated[float, Range(0)] = 1.0
    """Largest gradient norm; 0 is no clipping."""
    label_smoothing: Annotated[float, Range(0, 0.999)] = 0.1
    """Label smoothing of the cross-entropy."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of classes in the cross-entropy: all 1; or N / (C n_c) for a class of n_c of the N training images, so
    that each of the C classes counts as much as any other. Not with data.sampling balanced, which does so too."""
    small_loss: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of a step's images, those of the largest cross-entropy, that the classification loss leaves out, such as
    the share of wrong labels; it grows from 0 in the first tenth of the training. 0 is off."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    epochs: Annotated[int, Range(1)] = 20
    """Number of epochs."""
    batch_size: Annotated[int, Range(1)] = 64
    """Images per step, over all workers."""
    max_batch_per_worker: Annotated[int, Range(0)] = 0
    """Images that a worker processes at once; a larger share runs in parts, with their own dropout and batch norm; 0 is
    no limit. A part runs twice where the loss compares images or is balanced, and once otherwise."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and mixing."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision of the model; auto is bf16 on a GPU that has it (Ampere and later), and else fp32."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which workers exchange gradients; bf16 is half of the bytes."""
    compile: bool = False
    """torch.compile the backbone."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"] = "default"
    """compile: torch.compile's mode; reduce-overhead and max-autotune replay CUDA graphs, for small batches on GPUs."""
    activation_checkpointing: bool = False
    """Compute activations of the backbone's blocks again in the backward pass, by timm, instead of keeping them: the
    same gradients in less memory. Running statistics of batch norm see each image twice."""
    sync_batchnorm: bool = False
    """Batch norm by the statistics of all workers' images, so that the result does not depend on their number; of each
    part by itself, where a share runs in parts."""
    channels_last: bool = False
    """Channels-last memory format, for convolutional models (resnet50, convnext) on GPUs with mixed precision."""
    ema: Annotated[float, Range(0, 0.999999999)] = 0.0
    """Decay of an exponential moving average of weights, to validate and export instead of the weights; 0 is off."""
    eval_every: Annotated[int, Range(1)] = 1
    """Epochs between validations; the last epoch is always validated."""
    eval_batch_mean: bool = False
    """Report top1_batch_mean too: top-1 as a mean over workers and over their batches of batch_size / workers images,
    the last one smaller, images doubled until all workers have as many. It depends on both; top1 does not."""

    @property
    def replays_graphs(self) -> bool:
        """Whether the backbone's kernels are replayed as CUDA graphs."""
        return self.compile and self.compile_mode in ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class RunConfig:
    """Where and on what to run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = ""
    """Name of the run, and of its folder below storage; empty takes the recipe's name."""
    storage: str = "runs"
    """Folder of runs that all nodes see, or a URI of pyarrow.fs (s3://, gs://)."""
    num_workers: int | str = 1
    """Ray Train workers, one process (and one GPU) each; MIN:MAX takes as many as the cluster has at the time."""
    use_gpu: bool = False
    """One GPU per worker."""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """How workers share the model: each holds all of it (ddp) or, for models too large for one GPU, a part (FSDP2): of
    one copy among all workers (fsdp), or of one on each node (hsdp), where all nodes have as many workers."""
    cpus_per_worker: Annotated[int, Range(0)] = 0
    """CPUs per worker; 0 shares all CPUs of the cluster among CPU workers, and takes 1 next to a GPU."""
    max_failures: Annotated[int, Range(-1)] = 3
    """Worker failures after which the run ends, -1 for never; after each it resumes from the last checkpoint."""
    checkpoint_every: Annotated[int, Range(0)] = 0
    """Steps between checkpoints; 0 is one per epoch."""
    keep_checkpoints: Annotated[int, Range(0)] = 2
    """Number of newest checkpoints to keep; 0 keeps all."""
    log_every: Annotated[int, Range(1)] = 20
    """Steps between writes of metrics and progress."""
    logger: Literal["none", "wandb", "mlflow"] = "none"
    """Tracker that gets TensorBoard's scalars too; its own environment variables say where and as whom (WANDB_PROJECT,
    MLFLOW_TRACKING_URI, ...). A tracker that fails costs a warning."""
    resize_every: Annotated[float, Range(0.1)] = 60.0
    """Seconds between checks for nodes that have joined, with num_workers MIN:MAX; each resize restarts the workers, so
    choose longer where nodes come and go often."""
    async_validation: bool = False
    """Validate in a Ray task during training (but for the last time), on a CPU or GPU that workers leave free."""
    accept_changed_data: bool = False
    """On resume: continue although images, labels, classes or text have changed; the summary lists the changes."""
    overwrite: bool = False
    """Delete a run of this name and start again."""
