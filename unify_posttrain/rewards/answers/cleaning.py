r"""What is layout in an answer goes, what has a meaning stays: the text that the lexer reads.

    \displaystyle\textcolor{red}{\dfrac{1}{2}}\, \mathrm{cm}   ->   \frac{1}{2} \text{cm}
    −2√5                                                       ->   -2\sqrt{5}

Every rule takes one pass. No letter, digit, sign, prime or index is dropped here, and blanks stay blanks: `3 4` is no `34`.
"""

from __future__ import annotations

import re
import unicodedata

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"))
_CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ",
    "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": "/", "⁄": "/", "∕": "/", "∪": r"\cup ", "∩": r"\cap ",
    "∖": r"\setminus ",
    "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ",
    "≈": r"\approx ",
    "≡": r"\equiv ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∠": r"\angle ",
    "△": r"\triangle ",
    "…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "’": "'", "‘": "`", "″": "''", "“": '"', "”": '"', "√": r"\sqrt ",
    "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
    "∑": r"\sum ", "∏": r"\prod ", "→": r"\to ", "∨": r"\lor ", "∧": r"\land ", "¢": r" \text{cents}", "∣": "|", "‖": r"\|",
    "∆": r"\Delta ", "µ": r"\mu ",
    "€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "₹": r"\rupee ",
})  # fmt: skip
_OVERLINE = "\u0305"
_OVERLINED = re.compile(rf"(?:\d{_OVERLINE})+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₒₓₙₘₖᵢⱼ", "0123456789+-aeoxnmkij")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₒₓₙₘₖᵢⱼ]+")
_GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau phi chi psi omega
"""
_GREEK = {
    unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}"): f"\\{name if case == 'SMALL' else name.capitalize()} "
    for case in ("SMALL", "CAPITAL")
    for name in _GREEK_NAMES.split()
}
_GREEK["λ"], _GREEK["Λ"] = r"\lambda ", r"\Lambda "
_CHARACTERS.update({ord(letter): command for letter, command in _GREEK.items()})

_END = r"(?![a-zA-Z])"
_SIZE = re.compile(
    rf"\\(?:left|right|middle|[bB]igg?[lrm]?){_END}(?:\.(?!\d))?"
)  # before a bracket; a point is one that is not shown
_LAYOUT = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|small|normalsize|large|Large|LARGE|huge|Huge"
    rf"|bf|it|rm|sf|tt|bfseries|itshape|centering|noindent|mathstrut|strut|nonumber|hfill|protect){_END}"
)
_DOLLAR = re.compile(r"(?:(?<!\\)|(?<=\\\\))\$")  # one that is no \$
_NARROW = re.compile(rf"\\!|\\(?:negthinspace|mkern-?\d+mu){_END}")
_WIDE = re.compile(rf"\\q?quad{_END}")
_BLANK = re.compile(rf"(?<!\\)\\[,;:> ]|(?<!\\)~|\\(?:thinspace|enspace|space|hspace\*?\{{[^{{}}]*\}}){_END}")
_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "leqslant": "le", "geqslant": "ge",
    "lt": "<", "gt": ">",
    "neq": "ne", "lbrace": "{", "rbrace": "}", "times": "cdot", "ast": "cdot", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "lVert": r"\|", "rVert": r"\|", "Vert": r"\|", "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots",
    "to": "rightarrow", "dbinom": "binom", "tbinom": "binom", "colon": ":", "approxeq": "approx", "simeq": "approx",
    "degree": r"^\circ ",
    "degrees": r"^\circ ", "vee": "lor", "wedge": "land", "backslash": "setminus", "smallsetminus": "setminus", "bar": "overline",
    "varphi": "phi", "varepsilon": "epsilon", "textdollar": r"\$", "texteuro": "euro", "pound": "pounds", "prime": "'",
    "lbrack": "[",
    "rbrack": "]", "lparen": "(", "rparen": ")", "ne": "ne", "not=": "ne", "cup": "cup", "bigcup": "cup", "bigcap": "cap",
    "widehat": "hat",
    "widetilde": "tilde", "overrightarrow": "vec", "arctg": "arctan", "tg": "tan", "ctg": "cot",
}  # fmt: skip
_PLAIN = frozenset({"<", ">", "|", ":", "[", "]", "(", ")", "'", r"\|", r"^\circ ", r"\$"})  # no command stands for these
_COMMAND = re.compile("|".join(rf"\\{name}{_END}" for name in sorted(_SYNONYMS, key=len, reverse=True)))
_PAINT = re.compile(
    r"\\color\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}|\\textcolor\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}|\\colorbox\s*\{[^{}]*\}"
)
_SHOWN = re.compile(
    rf"\\(?:boxed|fbox|underline|uline|mathbf|mathit|mathsf|mathtt|mathcal|bm|boldsymbol|pmb|ensuremath|cancel|tag\*?|emph)"
    rf"{_END}\s*(?=\{{)"
)
_TEXT = re.compile(rf"\\(?:text(?:bf|it|rm|sf|tt|normal|sc|up)?|mbox|hbox|mathrm|operatorname\*?|textup){_END}\s*(?=\{{)")
_MARKDOWN = re.compile(r"(\*\*|__|\*|_)(?P<inside>.+)\1", re.DOTALL)
_BRACED = re.compile(r"\{(?P<inside>[^{},]*)\}")
_QUOTED = re.compile(r"(?:\"|``|''|`)(?P<inside>[^\"`']*)(?:\"|''|'|`)")
_DELIMITERS = re.compile(r"^\\[\[(]|\\[\])]$")
_TAIL = re.compile(r"(?:[\s.,;:]|\\\\|(?<=\d)\\ldots|\\text\{[\s.,;:]*\})+$")
_ROOT_SIGN = re.compile(r"\\sqrt(\[[34]\])?\s+(\d+(?:\.\d+)?|[a-zA-Z])(?!\s*\{)")
# A brace on the left alone, as around a system of equations.
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\{(?:array|aligned)\}(?:\s*\{[lcr|\s]*\})?(.*)\\end\{(?:array|aligned)\}\s*\\right\s*\.?", re.DOTALL
)
_PRIMED = re.compile(r"\^\s*(?:\{\s*)?('(?:\s*')*)(?:\s*\})?")
_MODULO = re.compile(r"\(\s*(?:\\text\s*\{\s*mod\s*\}|mod)\s*([^()]*)\)|\\pmod\s*(?=\d)(\d+)")
_TH = r"(?:st|nd|rd|th)"
_ORDINAL = re.compile(
    rf"(?<=\d)\s*(?:\^\s*\{{\s*(?:\\text\s*\{{\s*{_TH}\s*\}}|{_TH})\s*\}}|\^?\s*\\text\s*\{{\s*{_TH}\s*\}}|{_TH}(?![a-zA-Z]))"
)
_DIGITS_GROUPED = re.compile(r"(?<![\d.,'])\d{1,3}(?:(?:\.\d{3}){2,}|(?:'\d{3})+)(?![\d.,'])")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}")
_CHOSEN = re.compile(r"(?:\{\s*\}\s*)?[\^_]\s*\{?(\d+)\}?\s*(?:C|\\text\{C\})\s*_\s*\{?(\d+)\}?")  # {}^{10}C_3
_UNIT_FRACTION = re.compile(r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}")
# What a parameter may be, behind an answer in which it stands: k \in \mathbb{Z}, for some constant c.
_CONDITION = re.compile(
    r"(?<=[^\s,;(])\s*(?:[,;]\s*(?:\\text\{\s*(?:for|where|with)?\s*\}\s*)?|\(\s*|\\text\{\s*(?:for|where|with)\s*\}\s*)[a-zA-Z]\s*\\in\s*"
    r"(?:\\mathbb\{?[ZN]\}?)\s*\)?\s*$|(?<=\S)[,;]?\s*\\text\{\s*,?\s*(?:for|where|with)\s(?:all|any|some|every)?[^{}]*\}[^{}]*(?:\{[^{}]*\}[^{}]*)?$"
)
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_INTERVAL = re.compile(
    r"([\[\](])([^\[\](),;{}]*(?:\{[^{}]*\}[^\[\](),;{}]*){0,4})([,;])([^\[\](),;{}]*(?:\{[^{}]*\}[^\[\](),;{}]*){0,4})([\[\])])"
)
_VULGAR = {chr(code) for code in range(0xBC, 0xBF)} | {chr(code) for code in range(0x2150, 0x215F)} | {"↉"}


def clean(text: str) -> str:
    r"""An answer without layout.

    >>> clean(r"\left(\dfrac12,\; 3\right).")
    '(\\frac12,  3)'
    """
    text = _uncovered(_unicode(text))
    text = _SYSTEM.sub(r"\\begin{cases}\1\\end{cases}", text)
    text = _COMMAND.sub(_synonym, text)
    text = _LAYOUT.sub(" ", _SIZE.sub("", text))
    text = _WIDE.sub("\u2003", _BLANK.sub(" ", _NARROW.sub("", text)))
    text = _SHOWN.sub("", _PAINT.sub("", text))
    text = _TEXT.sub(r"\\text", text).replace("{,}", ",")
    text = _MODULO.sub(
        lambda match: rf"\pmod{{{match[1] or match[2]}}}", _PRIMED.sub(lambda match: match[1].replace(" ", ""), text)
    )
    text = _DIGITS_GROUPED.sub(lambda match: re.sub(r"[.']", "", match[0]), _ORDINAL.sub("", text))
    text = _UNIT_FRACTION.sub(r"\\text{\1/\2}", _CHOSEN.sub(_binomial, _PHANTOM.sub("", text)))
    text = _CONDITION.sub("", text)
    text = _uncovered(text).replace("**", "^").replace("{:}", ":")
    return _INTERVAL.sub(_english, _TIMES_TEN.sub(r"\\cdot ", text))


def _binomial(match: re.Match[str]) -> str:
    return rf"\binom{{{match[1]}}}{{{match[2]}}}"


def _uncovered(text: str) -> str:
    """Without what stands around the whole, in any order: dollars, stars, quotes, braces, a full stop."""
    for _ in range(6):
        before = text
        text = _without_tail(_dollars(_DELIMITERS.sub("", text.strip()).strip()).strip())
        for cover in (_MARKDOWN, _QUOTED, _BRACED):
            if match := cover.fullmatch(text):
                text = match["inside"]
        if text == before:
            break
    return text


def _english(match: re.Match[str]) -> str:
    """]2,5[ is (2,5)."""
    first, last = match[1], match[5]
    if first != "]" and last != "[":
        return match[0]
    return "".join(("(" if first == "]" else first, match[2], match[3], match[4], ")" if last == "[" else last))


def _unicode(text: str) -> str:
    text = text.translate(INVISIBLE)
    if text.isascii():
        return text
    text = _OVERLINED.sub(lambda match: rf"\overline{{{match[0].replace(_OVERLINE, '')}}}", text)
    text = _RAISED.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = "".join(_vulgar(character) if character in _VULGAR else character for character in text)
    text = "".join(
        unicodedata.normalize("NFKC", c) if "\uff00" <= c <= "\uffef" or "\U0001d400" <= c <= "\U0001d7ff" else c for c in text
    )
    text = "".join(" " if c != "\n" and unicodedata.category(c) == "Zs" else c for c in text).translate(_CHARACTERS)
    return _ROOT_SIGN.sub(lambda match: rf"\sqrt{match[1] or ''}{{{match[2]}}}", text)


def _vulgar(character: str) -> str:
    above, _, below = unicodedata.normalize("NFKD", character).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _synonym(match: re.Match[str]) -> str:
    name = _SYNONYMS[match[0][1:]]
    return name if name in _PLAIN else rf"\{name}"


def _dollars(text: str) -> str:
    """Dollar signs in pairs are the ends of mathematics; one alone, or before a backslash, is money."""
    bare = _DOLLAR.findall(text)
    if len(bare) == 1:
        return _DOLLAR.sub(r"\\$", text)
    return _DOLLAR.sub(" ", text).strip()


def _without_tail(text: str) -> str:
    """Without a full stop, a line break or dots behind it; dots that go on with decimals or a list stay."""
    text = re.sub(r"(?<=\\ldots)\.$", "", text)
    if re.search(r"\.\d*\\ldots$|\.\d+\.\.\.$|[,:]\s*(?:\\ldots|\.\.\.)$", text):
        return text
    match = _TAIL.search(text[-80:])
    if match is None:
        return text
    stem = text[: len(text) - (len(text[-80:]) - match.start())]
    return stem.rstrip("\\ \n") if stem.endswith("\\") else stem
