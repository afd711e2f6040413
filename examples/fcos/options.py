"""The options of train.py."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from backbone import BACKBONES
from efficientnet import PACKAGE
from losses import ASSIGNERS, QUALITIES
from runs import HelpFormatter, positive, seed

LARGEST_COUNT = 2**31 - 1
# What may change from a start to the next: it says how to compute, not what. (Features in a file are rounded to float16.)
FREE_SETTINGS = (
    "run", "resume", "check_data", "cache", "workers", "device", "compile", "channels_last", "log_every", "keep_every",
    "eval_every",
)  # fmt: skip


def parse(arguments: list[str] | None, description: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder, say runs/mutual")
    parser.add_argument("--resume", action="store_true", help="go on where this run was left, if it was begun")

    group = parser.add_argument_group("data, folders in PASCAL VOC's layout")
    splits: dict[str, Any] = {"nargs": "+", "metavar": "FOLDER:SPLIT"}
    group.add_argument("--train", **splits, help="images to learn; default: the drawn set")
    group.add_argument("--val", **splits, help="images to score on while training; default: the drawn set's, or none")
    group.add_argument("--images", type=positive, metavar="N", help="learn N of the images only: the first N in an order "
                       "drawn from --images-seed, so that fewer are among more; default: all")  # fmt: skip
    group.add_argument("--images-seed", type=seed, default=0, metavar="SEED", help="which N they are")
    group.add_argument("--difficult", choices=["learn", "ignore"], default="learn", help="objects marked difficult are "
                       "learned like the others, or regions where nothing is learned")  # fmt: skip
    group.add_argument("--check-data", action="store_true", help="decode every image first, and stop if one is broken")
    group.add_argument(
        "--cache",
        choices=["none", "ram", "gpu", "features"],
        default="none",
        help="decode once; gpu: keep it where "
        "training runs; features: compute once what the frozen blocks make of an image and its mirror image, and keep it "
        "in a folder beside the run's",
    )
    group.add_argument("--augment", choices=["full", "flip"], default="full", help="full: mirror, zoom out, crop, distort "
                       "colours, as SSD does; flip: mirror only, for short trainings")  # fmt: skip
    group.add_argument("--workers", type=int, default=0, metavar="N", help="processes that prepare batches; 0: none")

    group = parser.add_argument_group("what is trained")
    group.add_argument("--assigner", choices=list(ASSIGNERS), default="mutual", help="who learns what: FCOS's original "
                       "strategy, Localize to Classify or Classify to Localize alone, or both; or YOLOv8's")  # fmt: skip
    group.add_argument("--original-epochs", type=int, default=0, metavar="N",
                       help="begin with N epochs of the original strategy")  # fmt: skip
    group.add_argument("--box-weight", type=float, default=1.0, metavar="W", help="of the loss of boxes beside the other "
                       "two")  # fmt: skip
    group.add_argument("--quality", choices=QUALITIES, default="centerness", help="what the third branch learns, which "
                       "the score is multiplied by: FCOS's centerness, the overlap of its own box where a point learns a "
                       "class, or nothing, and then it is left out of the score")  # fmt: skip
    group.add_argument("--min-points", type=int, default=0, metavar="N", help="Mutual Guidance: at least N points each")
    group.add_argument("--no-level-gate", dest="level_gate", action="store_false",
                       help="Mutual Guidance: localization may use any level")  # fmt: skip
    group.add_argument("--backbone", choices=list(BACKBONES), default="resnet18", help="where features come from")
    group.add_argument("--pretrained", action="store_true", help="start from ImageNet weights: torchvision's, which are "
                       f"downloaded, or for lite0 those of the package {PACKAGE}")  # fmt: skip
    group.add_argument("--tune-from", type=int, default=0, metavar="N", help="the backbone's first block that is trained; "
                       "those before it are frozen, batch norms included. lite0 has 16 blocks, strides 16 and 32 from 5 "
                       "and 11 on; resnet18 8, from 4 and 6 on; vgg16 5, stride 16 from 4 on")  # fmt: skip
    group.add_argument("--norm", choices=["batch", "frozen", "group"], default="batch", help="the backbone's normalisation; "
                       "frozen: the blocks' batch norms by the statistics that --pretrained comes with")  # fmt: skip
    group.add_argument("--size", type=positive, default=320, help="height and width of the input; a multiple of 32")
    group.add_argument("--width", type=positive, default=256, help="channels of pyramid and head; a multiple of 32")
    group.add_argument("--head-convs", type=positive, default=4, metavar="N", help="convolutions in each branch")

    group = parser.add_argument_group("how")
    group.add_argument("--epochs", type=positive, default=60, help="passes over the images")
    group.add_argument("--batch", type=positive, default=16, help="images of a step, of all processes together")
    group.add_argument("--lr", type=float, default=1e-3, help="AdamW's learning rate, after warm-up and before the "
                       "cosine to 0")  # fmt: skip
    group.add_argument("--backbone-lr", type=float, default=1.0, metavar="SHARE", help="of --lr, for the backbone's blocks: "
                       "less than 1 leaves more of what pretraining taught them")  # fmt: skip
    group.add_argument("--weight-decay", type=float, default=0.05, help="AdamW's; not for biases and norms")
    group.add_argument("--seed", type=seed, default=0, help="first weights, order and changes of images")
    group.add_argument("--amp", choices=["none", "bf16"], default="none", help="bf16: mixed precision")
    group.add_argument("--compile", action="store_true", help="torch.compile the network")
    group.add_argument("--channels-last", action="store_true", help="the memory layout GPUs and oneDNN prefer")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; auto: a GPU if there is one")
    group.add_argument("--eval-every", type=positive, default=10, metavar="N", help="epochs between scores on --val")
    group.add_argument("--keep-every", type=positive, metavar="N", help="keep the model of every Nth epoch too, "
                       "for diagnose.py; default: the last one alone")  # fmt: skip
    group.add_argument("--log-every", type=positive, default=10, metavar="N", help="steps between lines of metrics")
    args = parser.parse_args(arguments)
    for name in ("size", "width"):
        if getattr(args, name) % 32:
            parser.error(f"argument --{name}: expected a multiple of 32, got {getattr(args, name)}")
    for name in ("lr", "backbone_lr", "box_weight"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: expected more than 0, got {getattr(args, name)}")
    if args.min_points > LARGEST_COUNT:
        parser.error(f"argument --min-points: expected at most {LARGEST_COUNT}, got {args.min_points}")
    for name in ("workers", "min_points", "original_epochs", "tune_from", "weight_decay"):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: expected at least 0, got {getattr(args, name)}")
    if args.tune_from and (not args.pretrained or args.norm == "group"):
        parser.error(
            "argument --tune-from: needs --pretrained and --norm batch or frozen, else what is frozen has learned nothing"
        )
    if args.norm == "frozen" and not args.pretrained:
        parser.error("argument --norm: frozen needs --pretrained, whose statistics they are")
    if args.cache == "features" and not (args.tune_from and args.augment == "flip"):
        parser.error("argument --cache features: needs frozen blocks (--tune-from) and --augment flip")
    return args


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide what comes out."""
    return {name: value for name, value in vars(args).items() if name not in FREE_SETTINGS}
