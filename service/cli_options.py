"""What the verbs of the command line have in common: their options, and how the configuration is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.config import Config, load_config
from service.logs import configure_logs

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", envvar="HEADWATER_CONFIG", help="The configuration, a TOML file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def load(path: Path | None) -> Config:
    """The configuration, with the log set up as it says. Raises ConfigError."""
    config = load_config(path)
    configure_logs(config.log)
    return config
