from __future__ import annotations

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from hpo.engine.cluster import _runtime_env, tell_ray
from hpo.engine.failures import KilledForMemory, explain, written_before
from hpo.engine.study import LOST_NODE
from hpo.engine.worker import AttemptFailed

_NODE_GONE = "The actor died because its node has died. Node Id: 127a\n\tthe actor's node was terminated "


@pytest.mark.parametrize(
    "words",
    [
        _NODE_GONE + "expectedly: received SIGTERM",  # a host that shuts down, as a spot host does
        _NODE_GONE + "unexpectedly: health check failed due to missing too many heartbeats",
        _NODE_GONE + "unexpectedly: dashboard_agent failed and raylet fate-shares with it.",
    ],
)
def test_a_node_that_is_gone_is_told_from_a_process_that_died(words: str) -> None:
    assert explain(RayActorError(error_msg=words))[0] == LOST_NODE


def test_a_preempted_node_is_lost() -> None:
    assert explain(RayActorError(error_msg="The actor died.", preempted=True))[0] == LOST_NODE


def test_a_process_that_died_alone_was_killed() -> None:
    words = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    assert explain(RayActorError(error_msg=words)) == ("killed", "the trial's process died", words)
    assert explain(ActorUnavailableError("RpcError: Socket closed", None))[0] == "killed"


def test_memory_is_named() -> None:
    assert explain(KilledForMemory(error_msg="killed"))[0] == "out_of_memory"
    assert explain(RayActorError(error_msg="worker(s) were killed due to the node running low on memory"))[0] == (
        "out_of_memory"
    )


def test_what_a_step_raised_is_passed_on() -> None:
    error = AttemptFailed("error", "told to fail", "trace")
    assert explain(error) == ("error", "told to fail", "trace")
    assert written_before(error) == ()
    assert explain(ValueError("x")) == ("error", "ValueError: x", "x")


def test_ray_is_told_to_wait_until_it_knows_why_a_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the processes of a node that goes down with its network up count as killed: Ray asks for 1 s only."""
    name = "RAY_timeout_ms_task_wait_for_death_info"
    monkeypatch.delenv(name, raising=False)
    tell_ray()
    assert _runtime_env("code")["env_vars"][name] == "30000"
    monkeypatch.setenv(name, "5")
    tell_ray()
    assert _runtime_env("code")["env_vars"][name] == "5"
