"""One run on several devices: `parallel: {data: N}` or `{shards: N}`.

Each of N processes, a *rank*, has a device and takes its part of every batch; the loss and the gradients are the sums
over the ranks, so that N ranks compute what one process computes. With `data` every rank holds the whole network. With
`shards` torch's `fully_shard` (FSDP2) keeps 1/N of the base on each rank, frozen, quantised or trained, and gathers one
block at a time; what a method adds, and the task head, is small and stays whole on each rank.

    launch.py   in the process of the run: starts the ranks, follows them, ends them
    rank.py     in each rank: its session, and the run
    ranks.py    what ranks say to each other
    shards.py   the network in shards, and the checks that it is
"""
