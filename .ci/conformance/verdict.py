"""What the conformance suite's results mean for this server: `scenarios.toml` against the suite's `checks.json` files.

Guarantees that every scenario that was run is accounted for: one that fails anew, one that passes though the file says
that it cannot, one that the file does not name, and one that the file names and nobody ran are each a surprise.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A folder of the suite's results: server-tools-list-2026-11-22T01-33-24-249Z.
RESULT = re.compile(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
# The suite's own check that each message fits the protocol's schema: it holds whatever a scenario is about.
WIRE = "wire-schema-valid"
FAILED = ("FAILURE", "WARNING")


@dataclass(frozen=True)
class Expected:
    """`scenarios.toml`. `excused` names single checks, as `scenario:check`."""

    apply: frozenset[str]
    do_not_apply: frozenset[str]
    say_nothing: frozenset[str]
    excused: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "Expected":
        """Raises ValueError where a scenario stands in two lists, or a check is excused of one that does not apply."""
        content = tomllib.loads(path.read_text(encoding="utf-8"))

        def named(table: str, key: str) -> frozenset[str]:
            return frozenset(name for group in content[table] for name in group[key])

        excused = named("excused", "checks")
        expected = cls(
            frozenset(content["apply"]), named("do_not_apply", "scenarios"), named("say_nothing", "scenarios"), excused
        )
        twice = expected.apply & expected.do_not_apply | expected.say_nothing & (expected.apply | expected.do_not_apply)
        if twice:
            raise ValueError(f"{path.name} names in two lists: {', '.join(sorted(twice))}")
        if astray := [check for check in excused if check.partition(":")[0] not in expected.apply]:
            raise ValueError(f"{path.name} excuses checks of scenarios that do not apply: {', '.join(sorted(astray))}")
        return expected

    @property
    def scenarios(self) -> frozenset[str]:
        return self.apply | self.do_not_apply | self.say_nothing


@dataclass
class Scenario:
    """One scenario's checks that ended so; `failed` maps a check's id to what the suite said of it."""

    passed: set[str]
    failed: dict[str, str]


def read(folder: Path) -> dict[str, Scenario]:
    """The results that the suite wrote into `folder`. A check that passes here and fails there has failed."""
    results: dict[str, Scenario] = {}
    for path in sorted(folder.glob("*/checks.json")):
        name = RESULT.fullmatch(path.parent.name)
        if name is None:
            raise ValueError(f"{path.parent.name} is no folder of the suite's results as this reads them")
        checks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        failed = {
            check["id"]: f"{check['status']}: {check.get('errorMessage') or check['description']}"
            for check in checks
            if check["status"] in FAILED
        }
        passed = {check["id"] for check in checks if check["status"] == "SUCCESS"} - failed.keys()
        results[name[1]] = Scenario(passed, failed)
    return results


def surprises(results: Mapping[str, Scenario], expected: Expected) -> list[str]:
    """A line for everything in one run that is not as expected."""
    return [line for name, scenario in sorted(results.items()) for line in _surprises(name, scenario, expected)]


def _surprises(name: str, scenario: Scenario, expected: Expected) -> Iterable[str]:
    excused = {check.partition(":")[2] for check in expected.excused if check.startswith(f"{name}:")}
    if name not in expected.scenarios:
        yield f"{name}: scenarios.toml does not say whether it applies"
    elif name in expected.apply:
        for check in sorted(scenario.failed.keys() - excused):
            yield f"{name}:{check} fails: {scenario.failed[check]}"
        for check in sorted(excused - scenario.failed.keys()):
            yield f"{name}:{check} fails no more: it is to be excused no longer"
        if not scenario.passed:
            yield f"{name}: applies, and nothing of it was checked"
    elif WIRE in scenario.failed:
        yield f"{name}:{WIRE} fails: {scenario.failed[WIRE]}"
    elif name in expected.do_not_apply and scenario.passed - {WIRE} and not scenario.failed:
        yield f"{name}: passes, and scenarios.toml says that it does not apply"
    elif name in expected.say_nothing and any(told.startswith("FAILURE") for told in scenario.failed.values()):
        yield f"{name}: fails, and so says something: {'; '.join(scenario.failed.values())}"


def never_run(runs: Iterable[Mapping[str, Scenario]], expected: Expected) -> list[str]:
    """A line for every scenario that the file names and no run held: the suite has dropped it, or it is misspelt."""
    run = {name for results in runs for name in results}
    return [f"{name}: is in scenarios.toml, and was not run" for name in sorted(expected.scenarios - run)]
