"""CelebA: the published lists and faces, missing labels, and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import ATTRIBUTES, FACE_LABELS, FACE_SPLITS, FACES, attribute_lines, write_celeba
from mtobal.data import celeba as module
from mtobal.data import load, training_loader
from mtobal.data.celeba import celeba, check_celeba
from mtobal.data.inspection import find_problems
from mtobal.errors import UsageError


@pytest.mark.parametrize("published", [True, False])
def test_forty_tasks_in_the_official_splits(published: bool, tmp_path: Path) -> None:
    data = load("celeba", path=str(write_celeba(tmp_path, published)))
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [4, 2, 2]
    assert [task.name for task in data.tasks] == ATTRIBUTES
    assert data.input_shape == (3, 64, 64)
    for number, split in enumerate(splits):
        faces = [i for i, found in enumerate(FACE_SPLITS) if found == number]
        inputs, targets = split[torch.arange(len(split))]
        assert inputs.shape == (len(faces), 3, 64, 64)
        assert (inputs[:, 0, 5, 5] * 255).round().tolist() == [10 * i for i in faces]
        found = torch.cat(list(targets.values()), dim=1)
        assert np.array_equal(found, (FACE_LABELS[faces] + 1) // 2)


def test_a_label_that_nobody_gave_counts_for_nothing(tmp_path: Path) -> None:
    labels = FACE_LABELS.copy()
    labels[:, 3] = 0
    (write_celeba(tmp_path) / "Anno" / "list_attr_celeba.txt").write_text("\n".join(attribute_lines(labels)))
    data = celeba(path=str(tmp_path), size=8)
    inputs, targets = next(iter(training_loader(data.train, batch_size=4, seed=0)))
    assert inputs.shape == (4, 3, 8, 8)
    assert (targets[ATTRIBUTES[3]] == -1).all()
    output = torch.randn(4, 1, requires_grad=True)
    losses = {task.name: task.loss(output, targets[task.name]) for task in data.tasks}
    assert losses[ATTRIBUTES[3]] == 0
    assert losses[ATTRIBUTES[4]] > 0


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "number", "line", "message"),
    [
        ("Anno/list_attr_celeba.txt", 1, "9", "expected as many faces as its first line says, 9, found 8"),
        ("Anno/list_attr_celeba.txt", 1, "many", "expected as many faces"),
        ("Anno/list_attr_celeba.txt", 2, "Bald", "line 2: expected 40 names of attributes, found 1"),
        ("Anno/list_attr_celeba.txt", 5, "000003.jpg 1 1", "line 5: expected a file and 40 times 1 or -1"),
        ("Anno/list_attr_celeba.txt", 5, "", "line 5: expected a file"),
        ("Anno/list_attr_celeba.txt", 5, "000003.jpg" + " 2" * 40, "line 5: expected a file and 40"),
        ("Anno/list_attr_celeba.txt", 5, "../../secret" + " 1" * 40, "line 5: expected a file and 40"),
        ("Eval/list_eval_partition.txt", 2, "000002.jpg 3", "line 2: expected 000002.jpg and 0, 1 or 2"),
        ("Eval/list_eval_partition.txt", 2, "000009.jpg 1", "line 2: expected 000002.jpg and 0, 1 or 2"),
        (
            "Eval/list_eval_partition.txt",
            1,
            "000001.jpg 0\n000001.jpg 0",
            "expected a line for each of 8 faces, found 9",
        ),
    ],
)
def test_a_broken_list_is_named_with_its_line(
    name: str, number: int, line: str, message: str, tmp_path: Path
) -> None:
    path = write_celeba(tmp_path) / name
    replace_line(path, number, line)
    with pytest.raises(UsageError, match=message) as caught:
        celeba(path=str(tmp_path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_split_without_faces_is_told(tmp_path: Path) -> None:
    path = write_celeba(tmp_path) / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("jpg 1", "jpg 0"))
    with pytest.raises(UsageError, match="expected faces of every split, none is of validation"):
        celeba(path=str(tmp_path))


@pytest.mark.parametrize("name", ["Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"])
def test_a_missing_list_is_named(name: str, tmp_path: Path) -> None:
    (write_celeba(tmp_path) / name).unlink()
    with pytest.raises(UsageError, match=rf"{Path(name).name}: expected a file, found nothing"):
        celeba(path=str(tmp_path))


def test_missing_faces_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: expected a folder with list_attr_celeba\.txt"):
        celeba(path=str(tmp_path / "nowhere"))
    face = write_celeba(tmp_path) / "Img" / "img_align_celeba" / "000001.jpg"
    face.unlink()
    data = celeba(path=str(tmp_path))
    with pytest.raises(UsageError, match=r"000001\.jpg: expected a file"):
        data.train[torch.tensor([0])]
    face.write_bytes(b"not a face")
    with pytest.raises(UsageError, match=r"000001\.jpg: expected an image"):
        data.train[torch.tensor([0])]


def test_the_check_looks_at_every_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_celeba(tmp_path) / "Img" / "img_align_celeba"
    problems = list(find_problems(check_celeba(tmp_path)))
    assert problems[0] == f"{tmp_path}: expected 202599 samples, found 8."
    monkeypatch.setattr(module, "COUNT", FACES)
    assert list(find_problems(check_celeba(tmp_path))) == [None] * (2 + FACES)
    (images / "000002.jpg").unlink()
    (images / "000005.jpg").write_bytes((images / "000005.jpg").read_bytes()[:200])
    problems = [problem for problem in find_problems(check_celeba(tmp_path)) if problem]
    assert [problem.partition(":")[0] for problem in problems] == [
        str(images / "000002.jpg"),
        str(images / "000005.jpg"),
    ]
