"""The paper's Table 1 on your data: trains with FCOS's original strategy and with Mutual Guidance, and compares.

    python examples/fcos/compare.py runs/table --train VOC2007:trainval --test VOC2007:test -- --epochs 60 --cache ram

What follows -- goes to train.py. Every strategy gets the same seeds and the same schedule; the last checkpoint is
scored, so that --test chooses nothing. Interrupted, the same command goes on; what is finished is not repeated. Writes
table.json and table.md, as far as it has come, after every training.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import read_splits
from drawn import default_set
from evaluate import as_percent, detect, load_model, truths_of
from metrics import coco_ap, voc_ap
from model import BACKBONES
from runs import HelpFormatter, UserError, command, join_world, write_json, write_text

MEASURES = ("AP", "AP50", "AP75")
NAMES = {
    "original": "original",
    "l2c": "Localize to Classify",
    "c2l": "Classify to Localize",
    "mutual": "Mutual Guidance",
}


def train_one(run: Path, options: list[str]) -> None:
    """Trains in a process of its own, from where it was left.

    Raises:
        SystemExit: with the code of a training that did not finish.
    """
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("train.py")), str(run), "--resume", *options]
    )
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the training has had it too, and saves
        code = process.wait() or 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise SystemExit(code)


def score_one(run: Path, test: Sequence[str], device: str) -> dict[str, Any]:
    """The last checkpoint's scores on ``test``, kept in the run's folder for the next time."""
    kept = run / "test.json"
    if kept.is_file():
        scores: dict[str, Any] = json.loads(kept.read_text())
        if scores["test"] == list(test):
            return scores
    with join_world(device) as world:
        model, classes, _ = load_model(run / "last.pt", world.device)
        records, _ = read_splits(test, classes)
        found, truths = detect(model, records, 16, world.device), truths_of(records)
    of_voc = voc_ap(truths, found, len(classes))
    per_class = dict(zip(classes, (100 * of_voc.per_class.mean(1)).round(decimals=2).tolist(), strict=True))
    per_class_50 = dict(zip(classes, (100 * of_voc.per_class[:, 0]).round(decimals=2).tolist(), strict=True))
    scores = {"test": list(test), **as_percent(of_voc)}
    scores |= {"AP per class": per_class, "AP50 per class": per_class_50}
    try:
        scores["COCO AP"] = as_percent(coco_ap(truths, found, len(classes)))["AP"]
    except UserError as error:
        print(f"compare.py: {error}", file=sys.stderr)
    write_json(kept, scores)
    return scores


def t_quantile(freedom: int) -> float:
    """Student's t that 95 % lie within: bisection on Simpson's rule, since neither torch nor Python has it."""
    norm = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)

    def within(t: float) -> float:
        steps = 2000
        heights = [(1 + (t * i / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)]
        total: float = heights[0] + heights[-1] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2])
        return 2 * norm * t / steps / 3 * total

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return low


def summarize(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Mean and spread of each strategy, and its difference from the original one over the seeds both have."""
    summary: dict[str, Any] = {}
    for assigner, by_seed in runs.items():
        summary[assigner] = {"seeds": sorted(by_seed)}
        for measure in MEASURES:
            values = [by_seed[seed][measure] for seed in sorted(by_seed)]
            entry = {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
            pairs = sorted(by_seed.keys() & runs.get("original", {}).keys())
            if assigner != "original" and pairs:
                differences = [by_seed[seed][measure] - runs["original"][seed][measure] for seed in pairs]
                entry["difference"] = statistics.mean(differences)
                if len(pairs) > 1:
                    error = statistics.stdev(differences) / math.sqrt(len(pairs))
                    entry["half_interval"] = t_quantile(len(pairs) - 1) * error
            summary[assigner][measure] = entry
    return summary


def markdown(summaries: dict[str, dict[str, Any]]) -> str:
    """The table: a line for each backbone and strategy."""
    lines = [
        "| backbone | assignment | seeds | " + " | ".join(MEASURES) + " | difference in AP |",
        "|---|---|--:|" + "--:|" * len(MEASURES) + "--:|",
    ]
    for backbone, summary in summaries.items():
        for assigner, entry in summary.items():
            cells = [backbone, NAMES[assigner], str(len(entry["seeds"]))]
            for measure in MEASURES:
                spread = "" if entry[measure]["sd"] is None else f" ± {entry[measure]['sd']:.1f}"
                cells.append(f"{entry[measure]['mean']:.1f}{spread}")
            difference = ""
            if "difference" in entry["AP"]:
                difference = f"{entry['AP']['difference']:+.1f}"
                if "half_interval" in entry["AP"]:
                    difference += f" ± {entry['AP']['half_interval']:.1f}"
            lines.append("| " + " | ".join([*cells, difference]) + " |")
    note = "Mean ± standard deviation over seeds; difference from the original strategy with the same seeds, ± half its 95 % interval (Student's t)."
    return "\n".join(lines) + f"\n\n{note}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter, usage="%(prog)s OUTPUT [options] [-- OPTIONS OF train.py]"
    )
    parser.add_argument("output", type=Path, help="folder for the runs and the table")
    parser.add_argument("--train", nargs="+", metavar="FOLDER:SPLIT", help="images to learn; default: the drawn set")
    parser.add_argument("--test", nargs="+", metavar="FOLDER:SPLIT", help="images to score on")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=["resnet18"], help="one or more")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a training of each strategy for each")
    parser.add_argument(
        "--ablation", action="store_true", help="also Localize to Classify and Classify to Localize alone"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args, passed_on = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if (args.train is None) != (args.test is None):
        parser.error("--train and --test go together")
    if args.train is None:
        drawn = default_set()
        args.train, args.test = [f"{drawn}:train"], [f"{drawn}:test"]
    assigners = ["original", "l2c", "c2l", "mutual"] if args.ablation else ["original", "mutual"]
    scores: dict[str, dict[str, dict[int, dict[str, Any]]]] = {b: {a: {} for a in assigners} for b in args.backbones}
    # Seed by seed, so that what there is when it is interrupted can be compared.
    for backbone in args.backbones:
        for seed in args.seeds:
            for assigner in assigners:
                run = args.output / f"{backbone}-{assigner}-{seed}"
                options = ["--train", *args.train, "--backbone", backbone, "--seed", str(seed), "--assigner", assigner]
                print(f"{run}:", flush=True)
                train_one(run, [*options, "--device", args.device, *passed_on])
                scores[backbone][assigner][seed] = score_one(run, args.test, args.device)
                done = {b: {a: s for a, s in of.items() if s} for b, of in scores.items() if any(of.values())}
                summaries = {b: summarize(of) for b, of in done.items()}
                setup = {"train": args.train, "test": args.test, "options of train.py": passed_on}
                write_json(args.output / "table.json", setup | {"summary": summaries, "runs": done})
                text = markdown(summaries)
                write_text(args.output / "table.md", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
