"""Write a trained network as a plain transformers model: no adapters, transformers' names and layouts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peftbench.backbones.denormalise import plain_on_meta, plain_state
from peftbench.errors import UserError
from peftbench.method.edit import NotMergeable
from peftbench.method.interop.trained_adapter import TrainedAdapter


def write(trained: TrainedAdapter, folder: Path) -> None:
    """Write the merged model, with its tokenizer, into `folder`.

    Raises:
        UserError: The adapter does not merge.
    """
    try:
        with trained.edit.merged() as net:
            plain = _plain(net)
    except NotMergeable as error:
        raise UserError(
            f"{trained.path.name}: {trained.method} cannot be merged into a plain model: {error}; "
            "keep it as an adapter, or try --to peft"
        ) from error
    if trained.labels:
        plain.config.id2label = dict(enumerate(trained.labels))
        plain.config.label2id = {name: i for i, name in enumerate(trained.labels)}
    plain.save_pretrained(folder)
    if plain.can_generate():  # as the checkpoint has them: saving a model would refuse some
        trained.backbone.net.generation_config.to_json_file(folder / "generation_config.json")
    trained.backbone.tokenizer.save_pretrained(folder)


def _plain(net: Any) -> Any:
    state = {name: t.clone() for name, t in plain_state(net).items()}
    plain = plain_on_meta(net)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.config = copy.deepcopy(net.config)
    plain.config.use_cache = True  # off only during training
    return plain
