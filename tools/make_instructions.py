"""Make the rows of `lmsurvey_code/data/instructions.tsv` that follow from a rule, and leave all other rows alone.

    python tools/make_instructions.py

The draws are seeded with the name of the kind, so that a second run writes the same file. The rows with the source
"written" or "corpus" were written or chosen by hand and are kept as they are.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from lmsurvey_code.files import whole_file

FILE = Path(__file__).parents[1] / "lmsurvey_code" / "data" / "instructions.tsv"
COLUMNS = ("kind", "source", "instruction", "input", "output", "check")
N_ROWS = 36  # rows of each kind

# Kind, check, and the wordings of the instruction.
KINDS = """
arithmetic/sum|number|Add the two numbers. Write only the result.|What is the sum?\
|Work out the total and give the number.
arithmetic/difference|number|Subtract. Write only the result.|What is the difference?\
|How much is left? Give the number.
arithmetic/product|number|Multiply. Write only the result.|What is the product?|Work out this multiplication.
count/items|number|How many things are in the list?|Count the items. Write the number.\
|Give the number of items in this list.
count/letters|number|How many letters does the word have?|Count the letters. Write the number.\
|Of how many letters is it made?
count/vowels|number|How many of the letters are vowels (a, e, i, o, u)?\
|Count the vowels in the word: a, e, i, o and u.|Give the number of vowels (a, e, i, o or u) in this word.
convert/units|number|Convert the amount. Write only the number.|How much is this? Give the number.\
|Express the amount in the second unit, without its name.
convert/clock|exact|Write this time of the 24-hour clock with a.m. or p.m., as in 3:05 p.m.\
|What time is this on the 12-hour clock? Answer in the form 3:05 p.m.|Change the time to the form 3:05 p.m.
convert/numerals|number|Write the number in digits.|Which number is this? Use digits.|Turn the words into digits.
convert/roman|number|Write the Roman numeral as an ordinary number.|Which number does this Roman numeral stand for?\
|Change the Roman numeral into digits.
compare/larger|number|Which of the two numbers is larger? Write only that number.\
|Copy the larger number and write nothing else.|Choose the greater of the two numbers. Answer with that number alone.
compare/earlier|exact|Which of the two comes earlier in time? Copy it and write nothing else.\
|Choose the earlier one. Write it as it stands here.\
|One of these lies further back in the past. Answer with that one only.
compare/alphabet|exact|Which of the two words comes first in the alphabet? Write only that word.\
|Which word does a dictionary list first? Answer with that word only.\
|Choose the word that stands first in alphabetical order. Write nothing else.
format/uppercase|exact|Write the text in capital letters.|Change every letter to uppercase.|Put this in all capitals.
format/thousands|exact|Write the number with commas between the thousands.|Add commas as thousands separators.\
|Put a comma after every three digits, counted from the right.
"""


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


NOUNS = words("""anchor apron barrel basket bell blanket bottle bucket button cabin candle carpet castle chimney curtain
drawer engine feather fence fiddle garden garment hammer helmet island jacket jewel kettle kite ladder lantern lemon
locket magnet marble mirror napkin needle orchard organ paddle parcel pebble pencil pillow planet pocket puzzle quilt
ribbon river rocket saddle sailor shovel signal spider spoon statue teapot temple ticket tunnel turnip umbrella valley
vessel violin wagon walnut whistle window""")
PLACES = ("near the lake", "on the hill", "by the door", "in the cellar", "under the bridge", "behind the school")
ADJECTIVES = words("big blue broken green little new old pretty quiet round strange tall")
MONTHS = words("January February March April May June July August September October November December")
UNITS = words("""meters/centimeters/100 kilometers/meters/1000 kilograms/grams/1000 liters/milliliters/1000
centimeters/millimeters/10 feet/inches/12 yards/feet/3 pounds/ounces/16 gallons/quarts/4 dollars/cents/100
weeks/days/7 hours/minutes/60""")
ONES = words("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
ROMAN = {100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
SIGNS = frozenset(words("+ - x or plus minus times"))


def in_words(number: int) -> str:
    """A number from 0 to 999 in American English: 342 is "three hundred forty-two"."""
    if number >= 100:
        return f"{ONES[number // 100]} hundred {in_words(number % 100) if number % 100 else ''}".strip()
    return ONES[number] if number < 20 else f"{TENS[number // 10 - 2]}-{ONES[number % 10]}".removesuffix("-zero")


def in_roman(number: int) -> str:
    """A number from 1 to 399 in Roman numerals."""
    text = ""
    for value, letters in ROMAN.items():
        text, number = text + letters * (number // value), number % value
    return text


def draw(kind: str, rng: random.Random, i: int) -> tuple[str, str]:
    """Input and answer of row `i` of a kind; `i` chooses between the forms and degrees of difficulty."""

    def pair(right: object, wrong: object) -> tuple[str, str]:
        # The answer stands in front in every second row, so that the place gives nothing away.
        return f"{wrong} or {right}" if i % 2 else f"{right} or {wrong}", str(right)

    degree = i // 2
    match kind.split("/")[1]:
        case "sum":
            a, b = (rng.randint(2, 9 * 10 ** (degree % 3)) for _ in range(2))
            return f"{a} {('+', 'plus')[i % 2]} {b}", str(a + b)
        case "difference":
            b, rest = (rng.randint(2, (9, 50)[degree % 2]) for _ in range(2))
            return f"{b + rest} {('-', 'minus')[i % 2]} {b}", str(rest)
        case "product":
            a, b = rng.randint(2, (10, 25)[degree % 2]), rng.randint(2, 12)
            return f"{a} {('x', 'times')[i % 2]} {b}", str(a * b)
        case "items":
            return ", ".join(rng.sample(NOUNS, 2 + i % 7)), str(2 + i % 7)
        case "letters":
            word = rng.choice(NOUNS)
            return word, str(len(word))
        case "vowels":
            word = rng.choice(NOUNS)
            return word, str(sum(letter in "aeiou" for letter in word))
        case "units":
            large, small, factor = UNITS[i % len(UNITS)].split("/")
            n = rng.randint(2, 12)
            return f"{n} {large} in {small}", str(n * int(factor))
        case "clock":
            hour, minute = rng.randint(0, 23), f"{5 * rng.randint(0, 11):02}"
            return f"{hour:02}:{minute}", f"{(hour - 1) % 12 + 1}:{minute} {'a.m.' if hour < 12 else 'p.m.'}"
        case "numerals":
            number = rng.randint(11, 99) if i % 2 else rng.randint(100, 999)
            return in_words(number), str(number)
        case "roman":
            number = rng.randint(2, 60) if i % 3 else rng.randint(61, 130)
            return in_roman(number), str(number)
        case "larger":
            scale = 10 if degree % 4 == 3 else 1
            low, high = sorted(rng.sample(range(10, 10 ** (2 + degree % 3)), 2))
            return pair(high / scale, low / scale) if scale > 1 else pair(high, low)
        case "earlier":
            first, last = sorted(rng.sample(range(1700, 2000), 2))
            early, late = (MONTHS[m] for m in sorted(rng.sample(range(12), 2)))
            # Years alone; months that point the wrong way; months of the same year.
            pairs = (first, last), (f"{late} {first}", f"{early} {last}"), (f"{early} {last}", f"{late} {last}")
            return pair(*pairs[degree % 3])
        case "alphabet":
            first, last = sorted(rng.sample(NOUNS, 2))
            while (first[0] == last[0]) != (degree % 2 == 1):  # half of the pairs share their first letter
                first, last = sorted(rng.sample(NOUNS, 2))
            return pair(first, last)
        case "uppercase":
            text = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(PLACES)}"
            return text, text.upper()
        case "thousands":
            number = rng.randint(10 ** (3 + i % 4), 10 ** (4 + i % 4) - 1)
            return str(number), f"{number:,}"
    raise ValueError(f"kind must be one of those in KINDS, not {kind!r}")


def rule_rows() -> Iterator[tuple[str, ...]]:
    """The rows of all rules: `N_ROWS` of each kind, no question of a kind twice."""
    for line in KINDS.strip().splitlines():
        kind, check, *wordings = line.split("|")
        rng = random.Random(kind)
        seen: set[frozenset[str]] = set()
        while len(seen) < N_ROWS:
            text, answer = draw(kind, rng, len(seen))
            wording = rng.choice(wordings)  # drawn, so that it does not go in step with the forms
            key = frozenset(text.split()) - SIGNS  # "2 + 9" and "9 plus 2" are the same question
            if key not in seen:
                seen.add(key)
                yield kind, "rule", wording, text, answer, check


def main() -> None:
    """Replace the rows with the source "rule", and sort all rows."""
    rows = [tuple(line.split("\t")) for line in FILE.read_text(encoding="utf-8").splitlines()[1:]]
    rows = sorted([*(row for row in rows if row[1] != "rule"), *rule_rows()])
    with whole_file(FILE) as partial:
        partial.write_text("".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
