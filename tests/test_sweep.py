"""Sweeps: keys, rows, workers that die or hang, and sweeps that are killed and continued."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sweep_workers import broken, scripted
from tiny_files import W1, forward, write_model, write_spec
from typer.testing import CliRunner

import surebound
import surebound.instance
import surebound.search.verify
from surebound import rowfile
from surebound.cli.app import app
from surebound.errors import OutOfMemory, UsageError
from surebound.rowfile import complete_rows, line_of
from surebound.sweeps import pool
from surebound.sweeps.executor import InProcess
from surebound.sweeps.instances import Instance, jobs_of, onnx_sha256, read_instances
from surebound.sweeps.jobs import Job, Result, Settings
from surebound.sweeps.pool import LocalPool, Queue, WorkersFailed
from surebound.sweeps.store import COLUMNS, Store, row_of
from surebound.sweeps.sweep import grouped, sweep
from surebound.witness import parse_witness

ROOT = Path(surebound.__file__).parents[1]
HOLDS, FAILS = ["(<= Y_0 0.0)"], ["(>= Y_1 1.0)"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_list(folder: Path, *lines: str) -> Path:
    path = folder / "instances.csv"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A list of two networks, two properties, and every kind of trouble."""
    folder = tmp_path / "bench"
    (folder / "nets").mkdir(parents=True)
    write_model(folder / "nets" / "a.onnx")
    write_model(folder / "nets" / "b.onnx", w1=(W1 * 0.5).astype(np.float32))
    write_model(folder / "nets" / "odd.onnx", hidden="Hardmax")
    write_spec(folder / "holds.vnnlib", HOLDS)
    write_spec(folder / "fails.vnnlib", FAILS)
    for name in ("nets/b.onnx", "fails.vnnlib"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    write_list(
        folder,
        "nets/a.onnx,holds.vnnlib,60",
        "nets/b.onnx,holds.vnnlib,60",
        "nets/a.onnx,fails.vnnlib,60",
        "nets/a.onnx,holds.vnnlib,60.0",
        "nets/odd.onnx,holds.vnnlib,60",
        "nets/gone.onnx,holds.vnnlib,60",
        "nets/a.onnx,holds.vnnlib,1e-9",
    )
    return folder


# ---------------------------------------------------------------- lists of instances
def test_a_list_of_instances(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_bytes('\ufeffa.onnx, p.vnnlib ,60\r\n\r\n,,\r\n"b,1.onnx",q.vnnlib,0.5'.encode())
    assert read_instances(path) == [
        Instance("a.onnx", "p.vnnlib", 60.0, tmp_path),
        Instance("b,1.onnx", "q.vnnlib", 0.5, tmp_path),
    ]
    assert [instance.timeout_s for instance in read_instances(path, 7.0)] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.onnx,p.vnnlib,60\na.onnx,p.vnnlib\n", "csv:2: expected the 3 fields onnx,vnnlib,timeout, found 'a.onnx"),
        ("a.onnx,p.vnnlib,60,1\n", "csv:1: expected the 3 fields"),
        ("a.onnx,,60\n", "csv:1: expected the 3 fields"),
        ("\n\nonnx,vnnlib,timeout\n", "csv:3: the timeout 'timeout' is not a number of seconds; the file has no head"),
        ("a.onnx,p.vnnlib,soon\n", "csv:1: the timeout 'soon' is not a number"),
        ("a.onnx,p.vnnlib,0\n", "csv:1: the timeout must be a finite number of seconds above 0, got 0"),
        ("a.onnx,p.vnnlib,nan\n", "above 0, got nan"),
        ('a.onnx,"p.vnnlib,60\n', "csv:1: not CSV"),
        ("\n", "it has no instances"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_malformed_list_is_bad_input(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "instances.csv"
    if text is not None:
        path.write_text(text)
    result = run("sweep", path, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--jobs", 0], 2, "--jobs must be at least 1, got 0"),
        (["--timeout", 0], 2, "--timeout must be a finite number"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
    ],
)
def test_options_that_make_no_sense(bench: Path, options: list[object], code: int, message: str) -> None:
    result = run("sweep", bench / "instances.csv", "--out", bench / "out", "--json", *options)
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (code, "error")
    assert message in result.stderr


# ---------------------------------------------------------------- keys
def keys(folder: Path, *lines: str, settings: Settings | None = None) -> list[str]:
    return [job.key for job in jobs_of(read_instances(write_list(folder, *lines)), settings or Settings())]


def test_a_key_is_of_contents_and_options_not_of_names(bench: Path) -> None:
    (first,) = keys(bench, "nets/a.onnx,holds.vnnlib,60", "nets/a.onnx,holds.vnnlib,60.0")
    for name in ("nets/a.onnx", "holds.vnnlib"):
        (bench / f"copy-{Path(name).name}.gz").write_bytes(gzip.compress((bench / name).read_bytes()))
    assert keys(bench, "copy-a.onnx,copy-holds.vnnlib.gz,6e1") == [first]
    others = [
        Settings(attack="none"), Settings(dtype="float64"), Settings(threads=1), Settings(memory=1 << 20),
        Settings(seed=1), Settings(device="cuda"),
    ]  # fmt: skip
    found = [keys(bench, "nets/a.onnx,holds.vnnlib,60", settings=settings)[0] for settings in others]
    found += keys(bench, "nets/a.onnx,holds.vnnlib,61", "nets/b.onnx,holds.vnnlib,60", "nets/a.onnx,fails.vnnlib,60")
    found += keys(bench, "nets/gone.onnx,holds.vnnlib,60", "nets/lost.onnx,holds.vnnlib,60")
    assert len({first, *found}) == 1 + len(others) + 5


def test_keys_are_the_same_in_another_process(bench: Path) -> None:
    code = (
        "import sys, pathlib; from surebound.sweeps.instances import *; from surebound.sweeps.jobs import Settings\n"
        "for job in jobs_of(read_instances(pathlib.Path(sys.argv[1])), Settings()): print(job.key)\n"
        "sys.exit('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, bench / "instances.csv"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [job.key for job in jobs_of(read_instances(bench / "instances.csv"), Settings())]
    assert found.stdout.split() == here
    assert len(here) == 6


def test_weights_in_another_file_count(tmp_path: Path) -> None:
    hashes = []
    for scale in (1.0, 2.0):
        model = onnx.load(write_model(tmp_path / "net.onnx", w1=(W1 * scale).astype(np.float32)))
        (tmp_path / "w.bin").unlink(missing_ok=True)
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        hashes.append(((tmp_path / "net.onnx").read_bytes(), onnx_sha256(str(tmp_path / "net.onnx"))))
    assert hashes[0][0] == hashes[1][0]
    assert hashes[0][1] != hashes[1][1]


def test_jobs_and_results_are_plain_values(bench: Path) -> None:
    (job,) = jobs_of(read_instances(write_list(bench, "nets/a.onnx,holds.vnnlib,60")), Settings(threads=1))
    result = Result(job.key, "unsat", "shown", 0.5, 0.25, "2026-01-01T00:00:00+00:00", margin=0.1)
    assert Job.of(json.loads(json.dumps(asdict(job)))) == pickle.loads(pickle.dumps(job)) == job
    assert Result(**json.loads(json.dumps(asdict(result)))) == pickle.loads(pickle.dumps(result)) == result


# ---------------------------------------------------------------- rows
@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Three jobs whose files do not exist."""
    return jobs_of([Instance(f"{name}.onnx", "p.vnnlib", 5.0, tmp_path) for name in "abc"], Settings())


def result_of(job: Job, verdict: str = "unsat", **more: Any) -> Result:
    return Result(job.key, verdict, "why", 1.0, 0.5, "2026-01-01T00:00:00+00:00", **more)


def test_the_columns_are_those_of_the_interface(tmp_path: Path, jobs: list[Job]) -> None:
    with Store.open(tmp_path / "out", jobs, False) as opened:
        opened.add(jobs[0], result_of(jobs[0]))
        opened.add(jobs[1], replace(result_of(jobs[1], "sat", witness="((X_0 1)\n(Y_0 2))"), reason="two\nlines, \ta"))
    lines = (tmp_path / "out" / "results.csv").read_text().split("\n")
    assert lines[0] == (
        "job,onnx,vnnlib,onnx_sha256,vnnlib_sha256,timeout_s,verdict,reason,seconds,charged_s,nodes,margin,witness,"
        "engine,attack,dtype,device,threads,seed,version,started_at,error_type,error"
    )
    assert len(lines) == 4 and lines[3] == ""
    first, second = rows_of(tmp_path / "out")
    assert (first["onnx"], first["timeout_s"], first["margin"], first["threads"]) == ("a.onnx", "5", "", "")
    assert (second["reason"], second["witness"]) == ("two lines, a", f"witnesses/{jobs[1].key}.txt")
    assert (tmp_path / "out" / second["witness"]).read_text() == "((X_0 1)\n(Y_0 2))\n"


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path, jobs: list[Job]) -> None:
    out = tmp_path / "out"
    with Store.open(out, jobs, False) as opened:
        opened.add(jobs[0], result_of(jobs[0]))
        opened.add(jobs[1], result_of(jobs[1], "sat"))
    whole = (out / "results.csv").read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in (*range(start, len(whole), 17), len(whole) - 1):
        (out / "results.csv").write_bytes(whole[:cut])
        with Store.open(out, jobs, True) as opened:
            assert list(opened.rows) == [jobs[0].key]
            opened.add(jobs[1], result_of(jobs[1], "sat"))
        assert (out / "results.csv").read_bytes() == whole


def test_error_rows_are_tried_again_and_replaced(tmp_path: Path, jobs: list[Job]) -> None:
    out, other = tmp_path / "out", replace(jobs[0], key="0" * 16, onnx="other.onnx")
    with Store.open(out, jobs, False) as opened:
        for job, verdict in ((jobs[0], "error"), (jobs[1], "timeout"), (other, "error"), (jobs[2], "unsupported")):
            opened.add(job, result_of(job, verdict))
    with Store.open(out, jobs, True) as opened:
        assert list(opened.rows) == [jobs[1].key, other.key, jobs[2].key]
    assert [row["job"] for row in rows_of(out)] == [jobs[1].key, other.key, jobs[2].key]


def test_an_earlier_sweep_is_not_overwritten(tmp_path: Path, jobs: list[Job]) -> None:
    with Store.open(tmp_path, jobs, False):
        pass
    with (
        pytest.raises(UsageError, match="results.csv exists; continue it with --resume"),
        Store.open(tmp_path, jobs, False),
    ):
        pass


def test_one_sweep_at_a_time(tmp_path: Path, jobs: list[Job]) -> None:
    with (
        Store.open(tmp_path, jobs, False),
        pytest.raises(UsageError, match="another run is writing"),
        Store.open(tmp_path, jobs, True),
    ):
        pass
    with Store.open(tmp_path, jobs, True):
        pass


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda head, row: b"index,label\n" + row, r"results.csv:1: not the header"),
        (lambda head, row: head + row[:-20] + b"\n" + row, r"results.csv:2: not a row"),
        (lambda head, row: head + row + b'"\n', r"results.csv:3: not a row"),
        (lambda head, row: head + head + row, r"results.csv:2: not a row"),
    ],
)
def test_a_foreign_file_is_not_touched(
    tmp_path: Path, jobs: list[Job], spoil: Callable[[bytes, bytes], bytes], message: str
) -> None:
    row = line_of(row_of(jobs[0], result_of(jobs[0]), "").values())
    data = spoil(line_of(COLUMNS), row)
    (tmp_path / "results.csv").write_bytes(data)
    with pytest.raises(UsageError, match=message), Store.open(tmp_path, jobs, True):
        pass
    assert (tmp_path / "results.csv").read_bytes() == data


def test_a_row_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with Store.open(tmp_path, jobs, False) as opened:
        opened.add(jobs[0], result_of(jobs[0]))
        before = opened.results.read_bytes()
        monkeypatch.setattr(rowfile.os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(UsageError, match="cannot be written to: No space left on device; mend that, and"):
            opened.add(jobs[1], result_of(jobs[1]))
        assert opened.results.read_bytes() == before
        assert list(opened.rows) == [jobs[0].key]


def test_no_row_is_ever_seen_in_part(tmp_path: Path, jobs: list[Job]) -> None:
    results = tmp_path / "results.csv"
    code = (
        "import sys, pathlib; from surebound.rowfile import append\n"
        "while True: append(pathlib.Path(sys.argv[1]), b','.join([b'x' * 9] * 23) + b'\\n')"
    )
    results.write_bytes(line_of(COLUMNS))
    process = subprocess.Popen([sys.executable, "-c", code, results], cwd=ROOT)
    wait_for(lambda: results.stat().st_size > 5000)
    process.kill()
    process.wait()
    assert results.read_bytes().endswith(b"\n")
    assert len(complete_rows(results, COLUMNS)) > 10


# ---------------------------------------------------------------- deciding
def test_every_job_has_a_typed_row(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    load_onnx = surebound.instance.load_onnx
    monkeypatch.setattr(surebound.instance, "load_onnx", lambda path: (reads.append(path.name), load_onnx(path))[1])
    jobs = jobs_of(read_instances(bench / "instances.csv"), Settings(threads=1, seed=3))
    with Store.open(bench / "out", jobs, False) as opened:
        found = sweep(jobs, opened, InProcess())
    assert reads == ["a.onnx", "b.onnx", "odd.onnx", "gone.onnx"]
    assert (found.jobs, found.rows) == (6, 6)
    rows = {(row["onnx"], row["vnnlib"], row["timeout_s"]): row for row in rows_of(bench / "out")}
    assert [row["verdict"] for row in rows.values()] == ["unsat", "sat", "timeout", "unsat", "unsupported", "error"]
    assert {row["version"] for row in rows.values()} == {surebound.__version__}
    assert {(row["threads"], row["seed"], row["dtype"]) for row in rows.values()} == {("1", "3", "float32")}
    proven = rows["nets/a.onnx", "holds.vnnlib", "60"]
    assert float(proven["margin"]) > 0 and int(proven["nodes"]) > 0 and proven["engine"]
    assert 0 < float(proven["charged_s"]) <= float(proven["seconds"])
    refuted = rows["nets/a.onnx", "fails.vnnlib", "60"]
    x, _ = parse_witness((bench / "out" / refuted["witness"]).read_text())
    assert forward([float(value) for value in x])[1] >= 1 - 1e-6
    odd, gone = rows["nets/odd.onnx", "holds.vnnlib", "60"], rows["nets/gone.onnx", "holds.vnnlib", "60"]
    assert odd["error_type"] == "UnsupportedOp" and "'Hardmax'" in odd["error"]
    assert gone["error_type"] == "ModelError" and "gone.onnx: no such file" in gone["error"]
    assert gone["onnx_sha256"] == "" and len(gone["vnnlib_sha256"]) == 64


@pytest.mark.parametrize(
    ("error", "verdict", "named", "said"),
    [
        (RuntimeError("boom\nbang"), "error", "RuntimeError", "boom bang (test_sweep.py:"),
        (OutOfMemory("one row is too much"), "memory", "OutOfMemory", "one row is too much"),
        (MemoryError(), "memory", "MemoryError", ""),
    ],
)
def test_exceptions_become_rows(
    bench: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, verdict: str, named: str, said: str
) -> None:
    def verify(*given: object) -> Any:
        raise error

    monkeypatch.setattr(surebound.search.verify, "verify", verify)
    jobs = jobs_of(read_instances(write_list(bench, "nets/a.onnx,holds.vnnlib,60")), Settings())
    with Store.open(bench / "out", jobs, False) as opened:
        sweep(jobs, opened, InProcess())
    (row,) = rows_of(bench / "out")
    assert (row["verdict"], row["error_type"]) == (verdict, named)
    assert said in row["error"]


def test_a_search_that_forgets_the_time_is_interrupted(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surebound.search.verify, "verify", lambda *given: time.sleep(60))
    jobs = jobs_of(read_instances(write_list(bench, "nets/a.onnx,holds.vnnlib,0.2")), Settings())
    (result,) = InProcess().run(jobs)
    assert (result.verdict, result.reason, result.error_type) == ("timeout", "not decided within 0.2 s", "")
    assert 0.2 <= result.seconds < 5


def test_files_that_change_meanwhile_are_errors(bench: Path) -> None:
    jobs = jobs_of(
        read_instances(write_list(bench, "nets/a.onnx,holds.vnnlib,60", "nets/b.onnx,fails.vnnlib,60")), Settings()
    )
    write_spec(bench / "holds.vnnlib", FAILS)
    write_model(bench / "nets" / "b.onnx")
    for result in InProcess().run(jobs):
        assert result.verdict == "error" and "has changed since the sweep began" in result.error


# ---------------------------------------------------------------- worker processes
def acted(folder: Path, *networks: str, timeout: float = 60.0) -> list[Job]:
    """Jobs for `sweep_workers.act`: NETWORK or NETWORK:PROPERTY."""
    instances = [Instance(*(name.split(":") + ["p"])[:2], timeout, folder) for name in networks]
    for instance in instances:
        (folder / instance.onnx).write_text(instance.onnx)
        (folder / instance.vnnlib).write_text(instance.vnnlib)
    return jobs_of(instances, Settings())


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def started(folder: Path, network: str) -> int:
    """The process that is on this network, as soon as there is one."""
    note = folder / f"{network}.started"
    wait_for(lambda: note.exists() and note.read_text() != "")
    return int(note.read_text())


def test_workers_that_die_cost_their_job_only(tmp_path: Path) -> None:
    jobs = acted(tmp_path, "die-1", "ok-1", "ok-1:q", "crash-1", "ok-2", "ok-2:even", "leave-1")
    found = {result.job: result for result in LocalPool(2, scripted).run(grouped(jobs))}
    died, one, two, crashed, three, four, left = (found[job.key] for job in jobs)
    assert [r.verdict for r in (one, two, three, four)] == ["unsat", "unsat", "unsat", "sat"]
    assert one.engine == two.engine and three.engine == four.engine
    for result, words in ((died, "by SIGKILL (out of memory?)"), (crashed, "by SIGSEGV"), (left, "with exit code 3")):
        assert (result.verdict, result.error_type) == ("error", "WorkerDied")
        assert words in result.error


def test_a_worker_that_hangs_is_killed_after_the_timeout(tmp_path: Path) -> None:
    jobs = acted(tmp_path, "hang-1", "ok-1", timeout=0.3)
    began = time.monotonic()
    found = {result.job: result for result in LocalPool(1, scripted).run(jobs)}
    hung, fine = (found[job.key] for job in jobs)
    assert (hung.verdict, hung.error_type, fine.verdict) == ("timeout", "", "unsat")
    assert 0.3 < hung.seconds < time.monotonic() - began
    assert not alive(started(tmp_path, "hang-1"))


def test_closing_a_pool_ends_its_workers(tmp_path: Path) -> None:
    jobs = acted(tmp_path, "ok-1", "hang-1", "ok-2")
    with closing(LocalPool(2, scripted).run(jobs)) as results:
        assert [next(results).verdict, next(results).verdict] == ["unsat", "unsat"]
        number = started(tmp_path, "hang-1")
        assert alive(number)
    assert not alive(number)


def test_workers_that_cannot_start_end_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(WorkersFailed, match=f"{pool.STARTS} worker processes in a row ended before"):
        list(LocalPool(1, broken).run(acted(tmp_path, "ok-1")))


def test_networks_are_shared_out(tmp_path: Path) -> None:
    jobs = acted(tmp_path, "a:1", "a:2", "a:3", "b:1", "c:1")
    queue, taken = Queue(jobs), []
    for network, busy in (("", set()), ("", {0}), (0, {0, 3}), (3, {0, 3}), (4, {0, 4}), ("", {0})):
        names = {jobs[i].onnx_sha256 for i in busy}
        job = queue.take(jobs[network].onnx_sha256 if network != "" else "", names)
        taken.append(None if job is None else f"{job.onnx}:{job.vnnlib}")
    assert taken == ["a:1", "b:1", "a:2", "c:1", "a:3", None]
    assert queue.left == 0


# ---------------------------------------------------------------- killed, interrupted, continued
SCRIPT = (
    "import functools, sweep_workers, surebound.sweeps.pool as pool, surebound.cli\n"
    "pool.LocalPool = functools.partial(pool.LocalPool, make=sweep_workers.scripted)\n"
    "if __name__ == '__main__': surebound.cli.main()\n"
)


def begin(instances: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    """A sweep in a process group of its own, with workers that act; the background of a shell would ignore SIGINT."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-c", SCRIPT, "sweep", instances, "--out", out, *options]
    return subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """A list of 16 instances of 4 networks that take some time each."""
    names = [(f"slow-{i}", f"{'even' if j % 2 == 0 else 'odd'}-{j}") for j in range(4) for i in range(4)]
    for pair in names:
        for name in pair:
            (tmp_path / name).write_text(name)
    yield write_list(tmp_path, *(f"{network},{prop},60" for network, prop in names))


def count(out: Path) -> int:
    results = out / "results.csv"
    return results.read_bytes().count(b"\n") - 1 if results.exists() else 0


def test_a_sweep_killed_twice_ends_with_one_row_per_job(slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rows in (3, 8):
        process = begin(slow, out, "--jobs", 2, *(["--resume"] if rows > 3 else []))
        wait_for(lambda rows=rows: count(out) >= rows)
        process.kill()
        process.communicate()
        assert rows <= count(out) < 16
    (out / "results.csv").write_bytes((out / "results.csv").read_bytes() + b"0123,slow-")
    last = begin(slow, out, "--jobs", 2, "--resume", "--json")
    shown, _ = last.communicate(timeout=60)
    found = json.loads(shown)
    assert (last.returncode, found["jobs"], found["rows"]) == (0, 16, 16)
    assert 8 <= found["resumed"] < 16
    rows = rows_of(out)
    assert {row["job"] for row in rows} == {job.key for job in jobs_of(read_instances(slow), Settings())}
    assert len(rows) == 16
    assert {row["verdict"] for row in rows if "even" in row["vnnlib"]} == {"sat"}
    assert {row["verdict"] for row in rows if "odd" in row["vnnlib"]} == {"unsat"}


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    for name in ("hang-1", "hang-2", "p"):
        (tmp_path / name).write_text(name)
    process = begin(write_list(tmp_path, "hang-1,p,600", "hang-2,p,600"), tmp_path / "out", "--jobs", 2)
    numbers = [started(tmp_path, name) for name in ("hang-1", "hang-2")]
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, numbers)))
    assert rows_of(tmp_path / "out") == []


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_an_interrupt_leaves_valid_rows_and_no_process(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    for name in ("ok-1", "hang-1", "p"):
        (tmp_path / name).write_text(name)
    process = begin(write_list(tmp_path, "ok-1,p,600", "hang-1,p,600"), tmp_path / "out", "--json")
    worker = started(tmp_path, "hang-1")
    (os.killpg if to_all else os.kill)(process.pid, number)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not alive(worker)
    found = json.loads(shown)
    assert (found["jobs"], found["rows"], found["verdicts"]["error"]) == (2, 1, 0)
    assert said.endswith("interrupted with 1 jobs to go; continue with --resume\n")
    assert "Traceback" not in said
    assert [(row["onnx"], row["verdict"]) for row in rows_of(tmp_path / "out")] == [("ok-1", "unsat")]


# ---------------------------------------------------------------- the command
def test_the_command_end_to_end(bench: Path) -> None:
    out = bench / "out"
    result = run("sweep", bench / "instances.csv", "--out", out, "--jobs", 2, "--json", "--threads", 1)
    found = json.loads(result.stdout)
    assert list(found) == ["schema", "jobs", "rows", "verdicts", "results", "resumed", "seconds"]
    assert (result.exit_code, found["jobs"], found["rows"], found["resumed"]) == (1, 6, 6, 0)
    assert {name: n for name, n in found["verdicts"].items() if n} == {
        "unsat": 2, "sat": 1, "timeout": 1, "unsupported": 1, "error": 1,
    }  # fmt: skip
    assert "6 of 6 jobs: 2 unsat, 1 sat, 1 timeout, 1 unsupported, 1 error;" in result.stderr
    verdicts = {row["job"]: row["verdict"] for row in rows_of(out)}
    again = run("sweep", bench / "instances.csv", "--out", out)
    assert again.exit_code == 2 and "continue it with --resume" in again.stderr
    write_model(bench / "nets" / "gone.onnx", w1=(W1 * 2).astype(np.float32))
    last = run("sweep", bench / "instances.csv", "--out", out, "--resume", "--threads", 1)
    assert (last.exit_code, last.stdout) == (0, "")
    assert "6 of 6 jobs, 5 of them from before: 3 unsat" in last.stderr
    rows = rows_of(out)
    assert len(rows) == len({row["job"] for row in rows}) == 6
    assert {key for key, verdict in verdicts.items() if verdict == "error"}.isdisjoint({row["job"] for row in rows})


@pytest.mark.parametrize("timeout", ["1e7", "1e300"])
def test_a_timeout_of_ages_is_one(bench: Path, timeout: str) -> None:
    listed = write_list(bench, f"nets/a.onnx,holds.vnnlib,{timeout}")
    result = run("sweep", listed, "--out", bench / "out", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert [row["verdict"] for row in rows_of(bench / "out")] == ["unsat"]


def test_help() -> None:
    shown = run("sweep", "--help").stdout
    for option in ("--out", "--jobs", "--attack", "--resume", "--timeout", "--json", "--quiet", "--threads"):
        assert option in shown
