"""Captioners: real processors and real generation on random models, equal to what transformers alone writes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tt_ray.terminal.errors import UserError
from tt_ray.text.captioner import CaptionerOptions, find_captioner, load_captioner

transformers = pytest.importorskip("transformers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "<image>",
    "a",
    "red",
    "dog",
    "cat",
    "runs",
    "sits",
    "user",
    "says",
    "bird",
]
SIZE = {"height": 16, "width": 16}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8, "projection_dim": 16}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
CHAT = (
    "{% for m in messages %}user {% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}"
)
CHAT += "{% endfor %}{% if add_generation_prompt %}says{% endif %}"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
IMAGES = [NOISE, *(Image.new("RGB", (30, 20 + len(colour)), colour) for colour in ("black", "white", "red", "blue"))]


def _tokenizer(image: bool = False) -> Any:
    """A word tokenizer; `image` makes its image mark known as such."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", "bos_token": "[CLS]"}
    names |= {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    names |= {"extra_special_tokens": {"image_token": "<image>"}} if image else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)


def _save(model: Any, processor: Any, folder: Path, seed: int) -> None:
    """Random weights; the seed is one with which what is written depends on the image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What attention brings, images above all, outweighs the word before.
            scale = 4.0 if "attention.output" in name else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name.endswith(("predictions.bias", "output.bias")) and parameter.shape == (len(WORDS),):
                parameter.zero_()[:5] = -30  # words, not marks
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def blip(folder: Path) -> None:
    text = TEXT | {"sep_token_id": 3, "max_position_embeddings": 32, "encoder_hidden_size": 16, "projection_dim": 16}
    config = transformers.BlipConfig(
        text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16
    )
    images = transformers.BlipImageProcessor(size=SIZE)
    _save(
        transformers.BlipForConditionalGeneration(config),
        transformers.BlipProcessor(images, _tokenizer()),
        folder,
        seed=5,
    )


def git(folder: Path) -> None:
    config = transformers.GitConfig(**TEXT, vision_config=VISION, max_position_embeddings=64)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    _save(transformers.GitForCausalLM(config), transformers.GitProcessor(images, _tokenizer()), folder, seed=5)


def llava(folder: Path) -> None:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE),
        _tokenizer(image=True),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    _save(transformers.LlavaForConditionalGeneration(config), processor, folder, seed=0)


def blip_2(folder: Path) -> None:
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=transformers.OPTConfig(**TEXT, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64),
        num_query_tokens=3,
        image_token_index=WORDS.index("<image>"),
    )
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size=SIZE), _tokenizer(), num_query_tokens=3
    )
    _save(transformers.Blip2ForConditionalGeneration(config), processor, folder, seed=0)


def paligemma(folder: Path) -> None:
    images = transformers.SiglipImageProcessor(size=SIZE)
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, _tokenizer(image=True))
    text = TEXT | {"vocab_size": len(processor.tokenizer), "head_dim": 8, "num_key_value_heads": 1}
    vision = {key: VISION[key] for key in VISION if key != "projection_dim"}
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**vision),
        image_token_index=WORDS.index("<image>"),
        projection_dim=16,
    )
    _save(transformers.PaliGemmaForConditionalGeneration(config), processor, folder, seed=0)


def two_models(folder: Path) -> None:
    """A vision encoder and a text decoder without a processor of their own."""
    sizes = {key: VISION[key] for key in VISION if key != "projection_dim"}
    decoder = transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**sizes), decoder
    )
    model = transformers.VisionEncoderDecoderModel(config)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.pad_token_id, settings.eos_token_id = 2, 0, 3
    _save(model, transformers.ViTImageProcessor(size=SIZE), folder, seed=0)
    _tokenizer().save_pretrained(folder)


def _plain(folder: Path, image: Image.Image, prompt: str) -> str:
    """A caption as transformers' own documentation makes one, image by image, without what was asked."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    family, tokenizer = model.config.model_type, processor.tokenizer
    if family == "llava":
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        chat = [{"role": "user", "content": content}]
        asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(chat, **asked)
    elif family == "git" and prompt:
        words = tokenizer(prompt, add_special_tokens=False).input_ids
        inputs = dict(processor(images=image, return_tensors="pt"))
        inputs["input_ids"] = torch.tensor([[tokenizer.cls_token_id, *words]])
    elif family == "paligemma":
        inputs = processor(images=image, text=f"<image>{prompt}", return_tensors="pt")
    else:
        inputs = processor(images=image, **({"text": prompt} if prompt else {}), return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    if family in ("llava", "paligemma"):
        return tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(prompt).strip()


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build: Callable[[Path], None] = request.param
    path = tmp_path_factory.mktemp(build.__name__)
    build(path)
    return path


FAMILIES = pytest.mark.parametrize(
    "folder", [blip, git, llava, blip_2, paligemma], indirect=True, ids=lambda build: build.__name__
)


# PaliGemma's processor makes a tensor an array in a way that numpy warns of.
ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@ARRAYS
@FAMILIES
@pytest.mark.parametrize("prompt", ["", "a red"])
def test_a_batch_is_captioned_as_transformers_captions_each_image(folder: Path, prompt: str) -> None:
    captioner = load_captioner(CaptionerOptions(str(folder), prompt, max_tokens=6))
    captions = captioner.caption(IMAGES)
    plain = [_plain(folder, image, prompt or captioner._prompt) for image in IMAGES]
    assert captions == plain
    assert all(captions) and (prompt or len(set(captions)) > 1)


@ARRAYS
@FAMILIES
def test_greedy_writing_is_repeatable_and_random_writing_by_seed(folder: Path) -> None:
    greedy = load_captioner(CaptionerOptions(str(folder), max_tokens=6))
    assert greedy.caption(IMAGES, seed=1) == greedy.caption(IMAGES, seed=2)
    hot = load_captioner(CaptionerOptions(str(folder), max_tokens=6, temperature=30.0))
    drawn = [hot.caption(IMAGES, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_encoder_and_a_decoder_put_together(tmp_path: Path) -> None:
    two_models(tmp_path)
    captioner = load_captioner(CaptionerOptions(str(tmp_path), max_tokens=6))
    model = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(IMAGES, return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixels, max_new_tokens=6, do_sample=False)
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path).batch_decode(tokens, skip_special_tokens=True)
    assert captioner.caption(IMAGES) == plain and all(plain)


def test_a_search_finds_captions_of_its_own(folder_of_llava: Path) -> None:
    options = CaptionerOptions(str(folder_of_llava), max_tokens=6)
    greedy = load_captioner(options).caption(IMAGES)
    search = load_captioner(replace(options, beams=4)).caption(IMAGES)
    assert len(search) == len(IMAGES) and search != greedy


@pytest.fixture(scope="module")
def folder_of_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    llava(path)
    return path


def test_loading_and_writing_is_quiet(folder_of_llava: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_captioner(CaptionerOptions(str(folder_of_llava), max_tokens=2)).caption(IMAGES)
    assert capfd.readouterr() == ("", "")


def _no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without(word: str) -> Callable[[Path], None]:
    """Leaves weights with a word in their names out of the file."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        kept = {name: weight for name, weight in weights.items() if word not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return change


def _code_from_outside(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of_my_own", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('code from outside was run')")


def _more_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"more{number}" for number in range(1000)])
    tokenizer.save_pretrained(folder)


def _no_captioner(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_safetensors, r"has no \*.safetensors weights"),
        (_without("vision"), r"lacks \d+ weights of llava, such as .*vision"),
        (_code_from_outside, "cannot load captioner"),
        (_no_captioner, "cannot load captioner"),
        (_more_tokens, r"tokenizer of \d+ tokens, with ids up to \d+, but a model of \d+ embedding rows"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load captioner"),
        (lambda folder: (folder / "processor_config.json").unlink(), "captioner"),
    ],
)
def test_what_is_no_captioner_is_refused(
    tmp_path: Path, folder_of_llava: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(folder_of_llava, tmp_path / "copy")
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_captioner(CaptionerOptions(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["florence2", "instructblip", "pix2struct"])
def test_families_that_nobody_has_tried_are_refused(tmp_path: Path, family: str) -> None:
    transformers.AutoConfig.for_model(family).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"is of type {family}, which has not been tried"):
        load_captioner(CaptionerOptions(str(tmp_path)))


@pytest.mark.parametrize("name", ["./none", "somebody/captioner"])
def test_a_captioner_that_cannot_be_had(name: str) -> None:
    with pytest.raises(UserError, match="no such folder|cannot be found .*local folder as --model"):
        find_captioner(name)


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": 0}, {"beams": 0}, {"temperature": -1.0}, {"beams": 2, "temperature": 1.0}],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    CaptionerOptions().check()
    with pytest.raises(UserError, match="--temperature"):
        CaptionerOptions(**options).check()


@ARRAYS
def test_families_are_asked_as_the_papers_code_asks_them(folder_of_llava: Path, tmp_path: Path) -> None:
    llava_ = load_captioner(CaptionerOptions(str(folder_of_llava)))
    paligemma(tmp_path)
    paligemma_ = load_captioner(CaptionerOptions(str(tmp_path)))
    found = {}
    for name, captioner in (("llava", llava_), ("paligemma", paligemma_)):
        given = dict[str, Any]()
        captioner._model.generate = lambda given=given, **kwargs: (given.update(kwargs), torch.zeros(1, 1).long())[1]
        captioner.caption(IMAGES[:1])
        found[name] = (captioner._prompt, given["max_new_tokens"], given["num_beams"])
    assert found == {
        "llava": ("Describe the images content in detail", 128, 1),
        "paligemma": ("caption and describe in detail", 128, 1),
    }
