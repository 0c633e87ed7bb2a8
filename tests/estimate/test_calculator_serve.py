"""The calculator's server answers its own page on this machine, computes as `estimate` does, and refuses the rest."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from peftbench.errors import UserError
from peftbench.estimate import step_estimate
from peftbench.estimate.calculator import exact, serve, settings
from peftbench.estimate.calculator.serve import LARGEST_BODY, Server
from peftbench.estimate.card import fits
from peftbench.estimate.count import ModelQuery

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
CHOICE = {
    "model": "own",
    "method": "lora",
    "roles": "q v",
    "size": 4,
    "batch": 2,
    "seq": 64,
    "dtype": "bfloat16",
    "optimizer": "adamw",
    "checkpointing": False,
    "program": "hf-trainer",
    "gpu": "l40s",
    "gpus": 1,
    "examples": 1000,
    "epochs": 2,
    "price": 1.5,
}
JSON = {"Content-Type": "application/json"}
Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def sent(server: Server, body: bytes | None, headers: dict[str, str] = JSON, path: str = "/estimate") -> Answer:
    connection = HTTPConnection(serve.HOST, server.server_port, timeout=60)
    connection.request("POST" if body is not None else "GET", path, body, headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def asked(server: Server, config: str = json.dumps(CONFIG), **changed: Any) -> Answer:
    return sent(server, json.dumps({"choice": {**CHOICE, **changed}, "config": config}).encode())


@pytest.mark.slow
def test_a_pasted_configuration_gets_what_estimate_says_of_it(server: Server, tmp_path: Any) -> None:
    status, read = asked(server)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    setting = settings.setting_of("hf-trainer", "bfloat16", False, 2, 64)
    told = step_estimate.estimate(ModelQuery(str(tmp_path)), "lora", {"roles": "q v", "rank": 4}, setting)
    answer = read["answer"]
    assert status == 200
    assert (answer["trainable"], answer["peak"]) == (told.trainable, told.peak_bytes)
    assert answer["needed"] == fits.needed_bytes(told)
    assert sum(answer["parts"].values()) == answer["peak"]
    assert answer["steps"] == 1000
    assert answer["money"] == pytest.approx(1.5 * answer["hours"])


@pytest.mark.slow
def test_cards_that_share_a_model_hold_less_of_it_each(server: Server) -> None:
    one, two = asked(server)[1]["answer"], asked(server, shards=2, gpus=2)[1]["answer"]
    assert two["parts"]["weights"] < 0.6 * one["parts"]["weights"]
    assert two["steps"] == one["steps"] // 2


def test_the_page_has_a_button_for_the_exact_answer_and_may_ask_this_server_alone(server: Server) -> None:
    connection = HTTPConnection(serve.HOST, server.server_port, timeout=60)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200
    assert 'id="exact"' in text
    assert "connect-src 'self'" in str(response.getheader("Content-Security-Policy"))
    connection.close()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"config": "{"}, "no JSON"),
        ({"config": ""}, "paste the text"),
        ({"config": "[]"}, "model_type"),
        ({"config": json.dumps({**CONFIG, "num_hidden_layers": 10**6})}, "num_hidden_layers"),
        ({"config": json.dumps({**CONFIG, "model_type": "nosuch"})}, "nosuch"),
        ({"method": "nosuch"}, "nosuch"),
        ({"gpu": "nosuch"}, "nosuch"),
        ({"program": "nosuch"}, "nosuch"),
        ({"roles": "nosuch"}, "nosuch"),
        ({"model": "../results"}, "paste a config.json"),
        ({"model": "tests"}, "paste a config.json"),
        ({"seq": 0}, "seq 0"),
        ({"seq": 10_000}, "512 positions"),
        ({"batch": True}, "batch True"),
        ({"batch": 1.5}, "batch 1.5"),
        ({"size": -1}, "size -1"),
        ({"epochs": "many"}, "epochs 'many'"),
        ({"price": -1}, "--price -1"),
        ({"checkpointing": 1}, "checkpointing 1"),
        ({"gpus": 1, "shards": 2}, "multiple of the shards"),
        ({"dtype": ""}, "no dtype"),
    ],
)
def test_what_cannot_be_computed_gets_a_sentence_that_names_it(
    server: Server, changed: dict[str, Any], named: str
) -> None:
    status, read = asked(server, **changed)
    assert status == 422
    assert named in read["error"]
    assert "Traceback" not in read["error"]
    assert "/tmp" not in read["error"]


def test_requests_that_are_not_the_pages_are_refused(server: Server) -> None:
    body = json.dumps({"choice": CHOICE, "config": json.dumps(CONFIG)}).encode()
    answers = [
        sent(server, body, {**JSON, "Host": "example.org"}),
        sent(server, body, {**JSON, "Origin": "https://example.org"}),
        sent(server, body, {"Content-Type": "text/plain"}),
        sent(server, body, path="/other"),
        sent(server, None, {}, "/secrets"),
        sent(server, b"{"),
        sent(server, b"[1]"),
        sent(server, b" " * (LARGEST_BODY + 1)),
    ]
    assert [status for status, _ in answers] == [403, 403, 415, 404, 404, 400, 400, 413]
    assert all(set(read) == {"error"} for _, read in answers)


def test_the_server_is_reached_from_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind((serve.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}"):
            Server(port)


def test_a_failure_of_the_simulation_is_answered_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: Any) -> dict[str, Any]:
        raise ZeroDivisionError("of something")

    monkeypatch.setattr(exact, "answer", broken)
    status, read = asked(server)
    assert status == 500
    assert "could not be simulated" in read["error"]
