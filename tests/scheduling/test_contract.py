"""The contract holds for a policy that pauses and promotes, too."""

from __future__ import annotations

from hypothesis import strategies as st

from hpo.protocols import Policy
from tests.engine.toy import Promoting
from tests.scheduling.contract import PolicyContract


class TestPromoting(PolicyContract):
    policies = st.builds(Promoting, st.integers(4, 9))

    def first_stop(self, policy: Policy) -> int:
        assert policy.max_steps is not None
        return policy.max_steps
