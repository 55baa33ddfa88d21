from dataclasses import replace
from types import SimpleNamespace

import pytest

from eval.jobs.plan import Job, plan_jobs, read_options
from eval.protocols.finetune_recipes import RECIPES
from eval.protocols.registry import protocol_hash
from tt_ray.terminal.errors import UserError

MODELS = {"base": ("a/run", "0" * 64), "text": ("b/run", "1" * 64)}
TASKS = {
    name: SimpleNamespace(
        name=name,
        version=1,
        images=images,
        evaluation_only=name == "only-test",
        data="",
        images_key=name,
        has_val=False,
    )
    for name, images in (("small", 100), ("large", 5000), ("only-test", 10))
}


def jobs(**changes: object) -> list[Job]:
    options = read_options(("linear", "knn", "classifier"), ())
    given = {"models": MODELS, "tasks": TASKS, "options": options, "seeds": (0, 1)} | changes
    return plan_jobs(**given)  # type: ignore[arg-type]


def test_every_combination_is_a_job_and_the_longest_come_first() -> None:
    found = jobs()
    # 2 models x (2 seeds x 2 protocols on 2 tasks, and the classifier, which draws nothing, on all three).
    assert len(found) == 2 * (2 * 2 * 2 + 3)
    assert len({job.key for job in found}) == len(found)
    assert [job.cost for job in found] == sorted((job.cost for job in found), reverse=True)
    assert {job.protocol for job in found if job.task == "only-test"} == {"classifier"}


@pytest.mark.parametrize("field", ["model", "weights", "task", "task_version", "seed", "options", "data", "precision"])
def test_whatever_can_change_a_result_changes_its_key(field: str) -> None:
    job = next(job for job in jobs() if job.protocol == "knn")
    other = {
        "model": "x",
        "weights": "2" * 64,
        "task": "y",
        "task_version": 9,
        "seed": 7,
        "data": "changed",
        "precision": "bf16",
        "options": read_options(("knn",), ("knn.temperature=0.5",))["knn"],
    }[field]
    changed = Job(**{**vars(job), field: other})
    assert changed.key != job.key
    assert Job(**{**vars(job), "images": 1, "spec": "moved/run"}).key == job.key


def test_jobs_that_draw_nothing_run_once() -> None:
    for has_val in (False, True):
        task = SimpleNamespace(**{**vars(TASKS["small"]), "has_val": has_val})
        options = read_options(("linear", "linear_sgd", "knn", "few_shot", "finetune", "classifier"), ())
        found = jobs(tasks={"small": task}, options=options, seeds=(2, 0, 1), models={"base": MODELS["base"]})
        seeds = {name: sorted(job.seed for job in found if job.protocol == name) for name in options}
        once = {"classifier", "linear", "knn"} if has_val else {"classifier"}
        assert seeds == {name: [0] if name in once else [0, 1, 2] for name in options}


def test_every_number_of_a_recipe_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    options = read_options(("finetune",), ())["finetune"]
    before = protocol_hash("finetune", options)
    assert protocol_hash("finetune", replace(options, steps=options.resolved.steps)) == before
    for field, value in (("steps", 7), ("train_on", "train"), ("layer_decay", 0.5), ("overrides", {"optim.eps": 0.5})):
        assert protocol_hash("finetune", replace(options, **{field: value})) != before
    monkeypatch.setitem(RECIPES, "builtin", replace(RECIPES["builtin"], overrides={"optim.weight_decay": 0.06}))
    assert protocol_hash("finetune", options) != before


def test_precision_is_a_part_of_the_hash_and_float32_keeps_the_one_it_has_had() -> None:
    options = read_options(("knn",), ())["knn"]
    assert protocol_hash("knn", options) == "23b737932d282131"
    assert len({protocol_hash("knn", options, name) for name in ("fp32", "tf32", "bf16")}) == 3
    assert {job.precision for job in jobs(precision="bf16")} == {"bf16"}


def test_keys_name_files() -> None:
    (job, *_) = jobs(models={"a/b c": ("x", "0")})
    assert "/" not in job.key and " " not in job.key
    (job, *_) = jobs(models={"." + 300 * "x": ("x", "0")})
    assert not job.key.startswith(".") and len(job.key) < 200


@pytest.mark.parametrize(
    ("names", "settings", "text"),
    [
        (("lineal",), (), "no protocol 'lineal'; did you mean linear"),
        (("knn",), ("knn.temprature=1",), "knn has no field 'temprature'; did you mean temperature?"),
        (("knn",), ("linear.tolerance=1",), "'linear' is not one of the protocols that run: knn"),
        (("knn",), ("knn",), "write PROTOCOL.FIELD=VALUE"),
        (("knn",), ("knn.temperature=hot",), "--set knn.temperature: "),
    ],
)
def test_wrong_options_are_refused(names: tuple[str, ...], settings: tuple[str, ...], text: str) -> None:
    with pytest.raises(UserError) as error:
        read_options(names, settings)
    assert text in str(error.value)


def test_options_are_set_over_the_defaults() -> None:
    assert read_options(("knn",), ("knn.temperature=0.5",))["knn"].temperature == 0.5
