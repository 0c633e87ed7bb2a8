"""peftbench: a benchmark of parameter-efficient fine-tuning that can be trusted.

    plan = peftbench.plan("quickstart", only=["method=lora", "method=full"])
    records = peftbench.run(plan, "results/mine")
    report = peftbench.report(records)

`api` documents these functions.
"""

import os

import peftbench.cli.search_path  # first: no other import may find a file of the working directory

# Four functions bear the names of packages. Importing a package sets its name here, once; so the packages come first.
import peftbench.plan
import peftbench.records
import peftbench.report
import peftbench.run  # noqa: F401
from peftbench.api import Interrupted, Plan, Records, Report, attach, plan, records, report, run

__version__ = "0.1.0"
__all__ = ["Interrupted", "Plan", "Records", "Report", "attach", "plan", "records", "report", "run"]
# The module paths that plugins used in release 0.1:
__path__.append(os.path.join(os.path.dirname(__file__), "method", "old_paths"))
