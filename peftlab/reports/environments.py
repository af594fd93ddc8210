"""Which environments the runs of a task used, and which profiles have comparable times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from peftlab.profiling.profile import Profile
from peftlab.reports.result_row import ResultRow
from peftlab.results.run_result import Environment
from peftlab.suites.store import Stored

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def describe_environment(environment: Environment) -> str:
    """Everything that can change a number: code, libraries, hardware, threads, placement and precision."""
    hardware, code = environment.hardware, environment.code
    commit = "peftlab " + (code.commit[:7] if code.commit else environment.libraries.get("peftlab", "unknown"))
    modified = " with uncommitted changes" if code.modified else ""
    machine = ", ".join([*hardware.accelerators, hardware.processor])
    versions = environment.libraries
    libraries = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    threads = f"{hardware.threads} thread{'s' if hardware.threads > 1 else ''}"
    placement = ", ".join(filter(None, [machine, threads, environment.placement, environment.precision]))
    return f"{commit}{modified}; {libraries}; {placement}"


def most_common_environment(runs: Sequence[Stored]) -> str:
    """Environment of most of the finished runs, the first in alphabetical order among equals; "" if there is none."""
    environments = _count_environments(runs)
    return min(environments, key=lambda name: (-environments[name], name)) if environments else ""


def with_environments(row: ResultRow, common: str) -> ResultRow:
    """The row with the environments of its runs, trials and profile that differ from `common`."""
    environments = _count_environments([*row.runs, *row.trials])
    profiled_on = None if row.stored_profile is None else row.stored_profile.record.measured_on
    profile_environment = None if profiled_on is None else describe_environment(profiled_on)
    return replace(
        row,
        other_environments=tuple(sorted(name for name in environments if name != common)),
        profile_environment=None if profile_environment == common else profile_environment,
    )


def comparable_times(profile: Profile, other: Profile) -> bool:
    """True if the two profiles share machine, placement, precision and batch, so that their times can be compared."""
    return _timing_key(profile) == _timing_key(other)


def _count_environments(runs: Sequence[Stored]) -> Counter[str]:
    results = [stored.record.result for stored in runs if stored.record.result is not None]
    return Counter(describe_environment(result.environment) for result in results)


def _timing_key(profile: Profile) -> tuple[object, ...]:
    hardware = profile.environment.hardware
    machine = (hardware.processor, hardware.cores, hardware.threads, *hardware.accelerators)
    return (*machine, profile.environment.placement, profile.environment.precision, profile.examples, profile.length)
