"""`headwater doctor`: named checks of the configuration, the servers it names and this machine, each with what to do.

Every check only looks: nothing is created, committed or published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from service.checks import Check, failed, passed
from service.config import Config, load_config, read_secret
from service.errors import ConfigError

__all__ = ["Check", "examine"]

TIMEOUT_S = 5.0


def examine(path: Path | None, *, timeout_s: float = TIMEOUT_S) -> list[Check]:
    """Run every check, in the order in which one explains the next. A broken configuration ends it at once."""
    try:
        config = load_config(path)
    except ConfigError as error:
        return [failed("configuration", problem, error.hint) for problem in error.problems]
    # Imported only now: a slip in the configuration is told at once.
    from service.doctor_host import check_host
    from service.doctor_kafka import check_kafka
    from service.doctor_redis import check_redis

    parts: list[Callable[[], Iterator[Check]]] = [
        lambda: _configuration(config, path),
        lambda: check_host(config),
        lambda: check_kafka(config, timeout_s),
        lambda: check_redis(config, timeout_s),
    ]
    return [check for part in parts for check in part()]


def _configuration(config: Config, path: Path | None) -> Iterator[Check]:
    """What only the parts that use the settings know: fusion names, field names, secrets, devices."""
    problems = []
    from models.fusion import FUSIONS
    from service.connections import event_decoder

    if config.model.fusion not in FUSIONS:
        known = ", ".join(sorted(FUSIONS))
        problems.append(
            (f'"fusion" in [model] is "{config.model.fusion}", which does not exist.', f"Choose from {known}.")
        )
    try:
        event_decoder(config)
    except ValueError as error:
        problems.append((f"[events] fields: {error}", "Mend the mapping."))
    for secret in (config.kafka.security_password_file, config.redis.password_file, config.http.token_file):
        try:
            read_secret(secret)
        except ConfigError as error:
            problems.append((error.message, error.hint))
    if config.train.device == "cuda" and not _cuda():
        problems.append(('"device" in [train] is "cuda", but there is none here.', 'Use "cpu" or "auto".'))
    for message, hint in problems:
        yield failed("configuration", message, hint)
    if not problems:
        yield passed("configuration", f"{path} is sound." if path else "No file; defaults and environment are sound.")


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
