"""The predictor's formulas by hand, its properties, and its counters against the real loss; no GPU, no timing."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

from benchmarks import scaling, scaling_check
from benchmarks.scaling_model import (
    BUCKET,
    Machine,
    Negatives,
    Work,
    all_gather,
    all_reduce,
    exposed_gradients,
    predict,
    ring_volume,
    turning_points,
)
from benchmarks.scaling_parts import Exchange, TextCost, decode_rate, exchange, model_cost, text_cost, write_rate

CLUSTER = Machine(
    flops=100e12,
    mfu=0.5,
    flops_fp32=10e12,
    memory_rate=1e12,
    memory=80e9,
    gpus_per_node=8,
    nvlink=200e9,
    network=100e9,
    latency=10e-6,
    hop_nvlink=1e-6,
    hop_network=5e-6,
    copy_rate=10e9,
    loaders=10,
    decode_rate=1000.0,
    storage=0.0,
    write_rate=100e9,
)
WORK = Work("toy", 25_000_000, 50e9, 1000, 1_000_000, 100e3, TextCost(4.0, 112.0, 20.0))
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 512])
def test_a_ring_moves_the_bytes_that_no_all_reduce_can_do_without(n: int) -> None:
    assert ring_volume(1000, n) == pytest.approx(2 * (n - 1) / n * 1000)


def test_collectives_by_hand() -> None:
    assert all_reduce(1e9, 1, CLUSTER) == all_gather(1e9, 1, CLUSTER) == 0
    # One node: 2 x 7/8 of 1 GB at 200 GB/s, 14 hops.
    assert all_reduce(1e9, 8, CLUSTER) == pytest.approx(1.75 / 200 + 10e-6 + 14e-6)
    # Four nodes: and 2 x 3/4 of 1 GB at 100 GB/s, 2 log2(4) hops.
    assert all_reduce(1e9, 32, CLUSTER) == pytest.approx(1.75 / 200 + 1.5 / 100 + 10e-6 + 14e-6 + 20e-6)
    # Half of either, 28 hops in nodes and 3 between.
    assert all_gather(1e9, 32, CLUSTER) == pytest.approx(0.875 / 200 + 0.75 / 100 + 10e-6 + 28e-6 + 15e-6)


def test_a_step_by_hand() -> None:
    run = predict(WORK, CLUSTER, 8, 250)
    assert run.batch == 2000
    assert run.parts["compute"] == pytest.approx(0.25)  # 250 x 50 GFLOP at 50 TFLOP/s
    # 250 x 2,000 pairs of 4,000 FLOPs at 10 TFLOP/s and 112 bytes at 1 TB/s.
    assert run.parts["text loss"] == pytest.approx(0.2e-3 + 0.056e-3)
    # The embeddings come while the forward pass takes 83 ms; then three numbers for each caption.
    assert run.parts["text exchange"] == pytest.approx(3 * (8e3 * 1.75 / 200e9 + 24e-6))
    assert run.parts["checkpoint copy"] == pytest.approx(300e6 / 10e9 / 500)
    assert run.beside == {"decoding": 0.025, "storage": 0.0, "checkpoint write": pytest.approx(300e6 / 100e9 / 500)}
    assert run.step == pytest.approx(sum(run.parts.values()))
    assert run.images_per_s == pytest.approx(2000 / run.step)
    assert run.text_memory == 0.5e6 * 20
    assert run.limit == "compute"


def test_what_else_may_be_computed_and_exchanged_by_hand() -> None:
    """From gathered features, from local ones, and with embeddings on each device, of 250 images on each of 8 GPUs."""
    gather, reduced = 8e6 * 0.875 / 200e9 + 17e-6, 8e3 * 1.75 / 200e9 + 24e-6
    for negatives, held, pairs, exchanged in (
        ("gathered", False, 2000 * 2000, gather),
        ("global", True, 250 * 2000, 16e3 * 0.875 / 200e9 + 17e-6 + 3 * reduced),
        ("local", False, 250 * 250, 0.0),
    ):
        run = predict(dataclasses.replace(WORK, negatives=negatives, held=held), CLUSTER, 8, 250)
        assert run.parts["text loss"] == pytest.approx(pairs * (4000 / 10e12 + 112 / 1e12))
        assert run.parts["text exchange"] == pytest.approx(exchanged) and run.text_memory == pairs * 20


def test_the_backward_pass_hides_all_but_the_last_bucket() -> None:
    parameters = 4 * BUCKET // 4
    bucket = all_reduce(BUCKET, 64, CLUSTER)
    assert exposed_gradients(parameters, 10.0, 64, CLUSTER) == pytest.approx(bucket)
    assert exposed_gradients(parameters, 0.0, 64, CLUSTER) == pytest.approx(4 * bucket)
    assert exposed_gradients(parameters, 1.5 * bucket, 64, CLUSTER) == pytest.approx(3 * bucket)


@pytest.mark.parametrize("work", [WORK, dataclasses.replace(WORK, dim=0)], ids=["text", "none"])
@pytest.mark.parametrize("negatives", ["global", "local"])
@pytest.mark.parametrize("network", [100e9, 1e9])
def test_more_gpus_are_never_slower_where_a_worker_computes_its_share(
    work: Work, negatives: Negatives, network: float
) -> None:
    # Two GPUs on a network that is slower still would not repay what they exchange.
    cluster, work = dataclasses.replace(CLUSTER, network=network), dataclasses.replace(work, negatives=negatives)
    rates = [predict(work, cluster, gpus, 256).images_per_s for gpus in COUNTS]
    assert all(before <= after * (1 + 1e-9) for before, after in itertools.pairwise(rates))
    assert all(rate <= gpus * rates[0] * (1 + 1e-9) for gpus, rate in zip(COUNTS, rates, strict=True))


def test_pairs_of_the_whole_batch_on_every_worker_turn_the_curve() -> None:
    gathered = dataclasses.replace(WORK, negatives="gathered")
    turns = turning_points(gathered, CLUSTER, 256)
    turn, equal, memory = (
        turns["more GPUs train slower"],
        turns["as long as compute"],
        turns["more than a GPU's memory"],
    )
    assert turn and equal and memory
    # n b / (c + k n^2) is greatest where k n^2 = c: when the text loss takes as long as all the rest.
    assert abs(turn - equal) <= 8
    assert predict(gathered, CLUSTER, 2 * turn, 256).images_per_s < predict(gathered, CLUSTER, turn, 256).images_per_s
    assert (memory * 256) ** 2 * 20 > 80e9 >= ((memory - 8) * 256) ** 2 * 20
    assert predict(gathered, CLUSTER, memory, 256).limit == "memory of the text loss"
    for negatives in ("global", "local"):
        turns = turning_points(dataclasses.replace(WORK, negatives=negatives), CLUSTER, 256)
        assert turns["more GPUs train slower"] is None and turns["as long as compute"] is None


@pytest.mark.parametrize("gpus", COUNTS)
def test_the_limit_is_what_takes_longest(gpus: int) -> None:
    for changes in (
        {},
        {"decode_rate": 10.0},
        {"storage": 1e9},
        {"write_rate": 1e6},
        {"network": 1e8},
        {"memory": 1e12},
    ):
        run = predict(WORK, dataclasses.replace(CLUSTER, **changes), gpus, 256)
        own = sum(run.parts.values())
        longest = max(run.beside.values())
        expected = longest if longest > own else max(run.parts.values())
        assert not run.fits or (run.beside | run.parts)[run.limit] == expected
        assert run.step == max(own, longest)


def test_without_text_nothing_of_it_is_counted() -> None:
    run = predict(dataclasses.replace(WORK, dim=0), CLUSTER, 64, 256)
    assert run.parts["text loss"] == run.parts["text exchange"] == run.text_memory == 0


def test_the_counted_text_loss_is_that_of_the_code() -> None:
    # One product forward and one backward, which the balance and the total share by rows; five matrices live at once.
    assert text_cost("clip", by_rows=True) == pytest.approx((4.0, 112.0, 20.0))
    assert text_cost("clip", by_rows=False) == pytest.approx((6.0, 128.0, 20.0))
    assert text_cost("cos", by_rows=True) == pytest.approx((0.0, 0.0, 0.0))


def test_the_text_loss_stays_small_where_a_model_is() -> None:
    """ViT-S on 512 A100s with 256 images each, as docs/speed.md has it."""
    given = scaling.read_arguments(
        ["--models", "deit3_small_patch16_224", "--decode-rate", "1000", "--write-gb-s", "1"]
    )
    (work,), cluster = scaling.works(given), scaling.machine(given)
    run = predict(work, cluster, 512, 256)
    text = run.parts["text loss"] + run.parts["text exchange"]
    assert run.fits and text < 0.1 * run.step and run.limit == "compute"


def test_a_slow_network_shows_what_the_forward_pass_does_not_hide() -> None:
    slow = dataclasses.replace(CLUSTER, network=5e7)
    run, gather = predict(WORK, slow, 16, 250), all_gather(16e6, 16, slow)
    shown = run.parts["text exchange"] - 3 * all_reduce(16e3, 16, slow)
    assert shown == pytest.approx(gather - 0.25 / 3) and shown > 0


def test_the_counted_model() -> None:
    parameters, flops = model_cost("deit3_small_patch16_224", 224, 1024)
    assert parameters == 22_059_496 + 385 * 1024  # timm's own count, and the head
    assert flops == pytest.approx(3 * 2 * 4.6e9, rel=0.02)  # timm: 4.6 GMACs


def test_rates_of_this_machine(tmp_path: Path) -> None:
    rate, size = decode_rate(tmp_path / "images", images=4, batch=2)
    assert rate > 0 and 100e3 < size < 130e3
    assert write_rate(tmp_path, 2**16) > 0


def test_the_check_by_hand() -> None:
    share = scaling_check.Share(steps=[0.12] * 5, parameters=1_000_000)
    alone = Exchange(0.0, math.inf, 0.0, math.inf)
    assert scaling_check.predict(share, alone, 1, 2, 64, 384, 20) == pytest.approx(0.12)
    gloo = Exchange(0.001, 1e9, 0.002, 1e9)
    gradients, gathered = 0.001 + 1.5 * 4e6 / 1e9, 0.002 + 0.75 * 64 * 384 * 4 / 1e9
    expected = 0.12 * 2 + gradients + gathered + 0.001 * 6.05
    assert scaling_check.predict(share, gloo, 4, 2, 64, 384, 20) == pytest.approx(expected)


def test_the_slowest_of_workers() -> None:
    assert scaling_check.slowest([1.0, 3.0], 1) == 2.0
    assert scaling_check.slowest([3.0, 1.0], 2) == 2.5  # both fast in one of four cases


def test_the_command_says_that_it_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "scaling.json"
    given = ["--models", "vit_tiny_patch16_224", "--gpus", "1", "512", "--decode-rate", "100", "--write-gb-s", "1"]
    scaling.main([*given, "--negatives", "gathered", "--no-check", "--out", str(out)])
    printed = capsys.readouterr().out
    assert scaling.WARNING in printed and "does not fit" in printed
    result = json.loads(out.read_text())
    assert [row["gpus"] for row in result["predictions"]] == [1, 512]
    assert result["predictions"][1]["limit"] == "memory of the text loss"
    assert result["note"] == scaling.WARNING and result["check"] == []


@pytest.mark.slow
def test_exchange_of_two_processes() -> None:
    assert all(math.isfinite(value) and value > 0 for value in exchange(2, floats=1000, repeats=2))
