"""The command line: each verb reads its options, hands over to the module that does the work, and prints its answer.

Those modules are imported by the verb that needs them: `headwater status` must not wait for torch.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from service import cli_answers
from service.cli_errors import SentenceGroup
from service.cli_options import ConfigOption, DryRunOption, JsonOption, load
from service.cli_output import print_checks, print_mapping, print_rows

app = typer.Typer(
    cls=SentenceGroup,
    name="headwater",
    help="An incremental online recommender: events from Kafka in, fresh versioned vectors in Redis out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSONL, CSV or Parquet files of events.")]


def main() -> None:
    """Entry point of the `headwater` program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed_version("headwater"))
        raise typer.Exit


@app.callback()
def _root(
    _version_: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """An incremental online recommender: events from Kafka in, fresh versioned vectors in Redis out."""


@app.command()
def demo(
    events: Annotated[int | None, typer.Option(help="Interactions in all.")] = None,
    users: Annotated[int | None, typer.Option(help="Users there are at first.")] = None,
    items: Annotated[int | None, typer.Option(help="Items there are at first.")] = None,
    rate: Annotated[float | None, typer.Option(help="Interactions per second of the constant stream.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where everything is kept; the next demo goes on from there.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything simulated follows from it.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that learn.")] = None,
    budget_s: Annotated[
        float | None, typer.Option("--budget-s", help="Seconds after which to sum up, learned or not.")
    ] = None,
    keep_open: Annotated[bool, typer.Option("--keep-open", help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Show the whole of it on this machine: embedded broker and Redis, a simulated stream, and a report at the end."""
    from rich.console import Console

    from service.demo import DemoOptions, run_demo

    given: dict[str, Any] = {
        "events": events,
        "users": users,
        "items": items,
        "rate": rate,
        "state_dir": state_dir,
        "seed": seed,
        "threads": threads,
        "budget_s": budget_s,
        "keep_open": keep_open,
    }
    options = DemoOptions(**{name: value for name, value in given.items() if value is not None})
    raise typer.Exit(run_demo(options, Console()))


@app.command()
def run(
    config: ConfigOption = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="earliest|latest|TIME", help="Where to begin; only while the state directory is empty."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when everything there is now has been learned.")] = False,
) -> None:
    """Run the daemon until it is told to stop."""
    loaded = load(config)
    from service import daemon

    raise typer.Exit(daemon.run(loaded, start=start, once=once))


@app.command()
def replay(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE…", help="JSONL, CSV or Parquet files of events.")
    ] = None,
    config: ConfigOption = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Judge each phase as the daemon does, on its own cuts.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(metavar="textbook", help="A known experiment in place of files: textbook.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also write the metrics to this file as JSON.")
    ] = None,
) -> None:
    """Learn from files in phases as the daemon would, without a broker; print what each phase measured beforehand."""
    if preset not in (None, "textbook"):
        raise typer.BadParameter(f"there is no preset {preset!r}; there is textbook.", param_hint="--preset")
    if (preset is None) == (not files):
        raise typer.BadParameter("give either files of events or --preset textbook.", param_hint="FILE…")
    loaded = load(config)
    if preset is not None:
        from service import textbook

        raise typer.Exit(textbook.run(loaded.seed))
    from service import replay as replaying

    raise typer.Exit(replaying.replay(loaded, files or [], judge=judge, json_out=json_out))


@app.command()
def produce(
    files: FilesArgument,
    config: ConfigOption = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Events a second; without it, as fast as possible.")
    ] = None,
) -> None:
    """Send a file's events to the configured topics, creating those that do not exist."""
    loaded = load(config)
    from service import produce as producing

    raise typer.Exit(producing.produce(loaded, files, rate))


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the configuration, the servers it names and this machine; exit 1 if anything must be mended."""
    from service import doctor as examining

    checks = examining.examine(config)
    print_checks(checks, as_json=as_json)
    raise typer.Exit(1 if any(check.outcome == "FAIL" for check in checks) else 0)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what the daemon is doing, or what its state says if it is not running."""
    loaded = load(config)
    from service import control

    print_mapping(control.status(loaded), as_json=as_json)


@app.command()
def versions(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the checkpoints on disk: what was decided of each, and which is served."""
    loaded = load(config)
    from service import control

    print_rows(control.versions(loaded)["versions"], as_json=as_json, empty="There is no checkpoint yet.")


@app.command()
def rollback(
    config: ConfigOption = None,
    to: Annotated[int | None, typer.Option(min=1, metavar="N", help="The version to go back to.")] = None,
    relearn: Annotated[bool, typer.Option("--relearn", help="Also learn on from that version's weights.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier version's weights again (by default the last champion's) and hold promotion from then on."""
    loaded = load(config)
    from service import control

    print_mapping(control.rollback(loaded, to=to, relearn=relearn, dry_run=dry_run), as_json=as_json)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(min=1, metavar="N", help="The version to serve.")],
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve version N, whatever the judge said of it, and promote automatically again."""
    loaded = load(config)
    from service import control

    print_mapping(control.promote(loaded, version=version, dry_run=dry_run), as_json=as_json)


@app.command()
def promote_shadow(config: ConfigOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Serve what the shadow has learned, go on learning from it, and promote automatically again."""
    loaded = load(config)
    from service import control

    print_mapping(control.promote_shadow(loaded, dry_run=dry_run), as_json=as_json)


@app.command()
def pause(config: ConfigOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Hold promotion: learning goes on, what is served stays."""
    loaded = load(config)
    from service import control

    print_mapping(control.pause(loaded, dry_run=dry_run), as_json=as_json)


@app.command()
def resume(config: ConfigOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Promote candidates that pass again, after `pause` or `rollback`."""
    loaded = load(config)
    from service import control

    print_mapping(control.resume(loaded, dry_run=dry_run), as_json=as_json)


app.add_typer(cli_answers.app)


if __name__ == "__main__":
    main()
