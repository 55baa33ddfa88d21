"""CoCa: a random one writes what its own forward pass makes likeliest, in batches as alone; and is a teacher."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.text.test_captioner import IMAGES
from tt_ray.models.teacher import _open
from tt_ray.terminal.errors import UserError
from tt_ray.text.captioner import CaptionerOptions, load_captioner
from tt_ray.text.coca import _likeliest

open_clip = pytest.importorskip("open_clip")

_TEXT = {"context_length": 12, "vocab_size": 49408, "layers": 1, "heads": 2, "width": 16}
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        **{"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        **{"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    },
    "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**_TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
PREPARED = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CoCa whose captions depend on the image."""
    folder = tmp_path_factory.mktemp("coca")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPARED}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What attention brings, images above all, outweighs the word before.
            scale = 3.0 if "cross_attn" in name or "visual" in name else 0.4
            parameter.copy_(torch.randn(parameter.shape) * scale)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _options(folder: Path, **settings: Any) -> CaptionerOptions:
    return CaptionerOptions(f"open_clip:{folder}", **settings)


def _greedy(folder: Path, tokens: int) -> list[str]:
    """Word by word, from open_clip's own forward pass of one image at a time."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, tokenizer, written = model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}"), []
    for image in IMAGES:
        text = [tokenizer.sot_token_id]
        while len(text) < tokens and text[-1] != tokenizer.eot_token_id:
            with torch.no_grad():
                logits = model(transform(image)[None], torch.tensor([text]), output_labels=False)["logits"][0, -1]
            logits[tokenizer.sot_token_id] = -math.inf
            if len(text) < 5:
                logits[tokenizer.eot_token_id] = -math.inf
            text.append(int(logits.argmax()))
        written.append(" ".join(tokenizer.decode(text[1:]).replace("<end_of_text>", "").split()))
    return written


@pytest.mark.parametrize("tokens", [6, 9])
def test_a_caption_is_the_likeliest_word_after_word(folder: Path, tokens: int) -> None:
    captioner = load_captioner(_options(folder, beams=1, max_tokens=tokens))
    together = captioner.caption(IMAGES)
    assert together == _greedy(folder, tokens) and len(set(together)) > 1
    assert [captioner.caption([image])[0] for image in IMAGES] == together


def test_beams_find_likelier_captions_and_temperature_draws(folder: Path) -> None:
    wide = load_captioner(_options(folder, max_tokens=8))
    assert wide.caption(IMAGES) == [wide.caption([image])[0] for image in IMAGES]
    hot = load_captioner(_options(folder, max_tokens=8, temperature=3.0))
    assert hot.caption(IMAGES, 1) == hot.caption(IMAGES, 1) != hot.caption(IMAGES, 2)
    assert wide.revision == hot.revision and len(wide.revision) == 16


def _by_hand(step: Callable[[list[int]], list[float]], end: int, length: int, beams: int) -> list[int]:
    """Beam search of one image, with lists."""
    alive = [(0.0, [0], 1)]
    while len(alive[0][1]) < length and not all(text[-1] == end for _, text, _ in alive):
        children = []
        for score, text, size in alive:
            if text[-1] == end:
                children.append((score, [*text, end], size))
            else:
                children += [(score + each, [*text, word], size + 1) for word, each in enumerate(step(text))]
        alive = sorted(children, key=lambda child: -child[0])[:beams]
    return max(alive, key=lambda child: child[0] / child[2])[1]


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_search_is_that_of_each_image_by_itself(beams: int, seed: int) -> None:
    words, images, length, end = 5, 3, 6, 4
    tables = torch.randn(images, words, words, generator=torch.Generator().manual_seed(seed)).log_softmax(2)

    def step(tokens: Tensor) -> Tensor:
        image = torch.arange(len(tokens)) // beams
        return tables[image, tokens[:, -1]].clone()

    found = _likeliest(step, torch.zeros(images * beams, 1, dtype=torch.long), end, length, beams)
    for image, tokens in enumerate(found.tolist()):
        expected = _by_hand(lambda text, table=tables[image]: table[text[-1]].tolist(), end, length, beams)
        width = min(len(tokens), len(expected))
        assert tokens[:width] == expected[:width] and set(tokens[width:]) <= {end}


def test_a_teacher_is_the_image_tower(folder: Path) -> None:
    teacher = _open(f"open_clip:{folder}", 0, logits=False)
    assert (teacher.size, tuple(teacher.mean), tuple(teacher.std)) == (16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher.forward(images), whole.encode_image(images))
    assert not any("text" in name for name, _ in teacher.module.named_parameters())
    with pytest.raises(UserError, match="takes images of 16 px alone"):
        _open(f"open_clip:{folder}", 32, logits=False)
    with pytest.raises(UserError, match="logits takes timm:NAME"):
        _open(f"open_clip:{folder}", 0, logits=True)


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="open_clip has no 'coca_ViT-L-14/nothing'.*did you mean coca_ViT-L-14/"):
        load_captioner(CaptionerOptions("open_clip:coca_ViT-L-14/nothing"))
    with pytest.raises(UserError, match="has no open_clip_config.json"):
        load_captioner(_options(tmp_path))
    with pytest.raises(UserError, match="takes no prompt"):
        _options(folder, prompt="a photo of").check()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    lost = weights.popitem()[0]
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=f"cannot load {tmp_path}.*{lost}" if "." in lost else "cannot load"):
        load_captioner(_options(tmp_path))
