"""Verbs that ask what is served: vectors as readers see them, best and similar items, and why.

Like all verbs, they import the modules that do the work only when they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_options import ConfigOption, JsonOption, load
from service.cli_output import print_explanation, print_ranking, print_vectors

app = typer.Typer()

KOption = Annotated[int, typer.Option("--k", min=1, max=1000, help="Length of the list.")]


@app.command()
def lookup(
    kind: Annotated[str, typer.Argument(metavar="items|users", help="Which vectors.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Whose.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show vectors as a ranking service reads them from Redis; exit 1 if any is missing."""
    if kind not in ("items", "users"):
        raise typer.BadParameter(f"must be items or users, not {kind!r}.", param_hint="items|users")
    loaded = load(config)
    from service import lookup as looking_up

    found = looking_up.lookup(loaded, "items" if kind == "items" else "users", ids)
    print_vectors(found, as_json=as_json)
    raise typer.Exit(0 if all(vector["found"] for vector in found) else 1)


@app.command()
def similar(
    item: Annotated[str, typer.Argument(metavar="ID", help="The item.")],
    config: ConfigOption = None,
    k: KOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List the items nearest to one."""
    answering = _answering(config)
    print_ranking(answering.similar(item, k), as_json=as_json)


@app.command()
def recommend(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user; someone unknown gets the default list.")],
    config: ConfigOption = None,
    k: KOption = 20,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also the items the user knows already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the best items for a user."""
    answering = _answering(config)
    print_ranking(answering.recommend(user, k, include_seen), as_json=as_json)


@app.command()
def explain(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user.")],
    item: Annotated[str, typer.Argument(metavar="ITEM", help="The item, whether it is recommended or not.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the score of an item for a user is made of: modalities, popularity, each event of the history."""
    answering = _answering(config)
    print_explanation(answering.explain(user, item), as_json=as_json)


def _answering(path: Path | None) -> Any:
    """The running daemon, or the champion loaded from disk where none runs: both give the same answers."""
    loaded = load(path)
    from service.errors import NotRunning
    from service.http_client import DaemonClient

    client = DaemonClient(loaded)
    try:
        client.status()
    except NotRunning:
        from service import control

        return control.local_app(loaded)
    return client
