"""The scheduler on a real Ray, with small jobs in place of protocols; processes are really killed."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from eval.contract import EvalConfig, Result
from eval.jobs.evaluation import cpus_beside
from eval.jobs.plan import Job
from eval.jobs.scheduler import JobResources, State, _items, schedule
from eval.jobs.worker import Answer, Request
from tests.cluster.ray_here import stop_ray
from tt_ray.cluster.connect import keep_ray_quiet
from tt_ray.terminal.errors import Stopped

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """With a GPU that Ray hands out, and nobody computes on."""
    keep_ray_quiet()
    ray.init(address="local", num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    stop_ray()


def request(folder: Path, task: str, protocol: str = "finetune", images: int = 1, seed: int = 0) -> Request:
    job = Job("model", "spec", "weights", task, 1, protocol, None, seed, images)
    return Request(job, task=None, config=EvalConfig(None, folder, seed=seed, batch_size=64))  # type: ignore[arg-type]


def do(request: Request) -> Answer:
    """Writes down that it ran; what it does follows from the task's name."""
    job, folder = request.job, request.config.cache
    kind = "features" if request.extraction else job.protocol
    with (folder / "log").open("a") as log:
        log.write(f"{job.task} {kind} {request.config.batch_size}\n")
    if job.task == "shares":  # ends once the other one is there as well
        (folder / f"seed {job.seed}").touch()
        deadline = time.monotonic() + 60
        while len(list(folder.glob("seed *"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return Answer(Result({"GPU": ray.get_runtime_context().get_assigned_resources()["GPU"]}, 1), 0.1)
    if job.task == "killed" or (job.task == "killed once" and not (folder / "mark").exists()):
        (folder / "mark").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.task == "crowded" and request.extraction and (request.beside or job.model == "m1"):
        return Answer(None, 0.0, "no such model", "mistake")
    if job.task == "mistake" and request.extraction:
        return Answer(None, 0.0, "no such data", "mistake")
    if job.task == "full" and request.config.batch_size > 16:
        return Answer(None, 0.0, "out of memory", "memory")
    if (folder / "doomed").exists():
        if (folder / "doomed").read_text() == ray.get_runtime_context().get_node_id():
            (folder / "reached").touch()
            time.sleep(60)  # the node is gone long before
        deadline = time.monotonic() + 120
        # Or this node has done all jobs before the other one has started a process.
        while not (folder / "reached").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    return Answer(None if request.extraction else Result({"top1": 1.0}, 1), 0.1)


def run(requests: list[Request], cpus: float = 1, gpus: float = 0) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    states: list[State] = []

    def ended(job: Job, answer: Answer) -> None:
        assert job.label not in answers, "each job ends once"
        answers[job.label] = answer

    schedule(requests, JobResources(cpus, gpus), ended, states.append, do)
    assert states[-1].waiting == 0 and not states[-1].running
    return answers


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_features_are_extracted_once_before_the_jobs_that_need_them_and_long_jobs_come_first(tmp_path: Path) -> None:
    requests = [request(tmp_path, "b", protocol, 10) for protocol in ("knn", "linear", "finetune")]
    requests += [request(tmp_path, "a", "finetune", images, seed=images) for images in (1, 20)]
    cpus = ray.cluster_resources()["CPU"]  # one job at a time
    answers = run(requests, cpus)
    assert len(answers) == 5 and not any(answer.kind for answer in answers.values())
    assert [line.rsplit(" ", 1)[0] for line in log(tmp_path)] == [
        "b features", "a finetune", "b finetune", "a finetune", "b linear", "b knn",
    ]  # fmt: skip


def test_two_jobs_share_a_gpu(tmp_path: Path) -> None:
    answers = run([request(tmp_path, "shares", seed=seed) for seed in (0, 1)], 0.5, 0.5)
    assert [answer.result and answer.result.metrics for answer in answers.values()] == [{"GPU": 0.5}] * 2
    assert len(list(tmp_path.glob("seed *"))) == 2


@pytest.mark.parametrize(
    ("gpus", "nodes", "cpus"),
    [
        (0, [{"CPU": 64.0, "GPU": 8.0}], 1),
        (1, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0}], 8),
        (0.25, [{"CPU": 64.0, "GPU": 8.0}], 2),
        (0.3, [{"CPU": 16.0, "GPU": 2.0}], 2),  # three share a GPU
        (1, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], 4),  # all jobs take as many
        (0.1, [{"CPU": 4.0, "GPU": 1.0}], 1),
        (1, [{"CPU": 4.0}], 1),  # which is refused
    ],
)
def test_cpus_of_a_node_are_shared_by_the_jobs_on_its_gpus(
    gpus: float, nodes: list[dict[str, float]], cpus: int
) -> None:
    assert cpus_beside(gpus, nodes) == cpus


def test_a_job_whose_process_dies_is_tried_again_with_half_the_batch(tmp_path: Path) -> None:
    answers = run([request(tmp_path, "killed once"), request(tmp_path, "fine")])
    assert not any(answer.kind for answer in answers.values())
    assert [line for line in log(tmp_path) if "killed" in line] == [
        "killed once finetune 64",
        "killed once finetune 32",
    ]


def test_a_job_that_always_dies_fails_with_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    answers = run([request(tmp_path, "killed"), *(request(tmp_path, f"fine {i}") for i in range(5))])
    failed = answers.pop("model killed finetune seed 0")
    assert failed.kind and "its process ended unexpectedly" in failed.problem and "tried 3 times" in failed.problem
    assert len(answers) == 5 and not any(answer.kind for answer in answers.values())


def test_a_lack_of_memory_halves_the_batch(tmp_path: Path) -> None:
    answers = run([request(tmp_path, "full")])
    assert not answers["model full finetune seed 0"].kind
    assert log(tmp_path) == ["full finetune 64", "full finetune 32", "full finetune 16"]


def test_when_features_cannot_be_had_their_jobs_fail_with_that_reason(tmp_path: Path) -> None:
    answers = run(
        [request(tmp_path, "mistake", "knn"), request(tmp_path, "mistake", "linear"), request(tmp_path, "fine")]
    )
    assert [answers[f"model mistake {name} seed 0"].problem for name in ("knn", "linear")] == ["no such data"] * 2
    assert not answers["model fine finetune seed 0"].kind
    assert log(tmp_path).count("mistake features 64") == 1


def several(folder: Path, device: str, models: int = 3, tasks: tuple[str, ...] = ("a", "b")) -> list[Request]:
    """knn and linear of several models."""
    found = []
    for task in tasks:
        for number in range(models):
            for protocol in ("knn", "linear"):
                given = request(folder, task, protocol)
                job = replace(given.job, model=f"m{number}", weights=str(number))
                found.append(replace(given, job=job, config=replace(given.config, device=device)))
    return found


@pytest.mark.parametrize(
    ("device", "slots", "models"),
    [("cuda", 1, [3, 3]), ("cuda", 2, [3, 3]), ("cuda", 3, [2, 1, 2, 1]), ("cuda", 6, [1] * 6), ("cpu", 1, [1] * 6)],
)
def test_on_gpus_one_extraction_serves_several_models_as_long_as_all_have_work(
    tmp_path: Path, device: str, slots: int, models: list[int]
) -> None:
    items = _items(several(tmp_path, device), slots)
    assert [1 + len(item.request.beside) for item in items] == models
    assert [len(item.waiting) for item in items] == [2 * count for count in models]
    for item in items:
        mine = {each.weights for each in (item.request.job, *item.request.beside)}
        assert {each.request.job.weights for each in item.waiting} == mine
        assert {each.request.job.task for each in item.waiting} == {item.request.job.task}


def test_a_model_that_fails_among_several_fails_alone(tmp_path: Path) -> None:
    answers = run(several(tmp_path, "cuda", 2, ("crowded",)), ray.cluster_resources()["CPU"])
    assert {label: answer.problem for label, answer in answers.items()} == {
        f"m{number} crowded {name} seed 0": "no such model" * number for number in (0, 1) for name in ("knn", "linear")
    }
    assert log(tmp_path).count("crowded features 64") == 3


def test_who_looks_may_stop_before_the_cluster_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def nodes() -> list[dict[str, Any]]:
        assert not asked, "a cluster that was stopped by the same signal would not answer"
        asked.append(1)
        return [{"Alive": True, "Resources": {"CPU": 1}}]

    def looked(state: State) -> None:
        raise Stopped("stopped", 143)

    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(ray, "wait", lambda flying, **_: ([], flying))
    with pytest.raises(Stopped):
        schedule([request(tmp_path, "colours")], JobResources(), lambda *_: None, looked, do)


@pytest.mark.cluster
def test_a_lost_node_costs_a_try_of_the_jobs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    # It would be the cluster that other commands of this machine join.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
    stop_ray()
    nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        lost = nodes.add_node(num_cpus=1)
        (tmp_path / "doomed").write_text(lost.node_id)
        ray.init(address=nodes.address, log_to_driver=False)
        removed: list[float] = []

        def looked(state: State) -> None:
            if not removed and (tmp_path / "reached").exists():
                removed.append(time.monotonic())
                nodes.remove_node(lost, allow_graceful=False)

        answers: dict[str, Answer] = {}
        requests = [request(tmp_path, f"slow {number}") for number in range(6)]
        schedule(requests, JobResources(1), lambda job, answer: answers.update({job.label: answer}), looked, do)
        assert removed and len(answers) == 6 and not any(answer.kind for answer in answers.values())
        assert len(log(tmp_path)) == 7, "only what ran on the lost node ran again"
    finally:
        stop_ray()
        nodes.shutdown()
