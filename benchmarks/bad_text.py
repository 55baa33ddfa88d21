"""Bad inputs that are text: caption tables, embedding stores, text encoders."""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bad_images import CLASSES, Make, images
from benchmarks.bad_input import Case
from benchmarks.bad_settings import REFUSED, TINY, both, refused, writes

TAUGHT = f"shapes_textteacher --data.source imagefolder --data.root images --text.embeddings store {TINY}"
CAPTIONED = "--data.source imagefolder --data.root images"
IDS = [f"{name}/{number}.png" for name in CLASSES for number in range(6)]


def store(folder: Path, ids: Sequence[str] = IDS) -> None:
    """An embedding store of random numbers, and the images."""
    import pyarrow as pa

    from tt_ray.embeddings.store import write_store

    images(folder)
    rows = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    write_store(folder / "store", pa.array(ids), [rows], len(ids), 8, "float32", {"id": "random", "revision": "0"})


def spoilt(name: str, change: Callable[[bytes], bytes | None]) -> Make:
    """A store with a file changed, or deleted."""

    def make(folder: Path) -> None:
        store(folder)
        path = folder / "store" / name
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return make


def flipped(content: bytes) -> bytes:
    """The last bit."""
    return content[:-1] + bytes([content[-1] ^ 1])


def taught(what: str, make: Make, *parts: str, more: str = "") -> Case:
    """A training with text that is refused."""
    return Case(what, f"tt_ray.train {more}".strip(), {REFUSED: parts}, make, base=TAUGHT)


def captions(what: str, name: str, text: str | bytes, *parts: str, more: str = "") -> Case:
    """A caption table that convert_captions refuses."""
    command = f"tt_ray.convert_captions {name} --out out.parquet {more}".strip()
    return refused(what, command, *parts, make=writes(name, text))


def captioned(what: str, more: str, *parts: str) -> Case:
    """Captions of images that are refused."""
    return refused(what, f"tt_ray.caption_images {more}", *parts, make=images, base=CAPTIONED)


def embedded(what: str, encoder: str, *parts: str) -> Case:
    """A training on captions, by an encoder that there is not."""
    more = f"--text.embeddings '' --text.captions a.csv --text.encoder {encoder}"
    return taught(what, both(images, writes("a.csv", ROWS)), *parts, more=more)


def encoder(folder: Path) -> None:
    """A text encoder whose tokenizer has more tokens than the model has rows, and a caption table."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "bert")
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=30, intermediate_size=16, **sizes)).save_pretrained(
        folder / "bert"
    )
    writes("a.csv", "image_id,caption\n" + "".join(f"{number},word{number}\n" for number in range(60)))(folder)


def archive(folder: Path) -> None:
    """A zip whose only member wants to be written outside."""
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("../cat.emb.npy", b"x")


EMBED, IMPORT = "tt_ray.embed_captions a.csv", "tt_ray.embeddings import-zip a.zip"
ROWS = "image_id,caption\ncat/0.png,a cat\n"
table = writes("a.csv", ROWS)
numeric = writes("a.jsonl", json.dumps({"image_id": 7, "caption": "a cat"}))
cut = spoilt("ids.parquet", lambda content: content[:-1])
CASES = [
    taught("no store", images, "no embedding store"),
    taught("store without a manifest", spoilt("manifest.json", lambda _: None), "manifest.json"),
    taught("store with a flipped bit", spoilt("embeddings.npy", flipped), "is damaged", "embeddings.npy"),
    taught("store that is cut off", cut, "is damaged", "ids.parquet"),
    taught("store whose manifest is no JSON", spoilt("manifest.json", lambda _: b"{"), "manifest.json"),
    taught("store of other images", lambda f: store(f, ["emu/0.png"]), "none of the 12 images has an embedding"),
    taught("store of some images", lambda f: store(f, IDS[:5]), "7 of 12 images", "--text.max_missing 0.59"),
    taught("store of fewer dimensions than asked for", store, "only 8 dimensions", more="--head.out_dim 9"),
    taught("images without captions", images, "no captions", more="--text.embeddings ''"),
    embedded("encoder that cannot be found", "no/such", "text encoder no/such cannot be found"),
    embedded("encoder folder that is not there", "./bert", "text encoder ./bert: no such folder"),
    refused("encoder of more tokens than rows", f"{EMBED} --encoder ./bert --out out", "bert", make=encoder),
    refused("embedding of no table", "tt_ray.embed_captions none.csv --out out", "none.csv"),
    refused("embedding onto a file", f"{EMBED} --out a.csv", "a.csv", make=table),
    refused("unknown option of embed_captions", f"{EMBED} --out out --encodr x", "--encodr", "--encoder"),
    captions("caption table of one word", "odd.csv", "hello\n", "odd.csv"),
    captions("empty caption table", "empty.jsonl", "", "empty.jsonl"),
    captions("caption table of nulls", "a.csv", "image_id,caption\na,\n", "a.csv"),
    captions("caption table under another name", "a.xlsx", "x", "a.xlsx"),
    captions("Parquet that is none", "a.parquet", "hello", "a.parquet"),
    captions("caption without an image, strictly", "a.csv", f"{ROWS},a dog\n", "a.csv:3", more="--strict"),
    captions("caption table in Latin-1", "a.csv", "image_id,caption\na,käfer\n".encode("latin-1"), "a.csv"),
    captions("JSONL of 100,000 brackets", "a.jsonl", "[" * 100_000, "a.jsonl"),
    captions("caption table of other images", "a.csv", ROWS, "b.csv", more="--ids b.csv"),
    Case("numeric id in JSONL", "tt_ray.convert_captions a.jsonl --out out.parquet", {0: ("1 captions",)}, numeric),
    refused("captions onto a file", "tt_ray.convert_captions a.csv --out a.csv", "a.csv exists", make=table),
    captioned("captions by no model", "--out out.parquet", "--template"),
    captioned("template with another place", "--template 'a {class}' --out out.parquet", "{class}"),
    captioned("captions under another name", "--template 'a {label}' --out out.csv", ".parquet"),
    captioned("captioner that is not there", "--model ./blip --out out.parquet", "./blip"),
    refused("inspection of no store", "tt_ray.embeddings inspect none", "no embedding store", "none"),
    refused("inspection of a damaged store", "tt_ray.embeddings inspect store", "ids.parquet", make=cut),
    refused("archive that is none", f"{IMPORT} --out out", "a.zip", make=writes("a.zip", "hello")),
    refused("archive that writes outside", f"{IMPORT} --out out", "a.zip", make=archive),
    refused("export of a store onto something", "tt_ray.embeddings export store --out images", "images", make=store),
]
