"""What every table must do; see `hpo.training.data.tables.TableData`."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpo.declared import described
from hpo.errors import ExperimentError
from hpo.training.data import TableData


class TableDataContract(ABC):
    """Inherit, and give a table, which may lie in `tmp_path`."""

    @pytest.fixture
    @abstractmethod
    def data(self, tmp_path: Path) -> TableData: ...

    def test_is_read_twice_alike(self, data: TableData) -> None:
        data.check()
        path = data.find(None)
        assert path == data.find(None)
        assert path is None or path.is_absolute()
        samples = data.read(path)
        assert samples.fingerprint == data.read(path).fingerprint

    def test_holds_finite_features_and_a_target_of_each_row(self, data: TableData) -> None:
        samples = data.read(data.find(None))
        for part in (samples, samples.test or samples):
            assert part.inputs.ndim == 2
            assert part.inputs.dtype == np.float64
            assert np.isfinite(part.inputs).all()
            assert len(part.targets) == len(part.inputs)

    def test_declaration_travels_and_describes_itself(self, data: TableData) -> None:
        travelled = pickle.loads(pickle.dumps(data))  # noqa: S301
        assert travelled == data
        assert hash(travelled) == hash(data)
        assert json.dumps(described(travelled)) == json.dumps(described(data))
        assert data.name

    def test_a_share_that_is_none_is_an_error(self, data: TableData) -> None:
        for ratio in (1, -0.1, "half", True):
            with pytest.raises(ExperimentError, match=r"test_ratio: .* is not a number of at least 0 and below 1"):
                replace(data, test_ratio=ratio).check()  # type: ignore[type-var]
