"""Kill the runner of a grid and its workers again and again, run the grid to its end, and compare it with a calm one.

python scripts/kill_storm.py [--kills 100] [--seed 0] [--workers 2]

Tiny networks, made-up data, and one method that starts child processes and shared memory. Workers and the runner are
killed in turn, at random moments from their start on, and while a record is written. No record may be lost or change,
no run may finish twice, no file may be torn or left behind, and no process may outlive its run. Losses and predictions
must be those of the calm grid. Prints a table; exit code 1 if anything of that is not so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.records import record

COMMAND = "make kill-storm"
MARK = "PEFTBENCH_KILL_STORM"  # names the processes of one storm in their environment
LATEST_SECONDS = 8.0  # after the start of a runner or the last kill
WAITS_SECONDS = 60.0  # for a record to be written, where one is aimed at
GONE_SECONDS = 30.0  # within which all processes of a runner must have ended
FAULTS = ("lost", "changed", "doubled", "torn", "left behind", "orphaned", "refused", "different")

GRID = """\
name: storm
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}, {task: synthetic/regression, rows: 60}]
budget: {trainable_params: 2000, tolerance: 0.5, steps: 6, batch_size: 4, max_length: 16, seeds: 2}
train: {eval_every: 2, checkpoint: best}
profile: {processes: 1, rounds: 1, warmup: 0}
save_adapters: true
methods: [full, lora, bitfit, family]
"""

PLUGIN = '''\
"""All norms of the base train, while processes and shared memory of no use are there."""

import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import shared_memory

from peftbench.method import Edit, Method, Sites, register

STAY = [sys.executable, "-c", "import time; time.sleep(600)"]


@register
@dataclass(frozen=True)
class Family(Method):
    name = "family"
    paper = "arXiv:2312.11420"
    formula = "y = g (x - mean(x)) / sd(x) + b"
    lr = 1e-3
    lr_source = "that of layernorm"
    size_formula = "all parameters of the base's norms"
    caveats = "for kill_storm.py"

    def attach(self, edit: Edit) -> None:
        edit.thaw("norm")
        subprocess.Popen(STAY)
        subprocess.Popen(STAY, start_new_session=True)
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
        shared_memory.SharedMemory(os.environ["PEFTBENCH_KILL_STORM"] + os.urandom(4).hex(), create=True, size=4096)

    def parameters(self, sites: Sites) -> int:
        return sum(site.parameters for site in sites.of("norm"))
'''


@dataclass
class Storm:
    """One storm: its folder, its processes, what it has seen, and what went wrong.

    Attributes:
        work: the folder of everything: grids, cache, temporary files.
        mark: names the processes.
        calm: by spec id, what the calm grid measured.
        seen: by path, the hash of every record of the current grid so far.
        faults: how often each kind of fault was found.
        details: what was found, in words.
        kills: by target and signal, how many.
    """

    work: Path
    workers: int
    random: random.Random
    mark: str = field(default_factory=lambda: f"storm_{os.getpid()}_")
    calm: dict[str, Any] = field(default_factory=dict)
    seen: dict[Path, str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    starts: int = 0
    grids: int = 0

    def fault(self, kind: str, detail: str) -> None:
        self.faults[kind] += 1
        self.details.append(f"{kind}: {detail}")
        print(self.details[-1], file=sys.stderr, flush=True)

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, results: Path) -> subprocess.Popen[bytes]:
        """Start a runner on the grid."""
        self.starts += 1
        temporary = self.work / "tmp"
        temporary.mkdir(exist_ok=True)
        env = {**os.environ, MARK: self.mark, "TMPDIR": str(temporary), "PEFTBENCH_CACHE": str(self.work / "cache")}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        words = ["run", str(self.work / "storm.yaml"), "--plugin", str(self.work / "family.py")]
        words += ["--jobs", str(self.workers), "--quiet", "--results", str(results)]
        words += ["--retry-failed"]  # a run whose worker is killed three times is else given up
        with (self.work / "errors.txt").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "peftbench", *words],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def alive(self) -> list[psutil.Process]:
        """The living processes of this storm."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def worker_processes(self) -> list[psutil.Process]:
        return [p for p in self.alive() if "peftbench.run.executors.worker" in _command(p)]

    def ended(self, runner: subprocess.Popen[bytes], results: Path, killed: bool) -> int:
        """Wait for the end of a runner and of all that it started, and look at what it left."""
        code = runner.wait(600)
        if not _until(lambda: not self.alive(), GONE_SECONDS, every=0.2):
            for process in self.alive():
                self.fault("orphaned", f"{process.pid} {_command(process)}")
                process.kill()
        errors = (self.work / "errors.txt").read_text(errors="replace")
        if code not in (0, 1, 130) and not killed:
            self.fault("refused", f"exit code {code}: {errors[-2000:]}")
        elif "Traceback" in errors:
            self.fault("refused", f"a traceback: {errors[-2000:]}")
        self.check(results)
        return code

    # -- checks --------------------------------------------------------------------------------------------------------

    def check(self, results: Path) -> None:
        """Compare the records with those seen before: none is gone, changed or torn, and no run finished twice."""
        now = {p: _hash(p) for p in sorted((results / record.FOLDER).glob("*.json")) if p.name[0] != "."}
        for path, before in self.seen.items():
            if path not in now:
                self.fault("lost", path.name)
            elif now[path] != before:
                self.fault("changed", path.name)
        finished = Counter[str]()
        for path in now:
            try:
                kept = record.read(path)
            except UserError as error:
                self.fault("torn", str(error))
                continue
            finished[kept.spec_id] += kept.is_finished
            if kept.status not in ("finished", *record.RETRIED):
                self.fault("different", f"{path.name} is {kept.status}: {kept.body.reason}")
        for spec_id, count in finished.items():
            if count > 1:
                self.fault("doubled", f"{spec_id} finished {count} times")
        self.seen = now

    def check_end(self, results: Path) -> None:
        """Compare a grid that has run to its end with the calm one, and look for what was left behind."""
        self.check(results)
        measured = self.calm if self.faults["torn"] else measurements(results)  # torn records cannot be read
        for spec_id in self.calm.keys() | measured.keys():
            if spec_id not in measured:
                self.fault("lost", f"{spec_id} has no finished record")
            elif measured[spec_id] != self.calm.get(spec_id):
                self.fault("different", f"{spec_id} measured something else")
        for path in sorted((results / "adapters").iterdir()):
            try:
                if ".head." not in path.name:
                    adapter_file.load(path)
            except UserError as error:
                self.fault("torn", str(error))
        for path in self.left_behind(results):
            self.fault("left behind", str(path))

    def left_behind(self, results: Path) -> Iterator[Path]:
        """Temporary files, locks that are held for a grid, snapshots, and shared memory."""
        yield from (self.work / "tmp").iterdir()
        yield from (self.work / "cache" / "snapshots").iterdir()
        for folder in (results, self.work / "cache"):
            for path in folder.rglob("*"):
                if path.suffix == ".tmp" or ".part-" in path.name or (path.name == ".lock" and folder == results):
                    yield path
        if Path("/dev/shm").is_dir():
            yield from Path("/dev/shm").glob(f"{self.mark}*")

    # -- the storm -----------------------------------------------------------------------------------------------------

    def run_calm(self) -> None:
        """Run the grid once without a kill."""
        results = self.work / "calm"
        code = self.ended(self.start(results), results, killed=False)
        if code != 0:
            raise SystemExit(f"the calm grid ended with exit code {code}: {(self.work / 'errors.txt').read_text()}")
        self.calm = measurements(results)
        self.check_end(results)
        self.seen = {}

    def run(self, kills: int) -> None:
        """Kill so many times, in as many grids as that takes, and run each grid to its end."""
        done = 0
        while done < kills:
            self.grids += 1
            self.seen = {}
            results = self.work / f"grid-{self.grids}"
            code = 1
            while code != 0:
                runner = self.start(results)
                killed = False
                while done < kills and runner.poll() is None and not killed:
                    target = "runner" if done % 2 else "worker"
                    if not self.wait_for_a_moment(runner, results):
                        break
                    struck = self.strike(target, runner)
                    done += struck is not None
                    killed = struck == "runner"
                    if struck and done % 5 == 0:
                        print(f"{done} kills, {self.starts} starts, {len(self.seen)} records", flush=True)
                code = self.ended(runner, results, killed)
                if self.starts > 10 * kills + 20:
                    raise SystemExit("the grid does not come to its end")
            self.check_end(results)

    def wait_for_a_moment(self, runner: subprocess.Popen[bytes], results: Path) -> bool:
        """Wait for a random moment, or until a record is being written; False if the runner has ended by then."""
        if self.random.random() < 0.4:
            before = _names(results)
            late = self.random.random() * 0.004  # while the file is written, renamed, or just after
            _until(lambda: runner.poll() is not None or _names(results) != before, WAITS_SECONDS, every=0.0005)
            time.sleep(late)
        else:
            end = time.monotonic() + self.random.uniform(0, LATEST_SECONDS)
            _until(lambda: runner.poll() is not None or time.monotonic() > end, LATEST_SECONDS + 1)
        return runner.poll() is None

    def strike(self, target: str, runner: subprocess.Popen[bytes]) -> str | None:
        """Send a signal to a worker or to the runner; returns which of them it was, None if there was no worker."""
        if target == "worker":
            workers = self.worker_processes()
            if not workers:
                return None
            how = self.random.choice(["KILL", "KILL", "KILL", "TERM", "STOP KILL", "SEGV"])
            victims = [self.random.choice(workers)]
        else:
            how = self.random.choice(
                ["KILL", "KILL", "KILL", "TERM", "INT", "HUP", "INT INT", "STOP KILL", "KILL all", "workers STOP, KILL"]
            )
            victims = [psutil.Process(runner.pid)]
            if how == "KILL all":
                victims = [*self.worker_processes(), *victims]
            if how == "workers STOP, KILL":
                _send(self.worker_processes(), "STOP")
        for word in how.replace(" all", "").replace("workers STOP, ", "").split():
            _send(victims, word)
            time.sleep(self.random.random() * 0.05)
        self.kills[target, how] += 1
        return target

    def table(self) -> str:
        """What was done, and how often each fault was found."""
        counted = [f"{number:5} {target}: {how}" for (target, how), number in sorted(self.kills.items())]
        faults = [f"{self.faults[kind]:5} {kind}" for kind in FAULTS]
        grids = f"{len(self.calm)} specs in each of {self.grids} grids, {self.starts} starts"
        return "\n".join(["kills", *counted, f"{sum(self.kills.values()):5} in all", "", grids, *faults])


def measurements(results: Path) -> dict[str, Any]:
    """By spec id, what a finished run measured that a repetition measures too; None for a pass, which measures time."""
    found = {}
    for kept in record.read_all(results):
        if kept.is_finished:
            raw = kept.raw()
            names = ("curve", "metrics", "predictions", "checkpoint_step", "parameters")
            found[kept.spec_id] = {n: raw.get(n) for n in names} if kept.kind == "run" else None
    return found


def _names(results: Path) -> set[str]:
    try:
        return set(os.listdir(results / record.FOLDER))
    except FileNotFoundError:
        return set()


def _send(processes: Sequence[psutil.Process], word: str) -> None:
    for process in processes:
        try:
            process.send_signal(getattr(signal, f"SIG{word}"))
        except psutil.NoSuchProcess:
            continue


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _until(happened: Callable[[], object], seconds: float, every: float = 0.02) -> bool:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def storm(work: Path, kills: int, seed: int, workers: int, grid: str = GRID) -> Storm:
    """Run a whole storm in a folder."""
    (work / "storm.yaml").write_text(grid)
    (work / "family.py").write_text(PLUGIN)
    made = Storm(work, workers, random.Random(seed))
    try:
        made.run_calm()
        made.run(kills)
    finally:  # a storm that is stopped leaves nothing either
        _send(made.alive(), "KILL")
    return made


def main() -> None:
    """Run a storm and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print("a calm grid first", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-storm-") as folder:
        made = storm(Path(folder), given.kills, given.seed, given.workers)
    print(made.table())
    sys.exit(1 if made.faults else 0)


if __name__ == "__main__":
    main()
