"""The largest values that an experiment may have: far above what any cluster can run, and far below what would fill the
memory or the time of planning itself.

Every message about a value beyond a limit says the limit. docs/experiment-files.md lists them.
"""

from __future__ import annotations

from peftbench.records import ranges

RUNS = 100_000  # of a grid: configurations x tasks x (seeds + trials)
SEEDS = ranges.SEEDS  # of a row
LOOKS = ranges.LOOKS  # at the seeds so far
CLAIMS = 100
MARGIN = 10**6  # the largest difference that does not matter
LEAST_MARGIN = ranges.LEAST_MARGIN
TRIALS = 1_000  # of each configuration
EXTENSIONS = 10  # of a search space
STEPS = 10**9  # optimiser steps of a run, and steps between evaluations
TOKENS = 10**15  # training tokens of a run
SECONDS = 10**8  # of a run: three years
BATCH_SIZE = 10**6  # examples of an optimiser step
LENGTH = 10**7  # tokens of an example
MEMORY_BYTES = 10**15
PARAMETERS = 10**13  # trainable ones
TIMES_THE_NETWORK = 10  # parameters that a method may train, in those of the network that it changes
SMALL_NETWORK = 10**8  # parameters; a method may train ten times as many on every network that is smaller
SIZE_KNOB = 1 << 20  # above the ranks, widths and lengths of every network
HYPERPARAMETER = 2**31 - 1  # what every library takes as a whole number
SEED = 2**31 - 1  # of the first repetition
RATE = 10**6  # learning rates and weight decay
JOBS = 1_024  # worker processes of one machine
RANKS = 1_024  # processes that share a run
ROUNDS = 10**6  # timed ones, and those of warm-up
PROCESSES = 1_000  # that repeat a profile pass
AXIS = 100  # values of an axis
ROWS = 10**9  # of a split: more than fit into any memory
SHAPES = 100  # batches, or lengths, whose latency a profile pass measures
