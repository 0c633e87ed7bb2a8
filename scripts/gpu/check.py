"""Run the parts of a first GPU session, the most useful first: records, then figures, then tests.

    python scripts/gpu/check.py [--dry-run] [--only PART ...]     DEVICE=cuda (or cpu), OUT=build/gpu

Each part has a time limit of its own, and the next one runs whatever became of it. What they write is packed into
OUT/gpu.tar.gz after each part, so that a session that is cut short keeps what it has. Exit code 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 480  # seconds on a GPU
CPU_FACTOR = 5  # a CPU gets this much more time for each part


@dataclass(frozen=True)
class Part:
    """One command with its time limit in seconds on a GPU.

    Attributes:
        name: names its log.
        command: the arguments after `python`.
        seconds: its time limit.
        says: what it shows.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    says: str


def parts(device: str, work: Path) -> list[Part]:
    """Return the parts in their order."""
    on_gpu = device != "cpu"

    def run(name: str, seconds: int, says: str, experiment: str, *options: str) -> Part:
        where = ("--device", device, "--jobs", "1", "--results", str(work / "records" / name), "--quiet")
        return Part(name, ("-m", "peftbench", "run", experiment, *where, *options), seconds, says)

    decoder = "scripts/gpu/decoder.yaml"
    few = ("--only", "method=lora", "--only", "method=full", "--only", "method=qlora")
    plain = (*few, "--only", "task=synthetic/regression", "--set", "backbone_dropout=0", "--set", "profile=false")
    size = () if on_gpu else ("--small",)
    figures = str(work / "large_decoder.json")
    smoke = ("experiments/ci_smoke.yaml", *(() if on_gpu else few))
    return [
        run("decoder", 60, "a decoder trains, writes and is timed", decoder, *(() if on_gpu else few)),
        Part("large", ("scripts/gpu/large_decoder.py", "--device", device, "--out", figures, *size), 90,
             "a decoder of a billion parameters: bytes and seconds beside the estimate; quantised training; no memory"),
        run("encoder", 75, "every method on an encoder, and its times", *smoke),
        run("settings", 45, "bfloat16, checkpointing and accumulation together", decoder, *few,
            "--set", "dtype=bfloat16", "--set", "gradient_checkpointing=true", "--set", "budget.accumulation=2",
            "--set", "profile=false"),
        run("compiled", 60, "torch.compile", "experiments/ci_smoke.yaml", "--only", "method=lora",
            "--only", "task=synthetic/classification", "--set", "compile=true", "--set", "profile=false"),
        run("deterministic", 30, "kernels that give the same bits", decoder, "--only", "method=lora",
            "--set", "deterministic=true", "--set", "profile=false"),
        Part("cpu", ("-m", "peftbench", "run", "experiments/ci_smoke.yaml", *plain, "--device", "cpu", "--jobs", "1",
                            "--results", str(work / "records" / "cpu"), "--quiet"), 30, "records without dropout"),
        Part("verify", ("-m", "peftbench", "verify", str(work / "records" / "cpu"), "--device", device, "--quiet"), 30,
             "these records, repeated on this device"),
        Part("tests", ("-m", "pytest", "-m", "gpu", "-q", "tests/run/test_gpu.py"), 60, "what only a GPU can show"),
    ]  # fmt: skip


def carry_out(part: Part, work: Path, limit: float) -> tuple[str, float]:
    """Run a part, its output into a log; return how it ended and its seconds."""
    log, started = work / f"{part.name}.log", time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            end = "ok" if code == 0 else "nothing to run" if _no_tests(part, code) else f"failed ({code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end = f"out of time ({limit:.0f} s)"
    return end, time.monotonic() - started


def _no_tests(part: Part, code: int) -> bool:
    return part.name == "tests" and code == 5  # what pytest returns where it collects nothing


def pack(work: Path, out: Path) -> None:
    """Pack everything written so far into one file."""
    part = out / "gpu.tar.gz.part"
    with tarfile.open(part, "w:gz") as archive:
        archive.add(work, arcname="gpu")
    part.replace(out / "gpu.tar.gz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="print the parts and their limits")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    args = parser.parse_args()
    device, out = os.environ.get("DEVICE", "cuda"), Path(os.environ.get("OUT", "build/gpu")).resolve()
    work, factor = out / "work", 1 if device != "cpu" else CPU_FACTOR
    chosen = [p for p in parts(device, work) if args.only is None or p.name in args.only]
    if args.only and (unknown := set(args.only) - {p.name for p in chosen}):
        parser.error(
            f"no such part: {', '.join(sorted(unknown))}; valid: {', '.join(p.name for p in parts(device, work))}"
        )
    if args.dry_run:
        for p in chosen:
            print(f"{p.name:<14}{p.seconds * factor:>5} s  {p.says}\n    python {' '.join(p.command)}")
        print(
            f"{'together':<14}{sum(p.seconds for p in chosen) * factor:>5} s at most; the limit is {TOTAL * factor} s"
        )
        return 0
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        print("gpu_check: no CUDA device here; nothing to check. DEVICE=cpu rehearses it.")
        return 0
    work.mkdir(parents=True, exist_ok=True)
    began, ended = time.monotonic(), list[tuple[str, float, str]]()
    for part in chosen:
        left = TOTAL * factor - (time.monotonic() - began)
        limit = min(part.seconds * factor, left)
        end, seconds = carry_out(part, work, limit) if limit > 5 else ("no time left", 0.0)
        ended.append((part.name, seconds, end))
        print(f"{part.name:<14}{seconds:>7.1f} s  {end}", flush=True)
        summary = "\n".join(f"{n:<14}{s:>7.1f} s  {e}" for n, s, e in ended)
        (work / "summary.txt").write_text(f"{summary}\n")
        pack(work, out)
    failed = [name for name, _, end in ended if end not in ("ok", "nothing to run")]
    print(f"{len(ended) - len(failed)} of {len(ended)} parts are well; {out / 'gpu.tar.gz'} holds records and logs")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
