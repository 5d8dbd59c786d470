"""Readers of data sets: right files, damaged ones, malicious ones, and the published ones where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import folder
from data_files import (
    EXAMPLES,
    WNIDS,
    Example,
    cifar_batch,
    encoded,
    idx,
    jpeg,
    mnist_writer,
    old_array,
    old_list,
    old_pickle,
    saved,
    write_cifar10_binary,
)

import surebound
from surebound.data import readers
from surebound.data.dataset import in_unit
from surebound.data.digits import load_digits
from surebound.data.files import PartName
from surebound.data.pickles import read_pickle
from surebound.data.readers import READERS, load_dataset, load_part
from surebound.errors import DataError, UsageError

PARTS: tuple[PartName, ...] = ("train", "test")
COUNTS: Mapping[PartName, int] = {"train": 40, "test": 6}
each = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
each_labelled = pytest.mark.parametrize(
    "example", [example for example in EXAMPLES.values() if example.labelled], ids=lambda example: example.name
)


@pytest.fixture(autouse=True)
def no_folder_of_the_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated files only, unless a test asks for the published ones."""
    if "published" not in request.fixturenames:
        monkeypatch.delenv("SUREBOUND_DATA", raising=False)


@pytest.fixture(scope="session")
def published() -> Path:
    return folder("SUREBOUND_DATA", "a folder of published data sets")


def labels_of(example: Example, part: PartName) -> list[int]:
    """Labels in 0..3, ascending, because folders and TinyImageNet order their files by class."""
    return sorted(number % 4 for number in range(COUNTS[part]))


def write(example: Example, root: Path, *parts: PartName) -> list[Path]:
    return [
        path
        for part in parts
        for path in example.write(root, part, example.images(COUNTS[part]), labels_of(example, part))
    ]


def refused(example: Example, root: Path, *words: str, part: PartName = "test") -> str:
    """The message of the DataError, which names every word."""
    with pytest.raises(DataError) as caught:
        load_part(example.name, root, part)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


# ---------------------------------------------------------------- right files


def test_every_reader_has_an_example() -> None:
    assert {example.name.partition(":")[0] for example in EXAMPLES.values()} | {"digits"} == set(READERS)


@each
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_was_written_in_the_same_order(
    unsealed: None, tmp_path: Path, example: Example, part: PartName
) -> None:
    write(example, tmp_path, part)
    found = load_part(example.name, tmp_path, part)
    images = torch.from_numpy(example.images(COUNTS[part])).float() / 255
    assert found.images.dtype == torch.float32 and found.images.shape == (COUNTS[part], *example.shape)
    assert float((found.images - images).abs().max()) <= example.tolerance / 255
    assert found.labels.tolist() == labels_of(example, part)
    assert found.labels.dtype == found.indices.dtype == torch.int64
    assert found.indices.tolist() == list(range(COUNTS[part]))


@each
def test_some_images_by_official_index(unsealed: None, tmp_path: Path, example: Example) -> None:
    write(example, tmp_path, "test")
    whole, some = load_part(example.name, tmp_path), load_part(example.name, tmp_path, indices=[5, 0, 2])
    assert torch.equal(some.images, whole.images[[5, 0, 2]]) and some.indices.tolist() == [5, 0, 2]
    assert len(load_part(example.name, tmp_path, indices=[])) == 0
    for index in (6, -1):
        with pytest.raises(UsageError, match=rf"no image {index} in the test part, which has 6 images with indices"):
            load_part(example.name, tmp_path, indices=[0, index])


@each
def test_validation_is_a_fixed_share_of_every_class_of_the_training_part(
    unsealed: None, tmp_path: Path, example: Example
) -> None:
    write(example, tmp_path, *PARTS)
    data = load_dataset(example.name, tmp_path, validation=0.2, seed=3)
    whole = load_part(example.name, tmp_path, "train")
    assert (data.name, data.classes) == (example.name, example.classes)
    assert torch.equal(data.test.images, load_part(example.name, tmp_path, "test").images)
    assert data.validation.labels.bincount().tolist() == [2, 2, 2, 2]
    assert sorted([*data.train.indices.tolist(), *data.validation.indices.tolist()]) == list(range(40))
    for part in (data.train, data.validation):
        assert part.indices.tolist() == sorted(part.indices.tolist())
        assert torch.equal(part.images, whole.images[part.indices])
        assert torch.equal(part.labels, whole.labels[part.indices])
    again, other = (load_dataset(example.name, tmp_path, validation=0.2, seed=seed) for seed in (3, 4))
    assert torch.equal(again.validation.indices, data.validation.indices)
    assert not torch.equal(other.validation.indices, data.validation.indices)
    assert torch.equal(other.test.indices, data.test.indices)
    everything = load_dataset(example.name, tmp_path, validation=0)
    assert (len(everything.train), len(everything.validation)) == (40, 0)


@each
def test_the_first_training_images_alone_and_as_bytes(unsealed: None, tmp_path: Path, example: Example) -> None:
    write(example, tmp_path, *PARTS)
    whole = load_part(example.name, tmp_path, "train")
    data = load_dataset(example.name, tmp_path, validation=0.25, images=20, as_bytes=True)
    assert sorted([*data.train.indices.tolist(), *data.validation.indices.tolist()]) == list(range(20))
    assert data.train.images.dtype in (torch.uint8, torch.float32) and data.validation.images.dtype == torch.float32
    assert torch.equal(in_unit(data.train.images), whole.images[data.train.indices])
    for count in (41, -1):
        with pytest.raises(DataError, match=rf"{count} training images are asked for, there are 40"):
            load_dataset(example.name, tmp_path, images=count)


@each
def test_the_first_images_need_the_first_batches_only(unsealed: None, tmp_path: Path, example: Example) -> None:
    write(example, tmp_path, *PARTS)
    batches = sorted(
        tmp_path.rglob("*data_batch_*"), key=lambda path: int("".join(c for c in path.name if c.isdigit()))
    )
    if not batches:
        pytest.skip(f"{example.name} has no batches")
    per_batch = 40 // len(batches)
    for path in batches[2:]:
        path.unlink()
    data = load_dataset(example.name, tmp_path, validation=0, images=2 * per_batch)
    assert data.train.indices.tolist() == list(range(2 * per_batch))
    with pytest.raises(DataError, match=f"there are {2 * per_batch}"):
        load_dataset(example.name, tmp_path, validation=0, images=2 * per_batch + 1)
    with pytest.raises(DataError, match=f"missing for the train part: .*{batches[2].name}"):
        load_dataset(example.name, tmp_path)
    batches[0].unlink()
    with pytest.raises(DataError, match=f"missing for the train part: .*{batches[0].name}"):
        load_dataset(example.name, tmp_path, images=per_batch)


@each
def test_the_test_part_needs_no_training_files_but_a_data_set_does(
    unsealed: None, tmp_path: Path, example: Example
) -> None:
    write(example, tmp_path, "test")
    assert len(load_part(example.name, tmp_path, "test")) == 6
    refused(example, tmp_path, "train", part="train")
    with pytest.raises(DataError, match="train"):
        load_dataset(example.name, tmp_path)


def test_the_folder_may_come_from_the_environment(
    unsealed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(EXAMPLES["mnist"], tmp_path, "test")
    with pytest.raises(DataError, match=r"mnist is read from files: name the folder .*--data-dir, SUREBOUND_DATA"):
        load_part("mnist")
    monkeypatch.setenv("SUREBOUND_DATA", str(tmp_path))
    assert len(load_part("mnist")) == 6


def test_the_digits_are_a_row_whose_test_part_no_seed_changes() -> None:
    data, test = load_dataset("digits", seed=5), load_part("digits")
    assert torch.equal(test.indices, load_digits(0).test.indices.sort().values)
    assert torch.equal(data.test.images, test.images) and data.classes == 10
    indices = torch.cat([data.train.indices, data.validation.indices, data.test.indices])
    assert sorted(indices.tolist()) == list(range(1797))
    chosen = load_part("digits", indices=test.indices[[3, 1]].tolist())
    assert torch.equal(chosen.images, test.images[[3, 1]])


def test_the_public_name() -> None:
    assert surebound.load_dataset is load_dataset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnits",), "unknown data set 'mnits'; give one of digits, mnist, .*npz:FILE.npz, folder:NAME"),
        (("npz",), "write npz:FILE.npz"),
        (("mnist:raw",), "write mnist"),
    ],
)
def test_names_that_make_no_sense(arguments: tuple[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(*arguments)


def test_arguments_that_make_no_sense(unsealed: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown part 'validation' of mnist; give 'train' or 'test'"):
        load_part("mnist", tmp_path, "validation")  # type: ignore[arg-type]
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match="at least 0 and below 1"):
            load_dataset("mnist", tmp_path, validation=share)
    write(EXAMPLES["mnist"], tmp_path, *PARTS)
    with pytest.raises(UsageError, match="validation=0.01 of 40 images leaves a part without images"):
        load_dataset("mnist", tmp_path, validation=0.01)


# ---------------------------------------------------------------- missing and damaged files


@each
def test_missing_files_are_listed_with_their_places(unsealed: None, tmp_path: Path, example: Example) -> None:
    refused(example, tmp_path, str(tmp_path))
    for path in write(example, tmp_path, "test"):
        if example.name == "folder:pets":
            continue  # a folder has the images it has
        content = path.read_bytes()
        path.unlink()
        refused(example, tmp_path, path.name.removesuffix(".gz") if "MNIST" in str(path) else path.name)
        path.write_bytes(content)


def test_a_missing_file_says_where_it_comes_from_and_what_would_do_instead(tmp_path: Path) -> None:
    message = refused(EXAMPLES["cifar10"], tmp_path / "no", f"there is no folder {tmp_path / 'no'}", "test_batch.bin")
    assert "kriz/cifar-10-python.tar.gz" in message and "SUREBOUND_DATA" in message


def test_batches_that_are_missing_are_those_named(unsealed: None, tmp_path: Path) -> None:
    paths = write(EXAMPLES["cifar10"], tmp_path, *PARTS)
    for path in paths[2:5]:
        path.unlink()
    message = refused(EXAMPLES["cifar10"], tmp_path, *(str(path) for path in paths[2:5]), part="train")
    assert str(paths[0]) not in message
    assert len(load_part("cifar10", tmp_path)) == 6


@pytest.mark.parametrize(
    ("example", "damage"),
    [
        pytest.param(example, damage, id=f"{name}-{damage}")
        for name, example in EXAMPLES.items()
        for damage in ["empty", "half", "begin"] + ["behind"] * example.sealed
    ],
)
def test_damaged_files(unsealed: None, tmp_path: Path, example: Example, damage: str) -> None:
    for path in write(example, tmp_path, "test"):
        content = path.read_bytes()
        bad = {
            "empty": b"",
            "half": content[: len(content) // 2 - 1],
            "begin": b"\xff" * 8 + content[8:],
            "behind": content + b"\x01" * 9,
        }[damage]
        path.write_bytes(bad)
        refused(example, tmp_path, path.name)
        path.write_bytes(content)


@each
def test_a_changed_byte_never_raises_anything_but_a_data_error(
    unsealed: None, tmp_path: Path, example: Example
) -> None:
    random = np.random.default_rng(0)
    for path in write(example, tmp_path, "test")[:3]:
        content = path.read_bytes()
        for place in [*range(0, 150, 7), *random.integers(0, len(content), 20)]:
            bad = bytearray(content)
            bad[place % len(bad)] ^= int(random.integers(1, 256))
            path.write_bytes(bad)
            try:
                load_part(example.name, tmp_path)
            except DataError as error:
                assert str(tmp_path) in str(error)
        path.write_bytes(content)


@each_labelled
def test_labels_out_of_range(unsealed: None, tmp_path: Path, example: Example) -> None:
    example.write(tmp_path, "test", example.images(3), [1, example.classes + 1, 0])
    refused(example, tmp_path, "of image 1 is outside")


@pytest.mark.parametrize(
    "example",
    [example for example in EXAMPLES.values() if example.labelled and example.write is not write_cifar10_binary],
    ids=lambda example: example.name,
)
def test_fewer_labels_than_images(unsealed: None, tmp_path: Path, example: Example) -> None:
    example.write(tmp_path, "test", example.images(3), [1, 0])
    refused(example, tmp_path, "2 labels for 3 images")


@each_labelled
def test_a_part_without_images(unsealed: None, tmp_path: Path, example: Example) -> None:
    example.write(tmp_path, "test", example.images(0), [])
    refused(example, tmp_path)


# ---------------------------------------------------------------- checksums

SEALED = [example for example in EXAMPLES.values() if READERS[example.name.partition(":")[0]].checksums]


@pytest.mark.parametrize("example", SEALED, ids=lambda example: example.name)
def test_files_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Example
) -> None:
    paths = write(example, tmp_path, "test")
    refused(example, tmp_path, str(paths[0]), "but the official file of", "npz:FILE")

    def contents(path: Path) -> bytes:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()

    sums = {path.name.removesuffix(".gz"): f"md5:{hashlib.md5(contents(path)).hexdigest()}" for path in paths}
    monkeypatch.setattr(readers, "READERS", {example.name: replace(READERS[example.name], checksums=sums)})
    assert len(load_part(example.name, tmp_path)) == 6
    for path in paths:
        content = path.read_bytes()
        changed = bytearray(contents(path))
        changed[-5 if len(changed) > 5000 else -1] ^= 1
        path.write_bytes(gzip.compress(bytes(changed)) if path.suffix == ".gz" else changed)
        refused(example, tmp_path, f"{path}: its md5 is")
        path.write_bytes(content)


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.checksums])
def test_every_published_file_of_a_reader_has_its_checksum(name: str) -> None:
    sizes = {"md5": 32, "sha1": 40}
    for official in READERS[name].checksums.values():
        algorithm, _, value = official.partition(":")
        assert len(value) == sizes[algorithm] and set(value) <= set("0123456789abcdef")
    named = {"mnist": 4, "fashion-mnist": 4, "svhn": 2, "cifar10": 12, "cifar100": 2}
    assert len(READERS[name].checksums) == named[name]


# ---------------------------------------------------------------- idx


def test_what_is_wrong_with_an_idx_file_is_said(unsealed: None, tmp_path: Path) -> None:
    example = Example("mnist", (1, 28, 28), 10, mnist_writer("MNIST", ""))
    images, _ = write(example, tmp_path, "test")
    good = images.read_bytes()
    for bad, message in [
        (b"\0\0\x0d\x03" + good[4:], "begins with 00 00 0d 03, expected 00 00 08 03"),
        (good[:10], "ends after 10 bytes, within its header"),
        (good[:-1], "too short"),
        (good + b"\0", "too long"),
        (idx(np.zeros((6, 27, 28), np.uint8)), "images of (27, 28) pixels, expected (28, 28)"),
        (gzip.compress(good)[:-9], "damaged gzip file"),
        (gzip.compress(good)[:30] + b"\xff" * 30, "damaged gzip file"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "too short"),
    ]:
        images.write_bytes(bad)
        refused(example, tmp_path, str(images), message, "fetch it again")


# ---------------------------------------------------------------- pickles


class Runs:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


PICKLED = ("cifar10", "cifar100", "imagenet64")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PICKLED)
def test_code_in_a_pickle_does_not_run(unsealed: None, tmp_path: Path, name: str, protocol: int) -> None:
    example, trace = EXAMPLES[name], tmp_path / "ran"
    (path,) = write(example, tmp_path, "test")
    for function, argument, spelled in [
        (os.system, f"touch {trace}", f"{os.system.__module__}.system"),
        (eval, f"open({str(trace)!r}, 'w')", ".eval"),
        (exec, f"open({str(trace)!r}, 'w')", ".exec"),
    ]:
        path.write_bytes(pickle.dumps({"data": Runs(function, argument), "labels": []}, protocol))
        refused(example, tmp_path, str(path), "refused", spelled)
        assert not trace.exists()


NAMED = [
    "numpy.load",
    "numpy.core.multiarray.scalar",
    "builtins.getattr",
    "copyreg._reconstructor",
    "functools.partial",
]


@pytest.mark.parametrize("named", NAMED)
def test_other_names_in_a_pickle_are_refused(named: str) -> None:
    module, _, name = named.rpartition(".")
    first, second = module.encode(), name.encode()
    texts = b"".join(b"X" + struct.pack("<I", len(text)) + text for text in (first, second))
    for content in (
        b"c" + first + b"\n" + second + b"\n.",
        b"(i" + first + b"\n" + second + b"\n.",
        b"\x80\x04" + texts + b"\x93.",
    ):
        with pytest.raises(DataError, match=rf"bad\.pkl: refused: this pickle names {named}"):
            read_pickle(Path("bad.pkl"), content)


ARRAY = np.zeros((2, 2), np.uint8)
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
FALSE_DTYPE = b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


@pytest.mark.parametrize(
    "content",
    [
        old_pickle({b"data": old_array(ARRAY, b"O8")}),
        old_pickle({b"data": FALSE_DTYPE}),
        old_pickle({b"data": old_array(ARRAY, content=b"12345")}),
        old_pickle({b"data": old_array(ARRAY, b"i8")}),
        old_pickle({b"data": RECONSTRUCT + b"}b"}),
        old_pickle({b"data": RECONSTRUCT + b"N}U\x01ak\x86b"}),
        old_pickle({b"data": RECONSTRUCT + b"U\x03intK\x00\x85U\x01b\x87R"}),
        old_pickle({b"data": b"cnumpy\nndarray\n(tR"}),
        old_pickle({b"data": b"cnumpy\nndarray\n)\x81"}),
        old_pickle({b"data": b"c_codecs\nencode\n(U\x01aU\x04zlibtR"}),
        old_pickle({b"data": b"Pelsewhere\n"}),
        old_pickle({b"data": b"\x82\x01"}),
        old_pickle({}) + b"more",
        old_list([]) + b".",
        b"\x80\x09.",
        b"(" * 100_000,
        b".",
    ],
)
def test_pickles_that_lie_about_arrays(content: bytes) -> None:
    with pytest.raises(DataError, match=r"bad\.pkl: "):
        read_pickle(Path("bad.pkl"), content)


def test_a_large_index_in_a_pickle_costs_nothing() -> None:
    assert read_pickle(Path("p"), b"\x80\x02}r\xff\xff\xff\xff.") == {}


def test_the_helper_writes_what_python_reads() -> None:
    images = EXAMPLES["cifar10"].images(3)
    theirs = pickle.loads(
        cifar_batch(images, [1, 2, 3], b"labels").replace(b"numpy.core", b"numpy._core"), encoding="bytes"
    )
    ours: dict[str, Any] = read_pickle(Path("p"), cifar_batch(images, [1, 2, 3], b"labels"))
    assert np.array_equal(theirs[b"data"], ours["data"]) and theirs[b"labels"] == ours["labels"] == [1, 2, 3]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_come_back(protocol: int, dtype: str, order: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype, order=order)  # type: ignore[call-overload]
    found: dict[str, Any] = read_pickle(Path("p"), pickle.dumps({"a": array, "b": [1, (2, "x"), None]}, protocol))
    assert np.array_equal(found["a"], array) and found["a"].dtype == array.dtype
    assert found["b"] in ([1, (2, "x"), None], [1, (2, b"x"), None])


def test_batches_that_are_something_else(unsealed: None, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    rows = old_array(np.zeros((1, 3072), np.uint8))
    for entries, message in [
        ({b"data": rows}, "no labels in it, only ['data']"),
        ({b"data": rows, b"labels": old_array(ARRAY)}, "labels are not a list of integers"),
        ({b"data": rows, b"labels": old_list([b"\x88"])}, "labels are not a list of integers"),
        (
            {b"data": rows, b"labels": old_list([b"\x8a\x09" + b"\xff" * 8 + b"\x01"])},
            "labels are not a list of integers",
        ),
        ({b"data": old_array(ARRAY), b"labels": old_list([])}, "'data' is uint8 (2, 2), expected uint8 (N, 3072)"),
        ({b"data": b"K\x01", b"labels": old_list([])}, "'data' is int, expected"),
    ]:
        saved(path, old_pickle(entries))
        refused(EXAMPLES["cifar10"], tmp_path, str(path), message)


# ---------------------------------------------------------------- svhn, images, npz


def test_svhn_counts_0_as_10(unsealed: None, tmp_path: Path) -> None:
    example = EXAMPLES["svhn"]
    example.write(tmp_path, "test", example.images(3), [0, 9, 1])
    assert load_part("svhn", tmp_path).labels.tolist() == [0, 9, 1]


def test_mat_files_that_are_something_else(unsealed: None, tmp_path: Path) -> None:
    from scipy.io import savemat

    path, good = tmp_path / "test_32x32.mat", np.zeros((32, 32, 3, 2), np.uint8)
    for variables, message in [
        ({"X": good}, "y has the shape (0, 0)"),
        ({"X": good.astype(float), "y": [[1], [2]]}, "X is float64"),
        ({"X": good[..., 0], "y": [[1]]}, "X is uint8 (32, 32, 3)"),
        ({"X": good, "y": [[1.0], [2.0]]}, "labels are not a list of integers"),
        ({"X": good, "y": [[0], [1]]}, "label 0 of image 0 is outside 1..10"),
    ]:
        savemat(path, variables)
        refused(EXAMPLES["svhn"], tmp_path, str(path), message)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("svhn", "scipy.io", "scipy"), ("tiny-imagenet", "PIL", "Pillow"), ("folder", "PIL", "Pillow")],
)
def test_packages_that_are_missing_are_named_with_the_remedy(
    unsealed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str
) -> None:
    write(EXAMPLES[name], tmp_path, "test")
    monkeypatch.setitem(sys.modules, module, None)
    refused(EXAMPLES[name], tmp_path, f"{package}, which is not installed: pip install 'surebound[data]'")


def test_tiny_imagenet_numbers_its_classes_by_sorted_id(tmp_path: Path) -> None:
    example = EXAMPLES["tiny-imagenet"]
    example.write(tmp_path, "test", example.images(3), [199, 0, 5])
    assert WNIDS[0] > WNIDS[-1]
    assert load_part("tiny-imagenet", tmp_path).labels.tolist() == [199, 0, 5]


def test_tiny_imagenet_that_contradicts_itself(tmp_path: Path) -> None:
    example = EXAMPLES["tiny-imagenet"]
    notes, _, image, *_ = write(example, tmp_path, "test")
    text = notes.read_text()
    for bad, message in [
        (text.replace(sorted(WNIDS)[0], "n99999999", 1), ":1: 'n99999999' is not a class of wnids.txt"),
        (text.replace("val_0.JPEG", "../../val_9.JPEG"), ":1: '../../val_9.JPEG' is not in"),
        (text + text.splitlines()[0], ":7: 'val_0.JPEG' is named twice"),
        ("".join(text.splitlines(keepends=True)[1:]), "no line for"),
    ]:
        notes.write_text(bad)
        refused(example, tmp_path, message)
    notes.write_text(text)
    image.write_bytes(jpeg(np.zeros((3, 32, 64), np.uint8)))
    refused(example, tmp_path, "val_0.JPEG: 64 x 32 pixels")
    image.write_bytes(jpeg(np.full((1, 64, 64), 7, np.uint8)))
    assert load_part("tiny-imagenet", tmp_path, indices=[0]).images[0].unique().numel() == 1
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").write_text("n00000001\n")
    refused(example, tmp_path, "1 different classes in 1 lines, expected 200")


def picture(path: Path, *shape: int, mode: str = "") -> None:
    from PIL import Image

    stream = io.BytesIO(encoded(np.zeros(shape, np.uint8), "PNG"))
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.open(stream).convert(mode) if mode else Image.open(stream)).save(path)


def test_folders_without_parts_are_test_images(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 1, 4, 5)
    picture(tmp_path / "b" / "1.png", 1, 4, 5)
    saved(tmp_path / "a" / ".hidden", b"")
    found = load_part("folder:.", tmp_path)
    assert found.images.shape == (2, 1, 4, 5) and found.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="no training part"):
        load_part("folder:.", tmp_path, "train")


def test_classes_of_a_folder_are_those_of_both_parts(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/b"):
        picture(tmp_path / name / "1.png", 3, 4, 4)
    assert load_part("folder:.", tmp_path).labels.tolist() == [1]
    assert load_dataset("folder:.", tmp_path, validation=0).classes == 2
    picture(tmp_path / "test/b/1.png", 3, 5, 4)
    with pytest.raises(DataError, match=r"training images are \(3, 4, 4\), test images \(3, 5, 4\)"):
        load_dataset("folder:.", tmp_path, validation=0)


def test_folders_of_something_else(tmp_path: Path) -> None:
    def refuses(message: str) -> None:
        with pytest.raises(DataError, match=message):
            load_part("folder:f", tmp_path)

    refuses("there is no folder .*f; write folder:NAME")
    saved(tmp_path / "f" / "note.txt", b"")
    refuses(r"note\.txt is not in a sub-folder")
    (tmp_path / "f" / "note.txt").unlink()
    refuses("no sub-folders")
    (tmp_path / "f" / "a").mkdir()
    refuses("no images")
    saved(tmp_path / "f" / "a" / "x.txt", b"")
    refuses(r"x\.txt: not an image file \(.bmp, ")
    (tmp_path / "f" / "a" / "x.txt").unlink()
    saved(tmp_path / "f" / "a" / "0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    refuses(r"0\.png: damaged image")
    picture(tmp_path / "f" / "a" / "0.png", 1, 4, 4)
    picture(tmp_path / "f" / "a" / "1.png", 3, 4, 4)
    refuses(r"1\.png: pixels of the kind RGB; save it as an 8-bit gray image")
    picture(tmp_path / "f" / "a" / "0.png", 3, 4, 4)
    picture(tmp_path / "f" / "a" / "1.png", 3, 4, 4, mode="RGBA")
    refuses(r"1\.png: pixels of the kind RGBA; save it as an 8-bit gray or RGB image")
    picture(tmp_path / "f" / "a" / "1.png", 3, 4, 5)
    refuses(r"1\.png: 5 x 4 pixels, but .*0\.png sets the size of the data set to 4 x 4")
    (tmp_path / "f" / "train").mkdir()
    refuses("no test part")


U8 = np.zeros((2, 3, 4, 4), np.uint8)
ONES = np.ones(2, np.int64)


@pytest.mark.parametrize(
    ("arrays", "shape"),
    [
        ({"images": U8}, (3, 4, 4)),
        ({"images": U8.transpose(0, 2, 3, 1)}, (3, 4, 4)),
        ({"images": U8[:, 0]}, (1, 4, 4)),
        ({"images": U8[..., :1], "layout": "NHWC"}, (1, 3, 4)),
        ({"images": U8[..., :3], "layout": "NCHW"}, (3, 4, 3)),
        ({"test_images": U8.astype(np.float16)}, (3, 4, 4)),
        ({"images": U8.astype(np.float64) + 1}, (3, 4, 4)),
    ],
)
def test_npz_shapes(tmp_path: Path, arrays: dict[str, Any], shape: tuple[int, ...]) -> None:
    entries: dict[str, Any] = arrays | {"test_labels" if "test_images" in arrays else "labels": ONES}
    np.savez_compressed(tmp_path / "a.npz", **entries)
    found = load_part("npz:a.npz", tmp_path)
    assert tuple(found.images.shape[1:]) == shape and found.images.dtype == torch.float32
    with pytest.raises(DataError, match="no train part; it has .* give either 'train_images' and 'train_labels'"):
        load_dataset("npz:a.npz", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": U8}, "no test part; it has ['images']"),
        ({"images": U8, "labels": ONES, "test_images": U8, "test_labels": ONES}, "two test parts"),
        ({"images": U8[:, :, :3, :3], "labels": ONES}, "add an entry layout='NCHW' or 'NHWC'"),
        ({"images": U8[:, :2], "labels": ONES}, "add an entry layout='NCHW' or 'NHWC'"),
        ({"images": U8[0, 0], "labels": ONES}, "give [N, C, H, W]"),
        ({"images": U8, "labels": ONES, "layout": "HWC"}, "'layout' is 'HWC'"),
        ({"images": U8.astype(np.int16), "labels": ONES}, "values of the type int16"),
        ({"images": U8 + 255.0, "labels": ONES}, "values from 255.0 to 255.0, floats must lie in [0, 1]"),
        ({"images": U8 * np.nan, "labels": ONES}, "values from nan"),
        ({"images": U8, "labels": ONES - 2}, "label -1 of image 0 is outside 0..0"),
        ({"images": U8, "labels": ONES * 10**9}, "the label 1000000000 is too large"),
        ({"images": U8, "labels": ONES + 0.5}, "not a list of integers"),
        ({"images": U8, "labels": ONES[:, None]}, "not a list of integers"),
        ({"images": U8, "labels": ONES, "classes": 0}, "'classes' must be one integer"),
        ({"images": U8, "labels": ONES, "classes": 1}, "label 1 of image 0 is outside 0..0"),
        ({"images": np.array([Runs(print)] * 2), "labels": ONES}, "damaged npz file (ValueError: Object arrays"),
    ],
)
def test_npz_files_that_are_something_else(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    refused(EXAMPLES["npz"], tmp_path, str(tmp_path / "mine.npz"), message)


# ---------------------------------------------------------------- published files


@pytest.mark.parametrize(
    ("name", "file", "shape", "labels"),
    [
        ("mnist", "MNIST", (1, 28, 28), [7, 2, 1, 0, 4]),
        ("fashion-mnist", "FashionMNIST", (1, 28, 28), [9, 2, 1, 1, 6]),
        ("cifar10", "cifar-10-batches-py", (3, 32, 32), [3, 8, 8, 0, 6]),
    ],
)
def test_published_test_parts(published: Path, name: str, file: str, shape: tuple[int, ...], labels: list[int]) -> None:
    if not (published / file).is_dir():
        pytest.skip(f"no {file} in SUREBOUND_DATA")
    part = load_part(name, published, "test")
    assert part.images.shape == (10_000, *shape) and part.labels[:5].tolist() == labels
    assert (float(part.images.min()), float(part.images.max())) == (0, 1)
    assert torch.equal(part.indices, torch.arange(10_000))
    assert part.labels.bincount().tolist() == [1000] * 10 or name == "mnist"


@pytest.mark.parametrize(("name", "file"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_published_training_parts(published: Path, name: str, file: str) -> None:
    if not (published / file).is_dir():
        pytest.skip(f"no {file} in SUREBOUND_DATA")
    data = load_dataset(name, published)
    assert len(data.train) + len(data.validation) == 60_000 and abs(len(data.validation) - 6000) <= 10
    first = load_part(name, published, "train", indices=range(5)).labels.tolist()
    assert first == {"mnist": [5, 0, 4, 1, 9], "fashion-mnist": [9, 0, 0, 3, 0]}[name]


def test_both_versions_of_cifar10_are_the_same(published: Path, tmp_path: Path) -> None:
    """The binary version, written from the pickles, has the published checksum."""
    if not (published / "cifar-10-batches-py" / "test_batch").is_file():
        pytest.skip("no cifar-10-batches-py in SUREBOUND_DATA")
    part = load_part("cifar10", published)
    pixels = (part.images * 255).round().to(torch.uint8).flatten(1)
    records = torch.cat([part.labels.to(torch.uint8)[:, None], pixels], 1)
    saved(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", records.numpy().tobytes())
    again = load_part("cifar10", tmp_path)
    assert torch.equal(again.images, part.images) and torch.equal(again.labels, part.labels)
