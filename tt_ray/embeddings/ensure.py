"""The embedding store of a run: the one that it names, or one that is made of its captions, once for all runs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from tt_ray.config import Config
from tt_ray.embeddings.build import Show, embed_captions
from tt_ray.embeddings.store import FILES, MANIFEST, open_store
from tt_ray.io.files import new_file
from tt_ray.io.local_copy import LocalCopy, Piece, cache_folder
from tt_ray.io.remote import Remote, unreadable
from tt_ray.io.resumable import disk_problems
from tt_ray.io.storage import Storage, is_uri
from tt_ray.terminal.errors import UserError, reason
from tt_ray.text.caption_table import read_captions
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.encoder_files import local_revision

Embed = Callable[[pa.StringArray, pa.StringArray, Path], None]
"""Makes the store of ids and their captions in a folder, as `embed_captions` does in this process."""


def ensure_store(
    config: Config,
    ids: pa.StringArray,
    captions: pa.StringArray | None,
    show: Show | None = None,
    before: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
    embed: Embed | None = None,
) -> Path | None:
    """Returns the folder of a run's embedding store, its checksum verified; embeds the captions if no run has yet.

    Stores made here live in <run.storage>/embeddings, named by encoder and captions, and serve every run with the same
    captions.

    Args:
        config: The run.
        ids: Ids of the training images.
        captions: Their own captions, null where there is none; read unless the run names a caption table.
        show: Called as captions are embedded.
        before: Called when captions are about to be embedded, which can take long.
        say: Called with a sentence on rows of the caption table that are left out.
        embed: Embeds the captions; None does so in this process, on its GPU if the run uses GPUs and it has one.

    Returns:
        The folder; None when no text is read: the text weight is 0, or a vision teacher takes its place.

    Raises:
        UserError: There are no captions, or the store or the encoder cannot be read or written.
    """
    if not config.reads_text:
        return None
    if config.text.embeddings:
        path = fetch_store(config, Path(config.text.embeddings).expanduser().absolute(), show)
        open_store(path, verify=True)
        return path
    ids, captions = _captions(config, ids, captions, say)
    storage = Storage.open(config.run.storage)
    encoder_name = config.text.encoder.rstrip("/").rsplit("/", 1)[-1]
    digest = _digest(config.text.encoder + local_revision(config.text.encoder), ids, captions)
    path = storage.root / "embeddings" / f"{encoder_name}-{digest}"
    if (fetch_store(config, path) / MANIFEST).exists():
        open_store(path, verify=True)
        return path
    if before is not None:
        before()
    try:
        _make_store(config, ids, captions, path, show, embed)
        storage.push(path)
    except OSError as error:
        cause = reason(error)
        raise UserError(f"cannot write embedding store {path}: {cause}: choose another --run.storage") from None
    return path


def _make_store(
    config: Config, ids: pa.StringArray, captions: pa.StringArray, path: Path, show: Show | None, embed: Embed | None
) -> None:
    try:
        if embed is None:
            encoder = load_text_encoder(config.text.encoder, "cuda" if config.run.use_gpu else "cpu")
            shown = show and (lambda done, of: show("captions embedded", done, of))
            embed_captions(ids, captions, encoder, path, shown)
        else:
            embed(ids, captions, path)
    except UserError:
        if not (path / MANIFEST).exists():  # else another run of these captions has made it meanwhile
            raise
        open_store(path, verify=True)


def fetch_store(config: Config, path: Path, show: Show | None = None) -> Path:
    """The folder of a run's store on this machine, fetched from object storage if it lies there and there is one.

    Args:
        config: The run.
        path: The folder on the machine that has found or made the store.
        show: Called while it is fetched.

    Raises:
        UserError: text.embeddings is a URI of something else, or cannot be read.
    """
    if is_uri(config.text.embeddings):
        return pull_store(config.text.embeddings, config.data.local_cache, show)
    if not config.text.embeddings and is_uri(config.run.storage):
        Storage.open(config.run.storage).fetch(path)
    return path


def store_here(place: str | Path, cache: str = "", show: Show | None = None) -> Path:
    """The folder of a store that is named by a folder or a URI, pulled to this machine if it is not here.

    Args:
        place: The folder or URI.
        cache: Folder of copies; empty takes the user's own.
        show: Called while it is pulled.

    Raises:
        UserError: A URI names no store, or cannot be read.
    """
    return pull_store(place, cache, show) if isinstance(place, str) and is_uri(place) else Path(place)


def pull_store(uri: str, cache: str, show: Show | None = None) -> Path:
    """Pulls a store in object storage to this machine, once for all its processes, and returns its folder."""
    remote = Remote.open(uri, "text.embeddings")
    try:
        content = remote.read(MANIFEST)
        files = json.loads(content)["files"]
        pieces = {name: Piece(name, files[name]["bytes"], files[name]["sha256"]) for name in FILES}
    except FileNotFoundError:
        raise UserError(f"text.embeddings {uri} is no embedding store: it has no {MANIFEST}") from None
    except OSError as error:
        raise unreadable("text.embeddings", remote.uri, error) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"text.embeddings {uri}: its {MANIFEST} cannot be read: write the store again") from None
    # A store of other content gets another folder: a run keeps the one that it began with.
    folder = cache_folder(cache, remote.uri) / hashlib.blake2b(content, digest_size=6).hexdigest()
    LocalCopy(remote, folder, pieces, "text.embeddings").pull(show)
    if not (folder / MANIFEST).exists():
        with disk_problems(folder), new_file(folder / MANIFEST) as partial:
            partial.write_bytes(content)
    return folder


def _captions(
    config: Config, ids: pa.StringArray, captions: pa.StringArray | None, say: Callable[[str], None] | None
) -> tuple[pa.StringArray, pa.StringArray]:
    """Ids and captions of the run's caption table, or else of the images that have one."""
    if config.text.captions:
        table = read_captions(Path(config.text.captions).expanduser())
        if table.problems and say is not None:
            count, first = len(table.problems), table.problems[0]
            say(f"{count} rows of {config.text.captions} are left out, the first: {first}")
        return table.ids, table.captions
    assert captions is not None, "open_splits refuses sources without captions"
    present = captions.is_valid()
    if not present.true_count:
        raise UserError("no training image has a caption: set --data.caption_column or --text.captions")
    return ids.filter(present), captions.filter(present)


def _digest(encoder: str, ids: pa.StringArray, captions: pa.StringArray) -> str:
    digest = hashlib.blake2b(encoder.encode(), digest_size=6)
    for column in (ids, captions):
        for buffer in pa.concat_arrays([column]).buffers():
            digest.update(b"" if buffer is None else buffer)
    return digest.hexdigest()
