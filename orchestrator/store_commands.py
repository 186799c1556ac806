"""`thresher store backup | prune`: of the database that a service has, while it is used."""

import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import SpecError
from orchestrator.printing import show

app = typer.Typer(help="The service's database: back it up, remove what is old.", no_args_is_help=True)
Runs = Annotated[str, typer.Option("--runs", help="As of `thresher serve`.")]
Url = Annotated[str | None, typer.Option("--store", help="As of `thresher serve`.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
_AGE = re.compile(r"^([1-9][0-9]{0,4})d$")
_DAY_MS = 86_400_000


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.", metavar="FILE")],
    runs: Runs = "runs",
    store: Url = None,
    as_json: Json = False,
) -> None:
    """Copy an SQLite database to a new file while it is used. Of PostgreSQL: pg_dump."""
    from orchestrator.service.serving import store_url
    from orchestrator.store import Store

    with Store.existing(store_url(Path(runs).absolute(), store), any_schema=True) as opened:
        opened.backup(file)
        document = {"store": opened.name, "path": str(file), "bytes": file.stat().st_size}
    show(document, [str(file)], as_json)


@app.command()
def prune(
    older_than: Annotated[str, typer.Option("--older-than", help="Whose jobs ended so long ago.", metavar="90d")],
    runs: Runs = "runs",
    store: Url = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove jobs that ended long ago, with their attempts, events, keys, logs and modules.

    What a registered model came from stays, and so do run directories: `rm -r` them, then `thresher clean`.
    """
    from orchestrator.service.serving import store_url
    from orchestrator.store import Store

    age = _AGE.match(older_than)
    if age is None:
        raise SpecError.at("--older-than", "no number of days", older_than, "1d to 99999d")
    folder = Path(runs).absolute()
    with Store.existing(store_url(folder, store)) as opened:
        gone = opened.prune(opened.now_ms() - int(age[1]) * _DAY_MS, dry_run=dry_run)
    if not dry_run:
        # After the database: what is still named there must still be there.
        for run in gone.runs:
            shutil.rmtree(folder / ".service" / "jobs" / run, ignore_errors=True)
        for submission in gone.submissions:
            (folder / ".service" / "logs" / f"{submission}.log").unlink(missing_ok=True)
    verb = "would remove" if dry_run else "removed"
    document = {"jobs": list(gone.jobs), "runs": list(gone.runs), "attempts": len(gone.submissions)}
    document |= {"events": gone.num_events, "dry_run": dry_run}
    line = f"{verb} {len(gone.jobs)} jobs, {len(gone.submissions)} attempts, {gone.num_events} events"
    show(document, [*(f"{verb} {job}" for job in gone.jobs), line], as_json)
