"""Compare runs on one process, on two that hold the whole network, and on two that share it; write docs/parallel.md.

    python scripts/parallel_table.py [--write docs/parallel.md] [--models minilm-l6 smollm2-135m]

The first table trains every method on tiny networks in float64, without dropout, and shows the largest differences. The
second runs whole sessions on embedded models with two ranks, and compares the bytes that the tracker measures on a rank
with those that the simulation predicts. The third sets the estimates of sharded QLoRA beside published figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the program that ranks run lives beside the tests that use it

from rank_program import Result, on  # noqa: E402
from tabulate import tabulate  # noqa: E402

import peftbench  # noqa: E402
from peftbench.backbones import devices  # noqa: E402
from peftbench.estimate import step_estimate  # noqa: E402
from peftbench.estimate.count import ModelQuery  # noqa: E402
from peftbench.estimate.run import run_peak  # noqa: E402
from peftbench.method import registry  # noqa: E402
from peftbench.records.spec import RunSpec, as_dict  # noqa: E402
from peftbench.run.session import Session  # noqa: E402
from peftbench.tasks import batches  # noqa: E402

NETWORKS = ("tiny-encoder", "tiny-decoder", "tiny-t5")
KINDS: tuple[dict[str, int], ...] = ({"data": 2}, {"shards": 2})
TASKS = {"minilm-l6": "embedded/question_type", "smollm2-135m": "embedded/dialog_reply"}
METHODS = {"minilm-l6": ["full", "lora", "qlora", "dora", "adapter", "prefix", "ia3", "bitfit", "adalora", "pissa"],
           "smollm2-135m": ["lora", "qlora"]}  # fmt: skip
GB, GIB = 10**9, 2**30
# What others publish for QLoRA on two devices: model, hyperparameters, setting, figure, what it is, source.
PUBLISHED: tuple[tuple[str, dict[str, Any], dict[str, Any], str, str], ...] = (
    ("llama-2-70b", {"rank": 8}, {"batch": 2, "seq": 2048}, "35.6 GB a card",
     "peft's documentation of FSDP: every linear layer, rank 8, gradient checkpointing, AdamW"),
    ("llama-2-70b", {"rank": 8}, {"batch": 2, "seq": 2048, "offload": True}, "19.6 GB a card",
     "the same, with the shards in the host's memory"),
    ("llama-2-7b", {"rank": 64, "roles": "q k v gate up down"}, {"batch": 1, "seq": 512}, "4.98 GiB reserved",
     "AnswerDotAI/fsdp_qlora, benchmarks_03_2024.md"),
    ("llama-2-7b", {"rank": 64, "roles": "q k v gate up down"}, {"batch": 1, "seq": 2048}, "5.21 GiB reserved",
     "the same"),
    ("llama-2-7b", {"rank": 64, "roles": "q k v gate up down"}, {"batch": 4, "seq": 2048}, "11.22 GiB reserved",
     "the same"),
)  # fmt: skip
HEAD = """# Runs on several devices, checked

Made by `python scripts/parallel_table.py --write docs/parallel.md`. [scale.md](scale.md) says how to use them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--models", nargs="*", default=list(TASKS), choices=list(TASKS))
    args = parser.parse_args()
    text = "\n".join([HEAD, equality(), bytes_of_a_rank(args.models), published()])
    print(text)
    if args.write:
        args.write.write_text(text)


def equality() -> str:
    """The table of largest differences."""
    methods = sorted(registry.discover())
    rows = []
    for network in NETWORKS:
        cases: list[Any] = [(method, {}, network) for method in methods]
        alone, *several = on({}, cases), *(on(kind, cases) for kind in KINDS)
        for i, method in enumerate(methods):
            rows += [
                [method, network, _kind(k), *_differences(alone[i], found[i])]
                for k, found in zip(KINDS, several, strict=True)
            ]
    heads = [
        "method",
        "network",
        "processes",
        "loss",
        "gradients",
        "tensors",
        "logits",
        "4-bit tensors",
        "bytes of a rank",
    ]
    return f"""## One process and two: largest absolute differences

Five steps in float64 on 12 texts, clipped to norm 0.5, by AdamW with weight decay; no dropout, whose draws depend on
the rank. *Loss*: of any step, a number of float32. *Gradients*: of the first step. *Tensors*: what the method trained,
and the head, after five steps. *Logits*: in evaluation, after them. *4-bit tensors*: whether codes and both levels of
constants are gathered bit for bit. *Bytes*: weights and buffers, of one process and of a rank.

{_table(heads, rows)}
"""


def bytes_of_a_rank(models: list[str]) -> str:
    """The table of measured and predicted bytes."""
    rows = [row for model in models for row in _bytes(model)]
    heads = ["model", "method", "measured on rank 0", "rank 1", "predicted", "difference", "one process, predicted"]
    return f"""## Bytes of a rank: measured and predicted

Two shards of embedded models, 8 texts a step, float32: the largest batch of a run, by the tracker on each rank, and
by the simulation of one rank without the other. Ranks differ where N does not divide a tensor's rows. Shards save
memory only where blocks hold most of the weights: half of MiniLM's are embeddings, which stay gathered between the
passes, beside the rank's own part of them.

{_table(heads, rows)}
"""


def published() -> str:
    """The estimates beside what others measured."""
    rows = []
    for model, hyper, shape, figure, source in PUBLISHED:
        setting = step_estimate.Setting(**shape, dtype="bfloat16", checkpointing=True, attention="flash", shards=2)
        e = step_estimate.estimate(ModelQuery(model), "qlora", hyper, setting)
        parts = e.at_peak
        trained = parts["adapter"] + parts["optimizer"] + parts["gradients"]
        rest = parts["activations"] + parts["temporaries"]
        cells = [f"{value / GIB:.2f}" for value in (parts["weights"], trained, rest, e.peak_bytes)]
        what = f"rank {hyper['rank']}, {shape['batch']} x {shape['seq']}{', offloaded' * ('offload' in shape)}"
        rows.append([model, what, *cells, f"{e.peak_bytes / GB:.1f}", figure, source])
    heads = [
        "model",
        "what",
        "base, GiB",
        "trained, GiB",
        "the rest, GiB",
        "peak, GiB",
        "peak, GB",
        "published",
        "source",
    ]
    return f"""## Beside published figures of sharded QLoRA on two devices

`peftbench estimate MODEL qlora ... --shards 2 --dtype bf16 --checkpointing --attention flash`, of one device.

{_table(heads, rows)}

What can explain the differences: the published programs keep adapters, gradients and AdamW's moments in bfloat16
(fsdp_qlora) or divide them among the devices, where this suite keeps them whole and in float32. Their figures are of
what the allocator has *reserved*, cached blocks included, or do not say; the estimate is of live tensors. Some keep
the constants of 4-bit weights whole on each device. No GPU was here to measure.
"""


def _kind(kind: dict[str, int]) -> str:
    return "2 with the whole network" if "data" in kind else "2 shards"


def _differences(one: Result, two: Result) -> list[str]:
    if two.refused:
        return ["refused", *["—"] * 5] if not one.refused else ["does not suit the network", *["—"] * 5]
    pairs = {
        "gradients": [(one.gradients[k], two.gradients[k]) for k in one.gradients],
        "state": [(one.state[k], two.state[k]) for k in one.state],
        "logits": [(one.logits, two.logits)],
    }
    worst = [max(float((a.double() - b.double()).abs().max()) for a, b in p) for p in pairs.values()]  # type: ignore[union-attr]
    loss = max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True))
    same = all(bool((t == two.codes[name]).all()) for name, t in one.codes.items())
    codes = ("equal" if same else "**differ**") if one.codes else "—"
    return [f"{loss:.0e}", *(f"{w:.0e}" for w in worst), codes, f"{one.bytes:,} / {two.bytes:,}"]


def _bytes(model: str) -> Iterator[list[str]]:
    for method in METHODS[model]:
        mapping = {
            "name": "bytes", "backbone": model, "device": "cpu", "methods": [method], "reference": method,
            "tasks": [{"task": TASKS[model], "limit_train": 200, "limit_test": 8, "limit_validation": 8}],
            "parallel": {"shards": 2},
            "budget": {"steps": 3, "batch_size": 8, "max_length": 64},
        }  # fmt: skip
        plan = peftbench.plan(mapping)
        planned = plan.prepared.planned[0]
        session = Session("cpu", threads=2)
        measured = session.execute(planned.spec)["memory"]["ranks"]
        shared, alone = (_predicted(session, spec, planned.task) for spec in (planned.spec, _alone(planned.spec)))
        numbers = [*measured, shared, shared - measured[0], alone]
        yield [model, method, *(f"{n:,}" for n in numbers)]
        print(f"{model} {method}: {numbers}", file=sys.stderr)


def _alone(spec: RunSpec) -> RunSpec:
    from dataclasses import replace

    return replace(spec, train=replace(spec.train, shards=1))


def _predicted(session: Session, spec: RunSpec, task: Any) -> int:
    dataset = session.dataset(spec.task)
    backbone = session.backbone(spec.backbone, dataset)
    data = session.encode(dataset, backbone, spec.train.max_length)["train"]
    order = batches.order(data.lengths, spec.train.batch_size, spec.train.steps, devices.stream("order", *spec.axes))
    layout = run_peak.batch_layout(data, order, backbone.tokenizer.pad_token_id, 1)
    return int(
        run_peak.peak({"spec": as_dict(spec), "kind": task.kind, "labels": task.labels, "batch": layout})["bytes"]
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    align = ("left", "left", *("right",) * (len(heads) - 2))
    return tabulate(rows, headers=heads, tablefmt="pipe", colalign=align, disable_numparse=True)


if __name__ == "__main__":
    main()
