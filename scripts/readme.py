"""Put the best rows over the tasks and a figure of embedded_small into README.md; run it after the records change.

python scripts/readme.py
"""

from __future__ import annotations

from pathlib import Path

from peftbench.report import assemble

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "reference" / "embedded_small"
BEGIN, END = "<!-- embedded_small: made by scripts/readme.py -->", "<!-- embedded_small ends -->"
FIGURE = "embedded_small--average--summary.png"
ROWS = 8  # the best by score


def section() -> str:
    """What stands between the two markers."""
    figure = (RESULTS / "report" / "figures" / FIGURE).relative_to(ROOT).as_posix()
    table = f"```text\n{best(assemble.average_table(RESULTS))}```"
    return f"{BEGIN}\n{table}\n\n![Score and cost over four tasks, relative to full fine-tuning]({figure})\n{END}"


def best(table: str) -> str:
    """The table with its best rows by score, and where the others are."""
    title, header, rule, *rest = table.splitlines()
    rows = sorted((line for line in rest if not line.startswith(("*", " "))), key=lambda line: -float(line.split()[1]))
    left = len(rows) - ROWS
    note = f"* The best {ROWS} by score, averaged over four tasks; {left} more and all notes stand in the report."
    return "\n".join([title, header, rule, *rows[:ROWS], note]) + "\n"


def replaced(text: str) -> str:
    """README's text with the section as the records have it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section() + after


if __name__ == "__main__":
    assemble.write(RESULTS)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text()))
