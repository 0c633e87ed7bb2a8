"""Mistakes that people make in fine-tuning methods, planted on purpose, and the promises that must catch each.

A bug is a small subclass of a real method, or a patch of the engine while a real method runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import planted_engine as engine
import planted_layers as layers
import planted_methods as methods
import planted_settings as settings
import pytest

from peftbench.method.base import Method
from peftbench.methods.adapter import BottleneckAdapter
from peftbench.methods.full import Full
from peftbench.methods.lora import LoRA
from peftbench.methods.prefix import PrefixTuning
from peftbench.verify.contract import Case
from peftbench.verify.contract.variants import ROLES

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """`what` is wrong, in which method, and the names of the promises that catch it."""

    what: str
    method: type[Method]
    caught_by: tuple[str, ...]
    network: str = "tiny-encoder"
    hyper: Mapping[str, Any] = field(default_factory=dict)
    patch: Patch = lambda _: None

    @property
    def case(self) -> Case:
        return Case(self.method, self.hyper, self.network)


BUGS = [
    Bug("the fold forgets the scale", layers.with_layer(layers.ScaleForgottenInFold), ("merging_computes_the_same",)),
    Bug(
        "the fold scales by alpha, not alpha / r",
        layers.with_layer(layers.AlphaWithoutRankInFold),
        ("merging_computes_the_same",),
    ),
    Bug(
        "the fold adds the transposed update",
        layers.with_layer(layers.UpdateTransposedInFold),
        ("merging_computes_the_same",),
    ),
    Bug("the fold reads A transposed", layers.with_layer(layers.ATransposedInFold), ("merging_computes_the_same",)),
    Bug("the fold loses the bias", layers.with_layer(layers.BiasLostInFold), ("merging_computes_the_same",)),
    Bug("the fold writes into the base", layers.with_layer(layers.FoldsIntoTheBase), ("merging_computes_the_same",)),
    Bug(
        "A is ignored", layers.with_layer(layers.IgnoresA), ("every_trained_tensor_learns", "merging_computes_the_same")
    ),
    Bug("B is not zero at the start", layers.with_layer(layers.NotZeroAtTheStart), ("starts_as_it_claims",)),
    Bug("A and B are both zero", layers.with_layer(layers.BothFactorsZero), ("every_trained_tensor_learns",)),
    Bug("dropout at evaluation", layers.with_layer(layers.DropoutAtEvaluation), ("evaluation_is_deterministic",)),
    Bug("random numbers drawn in forward", layers.with_layer(layers.DrawsInForward), ("evaluation_is_deterministic",)),
    Bug("the adapter has the base's type", layers.with_layer(layers.AdapterInTheBasesType), ("bfloat16_stays_close",)),
    Bug(
        "float32 comes out under autocast",
        layers.with_layer(layers.FloatComesOut),
        ("bfloat16_stays_close",),
        hyper={"roles": ROLES},
    ),
    Bug(
        "the sentence's mean is subtracted",
        layers.with_layer(layers.AveragesOverTheSentence),
        ("padding_changes_nothing", "the_future_changes_nothing", "cached_generation_is_the_same"),
        "tiny-decoder",
    ),
    Bug("examples are compared", layers.with_layer(layers.ComparesTheExamples), ("evaluation_is_deterministic",)),
    Bug(
        "the first token is special",
        layers.with_layer(layers.FirstTokenIsSpecial),
        ("cached_generation_is_the_same",),
        "tiny-decoder",
    ),
    Bug("forward counts its calls", layers.with_layer(layers.CountsItsCalls), ("checkpointing_keeps_the_gradients",)),
    Bug("a random tensor is no buffer", layers.with_layer(layers.UnsavedProjection), ("saving_and_loading_is_exact",)),
    Bug(
        "a trained tensor is no Parameter",
        layers.with_layer(layers.UnsavedTrainedTensor),
        ("state_is_what_training_changes",),
    ),
    Bug(
        "a product is kept and goes stale",
        layers.with_layer(layers.RemembersTheUpdate),
        ("swapping_adapters_is_exact",),
    ),
    Bug(
        "a tensor is not used",
        layers.with_layer(layers.UnusedTensor),
        ("every_trained_tensor_learns", "count_equals_the_formula"),
    ),
    Bug("the seed is the system's", layers.with_layer(layers.SystemEntropy), ("two_runs_are_identical",)),
    Bug("steps are counted in an iterator", methods.CountsStepsInAnIterator, ("resuming_changes_nothing",)),
    Bug("layers share a tensor", methods.SharedFactor, ("count_equals_the_formula",)),
    Bug("layers share memory", methods.SharedMemory, ("state_is_what_training_changes",)),
    Bug("the base trains", methods.TrainsTheBase, ("only_declared_tensors_move", "state_is_what_training_changes")),
    Bug("a gradient leaks into the base", methods.LeaksAGradient, ("only_declared_tensors_move",)),
    Bug("the optimiser lacks a tensor", methods.ForgetsBInTheOptimizer, ("every_trained_tensor_learns",)),
    Bug("the base drifts", methods.DriftingBase, ("only_declared_tensors_move", "saving_and_loading_is_exact")),
    Bug("the network is patched past the edit", methods.PatchesTheNetwork, ("undo_is_exact",)),
    Bug("the formula forgets the biases", methods.ForgetsTheBiases, ("count_equals_the_formula",)),
    Bug("finish rounds", methods.RoundsWhenItFinishes, ("finishing_changes_nothing",)),
    Bug("finish is not idempotent", methods.FinishesTwice, ("finishing_changes_nothing",)),
    Bug("there is no card", methods.NoCard, ("describes_itself",)),
    Bug("the size knob is no field", methods.WrongKnob, ("describes_itself",)),
    Bug("a field has no description", methods.UndescribedField, ("describes_itself",)),
    Bug("the search space is out of range", methods.SearchesOutOfRange, ("describes_itself",)),
    Bug("the search space has one rate", methods.SearchesOneRate, ("describes_itself",)),
    Bug(
        "undo forgets a module", LoRA, ("undo_is_exact", "two_runs_are_identical"), patch=engine.undo_forgets_one_module
    ),
    Bug("undo forgets a thawed tensor", Full, ("undo_is_exact",), patch=engine.undo_forgets_the_thawed),
    Bug("undo leaves a hook", BottleneckAdapter, ("undo_is_exact",), patch=engine.undo_leaves_a_hook),
    Bug("undo keeps the attention", PrefixTuning, ("undo_is_exact",), patch=engine.undo_keeps_the_attention),
    Bug(
        "the state lacks the biases",
        BottleneckAdapter,
        ("state_is_what_training_changes", "saving_and_loading_is_exact"),
        patch=engine.state_without_biases,
    ),
    Bug("load takes what fits", LoRA, ("foreign_adapters_are_refused",), patch=engine.load_takes_what_fits),
    Bug("load refuses too late", LoRA, ("foreign_adapters_are_refused",), patch=engine.load_refuses_too_late),
    Bug("unmerging subtracts", LoRA, ("merging_computes_the_same",), patch=engine.unmerging_by_arithmetic),
    Bug(
        "a refused merge is left half done",
        PrefixTuning,
        ("merging_computes_the_same",),
        patch=engine.a_merge_refused_half_way,
    ),
    Bug(
        "the prefix's mask is off by one",
        PrefixTuning,
        ("padding_changes_nothing", "the_future_changes_nothing", "cached_generation_is_the_same"),
        "tiny-decoder",
        patch=engine.prefix_mask_off_by_one,
    ),
    Bug(
        "the prefix's mask is on the wrong side",
        PrefixTuning,
        ("padding_changes_nothing",),
        patch=engine.prefix_mask_on_the_wrong_side,
    ),
    Bug(
        "the prefix is masked away",
        PrefixTuning,
        ("every_trained_tensor_learns",),
        patch=engine.prefix_hidden_from_every_query,
    ),
    Bug("the prefix drops the mask", PrefixTuning, ("padding_changes_nothing",), patch=engine.prefix_without_a_mask),
    Bug(
        "the prefix is lost with a cache",
        PrefixTuning,
        ("cached_generation_is_the_same",),
        "tiny-decoder",
        patch=engine.prefix_only_for_whole_prompts,
    ),
    Bug(
        "an adapter sees other examples",
        BottleneckAdapter,
        ("evaluation_is_deterministic",),
        patch=engine.blocks_mix_the_examples,
    ),
    Bug(
        "the fold knows one rank",
        layers.with_layer(settings.FoldsAtTheDefaultRank),
        ("merging_computes_the_same",),
        hyper={"rank": 2},
    ),
    Bug(
        "its own dropout at evaluation",
        layers.with_layer(settings.DropsAtEvaluation),
        ("evaluation_is_deterministic",),
        hyper={"dropout": 0.5},
    ),
    Bug(
        "finish swaps keys and values",
        settings.SwapsTheParts,
        ("finishing_changes_nothing",),
        hyper={"reparametrise": True},
    ),
    Bug(
        "an adapter looks ahead",
        settings.ParallelLooksAhead,
        ("padding_changes_nothing", "the_future_changes_nothing", "cached_generation_is_the_same"),
        "tiny-decoder",
        {"placement": "parallel"},
    ),
]
