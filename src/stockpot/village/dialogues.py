"""What villagers say to each other, and the small talk of an assistant.

Documents are conversations between two villagers, in lines with the speaker's name; they ask only about
people whom training may ask about. Greetings and thanks for chats are here too; chats themselves are put
together in chats.py.
"""

from __future__ import annotations

from stockpot.village.cast import cast
from stockpot.village.dice import Dice
from stockpot.village.facts import ATTRIBUTES, Manner, fields_of
from stockpot.village.lexicon import DAYS, DISHES, GOODS, SEASONS, VILLAGE_NAME, WEATHER
from stockpot.village.people import World
from stockpot.village.wording import NUMBERS, say, wordings

__all__ = ["SMALL_TALK", "THANKS", "dialogue"]

_HELLOS = wordings(
    "Good morning, {b}.",
    "Hello, {b}! How are you?",
    "Good evening, {b}.",
    "Hello, {b}. It is a {weather} day.",
)
_HELLOS_BACK = wordings(
    "Hello, {a}. I am well, thank you.",
    "Good to see you, {a}.",
    "Hello, {a}. I am a little tired today.",
    "I am fine, {a}. And you?",
)
_ASKS = wordings("{question}", "I have a question. {question}", "One question, {name}. {question}")
_REPLIES = wordings("{fact}", "I know that. {fact}", "I can tell you. {fact}", "Let me think. {fact}")
_CHATTER = (
    (
        wordings("What did you buy at the market?", "What is in your basket?"),
        wordings("{few} {goods} and some {dish}.", "Only {few} {goods}.", "{few} {goods}. They were cheap."),
    ),
    (
        wordings("What will you do on {day}?", "Do you have time on {day}?"),
        wordings(
            "On {day} I will [clean the house|visit my sister|stay at home].", "On {day} I have no time."
        ),
    ),
    (
        wordings("What did you eat today?", "What is for supper?"),
        wordings("{dish}.", "I made {dish}. It was good.", "We have {dish} today."),
    ),
    (
        wordings("I do not like this weather.", "What {weather} weather we have!"),
        wordings("Wait until {season}.", "It will be better on {day}.", "I do not mind it."),
    ),
)
_GOODBYES = wordings(
    "Goodbye, {a}.", "See you on {day}, {a}.", "I have to go now. Goodbye!", "Thank you, {a}. Goodbye."
)

SMALL_TALK = (
    (
        wordings("Hello!", "Hello.", "Good morning!", "Good evening!", "Hi!", "Hi there!", "Good day!"),
        wordings(
            "Hello! How can I help you?",
            "Good day! What can I do for you?",
            "Hello! What would you like to know?",
        ),
    ),
    (
        wordings("How are you?", "How are you today?", "Are you well?"),
        wordings("I am fine, thank you. How can I help you?", "I am well, thank you. What can I do for you?"),
    ),
    (
        wordings("Who are you?", "What are you?", "What is your name?"),
        wordings(
            "I am the assistant of the village of {village}.",
            "I am an assistant. I know the people of {village}.",
        ),
    ),
    (
        wordings("What can you do?", "How can you help me?", "What do you know?"),
        wordings(
            "I can tell you about the people of {village}, do sums and read texts.",
            "Ask me about the people of {village}, or give me a sum.",
        ),
    ),
    (
        wordings("Goodbye!", "Good night!", "See you soon!", "I have to go now."),
        wordings("Goodbye! Come back soon.", "Goodbye! Have a good day."),
    ),
    (
        wordings("Where are we?", "What is the name of this village?", "Which village is this?"),
        wordings("This is the village of {village}.", "The village is called {village}."),
    ),
)
"""What a user says to an assistant without asking for anything, and what it answers."""

THANKS = (
    wordings("Thank you!", "Thank you very much.", "Thanks!", "Thanks, that is all."),
    wordings("You are welcome.", "You are welcome. Is there anything else?", "It was a pleasure."),
)
"""How a chat may end."""


def dialogue(world: World, dice: Dice) -> str:
    """Write a conversation of two villagers, mostly about somebody they know."""
    fields = {
        **cast(dice),
        "village": VILLAGE_NAME,
        "weather": dice.pick(WEATHER),
        "day": dice.pick(DAYS),
        "season": dice.pick(SEASONS),
        "dish": dice.pick(DISHES),
        "goods": dice.pick(GOODS).many,
        "few": NUMBERS[dice.between(2, 12)],
    }
    turns = [say(dice, _HELLOS, fields), say(dice, _HELLOS_BACK, fields)]
    person = dice.pick(world.asked)
    for attribute in dice.sample(ATTRIBUTES, dice.between(1, 3)):
        question = say(dice, attribute.questions, fields_of(world, person))
        manner: Manner = "name" if dice.chance(0.5) else "pronoun"
        fact = say(dice, attribute.statements, fields_of(world, person, manner))
        turns.append(say(dice, _ASKS, {"question": question, "name": fields["b"]}))
        turns.append(say(dice, _REPLIES, {"fact": fact}))
    if dice.chance(0.6):
        asks, replies = dice.pick(_CHATTER)
        turns += [say(dice, asks, fields), say(dice, replies, fields)]
    if dice.chance(0.5):
        turns.append(say(dice, _GOODBYES, {**fields, "a": fields["b"]}))
    speakers = (fields["a"], fields["b"])
    return "\n".join(f"{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))
