"""The LMDB store of codes."""

import gc
import os
import pickle
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from vqvae2.codes import CodeStore, writer
from vqvae2.codes.environments import open_to_read
from vqvae2.codes.format import Codes, Header
from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.writer import CodeWriter
from vqvae2.config import LevelGrid
from vqvae2.errors import UserError
from vqvae2.training.order import in_order

LEVELS = [LevelGrid("top", 2, 3, 512), LevelGrid("bottom", 4, 6, 256)]
HEADER = Header(LEVELS, ["Hut", "Schühe"], 6, "no", "ab12")


def make_codes(header: Header, seed: int = 0) -> list[Codes]:
    """A random record for every image of a store; each contains the highest code of each level."""
    random = np.random.default_rng(seed)
    records = []
    for i in range(header.count):
        codes = {}
        for name, height, width, codebook_size in header.levels:
            codes[name] = torch.from_numpy(random.integers(0, codebook_size, (height, width)))
            codes[name][0, 0] = codebook_size - 1
        records.append(Codes(codes, i % 3 - 1, f"Schühe/画像_{i}.png"))
    return records


def write(path: Path, header: Header, records: list[Codes], at_a_time: int = 4) -> Path:
    """Write a store, `at_a_time` records per call, and return its path."""
    writer = CodeWriter(path, header)
    for i in range(0, len(records), at_a_time):
        writer.write(records[i : i + at_a_time])
    writer.close()
    return path


def same(one: Codes, other: Codes) -> bool:
    """Whether two records are equal, including the data types of the codes."""
    if (one.codes.keys(), one.label, one.name) != (other.codes.keys(), other.label, other.name):
        return False
    return all(torch.equal(x, other.codes[name]) for name, x in one.codes.items())


def content(path: Path) -> dict[bytes, bytes]:
    """All keys and values stored at `path`, read with lmdb only."""
    environment = lmdb.open(str(path), readonly=True, lock=False)
    with environment.begin() as transaction:
        found = {bytes(key): bytes(value) for key, value in transaction.cursor()}
    environment.close()
    return found


def put(path: Path, key: bytes, value: bytes) -> None:
    """Write one value with lmdb only; creates the store if there is none."""
    path.mkdir(exist_ok=True)
    environment = lmdb.open(str(path))
    with environment.begin(write=True) as transaction:
        transaction.put(key, value)
    environment.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "codes.lmdb", HEADER, make_codes(HEADER))


@pytest.mark.parametrize(
    ("codebook_size", "bytes_a_code"),
    [(2, 1), (256, 1), (257, 2), (512, 2), (65536, 2), (65537, 4)],
)
def test_round_trip_in_the_smallest_type(tmp_path: Path, codebook_size: int, bytes_a_code: int):
    """Codes, labels and names are read back unchanged; codes are stored in the smallest type that holds K - 1."""
    header = replace(HEADER, levels=[LevelGrid("top", 5, 7, codebook_size)])
    records = make_codes(header)
    opened = CodeStore(write(tmp_path / "codes.lmdb", header, records))
    assert opened.header == header and len(opened) == 6
    assert all(same(a, b) for a, b in zip(opened, records, strict=True))
    expected = 4 + 4 + 2 + len(records[0].name.encode()) + 35 * bytes_a_code
    opened.close()
    assert len(content(opened.path)[bytes(8)]) == expected


def test_a_record_is_laid_out_as_documented(path: Path):
    """A record has the documented binary layout."""
    record = content(path)[(3).to_bytes(8, "big")]
    _, label, length = struct.unpack("<IiH", record[:10])
    top = np.frombuffer(record, "<u2", 6, 10 + length).reshape(2, 3)
    bottom = np.frombuffer(record, "u1", 24, 10 + length + 12).reshape(4, 6)
    expected = make_codes(HEADER)[3]
    assert (label, record[10 : 10 + length].decode()) == (expected.label, expected.name)
    assert np.array_equal(top, expected.codes["top"]) and np.array_equal(bottom, expected.codes["bottom"])


def test_a_record_takes_13_kilobytes_at_most(tmp_path: Path):
    """The codes of a 256x256 image (32x32 and 64x64, K = 512) use at most 13 kB on disk, including LMDB's overhead."""
    levels = [LevelGrid("top", 32, 32, 512), LevelGrid("bottom", 64, 64, 512)]
    header = replace(HEADER, levels=levels, count=200)
    write(tmp_path / "codes.lmdb", header, make_codes(header), at_a_time=16)
    assert os.stat(tmp_path / "codes.lmdb" / "data.mdb").st_blocks * 512 / 200 <= 13_000
    assert os.path.getsize(tmp_path / "codes.lmdb" / "data.mdb") / 200 <= 13_000


def test_a_forgotten_reader_does_not_stop_the_writer(tmp_path: Path):
    """An unfinished store is continued although a reader in a reference cycle still has it open."""
    records = make_codes(HEADER)
    path = write(tmp_path / "codes.lmdb", HEADER, records[:4])
    gc.disable()
    try:
        cycle: list[object] = [open_to_read(path)]
        cycle.append(cycle)
        del cycle
        writer = CodeWriter(path, HEADER)
    finally:
        gc.enable()
    writer.write(records[writer.written :])
    writer.close()
    assert all(same(a, b) for a, b in zip(CodeStore(path), records, strict=True))


def test_names_that_are_no_utf8_come_back(tmp_path: Path):
    """A file name that is not valid UTF-8 is read back as Python decodes it, with surrogate escapes."""
    header = replace(HEADER, count=1)
    record = make_codes(header)[0]._replace(name=os.fsdecode(b"M\xe4rz.png"))
    assert CodeStore(write(tmp_path / "codes.lmdb", header, [record]))[0].name == os.fsdecode(b"M\xe4rz.png")


def test_indexing(path: Path):
    """Negative indices and NumPy integers are supported; invalid indices raise the same exceptions as for a list."""
    opened, records = CodeStore(path), make_codes(HEADER)
    assert same(opened[-1], records[5]) and same(opened[-6], records[0])
    assert same(opened[np.int64(2)], records[2])
    for index in (6, -7):
        with pytest.raises(IndexError):
            opened[index]
    with pytest.raises(TypeError):
        opened["0"]


def test_an_interrupted_writer_goes_on(path: Path, tmp_path: Path):
    """Reading an incomplete store raises an error with its size; a new writer completes it to the same content."""
    half = write(tmp_path / "half.lmdb", HEADER, make_codes(HEADER)[:4])
    with pytest.raises(UserError, match=r"half\.lmdb: holds 4 of 6 images: run stage 2 again"):
        CodeStore(half)
    writer = CodeWriter(half, HEADER)
    assert writer.written == 4
    writer.write(make_codes(HEADER)[4:])
    writer.close()
    assert content(half) == content(path) and len(CodeStore(half)) == 6


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path):
    """After the process is killed, the store contains all completed writes and nothing of the unfinished one."""
    if (child := os.fork()) == 0:
        writer = CodeWriter(tmp_path / "codes.lmdb", HEADER)
        writer.write(make_codes(HEADER)[:3])
        with writer._environment.begin(write=True) as transaction:
            transaction.put(bytes(7) + b"\x03", b"unfinished")
            os._exit(0)
    os.waitpid(child, 0)
    writer = CodeWriter(tmp_path / "codes.lmdb", HEADER)
    assert writer.written == 3
    writer.close()


def test_a_store_does_not_go_on_with_other_images(path: Path):
    """The last record must be of the image at its place, since flipped and cropped copies have the same header."""
    before = content(path)
    names = [record.name for record in make_codes(HEADER)]
    writer = CodeWriter(path, HEADER)
    writer.refuse_other_images(names)
    with pytest.raises(UserError, match=r"record 5 is of '.*_5\.png', but these settings make it 'a flipped': delete"):
        writer.refuse_other_images([*names[:5], "a flipped"])
    assert content(path) == before
    empty = CodeWriter(path.parent / "empty.lmdb", HEADER)
    empty.refuse_other_images(names)
    empty.close()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("autoencoder_sha256", "cd34", "autoencoder_sha256 was 'ab12' and is now 'cd34'"),
        ("count", 7, "count was 6 and is now 7"),
        ("precision", "bf16", "precision was 'no' and is now 'bf16'"),
        ("classes", ["Hut"], "classes was"),
        ("levels", LEVELS[:1], "levels was"),
    ],
)
def test_codes_made_differently_are_not_mixed(path: Path, field: str, value, says: str):
    """A writer with a different header raises an error that lists only the differing field, and writes nothing."""
    before = content(path)
    with pytest.raises(UserError, match=f"created with different settings: {says}[^;]*: delete"):
        CodeWriter(path, replace(HEADER, **{field: value}))
    assert content(path) == before


@pytest.mark.parametrize("where", [0, 4, 8, 12, -1])
def test_a_damaged_record_is_named(path: Path, where: int):
    """A changed bit anywhere in a record is detected; other records can still be read."""
    key = (2).to_bytes(8, "big")
    record = bytearray(content(path)[key])
    record[where] ^= 1
    put(path, key, bytes(record))
    opened = CodeStore(path)
    with pytest.raises(UserError, match=r"codes\.lmdb: the record of image 2 is damaged"):
        opened[2]
    assert same(opened[1], make_codes(HEADER)[1])


@pytest.mark.parametrize("left", [0, 5, 20])
def test_a_shortened_record_is_named(path: Path, left: int):
    """A truncated record is detected."""
    key = (2).to_bytes(8, "big")
    put(path, key, content(path)[key][:left])
    with pytest.raises(UserError, match="the record of image 2 is damaged"):
        CodeStore(path)[2]


@pytest.mark.parametrize("header", [b"", b"no json", b"[]", b"{}", b'{"format": "x", "format_version": 1}'])
def test_a_foreign_store_is_refused(tmp_path: Path, header: bytes):
    """An LMDB database without a valid header is neither read nor modified."""
    put(tmp_path / "foreign.lmdb", b"header", header)
    before = content(tmp_path / "foreign.lmdb")
    for open_ in (CodeStore, lambda path: CodeWriter(path, HEADER)):
        with pytest.raises(UserError, match=r"foreign\.lmdb: not a code store"):
            open_(tmp_path / "foreign.lmdb")
    assert content(tmp_path / "foreign.lmdb") == before


def test_a_foreign_store_without_any_header_is_refused(tmp_path: Path):
    """An LMDB database that contains only other keys is rejected."""
    put(tmp_path / "foreign.lmdb", b"picture", b"x")
    for open_ in (CodeStore, lambda path: CodeWriter(path, HEADER)):
        with pytest.raises(UserError, match=r"foreign\.lmdb: not a code store"):
            open_(tmp_path / "foreign.lmdb")


def test_another_version_is_refused(path: Path):
    """A store with another format version is rejected, and the error gives both versions."""
    put(path, b"header", HEADER.to_json().replace(b'"format_version": 1', b'"format_version": 9'))
    for open_ in (CodeStore, lambda path: CodeWriter(path, HEADER)):
        with pytest.raises(UserError, match="format version 9 is not supported, only 1"):
            open_(path)


def test_a_missing_store_is_named(tmp_path: Path):
    """If there is no store, the error names the stage that creates it, and no store is created by the attempt."""
    with pytest.raises(UserError, match=r"gone\.lmdb: no codes found: run stage 2 first"):
        CodeStore(tmp_path / "gone.lmdb")
    assert not (tmp_path / "gone.lmdb").exists()


def test_what_is_no_lmdb_is_named(tmp_path: Path):
    """Readers and writers report a path that is not an LMDB database with an error that names it."""
    (tmp_path / "file.lmdb").write_text("x" * 10_000)
    (tmp_path / "folder.lmdb").mkdir()
    (tmp_path / "broken.lmdb").mkdir()
    (tmp_path / "broken.lmdb" / "data.mdb").write_text("x" * 10_000)
    for name in ("file", "folder", "broken"):
        with pytest.raises(UserError, match=rf"{name}\.lmdb: (cannot be opened|not a code store)"):
            CodeStore(tmp_path / f"{name}.lmdb")
    for name in ("file", "broken"):
        with pytest.raises(UserError, match=rf"{name}\.lmdb: cannot be (opened|written)"):
            CodeWriter(tmp_path / f"{name}.lmdb", HEADER)


def test_a_store_that_is_cut_off_is_refused(tmp_path: Path):
    """A truncated database file, as after an incomplete copy, raises an error and does not crash the process."""
    header = replace(HEADER, levels=[LevelGrid("top", 64, 64, 512)])
    path = write(tmp_path / "codes.lmdb", header, make_codes(header))
    os.truncate(path / "data.mdb", os.path.getsize(path / "data.mdb") // 2)
    for open_ in (CodeStore, lambda path: CodeWriter(path, header)):
        with pytest.raises(UserError, match=r"codes\.lmdb: truncated"):
            open_(path)


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The memory map grows when the records exceed its initial size, also in a writer that resumes."""
    monkeypatch.setattr(writer, "FIRST_MAP_BYTES", 2**16)
    header = replace(HEADER, levels=[LevelGrid("top", 64, 64, 512)], count=40)
    records = make_codes(header)
    write(tmp_path / "codes.lmdb", header, records[:20])
    assert os.path.getsize(tmp_path / "codes.lmdb" / "data.mdb") > 2**16
    opened = CodeStore(write(tmp_path / "codes.lmdb", header, records[20:], at_a_time=20))
    assert all(same(a, b) for a, b in zip(opened, records, strict=True))


def test_a_store_can_be_opened_twice(path: Path):
    """A store can be opened twice in one process, and closing one instance does not close the other."""
    one, other, records = CodeStore(path), CodeStore(str(path)), make_codes(HEADER)
    assert same(one[0], records[0]) and same(other[1], records[1])
    one.close()
    assert same(other[2], records[2]) and same(one[3], records[3])


def test_a_store_made_anew_is_not_the_old_one(path: Path):
    """After a store is deleted and rewritten, new readers see the new records; open readers see the old ones."""
    old = CodeStore(path)
    assert same(old[0], make_codes(HEADER)[0])
    shutil.rmtree(path)
    fresh = make_codes(HEADER, seed=1)
    assert same(CodeStore(write(path, HEADER, fresh))[0], fresh[0])
    assert same(old[1], make_codes(HEADER)[1])


def test_a_pickled_store_reads(path: Path):
    """An unpickled copy of a store can be read, whether or not the original has been read before."""
    opened = CodeStore(path)
    for _ in range(2):
        assert same(pickle.loads(pickle.dumps(opened))[4], opened[4])


def test_a_store_survives_a_fork(path: Path):
    """A forked child process can read a store that its parent has opened, and the parent can continue to read it."""
    opened, records = CodeStore(path), make_codes(HEADER)
    assert same(opened[0], records[0])
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = 0 if same(opened[1], records[1]) and same(CodeStore(path)[2], records[2]) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same(opened[3], records[3])


class TopCodes(Dataset):
    """A user-defined dataset of the top-level codes of a store."""

    def __init__(self, path: Path):
        self.store = CodeStore(path)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.store[index].codes["top"]


def test_loader_workers_read(path: Path):
    """DataLoader workers read the same codes as the main process, also after the main process has read the store."""
    dataset = TopCodes(path)
    expected = torch.stack([dataset[i] for i in range(6)])
    assert torch.equal(torch.cat(list(DataLoader(dataset, 2, num_workers=2))), expected)


def test_batches_of_codes(path: Path):
    """Batches contain the records in the requested order, with labels and batch indices."""
    records = make_codes(HEADER)
    first, second = load_code_batches(CodeStore(path), in_order([4, 0, 5], 2))
    assert torch.equal(first.codes["bottom"], torch.stack([records[i].codes["bottom"] for i in (4, 0)]))
    assert torch.equal(second.codes["top"], records[5].codes["top"][None])
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, -1], [1])
    assert (first.batch_indices.tolist(), second.batch_indices.tolist()) == ([0, 1], [2])


def test_a_record_is_found_by_its_name(path: Path):
    """`find` returns the record of each name and raises KeyError for an unknown name."""
    opened = CodeStore(path)
    for record in make_codes(HEADER):
        assert same(opened.find(record.name), record)
    with pytest.raises(KeyError):
        opened.find("nobody.png")


def test_all_records_as_arrays(path: Path):
    """`to_numpy` returns all codes in their stored types, with labels and names."""
    arrays = CodeStore(path).to_numpy()
    records = make_codes(HEADER)
    assert list(arrays) == ["top", "bottom", "labels", "names"]
    assert (arrays["top"].dtype, arrays["bottom"].dtype) == (np.uint16, np.uint8)
    for name in ("top", "bottom"):
        assert np.array_equal(arrays[name], torch.stack([x.codes[name] for x in records]).numpy())
    assert arrays["labels"].tolist() == [x.label for x in records]
    assert arrays["names"].tolist() == [x.name for x in records]


def test_several_records_at_once(path: Path):
    """Threads read the records in the requested order, also repeated ones; a damaged record is named."""
    records = make_codes(HEADER)
    with ThreadPoolExecutor(3) as threads:
        for wanted in ([], [3], [5, 0, 5, 2, 1, 4, 3, 0, 1]):
            found = CodeStore(path).read(wanted, threads)
            assert len(found) == len(wanted)
            assert all(same(x, records[i]) for x, i in zip(found, wanted, strict=True))
        put(path, (2).to_bytes(8, "big"), b"damaged")
        with pytest.raises(UserError, match="the record of image 2 is damaged"):
            CodeStore(path).read([0, 1, 2, 3], threads)
