"""Office-31 and Office-Home: pictures by task, their lists, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_files import OFFICE, write_office
from mtobal.data import evaluation_loader, load, training_loader
from mtobal.data import office as module
from mtobal.data.inspection import find_problems
from mtobal.data.office import MEAN, STD, check_office, office
from mtobal.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_office(tmp_path)


def test_every_task_has_pictures_of_its_own(root: Path) -> None:
    data = load("office", path=str(root), size=16)
    assert data.input_shape == (3, 16, 16)
    assert [(task.name, task.out_features) for task in data.tasks] == [(name, 31) for name in OFFICE]
    batches = list(training_loader(data.train, batch_size=2, seed=0))
    assert len(batches) == 3
    for inputs, targets in batches:
        assert inputs.keys() == targets.keys() == OFFICE.keys()
        for task in OFFICE:
            shade = ((inputs[task] * STD + MEAN) * 255).round()[:, 0, 3, 3]
            assert torch.equal(shade.long(), targets[task])
            assert inputs[task].shape == (2, 3, 16, 16)
    seen = list(evaluation_loader(data.validation, batch_size=2))
    assert sorted(torch.cat([targets["amazon"] for _, targets in seen]).tolist()) == [0, 1, 2]
    assert seen[1][0].keys() == {"amazon"}


def test_lists_may_lie_elsewhere(root: Path) -> None:
    (root / "lists").mkdir()
    for path in root.glob("*.txt"):
        path.rename(root / "lists" / path.name)
    assert len(office(path=str(root), lists=str(root / "lists")).train) == 10
    with pytest.raises(UsageError, match=r"amazon_train\.txt: expected a file, found nothing"):
        office(path=str(root))


@pytest.mark.parametrize(
    "line",
    [
        *("amazon/a.jpg", "amazon/a.jpg 31", "amazon/a.jpg -1", "amazon/a.jpg " + "9" * 5000),
        *("/etc/passwd 1", "../secret.jpg 1", "a/../../b 1", ""),
    ],
)
def test_a_broken_line_is_named(root: Path, line: str) -> None:
    path = root / "dslr_val.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError, match=r"dslr_val\.txt, line 3: expected a file below the folder and a class"):
        office(path=str(root))


def test_an_empty_list_is_named(root: Path) -> None:
    (root / "webcam_test.txt").write_text("")
    with pytest.raises(UsageError, match=r"webcam_test\.txt: expected lines with a file and a class each"):
        office(path=str(root))


def test_the_check_looks_at_every_list_and_picture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [problem for problem in find_problems(check_office(root)) if problem]
    assert problems[0] == f"{root / 'amazon_train.txt'}: expected 1680 samples, found 5."
    assert len(problems) == 9
    monkeypatch.setitem(module.COUNTS, "office-31", OFFICE)
    assert list(find_problems(check_office(root))) == [None] * (9 + sum(map(sum, OFFICE.values())))
    (root / "dslr/images/back pack/val_0001.jpg").write_bytes(b"")
    (root / "webcam_val.txt").unlink()
    problems = [problem for problem in find_problems(check_office(root)) if problem]
    assert len(problems) == 2
    assert "dslr/images/back pack/val_0001.jpg: expected an image" in problems[0]
    assert "webcam_val.txt: expected a file, found nothing" in problems[1]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: expected a folder with the pictures"):
        office(path=str(tmp_path / "nowhere"))
