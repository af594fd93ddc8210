"""The commands of a suite: `peftlab bench | table`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from peftlab.part import BadInput

SuiteFolder = Annotated[
    Path, typer.Argument(metavar="SUITE", help="A suite's folder, e.g. benchmarks/quick.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (bench, table):
        app.command()(command)


def bench(
    suite: SuiteFolder,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a process.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what there is to do, and do nothing.")] = False,
    adopt: Annotated[
        Path | None, typer.Option(metavar="RUNS", help="Bring in this suite's runs from a folder instead.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run again what failed, timed out or was out of memory.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep adapters too, in SUITE/.bench/runs.")] = False,
) -> None:
    """Run what a suite has no result of. Several may run at once; a stopped one goes on where it was."""
    with _mistakes_in_a_line("stopped: what had ended is kept, and the next `peftlab bench` goes on from there"):
        from peftlab import bench as benching

        if adopt is not None:
            benching.adopt(suite, adopt)
        elif dry_run:
            _show_plan(suite, jobs)
        else:
            benching.bench(suite, benching.Options(jobs=jobs, threads=threads, retry=retry, keep=keep))


def table(suite: SuiteFolder) -> None:
    """Write table.md, table.tex, table.csv and references.bib from a suite's results."""
    with _mistakes_in_a_line("stopped"):
        from peftlab.table import read_findings, tables

        place = suite if suite.is_dir() else suite.parent
        for name, text in tables(read_findings(suite)).items():
            (place / name).write_text(text, encoding="utf-8")
            print(place / name)


def _show_plan(folder: Path, jobs: int) -> None:
    from peftlab.bench import current_plan
    from peftlab.estimate import Clock, duration
    from peftlab.store import Store
    from peftlab.suite import load_suite

    suite, records = load_suite(folder), Store(folder).records()
    plan = current_plan(suite, records)
    clock = Clock(suite, plan, records)
    width = max(len(line.row.name) for line in clock.lines) if clock.lines else 4
    print(f"{'row':<{width}}  {'runs':<7}{'ended':<8}{'a run':<16}peak memory")
    for line in clock.lines:
        peak = "-" if line.high_water_bytes is None else f"{line.high_water_bytes / 2**20:.0f} MiB"
        count = f"{line.ended}/{line.total}"
        print(
            f"{line.row.name:<{width}}  {'trials' if line.trial else 'cells':<7}{count:<8}"
            f"{duration(line.seconds):<16}{peak}"
        )
    for row, reason in plan.refused.items():
        print(f"{row.name:<{width}}  unsupported: {reason}")
    left = clock.left(jobs)
    print(
        f"{clock.ended} of {clock.total} ended; the rest takes {'an unknown time' if left is None else duration(left)} "
        f"with {jobs} {'process' if jobs == 1 else 'processes'} at a time"
    )


@contextmanager
def _mistakes_in_a_line(stopped: str) -> Iterator[None]:
    """Bad input is a line on standard error and exit code 2, never a traceback; a stop is one, with 130 or 143."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BadInput as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise SystemExit(130) from None
