"""The words of the village: names, places, goods, animals, weather.

Lists only. They are kept small on purpose, so that a small model meets each word often; order matters,
since draws are by position: append, and change `VILLAGE_VERSION`.
"""

from __future__ import annotations

from stockpot.village.wording import Noun

__all__ = [
    "ANIMALS",
    "DAYS",
    "DISHES",
    "FRUIT",
    "GOODS",
    "HOBBIES",
    "LAST_NAMES",
    "MEN",
    "MONTHS",
    "SEASONS",
    "SPOTS",
    "STREETS",
    "THINGS",
    "TOWNS",
    "VEGETABLES",
    "VILLAGE_NAME",
    "WEATHER",
    "WOMEN",
]

VILLAGE_NAME = "Ladlebrook"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple(Noun.of(word) for word in text.split())


WOMEN = _words(
    "Ada Agnes Alma Anna Berta Brita Clara Cora Dora Edith Ella Elsa Emma Erna Eva Flora Frida Gerda "
    "Greta Hanna Hedda Helga Hilda Ida Ines Inga Iris Jana Julia Karin Lena Lilly Lotta Lucia Magda "
    "Mara Maria Marta Mina Nora Olga Paula Petra Rita Rosa Ruth Sara Selma Sofia Stella Thea Tilda "
    "Vera Viola Wilma Zita"
)
MEN = _words(
    "Adam Albert Anton Arne Axel Ben Bruno Carl Conrad Daniel David Emil Erik Felix Finn Frank Fritz "
    "Georg Gustav Hans Harald Henry Hugo Ivan Jakob Jan Jonas Josef Julian Knut Lars Leo Levi Linus "
    "Lukas Magnus Martin Max Niels Noah Olaf Oskar Otto Paul Peter Ralf Robert Rolf Samuel Simon "
    "Stefan Sven Theo Tobias Victor Walter"
)
LAST_NAMES = _words(
    "Lindqvist Weber Moreau Okafor Novak Berg Castell Dahl Eriksen Falk Garner Holm Ibsen Jansen "
    "Keller Lund Marsh Nyberg Olsen Pohl Quist Rossi Sander Tanaka Ulrich Vogel Winter Ziegler Ames "
    "Brandt Cole Duarte Engel Foster Grant Hale Irwin Joyce Krantz Lang Meier Nash Orlov Pike Reyes "
    "Silva Thorn Urban Vance Ward Abel Bloom Crane Drake Frost Hart Kovac Lowe Mercer Osman Petrov "
    "Rhodes Tamm Valdez"
)

MONTHS = _words("January February March April May June July August September October November December")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SEASONS = ("spring", "summer", "autumn", "winter")

TOWNS = _words(
    "Fernwick Harrowmere Oakhollow Saltby Wendle Marrowfield Thistleby Birkholm Dunmere Gravenbridge "
    "Pinecombe Redwater Silverbeck Stonegate Westhallow Larkhill"
)
STREETS = (
    "Mill Lane",
    "Church Street",
    "Hill Road",
    "River Street",
    "Garden Lane",
    "School Road",
    "Bridge Street",
    "Orchard Lane",
    "North Street",
    "Well Lane",
    "Forest Road",
    "Market Street",
)

HOBBIES = (
    "playing chess",
    "growing roses",
    "fishing",
    "singing in the choir",
    "playing the violin",
    "painting pictures",
    "reading old books",
    "keeping bees",
    "swimming in the lake",
    "making puppets",
    "dancing",
    "collecting stamps",
    "knitting",
    "watching birds",
    "riding horses",
    "cooking",
    "playing the flute",
    "climbing hills",
    "writing poems",
    "looking at the stars",
)

# Things that are counted, bought, sold and given away.
FRUIT = _nouns("apple pear plum cherry/cherries")
VEGETABLES = _nouns("carrot onion turnip potato/potatoes cabbage")
GOODS = (
    *FRUIT,
    *VEGETABLES,
    *_nouns(
        "egg nut cake bun candle button book ribbon cup plate bowl spoon stamp shell marble flower "
        "seed nail basket box/boxes brush/brushes card"
    ),
)
# Things that are owned, lost, found and mended.
THINGS = _nouns(
    "key hat lamp spoon ribbon kite book cup basket bell drum map scarf/scarves whistle ladder "
    "bucket hammer umbrella ring clock mirror brush/brushes rope pencil coat blanket"
)
ANIMALS = _nouns("hen duck goat cow cat dog sheep/sheep horse pig rabbit goose/geese pony/ponies")

DISHES = (
    "onion soup",
    "carrot soup",
    "apple cake",
    "plum cake",
    "bean stew",
    "fish pie",
    "potato salad",
    "egg salad",
    "honey bread",
    "cabbage soup",
    "cherry pie",
    "mushroom stew",
)

# Where things and people can be, outdoors and indoors.
SPOTS = (
    "in the garden",
    "behind the barn",
    "under the old oak tree",
    "near the well",
    "on the bridge",
    "in the attic",
    "in the kitchen",
    "by the river",
    "at the market",
    "in the cellar",
    "next to the church",
    "on the bench",
    "under the bed",
    "in the stable",
    "behind the stove",
    "on the roof",
)

WEATHER = ("sunny", "rainy", "windy", "cold", "warm", "foggy", "grey", "snowy")
