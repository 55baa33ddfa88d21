"""LinearProbe where hardly any rows are there."""

import numpy as np
import pytest

from eval.protocols.estimator import probe


def test_it_needs_a_row_to_choose_on() -> None:
    x, y = np.eye(3, 4, dtype=np.float32), np.arange(3)
    with pytest.raises(ValueError, match="no row to choose C on.*3 rows in 3 classes.*X_val"):
        probe(x, y)
    assert 0 <= probe(x, y, X_val=x, y_val=y, Cs=3).score(x, y) <= 1
