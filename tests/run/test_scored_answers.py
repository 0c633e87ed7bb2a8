"""A scored answer is plain greedy decoding of the network's logits, whatever a checkpoint's settings are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import Zoo
from transformers import GenerationConfig

from peftbench import tasks
from peftbench.backbones.load import Backbone
from peftbench.run import evaluate
from peftbench.tasks import tokens
from peftbench.tasks.tokens import Encoded

LONGEST = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "a forced first token": {"forced_bos_token_id": 7},
    "a forced last token": {"forced_eos_token_id": 9},
    "suppressed tokens": {"suppress_tokens": list(range(5, 200))},
    "tokens suppressed at the start": {"begin_suppress_tokens": list(range(5, 261))},
    "bad words": {"bad_words_ids": [[i] for i in range(5, 200)]},
    "a repetition penalty": {"repetition_penalty": 5.0},
    "an encoder's repetition penalty": {"encoder_repetition_penalty": 5.0},
    "no repeated n-grams": {"no_repeat_ngram_size": 1},
    "no n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "a least length": {"min_length": 200},
    "a least number of new tokens": {"min_new_tokens": 6},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 0},
    "a bias of tokens": {"sequence_bias": [[[7], 100.0]]},
    "a penalty of length": {"exponential_decay_length_penalty": (1, 50.0)},
    "guidance": {"guidance_scale": 5.0},
    "a cache of fixed size": {"cache_implementation": "static"},
    "another end": {"eos_token_id": list(range(5, 261))},
    "several answers": {"num_return_sequences": 3, "num_beams": 3},
}


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, zoo: Zoo) -> Backbone:
    return zoo[request.param].backbone


@pytest.fixture(scope="module")
def data(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Three examples."""
    task, folder = tasks.open_task("synthetic/generation"), tmp_path_factory.mktemp("tokens")
    whole = tokens.encode(task, backbone.tokenizer, 32, folder, backbone.decoder_start)["test"]
    assert whole.answer_start is not None
    return replace(whole, ids=whole.ids[:3], answer_start=whole.answer_start[:3], lengths=whole.lengths[:3])


@pytest.fixture(scope="module")
def expected(backbone: Backbone, data: Encoded) -> list[str]:
    return _greedy(backbone, data)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_a_checkpoint_changes_a_scored_answer(
    backbone: Backbone, data: Encoded, expected: list[str], setting: str
) -> None:
    own = backbone.net.generation_config
    asked = GenerationConfig(**SETTINGS[setting])
    backbone.net.generation_config = asked
    try:
        assert evaluate.generate(backbone, data, 16, "float32", LONGEST) == expected
        assert backbone.net.generation_config is asked, "the network has its settings back"
    finally:
        backbone.net.generation_config = own


@torch.no_grad()
def _greedy(backbone: Backbone, data: Encoded) -> list[str]:
    """The most probable token, one after another, without a cache and without `generate`."""
    backbone.net.eval()
    assert data.answer_start is not None
    texts = []
    for i in range(len(data)):
        told = torch.from_numpy(data.ids[i][: data.answer_start[i]]).long()[None]
        read = {}
        if backbone.decoder_start is not None:
            read, told = {"input_ids": told}, torch.tensor([[backbone.decoder_start]])
        first = told.shape[1]
        for _ in range(LONGEST):
            name = "decoder_input_ids" if read else "input_ids"
            told = torch.cat([told, backbone.net(**read, **{name: told}).logits[:, -1:].argmax(-1)], dim=1)
            if int(told[0, -1]) == backbone.tokenizer.eos_token_id:
                break
        texts.append(backbone.tokenizer.decode(told[0, first:], skip_special_tokens=True).strip())
    return texts
