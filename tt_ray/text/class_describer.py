"""Texts about classes, written by a frozen language model: any causal one of transformers, without outside code."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tt_ray.io.hub import find_model
from tt_ray.terminal.errors import UserError, first_line
from tt_ray.text.encoder import check_vocabulary, quiet_transformers
from tt_ray.text.encoder_files import revision_of

LABEL = "{label}"
"""The place of a class's name in prompts and templates."""
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class DescriberOptions:
    """The language model that writes texts about classes, and how."""

    model: str = ""
    """Captions without looking at images: a causal language model writes them from class names. A Hugging Face id or a
    local folder with safetensors weights."""
    prompt: str = "Describe in one sentence what a photo of a {label} shows."
    """What it is asked; the class name replaces {label}. Models with a chat template are asked as their users ask."""
    texts: int = 1
    """Texts about each class; its images get them in turn. Several need a temperature."""
    rows: Literal["image", "class"] = "image"
    """Rows of the table: one for each image; or the texts themselves, ids CLASS/NUMBER, for text.class_embeddings."""
    max_tokens: int = 60
    """Longest text, in the model's tokens."""
    temperature: float = 0.0
    """0 writes the likeliest words; above it, words are drawn at random."""
    seed: int = 0
    """Seed of the random words."""

    def check(self) -> None:
        """Raises UserError on settings that no language model can use."""
        if self.max_tokens < 1 or self.texts < 1 or self.temperature < 0:
            raise UserError(
                f"--llm.max_tokens {self.max_tokens}, --llm.texts {self.texts} and --llm.temperature "
                f"{self.temperature:g} must be at least 1, 1 and 0"
            )
        if self.texts > 1 and not self.temperature:
            raise UserError(f"--llm.texts {self.texts} would be the same text: set --llm.temperature, such as 0.8")
        if LABEL not in self.prompt:
            raise UserError(f"--llm.prompt {self.prompt!r} has no {LABEL}: all classes would get the same text")


class ClassDescriber:
    """A frozen language model, as `load_describer` returns it."""

    def __init__(self, options: DescriberOptions, revision: str, model: Any, tokenizer: Any) -> None:
        self.options = options
        self.revision = revision
        """Commit hash on the hub, or 16 hex digits of a SHA-256 of weights, configuration and tokenizer."""
        self._model, self._tokenizer = model, tokenizer

    def write(self, names: Sequence[str], seed: int = 0) -> list[str]:
        """A text about each name of a class, without line breaks; empty where the model wrote nothing.

        `seed` matters only above temperature 0.
        """
        import torch

        prompts = [self._asked(self.options.prompt.replace(LABEL, name)) for name in names]
        hot = self.options.temperature > 0
        torch.manual_seed(seed)
        with torch.inference_mode(), quiet_transformers():
            # Chat templates have put the marks of beginning and end already.
            marks = not self._tokenizer.chat_template
            inputs = self._tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=marks)
            inputs = {name: inputs[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self.options.max_tokens,
                do_sample=hot,
                pad_token_id=self._tokenizer.pad_token_id,
                **({"temperature": self.options.temperature} if hot else {}),
            )
        written = self._tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def _asked(self, prompt: str) -> str:
        if not self._tokenizer.chat_template:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def find_describer(name: str) -> Path:
    """Finds the folder of a language model: a local one, the Hugging Face cache, or a hub download.

    Raises UserError when there is none.
    """
    return find_model(name, _FILES, f"language model {name}", "a local folder as --llm.model")


def load_describer(options: DescriberOptions, device: str = "cpu") -> ClassDescriber:
    """Loads a frozen language model: safetensors weights only, no code from outside; bfloat16 on GPUs.

    Raises UserError when it cannot be found, read, or used to write.
    """
    import torch
    import transformers

    folder = find_describer(options.model)
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    model_class: Any = transformers.AutoModelForCausalLM
    with quiet_transformers():
        try:
            model, info = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16,
                **safe,
            )
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **safe)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise UserError(f"cannot load language model {options.model} from {folder}: {first_line(error)}") from None
    missing = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
    if missing:
        raise UserError(f"language model {folder} lacks {len(missing)} weights, such as {missing[0]}")
    check_vocabulary(f"language model {folder}", tokenizer, model)
    # Decoders continue at the right end, which must be the prompt's.
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"language model {folder} has a tokenizer without an end mark: choose another")
    return ClassDescriber(options, revision_of(folder), model.eval().requires_grad_(False).to(device), tokenizer)
