"""Names as users write them: in six scripts, and with every character that means something to some medium."""

from __future__ import annotations

SCRIPTS = {
    "Latin": "Übermäßig naïve çà ł",
    "Greek": "ρυθμός ε",
    "Cyrillic": "Жёлтый",
    "Arabic": "دقة عالية",
    "Chinese": "漢字 分類",
    "emoji": "😀 🎉 👩‍💻",
}
SPECIAL = (
    "_begins $_{ and $x^2$ 50% R&D #1",
    r"{a}\b^c~d \n <b>bold</b> a<30 a>30",
    "![i](http://x.y/z.png) [l](http://x.y)",
    "|pipe| *star* `code` __init__ **b**",
    "=1+1",
    "+sum",
    "-2+3",
    "@SUM(A1) \"q\" 'a' ;,--",
    "two\nlines\tand \x1b[31mred\x1b[0m",
    "  [x] www.x.org :tada: &amp; ~~no~~",
)
LABELS = (*SCRIPTS.values(), *SPECIAL)
TASKS = ("local/age<30 漢字 $y_", "local/age>30 漢字 $y_")
EXPERIMENT = "$exp_ 漢 <b>"
