import numpy as np
import pytest

from tt_ray.bootstrap import METRICS, Paired, average_interval, metric_of, paired_interval, share_right


def made_up(n: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ease = rng.random(n)
    first, second = ((ease + rng.normal(0, 0.2, (3, n)) < level).mean(0) for level in (0.6, 0.65))
    return rng.integers(0, classes, n).astype(np.int32), first, second


@pytest.mark.parametrize("metric", METRICS)
def test_a_model_does_not_differ_from_itself(metric: str) -> None:
    labels, first, _ = made_up()
    assert paired_interval(metric, labels, first, first, 0) == (0.0, 0.0, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_swapping_models_mirrors_the_interval(metric: str) -> None:
    labels, first, second = made_up()
    there, back = paired_interval(metric, labels, first, second, 0), paired_interval(metric, labels, second, first, 0)
    assert there.differing == back.differing == (first != second).sum()
    assert np.allclose([there.low, there.high], [-back.high, -back.low], atol=0.4)
    value = metric_of(metric, labels, second) - metric_of(metric, labels, first)
    assert there.low < value < there.high


@pytest.mark.parametrize("metric", METRICS)
def test_interval_is_that_of_resampling_images_one_by_one(metric: str) -> None:
    labels, first, second = made_up()
    rng, found = np.random.default_rng(1), []
    for _ in range(1500):
        rows = rng.integers(0, len(labels), len(labels))
        found.append(metric_of(metric, labels[rows], second[rows]) - metric_of(metric, labels[rows], first[rows]))
    interval = paired_interval(metric, labels, first, second, 0)
    assert np.allclose(np.quantile(found, [0.025, 0.975]), interval[:2], atol=0.25)
    assert (
        interval
        == paired_interval(metric, labels, first, second, 0)
        != paired_interval(metric, labels, first, second, 1)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric: str) -> None:
    """Classes of 40, 10, 20 and 30 % of the images, in which the second model is better by 8, -2, 0 and 5 points."""
    share, level = np.array([0.4, 0.1, 0.2, 0.3]), np.array([0.5, 0.8, 0.6, 0.7])
    gain = np.array([0.08, -0.02, 0.0, 0.05])
    truth = 100 * float(gain.mean() if metric == "mean_per_class" else share @ gain)
    rng, covered, rounds = np.random.default_rng(2), 0, 200
    for number in range(rounds):
        labels = rng.choice(4, 300, p=share).astype(np.int32)
        luck = np.where(rng.random(300) < 0.7, rng.random(300), np.nan)
        first, second = (
            np.where(np.isnan(luck), rng.random(300), luck) < each[labels] for each in (level, level + gain)
        )
        low, high, _ = paired_interval(metric, labels, first.astype(float), second.astype(float), number)
        covered += low <= truth <= high
    assert 0.91 < covered / rounds < 0.99


def test_metrics_of_shares_are_the_means_over_draws() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 5, 200), rng.integers(0, 5, (3, 200))
    shares = share_right(labels, predictions)
    assert np.isclose(metric_of("top1", labels, shares), 100 * (predictions == labels).mean())
    recalls = [(predictions[:, labels == name] == name).mean() for name in range(5)]
    assert np.isclose(metric_of("mean_per_class", labels, shares), 100 * np.mean(recalls))


def test_classes_that_resamples_miss_do_no_harm() -> None:
    labels = np.array([0] * 50 + [1, 2], np.int32)
    first, second = np.zeros(52), np.ones(52)
    assert paired_interval("mean_per_class", labels, first, second, 0) == (100.0, 100.0, 52)


@pytest.mark.parametrize("metric", METRICS)
def test_one_seed_and_one_task_are_the_interval_over_images(metric: str) -> None:
    labels, first, second = made_up()
    paired = Paired(metric, labels, (second - first)[None])
    assert average_interval([paired], 0) == pytest.approx(
        paired_interval(metric, labels, first, second, 0)[:2], abs=0.3
    )


def test_an_average_is_resampled_by_seeds_and_images() -> None:
    """Against a loop over two tasks of three seeds, whose models gain 2, 6 and 10 points."""
    rng = np.random.default_rng(0)
    tasks = [
        Paired(
            metric, rng.integers(0, 4, n).astype(np.int32), (rng.random((3, n)) < [[0.02], [0.06], [0.1]]).astype(float)
        )
        for metric, n in (("top1", 300), ("mean_per_class", 200))
    ]
    found = []
    for _ in range(1500):
        seeds = rng.integers(0, 3, 3)
        rows = [rng.integers(0, len(task.labels), len(task.labels)) for task in tasks]
        found.append(
            np.mean(
                [
                    metric_of(t.metric, t.labels[r], t.differences[seeds][:, r].mean(0))
                    for t, r in zip(tasks, rows, strict=True)
                ]
            )
        )
    assert average_interval(tasks, 0) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=0.4)
    assert average_interval(tasks, 0) == average_interval(tasks, 0)
