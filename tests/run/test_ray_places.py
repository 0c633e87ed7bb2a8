"""What the executor `ray` decides without a cluster: options, needs, nodes, versions."""

from __future__ import annotations

import socket
import sys

import pytest
from commands import Call

from peftbench.errors import UserError
from peftbench.run import executors
from peftbench.run.executors import Setup, ray_places, ray_versions
from peftbench.run.executors.ray_cluster import RayExecutor
from peftbench.run.executors.ray_options import OPTIONS, Options
from peftbench.run.executors.ray_places import GIGABYTE, Needs, Node

ONE = Needs(1, 0, GIGABYTE)


def node(name: str, cpus: float = 4, gpus: float = 0, memory: float = 8, **more: object) -> Node:
    resources = {"CPU": cpus, "GPU": gpus, "memory": memory * GIGABYTE, **more.pop("resources", {})}
    return Node(name, f"10.0.0.{name[-1]}", f"host-{name}", 0, resources, **more)


def test_a_missing_ray_is_one_sentence_with_the_extra(monkeypatch: pytest.MonkeyPatch, call: Call, tiny: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^the executor 'ray' needs the package ray: pip install 'peftbench\[ray\]'$"):
        executors.find("ray")
    refused = call("run", tiny, "--executor", "ray", "--results", "r")
    assert (refused.code, refused.out) == (2, "")
    assert "pip install 'peftbench[ray]'" in refused.err
    assert executors.find("local")


def test_a_mere_folder_called_ray_is_no_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(UserError, match="needs the package ray"):
        executors.find("ray")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": "0"}, "ray.threads: given '0'; must be a whole number above 0"),
        ({"workers": "many"}, "ray.workers: given 'many'; must be a whole number above 0"),
        ({"memory": "nan"}, "ray.memory: given 'nan'; must be a number above 0"),
        ({"wait": "-1"}, "ray.wait: given '-1'; must be a number that is not negative"),
    ],
)
def test_a_value_that_is_not_valid_is_named_before_anything_starts(given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RayExecutor(Setup("no:Session", {}, options=given))


def test_options_are_read_and_all_are_described() -> None:
    given = {"address": "auto", "workers": "3", "threads": "2", "memory": "1.5", "wait": "0", "env.HF_HOME": "/data/hf"}
    read = Options.of(given)
    assert (read.address, read.workers, read.threads, read.memory, read.wait) == ("auto", 3, 2, 1_500_000_000, 0.0)
    assert read.env == {"HF_HOME": "/data/hf"}
    assert Options.of({}) == Options()
    assert set(OPTIONS) == {*vars(read), "env.*"} - {"env"}
    executors.check_options("ray", given)
    with pytest.raises(UserError, match="unknown ray option 'thread'; did you mean 'threads'"):
        executors.check_options("ray", {"thread": "2"})


def test_predicted_peaks_are_wanted_unless_the_user_says_what_a_run_takes() -> None:
    assert executors.needs_peaks("ray", {})
    assert not executors.needs_peaks("ray", {"memory": "2"})


def test_workers_spread_over_nodes_and_take_no_more_than_a_node_has() -> None:
    nodes = [node("a1", cpus=2), node("b2", cpus=4, memory=2.5)]
    taken: dict[str, list[Needs]] = {}
    order = []
    while chosen := ray_places.choose(nodes, ONE, taken):
        taken.setdefault(chosen.id, []).append(ONE)
        order.append(chosen.id)
    assert order == ["a1", "b2", "a1", "b2"], "two by the cores of the first, two by the memory of the second"
    assert ray_places.choose(nodes, Needs(1, 1, 0), {}) is None, "no node has a GPU"


def test_times_are_measured_on_this_machine_or_on_a_node_of_the_kind_that_is_named() -> None:
    nodes = [
        node("a1"),
        node("b2", resources={"accelerator_type:H100": 1}, gpus=1),
        node("c3", labels={"disk": "fast"}),
        node("d4", cpus=0),
    ]

    def chosen(kind: str | None, gpus: int = 0, own: str = "c3") -> str | None:
        found = ray_places.for_profile(nodes, kind, gpus, own)
        return found and found.id

    assert chosen(None) == "c3"
    assert chosen(None, own="d4") == "a1", "the own node has no cores to give"
    assert chosen(None, gpus=1) == "b2"
    assert [chosen(kind) for kind in ("H100", "accelerator_type:H100", "host-a1", "10.0.0.1")] == [
        "b2",
        "b2",
        "a1",
        "a1",
    ]
    assert chosen("fast") == chosen("disk=fast") == "c3"
    assert chosen("A100") is None


def test_an_address_answers_while_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ray_places.can_connect("127.0.0.1", port)
    assert not ray_places.can_connect("127.0.0.1", port)


def test_a_difference_names_the_node_what_differs_and_the_fix() -> None:
    here = {"Python": "3.11.9", "torch": "2.13.0", "transformers": "5.1.0", "peftbench": "0123"}
    assert ray_versions.difference("n", dict(here), here) is None
    there = {**here, "torch": None, "peftbench": "4567"}
    assert ray_versions.difference("n (10.0.0.1)", there, here) == (
        "node n (10.0.0.1) is not like this machine: torch is missing there and 2.13.0 here, peftbench is 4567 "
        "there and 0123 here. Install there: `pip install torch==2.13.0`, the same release or checkout of peftbench"
    )
    assert "Python 3.11.9" in str(ray_versions.difference("n", {**here, "Python": "3.12.1"}, here))


def test_the_build_of_torch_is_no_difference() -> None:
    assert "+" not in str(ray_versions.here()["torch"])
    assert ray_versions.here() == ray_versions.here()
