"""The benchmark of encoding at toy size: it ends with finite ratios and two JSON files. What it finds means nothing."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import encode
from tests.benchmarks.test_benchmarks import _result
from tests.embedding_here import cluster

__all__ = ["cluster"]  # a fixture


def test_captions_are_distinct_and_of_mixed_lengths() -> None:
    captions = encode.mixed_captions(500)
    assert len(set(captions)) == 500
    words = [len(caption.split()) for caption in captions]
    assert min(words) < 6 and max(words) > 30


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="the reference is not installed")
def test_encode(tmp_path: Path, cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    encode.main(["--captions", "64", "--rounds", "2", "--actors", "1", "--out", str(tmp_path / "encode.json")])
    for name in ("one process", "1 actors"):
        result = _result(tmp_path / f"encode_{name.replace(' ', '_')}.json")
        assert set(result["sides"]) == {name, "SentenceTransformer.encode"}
    assert capsys.readouterr().out.count("| ratio |") == 2
