"""The options of the executor `slurm`: what sbatch is told, and what is refused."""

from __future__ import annotations

import pytest

from peftbench.errors import UserError
from peftbench.run import executors
from peftbench.run.executors import slurm_options


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30), ("0:30", 1), ("90:00", 90), ("04:00:00", 240), ("00:00:01", 1), ("1-12", 2160), ("1-00:30", 1470),
        ("2-01:02:03", 2943),
    ],
)  # fmt: skip
def test_time_is_read_as_sbatch_reads_it_and_rounded_up(text: str, minutes: int) -> None:
    assert slurm_options.read({"time": text}).minutes == minutes


@pytest.mark.parametrize(
    ("name", "text", "valid"),
    [
        ("time", "4h", "must be a time such as 04:00:00"),
        ("time", "0", "must be a time such as 04:00:00"),
        ("cpus", "two", "must be a whole number from 1"),
        ("cpus", "0", "must be a whole number from 1"),
        ("nodes", "-1", "must be a whole number from 1"),
        ("array_parallelism", "1.5", "must be a whole number from 1"),
        ("gpus", "a100", "must be a number, or a type and a number"),
        ("memory", "much", "must be a size such as 32G"),
        ("partition", "", "must be a text of one line"),
        ("partition", "gpu\n#SBATCH --uid=0", "must be a text of one line"),
        ("cluster", "slrum", "did you mean 'slurm'"),
        ("additional.array", "0-9", "submitit sets this parameter"),
        ("additional.Mail Type", "END", "must be the long name of a parameter of sbatch"),
    ],
)
def test_an_invalid_value_is_refused_in_one_sentence(name: str, text: str, valid: str) -> None:
    with pytest.raises(UserError, match=valid) as refused:
        slurm_options.read({name: text})
    assert str(refused.value).startswith((f"slurm.{name}", "unknown slurm.cluster"))
    assert "\n" not in str(refused.value)


def test_several_nodes_need_a_cluster() -> None:
    assert slurm_options.read({"nodes": "2"}).nodes == 2
    with pytest.raises(UserError, match="on one machine"):
        slurm_options.read({"nodes": "2", "cluster": "local"})


def test_every_option_has_a_sentence_and_an_unknown_one_is_named() -> None:
    assert all(len(sentence) > 10 for sentence in slurm_options.OPTIONS.values())
    with pytest.raises(UserError, match=r"unknown slurm option 'partitoin'; did you mean 'partition'"):
        executors.check_options("slurm", {"partitoin": "gpu"})


def test_what_sbatch_is_told() -> None:
    pytest.importorskip("submitit")
    from submitit.slurm.slurm import _make_sbatch_string

    given = {
        "partition": "gpu", "account": "me", "qos": "low", "time": "1-00:00:00", "gpus": "a100:1", "cpus": "8",
        "memory": "32G", "constraint": "a100", "setup": "module load cuda", "profile_constraint": "h100",
        "additional.mem_bind": "local", "additional.requeue": "true",
    }  # fmt: skip
    options = slurm_options.read(given)

    def script(**how: object) -> str:
        told = options.parameters("peftbench-1", **how)  # type: ignore[arg-type]
        own = {"timeout_min": "time", "name": "job_name"}
        parameters = {own.get(k, k.removeprefix("slurm_")): v for k, v in told.items()}
        return _make_sbatch_string("python x", "folder", **parameters)

    text = script()
    for line in (
        "--partition=gpu", "--account=me", "--qos=low", "--time=1440", "--gpus-per-node=a100:1", "--cpus-per-task=8",
        "--mem=32G", "--constraint=a100", "--mem-bind=local", "--requeue", "--job-name=peftbench-1", "--nodes=1",
        "--signal=USR2@120",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load cuda\n" in text
    assert " --cpus-per-task=8 python x\n" in text, "srun does not inherit it"
    assert "exclusive" not in text
    alone = script(exclusive=True, after=["7_0", "7_1", "9"])
    assert "#SBATCH --exclusive\n" in alone
    assert "#SBATCH --constraint=h100\n" in alone
    assert "#SBATCH --dependency=afterany:7:9\n" in alone


def test_a_dependency_of_the_user_stays() -> None:
    options = slurm_options.read({"additional.dependency": "afterok:3"})
    assert options.parameters("n")["slurm_additional_parameters"] == {"dependency": "afterok:3"}
    after = options.parameters("n", after=["7_0"])
    assert after["slurm_additional_parameters"] == {"dependency": "afterok:3,afterany:7"}
