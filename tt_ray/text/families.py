"""Particulars of families of text encoders: one row each, by the model_type of their config.json.

A family of transformers without a row is loaded by AutoModel and pooled by `last` where tokens see only those before
them (the last one alone has then seen the whole caption), else by `mean`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How a family is loaded and pooled where its folder does not say."""

    model_class: str = "AutoModel"
    """Class of transformers that loads it."""
    pooling: str = ""
    """A row of `tt_ray.text.pooling.POOLINGS`, unless a modules.json names another; empty follows from the mask."""
    projection_class: str = ""
    """Class that projects the pooled state as well, for names that end in +projection; empty where there is none."""
    image_and_text: bool = False
    """The configuration is that of a pair of encoders, of which `model_class` takes the text side."""
    offset_positions: bool = False
    """Position ids start after the padding id, so that many positions are not usable."""
    packed: bool = False
    """It is known to call its linear layers, so that these can be packed: others look at the weights, as Mamba does."""
    bidirectional_of: str = ""
    """Decoder whose folder brings code to let every token see all others; transformers' own family that can do so."""


FAMILIES = {
    "bert": Family(pooling="cls", packed=True),
    "camembert": Family(offset_positions=True),
    "clip": Family("CLIPTextModel", "eos", "CLIPTextModelWithProjection", image_and_text=True, packed=True),
    "clip_text_model": Family("CLIPTextModel", "eos", "CLIPTextModelWithProjection", packed=True),
    "distilbert": Family(packed=True),
    "llama": Family(packed=True),
    "llama_bidirec": Family(bidirectional_of="llama"),
    "mpnet": Family(offset_positions=True, packed=True),
    "mt5": Family("MT5EncoderModel", "mean"),
    "qwen3": Family(packed=True),
    "roberta": Family(offset_positions=True, packed=True),
    "t5": Family("T5EncoderModel", "mean"),
    "umt5": Family("UMT5EncoderModel", "mean"),
    "xlm-roberta": Family(offset_positions=True, packed=True),
}
