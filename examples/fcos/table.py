"""Tables of what compare.py found: means, and paired differences with intervals over seeds and over images.

    python examples/fcos/table.py examples/fcos/results/frozen8.json
    python examples/fcos/table.py examples/fcos/results/frozen*.json --figure differences.png

A file of results has the experiment's setup and a line for each model. Any number of sessions may add theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate import READINGS
from runs import HelpFormatter, UserError, as_json, command, naming, one_at_a_time, picture, write_figure, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("AP", "AP50", "AP75")
PRIMARY = ("AP", "AP75")  # with intervals
NAMES = {
    "original": "original",
    "l2c": "Localize to Classify",
    "c2l": "Classify to Localize",
    "mutual": "Mutual Guidance",
    "task-aligned": "task-aligned",
}
Models = list[dict[str, Any]]
# With their values, options of train.py that change nothing of the last checkpoint.
FREE_OPTIONS = ("--eval-every", "--keep-every", "--log-every")
# And those that change nothing of the original strategy, with how many values each has.
GUIDANCE_OPTIONS = {"--min-points": 1, "--no-level-gate": 0, "--original-epochs": 1}


def read_results(path: Path) -> dict[str, Any]:
    """A file of results, empty if there is none.

    Raises:
        UserError: if it cannot be read.
    """
    with naming(path, "not a file of results"):
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"setup": None, "models": []}
        if not (isinstance(results["models"], list) and isinstance(results.get("setup", ""), dict | None)):
            raise TypeError("no list of models, or no setup")
        for number, model in enumerate(results["models"], 1):
            _check_model(f"model {number}", model)
        _check_together(results["models"])
    return results


def _check_model(which: str, model: dict[str, Any]) -> None:
    """That tables can be made of it.

    Raises:
        ValueError: if they cannot; the message says why.
    """
    missing = [
        name for name, kind in (("backbone", str), ("arm", str), ("seed", int)) if type(model.get(name)) is not kind
    ]
    if missing:
        raise ValueError(f"{which} has no {', '.join(missing)}")
    which += f", {model['backbone']} {model['arm']} {model['seed']},"
    if next(iter(model["arm"].split()), None) not in NAMES:
        raise ValueError(f"{which} is of an unknown arm; known are {', '.join(NAMES)}")
    readings = [reading for reading in READINGS if reading in model]
    if not readings:
        raise ValueError(f"{which} has none of the readings {', '.join(READINGS)}")
    for reading in readings:
        missing = [measure for measure in MEASURES if not _is_number(model[reading].get(measure))]
        if missing:
            raise ValueError(f"{which} has no {', '.join(missing)} by {reading}")
        for measure, drawn in model[reading].get("bootstrap", {}).items():
            # None where none of the images drawn has an object.
            if not isinstance(drawn, list) or not all(of is None or _is_number(of) for of in drawn):
                raise ValueError(f"{which} has something other than numbers as bootstrap of {measure} by {reading}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_together(models: Models) -> None:
    """That models can stand in one table.

    Raises:
        ValueError: if they cannot; the message says why.
    """
    keys = [key_of(model) for model in models]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{' '.join(map(str, key))} is there {keys.count(key)} times")
    for what in ("images", "image names"):  # of whose sets the intervals are drawn
        seen = sorted({str(model[what]) for model in models if what in model})
        if len(seen) > 1:
            raise ValueError(f"models scored on different {what}: {', '.join(seen)}")
    bootstraps = [of.get("bootstrap", {}) for model in models for name, of in model.items() if name in READINGS]
    lengths = {len(drawn) for bootstrap in bootstraps for drawn in bootstrap.values()}
    if len(lengths) > 1:
        raise ValueError(f"bootstraps of different lengths: {', '.join(map(str, sorted(lengths)))}")


def key_of(model: dict[str, Any]) -> tuple[str, str, int]:
    return model["backbone"], model["arm"], model["seed"]


def by_name(value: Any) -> Any:
    """Sets of images by their folders' names, wherever those lie; anything else as it is."""
    if not isinstance(value, list):
        return value
    return [re.sub(r"^.*/(?=[^/]+:[^/:]+$)", "", one) for one in value]


def _decisive(setup: dict[str, Any]) -> dict[str, Any]:
    """What of a setup decides its results."""

    def kept(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        words = [word for one in value for word in (one.split("=", 1) if one.startswith("--") else [one])]
        words = [one for before, one in zip(["", *words], words, strict=False) if not {before, one} & {*FREE_OPTIONS}]
        return by_name(words)

    return {name: kept(value) for name, value in setup.items()}


def check_setup(path: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """A file of results, with this setup if it has none yet.

    Raises:
        UserError: if the file is about another experiment.
    """
    results = read_results(path)
    if results["setup"] is not None and _decisive(results["setup"]) != _decisive(setup):
        raise UserError(f"{path}: holds results of another experiment: {results['setup']}, not {setup}")
    return results | {"setup": results["setup"] or setup}


def add_result(path: Path, setup: dict[str, Any], model: dict[str, Any]) -> Models:
    """Puts a model's scores into a file of results, in the place of those of the same backbone, arm and seed.

    Returns:
        All models of the file.

    Raises:
        UserError: if the file is about another experiment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.parent):
        results = check_setup(path, setup)
        models = sorted([m for m in results["models"] if key_of(m) != key_of(model)] + [model], key=key_of)
        lines = ",\n".join(map(as_json, models))
        write_text(path, f'{{"setup": {as_json(results["setup"])},\n"models": [\n{lines}\n]}}\n')
    return models


def summarize(models: Models, reading: str) -> dict[tuple[str, str], dict[str, Any]]:
    """For each backbone and arm the mean and spread over its seeds, and what distinguishes it from the original strategy.

    Arms differ from the one that has ``original`` in the place of their strategy and the same options, but for those of
    Mutual Guidance alone, seed by seed. An interval over seeds is Student's t; one over images is where the difference,
    averaged over seeds, lies in 95 % of the sets of images drawn with replacement.
    """
    arms: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for model in models:
        if reading in model:
            arms.setdefault((model["backbone"], model["arm"]), {})[model["seed"]] = model[reading]
    order = sorted(arms, key=lambda of: (of[0], of[1].split()[1:], list(NAMES).index(of[1].split()[0])))
    summary: dict[tuple[str, str], dict[str, Any]] = {}
    for backbone, arm in order:
        by_seed = arms[backbone, arm]
        of_arm: dict[str, Any] = {"seeds": sorted(by_seed)}
        for measure in MEASURES:
            values = [scores[measure] for scores in by_seed.values()]
            of_arm[measure] = {
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
        original = arms.get((backbone, _original_of(arm)), {})
        pairs = [(by_seed[seed], original[seed]) for seed in sorted(by_seed.keys() & original.keys())]
        if pairs and arm.split()[0] != "original":
            of_arm["pairs"] = len(pairs)
            for measure in MEASURES:
                of_arm[measure] |= _difference(pairs, measure)
        summary[backbone, arm] = of_arm
    return summary


def _original_of(arm: str) -> str:
    words, kept = iter(re.split(r"[ =]+", arm)[1:]), ["original"]
    for word in words:
        if word not in GUIDANCE_OPTIONS:
            kept.append(word)
        for _ in range(GUIDANCE_OPTIONS.get(word, 0)):
            next(words, None)
    return " ".join(kept)


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], measure: str) -> dict[str, Any]:
    from scipy.stats import t  # here, so that who trains without tables needs no SciPy

    differences = [one[measure] - other[measure] for one, other in pairs]
    entry: dict[str, Any] = {"difference": statistics.mean(differences), "by_seed": differences}
    if len(pairs) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(pairs))
        entry["half_interval"] = float(t.ppf(0.975, len(pairs) - 1)) * error
    if all("bootstrap" in scores and measure in scores["bootstrap"] for pair in pairs for scores in pair):
        # None, and NaN then, where none of the images drawn has an object.
        drawn = np.array([[scores["bootstrap"][measure] for scores in pair] for pair in pairs], dtype=float)
        differences_drawn = (drawn[:, 0] - drawn[:, 1]).mean(0)
        if np.isfinite(differences_drawn).any():
            entry["images_interval"] = np.nanquantile(differences_drawn, [0.025, 0.975]).tolist()
    return entry


def markdown(models: Models) -> str:
    """The tables, one for each reading: a line for each backbone and arm."""
    text = []
    for reading in READINGS:
        summary = summarize(models, reading)
        if not summary:
            continue
        columns = [
            reading,
            "seeds",
            *MEASURES,
            *(f"{m}: {of}" for m in PRIMARY for of in ("difference", "over images")),
        ]
        text += ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
        several = len({backbone for backbone, _ in summary}) > 1
        for (backbone, arm), entry in summary.items():
            strategy, *options = arm.split()
            name = " ".join([backbone] * several + [NAMES[strategy], *options])
            cells = [name, str(len(entry["seeds"]))]
            for measure in MEASURES:
                spread = "" if entry[measure]["sd"] is None else f" ± {entry[measure]['sd']:.1f}"
                cells.append(f"{entry[measure]['mean']:.1f}{spread}")
            for measure in PRIMARY:
                cells += _difference_cells(entry[measure])
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    note = (
        "Mean ± standard deviation over seeds. Difference from the original strategy with the same seeds ± half its 95 % "
        "interval (Student's t); 95 % interval of the same over sets of images (bootstrap)."
    )
    return "\n".join([*text, note]) + "\n"


def _difference_cells(entry: dict[str, Any]) -> list[str]:
    if "difference" not in entry:
        return ["", ""]
    half = f" ± {entry['half_interval']:.2f}" if "half_interval" in entry else ""
    interval = "{:+.1f} to {:+.1f}".format(*entry["images_interval"]) if "images_interval" in entry else ""
    return [f"{entry['difference']:+.2f}{half}", interval]


def figure_of(experiments: list[tuple[str, Models]]) -> Figure:
    """Mutual Guidance less the original strategy in each experiment: a panel for each primary measure, a colour for a reading.

    A circle for each seed and a dash for their mean, which has its interval over seeds as a wide bar, over images as a thin one.
    """
    from matplotlib.figure import Figure  # here, as SciPy
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = dict(zip(PRIMARY, figure.subplots(1, len(PRIMARY)), strict=True))
    for number, reading in enumerate(READINGS):
        color = f"C{number}"
        for place, (_, models) in enumerate(experiments):
            x = place + 0.2 * (number - (len(READINGS) - 1) / 2)
            pairs = [of for (_, arm), of in summarize(models, reading).items() if arm == "mutual" and "pairs" in of]
            for measure, entry in ((measure, of[measure]) for of in pairs for measure in PRIMARY):
                ax, mean, half = panels[measure], entry["difference"], entry.get("half_interval", 0.0)
                ax.plot([x, x], [mean - half, mean + half], color=color, lw=5, alpha=0.3, solid_capstyle="butt")
                ax.plot([x, x], entry.get("images_interval", [mean, mean]), color=color, lw=1)
                ax.plot([x] * len(entry["by_seed"]), entry["by_seed"], "o", mfc="none", color=color, ms=3)
                ax.plot([x], [mean], "_", color=color, ms=12, mew=2)
    for measure, ax in panels.items():
        ax.axhline(0, color="black", lw=0.5)
        ax.set_xticks(range(len(experiments)), [name for name, _ in experiments])
        ax.set_title(f"{measure}: Mutual Guidance less the original strategy", size=10)
        ax.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=f"C{number}", lw=3, label=reading) for number, reading in enumerate(READINGS)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files that compare.py wrote")
    parser.add_argument("--figure", type=picture, help="draw Mutual Guidance's differences side by side, a PNG or SVG")
    args = parser.parse_args(arguments)
    experiments: list[tuple[str, Models]] = []
    for path in args.results:
        results = read_results(path)
        if not results["models"]:
            raise UserError(f"{path}: has no results")
        # What compare.py writes by default is called the same in every folder.
        name = path.absolute().parent.name if path.name == "results.json" else path.stem
        experiments.append((name, results["models"]))
        print(f"{name}: {json.dumps(results['setup'])}\n\n{markdown(results['models'])}")
    if args.figure:
        write_figure(args.figure, figure_of(experiments))
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
