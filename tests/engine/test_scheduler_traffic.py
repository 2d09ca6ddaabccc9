"""Whatever the sizes and the traffic, everybody finishes with the tokens they would get alone."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.helpers.replica import Replica

WINDOWS = st.none() | st.integers(1, 12)
REQUESTS = st.tuples(st.integers(1, 30), st.none() | st.integers(0, 30), st.booleans())


class Traffic(RuleBasedStateMachine):
    """Requests come, plans go out and come back, requests are aborted, in any order."""

    @initialize(
        max_in_flight=st.integers(1, 4),
        budget=st.sampled_from([1, 2, 5, 16, 100]),
        max_batch_size=st.integers(1, 6),
        block_size=st.sampled_from([1, 3, 4]),
        spare_blocks=st.integers(0, 12),
        window=WINDOWS,
    )
    def build(
        self,
        max_in_flight: int,
        budget: int,
        max_batch_size: int,
        block_size: int,
        spare_blocks: int,
        window: int | None,
    ) -> None:
        self.replica = Replica(
            max_seq_len=30,
            max_num_batched_tokens=budget,
            max_batch_size=max_batch_size,
            block_size=block_size,
            num_blocks=-(-(window or 30) // block_size) + spare_blocks,
            max_in_flight=max_in_flight,
            window=window,
        )

    @rule(request=REQUESTS)
    def add(self, request: tuple[int, int | None, bool]) -> None:
        n_prompt, max_tokens, prompt_logprobs = request
        self.replica.add(n_prompt, max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)

    @rule(times=st.integers(1, 5))
    def schedule(self, times: int) -> None:
        for _ in range(times):
            self.replica.schedule()

    @precondition(lambda self: self.replica.out)
    @rule()
    def update(self) -> None:
        self.replica.update()

    @precondition(lambda self: self.replica.scheduler.unfinished())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.replica.scheduler.unfinished()))
        self.replica.scheduler.finish(sequence.seq_id, "abort")
        assert sequence.finish_reason == "abort"

    @invariant()
    def blocks_have_one_owner(self) -> None:
        if hasattr(self, "replica"):
            self.replica.check_blocks()
            scheduler = self.replica.scheduler
            assert len(scheduler.running) <= self.replica.config.max_batch_size
            assert scheduler.in_flight == len(self.replica.out) <= scheduler.max_in_flight

    def teardown(self) -> None:
        if hasattr(self, "replica"):
            self.replica.finish_all()
            self.replica.check_outputs()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(REQUESTS, min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([1, 3, 16, 200]),
    st.integers(8, 20),
    WINDOWS,
)
def test_every_request_finishes_as_if_alone(
    requests: list[tuple[int, int | None, bool]],
    max_in_flight: int,
    budget: int,
    num_blocks: int,
    window: int | None,
) -> None:
    replica = Replica(
        max_seq_len=30,
        num_blocks=num_blocks if window is None else num_blocks // 2,  # rings are of 3 at most
        max_in_flight=max_in_flight,
        max_num_batched_tokens=budget,
        window=window,
    )
    for n_prompt, max_tokens, prompt_logprobs in requests:
        replica.add(n_prompt, max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
    replica.finish_all()
    replica.check_outputs()
