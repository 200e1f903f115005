"""Complete or absent, and what is said of damage."""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from gad.errors import CheckpointError, RunFolderError
from gad.storage import remove_leftovers
from gad.training import checkpoint
from gad.training.checkpoint import find, latest, prune, save


def parts(seed: int, size: int = 50) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "student": {"w": torch.randn(size, 3, generator=generator), "count": torch.tensor(seed)},
        "discriminator": {"h": torch.randn(7, generator=generator).bfloat16()},
    }


def put(folder: Path, step: int, stage: str = "adversarial", **state: Any) -> checkpoint.Checkpoint:
    return save(folder, stage, step, parts(step), {"done": False, **state})


def assert_is(found: checkpoint.Checkpoint | None, step: int) -> None:
    """This very checkpoint, bit for bit."""
    assert found is not None
    assert found.step == step
    for name, tensors in parts(step).items():
        loaded = found.tensors(name)
        assert set(loaded) == set(tensors)
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    made = put(tmp_path, 12, done=True, note="né")
    assert made.path == tmp_path / "adversarial-12"
    found, passed = latest(tmp_path, "adversarial")
    assert_is(found, 12)
    assert passed == []
    assert found is not None
    assert found.state() == {"format": 1, "stage": "adversarial", "step": 12, "done": True, "note": "né"}
    assert sorted(p.name for p in made.path.iterdir()) == [
        "discriminator.safetensors",
        "manifest.json",
        "state.json",
        "student.safetensors",
    ]


def test_views_are_saved_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    found = save(tmp_path, "warmup", 1, {"part": {"t": whole.T, "row": whole[1]}}, {}).tensors("part")
    assert torch.equal(found["t"], whole.T)
    assert torch.equal(found["row"], whole[1])


def test_stages_and_steps_are_told_apart(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        put(tmp_path, step)
    put(tmp_path, 50, "warmup")
    put(tmp_path, 60, "adversarial-2")
    (tmp_path / "adversarial-77x").mkdir()
    (tmp_path / ".adversarial-99.tmp-5").mkdir()
    assert [c.step for c in find(tmp_path, "adversarial")] == [10, 9, 2]
    assert_is(latest(tmp_path, "warmup")[0], 50)
    assert latest(tmp_path, "seqkd") == (None, [])
    assert latest(tmp_path / "absent", "seqkd") == (None, [])


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, "adversarial", 3, {"old": {"x": torch.ones(2)}}, {})
    put(tmp_path, 3)
    assert_is(latest(tmp_path, "adversarial")[0], 3)
    assert [p.name for p in tmp_path.iterdir()] == ["adversarial-3"]


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="adversarial-1 holds no reference"):
        put(tmp_path, 1).tensors("reference")


def truncate(folder: Path) -> None:
    file = folder / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    with (folder / "student.safetensors").open("ab") as file:
        file.write(b"x")


def flip(name: str, place: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 4
        (folder / name).write_bytes(bytes(content))

    return damage


def write(name: str, content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("truncated", truncate, r"student\.safetensors: \d+ bytes instead of \d+"),
    ("longer", lengthen, r"student\.safetensors: \d+ bytes instead of \d+"),
    ("flipped in weights", flip("student.safetensors", -5), r"student\.safetensors: its checksum differs"),
    ("flipped in header", flip("discriminator.safetensors", 3), r"discriminator\.safetensors: its checksum differs"),
    ("flipped in state", flip("state.json", 20), r"state\.json: its checksum differs"),
    ("no weights", remove("student.safetensors"), r"No such file.*student\.safetensors"),
    ("no state", remove("state.json"), r"No such file.*state\.json"),
    ("no manifest", remove("manifest.json"), r"No such file.*manifest\.json"),
    ("empty manifest file", write("manifest.json", ""), "Expecting value"),
    ("torn manifest", write("manifest.json", '{"state.json": {"byt'), "Unterminated string"),
    ("manifest of another kind", write("manifest.json", '["state.json"]'), r"manifest\.json: not a list of files"),
    ("manifest of other entries", write("manifest.json", '{"state.json": 5}'), r"manifest\.json: not a list of files"),
    ("manifest of nothing", write("manifest.json", "{}"), r"manifest\.json: does not list state\.json"),
    ("an empty folder", lambda folder: (shutil.rmtree(folder), folder.mkdir()), r"No such file.*manifest\.json"),  # type: ignore[func-returns-value,arg-type,return-value]
    ("a file", lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "Not a directory"),  # type: ignore[func-returns-value,arg-type,return-value]
]


@pytest.mark.parametrize(("damage", "reason"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2)
    damage(put(tmp_path, 3).path)
    found, passed = latest(tmp_path, "adversarial")
    assert_is(found, 2)
    assert len(passed) == 1
    assert re.fullmatch(rf"checkpoint adversarial-3 is damaged \(.*{reason}.*\): using the one before it", passed[0])
    damage(tmp_path / "adversarial-2")
    found, passed = latest(tmp_path, "adversarial")
    assert_is(found, 1)
    assert len(passed) == 2
    damage(tmp_path / "adversarial-1")
    found, passed = latest(tmp_path, "adversarial")
    assert found is None
    assert len(passed) == 3


def test_any_flipped_bit_of_the_manifest_is_damage_or_no_matter(tmp_path: Path) -> None:
    """The manifest has no checksum of its own: whatever it says now, nothing is used that differs from it."""
    made = put(tmp_path, 2)
    manifest = made.path / "manifest.json"
    content = manifest.read_bytes()
    harmless = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        manifest.write_bytes(bytes(changed))
        if made.damage() is None:
            harmless += 1
            assert json.loads(bytes(changed)) == json.loads(content)
    assert harmless < len(content) / 10


def as_format(folder: Path, number: int) -> None:
    """As another version would have written it: whole, with a true manifest."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": number}))
    names = [p for p in folder.iterdir() if p.name != "manifest.json"]
    (folder / "manifest.json").write_text(json.dumps({p.name: checkpoint._fingerprint(p) for p in names}))


def test_another_format_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    put(tmp_path, 1)
    as_format(put(tmp_path, 2).path, 2)
    found, passed = latest(tmp_path, "adversarial")
    assert_is(found, 1)
    assert passed == [
        f"{tmp_path}/adversarial-2 has checkpoint format 2, this version reads 1: finish the run with the version that "
        "began it, or start the stage anew; using the one before it"
    ]


def test_nothing_but_another_format_is_no_reason_to_begin_anew(tmp_path: Path) -> None:
    as_format(put(tmp_path, 2).path, 2)
    with pytest.raises(CheckpointError, match=r"adversarial-2 has checkpoint format 2, this version reads 1"):
        latest(tmp_path, "adversarial")


def test_weights_that_the_manifest_does_not_cover(tmp_path: Path) -> None:
    """Read without the check, damaged weights still end in words."""
    made = put(tmp_path, 1)
    truncate(made.path)
    with pytest.raises(CheckpointError, match=r"student\.safetensors cannot be read: "):
        made.tensors("student")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    made = put(tmp_path, 1)
    torch.save({"w": torch.ones(3)}, made.path / "student.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        made.tensors("student")


def last(count: int) -> Callable[[Sequence[checkpoint.Checkpoint]], list[int]]:
    return lambda found: [each.step for each in found[:count]]


def test_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        put(tmp_path, step)
    put(tmp_path, 1, "warmup")
    prune(tmp_path, "adversarial", 10, last(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adversarial-10", "adversarial-3", "warmup-1"]
    prune(tmp_path, "adversarial", 10, last(2))
    assert len(find(tmp_path, "adversarial")) == 2


def test_a_damaged_later_one_does_not_push_out_what_is_saved_since(tmp_path: Path) -> None:
    put(tmp_path, 1)
    truncate(put(tmp_path, 5).path)
    put(tmp_path, 2)
    prune(tmp_path, "adversarial", 2, last(1))
    assert [c.step for c in find(tmp_path, "adversarial")] == [5, 2]
    assert_is(latest(tmp_path, "adversarial")[0], 2)


def test_an_error_inside_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["adversarial-1"]
    assert_is(latest(tmp_path, "adversarial")[0], 1)


def no_space(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_below(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    elif where == "open":
        real = builtins.open

        def failing(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return no_space() if "w" in mode else real(file, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: failing(self, mode, *a, **k))
    elif where == "mkdir":
        monkeypatch.setattr(Path, "mkdir", no_space)
    elif where == "rename":
        monkeypatch.setattr(Path, "rename", no_space)
    else:

        def weights(*_: object) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(checkpoint, "save_file", weights)


@pytest.mark.parametrize("where", ["fsync", "open", "mkdir", "rename", "weights"])
def test_a_full_disk_leaves_earlier_checkpoints_whole(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    with monkeypatch.context() as patch:
        no_space_below(patch, where)
        with pytest.raises(RunFolderError, match=r"the disk is full: .*adversarial-2 was not saved, .* run the same"):
            put(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["adversarial-1"]
    assert_is(latest(tmp_path, "adversarial")[0], 1)
    assert_is(put(tmp_path, 2), 2)


def test_other_errors_keep_their_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(PermissionError, match="Permission denied"):
        put(tmp_path, 2)


REALLY_FULL = """
import sys
from pathlib import Path
import torch
from gad.errors import RunFolderError
from gad.training import checkpoint
folder = Path(sys.argv[1])
small, large = {"student": {"w": torch.ones(1000)}}, {"student": {"w": torch.ones(1_000_000)}}
checkpoint.save(folder, "adversarial", 1, small, {})
try:
    checkpoint.save(folder, "adversarial", 2, large, {})
except RunFolderError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()))
print(float(checkpoint.latest(folder, "adversarial")[0].tensors("student")["w"].sum()))
"""


@pytest.mark.faults
def test_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 1 MB in memory, seen by this one process alone."""
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    command = [*own, sys.executable, "-c", REALLY_FULL, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output[0].startswith(f"the disk is full: {tmp_path}/adversarial-2 was not saved")
    assert output[1:] == ["['adversarial-1']", "1000.0"]


KILLED_AT_EVERY_EVENT = """
import os, signal, sys
from pathlib import Path
import torch
from gad.training import checkpoint

root = Path(sys.argv[1])
count = limit = 0

def die_at_the_limit(event, arguments):
    global count
    if limit and any(str(root) in str(argument) for argument in arguments):
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die_at_the_limit)

def parts(step):
    return {"student": {"w": torch.full((100,), float(step))}}

point = 0
while True:
    point += 1
    folder = root / str(point)
    checkpoint.save(folder, "warmup", 1, parts(1), {})
    checkpoint.save(folder, "warmup", 2, parts(2), {})
    child = os.fork()
    if child == 0:
        limit = point
        checkpoint.save(folder, "warmup", 3, parts(3), {})
        checkpoint.save(folder, "warmup", 2, parts(4), {})
        checkpoint.prune(folder, "warmup", 3, lambda found: [each.step for each in found[:2]])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(point - 1)
"""


@pytest.mark.faults
def test_killed_at_every_point_of_saving_and_pruning(tmp_path: Path) -> None:
    """SIGKILL at each file that is opened, renamed or removed: a checkpoint is whole or absent, an older one is left.

    Step 3 is new, step 2 is saved anew over an older one, step 1 is pruned."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_EVENT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    points = int(run.stdout)
    assert points > 30
    seen = set()
    for point in range(1, points + 1):
        folder = tmp_path / str(point)
        steps = {found.step: found for found in find(folder, "warmup")}
        content = {step: found.tensors("student")["w"].unique().tolist() for step, found in steps.items()}
        assert [found.damage() for found in steps.values()] == [None] * len(steps)
        assert all(value in ([step], [4.0]) for step, value in content.items())
        assert latest(folder, "warmup")[0] is not None
        assert max(steps) >= 2
        remove_leftovers(folder)
        assert sorted(p.name for p in folder.iterdir()) == sorted(f"warmup-{step}" for step in steps)
        seen.add(frozenset((step, value[0]) for step, value in content.items()))
    assert frozenset({(1, 1.0), (2, 2.0)}) in seen
    assert frozenset({(1, 1.0), (2, 2.0), (3, 3.0)}) in seen
    assert frozenset({(1, 1.0), (2, 4.0), (3, 3.0)}) in seen
    assert frozenset({(2, 4.0), (3, 3.0)}) in seen


SAVING = """
import sys
from pathlib import Path
import torch
from gad.training import checkpoint
for step in range(1, 10_000):
    checkpoint.save(Path(sys.argv[1]), "warmup", step, {"student": {"w": torch.full((300_000,), float(step))}}, {})
    checkpoint.prune(Path(sys.argv[1]), "warmup", step, lambda found: [each.step for each in found[:2]])
    print(step, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("after", [1, 4, 9])
def test_killed_in_the_middle_of_its_work(tmp_path: Path, after: int) -> None:
    """SIGKILL from outside, wherever the process stands."""
    with subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == after:
                process.send_signal(signal.SIGKILL)
    found, passed = latest(tmp_path, "warmup")
    assert passed == []
    assert found is not None
    assert found.step >= after
    assert found.tensors("student")["w"].unique().tolist() == [found.step]
