"""How errors look at the command line: one red sentence and what to do next, on standard error, exit code 1."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from service.errors import HeadwaterError
from streams.embedded import EmbeddedUnavailable
from streams.file_tables import EventFileError
from streams.sink_types import SinkError
from streams.source_types import SourceError


class SentenceGroup(TyperGroup):
    """The group of verbs: errors made for people end here as a sentence, anything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; Ctrl-C, which the framework turns into exit code 130, needs no words."""
        try:
            return super().invoke(ctx)
        except HeadwaterError as error:
            complain(error.message, error.hint)
        except (SourceError, SinkError, EmbeddedUnavailable, EventFileError) as error:
            complain(str(error))
        raise typer.Exit(1)


def complain(message: str, hint: str = "") -> None:
    """Print a sentence in red and the hint after it. A path that it begins with stays as it is."""
    opening = message.partition(" ")[0]
    sentence = message if {"/", "."} & set(opening) else message[:1].upper() + message[1:]
    if not sentence.endswith((".", "!", "?")):
        sentence += "."
    # soft_wrap: a path or id in the sentence must stay whole for copying.
    Console(stderr=True).print(
        Text(sentence, style="red").append(f" {hint}" if hint else "", style="default"), soft_wrap=True
    )
