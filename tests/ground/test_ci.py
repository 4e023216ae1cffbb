""".ci/run: which Pythons it takes, what it runs with each, and that nothing that fails goes unseen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from shlex import quote

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "dirname", "grep", "mktemp", "rm", "sort", "tail")
SLOW = "-m slow --ignore tests/faults --ignore tests/soak -n auto --dist loadfile"
FAULTS = "-m slow tests/soak tests/faults -n 2 --dist loadfile --no-loadscope-reorder"


@pytest.fixture
def ci(tmp_path):
    """Run a copy of .ci/run where the Pythons are shell scripts that write down what they are asked for.

    `pythons` are names on PATH with the version each is; `fail` maps a task's arguments to an exit status, `said` to
    what it prints before its last line.
    """
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in TOOLS:
        (bin_ / tool).symlink_to(shutil.which(tool))
    write(bin_ / "id", "echo 1000")  # not root: nothing is installed
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "requirements").mkdir()

    def ci(pythons, fail=None, said=None, arguments=()):
        for name, version in pythons.items():
            cases = "".join(
                f'"run.py {task}") echo {quote((said or {}).get(task, ""))}; echo "last line of {task}"; exit {n};;\n'
                for task, n in (fail or {}).items()
            )
            path = bin_ / name if "/" not in name else tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(
                path,
                f"""
                case "$*" in
                -c*"(3, {version})"*) exit 0;;
                -c*) exit 1;;
                {cases}
                *) echo "{name} ${{POOLKIT_VENV##*/}}: $*" >> {tmp_path}/asked; echo "$CI $POOLKIT_TEST_REQUIRE";;
                esac
                """,
            )
        done = subprocess.run(
            [tmp_path / ".ci" / "run", *arguments],
            env={
                "PATH": str(bin_),
                "PYENV_ROOT": str(tmp_path / "pyenv"),
                "HOME": "/nowhere",
                "POOLKIT_MARIADB_BIN": "/nowhere",
            },
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        asked = tmp_path / "asked"
        return done, asked.read_text().splitlines() if asked.exists() else []

    return ci


def write(path, text):
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


ALL = {"python3.11": 11, "python3.12": 12, "python3.13": 13}


def test_each_python_in_an_environment_of_its_own(ci):
    """The README's command on the oldest and the newest, the slow tests on the middle one, a summary, exit status 0.

    The environments are made at once, before all else.
    """
    done, asked = ci(ALL)
    assert sorted(asked[:3]) == [f"python3.{minor} 3.{minor}: run.py test --version" for minor in (11, 12, 13)]
    assert asked[3:] == [
        "python3.13 3.13: run.py lint",
        f"python3.12 3.12: run.py test {SLOW}",
        f"python3.12 3.12: run.py test {FAULTS}",
        "python3.11 3.11: run.py test",
        "python3.13 3.13: run.py test",
        "python3.13 3.13: run.py bench --help",  # last, for it adds to the environment of the newest
        "python3.13 3.13: run.py test -m slow tests/bench/test_report_plots.py",
    ]
    assert "true all" in done.stdout
    assert done.stdout.count("\nok ") == 8
    assert done.returncode == 0


@pytest.mark.parametrize("absent", [11, 13])
def test_the_middle_takes_the_place_of_what_is_absent(ci, absent):
    """Without the oldest or the newest, the README's command runs on 3.12 as well; what is absent is said."""
    done, asked = ci({name: minor for name, minor in ALL.items() if minor != absent})
    assert "python3.12 3.12: run.py test" in asked
    assert f"absent  Python 3.{absent}" in done.stdout
    assert done.returncode == 0


def test_pythons_of_a_version_manager_and_the_plain_name_are_found(ci):
    """Names on PATH come first, what a version manager has installed next; a wrong version is passed over."""
    done, asked = ci({"python3.12": 9, "python3": 13, "pyenv/versions/3.12.9/bin/python3": 12})
    assert "python3 3.13: run.py lint" in asked
    assert f"pyenv/versions/3.12.9/bin/python3 3.12: run.py test {SLOW}" in asked
    assert done.returncode == 0


@pytest.mark.parametrize("pythons", [{}, {"python3.11": 11}])
def test_without_a_python_for_django_6_it_fails(ci, pythons):
    """Half of what is promised would go untested."""
    done, asked = ci(pythons)
    assert done.returncode == 1
    assert "Django 6 needs one" in done.stderr
    assert asked == []


@pytest.mark.parametrize(
    ("task", "status", "others"),
    [
        ("test --version", 1, 7),  # on three Pythons
        ("test", 1, 8),  # on two
        ("test", 5, 8),
        ("lint", 1, 9),
        (f"test {SLOW}", 5, 9),
        (f"test {FAULTS}", 5, 9),
        ("bench --help", 1, 8),  # without matplotlib there are no plots
        ("test -m slow tests/bench/test_report_plots.py", 5, 9),
    ],
)
def test_one_failure_fails_the_run_and_the_rest_is_run_all_the_same(ci, task, status, others):
    """The status of a step is not lost in the pipe that shows it; a run of no tests (5) has failed."""
    done, asked = ci(ALL, fail={task: status})
    assert done.returncode == 1
    assert f"exit status {status}: last line of {task}" in done.stdout
    assert len(asked) == others


FEW = "......F. [ 99%]\nFAILED tests/a.py::test_a[x y] - assert 1\nERROR tests/b.py::test_b\n"


def test_a_test_that_fails_fails_the_run_and_is_named(ci):
    """Nothing is tried a second time: a test that is late on a busy machine is mended at its cause."""
    done, asked = ci(ALL, fail={f"test {SLOW}": 1}, said={f"test {SLOW}": FEW})
    assert done.returncode == 1
    _, _, summary = done.stdout.partition("Summary")
    assert "\nFAILED  slow tests on Python 3.12" in summary
    assert "\nFAILED tests/a.py::test_a[x y] - assert 1\nERROR tests/b.py::test_b\n" in summary
    assert "[ 99%]" not in done.stdout
    assert len([line for line in asked if "-m slow --ignore" in line]) == 0, "only what ended well is written down"


def test_the_whole_run_has_what_takes_hours(ci, tmp_path):
    """Django's own suite on each engine and other people's projects are asked for by name, and can fail the run."""
    done, _ = ci(ALL)
    assert "Django's own suite" not in done.stdout
    done, _ = ci(ALL, arguments=["--whole"])
    for name in ("postgresql", "mysql", "sqlite3"):
        assert f"Django's own suite on {name}" in done.stdout
    assert "FAILED  projects of other people" in done.stdout, "there is no environment here to run them in"
    assert done.returncode == 1


def test_an_address_in_a_lock_fails_the_run(ci, tmp_path):
    """It would hold on one machine only."""
    (tmp_path / "requirements" / "x.txt").write_text("--find-links file:///opt\n")
    done, _ = ci(ALL)
    assert done.returncode == 1
    assert "FAILED  addresses" in done.stdout


def test_a_mariadb_is_required_where_it_can_be_had(ci, tmp_path):
    """Its tests may skip themselves only where there is none and none can be installed, and that is said."""
    done, _ = ci(ALL)
    assert "true all,-mysql\n" in done.stdout
    assert "absent  MariaDB" in done.stdout
    write(tmp_path / "bin" / "mariadbd", "")
    write(tmp_path / "bin" / "mysqldump", "")
    done, _ = ci(ALL)
    assert "true all\n" in done.stdout
    assert "absent" not in done.stdout


def test_a_mariadb_is_installed_by_root(ci, tmp_path):
    """The distribution is asked for the programs alone; where it has none the rest is tested all the same."""
    write(tmp_path / "bin" / "id", "echo 0")
    write(tmp_path / "bin" / "apt-get", f'echo "$*" >> {tmp_path}/apt')
    done, _ = ci(ALL)
    assert (tmp_path / "apt").read_text().splitlines() == [
        "-qq update",
        "-qq install -y --no-install-recommends mariadb-server-core mariadb-client",
    ]
    assert "true all\n" in done.stdout
    write(tmp_path / "bin" / "apt-get", "exit 1")
    done, _ = ci(ALL)
    assert "true all,-mysql\n" in done.stdout
    assert done.returncode == 0


def test_it_can_be_started():
    """It is a program."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
