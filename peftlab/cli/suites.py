"""The commands of a suite: `peftlab bench | table | report | verify | reproduce`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftlab.cli.errors import mistakes_in_a_line
from peftlab.errors import UserError
from peftlab.suites.store import suite_folder

if TYPE_CHECKING:
    from peftlab.suites.suite import Row, Suite

SuiteFolder = Annotated[
    Path, typer.Argument(metavar="SUITE", help="A suite's folder, e.g. benchmarks/quick.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (bench, table, report, verify, reproduce):
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
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Instead of runs: measure each combination's memory, operations and times.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep adapters too, in SUITE/.bench/runs.")] = False,
) -> None:
    """Run what a suite has no result of. Several may run at once; a stopped one goes on where it was."""
    with mistakes_in_a_line("what had ended is kept, and the next `peftlab bench` goes on from there"):
        from peftlab.suites import scheduler as benching
        from peftlab.suites.profile_scheduler import profile_suite

        asked = {"--dry-run": dry_run, "--adopt": adopt is not None, "--ledger": ledger}
        if sum(asked.values()) > 1:
            raise UserError(f"{' and '.join(name for name in asked if asked[name])}: one of them at a time")
        options = benching.Options(jobs=jobs, threads=threads, retry=retry, keep=keep)
        if adopt is not None:
            benching.adopt(suite, adopt)
        elif dry_run:
            _show_plan(suite, jobs)
        elif ledger:
            profile_suite(suite, options)
        else:
            benching.bench(suite, options)


def table(suite: SuiteFolder) -> None:
    """Write a suite's tables (Markdown, LaTeX, CSV), the bibliography of its methods and its figures."""
    with mistakes_in_a_line():
        from peftlab.reports.figures import write_figures
        from peftlab.reports.markdown import read_analysis, tables

        place = suite_folder(suite)
        findings = read_analysis(suite)
        try:
            for name, text in tables(findings).items():
                (place / name).write_text(text, encoding="utf-8")
                print(place / name)
            for path in write_figures(findings, place / "figures"):
                print(path)
        except OSError as error:
            raise UserError(f"{error.filename or place}: cannot be written: {error.strerror}") from None


def report(
    suite: SuiteFolder,
    output: Annotated[
        Path | None, typer.Option(help="The page; report.html in the suite's folder if not given.", show_default=False)
    ] = None,
) -> None:
    """Write one HTML page of a suite's results: table to sort and filter, figures, every run."""
    with mistakes_in_a_line():
        from peftlab.reports.html import page
        from peftlab.reports.markdown import read_analysis

        path = output or suite_folder(suite) / "report.html"
        text = page(read_analysis(suite))
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
        print(path)


def verify(suite: SuiteFolder) -> None:
    """Compute every metric of a suite again from its stored predictions and the data, without a model."""
    with mistakes_in_a_line():
        from peftlab.suites.store import Store
        from peftlab.suites.verify import verify as verify_suite

        wrong = total = 0
        for verdict in verify_suite(suite):
            total += 1
            wrong += bool(verdict.wrong)
            for line in verdict.wrong:
                print(f"{verdict.stored.path}: {line}")
        if not total:
            raise UserError(f"{Store(suite).folder}: no results")
        print(f"{total - wrong} of {total} results are what their predictions give")
        raise SystemExit(1 if wrong else 0)


def reproduce(
    result: Annotated[Path, typer.Argument(help="A file of a suite's results folder.", show_default=False)],
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
) -> None:
    """Run one stored result again; exit code 0 if it is the same to the bit or within its interval, else 1."""
    with mistakes_in_a_line():
        from peftlab.suites.reproduce import reproduce as run_again
        from peftlab.suites.store import read_record

        read_record(result)
        found = run_again(result, threads)
        for difference in found.differences:
            print(f"{'differs':<11}{difference}")
        print(f"{'verdict':<11}{found.verdict}")
        raise SystemExit(0 if found.same or found.within else 1)


def _show_plan(folder: Path, jobs: int) -> None:
    from peftlab.suites.eta import EtaEstimator, duration
    from peftlab.suites.matching import matched_suite
    from peftlab.suites.plan import current_plan
    from peftlab.suites.store import Store

    suite, records = matched_suite(folder), Store(folder).records()
    plan = current_plan(suite, records)
    clock = EtaEstimator(suite, plan, records)
    run = {line.row for line in clock.lines if line.high_water_bytes is not None}
    unrun = [row for row in plan.cells if row not in run]
    predicted = _predicted_peaks(suite, unrun)
    width = max(len(line.row.name) for line in clock.lines) if clock.lines else 4
    print(f"{'row':<{width}}  {'runs':<7}{'ended':<8}{'a run':<16}peak memory")
    for line in clock.lines:
        peak = "-" if line.high_water_bytes is None else f"{line.high_water_bytes / 2**20:.0f} MiB"
        if (forecast := predicted.get(line.row)) is not None:
            peak = f"{forecast / 2**20:.0f} MiB predicted"
        count = f"{line.ended}/{line.total}"
        print(
            f"{line.row.name:<{width}}  {'trials' if line.trial else 'cells':<7}{count:<8}"
            f"{duration(line.seconds):<16}{peak}"
        )
    for row, reason in plan.refused.items():
        print(f"{row.name:<{width}}  unsupported: {reason}")
    if predicted:
        print("predicted: the tensors of a training step, by their shapes; otherwise the whole process, measured")
    left = clock.left(jobs)
    print(
        f"{clock.ended} of {clock.total} ended; the rest takes {'an unknown time' if left is None else duration(left)} "
        f"with {jobs} {'process' if jobs == 1 else 'processes'} at a time"
    )


def _predicted_peaks(suite: Suite, rows: Sequence[Row]) -> dict[Row, int]:
    """Bytes of a training step of each, as far as its model's shapes are at hand. Imports torch if there are any."""
    if not rows or suite.placement.sharded:  # of a share nothing is forecast
        return {}
    print(f"{len(rows)} rows were never run: their memory is forecast, which takes a moment", file=sys.stderr)
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    from peftlab.profiling.estimate import estimate_memory

    found = {}
    for row in rows:
        recipe = suite.example(row)
        with suppress(UserError):  # the forecast is a help, not what was asked for
            memory = estimate_memory(
                recipe, limit=None, devices=suite.placement.processes, examples=None, length=None
            ).memory
            if memory is not None:
                found[row] = memory.peak
    return found
