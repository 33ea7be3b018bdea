"""Two real users share a store in a folder of their group, through a whole tiny study.

They are made with `useradd` where the tests run as root, as in a container, and removed again.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from conftest import CLASSES, ROOT, write_classes

from datadream.store.artifacts import Store

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid")
    or os.geteuid() != 0
    or not all(map(shutil.which, ("useradd", "userdel", "groupadd", "setpriv"))),
    reason="only the root user can make other users",
)

# Calls `act` of SCRIPT's words in the place of a user: cells to run, or a command.
SCRIPT = """
import json, sys
from datadream.cli import main
from datadream.methods.recipes import recipe
from datadream.store.open import open_store
from datadream.study.run import run_cells

what, words = sys.argv[1], json.loads(sys.argv[2])
if what == "command":
    sys.exit(main(words))
if what == "hold":
    with open_store().in_use():
        print("held", flush=True)
        sys.stdin.read()
    sys.exit()
made = [recipe(method=method, **words["fields"]) for method in words["methods"]]
table = run_cells(made, open_store())
print(json.dumps(table[["key", "created"]].values.tolist()))
"""

# The interpreter may lie in a folder that is root's alone: within, it shows what is needed there.
REACH = """
set -e
stage=$1; shut=$2; shift 2
for path in $NEEDED; do
  case $path in "$shut"/*) mkdir -p "$stage/${path#"$shut"/}"
    mount --bind "$path" "$stage/${path#"$shut"/}";; esac
done
chmod 755 "$stage"
mount --rbind "$stage" "$shut"
exec "$@"
"""


def shut_out(path):
    """Return the first folder on the way to a path that not everybody may pass, or None."""
    for place in [*reversed(Path(path).parents), Path(path)]:
        if place.is_dir() and not place.stat().st_mode & 0o001:
            return place
    return None


class Users:
    """Two users of one group, `a` and `b`, and a folder that everybody may reach."""

    def __init__(self):
        tag = uuid.uuid4().hex[:8]
        self.group, self.names = f"ddg{tag}", {who: f"dd{who}{tag}" for who in "ab"}
        self.root = Path(tempfile.mkdtemp(prefix="datadream-users-"))
        self.root.chmod(0o755)
        self.store = self.root / "shared"
        subprocess.run(["groupadd", self.group], check=True)
        for who, name in self.names.items():
            home = self.root / who
            words = ["--no-create-home", "--home-dir", str(home), "--gid", self.group, name]
            subprocess.run(["useradd", *words], check=True, capture_output=True)
            home.mkdir(mode=0o700)
            shutil.chown(home, name, self.group)
        self.store.mkdir()
        shutil.chown(self.store, "root", self.group)
        self.store.chmod(0o2775)

    def remove(self):
        for name in self.names.values():
            subprocess.run(["userdel", name], check=False, capture_output=True)
        subprocess.run(["groupdel", self.group], check=False, capture_output=True)
        shutil.rmtree(self.root)

    def start(self, who, umask, *words):
        """Start a program as a user."""
        words = ["sh", "-c", f'umask {umask:03o}; exec "$0" "$@"', *words]
        drop = [f"--reuid={self.names[who]}", f"--regid={self.group}", "--init-groups"]
        words = ["setpriv", *drop, "--inh-caps=-all", *words]
        needed = [sys.base_prefix, sys.prefix, str(ROOT)]
        shut = next(filter(None, map(shut_out, needed)), None)
        if shut:
            stage = tempfile.mkdtemp(dir=self.root)
            words = ["unshare", "-m", "sh", "-c", REACH, "sh", stage, str(shut), *words]
        env = {
            **os.environ,
            "HOME": str(self.root / who),
            "DATADREAM_HOME": str(self.root / who),
            "DATADREAM_STORE": str(self.store),
            "MPLCONFIGDIR": str(self.root / who),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TQDM_DISABLE": "1",
            "NEEDED": " ".join(needed),
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, cwd=self.root / who, env=env, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        )

    def call(self, who, umask, what, words):
        """Return (exit code, standard output, standard error) of SCRIPT as a user."""
        words = [sys.executable, "-c", SCRIPT, what, json.dumps(words)]
        process = self.start(who, umask, *words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def cells(self, who, umask, *methods):
        """Return key -> time of the cells that a user ran."""
        words = {"methods": methods, "fields": self.fields}
        code, out, err = self.call(who, umask, "cells", words)
        assert code == 0, err
        return dict(json.loads(out.splitlines()[-1]))


@pytest.fixture
def users(models, tiny):
    """Return Users with photos and models that both may read."""
    found = Users()
    try:
        code = [sys.executable, "-c", "import torch"]
        done = found.start("a", 0o022, *code)
        said = done.communicate(timeout=120)[1]
        if done.returncode:
            pytest.skip(f"another user cannot run this interpreter here: {said.strip()[-200:]}")
        write_classes(found.root / "photos", CLASSES, 12)
        for name in ("generator", "classifier"):
            shutil.copytree(getattr(models, name), found.root / name)
        subprocess.run(["chmod", "-R", "a+rX", found.root / "generator", found.root / "classifier"])
        own = {name: str(found.root / name) for name in ("generator", "classifier")}
        photos = {"dataset": "folder", "folder": str(found.root / "photos"), "shots": 2}
        found.fields = {**photos, "overrides": {**tiny, **own}}
        yield found
    finally:
        found.remove()


def contents(root):
    """Return path -> (owner, time) of all files but locks."""
    return {
        path.relative_to(root): (path.stat().st_uid, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.long
def test_two_users_with_umask_002_share_a_whole_study(users):
    """Each reads what the other made and goes on from it; what is hidden stops the other."""
    first = users.cells("a", 0o002, "clip", "dset+real")
    made = contents(users.store)
    for path in users.store.rglob("*"):
        wanted = 0o2775 if path.is_dir() else 0o664
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
        assert path.group() == users.group, path
    second = users.cells("b", 0o002, "clip", "dset+real", "dset", "real")
    assert first.items() <= second.items() and len(second) == 4
    after = contents(users.store)
    assert made.items() <= after.items(), "nothing was recomputed"
    assert {uid for uid, _ in after.values()} == {
        (users.root / who).stat().st_uid for who in users.names
    }
    assert users.cells("a", 0o002, "dset", "real").items() <= second.items()

    record = json.loads(next(iter(users.store.glob("records/*.json"))).read_text())
    assert record["artifacts"]
    (adapter, *_) = [
        path
        for path in users.store.glob("train-*/adapter.safetensors")
        if path.stat().st_uid == (users.root / "a").stat().st_uid
    ]
    adapter.chmod(0o600)
    before = contents(users.store)
    words = {"methods": ["dset+real"], "fields": users.fields}
    code, _, err = users.call("b", 0o002, "cells", words)
    assert code != 0 and "adapter.safetensors is there and cannot be read" in err
    assert users.names["a"] in err, "whom to ask is named"
    assert contents(users.store) == before
    code, out, _ = users.call("b", 0o002, "command", ["doctor"])
    assert code == 1 and "problem   store: 1 files cannot be read" in out
    adapter.chmod(0o664)
    assert users.cells("b", 0o002, "dset+real").items() <= first.items()


@pytest.mark.long
def test_with_umask_022_what_is_done_is_read_and_what_cannot_end_does_not_begin(users):
    first = users.cells("a", 0o022, "clip", "dset+real")
    made = contents(users.store)
    assert users.cells("b", 0o022, "clip", "dset+real") == first
    words = {"methods": ["dset"], "fields": users.fields}
    code, _, err = users.call("b", 0o022, "cells", words)
    assert code != 0 and "shared/records" in err and "cannot be written" in err
    assert contents(users.store) == made and not list(users.store.glob("*.partial"))

    # Nor does a clearing lock that is another's alone leave what runs without a guard.
    guard = users.store / ".clearing.lock"
    guard.chmod(0o644)
    users.store.joinpath("records").chmod(0o2775)
    code, _, err = users.call("b", 0o022, "cells", words)
    assert code != 0 and "could not be marked" in err and ".clearing.lock" in err
    assert contents(users.store) == made
    assert users.cells("b", 0o022, "clip") == {
        k: v for k, v in first.items() if k in made_by(users, "clip")
    }
    code, out, _ = users.call("b", 0o022, "command", ["doctor"])
    assert (
        code == 1
        and ".clearing.lock cannot be written, so that no run can be marked as in use" in out
    )


def made_by(users, method):
    """Return the keys of a method's records."""
    records = [json.loads(file.read_text()) for file in users.store.glob("records/*.json")]
    return {record["key"] for record in records if record["recipe"]["method"] == method}


@pytest.mark.long
@pytest.mark.parametrize("umask", [0o002, 0o022], ids=oct)
def test_the_gc_of_one_user_leaves_alone_what_the_other_uses(users, umask):
    store, lone = Store(users.store), "generate-0123456789abcdef"
    store.make(lone, {}, lambda work: (work / "a.txt").write_text("a"))
    for path in users.store.rglob("*"):
        shutil.chown(path, users.names["a"], users.group)
    words = [sys.executable, "-c", SCRIPT, "hold", "[]"]
    holding = users.start("a", umask, *words)
    try:
        assert holding.stdout.readline() == "held\n", holding.stderr.read()
        gc = ["gc", "--older-than", "0", "--yes"]
        code, _, err = users.call("b", umask, "command", gc)
        assert code == 2 and "error: " in err and store.done(lone)
    finally:
        holding.communicate("", timeout=60)
    assert store.done(lone)
