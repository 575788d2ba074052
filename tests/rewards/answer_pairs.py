# ruff: noqa: E501 - a table
r"""Pairs of an answer and a ground truth with the verdict that a careful teacher would give, and why.

One group per reason; in a group, `RIGHT` pairs are equal and `WRONG` ones are not. The policy behind the verdicts:

- exact means exact: 0.333 is not 1/3, 3.14 is not pi, for the question did not ask for a decimal;
- the form does not matter (fraction, decimal, power, order of a sum), unless the form is the answer (an interval's ends, a tuple's order);
- a unit may be left away, since questions name it; a wrong unit is wrong;
- a percentage may be written as 50 %, 50 or 0.5: all three are read off such questions;
- two answers where one is asked for are wrong: hedging;
- text is compared without case, single letters with it.
"""

from __future__ import annotations

RIGHT, WRONG = True, False

PAIRS: dict[str, list[tuple[str, str, bool]]] = {
    "whole numbers": [
        ("7", "7", RIGHT), ("-3", "-3", RIGHT), ("+5", "5", RIGHT), ("007", "7", RIGHT), ("1000", "1,000", RIGHT), ("1{,}000", "1000", RIGHT),
        ("12,345,678", "12345678", RIGHT), ("5.0", "5", RIGHT), ("5.", "5", RIGHT), ("$42$", "42", RIGHT), (r"\(42\)", "42", RIGHT),
        (" 42 ", "42", RIGHT), ("−4", "-4", RIGHT), ("2^{10}", "1024", RIGHT), ("10^6", "1000000", RIGHT), ("5!", "120", RIGHT),
        (r"\binom{5}{2}", "10", RIGHT), (r"3\cdot 4", "12", RIGHT), (r"3\times4", "12", RIGHT), ("1e3", "1000", RIGHT),
        (r"1.5\times 10^{3}", "1500", RIGHT), (r"2\cdot10^{-2}", "0.02", RIGHT), (r"\sqrt{49}", "7", RIGHT), (r"\sqrt[3]{27}", "3", RIGHT),
        ("8", "7", WRONG), ("-7", "7", WRONG), ("70", "7", WRONG), ("7.0001", "7", WRONG), ("1,00", "100", WRONG), ("10001", "10,000", WRONG),
        ("1024", "2^{11}", WRONG), ("120", "6!", WRONG), ("6.999999", "7", WRONG), ("0", "-1", WRONG), ("", "7", WRONG), ("seven", "8", WRONG),
    ],
    "fractions": [
        ("2/3", r"\frac{2}{3}", RIGHT), (r"\frac{2}{3}", r"\frac{4}{6}", RIGHT), (r"\dfrac{2}{3}", r"\frac23", RIGHT), (r"\tfrac12", "0.5", RIGHT),
        (r"\frac12", "1/2", RIGHT), (r"\frac{1}2", ".5", RIGHT), ("-1/2", r"-\frac{1}{2}", RIGHT), (r"\frac{-1}{2}", r"-\frac{1}{2}", RIGHT),
        (r"3\frac{1}{2}", r"\frac{7}{2}", RIGHT), (r"3\frac12", "3.5", RIGHT), ("7/2", "3.5", RIGHT), ("0.25", r"\frac{1}{4}", RIGHT),
        ("1.25", "5/4", RIGHT), (r"\frac{100}{3}", "100/3", RIGHT), (r"\frac{ 3 }{ 4 }", "3/4", RIGHT), (r"{3}/{4}", r"\frac{3}{4}", RIGHT),
        (r"\frac{0}{5}", "0", RIGHT), (r"\cfrac{9}{3}", "3", RIGHT), ("½", "0.5", RIGHT),
        ("0.333", "1/3", WRONG), ("0.3333333", r"\frac{1}{3}", WRONG), ("0.67", r"\frac{2}{3}", WRONG), (r"\frac{3}{2}", r"\frac{2}{3}", WRONG),
        ("23", r"\frac{2}{3}", WRONG), ("2/3", "-2/3", WRONG), (r"\frac{1}{0}", "0", WRONG), (r"3\frac12", r"\frac{3}{2}", WRONG),
        ("1.24", "5/4", WRONG), ("33.33", r"\frac{100}{3}", WRONG), ("3:4", "4/3", WRONG), (r"\frac{1}{2}", r"\frac{1}{2}x", WRONG),
    ],
    "decimals": [
        ("0.5", ".5", RIGHT), ("0.50", "0.5", RIGHT), ("3.140", "3.14", RIGHT), ("-0.75", "-3/4", RIGHT), ("1,234.5", "1234.5", RIGHT),
        ("2.5e-1", "0.25", RIGHT), ("0.125", "1/8", RIGHT), (r"\$5.50", "5.5", RIGHT), ("100.00", "100", RIGHT), ("0.1", "1/10", RIGHT),
        ("3.14", "3.1", WRONG), ("3.14", r"\pi", WRONG), ("2.718", "e", WRONG), ("1.414", r"\sqrt{2}", WRONG), ("0.05", "0.5", WRONG),
        ("5.5", "55", WRONG), ("0.999", "1", WRONG), ("1.0000001", "1", WRONG),
    ],
    "roots and constants": [
        (r"\sqrt2", r"\sqrt{2}", RIGHT), (r"\frac{\sqrt{3}}{2}", r"\frac{3}{2\sqrt{3}}", RIGHT), (r"2\sqrt{3}", r"\sqrt{12}", RIGHT),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", RIGHT), ("sqrt(2)", r"\sqrt{2}", RIGHT), (r"5\sqrt 2", r"\sqrt{50}", RIGHT),
        (r"2^{1/2}", r"\sqrt{2}", RIGHT), (r"\sqrt{\frac{1}{4}}", "1/2", RIGHT), (r"1+\sqrt{2}", r"\sqrt{2}+1", RIGHT), ("√5", r"\sqrt{5}", RIGHT),
        (r"2\pi", r"\pi\cdot 2", RIGHT), (r"\frac{\pi}{2}", r"0.5\pi", RIGHT), ("2π", r"2\pi", RIGHT), (r"\pi^2", r"\pi\cdot\pi", RIGHT),
        (r"\frac{\sqrt{5}-1}{2}", r"\frac{-1+\sqrt{5}}{2}", RIGHT), (r"\log_2 8", "3", RIGHT), (r"\ln e", "1", RIGHT), (r"\frac{2\pi}{4}", r"\frac{\pi}{2}", RIGHT),
        (r"\sqrt{3}", r"\sqrt{2}", WRONG), (r"2\sqrt{3}", r"3\sqrt{2}", WRONG), (r"-\sqrt{2}", r"\sqrt{2}", WRONG), (r"\sqrt{2}", "2", WRONG),
        (r"\pi", r"2\pi", WRONG), (r"\pi", r"\frac{22}{7}", WRONG), (r"1-\sqrt{2}", r"\sqrt{2}-1", WRONG), (r"\sqrt[3]{2}", r"\sqrt{2}", WRONG),
        (r"\frac{\pi}{3}", r"\frac{\pi}{6}", WRONG), (r"\log_2 8", "2", WRONG),
    ],
    "algebra": [
        ("x+1", "1+x", RIGHT), ("(x+1)^2", "x^2+2x+1", RIGHT), ("2(x+3)", "2x+6", RIGHT), ("x(x-1)", "x^2-x", RIGHT), (r"\frac{x}{2}", r"0.5x", RIGHT),
        ("y=2x+1", "2x+1", RIGHT), ("f(x)=x^2", "x^2", RIGHT), (r"a_n=2n", "2n", RIGHT), (r"x^{2}", "x^2", RIGHT), (r"\frac{a+b}{c}", r"\frac{a}{c}+\frac{b}{c}", RIGHT),
        ("-(x-1)", "1-x", RIGHT), (r"\frac{x^2-1}{x-1}", "x+1", RIGHT), (r"2\cdot x", "2x", RIGHT), ("xy", "yx", RIGHT), (r"(a+b)(a-b)", "a^2-b^2", RIGHT),
        (r"\pi r^2", r"r^2\pi", RIGHT), (r"2^n\cdot 2", r"2^{n+1}", RIGHT), (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}", RIGHT),
        ("x+1", "x-1", WRONG), ("(x+1)^2", "x^2+1", WRONG), ("2x+3", "2x-3", WRONG), ("x^2", "x^3", WRONG), ("2x", "x", WRONG), ("x", "y", WRONG),
        ("y=2x+1", "2x-1", WRONG), (r"\frac{a}{b+c}", r"\frac{a}{b}+\frac{a}{c}", WRONG), ("x^2+2x", "x^2+2x+1", WRONG), ("X", "x", WRONG), ("ab", "a+b", WRONG),
        ("1-x", "x-1", WRONG), ("2n", "2n+1", WRONG), (r"\frac{n(n+1)}{2}", r"\frac{n(n-1)}{2}", WRONG),
    ],
    "complex numbers": [
        ("1+i", "i+1", RIGHT), (r"\frac{1}{2}+\frac{i}{2}", r"\frac{1+i}{2}", RIGHT), ("-i", "-i", RIGHT), ("2i", "i2", RIGHT), ("3-4i", "-4i+3", RIGHT),
        ("i", "-i", WRONG), ("1+i", "1-i", WRONG), ("2", "2i", WRONG), ("3+4i", "5", WRONG),
    ],
    "tuples and intervals": [
        ("(1,2)", r"\left(1,2\right)", RIGHT), ("(1, 2)", "(1,2)", RIGHT), (r"(\frac12,3)", "(0.5,3)", RIGHT), ("(1,2,3)", "(1,2,3)", RIGHT),
        ("[0,1)", r"\left[0,1\right)", RIGHT), (r"(-\infty,3]", r"(-\infty, 3]", RIGHT), (r"x\le3", r"(-\infty,3]", RIGHT), ("x>3", r"(3,\infty)", RIGHT),
        (r"1<x\le 2", "(1,2]", RIGHT), (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", RIGHT), (r"[-1,1]", r"[-1, 1]", RIGHT),
        ("1,2", "(1,2)", RIGHT), (r"(2, \sqrt{4})", "(2,2)", RIGHT), (r"\left(\frac{3}{2},-1\right)", "(1.5,-1)", RIGHT), ("x ≥ 0", r"[0,\infty)", RIGHT),
        (r"(0,1)∪(1,2)", r"(0,1)\cup(1,2)", RIGHT), ("((1,2),(3,4))", "((1,2),(3,4))", RIGHT), (r"(2\pi, 0)", r"(\pi\cdot2,0)", RIGHT),
        ("(2,1)", "(1,2)", WRONG), ("(1,2)", "(1,3)", WRONG), ("[0,1]", "[0,1)", WRONG), ("(0,1)", "[0,1]", WRONG), ("(1,2)", "(1,2,3)", WRONG),
        (r"(-\infty,3)", r"(-\infty,3]", WRONG), ("2,1", "(1,2)", WRONG), (r"x<3", r"(-\infty,3]", WRONG), (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1]\cup(2,\infty)", WRONG),
        (r"(3,\infty)", r"(-\infty,3)", WRONG), ("(1,2)", "3", WRONG), (r"(0,1)\cup(1,2)", "(0,2)", WRONG), ("(-1,2)", "(1,2)", WRONG), (r"1\le x\le 2", "(1,2]", WRONG),
    ],
    "sets and lists": [
        (r"\{1,2,3\}", r"\{3,2,1\}", RIGHT), ("1,2", "2,1", RIGHT), ("1, 2, 3", "1,2,3", RIGHT), (r"\{1,2\}", "1,2", RIGHT), ("x=1,2", "1,2", RIGHT),
        ("x=1 or x=2", "1,2", RIGHT), (r"1 \text{ and } 2", "2,1", RIGHT), (r"\pm 2", "-2,2", RIGHT), (r"1\pm\sqrt{2}", r"1-\sqrt{2},1+\sqrt{2}", RIGHT),
        (r"\{\frac12, 3\}", r"\{3, 0.5\}", RIGHT), (r"\emptyset", r"\varnothing", RIGHT), (r"\left\{1,2\right\}", r"\{1,2\}", RIGHT), (r"x=-1, x=4", "4,-1", RIGHT),
        ("(1,2),(3,4)", "(3,4),(1,2)", RIGHT), ("-1 or 1", r"\pm1", RIGHT),
        ("1,2", "1,3", WRONG), (r"\{1,2\}", r"\{1,2,3\}", WRONG), ("1,2,3", "1,2", WRONG), ("2", r"\pm 2", WRONG), ("5 or 6", "5", WRONG), ("5, 6", "5", WRONG),
        (r"\{1,1,2\}", r"\{1,2,2\}", WRONG), (r"\{1\}", r"\{2\}", WRONG), ("(1,2),(3,4)", "(2,1),(3,4)", WRONG), (r"\emptyset", "0", WRONG), ("1,2", "12", WRONG),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", RIGHT),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", RIGHT),
        (r"\begin{pmatrix}1/2\\0\end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\0\end{pmatrix}", RIGHT),
        (r"\begin{pmatrix}1\\2\\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", RIGHT),
        (r"\begin{pmatrix}\sqrt{4}&0\end{pmatrix}", r"\begin{pmatrix}2&0\end{pmatrix}", RIGHT),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", WRONG),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", WRONG),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", WRONG),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", WRONG),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2", WRONG),
    ],
    "units": [
        ("5 cm", "5", RIGHT), (r"5\text{ cm}", "5", RIGHT), (r"5 \mathrm{cm}", "5 cm", RIGHT), ("5", r"5\text{ meters}", RIGHT), ("12 dollars", "12", RIGHT),
        (r"\$12", "12", RIGHT), (r"90^\circ", "90", RIGHT), (r"90^{\circ}", r"90^\circ", RIGHT), ("90 degrees", r"90^\circ", RIGHT), ("90°", "90", RIGHT),
        ("3 hours", "3", RIGHT), (r"36\text{ square units}", "36", RIGHT), (r"10\text{ inches}", "10 in", RIGHT), ("1,200 km", "1200", RIGHT),
        (r"\frac{1}{2}\text{ mile}", "0.5", RIGHT), ("2.5 kg", "5/2", RIGHT), (r"25\text{ cm}^2", "25", RIGHT), ("7 days", "7", RIGHT), ("60 mph", "60", RIGHT),
        ("45 minutes", "45 min", RIGHT),
        ("5 cm", "5 m", WRONG), ("5 kg", "5 g", WRONG), ("6 cm", "5 cm", WRONG), ("5 hours", "5 minutes", WRONG), (r"5\text{ cm}", "6", WRONG),
        (r"25\text{ cm}^2", r"25\text{ cm}", WRONG), (r"90^\circ", "9", WRONG), ("12 dollars", "12 cents", WRONG), ("60 mph", "60 km/h", WRONG), ("2m", "2", WRONG),
    ],
    "percentages": [
        (r"50\%", "50", RIGHT), ("50%", "0.5", RIGHT), (r"50\%", r"\frac{1}{2}", RIGHT), ("0.07", r"7\%", RIGHT), ("7", r"7\%", RIGHT), ("12.5%", r"12.5\%", RIGHT),
        (r"25 \%", "25%", RIGHT), ("100%", "1", RIGHT), ("20 percent", "20%", RIGHT),
        ("50%", "5", WRONG), (r"7\%", "0.7", WRONG), (r"50\%", r"51\%", WRONG), ("50", r"5\%", WRONG), ("0.5%", "50", WRONG), ("50%", "5000", WRONG),
    ],
    "choices and words": [
        ("A", "A", RIGHT), ("(A)", "A", RIGHT), (r"\text{(C)}", "C", RIGHT), ("B.", "B", RIGHT), ("D)", "(D)", RIGHT), (r"\textbf{(E)}", "E", RIGHT),
        (r"\text{Yes}", "yes", RIGHT), ("Monday", "monday", RIGHT), (r"\text{even}", "even", RIGHT), ("True", "true", RIGHT), (r"\text{no solution}", "No solution", RIGHT),
        ("Saturday.", "Saturday", RIGHT), (r"\mathrm{odd}", "odd", RIGHT), ("Alice", r"\text{Alice}", RIGHT),
        ("A", "B", WRONG), ("(A)", "(B)", WRONG), ("AB", "A", WRONG), ("A or B", "A", WRONG), ("yes", "no", WRONG), ("even", "odd", WRONG), ("a", "B", WRONG),
        ("Monday", "Tuesday", WRONG), ("true", "false", WRONG), ("no solution", "0", WRONG), ("Alice and Bob", "Alice", WRONG), ("C", "3", WRONG),
    ],
    "equations and other text": [
        ("11:30", "11:30", RIGHT), ("3:4", "3:4", RIGHT), ("x=5", "5", RIGHT), ("5=x", "x=5", RIGHT), (r"y = -\frac{1}{2}x + 3", r"y=3-\frac{x}{2}", RIGHT),
        (r"x^2+y^2=4", r"y^2+x^2=4", RIGHT), ("2x+y=3", "y+2x=3", RIGHT), (r"\infty", "∞", RIGHT), (r"-\infty", r"-\infty", RIGHT),
        ("11:30", "11:31", WRONG), ("x=5", "6", WRONG), ("3:4", "4:3", WRONG), ("x^2+y^2=4", "x^2+y^2=2", WRONG), (r"\infty", r"-\infty", WRONG), ("y=x", "y=-x", WRONG),
    ],
    "adversarial": [
        ("7 or 8 or 9", "8", WRONG), ("8 (or 9)", "8", WRONG), ("1=1", "8", WRONG), ("?", "8", WRONG), (r"\boxed{}", "8", WRONG), ("8; 9", "8", WRONG), ("x", "8", WRONG),
        ("__import__('os').system('true')", "0", WRONG), ("exit()", "0", WRONG), ("True", "1", WRONG), (r"\frac{0}{0}", "0", WRONG), ("8" * 50, "8", WRONG), ("(" * 30, "8", WRONG),
        ("the answer", "8", WRONG), (r"\text{8 and 9}", "8", WRONG), (r"8\text{ or }9", "8", WRONG), ("-8", "8", WRONG), ("0.8", "8", WRONG), ("8^8", "8", WRONG), ("nan", "0", WRONG),
        ("lambda: 8", "8", WRONG), (r"\\", "8", WRONG), ("{", "8", WRONG), (r"\frac{8}", "8", WRONG), ("8" + " " * 500, "8", RIGHT), (r"{{8}}", "8", RIGHT),
    ],
}  # fmt: skip

ALL = [(group, answer, gold, verdict) for group, pairs in PAIRS.items() for answer, gold, verdict in pairs]
