"""Add up what a run takes, stage by stage: jobs, tokens, loads, hours of devices and money.

Hours are busy hours: a server that waits, and a device whose job waits for a server elsewhere, cost
more. Money is that of models with a `price`, and of device hours with `resources.gpu_hour`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import polars as pl

from agentsafe._util import format as fmt
from agentsafe._util.usage import Usage
from agentsafe.experiment import grid
from agentsafe.models.spending import cost
from agentsafe.runs.calibration import Calibration
from agentsafe.runs.speed import Range, Speed
from agentsafe.runs.workload import SERVERS, Work, is_here, is_own_server

_HOUR = 3600.0
_NAMED = 4  # models in a line
#: Address of the servers in a config that would have them.
_SOME_SERVER = {"backend": "openai", "lora": True, "base_url_env": "SERVER_URL"}


@dataclass(frozen=True)
class Line:
    """Sum up what a stage takes.

    Attributes:
        stage: as in `Work`.
        jobs: that start for it.
        loads: of models.
        read, cached, generated: tokens, as in `Work`.
        seconds: of devices; None where the speed of a model is not known.
        price: of its models on servers with a price; None without any.
    """

    stage: str
    jobs: int
    loads: int
    read: float
    cached: float
    generated: float
    seconds: Range | None
    price: float | None

    def money(self, gpu_hour: float | None) -> Range | None:
        """Return what it costs, at a price of a device's hour; None where nothing has a price."""
        hours = self.seconds if gpu_hour is not None else None
        if hours is None and self.price is None:
            return None
        paid = (hours or Range(0.0, 0.0)).times((gpu_hour or 0.0) / _HOUR)
        return Range(paid.low + (self.price or 0.0), paid.high + (self.price or 0.0))


def other_way(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the same run with its models on servers or, where they are, without any.

    Returns:
        What to call it, and its config; None for a run that no server of one's own could play.
    """
    used = {name: config["models"][name] for name in grid.models(config)}
    here = {name: entry | _SOME_SERVER for name, entry in used.items() if is_here(entry)}
    if here:
        return "served", {**config, "models": config["models"] | here}
    own = {
        name: entry | {"backend": "transformers"}
        for name, entry in used.items()
        if is_own_server(entry)
    }
    return ("in jobs", {**config, "models": config["models"] | own}) if own else None


def is_own(config: Mapping[str, Any], model: str) -> bool:
    """Tell whether a model runs on one's own devices."""
    entry = config["models"].get(model)
    return entry is None or is_here(entry) or is_own_server(entry)


def price_of(work: Work, config: Mapping[str, Any]) -> float | None:
    """Return what a provider asks for some work, without caches; None without a price."""
    usage = Usage(prompt=round(work.prompt), completion=round(work.generated))
    return cost(usage, config["models"].get(work.model, {}).get("price", {}))


def bill(
    config: Mapping[str, Any], works: Iterable[Work], speeds: Mapping[str, Speed]
) -> list[Line]:
    """Sum the work of a run by stage, in order, with the total at the end."""
    lines: dict[str, Line] = {}
    for work in works:
        line = _line(config, work, speeds)
        before = lines.get(work.stage)
        lines[work.stage] = line if before is None else _sum(work.stage, [before, line])
    return [*lines.values(), _sum("total", lines.values())]


def _line(config: Mapping[str, Any], work: Work, speeds: Mapping[str, Speed]) -> Line:
    return Line(
        work.stage,
        work.jobs if work.stage != SERVERS else 0,
        work.loads,
        work.read,
        work.cached,
        work.generated,
        _seconds(config, work, speeds),
        price_of(work, config),
    )


def _seconds(config: Mapping[str, Any], work: Work, speeds: Mapping[str, Speed]) -> Range | None:
    """Return the seconds of devices that some work takes; none for models of a provider."""
    if not is_own(config, work.model) and not (work.trained or work.scored):
        return Range(0.0, 0.0)
    if work.model not in speeds:
        return None
    entry = config["models"].get(work.model, {})
    starts = is_here(entry) or work.trained or work.scored or work.stage == SERVERS
    return speeds[work.model].seconds(work if starts else replace(work, jobs=0))


def _sum(stage: str, lines: Iterable[Line]) -> Line:
    lines = list(lines)
    known = [line.seconds for line in lines if line.seconds is not None]
    seconds = Range(sum(each.low for each in known), sum(each.high for each in known))
    prices = [line.price for line in lines if line.price is not None]
    return Line(
        stage,
        sum(line.jobs for line in lines),
        sum(line.loads for line in lines),
        sum(line.read for line in lines),
        sum(line.cached for line in lines),
        sum(line.generated for line in lines),
        seconds if len(known) == len(lines) else None,
        sum(prices) if prices else None,
    )


def wall_time(
    config: Mapping[str, Any], works: Sequence[Work], speeds: Mapping[str, Speed], devices: int
) -> Range | None:
    """Estimate how long a run takes on some devices, in seconds.

    A phase takes as long as its work shared out evenly, and at least as long as its longest job
    (Graham, 1969); all jobs of a phase wait for the phases before.

    Returns:
        None where the speed of a model is not known.
    """
    low = high = 0.0
    ordered = sorted((work for work in works if work.stage != SERVERS), key=lambda each: each.phase)
    for _, group in groupby(ordered, key=lambda each: each.phase):
        pairs = [(work, _seconds(config, work, speeds)) for work in group]
        found = [(work, seconds) for work, seconds in pairs if seconds is not None]
        if len(found) < len(pairs):
            return None
        for_one = [seconds.times(1 / max(work.jobs, 1)) for work, seconds in found if work.jobs]
        low += max([sum(s.low for _, s in found) / devices, *(each.low for each in for_one)])
        high += max([sum(s.high for _, s in found) / devices, *(each.high for each in for_one)])
    return Range(low, high)


def table(
    lines: Sequence[Line],
    gpu_hour: float | None,
    *,
    device: str,
    others: tuple[str, Sequence[Line]] | None = None,
) -> pl.DataFrame:
    """Lay out a bill, beside it loads, hours and money of another way to run.

    Args:
        lines: of the run as it is configured.
        gpu_hour: price of a device's hour.
        device: what the hours are of: `GPU` or `CPU`.
        others: what the other way is called, and its lines.
    """
    own = {line.stage: line for line in lines}
    beside = {line.stage: line for line in others[1]} if others else {}
    *stages, total = sorted({**own, **beside}, key=lambda stage: stage == "total")
    rows = []
    for stage in [*stages, total]:
        line = own.get(stage) or beside[stage]
        row = {
            "stage": stage,
            "jobs": _count(line.jobs),
            "read": fmt.quantity(line.read),
            "cached": fmt.quantity(line.cached),
            "written": fmt.quantity(line.generated),
            **_end(own.get(stage), gpu_hour, device, ""),
        }
        if others:
            row |= _end(beside.get(stage), gpu_hour, device, f", {others[0]}")
        rows.append(row)
    made = pl.DataFrame(rows)
    money = (name for name in made.columns if name.startswith("money"))
    return made.drop(name for name in money if set(made[name]) == {fmt.NONE})


def _end(line: Line | None, gpu_hour: float | None, device: str, suffix: str) -> dict[str, str]:
    """Return the cells that depend on how the models are served."""
    names = (f"{each}{suffix}" for each in ("loads", f"{device} hours", "money"))
    if line is None:
        return dict.fromkeys(names, fmt.NONE)
    paid = line.money(gpu_hour)
    cells = (_count(line.loads), hours(line.seconds), fmt.NONE if paid is None else amount(paid))
    return dict(zip(names, cells, strict=True))


def _count(number: int) -> str:
    return f"{number:,}" if number else fmt.NONE


def hours(seconds: Range | None) -> str:
    """Format seconds as hours, `310 to 780`; a dash where they are not known."""
    return fmt.NONE if seconds is None else _between(seconds.times(1 / _HOUR))


def amount(money: Range) -> str:
    """Format money that lies between two amounts."""
    low, high = fmt.money(money.low), fmt.money(money.high)
    return low if low == high else f"{fmt.significant(money.low)} to {fmt.significant(money.high)}"


def _between(found: Range) -> str:
    low, high = fmt.significant(found.low), fmt.significant(found.high)
    return low if low == high else f"{low} to {high}"


def describe_speeds(
    speeds: Mapping[str, Speed], calibration: Calibration | None, gpu: str | None
) -> list[str]:
    """Say in a line each what the speeds of models are based on.

    Args:
        speeds: by model.
        calibration: that was found.
        gpu: the key in `gpus.yaml` that data sheets are of.
    """
    named = {
        "measured": f"measured on {calibration.measured_on}" if calibration else "measured",
        "scaled": "in proportion to size from what was measured"
        + (f" on {calibration.measured_on}" if calibration else ""),
        "data sheet": f"from the data sheet of {gpu}; 'make calibrate' there narrows it",
    }
    groups: dict[str, list[str]] = {}
    for name, speed in speeds.items():
        groups.setdefault(speed.basis, []).append(name)
    listed = {
        basis: ", ".join(names) if len(names) <= _NAMED else f"{len(names)} models"
        for basis, names in groups.items()
    }
    return [f"Speed of {names}: {named[basis]}." for basis, names in listed.items()]
