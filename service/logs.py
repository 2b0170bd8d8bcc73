"""Logging, set up once for the whole process: ours through structlog, the libraries' through the same lines."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.config_tables import LogConfig

# Libraries that say at INFO, once a connection or request, what only debugging wants to know.
TALKATIVE = ("kafka", "redis", "uvicorn", "uvicorn.access", "uvicorn.error", "asyncio", "httpx", "httpcore")
# The Kafka client's loops say many times a second that a broker is away. We say it once for each try, and what we could
# not mend as an error of ours (streams/kafka_errors.py).
REPETITIVE = ("kafka.cluster", "kafka.net", "kafka.consumer.fetcher")


def configure_logs(config: LogConfig, *, stream: TextIO | None = None) -> None:
    """Send every log line to `stream` (standard error by default, so that a verb's output stays clean).

    On a terminal, lines for people; elsewhere one JSON object a line: `timestamp` (UTC), `level`, `logger`, `event`, …
    Can be called again: the last call holds.
    """
    stream = stream or sys.stderr
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_color_message,
    ]
    final: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    level = config.level.upper()
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)
    for name in TALKATIVE:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.DEBUG if config.level == "debug" else logging.WARNING)
    for name in REPETITIVE:
        logging.getLogger(name).setLevel(logging.INFO if config.level == "debug" else logging.CRITICAL)
    if config.level == "debug":
        # At its own debug level it writes its settings and every request's bytes, passwords and all.
        logging.getLogger("kafka").setLevel(logging.INFO)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Tests and `demo` configure more than once; a cached logger would keep the first stream.
        cache_logger_on_first_use=False,
    )


def _drop_color_message(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Uvicorn adds its line a second time with colours in it."""
    event.pop("color_message", None)
    return event
