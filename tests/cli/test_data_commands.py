"""`mtobal data`: prepare and check, in processes of their own; a run that is killed and goes on."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from command_line import assert_refused
from data_files import NYU_IMAGES, nyu_normals, write_nyu, write_tar
from mtobal.cli import main


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mtobal", "data", *map(str, arguments)]


def data(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_nyu(folder)
    write_tar(folder / "normals_gt.tgz", nyu_normals())
    return folder


def test_a_killed_preparation_goes_on_and_ends_as_one_that_was_not(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "nyuv2", str(published), "--out", str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out == (
        f"{NYU_IMAGES} images converted and 0 kept, with normals from the published archive, "
        f"in {tmp_path / 'whole'}\n"
    )

    killed = tmp_path / "killed"
    process = subprocess.Popen(command("prepare", "nyuv2", published, "--out", killed), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (killed / "train" / "normal" / "0.npy").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = len(list(killed.rglob("normal/*.npy")))
    assert before < NYU_IMAGES, "the preparation had ended before the signal came"

    resumed = data("prepare", "nyuv2", published, "--out", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{NYU_IMAGES - before} images converted and {before} kept" in resumed.stdout
    files = {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*")}
    for file in files:
        assert (killed / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_check_tells_every_problem_and_fails(published: Path, tmp_path: Path) -> None:
    assert main(["data", "prepare", "nyuv2", str(published), "--out", str(tmp_path)]) == 0
    (tmp_path / "train" / "depth" / "1.npy").write_bytes(b"")
    np.save(tmp_path / "val" / "label" / "0.npy", np.full((288, 384), 13))
    result = data("check", "nyuv2", tmp_path)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 12  # two broken files, and ten folders that hold fewer than were published
    assert f"{tmp_path / 'val' / 'label' / '0.npy'}: expected labels from -1 to 12, found 13 to 13." in lines
    assert any(
        line.startswith(f"{tmp_path / 'train' / 'depth' / '1.npy'}: expected a NumPy array") for line in lines
    )
    assert result.stderr == f"mtobal: {tmp_path}: 12 of 50 checks failed.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "data.subcommand"),
        (["data", "chek"], "invalid choice: 'chek'"),
        (["data", "check"], "required"),
        (["data", "check", "nyuv2"], "required"),
        (["data", "check", "nyu2", "."], "unknown data set on disk 'nyu2': did you mean 'nyuv2'?"),
        (["data", "check", "digits", "."], "unknown data set on disk 'digits'"),
        (["data", "check", "nyuv2", "nowhere"], "nowhere: expected a folder with train/ and val/"),
        (["data", "check", "nyuv2", "."], "expected train/ and val/, or nyu_depth_v2_labeled.mat, found neither"),
        (["data", "prepare", "cifar_mtl", "."], "unknown data set to prepare 'cifar_mtl'"),
        (["data", "prepare", "nyuv2", "nowhere"], "nowhere/splits.mat: expected a file, found nothing"),
        (["data", "prepare", "nyuv2", ".", "--force"], "unrecognized arguments: --force"),
    ],
)
def test_wrong_use_gives_one_line_and_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(arguments, message, capsys, tmp_path)


@pytest.mark.parametrize("arguments", [["data"], ["data", "check"], ["data", "prepare"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: mtobal {' '.join(arguments)}" in shown
    assert "null" not in shown


def test_a_good_folder_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.zeros((3, 36, 36), dtype=np.uint8), np.zeros((3, 2), dtype=int)
    (tmp_path / "multi_mnist.pickle").write_bytes(pickle.dumps((images, labels, images, labels)))
    assert main(["data", "check", "multi_mnist", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: all 1 checks passed.\n"
