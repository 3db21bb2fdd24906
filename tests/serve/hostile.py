"""Text that tries to become more than text, or to take a page's time."""

HOSTILE = """\
<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)><iframe src="javascript:alert(4)"></iframe>
[a](javascript:alert(5)) [b](data:text/html,<script>alert(6)</script>) [c](vbscript:x)
[d]( javascript:alert(7) ) [e](JaVaScRiPt:alert(8)) [f](java\tscript:alert(9)) [g](&#106;avascript:alert(10))
![pixel](https://evil.test/pixel.png) ![x](//evil.test/x.png) <https://evil.test/a"onclick=alert(11)> <javascript:alert(12)>
[good](https://example.org/a?b=1 "title<script>") **bold <b onmouseover=alert(13)>x</b>**

```html"><script>alert(14)</script>
<script>alert(15)</script>
```

| a | <script>alert(16)</script> |
|---|---|
| <img src=https://evil.test/t.png onerror=alert(17)> | `<script>alert(18)</script>` |

$$\\href{javascript:alert(19)}{x} <script>alert(20)</script>$$ and $<img src=x onerror=alert(21)>$
\\(\\url{javascript:alert(22)}\\)

<style>*{background:url(https://evil.test/s.png)}</style><link rel=stylesheet href=https://evil.test/c.css>
<base href=https://evil.test/><form action=https://evil.test/><input name=a></form>
<meta http-equiv=refresh content="0;url=https://evil.test/"><object data=https://evil.test/o></object>
&lt;script&gt;alert(23)&lt;/script&gt; &#x6A;avascript: \\u003cscript\\u003e
"""

LARGE = {  # 100 to 400 kB each
    "words": "word " * 40_000,
    "quotes in quotes": ">" * 20_000 + " deep",
    "items on a line": "- " * 20_000,
    "items in items": "".join(f"{' ' * (2 * n)}- x\n" for n in range(440)),
    "quoted items": "> - " * 20_000,
    "items": "1. x\n" * 40_000,
    "bold in italics": "**a *b " * 30_000,
    "stars": "*" * 200_000,
    "threes": "***a***" * 28_000,
    "underscores": "_a_" * 60_000,
    "tildes": "~~" * 100_000,
    "open brackets": "[" * 100_000,
    "half links": "[a](" * 50_000,
    "ends of links": "](" * 100_000,
    "half titles": '](a "' * 40_000,
    "half images": "![x](" * 40_000,
    "half addresses": "<http://" * 25_000,
    "addresses": "https://" * 25_000,
    "backticks": "`" * 99_999 + "x",
    "unlike backticks": "`a``b```c" * 22_000,
    "dollars": "$a" * 100_000,
    "half formulas": "\\(" * 100_000,
    "wide table": "|a" * 100_000 + "\n" + "|-" * 400,
    "long table": "a|b\n-|-\n" + "c|d\n" * 40_000,
    "blanks": "# " + " " * 200_000 + "x",
    "half fence": "```" + "a" * 200_000 + "`",
}
