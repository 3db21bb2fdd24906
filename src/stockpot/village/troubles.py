"""Plots in which something goes wrong and a neighbour helps: data for stories.py.

A beat may use the fields that stories.py draws; see plot.py for what a plot is.
"""

from __future__ import annotations

from stockpot.village.plot import GLAD, Plot
from stockpot.village.wording import Wording, wordings

__all__ = ["TROUBLES"]

TROUBLES: tuple[Plot, ...] = (
    Plot(
        Wording("The lost {thing}"),
        (
            wordings(
                "[One morning|One afternoon|On a {weather} day|Last {day}], {a} could not find {a_his} {adjective} {thing}.",
                "{a} had a {adjective} {thing}. [One day|One {day}|In {season}], it was gone.",
                "[One day|One {day}], {a} [came home|woke up] and saw that {a_his} {adjective} {thing} was gone.",
            ),
            wordings(
                "{a_He} looked {spot}, but it was not there.",
                "{a_He} looked {spot} and {spot2}, but {a_he} did not find it.",
                "{a_He} looked for it {spot}. There was nothing but an old {thing2}.",
                "First {a_he} looked {spot}. Then {a_he} looked {spot2}. The {thing} was not there.",
            ),
            wordings(
                "{b} saw that {a} was sad and came to help.",
                "Then {a} asked {b} for help.",
                '{b} heard about it and said, "Let us look for it together."',
                '"What are you looking for?" asked {b}. "For my {thing}," said {a}.',
            ),
            wordings(
                "[After a while|At last|An hour later], they found the {thing} {spot3}.",
                "[After a long search|Before it got dark], {b} found it {spot3}.",
                "They looked everywhere, and in the end the {thing} was {spot3}.",
            ),
            wordings(
                "{a} thanked {b} and gave {b_him} some {dish}.",
                '"Thank you!" said {a}. "I will take better care of it."',
                "{a} was so glad that {a_he} danced.",
                "{a} thanked {b} with all {a_his} heart.",
            ),
        ),
        wordings(
            "{a} lost {a_his} {thing}, and {b} helped {a_him} to find it {spot3}.",
            "{a} and {b} found the lost {thing} {spot3}.",
        ),
        (*GLAD, *wordings("Now {a} always keeps the {thing} [on the shelf by the door|in a safe place].")),
    ),
    Plot(
        Wording("The broken {thing}"),
        (
            wordings(
                "[One day|On {day}], {a} dropped {a_his} {thing}, and it broke.",
                "The {thing} of {a} was old, and [one day|one {day}] it broke.",
                "On a {weather} day, {a} fell down and broke {a_his} {adjective} {thing}.",
            ),
            wordings(
                "{a_He} was sad, because {a_he} needed it every day.",
                "{a_He} tried to mend it, but it did not work.",
                "{a_He} did not have the money for a new one.",
            ),
            wordings(
                "So {a_he} took it to {b}, who was good with tools.",
                "{b} lived nearby and could mend almost everything.",
                '"Bring it to me," said {b}. "I will have a look at it."',
            ),
            wordings(
                "{b} worked on it for {few} hours, and then the {thing} was as good as new.",
                "{b} needed only a nail, a piece of wood and some time.",
                "{b} mended the {thing} and even painted it {colour}.",
            ),
            wordings(
                "{a} wanted to pay, but {b} asked only for some {dish}.",
                "{a} paid {few} coins and said thank you.",
                "As a thank-you, {a} helped {b} in the garden.",
            ),
        ),
        wordings("The {thing} of {a} broke, and {b} mended it.", "{b} mended the broken {thing} of {a}."),
        (*GLAD, *wordings("Since then {a} has been more careful.")),
    ),
    Plot(
        Wording("The {animal} that ran away"),
        (
            wordings(
                "{a} had a {coat} {animal}. [One day|One {day}|On a {weather} morning], it ran away.",
                "Somebody had left the gate open, and the {animal} of {a} ran away.",
                "When {a} came to the stable on {day}, the {animal} was not there.",
            ),
            wordings(
                "{a_He} called and called, but the {animal} did not come.",
                "{a_He} ran through the whole village and asked everybody.",
                "{a_He} looked {out} and {out2}.",
            ),
            wordings(
                "{b} had seen it {out3}.",
                '"I saw a {coat} {animal} {out3}," said {b}.',
                "Then {b} came and said that there was a {animal} {out3}.",
            ),
            wordings(
                "They went there, and there it was, eating {foods}.",
                "The {animal} was hungry. {b} held out {some_foods}, and it came at once.",
                "Together they caught it and brought it home.",
            ),
            wordings(
                "{a} closed the gate well that evening.",
                "{a} gave {b} {some_foods2} to say thank you.",
                "The {animal} never ran away again.",
            ),
        ),
        wordings(
            "The {animal} of {a} ran away, and {b} knew where it was.",
            "{a} and {b} found the lost {animal} {out3}.",
        ),
        GLAD,
    ),
    Plot(
        Wording("The storm"),
        (
            wordings(
                "[One night|Last {season}|On {day}], a storm came over the village.",
                "The wind was so strong that {a} could not sleep.",
                "It rained for {few} days, and the river rose.",
            ),
            wordings(
                "The wind took the roof of the {building} of {a}.",
                "A tree fell on the {building} of {a}.",
                "Water ran into the {building} of {a}.",
            ),
            wordings(
                "{a} stood in the rain and did not know what to do.",
                "{a_He} tried to save {a_his} {animal} and {a_his} {thing}.",
                '"What shall I do now?" said {a}.',
            ),
            wordings(
                "{b} came with a ladder and a hammer, and other neighbours came too.",
                '{b} said, "You can stay with us until the {building} is dry."',
                "Then {b} called the neighbours, and everybody helped.",
            ),
            wordings(
                "After {few} days the {building} was as good as before.",
                "They worked until evening, and then the work was done.",
                "When the sun came out again, the {building} had a new roof.",
            ),
        ),
        wordings(
            "A storm damaged the {building} of {a}, and {b} and the neighbours helped.",
            "After the storm, {b} helped {a} with the {building}.",
        ),
        GLAD,
    ),
    Plot(
        Wording("One {thing} for two"),
        (
            wordings(
                "{a} and {b} found a {adjective} {thing} {spot}.",
                "There was only one {thing}, and both {a} and {b} wanted it.",
                "On {day}, {a} and {b} saw a {colour} {thing} {spot}. Each of them wanted to have it.",
            ),
            wordings(
                '"I saw it first," said {a}. "No, I did," said {b}.',
                "They were angry and did not talk to each other.",
                "{a} pulled on one side and {b} on the other.",
            ),
            wordings(
                'Then an old woman came and asked, "Why do you not share it?"',
                'After an hour {a} said, "We are silly. Let us share."',
                "Then it began to rain, and they had to sit under the same tree.",
            ),
            wordings(
                "So {a} had it on {day}, and {b} had it on {day2}.",
                "They gave it to the school, where everybody could use it.",
                "They sold it, and each of them got {few} coins.",
            ),
        ),
        wordings(
            "{a} and {b} both wanted the {thing}, and in the end they found a good way.",
            "{a} and {b} were angry about {a_thing}, but they made peace.",
        ),
        GLAD,
    ),
    Plot(
        Wording("A visit"),
        (
            wordings(
                "{b} was ill and had to stay in bed for {few} days.",
                "[One|Last] {season}, {b} fell ill.",
                "On {day}, {b} did not come to work. {b_He} was ill.",
            ),
            wordings(
                "{a} heard about it and cooked {dish} for {b_him}.",
                "{a} put {some_foods} into a basket and went to see {b_him}.",
                '"Poor {b}," said {a}, and {a_he} went there at once.',
            ),
            wordings(
                "{a_He} read {b_him} a story and made tea.",
                "They talked about old times and looked at pictures.",
                "{a_He} fed the {animal} and cleaned the kitchen.",
            ),
            wordings(
                "The next day {b} felt better.",
                "After {few} days {b} could get up again.",
                "Soon {b} was well and went for a walk {out2}.",
            ),
        ),
        wordings("{b} was ill, and {a} visited {b_him}.", "{a} took care of {b}, who was ill."),
        GLAD,
    ),
    Plot(
        Wording("A noise in the night"),
        (
            wordings(
                "[One night|One {weather} night], {a} heard a noise {spot_in}.",
                "It was dark, and {a} was in bed. Suddenly there was a noise {spot_in}.",
                "In the middle of the night, {a} woke up. Something was {spot_in}.",
            ),
            wordings(
                "{a_He} took a lamp and went to look.",
                "{a_He} was afraid and sat up.",
                "{a_He} held {a_his} breath and listened.",
            ),
            wordings(
                '"Who is there?" called {a}. Nobody answered.',
                "Then something fell down with a loud noise.",
                "For a moment it was quiet. Then the noise came again.",
            ),
            wordings(
                "But it was only a {pet} that was looking for food.",
                "It was only an old {thing} that had fallen from the wall.",
                "It was the wind, which played with an old {thing}.",
            ),
            wordings(
                "{a} laughed and went back to bed.",
                "{a} took a deep breath and drank a cup of milk.",
                "After that {a} slept until the sun came up.",
            ),
        ),
        wordings(
            "{a} heard a noise in the night, but there was no danger.",
            "{a} was afraid of a noise in the night, and there was no need to be.",
        ),
        wordings(
            "The next morning {a} told {b} about it.", "Since then a lamp has stood next to {a_his} bed."
        ),
    ),
    Plot(
        Wording("The wrong letter"),
        (
            wordings(
                "On {day}, {a} got a letter, but it was not for {a_him}.",
                "The mail carrier brought {a} a letter with the wrong name on it.",
                "There was a letter at the door of {a}. It was for {b}.",
            ),
            wordings(
                "{a} did not open it. {a_He} put on {a_his} coat and went to {b}.",
                "It was {weather} outside, but {a} went to {b} at once.",
                '"This must be important," thought {a}, and {a_he} looked for {b}.',
            ),
            wordings(
                "{b} read the letter and smiled.",
                "{b} opened it with cold fingers and read it {few} times.",
                '"It is from my brother," said {b}. "He is coming home in {season}!"',
            ),
            wordings(
                "They drank tea and ate {dish}.",
                "{b} asked {a_him} to stay, and they talked for {few} hours.",
                "{b} gave {a} {a_thing} to say thank you.",
            ),
        ),
        wordings("{a} got a letter that was for {b} and brought it to {b_him}.", "{a} brought {b} a letter."),
        GLAD,
    ),
)
