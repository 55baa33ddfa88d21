"""Captions -> store: the same whoever does it and however often it is killed; mistakes are told in one line."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.test_bad_input import one_line
from tests.test_train_command import REPOSITORY, processes_with, wait_until
from tests.text.test_encoder import WORDS, _bert
from tests.toy import stop_ray
from tt_ray import embed_captions
from tt_ray.cluster.actor_pool import Pool, PoolOptions, Worker
from tt_ray.embed_captions import Arguments, embed
from tt_ray.embeddings.store import open_store
from tt_ray.io.resumable import Shards
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.text.encoder import load_text_encoder

CPU = Pool(1, 1, False)
SENTENCES = [" ".join(words) for length in (1, 2, 3) for words in itertools.product(WORDS[4:], repeat=length)]
# Some captions come twice, side by side and far apart.
CAPTIONS = [*SENTENCES[:30], *SENTENCES[29:60], *SENTENCES[:7]]
SHARD = 16


class Recorder(Display):
    """Keeps what is shown; stops at a given number of captions or images, as a kill would."""

    def __init__(self, stop_at: float = float("inf"), what: str = "captions embedded") -> None:
        super().__init__()
        self.what = what
        self.shown: list[tuple[str, int, int]] = []
        self.said: list[str] = []
        self.stop_at = stop_at

    def show(self, what: str, done: int, of: int, detail: str = "") -> None:
        self.shown.append((what, done, of))
        if what == self.what and done >= self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def embedded(self) -> list[tuple[int, int]]:
        return [(done, of) for what, done, of in self.shown if what == "captions embedded"]


def do_here(
    shards: Shards,
    items: Sequence[Sequence[Any]],
    make: Callable[[Pool], Worker],
    options: PoolOptions,
    display: Display,
    what: str,
) -> None:
    """What a pool does, without Ray and in order."""
    worker, missing = make(CPU), shards.missing()
    done, of = 0, sum(len(items[shard]) for shard in missing)
    for shard in missing:
        shards.check(worker.about)
        shards.add(shard, worker.about, worker(list(items[shard])))
        done += len(items[shard])
        display.show(what, done, of)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_captions, "do_missing", do_here)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As actors have; two for such small models are far slower than one on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_captions, "_SHARD", SHARD)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file; two actors take all of its CPUs."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    stop_ray()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    _bert(folder)
    return str(folder)


def table(path: Path, captions: list[str] = CAPTIONS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{number}.jpg" for number in range(len(captions))]
    pq.write_table(pa.table({"image_id": ids, "caption": captions}), path)
    return path


def arguments(folder: Path, encoder: str, out: str = "store", **options: Any) -> Arguments:
    return Arguments(table(folder / "captions.parquet"), folder / out, encoder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def interrupted(given: Arguments, captions: int) -> dict[str, bytes]:
    """Does a part of the work; returns the finished shards."""
    with pytest.raises(KeyboardInterrupt):
        embed(given, Recorder(stop_at=captions))
    assert not given.out.exists()
    return {name: data for name, data in contents(unfinished(given)).items() if name.endswith(".shard")}


def unfinished(given: Arguments) -> Path:
    return given.out.with_name(f"{given.out.name}.unfinished")


# Without Ray


def test_each_image_gets_the_embedding_of_its_caption(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    sentence = embed(given, display)
    assert "68 images, 60 distinct captions" in sentence
    store = open_store(given.out, verify=True)
    assert store.ids.to_pylist() == [f"{number}.jpg" for number in range(len(CAPTIONS))]
    np.testing.assert_allclose(store.embeddings, load_text_encoder(encoder).encode(CAPTIONS), rtol=1e-3, atol=1e-3)
    about = store.manifest["encoder"]
    assert (about["id"], about["pooling"], about["max_tokens"], about["precision"]) == (encoder, "cls", 8, "float32")
    assert display.embedded[-1] == (60, 60), "each distinct caption once"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.parquet", "store"]


def test_what_was_cut_off_is_counted_over_all_runs(tmp_path: Path, encoder: str, no_ray: None) -> None:
    long = [" ".join([word] * 9) for word in WORDS[4:]]
    given = Arguments(table(tmp_path / "captions.parquet", [*long, *SENTENCES[:30]]), tmp_path / "store", encoder)
    interrupted(given, SHARD)
    assert f"36 distinct captions, {len(long)} of them longer than the encoder takes" in embed(given, Recorder())


@pytest.mark.parametrize(("average", "words"), [(False, ["a dog"]), (True, ["a dog", "red cat"])])
def test_several_captions_of_an_image(
    tmp_path: Path, encoder: str, no_ray: None, average: bool, words: list[str]
) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("image_id,caption\n1.jpg,a dog\n2.jpg,a cat\n1.jpg,red cat\n1.jpg,a dog\n")
    assert "2 images" in embed(Arguments(path, tmp_path / "store", encoder, average=average), Recorder())
    store = open_store(tmp_path / "store")
    assert store.ids.to_pylist() == ["1.jpg", "2.jpg"]
    mean = load_text_encoder(encoder).encode(words).mean(0)
    np.testing.assert_allclose(store.embeddings[0], mean, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("done", [SHARD, 2 * SHARD, 60])
def test_a_killed_run_goes_on(tmp_path: Path, encoder: str, no_ray: None, done: int) -> None:
    whole = arguments(tmp_path, encoder, "whole")
    embed(whole, Recorder())
    given, display = arguments(tmp_path, encoder), Recorder()
    kept = interrupted(given, done)
    assert len(kept) == -(-done // SHARD)
    embed(given, display)
    assert display.said == [f"continuing {unfinished(given)}: {len(kept)} of 4 shards are done"]
    assert [of for _, of in display.embedded] == [60 - done] * (4 - len(kept)), "nothing is encoded twice"
    assert contents(given.out) == contents(whole.out)
    assert not unfinished(given).exists()


def test_a_torn_shard_is_made_anew(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    interrupted(given, 60)
    torn = next(unfinished(given).glob("0000001-*"))
    torn.write_bytes(torn.read_bytes()[:-1])
    embed(given, display)
    assert display.embedded == [(SHARD, SHARD)]
    np.testing.assert_allclose(
        open_store(given.out).embeddings, load_text_encoder(encoder).encode(CAPTIONS), rtol=1e-3, atol=1e-3
    )


def _other_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _other_pooling(folder: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def _other_limit(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 5}))


def _other_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"god"'))


def _other_activation(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"gelu"', '"relu"'))


def _other_prompt(folder: Path) -> None:
    prompts = {"prompts": {"red": "red "}, "default_prompt_name": "red"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


@pytest.mark.parametrize(
    "change", [_other_weights, _other_pooling, _other_limit, _other_words, _other_activation, _other_prompt]
)
def test_an_encoder_that_changed_is_refused(
    tmp_path: Path, encoder: str, no_ray: None, change: Callable[[Path], None]
) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(encoder, copy)
    given = arguments(tmp_path, str(copy))
    kept = interrupted(given, SHARD)
    done = arguments(tmp_path, str(copy), "done")
    embed(done, Recorder())
    assert "is complete" in embed(done, Recorder())
    before = contents(copy)
    change(copy)
    assert contents(copy) != before
    with pytest.raises(UserError, match=r"was begun with other revision \(\w{16}, now \w{16}\)"):
        embed(given, Recorder())
    assert kept.items() <= contents(unfinished(given)).items() and not given.out.exists()
    with pytest.raises(UserError, match="exists already, made of something else"):
        embed(done, Recorder())


def test_another_encoder_or_other_captions_are_refused_before_anything_is_loaded(
    tmp_path: Path, encoder: str, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(tmp_path, encoder)
    interrupted(given, SHARD)
    monkeypatch.setattr(embed_captions, "do_missing", lambda *_: pytest.fail("work was begun"))
    copy = shutil.copytree(encoder, tmp_path / "copy")
    with pytest.raises(UserError, match="was begun with other id"):
        embed(Arguments(given.captions, given.out, str(copy)), Recorder())
    table(given.captions, [*CAPTIONS[1:], "cat"])
    with pytest.raises(UserError, match="was begun with other captions"):
        embed(given, Recorder())


def test_a_finished_store_is_left_alone(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given = arguments(tmp_path, encoder)
    embed(given, Recorder())
    before = contents(given.out)
    assert "is complete: there is nothing to do" in embed(given, Recorder())
    table(given.captions, CAPTIONS[1:])
    with pytest.raises(UserError, match="exists already, made of something else"):
        embed(given, Recorder())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        embed(Arguments(given.captions, tmp_path / "file", encoder), Recorder())
    assert contents(given.out) == before and (tmp_path / "file").read_text() == "mine"


def test_malformed_rows_are_left_out_and_told(tmp_path: Path, encoder: str, no_ray: None) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(b"image_id,caption\n1.jpg,a dog\n2.jpg,  \n3.jpg,a \xff dog\n4.jpg,a cat\n")
    display = Recorder()
    embed(Arguments(path, tmp_path / "store", encoder), display)
    assert display.said == [f"2 rows of {path} are left out, the first: {path}:3: no caption for 2.jpg"]
    assert open_store(tmp_path / "store").ids.to_pylist() == ["1.jpg", "4.jpg"]
    with pytest.raises(UserError, match="has 2 malformed rows, the first at .*captions.csv:3"):
        embed(Arguments(path, tmp_path / "strict", encoder, strict=True), display)
    assert not (tmp_path / "strict.unfinished").exists()


def test_embeddings_that_are_not_finite(tmp_path: Path, encoder: str, no_ray: None) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy))
    _spoil(copy)
    with pytest.raises(
        UserError, match=r"not finite as float16 for \d+ of 16 captions, such as '.*dog.*': choose another"
    ):
        embed(given, Recorder())
    assert not given.out.exists() and not list(unfinished(given).glob("*.shard"))


@pytest.mark.parametrize("average", [False, True])
def test_embeddings_that_are_not_finite_are_left_out_when_asked_for(
    tmp_path: Path, encoder: str, no_ray: None, average: bool
) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), average=average)
    with pytest.raises(UserError, match="--on_bad_embedding skip, which keeps what is done"):
        _spoil(copy)
        embed(given, Recorder())
    several = [*CAPTIONS, "a dog"]
    path = given.captions
    pq.write_table(
        pa.table({"image_id": [*(f"{i}.jpg" for i in range(len(CAPTIONS))), "1.jpg"], "caption": several}), path
    )
    given = replace(given, on_bad_embedding="skip", out=tmp_path / "skipped")
    kept = interrupted(given, 2 * SHARD)
    assert len(kept) == 2, "shards with bad captions are kept"
    sentence = embed(given, Recorder())
    good = [number for number, caption in enumerate(CAPTIONS) if "dog" not in caption]
    bad = len(CAPTIONS) - len(good) + average
    assert f"{bad} captions without a finite embedding are listed in {given.out}.skipped.tsv" in sentence
    assert len((tmp_path / "skipped.skipped.tsv").read_text().splitlines()) == bad
    store = open_store(given.out, verify=True)
    assert store.ids.to_pylist() == [f"{number}.jpg" for number in good]
    expected = load_text_encoder(encoder).encode([CAPTIONS[number] for number in good])
    np.testing.assert_allclose(store.embeddings, expected, rtol=1e-3, atol=1e-3)
    assert "is complete" in embed(given, Recorder())


def test_what_a_kill_left_of_a_store_is_deleted(tmp_path: Path, encoder: str, no_ray: None) -> None:
    given, display = arguments(tmp_path, encoder), Recorder()
    half, other = tmp_path / ".store.1-0123abcd.partial", tmp_path / ".store2.1-0123abcd.partial"
    for folder in (half, other):
        folder.mkdir()
        (folder / "embeddings.npy").write_bytes(b"half")
    embed(given, display)
    assert not half.exists() and other.exists()
    assert ("embeddings written", len(CAPTIONS), len(CAPTIONS)) in display.shown


def _spoil(folder: Path) -> None:
    """Makes the embeddings of all captions with a dog NaN."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][WORDS.index("dog")] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_full_disk(tmp_path: Path, mounted: Path, encoder: str, no_ray: None) -> None:
    given = Arguments(table(tmp_path / "captions.parquet"), mounted / "store", encoder)
    kept = interrupted(given, 60)
    filler = mounted / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1024))
    with pytest.raises(
        UserError, match=r"cannot write .*store.*: No space left on device\): fix this, or choose another --out"
    ):
        embed(given, Recorder())
    assert sorted(path.name for path in mounted.iterdir()) == ["filler", "store.unfinished"]
    assert kept.items() <= contents(unfinished(given)).items()
    filler.unlink()
    display = Recorder()
    embed(given, display)
    assert not display.embedded and len(open_store(given.out, verify=True)) == len(CAPTIONS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.parquet", "--out", "store"], "no caption table none.parquet"),
        (["captions.parquet"], "--out"),
        (["captions.parquet", "--out", "store", "--encoder", "./none"], "no such folder"),
        (["captions.parquet", "--out", "store", "--batch_size", "-1"], "--batch_size is -1"),
        (["captions.parquet", "--out", "store", "--device", "tpu"], "device"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    table(tmp_path / "captions.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(embed_captions.main)
    assert stop.value.code == 2 and message in one_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.parquet"]


# With Ray

# Ray Data's own settings warn of each other.
WITH_RAY = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@WITH_RAY
@pytest.mark.slow
def test_one_and_two_actors_make_the_same_store(tmp_path: Path, encoder: str, cluster: None) -> None:
    stores = []
    for actors in (1, 2):
        given = arguments(tmp_path, encoder, f"store{actors}", pool=PoolOptions(actors))
        display = Recorder()
        embed(given, display)
        assert display.embedded[0] == (0, 60) and display.embedded[-1] == (60, 60)
        stores.append(contents(given.out))
    assert stores[0] == stores[1]
    vectors = open_store(tmp_path / "store2", verify=True).embeddings
    np.testing.assert_allclose(vectors, load_text_encoder(encoder).encode(CAPTIONS), rtol=1e-3, atol=1e-3)


@WITH_RAY
@pytest.mark.slow
def test_what_an_actor_refuses_reaches_the_user(tmp_path: Path, encoder: str, cluster: None) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), pool=PoolOptions(actors=1))
    _spoil(copy)
    with pytest.raises(UserError, match="not finite as float16"):
        embed(given, Recorder())
    assert not list(unfinished(given).glob("*.shard"))


@WITH_RAY
@pytest.mark.slow
def test_an_actor_with_another_encoder_does_nothing(
    tmp_path: Path, encoder: str, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(encoder, tmp_path / "encoder")
    given = arguments(tmp_path, str(copy), pool=PoolOptions(actors=1))
    with monkeypatch.context() as patch:
        patch.setattr(embed_captions, "do_missing", do_here)
        kept = interrupted(given, SHARD)
    _spoil(copy)  # it would say so if it encoded anything
    with pytest.raises(UserError, match="was begun with other revision"):
        embed(given, Recorder())
    assert kept.items() <= contents(unfinished(given)).items() and len(list(unfinished(given).glob("*.shard"))) == 1


def test_too_many_actors_are_refused(tmp_path: Path, encoder: str, cluster: None) -> None:
    with pytest.raises(UserError, match="3 actors with 1 CPUs each do not fit the cluster, which has 2 CPUs"):
        embed(arguments(tmp_path, encoder, pool=PoolOptions(actors=3)), Recorder())


def only_progress(lines: list[str]) -> None:
    """Nothing of Ray's on stderr."""
    assert all(re.match(r"(captions embedded|starting Ray): \d+ of \d+", line) for line in lines), lines


@pytest.mark.slow
def test_killed_drivers_and_workers_cost_only_what_was_in_flight(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the driver is killed the same command goes on; a worker that is killed is started again."""
    monkeypatch.undo()  # shards as they are for users
    many = [" ".join(words) for words in itertools.product(WORDS[4:], repeat=6)][: 10 * embed_captions._SHARD]
    captions, out = table(tmp_path / "captions.parquet", many), tmp_path / "store"
    words = [str(captions), "--out", str(out), "--encoder", encoder, "--batch_size", "16"]
    unfinished, mark = tmp_path / "store.unfinished", f"TT_RAY_TEST={tmp_path}"

    def finished() -> set[str]:
        return {path.name for path in unfinished.glob("0*.shard")}

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tt_ray.embed_captions", *words, *more]
        environment = {**os.environ, "TT_RAY_TEST": str(tmp_path)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True
        )

    first = start()
    try:
        wait_until(lambda: len(finished()) >= 2 or first.poll() is not None, 120)
        assert first.poll() is None, "it must be killed before its end"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        out_text, err = first.communicate()
    assert not out_text and not out.exists()
    only_progress(err.splitlines())
    kept = finished()
    wait_until(lambda: not processes_with(mark), 60)

    again = start("--actors", "1")
    try:
        wait_until(lambda: len(finished()) > len(kept) or again.poll() is not None, 120)
        (worker,) = (pid for pid in processes_with(mark) if b"(Actor)" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(int(worker), signal.SIGKILL)
        out_text, err = again.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(again.pid, signal.SIGKILL)
    assert again.returncode == 0, err
    assert out_text == f"embedding store {out}: {len(many)} images, {len(many)} distinct captions\n"
    lines = err.splitlines()
    assert lines[0] == f"continuing {unfinished}: {len(kept)} of 10 shards are done"
    only_progress(lines[1:])
    monkeypatch.setattr(embed_captions, "do_missing", do_here)
    whole = tmp_path / "whole"
    embed(Arguments(captions, whole, encoder, batch_size=16), Recorder())
    assert contents(out) == contents(whole)
