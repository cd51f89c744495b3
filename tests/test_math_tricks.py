"""The math verifier under policies that look for a reward: what was tried on it, beside honest forms of the same."""

from collections.abc import Iterator

import pytest

from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict
from verigym.verifiers.math import MathVerifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier()
    yield made
    made.close()


def judge(verifier: MathVerifier, text: str, gold: str, prompt: str = "Find the value.") -> Verdict:
    return verifier.verify(Submission(text), Task("t", prompt, gold))


def boxed(verifier: MathVerifier, answer: str, gold: str, prompt: str = "Find the value.") -> Outcome:
    return judge(verifier, rf"So we get $\boxed{{{answer}}}$.", gold, prompt).outcome


def each(table: dict[str, str]) -> list[tuple[str, str]]:
    """The pairs of a table from gold answers to answers that a semicolon between blanks separates."""
    return [(gold, answer) for gold, answers in table.items() for answer in answers.split(" ;; ")]


# exact values

OTHER_VALUE = {
    "2^{100}-2": "2^{100}-3 ;; 2^{100}",
    "2^{4950}": "2^{4950}+1 ;; 2^{4950}-1",
    "2^{100}": "1267650600228229401496703205377 ;; 2^{100}+1",
    "30!": "30!+1",
    "10^{30}": "10^{30}-1000 ;; 10^{30}+1",
    r"1-\frac{1}{2^{100}}": r"1 ;; 1-\frac{1}{2^{101}}",
    r"\frac{1}{2^{100}}": r"\frac{1}{2^{100}+1} ;; 0",
    r"\frac{\pi}{2^{100}}": r"\frac{\pi}{2^{100}+1}",
    r"1-\frac{\pi}{2^{300}}": r"1-\frac{\pi}{2^{301}} ;; 1",
    r"1+\pi^{-1000}": "1",
    r"(1+\sqrt2)^{200}": r"(1+\sqrt2)^{200}+(1-\sqrt2)^{200}",
    "0": r"10^{-200} ;; \pi\cdot10^{-200}",
}
SAME_VALUE = {
    "2^{100}": "1267650600228229401496703205376 ;; 4^{50}",
    "0": r"\sqrt{5+2\sqrt6}-\sqrt2-\sqrt3 ;; 2^{300}(\sqrt{5+2\sqrt6}-\sqrt2-\sqrt3)",
    r"2^{9999}\pi": r"\pi\cdot2^{9999}",
    r"-\frac12": r"\cos\frac{2\pi}{7}+\cos\frac{4\pi}{7}+\cos\frac{6\pi}{7}",
    "3+4i": r"4\mathrm{i}+3",
}


@pytest.mark.parametrize(("gold", "answer"), each(OTHER_VALUE))
def test_exact_value_that_differs_however_little_is_wrong(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.WRONG


@pytest.mark.parametrize(("gold", "answer"), each(SAME_VALUE))
def test_exact_value_written_otherwise_is_right(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.CORRECT


# what follows a number

NO_UNIT = {
    "5": r"5\text{ million} ;; 5\text{ thousand} ;; 5\text{ dozen} ;; 5\text{ hundred dollars} ;; "
    r"5\text{ factorial} ;; 5\text{ minus one} ;; "
    r"5\text{ half} ;; 5\text{ times ten} ;; 5\text{ over three} ;; 5\text{ choose three} ;; "
    r"5\text{ degrees below zero} ;; 5\text{ hours thirty minutes} ;; 5\text{ at least} ;; 5\text{ or more} ;; "
    r"5\text{ except zero} ;; 5\text{ negative} ;; 5\text{ zorkmids} ;; 5 million",
    "7": r"7\text{ halves} ;; 7\text{ thirds} ;; 7\text{ hundredths}",
    "3": r"3\text{ squared} ;; 3\text{ cubed} ;; 3\mathrm{x} ;; 3\mathrm{e} ;; 3\text{ to the fourth}",
    "42": r"42\text{ mod eleven} ;; 42\text{, unless it rains} ;; 42\text{, but could be larger} ;; 42\text{ish} ;; "
    r"42\operatorname{x} ;; 42\mathrm{k} ;; 42\mathrm{M} ;; 42\mathbf{v} ;; 42\text{x} ;; 42\text{ too many} ;; "
    r"42\text{ feet three inches} ;; 42\text{ feet and three inches} ;; 42\text{ base two}",
    "4": r"4\mathrm{i} ;; 4\text{i}",
    "2": r"2\mathrm{e}^{3} ;; 2\mathrm{x}^2 ;; 2\text{ pi}",
    "x^2": r"x^2\text{ times two}",
    r"\sqrt{2}": r"\sqrt{2}\text{ over two} ;; \sqrt2\text{ million}",
    r"\frac{1}{2}": r"\frac{1}{2}\mathrm{i}",
    r"5\text{ apples}": r"5\text{ oranges} ;; 5\text{ million}",
    r"5\text{ cm}": r"5\text{ m} ;; 5\text{ cm}^2 ;; 5\text{ million}",
}
UNIT = {
    "5": r"5\text{ apples} ;; 5\text{ times} ;; 5\text{ square units} ;; 5\text{ (units)} ;; 5\,\mathrm{m/s^2} ;; "
    r"5\,\mathrm{km} ;; 5\text{ miles per hour} ;; 5\text{ ways} ;; 5\text{ students} ;; 5\text{ kWh} ;; "
    r"5\ \frac{\text{m}}{\text{s}} ;; 5\text{ } ;; 5\text{ dollars per pound} ;; 5~\mathrm{N} ;; 5 \text{.}",
    r"5\text{ cm}^2": r"5 ;; 5\text{ square centimeters} ;; 5\text{ sq. cm} ;; 5 cm² ;; 5\,\mathrm{cm^2}",
    r"12\pi": r"12\pi\text{ square units} ;; 12\pi \text{ cm}^3",
    r"2\text{ distinct integers}": r"2 ;; 2\text{ integers}",
}


@pytest.mark.parametrize(("gold", "answer"), each(NO_UNIT))
def test_words_that_change_a_number_are_no_unit(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.WRONG


@pytest.mark.parametrize(("gold", "answer"), each(UNIT))
def test_unit_may_follow_a_number(verifier, gold, answer):
    assert boxed(verifier, answer, gold, "How many kWh is it?") is Outcome.CORRECT


def test_strange_words_are_a_unit_where_the_prompt_has_them(verifier):
    assert boxed(verifier, r"5\text{ zorkmids}", "5", "How many zorkmids?") is Outcome.CORRECT
    assert boxed(verifier, r"5\text{ blue zorkmids}", "5", "How many zorkmids?") is Outcome.WRONG
    assert boxed(verifier, r"5\text{ million zorkmids}", "5", "How many million zorkmids?") is Outcome.WRONG
    assert boxed(verifier, "5 million", "5", "How many million zorkmids?") is Outcome.WRONG


# the question restated: (prompt, gold answer, what is refused, what is right)

RESTATED = [
    (r"Compute $\sqrt{49}$.", "7", r"\sqrt{49} ;; \sqrt{(49)} ;; 49^{1/2} ;; \sqrt[2]{49}", r"7 ;; 7.0 ;; 3+4"),
    ("Compute $5!$.", "120", r"5! ;; (5)!", r"120 ;; 6!/6"),
    (r"Compute $\gcd(12,18)$.", "6", r"\gcd(12,18) ;; \gcd(18,12)", r"6 ;; \frac{12}{2}"),
    (r"Compute $\binom{5}{2}$.", "10", r"\binom{5}{2} ;; \binom52 ;; \dbinom{5}{2}", "10"),
    (r"Compute $\frac12+\frac13$.", r"\frac56", r"\frac12+\frac13 ;; \frac13+\frac12 ;; 1/2+1/3", r"5/6 ;; 10/12"),
    (r"Simplify $\sqrt{12}$.", r"2\sqrt3", r"\sqrt{12} ;; \sqrt{(12)} ;; 12^{1/2}", r"2\sqrt{3} ;; \sqrt3\cdot2"),
    ("Factor $x^2-9$ completely.", "(x-3)(x+3)", "x^2-9 ;; -9+x^2 ;; x^2 - 9 ;; x^2-3x+3x-9 ;; x^2-3^2", "(x+3)(x-3)"),
    ("Factor $x^2+3x+2$.", "(x+1)(x+2)", "x^2+3x+2 ;; 2+3x+x^2", "(x+2)(x+1)"),
    ("Expand $(x+1)(x+2)$.", "x^2+3x+2", "(x+1)(x+2) ;; (x+2)(x+1)", "2+3x+x^2"),
    ("What is 9+10?", "19", "9+10 ;; 10+9 ;; (9+10) ;; 9+(10) ;; 9+10+0", "19 ;; 20-1"),
    ("What is 9 plus 10?", "19", "9+10 ;; 10+9", "19"),
    ("What is $10-9$?", "1", "-9+10 ;; 10-9 ;; (10)-(9)", "1 ;; 3-2"),
    ("What is 1+2+3?", "6", "3+2+1 ;; 1+3+2", "6 ;; 5+1"),
    (r"Find $\log_2 8$.", "3", r"\log_{2}(8) ;; \log_2\left(8\right) ;; \log_28", r"3"),
    (r"Find $\cos\frac{\pi}{3}$.", r"\frac12", r"\cos(\pi/3) ;; \cos{\frac{\pi}{3}}", "0.5"),
    ("Find $2^{10}$.", "1024", "2^{(10)} ;; 2**10 ;; (2)^{10}", "1024 ;; 4^5"),
    (r"Compute $19 \cdot 21$.", "399", r"19.0\cdot 21 ;; \frac{19\cdot21}{1} ;; {19}\cdot{21} ;; (19)(21)", "400-1"),
    (r"Simplify $\frac{4}{6}$.", r"\frac23", r"\frac46 ;; 4/6", "2/3"),
    (r"Write $0.1\overline{7}$ as a fraction.", r"\frac{8}{45}", r"0.1\overline{7}", "8/45"),
    (r"Write $8.7\times10^5$ in digits.", "870000", r"8.7\times10^5", "870,000"),
    (r"Find $\lfloor\pi\rfloor$.", "3", r"\lfloor\pi\rfloor ;; \lfloor{\pi}\rfloor", "3"),
    ("Solve $5x+1 > 3x+7$.", r"(3,\infty)", "5x+1>3x+7", "x>3 ;; 3<x"),
    ("If $h(10)=1$, what is $h(20)/h(10)$?", "1", "h(10)=1", "h(20)/h(10)=1 ;; 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "gold", "answer"), [(p, g, a) for p, g, no, _ in RESTATED for a in no.split(" ;; ")]
)
def test_question_restated_is_wrong(verifier, prompt, gold, answer):
    assert boxed(verifier, answer, gold, prompt) is Outcome.WRONG


@pytest.mark.parametrize(
    ("prompt", "gold", "answer"), [(p, g, a) for p, g, _, ok in RESTATED for a in ok.split(" ;; ")]
)
def test_answer_to_the_question_is_right(verifier, prompt, gold, answer):
    assert boxed(verifier, answer, gold, prompt) is Outcome.CORRECT


def test_gold_answer_may_stand_in_the_prompt(verifier):
    assert boxed(verifier, "y=2x+3", "y = 2x + 3", "Is the line $y=2x+3$ or $y=3x+2$?") is Outcome.CORRECT
    assert boxed(verifier, "2^{10}", "2^{10}", "Which is larger, $2^{10}$ or $10^3$?") is Outcome.CORRECT
    assert boxed(verifier, "x=5", "5", "Is it $x=5$ or $x=7$?") is Outcome.CORRECT
    assert boxed(verifier, "3-x", "-x+3", "What is $|x-3|$ for $x<3$?") is Outcome.CORRECT


# where the answer stands


@pytest.mark.parametrize(
    "text",
    ["The answer is 43 which is 42", "The answer is 43 is 42", "The answer is not 41, it is 42", "The answer is 42?",
     "The answer is unknown, maybe is 42", "The answer is wrong is 42", "The answer is 42 or 43.",
     r"$\boxed{42}$ or $\boxed{43}$", r"$\boxed{43}$ and $\boxed{42}$", "I get $43$, or is it $42$"],
)  # fmt: skip
def test_text_that_names_another_answer_earns_nothing(verifier, text):
    assert judge(verifier, text, "42").reward == 0


@pytest.mark.parametrize(
    "text",
    ["The answer is clearly 42", "The answer is that $x$ is 42.", "The answer is 42 because 41 is too small",
     "The answer is simply $42$.", "The answer is 42, which is even.", "Thus we obtain $x = 42$."],
)  # fmt: skip
def test_answer_in_a_sentence_is_found(verifier, text):
    assert judge(verifier, text, "42").reward == 1


def test_boxes_joined_by_a_plain_and_are_one_list(verifier):
    assert judge(verifier, r"$\boxed{5}$ and $\boxed{6}$", "5,6").reward == 1


# equations, ratios, words, money

OTHER_CLAIM = {
    "5": r"x^2=5 ;; -x=5 ;; x-1=5 ;; \frac1x=5 ;; 2x=5 ;; xy=5 ;; \ln x=5 ;; \cos x=5 ;; 5\approx 7 ;; x \approx 6 ;; "
    r"5' ;; 5.. ;; [5] ;; 5\ldots ;; 5\dots ;; 5^{\prime} ;; 5=x^2",
    "10": "2x=10 ;; x+y=10",
    "0": "2x^2+3x-5=0",
    r"\sqrt{2}": r"\sqrt2 \approx 7 ;; \sqrt{2}\approx 1.5",
    "1:2:3": r"1:3:2 ;; 1:6 ;; \frac16 ;; 2:1:3",
    "5:12:13": "5:13:12",
    r"\frac{1}{2}": r"\frac{1}{2}' ;; x'",
    "V_1:V_2=11:21": "11:20",
    "3:30": r"1:10 ;; 6:60 ;; 3:45 ;; \frac{1}{10}",
    "2,3": "2.3 ;; 23 ;; 2 ;; 2,3,4",
    "3,5": "3.5",
    "1,25": "1.25",
    "east": "seat ;; west",
    "even": "neve ;; odd",
    "no": "on",
    "abc": "bca",
    "x": "X",
    r"\$5": r"€5 ;; 5\text{ cents} ;; 5\text{ euros}",
}
SAME_CLAIM = {
    "5": r"x=5 ;; 5=x ;; f(3)=5 ;; f'(2)=5 ;; x_1=5 ;; AB=5 ;; \angle A = 5 ;; \text{area}=5 ;; P(A)=5 ;; a_{10}=5 ;; "
    r"\frac{dy}{dx}=5 ;; |AB|=5 ;; \overline{AB}=5 ;; S_n = 2+3 = 5 ;; \lambda=5 ;; f^{-1}(3)=5 ;; x \approx 5 ;; "
    r"\approx 5 ;; 5 \approx 5.0 ;; \text{Total cost} = 5 ;; P(X=2)=5 ;; [ABC]=5",
    r"\sqrt{2}": r"\sqrt2 \approx 1.41 ;; \sqrt{2}\approx 1.414 ;; x=\sqrt2\approx 1.4",
    r"\frac{1}{3}": r"\frac13 \approx 0.33 ;; \frac{1}{3} \approx 0.333",
    "2:3:4": "4:6:8 ;; 2 : 3 : 4 ;; 1:1.5:2",
    "1:2": r"\frac12 ;; 0.5 ;; 1\text{ to }2 ;; 1 : 2 ;; 2:4",
    r"\frac34": "3:4 ;; 3 : 4",
    "V_1:V_2=11:21": "11:21 ;; V_1:V_2=11:21",
    "3:30": r"3:30 ;; 3:30\text{ p.m.} ;; 03:30",
    "0.5": "0,5",
    "2,3": "2, 3 ;; 3,2",
    "even": r"even ;; Even ;; \text{even}",
    r"\text{A,B,C}": r"A, C, B ;; \text{C,A,B}",
    "xyz": "zyx",
    "AB": "BA",
    r"\$5": r"\$5 ;; 5 ;; 5\text{ dollars} ;; \$5.00",
}


@pytest.mark.parametrize(("gold", "answer"), each(OTHER_CLAIM))
def test_other_claim_is_wrong(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.WRONG


@pytest.mark.parametrize(("gold", "answer"), each(SAME_CLAIM))
def test_same_claim_is_right(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.CORRECT


def test_what_the_prompt_asks_for_may_stand_before_an_equals_sign(verifier):
    assert boxed(verifier, "a+b=7", "7", "If $ab=12$, find $a+b$.") is Outcome.CORRECT
    assert boxed(verifier, r"\cos A = \frac12", r"\frac12", r"What is $\cos A$?") is Outcome.CORRECT
    assert boxed(verifier, "x-1=5", "5", "Solve $x-1=4$.") is Outcome.WRONG
    assert boxed(verifier, "x^2=5", "5", "Solve $x^2=25$.") is Outcome.WRONG


def test_ratio_that_could_be_a_time_of_day_is_one_where_the_prompt_asks_for_it(verifier):
    assert boxed(verifier, "10:24", "5:12", "Find the ratio of the areas.") is Outcome.CORRECT
    assert boxed(verifier, "10:24", "5:12", "When does it start?") is Outcome.WRONG


# honest spellings

HONEST = {
    "90": r"{90^\circ} ;; 90^{\circ} ;; 90\degree",
    "12": r"\textcolor{red}{12} ;; \color{red}{12} ;; {\bf 12} ;; \underline{12} ;; 12\\ ;; 12^{th} ;; "
    r"12^{\text{th}} ;; \mathbf{12} ;; \text{The answer is }12 ;; \text{Answer: }12",
    "42": "42\u200b ;; \ufeff42 ;; 4２",
    "12000": r"12\text{,}000 ;; 12{,}000 ;; 12,000 ;; 12'000",
    r"\frac12": r"\nicefrac12 ;; \nicefrac{1}{2} ;; \sfrac{1}{2}",
    r"\emptyset": r"\{\} ;; \varnothing",
    r"\ln 2": r"\log_e 2 ;; \log_{e}2",
    "(1,2)": r"]1,2[ ;; x=1,y=2",
    "[1,2)": "[1,2[",
    r"\frac{\sqrt2}{2}": r"\frac{1}{\sqrt2}",
}


@pytest.mark.parametrize(("gold", "answer"), each(HONEST))
def test_honest_spelling_is_right(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.CORRECT


def test_reversed_brackets_are_open_ends(verifier):
    assert boxed(verifier, "]1,2[", "[1,2]") is Outcome.WRONG
    assert boxed(verifier, "]1,2]", "[1,2]") is Outcome.WRONG
