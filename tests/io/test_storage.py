"""Runs behind a URI: servers of S3 (moto's) and of Google's storage (an emulator), and the local file system as one."""

import errno
import io
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, local
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from tests.io.test_one_writer import APART, holder
from tests.test_train_command import TOY, Started, run, run_here, steps, wait_until
from tests.toy import largest_difference, run_toy, toy_config, weights
from tt_ray.cli import read_config
from tt_ray.config import DataConfig
from tt_ray.data.prepare import find_store, open_images
from tt_ray.data.sources.registry import open_source
from tt_ray.io import one_writer
from tt_ray.io.one_writer import beside
from tt_ray.io.storage import Storage, fetch_data, local_root
from tt_ray.terminal.errors import UserError
from tt_ray.training.checkpoint_manager import CheckpointManager
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import check_run, read_result, sole_writer


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URI of an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        remote, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
        remote.create_dir("bucket")
        yield f"s3://bucket/runs?{options}"
    server.stop()


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """URI in an empty bucket."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield f"gs://anonymous@bucket/runs?scheme=http&endpoint_override=127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["s3", "gs", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if request.param == "file":
        return f"file://{tmp_path}/there"
    return request.getfixturevalue(request.param).replace("/runs?", f"/{tmp_path.name}?")


def test_files_go_there_and_come_back(uri: str) -> None:
    storage = Storage.open(uri)
    folder = storage.root / "run" / "step-1"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "a.bin", "deep/b.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    storage.push(folder)
    assert storage.names(storage.root / "run") == ["step-1"]
    shutil.rmtree(storage.root)
    assert storage.pull(folder)
    assert (folder / "deep" / "b.bin").read_bytes() == b"deep/b.bin" * 1000
    assert storage.pull(folder, skip=("deep",)) and not (folder / "deep").exists()
    storage.remove(folder)
    assert not storage.names(folder) and not folder.exists()
    assert not storage.pull(folder), "what is gone there is gone here"
    assert not storage.names(storage.root / "never")


def test_what_completes_a_folder_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(fs, "copy_files", lambda source, *_, **__: order.append(Path(source).name))
    storage = Storage(tmp_path, fs.LocalFileSystem(), str(tmp_path / "there"))
    for name in ("manifest.json", "z.bin", "a.bin"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    storage.push(tmp_path / "run")
    assert order == ["a.bin", "z.bin", "manifest.json"]


def test_a_plain_folder_moves_nothing(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    (tmp_path / "run").mkdir()
    storage.push(tmp_path / "run")
    assert storage.pull(tmp_path / "run") and storage.names(tmp_path) == ["run"] and storage.root == tmp_path


@pytest.mark.parametrize("uri", ["no://bucket/runs", "s3://", "://x"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="run.storage"):
        Storage.open(uri)


def test_a_secret_in_a_uri_is_refused_and_not_shown() -> None:
    for secret in ("hush", "hu/s:h"):  # their base64 has slashes
        with pytest.raises(UserError, match=r"^run.storage holds a key .*: leave both out") as refused:
            Storage.open(f"s3://key:{secret}@bucket/runs?region=us-east-1")
        assert secret not in str(refused.value)


def test_pruning_spares_what_is_in_use(tmp_path: Path) -> None:
    config = toy_config(tmp_path, run__checkpoint_every=3, run__keep_checkpoints=1)
    run_toy(config)
    manager = CheckpointManager(config.run_dir, Storage.open(str(tmp_path)), 1)
    assert manager.names() == ["step-00000012"]


def test_none_is_pruned_where_all_are_to_be_kept(tmp_path: Path) -> None:
    config = toy_config(tmp_path, run__checkpoint_every=3, run__keep_checkpoints=0)
    run_toy(config)
    manager = CheckpointManager(config.run_dir, Storage.open(str(tmp_path)), 0)
    assert manager.names() == [f"step-{step:08d}" for step in (12, 9, 6, 3)]


@pytest.mark.slow
def test_a_run_behind_a_uri_goes_on_on_another_machine(uri: str, tmp_path: Path) -> None:
    plain = toy_config(tmp_path / "plain", run__checkpoint_every=4)
    run_toy(plain)
    config = toy_config(tmp_path / "plain", run__checkpoint_every=4).override("run.storage", uri)
    run_toy(config)
    storage = Storage.open(uri)
    expected = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "export", "result.json"}
    assert set(storage.names(config.run_dir)) == expected
    with pytest.raises(UserError, match="finished"):
        check_run(config)
    # As if it had been killed after step 8, and another machine went on.
    storage.remove(config.run_dir / "result.json")
    storage.remove(config.run_dir / "checkpoints" / "step-00000012")
    shutil.rmtree(local_root(uri))
    assert check_run(config)
    run_toy(config)
    assert largest_difference(weights(plain), weights(config)) == 0
    rows = [row["step"] for row in read_rows(config.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    assert rows == list(range(12))
    shutil.rmtree(local_root(uri))
    with pytest.raises(UserError, match="finished"):
        check_run(config)


@pytest.mark.slow
def test_behind_a_uri_there_is_one_writer(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path / "plain").override("run.storage", uri)
    claims = beside(config.run_dir)
    with holder(claims, storage=uri) as first:
        with pytest.raises(UserError, match=f"is being written by process {first.pid} on host"):
            sole_writer(config, print).__enter__()
        first.kill()
        first.wait()
        with sole_writer(config, print):
            assert len(Storage.open(uri).names(claims)) == 1, "the dead one's claim is gone"
    assert Storage.open(uri).names(claims) == []
    monkeypatch.setattr(one_writer, "DEAD_S", 3.0)
    said = list[str]()
    with holder(claims, *APART, storage=uri), pytest.raises(UserError, match="on host elsewhere since"):
        sole_writer(config, said.append).__enter__()
    with sole_writer(config, said.append):
        assert "waiting up to 3 s for a sign of life" in said[-1]


def agreed(managers: list[CheckpointManager], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The checkpoint that each of several workers, here threads, resumes from, or why not."""
    sent, barrier = list[Any](), Barrier(len(managers))
    ranks = local()

    def send(value: Any) -> Any:
        if ranks.own == 0:
            sent.append(value)
        barrier.wait(60)
        return sent[0]

    def agree(rank: int) -> Any:
        ranks.own = rank
        try:
            return managers[rank].agree(rank)[0]
        except UserError as error:
            return str(error)

    monkeypatch.setattr("tt_ray.training.checkpoint_manager.from_worker_0", send)
    with ThreadPoolExecutor(len(managers)) as pool:
        return list(pool.map(agree, range(len(managers))))


def test_workers_resume_from_what_the_first_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = toy_config(tmp_path / "plain", run__checkpoint_every=4).override("run.storage", f"file://{tmp_path}/there")
    run_toy(config)
    storage, newest = Storage.open(config.run.storage), config.run_dir / "checkpoints" / "step-00000012"
    first = CheckpointManager(config.run_dir, storage, 2)
    # On another machine an earlier run of this name has left a checkpoint of another step.
    other = Storage(tmp_path / "other", storage.remote, storage.base)
    shutil.copytree(newest, tmp_path / "other" / "toy" / "checkpoints" / "step-00000099")
    managers = [first, CheckpointManager(tmp_path / "other" / "toy", other, 2)]
    assert agreed(managers, monkeypatch) == [newest] * 2
    shutil.rmtree(storage.root)
    copied: list[str] = []
    copy = Storage._copy
    monkeypatch.setattr(Storage, "_copy", lambda self, there, to: (copied.append(str(to)), copy(self, there, to)))
    assert agreed(managers, monkeypatch) == [newest] * 2
    assert copied and not any("/other/" in path for path in copied), "the first worker alone reads"


def test_a_run_that_the_first_worker_does_not_see_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy(config := toy_config(tmp_path, run__checkpoint_every=4))
    here, elsewhere = (
        CheckpointManager(folder, Storage.open(str(tmp_path)), 2) for folder in (config.run_dir, tmp_path / "elsewhere")
    )
    assert agreed([here, elsewhere], monkeypatch) == [config.run_dir / "checkpoints" / "step-00000012"] * 2
    for answer in agreed([elsewhere, here], monkeypatch):
        assert re.fullmatch(rf"the machine of worker 0 does not see {elsewhere.run_dir}, .+", answer)


def test_data_are_fetched_once_by_all_processes_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "data").mkdir()
    for name in range(20):
        (tmp_path / "data" / f"{name}.bin").write_bytes(bytes(1000))
    copied: list[str] = []
    copy = Storage._copy
    monkeypatch.setattr(Storage, "_copy", lambda self, there, to: (copied.append(there), copy(self, there, to)))
    with ThreadPoolExecutor(8) as pool:
        targets = list(pool.map(fetch_data, [f"file://{tmp_path}/data"] * 8))
    assert len(set(targets)) == 1 and len(list(targets[0].iterdir())) == 20
    assert len(copied) == 20


def test_an_upload_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Storage(tmp_path / "here", fs.LocalFileSystem(), str(tmp_path / "there"))
    (there.root / "run").mkdir(parents=True)
    (there.root / "run" / "a.bin").touch()
    failures = [OSError("the bucket is busy")] * 2
    original = fs.copy_files
    monkeypatch.setattr(fs, "copy_files", lambda *a, **k: raise_next(failures) if failures else original(*a, **k))
    monkeypatch.setattr("tt_ray.training.checkpoint_manager._PAUSES_S", (0.0, 0.0))
    manager = CheckpointManager(there.root / "run", there, 1)
    manager.push(there.root / "run")
    assert there.names(there.root / "run") == ["a.bin"]
    failures += [OSError("the bucket is gone")] * 3
    with pytest.raises(OSError, match="gone"):
        manager.push(there.root / "run")
    failures.append(OSError(errno.ENOSPC, "no space"))
    with pytest.raises(OSError, match="no space"):
        manager.push(there.root / "run")


def raise_next(failures: list[OSError]) -> None:
    raise failures.pop(0)


def test_a_checkpoint_damaged_there_is_passed_over(uri: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path / "plain", run__checkpoint_every=4).override("run.storage", uri)
    run_toy(config)
    before = weights(config)
    storage = Storage.open(uri)
    assert storage.remote is not None
    with storage.remote.open_output_stream(f"{storage.base}/toy/checkpoints/step-00000012/model.safetensors") as file:
        file.write(b"torn")
    storage.remove(config.run_dir / "result.json")
    result = run_toy(config)
    assert any("step-00000012" in note and "damaged" in note for note in result["notes"])
    assert largest_difference(before, weights(config)) == 0


def test_parquet_behind_a_uri_is_read(uri: str, tmp_path: Path) -> None:
    remote, base = fs.FileSystem.from_uri(uri)
    remote.create_dir(f"{base}/data", recursive=True)
    table = shapes_table(20)
    for number in range(2):
        with remote.open_output_stream(f"{base}/data/train-{number}.parquet") as file:
            pq.write_table(table.slice(10 * number, 10), file)
    where, mark, options = uri.partition("?")
    config = DataConfig(source="datasets", root=f"{where}/data{mark}{options}")
    assert open_source(config, "train", True).captions.to_pylist() == table["caption"].to_pylist()
    with remote.open_output_stream(f"{base}/data/train-2.parquet") as file:
        pq.write_table(table, file)
    assert len(open_source(config, "train", True)) == 40, "what has changed is fetched again"
    one = DataConfig(source="datasets", root=f"{where}/data/train-0.parquet{mark}{options}")
    assert len(open_source(one, "train", True)) == 10
    with pytest.raises(UserError, match="data.root .*there is nothing"):
        open_source(DataConfig(source="datasets", root=f"{where}/none{mark}{options}"), "train", True)


def shapes_table(rows: int) -> pa.Table:
    """Images as PNG, labels and captions."""
    images = []
    for row in range(rows):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (row, 0, 0)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    labels, captions = [row % 2 for row in range(rows)], [f"number {row}" for row in range(rows)]
    return pa.table({"image": images, "label": labels, "caption": captions})


@pytest.mark.slow
@pytest.mark.release
def test_the_command_killed_on_one_machine_ends_on_another(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half as long, with a third of the checkpoints: each goes to the storage.
    arguments = ["shapes_textteacher", *TOY, "--train.epochs", "30", "--train.eval_every", "100", "--run.name", "moved"]
    arguments += ["--run.checkpoint_every", "6"]
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Ray's sockets need short names
    monkeypatch.setenv("TMPDIR", str(tmp_path / "one"))
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "one"))
    with Started([*arguments, "--run.storage", s3]) as started:
        wait_until(lambda: len(read_rows(started.config.run_dir / "metrics.jsonl")) > 40, 120)
        os.killpg(started.process.pid, signal.SIGKILL)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "two"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "two"))
    again = run([*arguments, "--run.storage", s3])
    assert again.code == 0, again.err
    assert again.err.startswith("resuming run s3://bucket/runs/moved")
    assert steps(again.config) == list(range(120))
    plain = [*arguments, "--run.storage", str(tmp_path / "plain")]
    config = read_config(plain, "prog")
    undisturbed = run_here(plain, find_store(config, open_images(config)[0]), "moved")
    assert largest_difference(weights(again.config), weights(undisturbed)) == 0
    assert read_result(again.config.run_dir)["top1"] == read_result(undisturbed.run_dir)["top1"]
