"""The FCOS example's commands for finished runs: table, scores, figures, diagnosis, assignment's share of a step."""

from __future__ import annotations

import functools
import json
import signal
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("tensorboard")
pytest.importorskip("torchvision")

import compare
import diagnose
import evaluate
import figures
import profile_step
import train
from fcos_example import TINY, options
from runs import command, load_checkpoint, write_tensors
from trainer import Trainer


def test_table_figures_and_scores_from_finished_runs(data, tmp_path, monkeypatch, capsys):
    trained = []

    def train_here(run: Path, more: list[str]) -> None:
        trained.append(run.name)
        assert train.main([str(run), "--resume", *more]) == 0

    monkeypatch.setattr(compare, "train_one", train_here)
    out = tmp_path / "table"
    arguments = [str(out), "--train", f"{data}:train", "--test", f"{data}:test", "--device", "cpu"]
    passed_on = ["--", *TINY, "--batch", "4", "--epochs", "1"]
    assert compare.main([*arguments, "--seeds", "0", "1", *passed_on]) == 0
    assert trained == [f"resnet18-{a}-{s}" for s in (0, 1) for a in ("original", "mutual")]
    results = json.loads((out / "results.json").read_text())
    assert [(m["arm"], m["seed"]) for m in results["models"]] == [
        ("mutual", 0),
        ("mutual", 1),
        ("original", 0),
        ("original", 1),
    ]
    assert results["models"][0]["images"] == 4
    assert (out / "table.md").read_text().count("| Mutual Guidance | 2 |") == 2

    # What results do not say is not trained, nor what they have no room for.
    trained.clear()
    for arm in ("", "best --lr=1"):
        with pytest.raises(SystemExit):
            compare.main([*arguments, "--arms", arm, *passed_on])
        assert "--arms: expected one to begin with original, " in capsys.readouterr().err
    for wrong in (["--seed", "1"], ["--backb", "lite0"], ["--train", "x:y"], ["--assigner", "l2c"]):
        with pytest.raises(SystemExit):
            compare.main([*arguments, "--seeds", "0", *passed_on, *wrong])
        assert f"{wrong[0]}" in capsys.readouterr().err
    assert command(compare.main, [*arguments, "--seeds", "2", *passed_on, "--lr", "0.1"]) == 2
    assert "holds results of another experiment" in capsys.readouterr().err
    assert not trained

    # A finished run is not trained again.
    before = (out / "resnet18-mutual-0" / "last.pt").stat().st_mtime_ns
    assert compare.main([*arguments, "--seeds", "0", *passed_on]) == 0
    assert (out / "resnet18-mutual-0" / "last.pt").stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out

    # It is scored once, unless it has become another.
    last, scored = out / "resnet18-mutual-0" / "last.pt", out / "resnet18-mutual-0" / "test.json"
    before = scored.stat().st_mtime_ns
    once = compare.score_one(last.parent, [f"{data}:test"], "cpu", "authors")
    assert scored.stat().st_mtime_ns == before
    state = load_checkpoint(last)
    write_tensors(last, state | {"step": 0})
    again = compare.score_one(last.parent, [f"{data}:test"], "cpu", "authors")
    assert again["checkpoint"] != once["checkpoint"]
    assert json.loads(scored.read_text()) == again
    write_tensors(last, state)

    checkpoints = [str(out / f"resnet18-{name}-0" / "last.pt") for name in ("original", "mutual")]
    assert evaluate.main([checkpoints[1], "--data", f"{data}:test", "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    for reading in evaluate.READINGS:
        assert scores[reading]["voc"]["AP"] == results["models"][0][reading]["AP"]
    assert "ellipse" in capsys.readouterr().out

    pictures = ["--data", f"{data}:test", "--images", "2", "--output", str(tmp_path / "figures"), "--min-score", "0"]
    assert figures.main(["--original", checkpoints[0], "--mutual", checkpoints[1], *pictures]) == 0
    for name in ("figure1.png", "figure2.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("code", [0, 3])
def test_a_comparison_that_is_stopped_ends(tmp_path, monkeypatch, code):
    """Also where the training was at its very end, and succeeds."""
    child = tmp_path / "train.py"
    child.write_text(f"""if True:
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
        os.kill(os.getppid(), signal.SIGTERM)
        while True:
            signal.pause()""")
    monkeypatch.setattr(compare, "__file__", str(tmp_path / "compare.py"))
    with pytest.raises(SystemExit) as left:
        compare.train_one(tmp_path / "run", [])
    assert left.value.code == (code or 128 + signal.SIGTERM)


def test_scores_say_what_they_were_made_with_even_without_git(monkeypatch):
    assert compare._versions()["commit"] != "unknown" or not (Path(compare.__file__).parents[2] / ".git").exists()
    monkeypatch.setenv("PATH", "")
    assert compare._versions()["commit"] == "unknown"


def test_what_diagnose_tells_of_an_object():
    def points(*places):
        return torch.zeros(9, dtype=torch.bool).index_fill_(0, torch.tensor(places, dtype=torch.int64), True)

    told = diagnose.of_object(
        torch.tensor([0.1, 0.5, 0.9]),
        {"one": torch.tensor([0.2, 0.3, 0.1]), "other": torch.tensor([1.0, 2.0, 3.0])},
        {"cls": points(2, 3, 4, 5), "loc": points()},
        original=points(3, 8),
    )
    assert told == {
        "rank": {"one": pytest.approx(-0.5), "other": pytest.approx(1.0)},
        "overlap": {"one": 0.5, "other": pytest.approx(0.9), "best at hand": pytest.approx(0.9)},
        "other": {"cls": 0.75},
    }


def test_diagnoses_over_the_epochs_that_were_kept(data, tmp_path, capsys):
    folders = [tmp_path / "one", tmp_path / "two"]
    elsewhere = tmp_path / "elsewhere" / data.name
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(data)
    for folder, assigner, images, kept in zip(
        folders, ("original", "mutual"), (data, elsewhere), ("1", "2"), strict=True
    ):
        # How often it was scored and kept, and where its images lie, makes no other training.
        more = ["--epochs", "3", "--assigner", assigner, "--keep-every", kept, "--eval-every", kept]
        assert train.main([str(folder), *options(images, *more)]) == 0
    assert sorted(path.name for path in folders[0].glob("*.pt")) == ["epoch-1.pt", "epoch-2.pt", "last.pt"]
    written = ["--json", str(tmp_path / "why.json"), "--figure", str(tmp_path / "why.svg")]
    assert diagnose.main([*map(str, folders), "--data", f"{data}:test", "--device", "cpu", *written]) == 0
    told = json.loads((tmp_path / "why.json").read_text())["models"]
    assert [(model["arm"], model["epoch"]) for model in told] == [
        ("original", 1),
        ("original", 2),
        ("original", 3),
        ("mutual", 2),
        ("mutual", 3),
    ]
    for model in told:
        assert all(-1 <= rank <= 1 for rank in model["rank"].values())
        assert model["overlap"]["best at hand"] >= max(model["overlap"].values())
        assert all(0 <= share <= 1 for share in model["other"].values())
    assert "<svg" in (tmp_path / "why.svg").read_text()
    table = capsys.readouterr().out
    assert table.count("| Mutual Guidance | 3 | 1 |") == 3 == table.count("| original | 1 | 1 |")

    state = load_checkpoint(folders[1] / "last.pt")
    write_tensors(folders[1] / "last.pt", state | {"config": state["config"] | {"quality": "iou"}})
    assert command(diagnose.main, [*map(str, folders), "--data", f"{data}:test"]) == 2
    assert (
        f"in --assigner and --seed, but quality was 'iou' there, 'centerness' in {folders[0]}"
        in capsys.readouterr().err
    )

    # A run of before there was a setting is one with its default.
    first = load_checkpoint(folders[0] / "last.pt")
    older = {name: value for name, value in first["config"].items() if name != "backbone_lr"}
    write_tensors(folders[0] / "last.pt", first | {"config": older})
    write_tensors(folders[1] / "last.pt", state | {"config": state["config"] | {"backbone_lr": 0.5}})
    assert command(diagnose.main, [*map(str, folders), "--data", f"{data}:test"]) == 2
    assert f"backbone_lr was 0.5 there, 1.0 in {folders[0]}" in capsys.readouterr().err

    write_tensors(folders[1] / "last.pt", load_checkpoint(folders[0] / "last.pt"))
    assert command(diagnose.main, [*map(str, folders), "--data", f"{data}:test"]) == 2
    assert f"expected one run of each --assigner and --seed, got {folders[0]} of the same" in capsys.readouterr().err

    (folders[1] / "last.pt").unlink()
    assert command(diagnose.main, [str(folders[1]), "--data", f"{data}:test"]) == 2
    assert f"{folders[1]}: no last.pt in it" in capsys.readouterr().err


def test_reference_in_the_place_of_mgassign_gives_the_same_losses(data, tmp_path, monkeypatch):
    losses = {}
    step, by_reference = Trainer.train_step, profile_step.assign_by_reference

    def note(self, *arguments):
        result = step(self, *arguments)
        losses.setdefault(self.criterion.assign.__name__, []).append(torch.stack([*result.values()]))
        return result

    @functools.wraps(by_reference)
    def slowly(*arguments, **settings):
        time.sleep(0.25)
        return by_reference(*arguments, **settings)

    monkeypatch.setattr(Trainer, "train_step", note)
    monkeypatch.setattr(profile_step, "assign_by_reference", slowly)
    arguments = ["--data", f"{data}:train", "--steps", "1", "--json", str(tmp_path / "share.json")]
    assert profile_step.main([*arguments, "--", *TINY, "--batch", "4"]) == 0
    torch.testing.assert_close(
        torch.stack(losses["mutual_guidance_assign"]), torch.stack(losses["assign_by_reference"])
    )
    assert command(profile_step.main, [*arguments, "--", *TINY, "--batch", "10"]) == 2  # not for ever
    with pytest.raises(SystemExit):  # the reference would not be asked
        profile_step.main([*arguments, "--", *TINY, "--batch", "4", "--assigner", "task-aligned"])
    told = json.loads((tmp_path / "share.json").read_text())
    for of in (told["mgassign"], told["reference"]):
        assert 0 < of["assignment_ms"] < of["step_ms"]
        assert of["share_percent"] == pytest.approx(100 * of["assignment_ms"] / of["step_ms"], rel=0.01, abs=0.001)
    assert told["reference"]["assignment_ms"] >= 250
