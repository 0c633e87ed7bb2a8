"""peftbench from Python, in two parts: a comparison, and one method on a network in memory. Takes a minute.

python examples/notebook.py
"""

from transformers import AutoModelForSequenceClassification, AutoTokenizer

import peftbench
from peftbench.backbones.source import locate

# A comparison: the table that `peftbench run quickstart --only ... --set ...` prints, and the same as a data frame.
plan = peftbench.plan(
    "quickstart", only=["method=full", "method=lora", "task=embedded/movie_sentiment"],
    overrides=["budget.steps=12", "profile=false"],
)  # fmt: skip
records = peftbench.run(plan, "results/notebook", progress=True)
report = peftbench.report(records)
print(report.table())
print(report.frame()[["task", "method", "mean", "n", "trainable"]])

# One method on a network that is already in memory.
place = locate("minilm-l6")
tokenizer = AutoTokenizer.from_pretrained(place)
net = AutoModelForSequenceClassification.from_pretrained(place, num_labels=2)
adapter = peftbench.attach("lora", net, tokenizer, rank=8)
print("losses", adapter.train(["a fine film", "a dull film"] * 8, [1, 0] * 8, steps=10, lr=5e-3, batch_size=8))
adapter.merge()
print("predictions, merged", adapter.predict(["fine", "dull"]))
adapter.undo()
