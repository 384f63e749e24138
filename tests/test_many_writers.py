"""One folder, many writers: parts, their union, how they are joined, and why nothing is lost when they are removed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import hosts
import hsd
from disk import MADE_BY, check_folder, check_lines, fill, images, lines, make_plan, open_folder, picture, write_lines
from hosts import on
from hsd.evaluation.folder import read_folder
from hsd.generation import belonging, claims, living
from hsd.generation.failures import entry_of
from hsd.generation.folders import open_part
from hsd.generation.lines import encode
from hsd.generation.metadata import complete
from hsd.generation.notebook import _entries as shown
from hsd.generation.record import Record
from hsd.generation.results import Failure
from hsd.generation.shards import _entries as packed
from hsd.generation.union import entries_of
from hsd.reporting.read import read_source
from hsd.work.exclusive import create

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hosts are imitated by locks that Linux alone has")

PLAN = make_plan()
HALVES = PLAN.shard(2)


@pytest.fixture
def path(tmp_path, monkeypatch):
    hosts.install(monkeypatch)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "images"
    fill(path, PLAN)
    return path


def parts(path, ending=".jsonl"):
    return sorted((path / "__parts__").glob(f"*{ending}"))


def add(folder, *indices, other=0):
    for index in indices:
        folder.add(index, picture(PLAN, (index + other) % PLAN.n_prompts), {})


def runs(path):
    return json.loads((path / "run.json").read_text())["runs"]


def check_readers(path, indices):
    """All readers find these images, each once, with the bytes that they have."""
    indices = sorted(indices)
    assert sorted(entry["index"] for entry in entries_of(path)) == indices
    assert sorted(complete(path, PLAN)) == indices
    assert [entry.index for entry in read_folder(path).entries] == indices
    assert [picture.entry.index for picture in read_source(path).pictures] == indices
    assert [entry["index"] for entry in packed(path)[0]] == indices
    assert [entry["index"] for entry in shown(path, set(range(PLAN.n_prompts)))] == indices


# ------------------------------------------------------------------------------- parts and their union


def test_a_run_of_a_part_has_a_file_for_its_lines(path, reference):
    half, rest = (one.kept.tolist() for one in HALVES)
    with open_folder(path, HALVES[0]) as folder:
        add(folder, *half)
        assert not (path / "metadata.jsonl").exists()
        assert len(parts(path)) == 1
        check_readers(path, half)
        assert folder.done() == set(half)
        folder.record_run({"images": len(half)})
    check_lines(path, PLAN, complete=False)
    assert not (path / "__parts__").exists()
    with open_folder(path, PLAN) as folder:
        add(folder, *rest)
        assert len(lines(path)) == PLAN.n_prompts, "a run of the whole plan has no part"
    check_folder(path, PLAN, reference)
    assert [run["images"] for run in runs(path)] == [len(half)]


def test_workers_write_beside_a_run_that_has_claimed_all(path, reference):
    with open_folder(path, PLAN) as folder:
        workers = [open_part(path, part, MADE_BY) for part in HALVES]
        assert folder.refresh() == set()
        for worker, part in zip(workers, HALVES, strict=True):
            add(worker, *part.kept.tolist()[:2])
        two = {index for part in HALVES for index in part.kept.tolist()[:2]}
        assert folder.refresh() == two
        assert folder.done() == two
        assert folder.refresh() == set()
        check_readers(path, two)
        for worker, part in zip(workers, HALVES, strict=True):
            add(worker, *part.kept.tolist()[2:])
            worker.close()
        assert folder.refresh() == set(range(8)) - two
    check_folder(path, PLAN, reference)


def test_a_part_is_opened_for_the_plan_and_the_model_of_its_folder_only(path):
    with pytest.raises(hsd.PlanMismatch, match="not yet a folder of this plan"):
        open_part(path, PLAN, MADE_BY)
    with open_folder(path, PLAN):
        with pytest.raises(hsd.PlanMismatch, match="another plan"):
            open_part(path, make_plan(tau=0.1), MADE_BY)
        with pytest.raises(hsd.PlanMismatch, match="guidance_scale: 3.0 before, 4.0 now"):
            open_part(path, PLAN, {"name": "painted", "settings": {"guidance_scale": 4.0}})
        with pytest.raises(hsd.PlanMismatch, match="png before, webp now"):
            open_part(path, PLAN, MADE_BY, "webp")


def test_lines_that_do_not_hold_do_not_count(path):
    with open_folder(path, PLAN) as folder:
        worker = open_part(path, PLAN, MADE_BY)
        add(worker, 0, 1, 2)
        (path / "00001.png").unlink()
        with open(parts(path)[0], "ab") as file:
            file.write(encode({"file_name": "00007.png", "index": 7, "size": 5, "digest": "0" * 32}))
            file.write(b'{"file_name": "00003.png", "ind')
        assert folder.refresh() == {0, 2}
        check_readers(path, [0, 2])
        worker.close()
    assert [entry["index"] for entry in lines(path)] == [0, 2]
    assert fill(path, PLAN)[0] == [1, 3, 4, 5, 6, 7]


def test_of_two_lines_of_an_image_the_one_that_fits_counts(path, reference):
    for order in (1, -1):
        with open_folder(path, PLAN) as folder:
            workers = [open_part(path, PLAN, MADE_BY) for _ in range(2)]
            workers.sort(key=lambda worker: worker._part.name, reverse=order < 0)
            add(workers[0], 0, 1, 2, 3, other=1)
            add(workers[1], 0, 1, 2, 3)
            check_readers(path, range(4))
            assert folder.refresh() | folder.done() == {0, 1, 2, 3}
            for worker in workers:
                worker.close()
        check_lines(path, PLAN, complete=False)
        assert fill(path, PLAN) == ([4, 5, 6, 7], [])
        check_folder(path, PLAN, reference)
        for name in os.listdir(path):
            (path / name).unlink()


def test_an_image_that_a_part_has_another_line_for_is_not_damaged(path):
    fill(path, PLAN)
    worker = open_part(path, PLAN, MADE_BY)
    add(worker, 0, other=1)
    worker.close()
    with open_folder(path, PLAN) as folder:
        assert (folder.repaired, folder.lost) == ([], False)
        assert folder.done() == set(range(8))
    check_lines(path, PLAN)


def test_a_run_that_ended_without_joining_is_joined_by_the_next(path, reference):
    half = HALVES[0].kept.tolist()
    folder = open_folder(path, HALVES[0])
    add(folder, *half)
    failures = [Failure(part.kept.tolist()[0], "x", 100, "decode", "it was dark") for part in HALVES]
    folder._part.record({"run": {"images": 4}, "failures": [entry_of(failure) for failure in failures]})
    folder._part.close()
    folder._held.release()  # killed: what follows in close() did not happen
    assert len(parts(path)) == len(parts(path, ".json")) == 1
    with open_folder(path, HALVES[1]) as folder:
        assert not parts(path)
        assert not parts(path, ".json")
        assert sorted(entry["index"] for entry in lines(path)) == half
        assert [run["images"] for run in runs(path)] == [4]
        failed = [json.loads(line) for line in (path / "failed.jsonl").read_text().splitlines()]
        assert [entry["index"] for entry in failed] == [failures[1].index], "the other image exists"
    fill(path, PLAN)
    check_folder(path, PLAN, reference)


def test_a_worker_does_not_fill_a_folder_that_was_removed(path):
    folder = open_folder(path, PLAN)
    worker = open_part(path, PLAN, MADE_BY)
    add(worker, 0)
    shutil.rmtree(path)
    for _ in range(2):
        with pytest.raises(hsd.OutputError, match=r"was removed while .* run the same call again"):
            add(worker, 1)
        path.mkdir(exist_ok=True)  # another one, of the same name
    assert not list(path.iterdir())
    folder.close()


def test_pictures_of_forks_need_a_disk():
    with pytest.raises(ValueError, match=r"keep_forks needs a folder on a disk, and out is 'memory://images'"):
        hsd.generate(PLAN, "no such model", "memory://images", keep_forks=True)


def test_nothing_is_followed_in_the_place_of_the_parts(path, tmp_path):
    (tmp_path / "else").mkdir()
    fill(path, PLAN.prune([0, 1]))
    found = lines(path)
    write_lines(path, found[:1])
    (tmp_path / "else" / "x-1.jsonl").write_bytes(encode(found[1]))
    (path / "__parts__").symlink_to(tmp_path / "else")
    check_readers(path, [0])
    with open_folder(path, PLAN.prune([1])) as folder:
        add(folder, 1)
    assert [file.name for file in (tmp_path / "else").iterdir()] == ["x-1.jsonl"]
    check_readers(path, [0, 1])


def test_a_folder_of_the_version_before_opens(path, reference):
    fill(path, PLAN.prune([0, 3]))
    document = json.loads((path / "run.json").read_text())
    document["runs"] = [{name: value for name, value in run.items() if name != "part"} for run in document["runs"]]
    (path / "run.json").write_text(json.dumps(document))
    old = {"pid": 1, "host": "there", "since": "2026-01-01 00:00:00+00:00", "started": 1.0, "prompts": [[0, 8]]}
    (path / ".hsd.claim-0123456789abcdef").write_text(json.dumps(old))
    os.utime(path / ".hsd.claim-0123456789abcdef", (1, 1))
    assert fill(path, PLAN) == ([1, 2, 4, 5, 6, 7], [])
    check_folder(path, PLAN, reference)
    assert len(runs(path)) == 2


# ------------------------------------------------------------------------------- when parts are removed


def test_parts_of_another_host_stay_and_cost_nothing(path, reference):
    with on("far"):
        folder = open_folder(path, HALVES[1])
        add(folder, *HALVES[1].kept.tolist())
        folder.record_run({"images": 4})
    fill(path, HALVES[0])
    with on("far"):
        folder.close()
    for _ in range(2):
        assert fill(path, PLAN) == ([], [])
        assert {part.name.partition("-")[0] for part in parts(path)} == {"far", "here"}
        check_readers(path, range(8))
        check_folder(path, PLAN, reference, extra={"__parts__"})
    assert sum("part" in run for run in runs(path)) == 2, "each once, however often it is joined"


def test_a_part_whose_writer_lives_stays(path):
    with open_folder(path, PLAN):
        worker = open_part(path, PLAN, MADE_BY)
        add(worker, 0)
    assert len(parts(path)) == 1
    add(worker, 1)
    worker.close()
    with open_folder(path, PLAN) as folder:
        assert folder.done() == {0, 1}
        assert not (path / "__parts__").exists()


def test_a_part_that_has_grown_since_it_was_read_stays(path, monkeypatch):
    with open_folder(path, PLAN):
        worker = open_part(path, PLAN, MADE_BY)
        add(worker, 0)
        look = claims.Held.others

        def late(held):
            add(worker, 1)
            worker.close()
            return look(held)

        monkeypatch.setattr(claims.Held, "others", late)
    assert len(parts(path)) == 1
    check_readers(path, [0, 1])


def test_lines_that_another_host_did_not_know(path):
    """It has replaced metadata.jsonl by what it knew: a run that lives knows its own lines all the same."""
    first, second = HALVES[0].kept.tolist()[:2]
    fill(path, PLAN.prune([first]))
    known = (path / "metadata.jsonl").read_bytes()
    with open_folder(path, HALVES[0]) as folder:
        add(folder, second)
        path.with_name("known").write_bytes(known)
        os.replace(path.with_name("known"), path / "metadata.jsonl")
        assert folder.refresh() == set()
        assert folder.done() == {first, second}
    assert [entry["index"] for entry in lines(path)] == [first, second]


def test_a_run_that_begins_while_another_removes_parts(path, reference):
    """The claim of the second is there before the first looks, and it has read neither parts nor lines."""
    first = open_folder(path, HALVES[0])
    add(first, *HALVES[0].kept.tolist())
    with on("far"):
        second = open_folder(path, HALVES[1])
        add(second, *HALVES[1].kept.tolist())
    first.close()
    assert parts(path), "another claim lives"
    with on("far"):
        second.close()
    check_readers(path, range(8))
    assert fill(path, PLAN) == ([], [])
    check_folder(path, PLAN, reference, extra={"__parts__"})


def test_a_run_with_an_old_view_that_writes_it_late(path, reference, monkeypatch):
    """It has read the lines before the other has written its own, writes what it knows over those, and ends before the
    other looks whether a claim lives: the parts have to stay."""
    mine, others = (one.kept.tolist() for one in HALVES)
    first = open_folder(path, HALVES[0])
    with on("far"):
        second = open_folder(path, HALVES[1])
    add(first, *mine)
    look = claims.Held.others

    def late(held):
        monkeypatch.setattr(claims.Held, "others", look)
        with on("far"):
            second._metadata.entries = {}  # as it was when it looked
            second._metadata._replace()
            second._held.release()
        return look(held)

    monkeypatch.setattr(claims.Held, "others", late)
    first.close()
    assert lines(path) == []
    check_readers(path, mine)
    assert fill(path, PLAN) == (others, [])
    check_folder(path, PLAN, reference)


def test_parts_are_read_before_what_they_are_joined_into(path, monkeypatch):
    """Another run joins and removes them between the two: the lines are in metadata.jsonl then."""
    from hsd.generation.union import PartFiles

    half = HALVES[0].kept.tolist()
    folder = open_folder(path, HALVES[0])
    add(folder, *half)
    unread = PartFiles.unread

    def joined_before(files):
        monkeypatch.setattr(PartFiles, "unread", unread)
        folder.close()
        assert not parts(path)
        return unread(files)

    monkeypatch.setattr(PartFiles, "unread", joined_before)
    assert sorted(entry["index"] for entry in entries_of(path)) == half


# ------------------------------------------------------------------------------- claims of other hosts


def test_a_claim_of_another_host_lives_for_a_lease(path, monkeypatch):
    with on("far"):
        folder = open_folder(path, HALVES[0])
        (claim,) = path.glob(".hsd.claim-*")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # clocks of hosts differ: that of the file server counts
    with pytest.raises(hsd.OutputError, match=r"on far, .*if it was killed: 60 seconds after that") as refused:
        open_folder(path, PLAN)
    assert "kill " not in str(refused.value), "not from here"
    fill(path, HALVES[1])
    now = claim.stat().st_mtime
    os.utime(claim, (now - 50, now - 50))
    with pytest.raises(hsd.OutputError, match="in use by"):
        open_folder(path, PLAN)
    os.utime(claim, (now - 70, now - 70))
    assert fill(path, PLAN)[0] == HALVES[0].kept.tolist()
    assert not claim.exists()
    with on("far"):
        add(folder, *HALVES[0].kept.tolist(), other=1)  # it was only stopped for a while
        folder.close()
    check_lines(path, PLAN)


def test_a_claim_of_this_host_ends_with_its_lock(path):
    folder = open_folder(path, PLAN)
    folder._held._lock.release()
    open_folder(path, PLAN).close()


def test_the_holder_touches_its_claim(path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 0.04)
    before = set(threading.enumerate())
    with open_folder(path, PLAN):
        (claim,) = path.glob(".hsd.claim-*")
        os.utime(claim, (1, 1))
        end = time.monotonic() + 10
        while claim.stat().st_mtime == 1:
            assert time.monotonic() < end
            time.sleep(0.005)
        assert living.living(path)[0].begun > 1
        (thread,) = (one for one in set(threading.enumerate()) - before if one.name == "hsd-claim")
    thread.join(10)
    assert not thread.is_alive()


def test_a_whole_run_whose_claim_has_lapsed_writes_to_a_part(path, reference):
    with open_folder(path, PLAN) as folder:
        add(folder, 0, 1)
        folder._held._touched[0] -= 100
        add(folder, 2, 3)
        assert len(parts(path)) == 1
        assert [entry["index"] for entry in lines(path)] == [0, 1]
        add(folder, 4, 5, 6, 7)
    check_folder(path, PLAN, reference)


def test_of_two_hosts_that_claim_at_once_one_has_it(path):
    for attempt in range(20):
        here, together = path.with_name(str(attempt)), threading.Barrier(2)
        open_folder(here, PLAN).close()

        def begin(host, here=here, together=together):
            with on(host):
                together.wait()
                try:
                    return open_folder(here, PLAN)
                except hsd.OutputError:
                    return None

        with ThreadPoolExecutor(2) as pool:
            opened = [folder for folder in pool.map(begin, ["a", "b"]) if folder is not None]
        assert len(opened) == 1
        opened[0].close()


def test_a_claim_that_is_given_up_at_this_moment_is_none(path, monkeypatch):
    folder = open_folder(path, PLAN)
    held = living._is_held

    def released(path, now):
        answer = held(path, now)
        folder.close()
        return answer

    monkeypatch.setattr(living, "_is_held", released)
    assert living.living(path) == []


@pytest.mark.parametrize("mine", ["0", "f"])
@pytest.mark.parametrize("sure", [False, True])
def test_who_gives_way(path, monkeypatch, mine, sure):
    """Two have written their claims before either has looked."""
    fill(path, PLAN)
    monkeypatch.setattr(claims.secrets, "token_hex", lambda n: mine * 16)
    held = claims._written(path, PLAN.kept)
    monkeypatch.setattr(claims.secrets, "token_hex", lambda n: "8" * 16)
    with on("far"):
        other = claims._written(path, PLAN.kept)
        if sure:
            with open(other._path, "ab") as file:
                file.write(living.SURE)
    if mine == "0" and not sure:
        threading.Timer(0.1, other.release).start()  # it sees the lower name, and gives way
        assert held.settle(PLAN.kept) == []
    else:
        monkeypatch.setattr(claims.time, "sleep", lambda seconds: pytest.fail("it waited"))
        with pytest.raises(hsd.OutputError, match="in use by"):
            held.settle(PLAN.kept)
    held.release()
    other.release()


# ------------------------------------------------------------------------------- runs that begin at one moment

OTHER = [make_plan(tau=0.1).prune(half.kept.tolist()) for half in HALVES]


def between(monkeypatch, owner, name, then):
    """Once, when a function has returned: ``then``."""
    function = getattr(owner, name)

    def called(*args, **options):
        answer = function(*args, **options)
        monkeypatch.setattr(owner, name, function)
        then()
        return answer

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("moment", [(claims, "take"), (Record, "read"), (Record, "begin")])
def test_two_hosts_begin_one_folder_at_one_moment(path, monkeypatch, reference, moment):
    """The second opens it, and makes an image, after the first has claimed, or looked, or decided whose it is."""
    monkeypatch.setattr(belonging, "_BEGINNING", 0.05)  # the first is slower than the second waits
    opened = []

    def second():
        with on("far"):
            opened.append(open_folder(path, HALVES[1]))
            add(opened[0], HALVES[1].kept.tolist()[0])

    between(monkeypatch, *moment, second)
    opened.append(open_folder(path, HALVES[0]))
    assert [folder.repaired for folder in opened] == [[], []]
    assert [folder.notes for folder in opened] == [[], []]
    for folder in opened:
        folder.close()
    fill(path, PLAN)
    check_folder(path, PLAN, reference, extra={"__parts__"})


@pytest.mark.parametrize("moment", [(claims, "take"), (Record, "read"), (Record, "begin")])
def test_two_plans_begin_in_one_folder_at_one_moment(path, monkeypatch, moment):
    opened, refused = [], []

    def begin(part):
        try:
            opened.append((open_folder(path, part), part))
        except hsd.PlanMismatch as error:
            refused.append(str(error))

    def second():
        with on("far"):
            begin(OTHER[1])

    monkeypatch.setattr(belonging, "_BEGINNING", 0.05)
    between(monkeypatch, *moment, second)
    begin(HALVES[0])
    ((folder, part),) = opened
    assert len(refused) == 1
    assert "another plan" in refused[0]
    folder.close()
    for _ in range(2):
        with open_folder(path, part) as folder:
            add(folder, *(set(part.kept.tolist()) - folder.done()))
    check_lines(path, part, complete=False)


def test_a_plan_that_another_host_replaces_at_this_moment_is_waited_for(path, monkeypatch, reference):
    """Nothing was made with the old one. The second of two new runs sees it before the first has written its own."""
    open_folder(path, OTHER[0]).close()
    opened = []

    def second():
        with on("far"):
            opened.append(open_folder(path, HALVES[1]))

    waiter = threading.Thread(target=second)
    waited = threading.Event()
    pause = time.sleep
    monkeypatch.setattr(belonging.time, "sleep", lambda seconds: (waited.set(), pause(seconds)))

    def begin():
        waiter.start()
        assert waited.wait(10)

    between(monkeypatch, claims, "take", begin)
    opened.append(open_folder(path, HALVES[0]))
    waiter.join(10)
    assert [folder.repaired for folder in opened] == [[], []]
    for folder in opened:
        folder.close()
    fill(path, PLAN)
    check_folder(path, PLAN, reference, extra={"__parts__"})


def test_images_of_someone_else_get_no_record(path):
    path.mkdir()
    (path / "00000.png").write_text("x")
    with pytest.raises(hsd.PlanMismatch, match="another data set"):
        open_folder(path, PLAN)
    assert set(os.listdir(path)) == {"00000.png", ".hsd.lock"}


def test_what_a_run_that_has_begun_since_writes_is_no_leftover(path, monkeypatch):
    path.mkdir()
    old, new = (path / f".run.json.{digit * 16}.tmp" for digit in "01")

    def begin():
        for file, seconds in ((old, -1), (new, 1)):
            file.write_text("")
            (claim,) = path.glob(".hsd.claim-*")
            os.utime(file, (claim.stat().st_mtime + seconds,) * 2)

    between(monkeypatch, claims, "take", begin)
    open_folder(path, PLAN).close()
    assert (old.exists(), new.exists()) == (False, True)


def test_a_claim_that_is_taken_for_a_leftover_before_it_has_its_name_is_written_again(path, monkeypatch):
    def leftover(hidden, claim):
        monkeypatch.undo()
        os.unlink(hidden)
        os.rename(hidden, claim)

    monkeypatch.setattr(claims.os, "rename", leftover)
    with open_folder(path, PLAN):
        assert len(list(path.glob(".hsd.claim-*"))) == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with ThreadPoolExecutor(4) as pool:
        for attempt in range(5):
            file = tmp_path / str(attempt)
            texts = [bytes([65 + i]) * 9 for i in range(4)]
            created = list(pool.map(lambda text, file=file: create(file, text), texts))
            assert created.count(True) == 1
            assert file.read_bytes() == texts[created.index(True)]
    assert len(list(tmp_path.iterdir())) == 5


# ------------------------------------------------------------------------------- without locks


def test_without_locks_every_run_has_a_part(tmp_path, monkeypatch, reference):
    hosts.install(monkeypatch, with_locks=False)
    path = tmp_path / "images"
    with open_folder(path, PLAN) as folder:
        add(folder, 0, 1, 2)
        assert not (path / "metadata.jsonl").exists()
        with pytest.raises(hsd.OutputError, match="in use by"):
            open_folder(path, PLAN)
    assert [entry["index"] for entry in lines(path)] == [0, 1, 2]
    assert parts(path), "no lock, so nothing is removed"
    assert fill(path, PLAN) == ([3, 4, 5, 6, 7], [])
    check_folder(path, PLAN, reference, extra={"__parts__"})
    assert images(path) == images(reference)
