"""Plots of good days: presents, markets, soups, walks, gardens: data for stories.py.

A beat may use the fields that stories.py draws; see plot.py for what a plot is.
"""

from __future__ import annotations

from stockpot.village.plot import GLAD, Plot
from stockpot.village.wording import Wording, wordings

__all__ = ["PLEASURES"]

PLEASURES: tuple[Plot, ...] = (
    Plot(
        Wording("A present for {b}"),
        (
            wordings(
                "It was the birthday of {b}, and {a} wanted to give {b_him} something.",
                "{b} had a birthday [last {day}|in {season}]. {a} thought about a present for a long time.",
                "{a} wanted to make {b} happy on {b_his} birthday.",
            ),
            wordings(
                "{a_He} had only {few} coins, so {a_he} could not buy much.",
                "In the shop there was a {adjective} {thing}, but it was too expensive for {a_him}.",
                "{a_He} did not know what {b} would like.",
            ),
            wordings(
                "So {a_he} made a {adjective} {thing} with {a_his} own hands.",
                "Then {a_he} found an old {thing}, cleaned it and painted it {colour}.",
                "So {a_he} worked all night and made a {colour} {thing}.",
            ),
            wordings(
                "When {b} opened the box, {b_he} smiled.",
                "{b} opened the present and could not believe {b_his} eyes.",
                '"{A_thing}!" said {b}. "That is just what I need."',
            ),
            wordings(
                '"It is the best present of all," said {b}.',
                "{b} thanked {a} and gave {a_him} a piece of cake.",
                "{b} showed the {thing} to all the guests.",
            ),
        ),
        wordings(
            "{a} made {a_thing} for the birthday of {b}, and {b} was very happy.",
            "{b} got {a_thing} from {a} and liked it.",
        ),
        GLAD,
    ),
    Plot(
        Wording("Market day"),
        (
            wordings(
                "On {day} there was a market in the village, and {a} went there with {few} coins.",
                "{a} went to the market on a {weather} morning.",
                "It was market day. {a} took a basket and left the house early.",
            ),
            wordings(
                "{a_He} bought {some_goods} and {some_goods2}.",
                "First {a_he} bought {some_goods}. After that {a_he} bought {some_goods2}.",
                "{a_He} saw {some_goods} and bought them at once.",
            ),
            wordings(
                "At the market {a_he} met {b}, who sold {goods3}.",
                "Then {a_he} met {b}. They talked about the weather.",
                "{b} stood next to the bread and said hello.",
            ),
            wordings(
                '"Do you need some {goods3}?" asked {b}. "Yes, please," said {a}.',
                "{a} gave {b} two {goods}, and {b} gave {a} {some_goods3}.",
                "{b} gave {a} {some_goods3} as a present.",
            ),
            wordings(
                "The basket was heavy, so they carried it home together.",
                "On the way home it began to rain, and they ran.",
                "At noon {a} was home again and made {dish}.",
            ),
        ),
        wordings(
            "{a} went to the market, bought {goods} and met {b}.",
            "At the market {a} met {b} and bought {goods}.",
        ),
        GLAD,
    ),
    Plot(
        Wording("The big pot of soup"),
        (
            wordings(
                "It was a {weather} evening, and {a} had nothing in {a_his} kitchen but a pot and some water.",
                "{a} was hungry, but {a_he} had only a pot of water and a stone.",
                "[One|Last] {season}, food was short in the village. {a} put a big pot of water on the fire.",
            ),
            wordings(
                '{b} came by and asked, "What are you cooking?" "Soup," said {a}, "but something is missing."',
                '{b} looked into the pot. "It needs {foods}," {b_he} said.',
                '"Come in," said {a} to {b}. "The soup is good, but it could be better."',
            ),
            wordings(
                "So {b} brought {some_foods}.",
                "{b} ran home and came back with {some_foods}.",
                "{b} had {some_foods} and put them into the pot.",
            ),
            wordings(
                "The neighbours came too. One brought {some_foods2}, and another one brought salt.",
                "Then other people brought {some_foods2} and {some_foods3}.",
                "Soon everybody had put something into the pot: {foods2}, {foods3} and salt.",
            ),
            wordings(
                "In the end there was enough soup for the whole street.",
                "It was the best soup they had ever eaten.",
                "They all sat down and ate together.",
            ),
        ),
        wordings(
            "{a} began a soup with water only, and the neighbours brought the rest.",
            "Everybody brought something for the soup of {a}, and it was very good.",
        ),
        wordings(
            '"Alone I had a pot," said {a}. "Together we have soup."',
            '{b} asked, "When do we cook again?"',
            "Nobody went to bed hungry that night.",
        ),
    ),
    Plot(
        Wording("A walk to the river"),
        (
            wordings(
                "On a {weather} {day}, {a} and {b} went for a walk to the river.",
                '{a} asked {b}, "Shall we go to the river?" And so they went.',
                "[In {season}|Last {day}], {a} and {b} walked along the river.",
            ),
            wordings(
                "They took {some_foods} and a bottle of milk with them.",
                "The way was long, and they sang a song.",
                "On the way they saw {some_animals}.",
            ),
            wordings(
                "At the river they sat down {out} and ate.",
                "Near the water {a} found a {adjective} {thing}.",
                "They threw stones into the water and counted the rings.",
            ),
            wordings(
                "Then they heard something. It was a little {animal} that could not find its way home.",
                "Suddenly a {coat} {animal} came out of the trees.",
                "{b} slipped and fell into the water, but it was not deep.",
            ),
            wordings(
                "They came home late, tired and happy.",
                "When it got dark, they went home by the light of the moon.",
                '"Next {day} we will come again," said {b}.',
            ),
        ),
        wordings("{a} and {b} went for a walk to the river.", "{a} and {b} spent a day by the river."),
        GLAD,
    ),
    Plot(
        Wording("{a} learns something new"),
        (
            wordings(
                "{a} wanted to learn {skill}.",
                '[One day|In {season}], {a} said, "I want to learn {skill}."',
                "Everybody could do it, only {a} had never tried {skill}.",
            ),
            wordings(
                "At first it was hard, and {a_he} made many mistakes.",
                "The first try went wrong, and {a_he} wanted to stop.",
                "{a_He} tried it {few} times, but it did not work.",
            ),
            wordings(
                '{b} said, "Nobody can do it on the first day. Try again."',
                "{b} showed {a_him} how to do it, slowly, step by step.",
                "Then {b} helped {a_him} every {day}.",
            ),
            wordings(
                "So {a_he} practised every day, even when it was {weather}.",
                "After {few} weeks it went much better.",
                "{a_He} did not give up, and it got better day by day.",
            ),
            wordings(
                "In the end {a_he} could do it so well that everybody was surprised.",
                "Now {a} teaches other people {skill}.",
                '"You see," said {b}, "you only had to practise."',
            ),
        ),
        wordings(
            "With the help of {b}, {a} learned {skill}.",
            "{a} wanted to learn {skill}, and after much practice {a_he} could do it.",
        ),
        wordings("{a} was proud, and {b} was proud too.", "It is never too late to learn."),
    ),
    Plot(
        Wording("The biggest {vegetable}"),
        (
            wordings(
                "Every autumn the village looks for the biggest {vegetable}.",
                '"Who has the biggest {vegetable}?" they asked in the village.',
                "{a} wanted to grow the biggest {vegetable} in the village.",
            ),
            wordings(
                "{a} gave {a_his} {vegetables} water every morning and talked to them.",
                "The garden of {a} was small, but the earth was good.",
                "All year {a} worked in the garden.",
            ),
            wordings(
                "But {b} had a big {vegetable} too.",
                "Only {b} had one that was just as big.",
                "Then {b} came with {a_vegetable} as big as a {animal}.",
            ),
            wordings(
                "In the end {b} won, and {a} shook {b_his} hand.",
                "{a} won, and the prize was a {adjective} {thing}.",
                "Nobody could say which one was bigger, so both of them won.",
            ),
            wordings(
                "Then the whole village ate {vegetable} soup.",
                "They cut the {vegetables} and cooked them in a big pot.",
                '"Next year I will try again," said {a}.',
            ),
        ),
        wordings(
            "{a} and {b} both grew a very big {vegetable}.", "The village looked for the biggest {vegetable}."
        ),
        GLAD,
    ),
    Plot(
        Wording("A garden for {a}"),
        (
            wordings(
                "In {season}, {a} got a small piece of land {out}.",
                "Behind the house of {a} there was nothing but stones and grass.",
                "{a} had always wanted a garden.",
            ),
            wordings(
                "{b} brought {few} seeds in a paper bag.",
                "{a_He} bought seeds from {b} for {few} coins.",
                "{b} helped {a_him} to carry away the stones.",
            ),
            wordings(
                "They planted {vegetables} and {fruit_trees}.",
                "First they planted {vegetables}. A week later they planted flowers.",
                "{a} gave the plants water every evening.",
            ),
            wordings(
                "For {few} weeks nothing happened.",
                "A {animal} came and ate the first leaves.",
                "It was {weather} for a long time, and {a} was worried.",
            ),
            wordings(
                "But in the end there were so many {vegetables} that {a} could give some to everybody.",
                "Then the first flowers opened, {colour} and white.",
                "In autumn they filled {few} baskets.",
            ),
        ),
        wordings("{a} made a garden, and {b} helped {a_him}.", "With the help of {b}, {a} planted a garden."),
        GLAD,
    ),
)
