from __future__ import annotations

import pytest

from hpo.engine.autoscaling import declared_nodes, nodes_of, still_to_come
from hpo.errors import HpoError

GPU = {"CPU": 8.0, "GPU": 1.0}
CLUSTER = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
        "on_demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
        "unknown": {"max_workers": 3},
    },
}


def test_a_yaml_allows_so_many_workers_of_each_type_and_in_all() -> None:
    assert list(nodes_of(CLUSTER)) == [GPU] * 5
    assert list(nodes_of({**CLUSTER, "max_workers": 3})) == [GPU] * 3
    assert list(nodes_of({})) == []


def test_a_type_without_a_limit_of_its_own_has_that_of_all() -> None:
    assert len(list(nodes_of({"max_workers": 2, "available_node_types": {"a": {"resources": {"CPU": 1}}}}))) == 2


def test_nodes_that_run_are_not_to_come() -> None:
    head = {"CPU": 0.0, "memory": 1e9}
    assert still_to_come([GPU] * 3, [head, {**GPU, "memory": 5.0}]) == [GPU] * 2
    assert still_to_come([GPU], [GPU, GPU]) == []
    assert still_to_come([], [head]) == []


def test_nodes_may_be_declared() -> None:
    assert list(declared_nodes('[{"count": 2, "CPU": 8, "GPU": 1}, {"count": 1, "CPU": 4}]')) == [
        GPU,
        GPU,
        {"CPU": 4.0},
    ]


@pytest.mark.parametrize("text", ["4", "[4]", "many", '[{"CPU": 8}]', '[{"count": "x"}]'])
def test_a_declaration_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(HpoError, match=r"HPO_MAY_START: .* is not a list of nodes .*\n  e\.g\. \[\{"):
        list(declared_nodes(text))
