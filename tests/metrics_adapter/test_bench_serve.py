"""The bench of serve: both of its servers answer every question with a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from metrics_adapter.bench_serve import _keys, _measured


@pytest.mark.slow
@pytest.mark.parametrize("which", ["bare", "ours"])
def test_every_question_is_answered_through_tls_and_reviews(tmp_path: Path, which: str):
    found = _measured(which, _keys(tmp_path), 2.0, True)
    assert found.wrong == 0
    assert 0.0 < found.median_seconds <= found.p99_seconds <= found.longest_seconds
    assert found.most_per_second > 0.0
    assert found.busy_seconds > 0.0
    if which == "bare":
        assert found.turns_per_second == 0.0, "nothing else happens in its process"
