"""What `bench_assign.py --peers` found, as Markdown and as a plot."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peers import PEERS
from scenarios import GROWTH, SCENARIOS

Rows = dict[str, dict[str, Any]]  # by the peer's name
MIB = 2**20
LEAST_MIB = 0.1  # what the measurement resolves
DYNAMIC, STATIC = "mutual_guidance_assign", "fcos_assign"
# On two threads of a CPU: what is compared, in which scenarios, at least how many times.
TIME_AIMS = [("fastest dynamic peer", "AC", 12), ("fastest dynamic peer", "BDE", 25), ("reference", "A", 25)]
TIME_AIMS += [("torchvision-fcos", "A", 100), ("torchvision-fcos", "E", 200)]
MEMORY_AIM, SLOPE_AIM, SLOPE_FROM = 20, 0.7, 100


def markdown(content: dict[str, Any]) -> str:
    """All figures: a table for the scenarios, one for the growth, the aims, and what they hold for."""
    scenarios = content["scenarios"]
    parts = [_table({name: rows for name, rows in scenarios.items() if name in SCENARIOS})]
    if grown := {name: rows for name, rows in scenarios.items() if name in GROWTH}:
        parts.append(_growth_table(grown))
    parts.append(_aims(scenarios))
    dates = [row["date"] for rows in scenarios.values() for row in rows.values() if "date" in row]
    run = {
        **content["run"],
        "peers": ", ".join(f"{name} {version}" for name, version in content["run"]["peers"].items()),
    }
    stamp = ", ".join(f"{key} {value}" if key != "peers" else value for key, value in run.items())
    parts.append(f"{stamp}; measured {min(dates, default='-')} to {max(dates, default='-')}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(scenarios: dict[str, Rows]) -> str:
    lines = [
        "| scenario | peer | its ms (p10 to p90) | mgassign ms (p10 to p90) | ratio (p10 to p90) | its extra MiB "
        "| mgassign extra MiB | its operators | its waits | its points per object |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in scenarios.items():
        for peer, row in _in_order(rows):
            cells = [f"{name}: {SCENARIOS[name].about}", PEERS[peer].about]
            if "failed" in row:
                cells += [row["failed"][:80], *["-"] * 7]
            else:
                cells += [_spread(row["peer_ms"]), _spread(row["mgassign_ms"]), _spread(row["ratio"])]
                cells += [_mebibytes(row["extra_bytes"]), _mebibytes(row["mgassign_extra_bytes"])]
                cells += [_count(row, "dispatched"), _count(row, "waits"), f"{row['points_per_object']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    ours = [row for rows in scenarios.values() for row in _measured(rows).values()]
    if not ours:
        return "\n".join(lines) if scenarios else ""
    operators, waits = (max(row[f"mgassign_{key}"] for row in ours) for key in ("dispatched", "waits"))
    return "\n".join(lines) + f"\n\nmgassign: at most {operators} operators and {waits} waits."


def _growth_table(grown: dict[str, Rows]) -> str:
    names = [name for name in GROWTH if name in grown]
    lines = [
        f"| ms, extra MiB with so many objects | {' | '.join(f'{GROWTH[name].objects:,}' for name in names)} |",
        "|---|" + "--:|" * len(names),
    ]
    for operator in (DYNAMIC, STATIC):
        ours = {n: f"{_number(ms)}, {_mebibytes(extra)}" for n, ms, extra in ours_by_objects(grown, operator)}
        cells = [ours.get(GROWTH[name].objects or 0, "-") for name in names]
        lines.append(f"| **mgassign** `{operator}` | {' | '.join(cells)} |")
        for peer in (peer for peer, of in PEERS.items() if of.operator == operator):
            rows = [grown[name].get(peer, {"failed": "-"}) for name in names]
            cells = [
                row["failed"].partition(":")[0]
                if "failed" in row
                else f"{_number(row['peer_ms']['median'])}, {_mebibytes(row['extra_bytes'])}"
                for row in rows
            ]
            lines.append(f"| {PEERS[peer].about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _aims(scenarios: dict[str, Rows]) -> str:
    lines = ["| aim | measured | met |", "|---|---|---|"]
    for whom, where, least in TIME_AIMS:
        for name in where:
            rows = _measured(scenarios.get(name, {}))
            among = rows.keys() & {whom} if whom in PEERS else _real_dynamic(rows)
            operator, other = (PEERS[whom].operator, PEERS[whom].about) if whom in PEERS else (DYNAMIC, f"the {whom}")
            aim = f"{name}: `{operator}` against {other}: {least} times as fast"
            if among:
                peer = min(among, key=lambda name: rows[name]["ratio"]["median"])
                found = rows[peer]["ratio"]["median"]
                lines.append(f"| {aim} | {_number(found)} times ({PEERS[peer].about}) | {_yes(found >= least)} |")
            elif scenarios.get(name, {}).keys() & ({whom} if whom in PEERS else {*_real_dynamic(PEERS)}):
                lines.append(f"| {aim} | not measured | - |")
    for name in "BE":
        rows = {peer: row for peer, row in _measured(scenarios.get(name, {})).items() if row["extra_bytes"]}
        if among := _real_dynamic(rows):
            peer = min(among, key=lambda name: rows[name]["extra_bytes"])
            found = rows[peer]["extra_bytes"] / max(rows[peer]["mgassign_extra_bytes"], 1)
            aim = f"{name}: extra memory at most 1/{MEMORY_AIM} of the leanest dynamic peer's"
            lines.append(f"| {aim} | 1/{_number(found)} ({PEERS[peer].about}) | {_yes(found >= MEMORY_AIM)} |")
    grown = {name: rows for name, rows in scenarios.items() if name in GROWTH}
    points = [(n, ms) for n, ms, _ in ours_by_objects(grown, DYNAMIC) if n >= SLOPE_FROM]
    if len(points) > 1:
        found = slope(points)
        aim = f"slope of time against small objects, {points[0][0]:,} to {points[-1][0]:,}: at most {SLOPE_AIM}"
        lines.append(f"| {aim} | {found:.2f} | {_yes(found <= SLOPE_AIM)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def slope(points: list[tuple[int, float]]) -> float:
    """Of the straight line through (log x, log y) with the least squared error."""
    line = statistics.linear_regression(*zip(*[(math.log(x), math.log(y)) for x, y in points], strict=True))
    return line.slope


def ours_by_objects(grown: dict[str, Rows], operator: str) -> list[tuple[int, float, float | None]]:
    """mgassign's own growth: objects, ms, bytes; each the median over the runs beside the peers."""
    found = []
    for name, scenario in GROWTH.items():
        rows = [row for peer, row in _measured(grown.get(name, {})).items() if PEERS[peer].operator == operator]
        if rows:
            extra = [row["mgassign_extra_bytes"] for row in rows if row["mgassign_extra_bytes"] is not None]
            milliseconds = statistics.median(row["mgassign_ms"]["median"] for row in rows)
            found.append((scenario.objects or 0, milliseconds, statistics.median(extra) if extra else None))
    return found


def write_plot(path: Path, content: dict[str, Any]) -> None:
    """Time and memory against the objects in an image."""
    from matplotlib.figure import Figure  # here alone: the table does without it

    grown = {name: rows for name, rows in content["scenarios"].items() if name in GROWTH}
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    panels = figure.subplots(1, 2)
    series = {f"mgassign {operator}": (ours_by_objects(grown, operator), operator) for operator in (DYNAMIC, STATIC)}
    for peer, of in PEERS.items():
        rows = {GROWTH[name].objects: _measured(rows).get(peer) for name, rows in grown.items()}
        values = [(n, row["peer_ms"]["median"], row["extra_bytes"]) for n, row in sorted(rows.items()) if row]
        series[of.about] = (values, of.operator)
    colors = iter([f"C{i}" for i in range(10)] * 2)
    for label, (values, operator) in series.items():
        if not values:
            continue
        style: dict[str, Any] = {"ls": "-" if operator == DYNAMIC else "--", "marker": "o", "ms": 4, "label": label}
        if label.startswith("mgassign "):
            style |= {"color": "black", "lw": 2.6, "zorder": 3}
        elif label.startswith("mgassign.reference"):
            style |= {"color": "0.35" if "eager" in label else "0.65", "lw": 1.3}
        else:
            style |= {"color": next(colors), "lw": 1.3}
        panels[0].plot([n for n, _, _ in values], [ms for _, ms, _ in values], **style)
        sized = [(n, max(extra / MIB, LEAST_MIB)) for n, _, extra in values if extra is not None]
        panels[1].plot([n for n, _ in sized], [mebibytes for _, mebibytes in sized], **style)
    titles = ("Time of a call, ms", f"Extra memory at the peak of a call, MiB (lowest line: {LEAST_MIB} or less)")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log", yscale="log", xlabel="objects in the image", title=title)
        panel.set_xticks([10, 100, 1000, 5000], ["10", "100", "1,000", "5,000"])
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
        panel.grid(which="both", alpha=0.25)
    figure.suptitle(
        "Label assignment, one image of 17,064 points, objects of 8 to 24 px; "
        "solid: predictions decide; a line ends where 12 GiB did not suffice"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    _replace(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=110))


def write_text(path: Path, text: str) -> None:
    _replace(path, lambda unfinished: unfinished.write_text(text))


def _replace(path: Path, write: Any) -> None:
    """All or nothing."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _measured(rows: Rows) -> Rows:
    return {name: row for name, row in rows.items() if "failed" not in row}


def _real_dynamic(rows: Iterable[str]) -> list[str]:
    return [name for name in rows if PEERS[name].dynamic and PEERS[name].packages]


def _in_order(rows: Rows) -> list[tuple[str, dict[str, Any]]]:
    return [(name, rows[name]) for name in PEERS if name in rows]


def _spread(of: dict[str, float]) -> str:
    return f"{_number(of['median'])} ({_number(of['p10'])} to {_number(of['p90'])})"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _mebibytes(count: float | None) -> str:
    return "-" if count is None else f"{count / MIB:,.1f}"


def _count(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:,}" if name in row else "-"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
