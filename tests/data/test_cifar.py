import gzip
import tarfile

import numpy as np
import pytest

from distillab.data.cifar import CIFAR10, CIFAR100, find_archive, find_copy, open_cifar
from distillab.errors import ConfigError, DataError


@pytest.fixture
def open_bytes(make_archive, tmp_path, notes):
    """Opens a tar's bytes as if they were the archive that is expected."""

    def open_it(content, **changes):
        archive = make_archive(content, **changes)
        (tmp_path / archive.file.name).write_bytes(content)
        return open_cifar(archive, data_dir=tmp_path, offline=True, observer=notes)

    return open_it


def stored(tmp_path):
    return list(tmp_path.rglob("*.npy")) + list(tmp_path.rglob("manifest.json"))


def test_the_real_archives_are_described():
    assert sum(CIFAR10.train_files.values()) == sum(CIFAR100.train_files.values()) == 50_000
    assert sum(CIFAR10.test_files.values()) == sum(CIFAR100.test_files.values()) == 10_000
    assert CIFAR10.size_bytes("data_batch_1.bin") == 30_730_000
    assert CIFAR100.size_bytes("train.bin") == 153_700_000
    assert CIFAR10.file.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert len(CIFAR10.classes) == 10
    assert len(set(CIFAR100.classes)) == 100
    assert sorted(CIFAR100.classes) == list(CIFAR100.classes)


def test_images_and_labels_come_out_as_they_went_in(open_bytes, good_archive, make_records):
    data = open_bytes(good_archive)
    parts = [make_records(number, seed=seed) for seed, number in enumerate((6, 6, 4))]
    assert np.array_equal(data.train.images, np.concatenate([parts[0][1], parts[1][1]]))
    assert data.train.labels.tolist() == [*parts[0][0], *parts[1][0]]
    assert np.array_equal(data.test.images, parts[2][1])
    assert data.test.labels.tolist() == [*parts[2][0]]
    assert (data.name, data.image_size, data.classes) == ("cifar10", 32, CIFAR10.classes)


def test_of_two_labels_the_fine_one_is_taken(open_bytes, make_tar, make_records):
    number = {"train.bin": 5, "test.bin": 3}
    made = {name: make_records(count, seed=count, label_bytes=2, highest=99) for name, count in number.items()}
    content = make_tar([(f"{CIFAR100.folder}/{name}", parts[2]) for name, parts in made.items()])
    changes = {"folder": CIFAR100.folder, "label_bytes": 2, "classes": CIFAR100.classes}
    files = {"train_files": {"train.bin": 5}, "test_files": {"test.bin": 3}}
    data = open_bytes(content, **changes, **files)
    assert data.train.labels.tolist() == made["train.bin"][0].tolist()
    assert np.array_equal(data.test.images, made["test.bin"][1])


def test_the_order_inside_the_archive_does_not_matter(open_bytes, good_archive, members, make_tar, tmp_path):
    straight = open_bytes(good_archive)
    assert open_bytes(make_tar(reversed(members))).sha256 == straight.sha256


def test_it_is_downloaded_once_and_opened_offline_later(server, make_archive, tmp_path, notes):
    archive = make_archive(server.content, server.url)
    first = open_cifar(archive, data_dir=tmp_path, offline=False, observer=notes)
    assert server.requests == 1
    (tmp_path / archive.file.name).unlink()
    again = open_cifar(archive, data_dir=tmp_path, offline=True, observer=notes)
    assert again.sha256 == first.sha256
    assert server.requests == 1


def test_offline_without_a_copy_says_where_to_put_one(make_archive, tmp_path, notes):
    archive = make_archive(b"whatever")
    with pytest.raises(DataError, match="downloads are off") as caught:
        open_cifar(archive, data_dir=tmp_path, offline=True, observer=notes)
    for part in (archive.file.url, archive.file.sha256, str(tmp_path / archive.file.name)):
        assert part in str(caught.value)
    assert stored(tmp_path) == []


def test_a_damaged_copy_is_refused_and_not_downloaded_over(server, make_archive, tmp_path, notes):
    archive = make_archive(server.content, server.url)
    (tmp_path / archive.file.name).write_bytes(server.content[:-5])
    with pytest.raises(DataError, match="probably cut"):
        open_cifar(archive, data_dir=tmp_path, offline=False, observer=notes)
    assert server.requests == 0


def test_an_unpacked_folder_is_read_too(make_archive, good_archive, members, open_bytes, tmp_path, notes):
    packed = open_bytes(good_archive)
    place = tmp_path / "elsewhere"
    (place / CIFAR10.folder).mkdir(parents=True)
    for name, content in members:
        (place / name).write_bytes(content)
    archive = make_archive(good_archive)
    for where in (place, place / CIFAR10.folder):
        data = open_cifar(archive, data_dir=tmp_path / "data", offline=True, observer=notes, place=where)
        assert data.sha256 == packed.sha256
    path = place / CIFAR10.folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch.bin has 12,291 bytes instead of 12,292"):
        open_cifar(archive, data_dir=tmp_path / "data", offline=True, observer=notes, place=place)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def declared(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


FOLDER = CIFAR10.folder


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("../evil.txt", b"x"), "leaves its folder"),
        ((f"{FOLDER}/../../evil.txt", b"x"), "leaves its folder"),
        (("/etc/evil.txt", b"x"), "leaves its folder"),
        (link(f"{FOLDER}/link", "/etc/passwd"), "link or special"),
        (link(f"{FOLDER}/hard", f"{FOLDER}/test_batch.bin", tarfile.LNKTYPE), "link or special"),
        (link(f"{FOLDER}/device", "", tarfile.CHRTYPE), "link or special"),
        ((f"{FOLDER}/large.bin", b"0" * (1 << 20) + b"0"), "does not belong"),
        ((f"{FOLDER}/test_batch.bin", b"again"), "does not belong"),
    ],
)
def test_hostile_members_are_refused(open_bytes, make_tar, members, tmp_path, extra, words):
    with pytest.raises(DataError, match=words):
        open_bytes(make_tar([*members, extra]))
    assert stored(tmp_path) == []


def test_a_member_of_another_size_is_refused(open_bytes, make_tar, members):
    name, content = members[-1]
    for wrong in (content[:-3073], content + content[:3073]):
        with pytest.raises(DataError, match=r"test_batch.bin has .* instead of 12,292"):
            open_bytes(make_tar([*members[:-1], (name, wrong)]))


def test_a_member_that_declares_more_than_there_is_is_refused(open_bytes, members):
    raw = b"".join(
        declared(name, len(content)).tobuf() + content + bytes(-len(content) % 512) for name, content in members[:-1]
    )
    for name, words in ((f"{FOLDER}/readme.html", "does not belong"), (members[-1][0], "instead of")):
        with pytest.raises(DataError, match=words):
            open_bytes(gzip.compress(raw + declared(name, 1 << 40).tobuf(format=tarfile.GNU_FORMAT)))


def test_a_missing_member_is_named(open_bytes, make_tar, members):
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/test_batch.bin"):
        open_bytes(make_tar(members[:-1]))


def test_a_label_out_of_range_is_refused(open_bytes, make_tar, members):
    name, content = members[-1]
    with pytest.raises(DataError, match=r"label 10, but there are 10 classes"):
        open_bytes(make_tar([*members[:-1], (name, bytes([10]) + content[1:])]))


@pytest.mark.parametrize("broken", ["cut", "not a tar", "empty"])
def test_a_broken_archive_is_an_error(open_bytes, good_archive, broken):
    content = {"cut": good_archive[: len(good_archive) // 2], "not a tar": b"<html>" * 99, "empty": b""}[broken]
    with pytest.raises(DataError, match="damaged"):
        open_bytes(content)


def test_archives_are_found_by_their_names(tmp_path):
    assert find_archive(tmp_path) is None
    (tmp_path / CIFAR100.file.name).write_bytes(b"")
    assert find_archive(tmp_path) is CIFAR100
    assert find_copy(CIFAR100, tmp_path) == tmp_path / CIFAR100.file.name
    assert find_archive(tmp_path / CIFAR100.file.name) is CIFAR100
    (tmp_path / CIFAR10.file.name).write_bytes(b"")
    with pytest.raises(ConfigError, match="CIFAR-10 and CIFAR-100"):
        find_archive(tmp_path)
