"""peftbench from Python: plan an experiment, run it, report it. The command line goes through these functions.

    import peftbench

    plan = peftbench.plan("quickstart", only=["method=lora", "method=full"])
    records = peftbench.run(plan, "results/mine")
    report = peftbench.report(records)
    print(report.table())
    report.frame()                      # pandas: a row a configuration and task

Nothing heavy is imported before a function needs it: torch by `run` in its worker processes and by `attach`, pandas by
`frame`.
"""

from peftbench.api.networks import attach
from peftbench.api.plans import Plan, plan
from peftbench.api.record_sets import Interrupted, Records, records
from peftbench.api.reports import Report, report
from peftbench.api.runs import run

__all__ = ["Interrupted", "Plan", "Records", "Report", "attach", "plan", "records", "report", "run"]
