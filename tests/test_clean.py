"""Cleaning removes the warts of shop texts and keeps the rest."""

import pytest

from recbole_llm.data.prepare.clean import clean, values

CASES = {
    "plain text": ("A plain title, 100% of it", "A plain title, 100% of it"),
    "entities": (
        "Tom &amp; Jerry&#39;s &quot;house&quot; 3&nbsp;cm &eacute;",
        'Tom & Jerry\'s "house" 3 cm é',
    ),
    "entities of entities": ("Q&amp;amp;A &amp;quot;x&amp;quot;", 'Q&A "x"'),
    "tags": ("A <b>bold</b> word<br />and <a href='x'>link</a>", "A bold word and link"),
    "tags that were escaped": ("&lt;b&gt;bold&lt;/b&gt; word", "bold word"),
    "signs that are no tags": ("I <3 dogs, 5 < 6 > 4", "I <3 dogs, 5 < 6 > 4"),
    "closing tags of nothing": ("Dogs</span></span></span>", "Dogs"),
    "comments": ("before <!-- not shown --> after <!-- cut", "before after"),
    "scripts": ("before <script type='x'>var a = 1;</script> after", "before after"),
    "style sheets": ("before <STYLE>.a{b:c}</STYLE > after", "before after"),
    "a script that is cut": ("before <script>var a = 1;", "before"),
    "a page's timer": ("var aPageStart = (new Date()).getTime();", ""),
    "the end of a script": ("display none });", ""),
    "a script's first words": ("window.ue = 1", ""),
    "other first words": ("document.title", ""),
    "a shop's own": ("P.when('A').execute", ""),
    "a clock": ("new Date().getTime", ""),
    "style rules": (
        ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{background-color:#fffbf3}",
        "",
    ),
    "braces that are text": ("Set {red, blue}", "Set {red, blue}"),
    "a word of programmers": (
        "Pump with memory function (loud) and 2nd function(s)",
        "Pump with memory function (loud) and 2nd function(s)",
    ),
    "a script without its tag": ("A function (a, b) {return a}", ""),
    "braces with a colon": ("Set {size: L}", "Set {size: L}"),
    "a rule of several properties": ("td {color: red; border: 0}", ""),
    "white space": ("  a\tb\r\n c  d\u2028e  ", "a b c d e"),
    "control characters": ("a\x00b\x1fc\x7fd\x85e", "a b c d e"),
    "invisible characters": ("\ufeffdog\u200bfood\u00ad", "dogfood"),
    "emoji": ("👩\u200d🍳 cook", "👩\u200d🍳 cook"),
    "half a character": ("a\ud83db", "a b"),
    "a quote in front": ('"Apple" juice', '“Apple" juice'),
    "nothing": (" \n\t", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_clean(case):
    raw, expected = CASES[case]
    assert clean(raw) == expected
    assert clean(expected) == expected, "once is enough"


def test_ascii_only():
    assert clean("Crème brûlée – 5 € 🍎 ok", ascii_only=True) == "Cr me br l e 5 ok"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, []),
        ("", []),
        ("null", []),
        ('"a"', ["a"]),
        ('["a", "", 3, null, true, {"b": 1}]', ["a", "", "3"]),
        ('{"a": 1}', []),
        ("no json", ["no json"]),
    ],
)
def test_values(cell, expected):
    assert values(cell) == expected
