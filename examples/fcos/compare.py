"""The paper's Table 1 on your data: trains with FCOS's original strategy and with Mutual Guidance, and compares.

    python examples/fcos/compare.py runs/table --train VOC2007:trainval --test VOC2007:test -- --epochs 60 --cache ram

What follows -- goes to train.py. Every strategy gets the same seeds and the same schedule; the last checkpoint is
scored, so that --test chooses nothing. Interrupted, the same command goes on; what is finished is not repeated. Adds
to a file of results and writes table.md, as far as it has come, after every training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

import mgassign
from backbone import BACKBONES
from data import check_scorable, read_splits
from drawn import default_set
from evaluate import LIMITS, as_percent, detect, load_model, readings_of, truths_of
from losses import ASSIGNERS
from metrics import ap_of, bootstrap, coco_ap, match
from options import parse
from runs import HelpFormatter, RunFolder, UserError, command, join_world, naming, write_json, write_text
from table import PRIMARY, add_result, check_setup, markdown

REPLICATES = 200  # sets of images for the intervals over images


def train_one(run: Path, options: list[str]) -> None:
    """Trains in a process of its own, from where it was left.

    Raises:
        SystemExit: with the code of a training that did not finish.
    """
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("train.py")), str(run), "--resume", *options]
    )
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        # A training at its very end succeeds all the same.
        code = process.wait() or (128 + signal.SIGTERM if stopped else 0)
    except KeyboardInterrupt:  # the training has had it too, and saves
        code = process.wait() or 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise SystemExit(code)


def score_one(run: Path, test: Sequence[str], device: str, limits: str) -> dict[str, Any]:
    """The last checkpoint's scores on ``test`` by each reading, kept in the run's folder: a model reads it once."""
    kept = run / "test.json"
    with join_world(device) as world:
        model, classes, config = load_model(run / "last.pt", world.device)
        records, _ = read_splits(test, classes)
        scores: dict[str, Any] = {
            "test": list(test),
            "limits": limits,
            "images": len(records),
            "image names": _digest("\n".join(record.image.name for record in records).encode()),
            "checkpoint": _digest((run / "last.pt").read_bytes()),
        }
        if kept.is_file():
            with naming(kept, "not a file of scores, delete it"):
                before: dict[str, Any] = json.loads(kept.read_text())
                if scores.items() <= before.items():
                    return before
        readings, amp = readings_of(config["quality"]), config["amp"] == "bf16"
        found = detect(model, records, 16, world.device, None, readings, LIMITS[limits], amp)
    truths = truths_of(records)
    scores |= _versions()
    for reading in readings:
        matches = match(truths, found[reading], len(classes))
        of_voc = ap_of(matches)
        per_class = (100 * of_voc.per_class.mean(1)).round(decimals=2).tolist()
        scores[reading] = {**as_percent(of_voc), "AP per class": dict(zip(classes, per_class, strict=True))}
        drawn = [as_percent(of) for of in bootstrap(matches, REPLICATES)]
        scores[reading]["bootstrap"] = {measure: [of[measure] for of in drawn] for measure in PRIMARY}
        try:
            scores[reading]["COCO AP"] = as_percent(coco_ap(truths, found[reading], len(classes)))["AP"]
        except UserError as error:
            print(f"compare.py: {error}", file=sys.stderr)
    on_val = [line["readings"] for line in RunFolder(run).read_metrics() if "readings" in line]
    scores["val"] = on_val[-1] if on_val else None
    write_json(kept, scores)
    return scores


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _versions() -> dict[str, str]:
    """When and with what a model is scored: the commit is that of this file's checkout, marked where that has been changed."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = ""
    with suppress(OSError):  # no git
        commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "commit": commit or "unknown",
        "mgassign": mgassign.__version__,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter, usage="%(prog)s OUTPUT [options] [-- OPTIONS OF train.py]"
    )
    parser.add_argument("output", type=Path, help="folder for the runs and the table")
    parser.add_argument("--train", nargs="+", metavar="FOLDER:SPLIT", help="images to learn; default: the drawn set")
    parser.add_argument("--test", nargs="+", metavar="FOLDER:SPLIT", help="images to score on")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=["resnet18"], help="one or more")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a training of each strategy for each")
    parser.add_argument("--arms", nargs="+", default=["original", "mutual"], metavar="ARM", help="what is compared: values "
                        "of --assigner, and more options of train.py where quoted: 'mutual --quality iou'")  # fmt: skip
    parser.add_argument("--limits", choices=list(LIMITS), default="authors", help="as in evaluate.py")
    parser.add_argument("--results", type=Path, help="the file of results to add to; default: OUTPUT/results.json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args, passed_on = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if (args.train is None) != (args.test is None):
        parser.error("--train and --test go together")
    if args.train is None:
        drawn = default_set()
        args.train, args.test = [f"{drawn}:train"], [f"{drawn}:test"]
    # Written in one way, by which they are compared.
    args.arms = [" ".join(re.split("[ =]+", arm.strip())) for arm in args.arms]
    for arm in args.arms:
        if arm.partition(" ")[0] not in ASSIGNERS:
            parser.error(f"argument --arms: expected one to begin with {', '.join(ASSIGNERS)}, got {arm!r}")
    _, classes = read_splits(args.train)
    check_scorable(read_splits(args.test, classes)[0], args.test)
    results = args.results or args.output / "results.json"
    setup = {"train": args.train, "test": args.test, "limits": args.limits, "options of train.py": passed_on}
    # Seed by seed, so that what there is when it is interrupted can be compared.
    models = [(b, seed, arm) for b in args.backbones for seed in args.seeds for arm in args.arms]
    trainings = []
    for backbone, seed, arm in models:
        assigner, *of_arm = arm.split()
        mine = {"train": args.train, "backbone": backbone, "seed": seed, "assigner": assigner, "device": args.device}
        options = ["--train", *args.train, "--backbone", backbone, "--seed", str(seed), "--assigner", assigner]
        options += ["--device", args.device, *passed_on, *of_arm]
        run = args.output / re.sub("[^a-z0-9.]+", "-", f"{backbone} {arm} {seed}")
        # An option that says it otherwise would train what results do not say.
        for name, value in vars(parse([str(run), *options])).items():
            if mine.get(name, value) != value:
                parser.error(f"--{name} {value}: does not belong among the options of train.py or of an arm")
        trainings.append((run, options, {"backbone": backbone, "arm": arm, "seed": seed}))
    check_setup(results, setup)
    text = ""
    for run, options, model in trainings:
        print(f"{run}:", flush=True)
        train_one(run, options)
        scores = score_one(run, args.test, args.device, args.limits)
        model |= {k: v for k, v in scores.items() if k not in setup}
        text = markdown(add_result(results, setup, model))
        write_text(args.output / "table.md", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
