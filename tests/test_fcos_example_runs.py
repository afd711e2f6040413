"""The FCOS example's runs: what mistakes, full disks, killed and second processes and odd files end in."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
from urllib.error import URLError

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("tensorboard")
pytest.importorskip("torchvision")


import compare
import evaluate
import train
from fcos_example import EXAMPLE, TINY, metrics_of, options
from runs import SETTINGS, RunFolder, UserError, command, hold, one_at_a_time, write_json, write_tensors, write_text

CHECKPOINT = {"model": {}, "model_settings": {}, "classes": ["a"], "config": dict.fromkeys(SETTINGS)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "nowhere:train"], "nowhere/ImageSets/Main/train.txt: cannot read the list: No such"),
        (["--train", "nowhere"], "nowhere: expected FOLDER:SPLIT"),
        (["--batch", "10"], "--batch 10: there are only 9 images to train on"),
        (["--device", "cuda"], "--device cuda: torch .* sees no CUDA device"),
        (["--device", "gpu"], "--device gpu: expected auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:first"], "--device cuda:first: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_told_in_a_line(data, tmp_path, capsys, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert command(train.main, [str(tmp_path / "run"), *options(data), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "--size: expected a multiple of 32, got 100"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--backbone-lr", "0"], "--backbone-lr: expected more than 0, got 0.0"),
        (["--box-weight", "nan"], "--box-weight: expected more than 0, got nan"),
        (["--original-epochs", "-1"], "--original-epochs: expected at least 0, got -1"),
        (["--min-points", "2147483648"], "--min-points: expected at most 2147483647, got 2147483648"),
        (["--weight-decay", "nan"], "--weight-decay: expected at least 0, got nan"),
        (["--seed", "-1"], "--seed: expected 0 to 99999999, got -1"),
        (["--seed", "100000000"], "--seed: expected 0 to 99999999, got 100000000"),
        (["--images-seed", str(2**65)], f"--images-seed: expected 0 to 99999999, got {2**65}"),
        (["--assigner", "best"], "--assigner: invalid choice: 'best'"),
        (["--tune-from", "3"], "--tune-from: needs --pretrained and --norm batch"),
        (["--tune-from", "3", "--pretrained", "--norm", "group"], "--tune-from: needs --pretrained and --norm batch"),
        (["--norm", "frozen"], "--norm: frozen needs --pretrained"),
        (["--cache", "features"], "--cache features: needs frozen blocks (--tune-from) and --augment flip"),
    ],
)
def test_wrong_options_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        train.main(["run", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_overwritten_nor_changed(data, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train.main([run, *options(data, "--epochs", "1")]) == 0
    assert command(train.main, [run, *options(data, "--epochs", "1")]) == 2
    assert "holds a run already; --resume goes on with it" in capsys.readouterr().err
    assert command(train.main, [run, *options(data, "--epochs", "3"), "--resume"]) == 2
    assert "was begun with --epochs 1, not 3" in capsys.readouterr().err
    (tmp_path / "run" / "last.pt").write_bytes(b"half a file")
    assert command(train.main, [run, *options(data, "--epochs", "1"), "--resume"]) == 2
    assert "last.pt: not a checkpoint of train.py" in capsys.readouterr().err
    assert command(evaluate.main, [str(tmp_path / "no.pt"), "--data", f"{data}:test", "--device", "cpu"]) == 2
    assert "no.pt: not a checkpoint of train.py: No such file" in capsys.readouterr().err


def test_weights_that_cannot_be_downloaded_are_told(data, tmp_path, monkeypatch, capsys):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--pretrained")]) == 2
    assert "--pretrained: cannot have torchvision's weights: <urlopen error no network>" in capsys.readouterr().err


def test_coco_without_pycocotools_says_what_to_install(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train.main([str(run), *options(data, "--epochs", "1")]) == 0
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    arguments = [str(run / "last.pt"), "--data", f"{data}:test", "--device", "cpu", "--coco"]
    assert command(evaluate.main, arguments) == 2
    assert "pip install pycocotools" in capsys.readouterr().err


def test_half_a_line_of_metrics_is_forgotten_and_a_broken_one_told(data, tmp_path, capsys):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--resume")]
    assert train.main(more) == 0
    whole = metrics_of(run)
    checkpoint = torch.load(run / "last.pt")
    torch.save(checkpoint | {"step": 2}, run / "last.pt")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-20])  # the process was killed in the middle of its last line
    assert train.main(more) == 0
    assert metrics_of(run)[:2] == whole[:2]
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4]
    torch.save(checkpoint | {"step": 2}, run / "last.pt")
    (run / "metrics.jsonl").write_text("[]\n" + text)
    assert command(train.main, more) == 2
    assert "metrics.jsonl: line 1 is no metrics of a step" in capsys.readouterr().err


def test_a_run_is_trained_by_one_process_at_a_time(data, tmp_path, capsys):
    run = tmp_path / "new"
    # Its child, as one that prepares batches, lives on for a while when it is killed.
    holder = """if True:
        import os, sys, time
        from pathlib import Path
        from runs import hold
        with hold(Path(sys.argv[1])):
            child = os.fork()
            if child:
                print(child, flush=True)
            time.sleep(60)"""
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)], cwd=EXAMPLE, stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        assert command(train.main, [str(run), *options(data)]) == 2
        assert f"{run}: process {process.pid} of {platform.node()} is training in it" in capsys.readouterr().err
        assert not (run / "config.json").exists()
        process.kill()
        process.wait()
        try:
            with hold(run):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_where_a_file_system_has_no_locks_training_goes_on(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    monkeypatch.setattr(fcntl, "flock", none)
    with hold(tmp_path), one_at_a_time(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(str(os.getpid()))


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "last.pt"
    write_text(path, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as good as a full disk: torch.save meets it alike
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: File too large$"):
            write_tensors(path, torch.zeros(100_000))
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: File too large$"):
            write_text(path, "x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_is_full_for_tensorboard_or_metrics_is_told(data, tmp_path, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # TensorBoard's, without the file's name

    monkeypatch.setattr(train.SummaryWriter, "add_scalar", full)
    assert command(train.main, [str(tmp_path / "run"), *options(data)]) == 2
    assert f"{tmp_path}/run: cannot write TensorBoard's events: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "one" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        RunFolder(tmp_path / "one").add_metrics(step=1)


def test_resuming_removes_what_was_left_half_written_on_any_machine(data, tmp_path):
    run = tmp_path / "run"
    assert train.main([str(run), *options(data, "--epochs", "1")]) == 0
    before = sorted(path.name for path in run.iterdir())
    for name in (".last.pt.gone.123", f".best.pt.{platform.node()}.{os.getpid()}", ".last.pt.77"):
        (run / name).touch()
    assert train.main([str(run), *options(data, "--epochs", "1"), "--resume"]) == 0
    assert sorted(path.name for path in run.iterdir()) == before


def test_runs_from_before_an_option_existed_go_on(data, tmp_path, capsys):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--epochs", "1", "--resume")]
    assert train.main(more) == 0
    state = torch.load(run / "last.pt")
    for name in ("difficult", "images", "images_seed"):
        del state["config"][name]
    torch.save(state, run / "last.pt")
    assert train.main(more) == 0
    assert command(train.main, [*more, "--difficult", "ignore"]) == 2
    assert "was begun with --difficult learn, not ignore" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"classes": ["a", "b"]}, "was begun with classes ['a', 'b'], not"),
        ({"steps": 7}, "was begun with 7 steps in 1"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(data, tmp_path, capsys, changed, told):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--epochs", "1", "--resume")]
    assert train.main(more) == 0
    torch.save(torch.load(run / "last.pt") | changed, run / "last.pt")
    assert command(train.main, more) == 2
    assert f"{run}: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["model", "optimizer", "step", "config"])
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(data, tmp_path, capsys, part):
    run = tmp_path / "run"
    more = [str(run), *options(data, "--epochs", "1", "--resume")]
    assert train.main(more) == 0
    state = torch.load(run / "last.pt")
    torch.save(state | {part: ["none"]}, run / "last.pt")
    assert command(train.main, more) == 2
    assert f"{run}/last.pt: not a checkpoint of t" in capsys.readouterr().err


def test_files_of_processes_that_were_killed_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed, living, elsewhere = (
        tmp_path / f".last.pt.{host}.{pid}"
        for host, pid in ((platform.node(), dead.pid), (platform.node(), 1), ("x", 9))
    )
    for file in (killed, living, elsewhere):
        file.touch()
    write_text(tmp_path / "last.pt", "")
    assert not killed.exists()
    assert living.exists()
    assert elsewhere.exists()


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "scores.json", {"AP": math.nan, "per": [1.0, (math.inf, 2)]})
    assert json.loads((tmp_path / "scores.json").read_text()) == {"AP": None, "per": [1.0, [None, 2]]}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "it has no model, model_settings"),
        (CHECKPOINT | {"config": {}}, "it has no config.assigner, config.seed"),
        ({name: part for name, part in CHECKPOINT.items() if name != "model_settings"}, "it has no model_settings"),
        (CHECKPOINT | {"config": None}, "not a checkpoint of train.py"),
        (CHECKPOINT, "its weights are not those of the network"),
        (CHECKPOINT | {"model_settings": {"depth": 1}}, "its weights are not those"),
    ],
)
def test_checkpoints_that_are_none_are_told(data, tmp_path, capsys, state, message):
    path = tmp_path / "last.pt"
    torch.save(state, path)
    assert command(evaluate.main, [str(path), "--data", f"{data}:test"]) == 2
    assert re.search(rf"{path}: .*{message}", capsys.readouterr().err)


def test_other_files_in_a_checkpoints_place_are_not_to_be_loaded_unsafely(tmp_path, capsys):
    path = tmp_path / "last.pt"
    write_json(path, {"AP": 1.0})
    assert command(evaluate.main, [str(path), "--data", "x:test"]) == 2
    told = capsys.readouterr().err
    assert f"{path}: not a checkpoint of train.py: torch.save did not write it" in told
    assert "weights_only" not in told


def test_names_that_are_too_long_are_told(data, tmp_path, capsys):
    assert command(train.main, [str(tmp_path / ("x" * 300)), *options(data)]) == 2
    assert "File name too long" in capsys.readouterr().err
    assert command(train.main, [str(tmp_path / "run"), *TINY, "--train", f"{data}:{'x' * 300}"]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_fewer_images_are_among_more(data, tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(train, "run_epochs", lambda args, world, records, *_: seen.update({args.images: records}) or 0)
    for count in ("4", "6", "8"):
        assert train.main([str(tmp_path / count), *options(data, "--images", count)]) == 0
    names = {count: {record.image.name for record in records} for count, records in seen.items()}
    assert [len(names[count]) for count in (4, 6, 8)] == [4, 6, 8]
    assert names[4] < names[6] < names[8]
    train.main([str(tmp_path / "other"), *options(data, "--images", "4", "--images-seed", "1")])
    assert {record.image.name for record in seen[4]} != names[4]
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--images", "99")]) == 2
    assert "--images 99: there are only 9" in capsys.readouterr().err


def test_a_set_without_objects_cannot_choose_the_best(data, tmp_path, capsys):
    empty = tmp_path / "empty"
    shutil.copytree(data, empty)
    for path in (empty / "Annotations").glob("val_*.xml"):
        path.write_text("<annotation></annotation>")
    assert command(train.main, [str(tmp_path / "run"), *options(data, "--val", f"{empty}:val")]) == 2
    assert f"{empty}:val: no image has an object to score a model by" in capsys.readouterr().err
    assert command(compare.main, [str(tmp_path / "x"), "--train", f"{data}:train", "--test", f"{empty}:val"]) == 2
    assert "no image has an object" in capsys.readouterr().err


def test_a_class_that_is_not_trained_is_told_first(data, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    for path in (other / "Annotations").glob("test_*.xml"):
        path.write_text(path.read_text().replace("ellipse", "star"))
    for path in other.glob("*.txt"):
        path.write_text(path.read_text().replace("ellipse", "star"))
    assert command(compare.main, [str(tmp_path / "x"), "--train", f"{data}:train", "--test", f"{other}:test"]) == 2
    assert "unknown class 'star'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
