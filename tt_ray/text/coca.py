"""CoCa of open_clip as a captioner (arXiv 2205.01917): the paper's own, coca_ViT-L-14 fine-tuned on MSCOCO.

open_clip writes captions by functions that transformers 5 no longer has, hence a search of our own. There, 6 beams are
3 groups of 2 without a penalty for being alike: three times the same 2 beams, which is the default here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder_files import revision_of
from tt_ray.text.open_clip_model import PREFIX, find_open_clip, load_open_clip

_BEAMS, _LENGTH, _LEAST = 2, 30, 5
"""As TextTeacher's code calls it: tokens of a caption with the mark of its beginning, at most and at least."""
Step = Callable[[Tensor], Tensor]
"""From tokens (N, T) to log-probabilities of the next one, (N, V); rows are those of the images, each `beams` times."""


class CocaCaptioner:
    """A frozen CoCa; `options` are a `CaptionerOptions`."""

    def __init__(self, options: Any, revision: str, model: Any, transform: Any, tokenizer: Any) -> None:
        self.options, self.revision = options, revision
        self._model, self._transform, self._tokenizer = model, transform, tokenizer

    def caption(self, images: Sequence[Image.Image], seed: int = 0) -> list[str]:
        """A caption for each RGB image, without line breaks; empty where the model wrote nothing.

        `seed` matters only above temperature 0.
        """
        weight = next(self._model.parameters())
        pixels = torch.stack([self._transform(image) for image in images]).to(weight.device, weight.dtype)
        beams = 1 if self.options.temperature else self.options.beams or _BEAMS
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        length = min(self.options.max_tokens or _LENGTH, self._model.context_length)
        with torch.inference_mode():
            latent, tokens = self._model.visual(pixels)
            latent, tokens = (each.repeat_interleave(beams, 0) for each in (latent, tokens))

            def step(text: Tensor) -> Tensor:
                outputs = self._model(None, text, latent, tokens, output_labels=False)
                logits = outputs["logits"][:, -1].float()
                logits[:, start] = -torch.inf
                if text.shape[1] < _LEAST:
                    logits[:, end] = -torch.inf
                return logits.log_softmax(1)

            first = torch.full((len(images) * beams, 1), start, device=weight.device)
            if self.options.temperature:
                torch.manual_seed(seed)
                written = _drawn(step, first, end, length, self.options.temperature)
            else:
                written = _likeliest(step, first, end, length, beams)
        return [self._text(row) for row in written.tolist()]

    def _text(self, tokens: list[int]) -> str:
        end = self._tokenizer.eot_token_id
        words = tokens[1 : tokens.index(end) if end in tokens else None]
        return " ".join(self._tokenizer.decode(words).split())


def load_coca(options: Any, device: str = "cpu") -> CocaCaptioner:
    """Loads the CoCa that `options.model` names; float32 on CPUs, bfloat16 on GPUs.

    Raises UserError when it cannot be found, read, or used as a captioner.
    """
    what = f"captioner {options.model}"
    folder = find_open_clip(options.model.removeprefix(PREFIX), what)
    model, prepared = load_open_clip(folder, what)
    if not hasattr(model, "text_decoder"):
        raise UserError(f"{what}: {folder} is no CoCa, and writes no captions: choose one, or a model of transformers")
    import open_clip
    from open_clip.transform import image_transform_v2

    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    kind = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    transform = image_transform_v2(prepared, is_train=False)
    return CocaCaptioner(options, revision_of(folder), model.to(device, kind), transform, tokenizer)


def _likeliest(step: Step, tokens: Tensor, end: int, length: int, beams: int) -> Tensor:
    """Beam search: the ending of each image's beams (N x beams, 1) with the highest mean log-probability, (N, T)."""
    images = len(tokens) // beams
    # At first all beams are the same: only one of each image's has children.
    scores = torch.full((images, beams), -torch.inf, device=tokens.device)
    scores[:, 0] = 0
    lengths, rows = torch.ones_like(scores), torch.arange(images, device=tokens.device)[:, None] * beams
    done = torch.zeros(images, beams, dtype=torch.bool, device=tokens.device)
    while tokens.shape[1] < length and not done.all():
        following = step(tokens).reshape(images, beams, -1)
        # A caption that has ended has one child: itself, one end mark longer.
        following.masked_fill_(done[..., None], -torch.inf)
        following[..., end].masked_fill_(done, 0)
        scores, chosen = (scores[..., None] + following).flatten(1).topk(beams, dim=1)
        parents, words = chosen // following.shape[-1], chosen % following.shape[-1]
        tokens = torch.cat([tokens[(rows + parents).flatten()], words.reshape(-1, 1)], 1)
        done, lengths = done.gather(1, parents), lengths.gather(1, parents)
        lengths = lengths + ~done
        done = done | (words == end)
    best = (scores / lengths).argmax(1, keepdim=True)
    return tokens[(rows + best).flatten()]


def _drawn(step: Step, tokens: Tensor, end: int, length: int, temperature: float) -> Tensor:
    """Words drawn at random, (N, T)."""
    while tokens.shape[1] < length and not (tokens == end).any(1).all():
        following = torch.multinomial((step(tokens) / temperature).softmax(1), 1)
        tokens = torch.cat([tokens, following], 1)
    return tokens
