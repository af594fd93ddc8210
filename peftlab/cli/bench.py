"""`peftlab bench`: run everything in a suite that has no result yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.dry_run import print_plan
from peftlab.cli.options import SuiteFolder
from peftlab.cli.renamed import PROFILE_RENAMED, FormerProfileOption
from peftlab.errors import UserError


@command(interrupted="finished runs are saved; the next `peftlab bench` resumes from there")
def bench(
    suite: SuiteFolder,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads per process.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what remains to be done, and do nothing.")] = False,
    adopt: Annotated[
        Path | None, typer.Option(metavar="RUNS", help="Instead, import this suite's finished runs from a folder.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Repeat runs that failed, timed out or ran out of memory.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead, measure memory, FLOPs and times of each combination.")
    ] = False,
    former_profile: FormerProfileOption = False,
    keep: Annotated[bool, typer.Option("--keep", help="Also keep the adapters, in SUITE/.bench/runs.")] = False,
) -> None:
    """Run everything in a suite that has no result yet.

    Several calls may work on one suite at once. Finished runs are kept; a run that was interrupted starts again.
    """
    if former_profile:
        raise UserError(PROFILE_RENAMED)
    modes = {"--dry-run": dry_run, "--adopt": adopt is not None, "--profile": profile}
    if sum(modes.values()) > 1:
        raise UserError(f"{' and '.join(name for name in modes if modes[name])}: use one at a time")
    from peftlab.suites.adopt import adopt as adopt_runs
    from peftlab.suites.profile_jobs import profile_suite
    from peftlab.suites.run_jobs import bench as bench_suite
    from peftlab.suites.scheduler import Options

    options = Options(jobs=jobs, threads=threads, retry=retry, keep=keep)
    if adopt is not None:
        adopt_runs(suite, adopt)
    elif dry_run:
        print_plan(suite, jobs)
    elif profile:
        profile_suite(suite, options)
    else:
        bench_suite(suite, options)
