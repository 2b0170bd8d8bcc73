"""Waiting for a server that is away: exponential backoff with jitter, said in the log, cut short by a stop."""

from __future__ import annotations

import threading

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

log = structlog.get_logger(__name__)


def patiently(what: str, *errors: type[Exception], stopping: threading.Event, longest_s: float = 15.0) -> Retrying:
    """A tenacity `Retrying` that tries again on `errors` until `stopping` is set, and then raises the last of them."""

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(f"{what} is away; trying again", error=str(error), wait_s=round(state.upcoming_sleep, 2))

    def pause(seconds: float) -> None:
        stopping.wait(seconds)

    return Retrying(
        retry=retry_if_exception_type(errors),
        wait=wait_random_exponential(multiplier=0.5, max=longest_s),
        stop=stop_when_event_set(stopping),
        sleep=pause,
        before_sleep=say,
        reraise=True,
    )
