"""Make the rows of `lmsurvey_code/data/instructions.tsv` that follow from a rule, and leave all other rows alone.

    python tools/make_instructions.py

The draws are seeded with the name of the kind, so that a second run writes the same file. The rows with the source
"written" or "corpus" were written or chosen by hand and are kept as they are.
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

FILE = Path(__file__).parents[1] / "lmsurvey_code" / "data" / "instructions.tsv"
COLUMNS = ("kind", "source", "instruction", "input", "output", "check")
N_ROWS = 36  # rows of each kind

NOUNS = """anchor apron barrel basket bell blanket bottle bucket button cabin candle carpet castle chimney curtain
drawer engine feather fence fiddle garden garment hammer helmet island jacket jewel kettle kite ladder lantern lemon
locket magnet marble mirror napkin needle orchard organ paddle parcel pebble pencil pillow planet pocket puzzle
quilt ribbon river rocket saddle sailor shovel signal spider spoon statue teapot temple ticket tunnel turnip umbrella
valley vessel violin wagon walnut whistle window""".split()
PLACES = "near the lake, on the hill, by the door, in the cellar, under the bridge, behind the school".split(", ")
ADJECTIVES = "big blue broken green little new old pretty quiet round strange tall".split()
MONTHS = """January February March April May June July August September October November December""".split()
UNITS = [
    ("meters", "centimeters", 100),
    ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000),
    ("liters", "milliliters", 1000),
    ("centimeters", "millimeters", 10),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("pounds", "ounces", 16),
    ("gallons", "quarts", 4),
    ("dollars", "cents", 100),
    ("weeks", "days", 7),
    ("hours", "minutes", 60),
]
SIGNS = frozenset("+ - x or plus minus times".split())
ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ROMAN = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def in_words(number: int) -> str:
    """A number from 0 to 999 in American English: 342 is "three hundred forty-two"."""
    if number >= 100:
        rest = f" {in_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")


def in_roman(number: int) -> str:
    """A number from 1 to 399 in Roman numerals."""
    text = ""
    for value, letters in ROMAN:
        while number >= value:
            text, number = text + letters, number - value
    return text


def two(i: int, smaller: object, larger: object) -> str:
    """Both in one text, the first of them in front in every second row, so that the place gives nothing away."""
    return f"{smaller} or {larger}" if i % 2 else f"{larger} or {smaller}"


def total(rng: random.Random, i: int) -> tuple[str, str]:
    """Two numbers to add, of one digit to three."""
    a, b = (rng.randint(2, 9 * 10 ** (i % 3)) for _ in range(2))
    return f"{a} {('+', 'plus')[i % 2]} {b}", str(a + b)


def difference(rng: random.Random, i: int) -> tuple[str, str]:
    """Two numbers to subtract; the result is above zero."""
    b, rest = (rng.randint(2, (9, 50)[i // 2 % 2]) for _ in range(2))
    return f"{b + rest} {('-', 'minus')[i % 2]} {b}", str(rest)


def product(rng: random.Random, i: int) -> tuple[str, str]:
    """Two numbers to multiply, the second up to 12."""
    a, b = rng.randint(2, (10, 25)[i // 2 % 2]), rng.randint(2, 12)
    return f"{a} {('x', 'times')[i % 2]} {b}", str(a * b)


def items(rng: random.Random, i: int) -> tuple[str, str]:
    """A list of two to eight things."""
    n = 2 + i % 7
    return ", ".join(rng.sample(NOUNS, n)), str(n)


def letters(rng: random.Random, i: int) -> tuple[str, str]:
    """A word and how many letters it has."""
    word = rng.choice(NOUNS)
    return word, str(len(word))


def vowels(rng: random.Random, i: int) -> tuple[str, str]:
    """A word and how many vowels it has."""
    word = rng.choice(NOUNS)
    return word, str(sum(letter in "aeiou" for letter in word))


def units(rng: random.Random, i: int) -> tuple[str, str]:
    """A length, a weight, a time or a sum of money in a smaller unit."""
    large, small, factor = UNITS[i % len(UNITS)]
    n = rng.randint(2, 12)
    return f"{n} {large} in {small}", str(n * factor)


def clock(rng: random.Random, i: int) -> tuple[str, str]:
    """A time on the 24-hour clock and on the 12-hour clock."""
    hour, minute = rng.randint(0, 23), 5 * rng.randint(0, 11)
    return f"{hour:02}:{minute:02}", f"{(hour - 1) % 12 + 1}:{minute:02} {'a.m.' if hour < 12 else 'p.m.'}"


def numerals(rng: random.Random, i: int) -> tuple[str, str]:
    """A number in words and in digits."""
    number = rng.randint(11, 99) if i % 2 else rng.randint(100, 999)
    return in_words(number), str(number)


def roman(rng: random.Random, i: int) -> tuple[str, str]:
    """A Roman numeral and its number."""
    number = rng.randint(2, 60) if i % 3 else rng.randint(61, 130)
    return in_roman(number), str(number)


def larger(rng: random.Random, i: int) -> tuple[str, str]:
    """Two whole numbers, or two with one decimal, and the larger one."""
    low, high = sorted(rng.sample(range(10, 10 ** (2 + i // 2 % 3)), 2))
    if i // 2 % 4 == 3:
        low, high = low / 10, high / 10
    return two(i, low, high), str(high)


def earlier(rng: random.Random, i: int) -> tuple[str, str]:
    """Two years, or two months with their years, and the earlier one."""
    first, last = sorted(rng.sample(range(1700, 2000), 2))
    a, b = sorted(rng.sample(range(12), 2))
    low, high = [
        (first, last),
        (f"{MONTHS[b]} {first}", f"{MONTHS[a]} {last}"),
        (f"{MONTHS[a]} {last}", f"{MONTHS[b]} {last}"),
    ][i // 2 % 3]
    return two(i, low, high), str(low)


def alphabet(rng: random.Random, i: int) -> tuple[str, str]:
    """Two words, in half of the rows with the same first letter, and the one that a dictionary lists first."""
    while True:
        low, high = sorted(rng.sample(NOUNS, 2))
        if (low[0] == high[0]) == (i // 2 % 2 == 1):
            return two(i, low, high), low


def uppercase(rng: random.Random, i: int) -> tuple[str, str]:
    """A phrase and the same in capital letters."""
    text = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(PLACES)}"
    return text, text.upper()


def thousands(rng: random.Random, i: int) -> tuple[str, str]:
    """A number of four to seven digits, plain and with commas."""
    number = rng.randint(10 ** (3 + i % 4), 10 ** (4 + i % 4) - 1)
    return str(number), f"{number:,}"


Rule = Callable[[random.Random, int], tuple[str, str]]
RULES: dict[str, tuple[Rule, str, tuple[str, ...]]] = {
    "arithmetic/sum": (
        total,
        "number",
        ("Add the two numbers. Write only the result.", "What is the sum?", "Work out the total and give the number."),
    ),
    "arithmetic/difference": (
        difference,
        "number",
        ("Subtract. Write only the result.", "What is the difference?", "How much is left? Give the number."),
    ),
    "arithmetic/product": (
        product,
        "number",
        (
            "Multiply. Write only the result.",
            "What is the product?",
            "Work out the multiplication and give the number.",
        ),
    ),
    "count/items": (
        items,
        "number",
        (
            "How many things are in the list?",
            "Count the items. Write the number.",
            "How long is this list? Write the number of its items.",
        ),
    ),
    "count/letters": (
        letters,
        "number",
        (
            "How many letters does the word have?",
            "Count the letters. Write the number.",
            "Of how many letters is it made? Write the number.",
        ),
    ),
    "count/vowels": (
        vowels,
        "number",
        (
            "How many of the letters are vowels (a, e, i, o, u)?",
            "Count the letters a, e, i, o and u in the word. Write the number.",
            "Give the number of vowels (a, e, i, o or u) in this word.",
        ),
    ),
    "convert/units": (
        units,
        "number",
        (
            "Convert the amount. Write only the number.",
            "How much is this? Give the number.",
            "Express the amount in the second unit, without its name.",
        ),
    ),
    "convert/clock": (
        clock,
        "exact",
        (
            "Write this time of the 24-hour clock with a.m. or p.m., as in 3:05 p.m.",
            "What time is this on the 12-hour clock? Answer in the form 3:05 p.m.",
            "Change the time to the American form, as in 3:05 p.m.",
        ),
    ),
    "convert/numerals": (
        numerals,
        "number",
        ("Write the number in digits.", "Which number is this? Use digits.", "Turn the words into a number in digits."),
    ),
    "convert/roman": (
        roman,
        "number",
        (
            "Write the Roman numeral as an ordinary number.",
            "Which number does this Roman numeral stand for?",
            "Change the Roman numeral into digits.",
        ),
    ),
    "compare/larger": (
        larger,
        "number",
        (
            "Which of the two numbers is larger? Write only that number.",
            "Copy the larger number and write nothing else.",
            "Choose the greater of the two numbers. Answer with that number alone.",
        ),
    ),
    "compare/earlier": (
        earlier,
        "exact",
        (
            "Which of the two comes earlier in time? Copy it and write nothing else.",
            "Choose the earlier one. Write it as it stands here.",
            "One of these lies further back in the past. Answer with that one only.",
        ),
    ),
    "compare/alphabet": (
        alphabet,
        "exact",
        (
            "Which of the two words comes first in the alphabet? Write only that word.",
            "Which word does a dictionary list first? Answer with that word only.",
            "Choose the word that stands first in alphabetical order. Write nothing else.",
        ),
    ),
    "format/uppercase": (
        uppercase,
        "exact",
        ("Write the text in capital letters.", "Change every letter to uppercase.", "Put this in all capitals."),
    ),
    "format/thousands": (
        thousands,
        "exact",
        (
            "Write the number with commas between the thousands.",
            "Put a comma after every three digits, counted from the right.",
            "Make the number easier to read: add commas as thousands separators.",
        ),
    ),
}


def rule_rows() -> Iterator[tuple[str, ...]]:
    """The rows of all rules: `N_ROWS` of each kind, no input of a kind twice."""
    for kind, (rule, check, wordings) in RULES.items():
        rng = random.Random(kind)
        seen: set[frozenset[str]] = set()
        while len(seen) < N_ROWS:
            text, answer = rule(rng, len(seen))
            key = frozenset(text.split()) - SIGNS  # "2 + 9" and "9 plus 2" ask for the same
            if key not in seen:
                # The wording must not follow the row number in step with what the rules above derive from it.
                wording = wordings[rng.randrange(len(wordings))]
                seen.add(key)
                yield kind, "rule", wording, text, answer, check


def main() -> None:
    """Replace the rows with the source "rule", sort all rows, write the file under a temporary name, rename it."""
    lines = FILE.read_text(encoding="utf-8").splitlines()[1:]
    kept = [line for line in lines if line.split("\t")[1] != "rule"]
    rows = sorted([*kept, *("\t".join(row) for row in rule_rows())], key=lambda row: (row.split("\t")[0], row))
    temporary = FILE.with_suffix(".partial")
    temporary.write_text("\n".join(["\t".join(COLUMNS), *rows]) + "\n", encoding="utf-8")
    os.replace(temporary, FILE)


if __name__ == "__main__":
    main()
