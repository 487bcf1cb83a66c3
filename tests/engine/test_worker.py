"""What a process tells of an error."""

from __future__ import annotations

import pytest

from hpo.engine.study import NOT_ITS_OWN
from hpo.engine.worker import failure
from hpo.errors import CheckpointError, StoreError, WorkerLost


@pytest.mark.parametrize(
    ("error", "cause", "counts"),
    [
        (ValueError("odd"), "error", True),
        (MemoryError("full"), "out_of_memory", True),
        (RuntimeError("[enforce fail] can't allocate memory: 8 bytes"), "out_of_memory", True),
        (CheckpointError("damaged", where="x.pt", remedy="start over"), "checkpoint", False),
        (StoreError("nothing answers", where="s3://b", remedy="wait"), "storage", False),
        (WorkerLost("rank 1 did not answer"), "lost_touch", True),
    ],
)
def test_its_cause_is_one_word(error: Exception, cause: str, *, counts: bool) -> None:
    told = failure(error)
    assert (told.cause, told.cause not in NOT_ITS_OWN) == (cause, counts)
    assert str(error).splitlines()[0] in told.message
    assert type(error).__name__ in told.trace
