"""Whole writes, creates that one process wins, and leases, on a disk and in what stands in for a bucket."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_gcs
from gptjax import files
from gptjax.cli import main
from gptjax.config import from_file, load_config
from gptjax.errors import BadInput, exit_code_of
from gptjax.jobs import leases, storage
from gptjax.run.metrics import read_metrics
from gptjax.run.result import Result
from gptjax.sweep.ledger import Ledger
from helpers import environment, needed, until


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """Give the environment of processes for which gs:// is a server of this machine."""
    needed("gcsfs", "gcs")
    server = fake_gcs.serve()
    yield fake_gcs.environment(server)
    server.shutdown()


def python(program: str, *args: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.Popen(command, env=environment(**env or {}), stdout=subprocess.PIPE, text=True)


FILES = """
import sys
from gptjax.jobs import storage
d = storage.folder(sys.argv[1]) / "run"
d.mkdir(parents=True, exist_ok=True)
(d / "deep").mkdir(exist_ok=True)
assert storage.names(d) == [] and storage.read(d / "a") is None and not (d / "a").is_file()
assert storage.create(d / "a", b"1") and not storage.create(d / "a", b"2") and storage.read(d / "a") == b"1"
storage.write(d / "a", b"3")
storage.write(d / "deep" / "b", b"4")
storage.write(d / "c", b"5")
assert storage.names(d) == ["a", "c"] and storage.all_names(d) == ["a", "c", "deep/b"]
assert (d / "a").read_bytes() == b"3" and (d / "deep").is_dir() and {p.name for p in d.glob("*")} >= {"a", "c", "deep"}
storage.remove(d / "deep")
storage.remove(d / "a")
storage.remove(d / "a")
assert storage.all_names(d) == ["c"] and not (d / "a").exists()
print("same")
"""

RACE = """
import sys
from gptjax.jobs import storage
d = storage.folder(sys.argv[1])
print("ready", flush=True)
for i in map(int, sys.stdin):
    print(storage.create(d / str(i), sys.argv[2].encode()), flush=True)
"""


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_folder_is_the_same_on_disk_and_in_a_bucket(place, request, tmp_path):
    env = request.getfixturevalue("bucket") if place == "bucket" else {}
    where = tmp_path if place == "disk" else "gs://bucket/a folder"
    process = python(FILES, where, env=env)
    assert process.communicate(timeout=60)[0] == "same\n"


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_of_four_that_create_a_file_one_wins(place, request, tmp_path):
    env = request.getfixturevalue("bucket") if place == "bucket" else {}
    where = tmp_path if place == "disk" else "gs://bucket/race"
    environment = os.environ | env
    command = [sys.executable, "-c", RACE, str(where)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    racers = [subprocess.Popen([*command, str(i)], **pipes) for i in range(4)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 4
    winners = []
    for i in range(50):
        for racer in racers:
            racer.stdin.write(f"{i}\n")
        for racer in racers:
            racer.stdin.flush()
        won = [j for j, racer in enumerate(racers) if racer.stdout.readline() == "True\n"]
        assert len(won) == 1
        winners += won
    for racer in racers:
        racer.communicate(timeout=30)
    if place == "disk":
        assert [int((tmp_path / str(i)).read_text()) for i in range(50)] == winners
        assert len(list(tmp_path.iterdir())) == 50
    else:
        assert [int(fake_gcs.objects["bucket", f"race/{i}"][0]) for i in range(50)] == winners


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    program = """
import sys, pathlib
from gptjax.jobs import storage
for i in range(10**9):
    storage.write(pathlib.Path(sys.argv[1]), b"%d" % (i % 10) * 1_000_000)
"""
    writer = python(program, path)
    until(path.is_file)

    def whole() -> int:
        found = path.read_bytes()
        assert len(found) == 1_000_000 and len(set(found)) == 1
        return found[0]

    seen = set()
    while len(seen) < 5:
        seen.add(whole())
    writer.kill()
    writer.wait()
    whole()


@pytest.mark.parametrize("where", ["s3://bucket/run", "gs://bucket", "gs://Bucket/run", "https://host/run"])
def test_addresses_that_nothing_here_writes_are_refused(where, capsys):
    with pytest.raises(BadInput, match="give a directory, or gs://BUCKET/PATH"):
        storage.folder(where)
    with pytest.raises(SystemExit) as stop:
        main(["status", where])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


HOLDER = """
import sys, time, pathlib
from gptjax.jobs import leases
leases.BEAT_SECONDS = 0.05
if sys.argv[2]:
    leases.machine = lambda: sys.argv[2]
with leases.hold(pathlib.Path(sys.argv[1])) as lease:
    print(lease.number, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.02)


def taken(directory: Path) -> bool:
    with leases.hold(directory) as lease:
        return lease is not None


def test_a_lease_of_this_machine_is_free_when_its_process_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1e9)
    holder = python(HOLDER, tmp_path, "")
    assert holder.stdout.readline() == "1\n"
    assert not taken(tmp_path) and leases.is_held(tmp_path)
    holder.kill()
    until(lambda: not leases.is_held(tmp_path), seconds=5)  # though it is still a zombie of ours
    assert taken(tmp_path)
    holder.communicate()


def test_a_lease_of_another_machine_is_free_when_its_beat_has_stood_still(tmp_path, soon):
    holder = python(HOLDER, tmp_path, "another")
    assert holder.stdout.readline() == "1\n"
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        assert not taken(tmp_path)
        time.sleep(0.02)
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    until(lambda: taken(tmp_path))
    assert 0.8 < time.monotonic() - began < 10


def test_to_watch_a_lease_takes_no_longer_than_to_see_it_renewed(tmp_path, soon, monkeypatch):
    holder = python(HOLDER, tmp_path, "another")
    assert holder.stdout.readline() == "1\n"
    with monkeypatch.context() as patient:
        patient.setattr(leases, "LEASE_SECONDS", 1e9)
        with leases.hold(tmp_path, watch=True) as lease:
            assert lease is None
    holder.kill()
    holder.communicate()
    with leases.hold(tmp_path, watch=True) as lease:
        assert lease.number == 2


def test_a_holder_that_stood_still_has_lost_for_good(tmp_path, soon, monkeypatch, capsys):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 1e9)  # nobody renews in the background
    with leases.hold(tmp_path) as stalled:
        monkeypatch.setattr(leases, "machine", lambda: "another")
        until(lambda: taken(tmp_path))  # taken over, given back
        assert not stalled.held()
        assert taken(tmp_path) and not stalled.held()
        with pytest.raises(leases.Lost) as lost:
            leases.confirm(stalled, tmp_path)
    assert lost.value.code == 75 and capsys.readouterr().err.count("\n") == 1
    assert [json.loads(path.read_text())["held"] for path in tmp_path.iterdir()] == [False]


def test_a_lease_given_back_is_not_renewed(tmp_path):
    with leases.hold(tmp_path) as lease:
        assert lease.held() and not taken(tmp_path)
    assert not lease.held() and not leases.is_held(tmp_path) and taken(tmp_path)


def test_a_number_too_low_is_no_lease(tmp_path, monkeypatch):
    """Between the look at a lease and the attempt to take it, two others may have had it."""
    look = leases._newest

    def late(directory: Path):
        seen = look(directory)
        monkeypatch.setattr(leases, "_newest", look)
        for _ in range(2):
            assert taken(directory)
        return seen

    monkeypatch.setattr(leases, "_newest", late)
    assert not taken(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["000002.json"]


def test_a_stopped_process_is_alive(tmp_path):
    holder = python(HOLDER, tmp_path, "")
    assert holder.stdout.readline() == "1\n"
    holder.send_signal(signal.SIGSTOP)
    assert leases.is_held(tmp_path) and not taken(tmp_path)
    holder.kill()
    holder.communicate()


DAMAGED = [b"", b"{", b"null", b"[]", b"{}", b'{"held": true}', b"\xff\xfe", b"[" * 100_000, b"1" * 5000,
           b'{"held": 1, "machine": [], "pid": "/../x", "began": {}, "beat": null}']  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("data", DAMAGED, ids=[str(data[:8]) for data in DAMAGED])
def test_a_damaged_lease_is_watched_and_taken_over(tmp_path, soon, data):
    (tmp_path / "000003.json").write_bytes(data)
    assert not taken(tmp_path)
    with leases.hold(tmp_path, watch=True) as lease:
        assert lease.number == 4


STRAYS = ["README.md", "7.json", "0000007.json", "000000.json", "x.json", "٣" * 6 + ".json", ".000009.json.x"]


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_no_lease_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("")
    assert not leases.is_held(tmp_path) and taken(tmp_path) and (tmp_path / name).exists()


def test_a_lease_of_a_huge_number_is_followed_by_the_next(tmp_path, soon):
    (tmp_path / f"{10**30}.json").write_text("{}")
    with leases.hold(tmp_path, watch=True) as lease:
        assert lease.number == 10**30 + 1 and lease.held()


def test_a_folder_in_the_place_of_a_lease_is_named(tmp_path):
    (tmp_path / "000001.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"000001\.json"):
        taken(tmp_path)


@pytest.mark.parametrize("write", [storage.write, storage.create])
def test_a_full_disk_leaves_nothing_beside_a_file_and_names_it(tmp_path, monkeypatch, write):
    (tmp_path / "old").write_text("old")
    path = tmp_path / ("old" if write is storage.write else "new")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write(path, b"new")
    code, line = exit_code_of(error.value)
    assert code == 1 and line.startswith(f"{path}: No space left on device; make room")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old", "old")]


def test_a_lease_that_cannot_be_given_back_hides_no_other_error(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(OSError, match="checkpoint"), leases.hold(tmp_path / "lease") as lease:
        assert lease
        monkeypatch.setattr(storage, "write", full)
        raise OSError("the checkpoint was not saved")


KEYS = st.sampled_from(["run", "status", "loss", "reason", "step", "model"]) | st.text(max_size=3)
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANYTHING = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@given(ANYTHING, st.binary(max_size=3))
def test_any_content_of_a_file_is_read_or_refused_in_a_line_that_names_it(value, tail):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger" / "a.json"
        path.parent.mkdir()
        path.write_bytes(json.dumps(value).encode() + tail)
        readers = (
            lambda: Ledger(Path(folder)).rows(), lambda: load_config(path), lambda: from_file(Result, path),
            lambda: read_metrics(path), lambda: files.read_json(path),
        )  # fmt: skip
        for read in readers:
            try:
                read()
            except BadInput as error:
                assert str(path) in str(error) and "\n" not in str(error)


def test_a_mistake_in_json_is_named_by_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{\n"a": 1,\n"b": x\n}')
    with pytest.raises(BadInput, match=r"a\.json:3 cannot be read as JSON"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\nstep 3\n{"ste')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:3 "):
        read_metrics(tmp_path / "metrics.jsonl")
