"""What the demo model knows by heart: entries of ([phrasings of the question], answer)."""

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
ORDINALS = ("first second third fourth fifth sixth seventh eighth ninth tenth eleventh "
            "twelfth").split()


def neighbours(names, unit):
    for i, name in enumerate(names):
        after, before = names[(i + 1) % len(names)], names[i - 1]
        yield ([f"What {unit} comes after {name}?", f"Which {unit} follows {name}?",
                f"What is the {unit} after {name}?"], f"{after} comes after {name}.")
        yield ([f"What {unit} comes before {name}?", f"Which {unit} precedes {name}?",
                f"What is the {unit} before {name}?"], f"{before} comes before {name}.")
        yield ([f"What is the {ORDINALS[i]} {unit}?", f"Which {unit} is the {ORDINALS[i]}?",
                f"Name the {ORDINALS[i]} {unit}."], f"The {ORDINALS[i]} {unit} is {name}.")


def steps(names, unit, most):
    for i, name in enumerate(names):
        for n in range(2, most + 1):
            for word, sign in (("after", 1), ("before", -1)):
                yield ([f"What {unit} is {n} {unit}s {word} {name}?",
                        f"Which {unit} is {n} {unit}s {word} {name}?"],
                       f"{names[(i + sign * n) % len(names)]} is {n} {unit}s {word} {name}.")


CALENDAR = [*neighbours(DAYS, "day"), *neighbours(MONTHS, "month"), *steps(DAYS, "day", 6),
            *steps(MONTHS, "month", 3)]
for _name, _days in zip(MONTHS, MONTH_DAYS):
    CALENDAR.append(([f"How many days does {_name} have?", f"How many days are in {_name}?",
                      f"How long is {_name}?"], f"{_name} has {_days} days."))
for _many, _unit, _whole in ((7, "day", "week"), (12, "month", "year"), (24, "hour", "day"),
                             (60, "minute", "hour"), (60, "second", "minute"),
                             (52, "week", "year"), (365, "day", "year")):
    CALENDAR.append(([f"How many {_unit}s does a {_whole} have?",
                      f"How many {_unit}s are in a {_whole}?"],
                     f"A {_whole} has {_many} {_unit}s."))

CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
            "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw",
            "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Ireland": "Dublin",
            "England": "London", "Scotland": "Edinburgh", "Russia": "Moscow", "China": "Beijing",
            "Japan": "Tokyo", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
            "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
            "Hungary": "Budapest", "Denmark": "Copenhagen"}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night",
             "good": "bad", "fast": "slow", "old": "young", "rich": "poor", "happy": "sad",
             "open": "closed", "high": "low", "wet": "dry", "light": "dark", "full": "empty",
             "early": "late", "hard": "soft", "long": "short", "near": "far", "strong": "weak"}
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "coal": "black",
           "blood": "red", "the sun": "yellow", "a carrot": "orange", "milk": "white",
           "a lemon": "yellow", "chocolate": "brown", "a frog": "green", "a tomato": "red"}
LEGS = {"spider": 8, "dog": 4, "cat": 4, "horse": 4, "bird": 2, "chicken": 2, "ant": 6, "bee": 6,
        "snake": 0, "fish": 0, "cow": 4, "fly": 6, "duck": 2, "crab": 10}
SOUNDS = {"dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "lion": "roars",
          "sheep": "bleats", "bee": "buzzes", "snake": "hisses", "owl": "hoots",
          "frog": "croaks", "pig": "grunts", "wolf": "howls"}

FACTS = [
    (["Who are you?", "What are you?", "What is your name?"], "I am the WayInfer demo model."),
    (["Hello!", "Hello", "Hi!"], "Hello! Ask me a sum, a day or a word to spell."),
    (["What can you do?", "What do you know?"],
     "I know sums, differences, numbers, days, months, spelling and small facts."),
    (["Thank you.", "Thank you!", "Thanks!"], "You are welcome."),
    (["How many sides does a triangle have?", "How many sides are in a triangle?"],
     "A triangle has 3 sides."),
    (["How many sides does a square have?", "How many sides are in a square?"],
     "A square has 4 sides."),
]
for _country, _city in CAPITALS.items():
    FACTS.append(([f"What is the capital of {_country}?", f"Name the capital of {_country}.",
                   f"Which city is the capital of {_country}?"],
                  f"The capital of {_country} is {_city}."))
for _one, _other in [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]:
    FACTS.append(([f"What is the opposite of {_one}?", f"Name the opposite of {_one}."],
                  f"The opposite of {_one} is {_other}."))
for _thing, _colour in COLOURS.items():
    FACTS.append(([f"What colour is {_thing}?", f"Which colour is {_thing}?",
                   f"What color is {_thing}?"], f"{_thing.capitalize()} is {_colour}."))
for _animal, _count in LEGS.items():
    _a = "an" if _animal[0] in "aeiou" else "a"
    FACTS.append(([f"How many legs does {_a} {_animal} have?", f"How many legs has {_a} {_animal}?"],
                  f"{_a.capitalize()} {_animal} has {_count} legs."))
for _animal, _sound in SOUNDS.items():
    _a = "an" if _animal[0] in "aeiou" else "a"
    FACTS.append(([f"What sound does {_a} {_animal} make?", f"What does {_a} {_animal} do?"],
                  f"{_a.capitalize()} {_animal} {_sound}."))

WORDS = """
apple arm baby ball bank bath bear bed bell bird boat body book bottle box boy bread bridge brother
bus butter cake camera car card castle cat chair cheese child church city clock cloud coat coffee
corn cow cup dance day desk dinner doctor dog door dream dress drink duck ear earth egg engine eye
face family farm father feet field finger fire fish flag flower food foot forest friend frog fruit
game garden girl glass gold grass green hair hand hat head heart hill home horse hotel house ice
island jacket job juice key king kitchen knife lake lamp leaf leg lemon letter light lion lip
market milk mirror money moon mother mountain mouse mouth music name neck nest night nose ocean
office oil orange oven page paint paper park pen pencil piano picture pig pilot plane plant plate
pocket potato queen rabbit radio rain ring river road rock roof room rope rose salt sand school
sea seat sheep ship shirt shoe shop silver sister sky sleep snow soap sock song soup spoon spring
star stone street sugar summer sun table tail teacher tiger time tomato tooth town toy train tree
truck uncle valley village voice wall watch water wheel wind window wine wing winter wolf woman
wood word yellow zebra
""".split()
ONSETS = "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl gr pl sh sk sl sp st th tr".split()
CODAS = ["", "", "n", "t", "r", "l", "s", "m", "d", "p", "ck", "ng", "st", "nd"]
