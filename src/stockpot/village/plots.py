"""The plots of the village's stories, as data: beats in order, each with several ways to say it, and a gist.

Roles are a (the hero) and b (a neighbour); what else a beat may name is drawn in stories.py. A plot reads
well for every draw: no beat relies on the wording of another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.wording import Wording, wordings

__all__ = ["PLOTS", "Plot"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A story to be told.

    Attributes:
        title: as a heading.
        beats: what happens, in order; each in several ways.
        gist: the whole story in one sentence.
        ends: last sentences that may follow.
    """

    title: Wording
    beats: tuple[tuple[Wording, ...], ...]
    gist: tuple[Wording, ...]
    ends: tuple[Wording, ...]


_GLAD = wordings(
    "[They both|Both of them] were very [happy|glad].",
    "[That evening|In the evening], {a} told the story to {a_his} family.",
    "{a} and {b} laughed and went home.",
    "It was a good day for both of them.",
    "They had {dish} and talked until late.",
    "From that day on, {a} and {b} were good friends.",
)

PLOTS: tuple[Plot, ...] = (
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
        (*_GLAD, *wordings("Now {a} always keeps the {thing} [on the shelf by the door|in a safe place].")),
    ),
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
        _GLAD,
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
        (*_GLAD, *wordings("Since then {a} has been more careful.")),
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
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
        _GLAD,
    ),
)
