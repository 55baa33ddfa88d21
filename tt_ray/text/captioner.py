"""Frozen captioners: any Hugging Face image-to-text model that transformers loads without code from outside."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tt_ray.io.hub import find_model
from tt_ray.terminal.errors import UserError, first_line
from tt_ray.terminal.gpu import device_of
from tt_ray.text.encoder import check_vocabulary, quiet_transformers
from tt_ray.text.encoder_files import revision_of
from tt_ray.text.open_clip_model import PREFIX, find_open_clip

if TYPE_CHECKING:
    from tt_ray.text.coca import CocaCaptioner

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_ASK = "Describe the image in one sentence."
# What families are asked in, and the longest caption: their training's, or as TextTeacher's code asks them
# (arXiv 2605.22098). Others are asked in words.
_PROMPTS = {
    **dict.fromkeys(("blip", "blip-2", "git", "vision-encoder-decoder"), ""),
    "paligemma": "caption and describe in detail",
    **dict.fromkeys(("llava", "llava_next"), "Describe the images content in detail"),
}
_LENGTHS: dict[str, int] = {"paligemma": 128, "llava": 128, "llava_next": 128}
_LENGTH = 40
# Their processors put the image's place into the text themselves.
_PLACE_IMAGE = ("blip", "blip-2", "git")
# Their prompts and processors are unlike all others', and nobody has tried them here: captions might be silently poor.
_UNTRIED = ("florence2", "instructblip", "pix2struct")


@dataclass(frozen=True)
class CaptionerOptions:
    """The captioner, and how it writes."""

    model: str = ""
    """Captioner: a Hugging Face id or a local folder with safetensors weights; or a CoCa of open_clip:
    open_clip:ARCHITECTURE/WEIGHTS, such as coca_ViT-L-14/mscoco_finetuned_laion2B-s13B-b90k, or open_clip:FOLDER."""
    prompt: str = ""
    """Prompt of the captioner, never a part of the caption; empty takes its family's own."""
    max_tokens: int | None = None
    """Longest caption, in the captioner's tokens; None takes its family's: 128 of PaliGemma and LLaVA, 30 of CoCa, or
    40."""
    beams: int | None = None
    """Beams of the search for the likeliest caption, 1 is greedy; None takes 2 for CoCa, and 1 for others."""
    temperature: float = 0.0
    """0 writes the likeliest words; above it, words are drawn at random."""
    seed: int = 0
    """Seed of the random words; the same seed writes the same captions."""

    def check(self) -> None:
        """Raises UserError on settings that no captioner can use."""
        tokens, beams = self.max_tokens, self.beams
        if 0 in (tokens, beams) or min(tokens or 1, beams or 1, self.temperature) < 0:
            raise UserError(
                f"--max_tokens {tokens}, --beams {beams} and --temperature {self.temperature:g} must be at least 1, 1 "
                "and 0"
            )
        if self.prompt and self.model.startswith(PREFIX):
            raise UserError(f"captioner {self.model} takes no prompt: leave out --prompt")
        if (beams or 1) > 1 and self.temperature:
            raise UserError("choose either --beams or --temperature: a search draws nothing at random")


class Captioner:
    """A frozen captioner, as `load_captioner` returns it."""

    def __init__(self, options: CaptionerOptions, revision: str, model: Any, processor: Any, tokenizer: Any) -> None:
        self.options = options
        self.revision = revision
        """Commit hash on the hub, or 16 hex digits of a SHA-256 of weights, configuration and tokenizer."""
        self._model, self._processor, self._tokenizer = model, processor, tokenizer
        self._family: str = model.config.model_type
        self._prompt = options.prompt or _PROMPTS.get(self._family, _ASK)

    def caption(self, images: Sequence[Image.Image], seed: int = 0) -> list[str]:
        """A caption for each RGB image, without line breaks; empty where the model wrote nothing.

        `seed` matters only above temperature 0.
        """
        import torch

        inputs = self._inputs(list(images))
        hot = self.options.temperature > 0
        torch.manual_seed(seed)
        with torch.inference_mode(), quiet_transformers():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self.options.max_tokens or _LENGTHS.get(self._family, _LENGTH),
                num_beams=self.options.beams or 1,
                do_sample=hot,
                **({"temperature": self.options.temperature} if hot else {}),
            )
        written = self._tokenizer.batch_decode(_after(tokens, inputs.get("input_ids")), skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def _inputs(self, images: list[Image.Image]) -> dict[str, Any]:
        """Arguments of `generate` for a batch, on the model's device."""
        import torch

        with quiet_transformers():
            inputs = dict(self._encode(images))
        inputs.pop("labels", None)  # PaliGemma's processor makes them, for training
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                dtype = self._model.dtype if value.is_floating_point() else None
                inputs[name] = value.to(self._model.device, dtype)
        return inputs

    def _encode(self, images: list[Image.Image]) -> Any:
        """The processor's output for images and prompt."""
        import torch

        if getattr(self._processor, "chat_template", None):
            contents = ([{"type": "image", "image": image}, {"type": "text", "text": self._prompt}] for image in images)
            return self._processor.apply_chat_template(
                [[{"role": "user", "content": content}] for content in contents],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        if not self._prompt or self._family == "git":
            inputs = self._processor(images=images, return_tensors="pt")
            if self._prompt:
                # GIT continues after [CLS] and the prompt; the [SEP] of its tokenizer would end the caption.
                ids = self._tokenizer(self._prompt, add_special_tokens=False)["input_ids"]
                inputs["input_ids"] = torch.tensor([[self._tokenizer.cls_token_id, *ids]] * len(images))
            return inputs
        text, place = self._prompt, getattr(self._processor, "image_token", None)
        if isinstance(place, str) and place not in text and self._family not in _PLACE_IMAGE:
            text = place + text
        return self._processor(images=images, text=[text] * len(images), padding=True, return_tensors="pt")


def load_captioner(options: CaptionerOptions, device: str = "cpu") -> "Captioner | CocaCaptioner":
    """Loads a frozen captioner: safetensors weights only, no code from outside; float32 on CPUs, bfloat16 on GPUs.

    Raises UserError when it cannot be found, read, or used as a captioner, or the device cannot be used.
    """
    device_of(device)
    if options.model.startswith(PREFIX):
        from tt_ray.text.coca import load_coca  # imports torch

        return load_coca(options, device)
    folder = find_captioner(options.model)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"captioner {folder} has no *.safetensors weights (others are not read: they can hold code)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with quiet_transformers():
        try:
            model, processor, tokenizer = _load(folder, device)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot load captioner {options.model} from {folder}: {first_line(error)}") from None
    return Captioner(options, revision_of(folder), model, processor, tokenizer)


def find_captioner(name: str) -> Path:
    """Finds the folder of a captioner: a local one, the Hugging Face cache, or a hub download.

    Raises UserError when there is none.
    """
    if name.startswith(PREFIX):
        return find_open_clip(name.removeprefix(PREFIX), f"captioner {name}")
    return find_model(name, _HUB_FILES, f"captioner {name}", "a local folder as --model")


def _load(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """Model, processor and tokenizer."""
    import torch
    import transformers

    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(folder, **safe)
    if config.model_type in _UNTRIED:
        raise UserError(
            f"captioner {folder} is of type {config.model_type}, which has not been tried: choose a BLIP, BLIP-2, GIT "
            "or PaliGemma model, or one with a chat template"
        )
    model_class: Any = transformers.AutoModelForImageTextToText
    model, info = model_class.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16,
        **safe,
    )
    missing = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
    if missing:
        raise UserError(f"captioner {folder} lacks {len(missing)} weights of {config.model_type}, such as {missing[0]}")
    processor = transformers.AutoProcessor.from_pretrained(folder, **safe)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:  # encoder-decoders put together of two models have no processor of their own
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **safe)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
    places = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    check_vocabulary(f"captioner {folder}", tokenizer, getattr(model, "decoder", model), places)
    # Decoders continue at the right end, which must be the prompt's.
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False).to(device), processor, tokenizer


def _after(tokens: Any, prompt: Any) -> Any:
    """The tokens (B, T) after the prompt (B, P), where a model repeats it."""
    import torch

    if prompt is None:
        return tokens
    # BLIP leaves out the prompt's last token, which is its end mark.
    for length in (prompt.shape[1], prompt.shape[1] - 1):
        if 0 < length <= tokens.shape[1] and torch.equal(tokens[:, :length], prompt[:, :length]):
            return tokens[:, length:]
    return tokens
