#!/usr/bin/env python3
"""Write the built-in calibration and evaluation texts.

    python3 make_text.py                     # datasets/text/{calibration,evaluation}
    python3 make_text.py --train FILE        # also a training corpus of several MB
    python3 make_text.py --check             # only verify the files that exist

The output is deterministic (fixed seeds) and needs nothing but Python 3.11.
All text comes from the word lists, grammars and paragraphs in this file, which
were written for this project (licence: MIT OR Apache-2.0).

Texts are UTF-8 documents separated by one blank line. Evaluation, calibration
and training texts are kept apart: no line and no sentence of 40 or more bytes
of one occurs in another. Evaluation is drawn first, then calibration, then
training, each rejecting documents that share such a unit with an earlier one.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATASETS = HERE.parent
DOMAINS = ["prose", "code", "math", "dialogue", "multilingual"]
UNIT = 40  # bytes


# ==========================================================================
# template engine
#
#   {name}        value from the context, else a random word of that list
#   {name:mods}   modifiers, left to right: a (article), pl, past, ing, s, C (capital)
#   [x|y|z]       one alternative (may be nested, may be empty)

def W(s: str) -> list[str]:
    return s.split()


def P(s: str) -> list[str]:
    """Phrases, one per '/' ."""
    return [x.strip() for x in s.replace("\n", " ").split("/") if x.strip()]


IRREGULAR = dict(x.split(":") for x in W("""
go:went come:came see:saw find:found take:took give:gave make:made keep:kept leave:left hold:held
bring:brought buy:bought build:built catch:caught choose:chose draw:drew drive:drove eat:ate
fall:fell feel:felt get:got grow:grew hear:heard hide:hid know:knew lose:lost meet:met read:read
ride:rode run:ran sell:sold send:sent sing:sang sit:sat sleep:slept speak:spoke spend:spent
stand:stood steal:stole swim:swam teach:taught tell:told think:thought throw:threw wake:woke
wear:wore write:wrote shake:shook break:broke sweep:swept cut:cut put:put set:set lend:lent
understand:understood forget:forgot begin:began bend:bent bind:bound blow:blew feed:fed weave:wove
mean:meant light:lit dig:dug lead:led pay:paid say:said shut:shut wind:wound hang:hung"""))
PLURAL = dict(x.split(":") for x in W("""
knife:knives loaf:loaves leaf:leaves shelf:shelves child:children mouse:mice goose:geese man:men
woman:women wolf:wolves postman:postmen fisherman:fishermen ferryman:ferrymen night-watchman:night-watchmen half:halves foot:feet sheep:sheep fish:fish scarf:scarves deer:deer"""))


def past(v: str) -> str:
    head, _, rest = v.partition(" ")
    if head in IRREGULAR:
        h = IRREGULAR[head]
    elif head.endswith("e"):
        h = head + "d"
    elif re.search(r"[^aeiou]y$", head):
        h = head[:-1] + "ied"
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", head):
        h = head + head[-1] + "ed"
    else:
        h = head + "ed"
    return h + (" " + rest if rest else "")


PARTICIPLE = dict(x.split(":") for x in W("""take:taken draw:drawn choose:chosen forget:forgotten break:broken
steal:stolen throw:thrown hide:hidden shake:shaken write:written give:given see:seen"""))


def participle(v: str) -> str:
    head, _, rest = v.partition(" ")
    return PARTICIPLE[head] + (" " + rest if rest else "") if head in PARTICIPLE else past(v)


def ing(v: str) -> str:
    head, _, rest = v.partition(" ")
    if head.endswith("e") and not head.endswith("ee"):
        h = head[:-1] + "ing"
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", head):
        h = head + head[-1] + "ing"
    else:
        h = head + "ing"
    return h + (" " + rest if rest else "")


def plural(n: str) -> str:
    if n in PLURAL:
        return PLURAL[n]
    if re.search(r"(s|x|ch|sh)$", n):
        return n + "es"
    if re.search(r"[^aeiou]y$", n):
        return n[:-1] + "ies"
    return n + "s"


def third(v: str) -> str:
    head, _, rest = v.partition(" ")
    return plural(head) + (" " + rest if rest else "")


def article(n: str) -> str:
    vowel = n[0] in "aeiouAEIOU" and not re.match(r"(uni|use|one|eu)", n)
    return ("an " if vowel or n.startswith(("hour", "honest")) else "a ") + n


MODS = {"a": article, "pp": participle, "pl": plural, "past": past, "ing": ing, "s": third,
        "C": lambda s: s[:1].upper() + s[1:]}

LEX: dict[str, list[str]] = {}


def pick(r: random.Random, xs):
    """A skewed choice: earlier entries are likelier, as words are in real text."""
    n = len(xs)
    if n < 12:
        return xs[r.randrange(n)]
    return xs[min(n - 1, int(n * r.random() ** 1.5))]


def ex(r: random.Random, t: str, c: dict | None = None) -> str:
    c = c or {}
    while "[" in t:
        t = re.sub(r"\[([^\[\]]*)\]", lambda m: r.choice(m.group(1).split("|")), t)

    def sub(m):
        name, _, mods = m.group(1).partition(":")
        v = c[name] if name in c else pick(r, LEX[name])
        v = str(v)
        if "{" in v:
            v = ex(r, v, c)
        for k in mods.split(","):
            if k:
                v = MODS[k](v)
        return v

    t = re.sub(r"\{([a-z_0-9]+(?::[a-zA-Z,]+)?)\}", sub, t)
    return t


def sent(r, t, c=None) -> str:
    s = re.sub(r"\s+", " ", ex(r, t, c)).strip()
    s = re.sub(r" ([,.;:!?])", r"\1", s)
    return s[:1].upper() + s[1:]


def para(r, ts, c=None) -> str:
    return " ".join(sent(r, t, c) for t in ts)


def some(r, xs, lo, hi):
    """lo..hi distinct templates in random order."""
    return r.sample(xs, min(len(xs), r.randint(lo, hi)))


# ==========================================================================
# English word lists

GIRLS = W("""Anna Marta Clara Nora Ida Elena Sofia Ruth Greta Lucy Hannah Mila Rosa Iris Alma Tess Olga Vera
June Edith Pilar Amira Leila Yuki Wren Dora Stella Agnes Joan Mabel Freya Ingrid Paula Beatrice Naomi
Camille Ada Fiona Harriet Zora Lena Miriam Petra Saskia Thea Una Winnie Salma Noor Priya""")
BOYS = W("""Tom Peter Jonas Felix Oscar Hugo Samuel Daniel Martin Leo Arthur Henry Victor Emil Simon David
Paul Karim Anton Walter George Ivan Ravi Kenji Omar Louis Max Theo Albert Bruno Conrad Edgar Frank Gilbert
Harold Isaac Jasper Kurt Lewis Miles Nathan Otto Philip Rufus Stefan Tobias Vincent Yusuf Zeno Malik""")
SURNAMES = W("""Miller Hart Berg Novak Keller Santos Rossi Lindqvist Okafor Tanaka Moreau Weber Brandt Costa
Fischer Hale Ortega Petrov Quinn Reed Sloan Turner Vance Walsh Young Abbott Barlow Crane Doyle Ellis Farrow
Grant Holt Ives Jansen Kerr Lowell Mercer Nash Osborne Pike Rowe Shaw Thorne Upton Vale Whitlock Yates Amari
Bose Chandra Dufour Eriksen Fontaine""")
T1 = W("Ash Black Brook Cold East Elm Fair Green Hart High Kings Long Marsh Mill North Oak Red Rose Salt "
       "South Stone Thorn West White Willow Winter Hazel Fox Raven Lark Iron Silver Bridge Clay Dun Gold")
T2 = W("ford ton ham field bury bridge wick mouth stead well brook dale port gate haven worth ley combe minster moor")

LEX.update(
    adj=W("""old small new large cold warm bright heavy narrow empty strange long dark simple soft broken clean deep dry
        faint fine flat fresh green hard hidden high hollow light little low neat noisy pale plain quick rare rough round
        rusty sad sharp short silver slow smooth solid steep stiff sweet tall thick thin tidy tiny ugly useful weak wet wide
        wild wooden yellow ancient battered crooked dusty elegant fragile golden humble ordinary peculiar ragged shallow
        sturdy unusual costly curious damaged delicate distant famous forgotten foreign grey handsome harmless lovely missing
        muddy painted precious quiet remarkable ruined secret spare spotless square twisted unfinished valuable worn"""),
    padj=W("""young old tall kind poor clever quiet polite tired hungry honest proud patient lonely strange famous modest wise
        brave careful cheerful stubborn shy rude generous lazy busy gentle serious nervous foolish thoughtful absent-minded
        bald elderly friendly greedy grumpy jealous loyal merry mysterious pale practical retired reliable sensible silent
        sleepy talkative thin timid unhappy vain weary well-dressed young-looking"""),
    color=W("red blue green white black grey brown yellow orange purple silver golden pink violet crimson cream"),
    thing=W("""letter key lamp box book map clock basket bottle rope coat mirror chair table photograph ring coin knife
        candle bicycle radio suitcase notebook blanket bell boat bucket ladder hammer umbrella hat kettle violin
        telescope compass lantern wheel drum painting ticket parcel envelope necklace button glove cup plate spoon jar
        barrel cart saw needle brush broom drawer shelf stool bench flute whistle kite puppet mask shell feather stone
        brick plank nail chain anchor oar net sail tent backpack flashlight camera typewriter diary ledger stamp
        newspaper magazine receipt passport badge uniform scarf belt boot apron pillow curtain carpet vase teapot
        saucepan tray tin bracelet watch thermometer barometer magnet battery engine pump valve gear spring"""),
    place=W("""kitchen garden station harbour library market school bridge church square field forest river hill
        workshop museum hospital hotel bakery mill tower cellar attic barn stable orchard meadow valley lake island
        beach lighthouse castle courtyard theatre factory office laboratory archive court bank shop cafe restaurant
        tavern inn chapel cemetery park playground stadium airport warehouse dock shipyard quarry mine well cottage
        farmhouse greenhouse vineyard pasture crossroads tunnel staircase corridor balcony rooftop cabin camp"""),
    role=W("""teacher baker fisherman doctor farmer carpenter librarian postman gardener sailor nurse engineer painter
        tailor clerk captain musician shepherd blacksmith innkeeper student merchant mechanic lawyer judge reporter
        photographer pilot conductor guard miller weaver cook waiter potter printer surveyor astronomer chemist
        historian translator poet actor dancer plumber electrician mason cobbler barber dentist pharmacist soldier
        detective inspector mayor secretary widow beekeeper clockmaker bookbinder glassblower ferryman night-watchman"""),
    kin=W("mother father sister brother aunt uncle grandmother grandfather cousin neighbour friend daughter son wife husband niece nephew"),
    animal=W("""dog cat horse cow goat sheep hen duck goose crow owl sparrow swallow fox hare hedgehog squirrel badger
        otter deer wolf bear mouse frog toad bee butterfly donkey pigeon heron trout eel pike salmon seal gull hawk
        robin magpie beetle spider snail tortoise bat mole weasel lynx"""),
    plant=W("""oak birch pine willow apple pear cherry plum rose lily tulip daisy ivy fern moss clover barley wheat rye
        oats lavender thyme mint sage poppy thistle nettle hazel chestnut walnut maple elm juniper heather bramble"""),
    food=W("""bread soup cheese butter honey milk tea coffee apple pear onion potato carrot cabbage bean rice fish stew
        cake pie jam egg salad sausage ham pepper salt sugar flour noodle pancake biscuit plum cherry lemon garlic
        tomato mushroom pumpkin walnut almond raisin porridge dumpling omelette"""),
    material=W("wood iron stone glass paper leather wool cotton silk copper brass clay wax silver tin steel marble straw linen ivory"),
    weather=P("""the rain fell steadily / a thin mist lay over the {place} / the wind came from the {compass} / the sun
        was already high / snow covered the roofs / the sky was the colour of {material} / a storm was coming / the air
        smelled of {plant} and smoke / it had not rained for weeks / the fog was so thick that nobody could see the
        {place} / clouds hung low over the {place} / the evening was unusually warm / frost glittered on every {thing} /
        the moon stood above the {place} / thunder rolled somewhere behind the hills / the heat of the day had not yet
        gone / hail rattled against the windows / a pale light came through the {plant} trees / the tide was going out"""),
    compass=W("north south east west north-east south-west north-west south-east"),
    season=W("spring summer autumn winter"),
    month=W("January February March April May June July August September October November December"),
    day=W("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    feeling=W("""glad afraid surprised tired angry curious hopeful ashamed calm nervous proud lonely grateful puzzled
        worried cheerful jealous relieved bored excited uneasy content bitter confident restless"""),
    adv=W("""slowly quietly carefully suddenly quickly gently softly firmly politely patiently nervously proudly sadly
        calmly eagerly reluctantly secretly silently clumsily gladly gravely warmly coldly briefly closely"""),
    tv=W("""find carry open hide repair paint clean sell buy lose keep borrow examine drop lift bring take wrap steal
        polish throw hold describe draw count weigh measure mend notice admire collect guard follow inspect replace
        deliver choose remember forget break bury display fold lend pack photograph return search shake touch unlock"""),
    iv=W("""walk wait sleep laugh sing work run cry dance shout whisper cough smile listen swim travel hurry rest pause
        nod tremble kneel wander stumble sigh hesitate dream"""),
    mv=W("walk hurry travel wander run go ride drive stumble return march drift"),
    abstract=W("""time silence work trust luck patience memory courage fear hope truth habit music friendship freedom
        justice hunger sleep peace beauty wisdom doubt pride grief curiosity kindness money order chance language
        history science weather travel craft"""),
    num=W("two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty"),
    ordinal=W("first second third fourth fifth sixth seventh eighth ninth tenth"),
    when=P("""in the morning / that afternoon / the next day / at noon / before sunrise / late in the evening / a week
        later / on {day} / on {day} morning / in {month} / at the end of {month} / after supper / shortly after midnight /
        one {season} evening / during the {season} / some days later / that same night / an hour later / at dusk /
        the following {season} / by the time the bells rang / towards evening / on the {ordinal} day / at six o'clock"""),
    where=P("""in the {place} / near the {place} / behind the {place} / at the edge of the {place} / on the road to
        {town} / beside the old {place} / under the {plant} tree / in front of the {place} / between the {place} and the
        {place} / at the end of the street / on the far side of the {place} / not far from the {place} / in a corner of
        the {place} / above the {place} / in the middle of the {place} / in the house of the {role} / by the window"""),
    town=[a + b for a in T1[:18] for b in T2[:9] if (len(a) + len(b)) % 3][:70],
    unitlen=W("metres kilometres miles feet"),
    subject=P("""geometry / botany / music / chemistry / astronomy / history / medicine / grammar / geography /
        navigation / architecture / printing / weaving / mechanics / optics / physics / law / philosophy"""),
)
LEX["np"] = P("""the {thing} / the {adj} {thing} / {thing:a} / a small {thing} / an old {thing} / the {thing} from the {place} /
    the {color} {thing} / the {material} {thing} / the {role}'s {thing} / the last {thing} / {num} {thing:pl} /
    the {thing} of the {role} / the {adj} {color} {thing} / some {thing:pl} / the {adj} {thing:pl} / every {thing} / another {thing}""")


def person(r):
    f = r.random() < 0.5
    name = pick(r, GIRLS if f else BOYS)
    he, him, his, self_ = ("she", "her", "her", "herself") if f else ("he", "him", "his", "himself")
    return dict(name=name, he=he, him=him, his=his, self=self_)


def town(r):
    return r.choice(T1) + r.choice(T2)


def cast(r):
    """A protagonist (h...), a companion (o...) and a fixed setting."""
    a, b = person(r), person(r)
    while b["name"] == a["name"]:
        b = person(r)
    c = {"h": a["name"], "he": a["he"], "him": a["him"], "his": a["his"], "self": a["self"],
         "o": b["name"], "ohe": b["he"], "ohim": b["him"], "ohis": b["his"],
         "hrole": pick(r, LEX["role"]), "orole": pick(r, LEX["role"]), "okin": pick(r, LEX["kin"]),
         "home": town(r), "town": town(r), "item": pick(r, LEX["thing"]), "itemadj": pick(r, LEX["adj"]),
         "spot": pick(r, LEX["place"]), "spot2": pick(r, LEX["place"]), "beast": pick(r, LEX["animal"]),
         "surname": r.choice(SURNAMES), "surname2": r.choice(SURNAMES)}
    return c


# ==========================================================================
# prose

STORY_OPEN = P("""
{h} had lived in {home} for {num} years and knew every {place} in it. /
{when}, {h} found {itemadj:a} {item} in the {spot}. /
The {hrole} of {home} was called {h} {surname}, and nobody could remember {home} without {him}. /
When {h} was {num} years old, {his} {okin} gave {him} {itemadj:a} {item}. /
There was once {hrole:a} in {home} who owned nothing but {itemadj:a} {item}. /
{h} came to {home} {when} with {thing:a} and {num} coins. /
Nobody in {home} had ever asked where the {item} in the {spot} came from. /
It was {h} who first noticed that the {item} was gone. /
[Every morning|Every evening|Every {day}] {h} walked from the {spot} to the {spot2} and back. /
{weather} when {h} left the {spot}. /
The {item} arrived {when}, wrapped in {material} and addressed to {h} {surname}. /
For as long as {he} could remember, {h} had been afraid of the {spot}.""")
STORY_SET = P("""
In {season} the {role:pl} of {home} sold {thing:pl} {where}, and {animal:pl} slept under the carts. / The {adj} {place} and the {adj} {place} were the only things {he} knew by heart. / A path led from the {spot} to the {place}, past {num} {plant:pl} and {adj:a} {thing}. / On the wall hung {thing:a}, {thing:a} and a picture of {animal:a}. /
{weather}, and the {place} was {adj}. / The house stood {where}, and from its windows one could see the {place}. /
{home} was {adj:a} town with {adj:a} {place} and {num} {place:pl}. / {weather}. /
There was {thing:a} on the table, and beside it {adj:a} {thing}. / People said that the {spot} had once been {place:a}. /
The {spot} smelled of {food} and {material}. / {h} liked the {spot} because it was [{adj}|never {adj}]. /
In those days the {spot} belonged to the {role}, {padj:a} man who kept {animal:pl}. /
Only {beast:a} moved {where}. / The {plant} trees {where} had lost their leaves.""")
STORY_ACT = P("""
The {animal} that lived {where} was {padj}, but it let {him} {tv} the {item}. / With {thing:a} and {food:a} in {his} bag, {h} set out for {town}. / {o} had {tv:pp} {np} by then, and nothing could be done. / From the {place} came the sound of {thing:a}; somebody was {tv:ing} it. / {he} counted the {thing:pl}: there were {num}, and there should have been {num}. / By {month} they had {tv:pp} all the {thing:pl} and most of the {food}. / Twice {he} {iv:past}, and twice the {padj} {role} told {him} to {iv}. / It took {num} [days|weeks|months] to {tv} {np}, and {num} more to {tv} {np}. /
{h} {tv:past} {np} and {tv:past} it {where}. / {when}, {he} {mv:past} to the {place} and {tv:past} {np}. /
{he} {tv:past} the {item} {adv}. / {h} could not {tv} {np}, so {he} {tv:past} {np} instead. /
{o} {tv:past} {np} while {h} {iv:past} {where}. / {adv}, {he} put the {item} [on the table|into the {thing}|under the {thing}]. /
{h} asked the {role} about the {item}, but the {role} only {iv:past}. / They {tv:past} {np} and went on to the {place}. /
{he} [wanted|tried|promised|decided|forgot|hoped] to {tv} {np} before {day}. / {beast:a} {iv:past} {where} and {tv:past} {np}. /
{h} waited {num} [minutes|hours|days], then {tv:past} {np} {adv}. / Without a word {o} {tv:past} {np}. /
{he} remembered what {his} {okin} had said about {abstract}. / {his} hands were {adj} and smelled of {material}. /
{when} {o}, the {orole}, came to {tv} {np}. / They sat {where} and ate {food} with {food}. /
The road to {town} was {adj} and {adj}, and {h} was soon {feeling}. / {he} had never seen such {adj:a} {thing}. /
{h} opened the {thing} and found {thing:a}, {thing:a} and {num} {thing:pl}. / The {role} sold {him} {np} for {num} coins. /
Somebody had {tv:pp} {np}, and {h} knew it was not {o}. / Nothing happened for a while; then the {thing} began to {iv}.""")
STORY_TALK = P("""
"If we {tv} {np}," said {o}, "the {role} will {tv} {np}." / "There are {num} of them," said {h}, "and all are {adj}." / "It is only {thing:a}," said {o}, but {ohe} did not look at it. / "My {kin} was {role:a}," {h} began, but {o} did not want to hear it. / "I would give {num} coins for {np}," the {role} said. /
"[Where|When|Why|How] did you {tv} {np}?" {o} asked. "{when:C}," said {h}. /
"I do not [want|mean|dare|have] to {tv} {np}," said {o} {adv}. / "You should {tv} {np}," {h} said, "before somebody else does." /
"That is {adj:a} {thing}," said the {orole}. "My {kin} had one like it." / {o} asked whether {he} had seen {np} {where}. /
"{abstract:C} is only another word for {abstract}," the {role} {iv:past}, and {tv:past} {np}. /
"Who {tv:past} {np}?" "I did," said {h}, "and I am not {feeling} about it." /
{h} said that {he} was {feeling}, but {his} voice was {adj}. / "Give me {np}," {ohe} said, "and I will {tv} {np}." /
"Nobody ever {tv:past} {np} in {home}," {o} whispered. / "Listen," said {o}. "There is {beast:a} {where}." """)
STORY_THINK = P("""
Sometimes {he} wished that {he} were {role:a} in {town}, with {animal:a} and no {abstract} at all. / There was nothing {adj} about it, and yet {he} could not {iv}. / {he} had always been {padj}; now {he} was {feeling}. /
{h} thought about {abstract} and about the {item}. / {he} was {feeling}, though {he} could not say why. /
It seemed to {him} that {abstract} was like {adj:a} {thing}: you only saw it when it was {adj}. / Perhaps {o} had been right about {abstract}. /
{he} felt {feeling} and a little {feeling}. / What would {his} {okin} have done? / If the {item} was {adj}, then {o} must have {tv:pp} it. /
The more {he} looked at the {item}, the less {he} understood {abstract}. / {abstract:C} needs {abstract}, {he} told {self}.""")
STORY_END = P("""
After that {h} never {tv:past} {np} again. / {when}, the {item} was back in the {spot}, and nobody asked any questions. /
{o} went home to {town}, and {h} stayed in {home}. / So {h} kept the {item}, and {o} kept the secret. /
{h} still lives near the {spot2}, and on {day}s {he} still {tv:s} {np}. / In the end it was the {beast} that {tv:past} the {item}. /
They buried the {item} under the {plant} tree and told no one. / It was not {abstract} that {he} had been looking for, but {abstract}. /
{h} closed the {thing}, blew out the {thing} and went to bed. / And that is how the {spot} of {home} got its name. /
The {orole} gave {him} {np}, and {he} was {feeling} at last. / Years later {he} told {his} children about the {item} in the {spot}.""")


def d_story(r):
    c = cast(r)
    out = [para(r, some(r, STORY_OPEN, 1, 1) + some(r, STORY_SET, 1, 3), c)]
    for _ in range(r.randint(1, 4)):
        ts = some(r, STORY_ACT, 2, 4) + some(r, STORY_TALK, 0, 2) + some(r, STORY_THINK, 0, 1)
        if r.random() < 0.4:
            r.shuffle(ts)
        out.append(para(r, ts, c))
    out.append(para(r, some(r, STORY_ACT, 0, 2) + some(r, STORY_END, 1, 2), c))
    return "\n".join(out)


def d_town(r):
    n, year = town(r), r.randint(1080, 1890)
    pop, area = r.randint(400, 95000), r.randint(4, 180)
    river = r.choice(T1) + r.choice(["water", "bourne", "burn", " Brook", " River", "flow"])
    c = dict(n=n, year=year, pop=f"{pop:,}", area=area, river=river, y2=year + r.randint(20, 90), y3=r.randint(1895, 1998),
             alt=r.randint(3, 1200), dist=r.randint(4, 120), near=town(r), trade=pick(r, LEX["material"]),
             p1=pick(r, LEX["place"]), p2=pick(r, LEX["place"]), who=r.choice(BOYS + GIRLS) + " " + r.choice(SURNAMES),
             dens=round(pop / area), m=r.choice(LEX["month"]), visitors=f"{r.randint(2, 90) * 500:,}")
    a = [r.choice(P("""{n} is a town on the {river}, {dist} kilometres {compass} of {near}. /
            {n} is {adj:a} village of {pop} inhabitants on the {river}. /
            The town of {n} lies {alt} metres above sea level in the valley of the {river}.""")),
         "It covers {area} square kilometres and has about {pop} inhabitants, [or roughly {dens} per square kilometre|most of whom live near the {p1}|a third more than in {y3}].",
         "The name is first recorded in {year}, when {role:a} called {who} [built|bought|sold|rebuilt] {place:a} there."]
    b = some(r, P("""For centuries the town lived from {trade}, {food} and the trade in {thing:pl}. /
            The {p1} was built in {y2} and burned down {num} years later. / A railway from {near} reached {n} in {y3}. /
            The [oldest|largest|best known] building is the {p2}, which is made of {trade} and has {num} towers. /
            In {y3} a flood of the {river} destroyed the {p1} and {num} houses. / The {p1} is open from {month} to {month}. /
            Every {m} the town holds a market where {role:pl} sell {food}, {thing:pl} and {animal:pl}. /
            About {visitors} visitors come every year, most of them to see the {p2}. /
            The hills {compass} of the town are covered with {plant} and {plant}. / {animal:pl,C} and {animal:pl} are common along the river. /
            The {role} and writer {who} was born in {n} in {y2}. / Its coat of arms shows {animal:a} holding {thing:a}.
            / The school, founded in {y2}, taught {subject} and {subject}. / The local dish is {food} with {food} and {food}."""), 3, 7)
    h = len(b) // 2
    return para(r, a + b[:h], c) + "\n" + para(r, b[h:], c)


NEWS = P("""The {role} {name}, {age}, said [on {day}|in a statement|to reporters] that the {place} would [stay open|close|be repaired|be sold]. /
    Work on the {place} began in {month} and is expected to cost {cost} million. / "We are {feeling}," said {name}. "Nobody has ever {tv:pp} {thing:a} like this." /
    Residents of {n} have complained about the {place} for {num} years. / The council voted {v1} to {v2} [in favour|against]. /
    According to the report, {pct} percent of the {thing:pl} were {adj}. / Last year the figure was {pct2} percent. /
    A spokesman for the {place} declined to {tv} the {thing}. / Police are looking for {padj:a} man with {color:a} {thing} who was seen {where}. /
    The {place} was founded {num2} years ago by {role:a} from {town}. / Experts from the {place} in {town} will {tv} the {thing:pl} next {month}. /
    No one was hurt, but {num} {animal:pl} escaped. / The {thing} had been missing since {month}. / Tickets cost {price} and can be bought at the {place}. /
    Critics say the plan will [cost too much|harm the {animal:pl}|come too late|help only the {role:pl}]. / The decision is expected by the end of {month}.""")


def d_news(r):
    p = r.choice(BOYS + GIRLS) + " " + r.choice(SURNAMES)
    v1 = r.randint(5, 30)
    c = dict(n=town(r), name=p, age=r.randint(24, 88), cost=f"{r.randint(1, 60)}.{r.randint(1, 9)}", v1=v1, v2=r.randint(0, v1 - 1),
             pct=r.randint(12, 88), pct2=r.randint(12, 88), num2=r.randint(20, 300), price=f"{r.randint(2, 30)} euros",
             place=pick(r, LEX["place"]), thing=pick(r, LEX["thing"]))
    head = sent(r, "[{n} {place} to be [sold|restored|moved|closed]|{role:C} finds {adj} {thing} in {place}|{num:C} {animal:pl} escape from {n} {place}"
                   "|Council of {n} votes on {place}|{adj:C} {thing} returned after {num2} years|New {place} for {n}]", c)
    first = r.choice(P("""{n} - The {place} of {n} will be [closed|rebuilt|opened to the public] in {month}, the town announced on {day}. /
        {n} - {role:a,C} from {n} has found {adj:a} {thing} that may be more than {num2} years old. /
        {n} - {num:C} people helped to {tv} the {thing} {where} {when}."""))
    body = some(r, NEWS, 4, 8)
    return head + "\n" + para(r, [first] + body[:3], c) + "\n" + para(r, body[3:], c)


def d_letter(r):
    c = cast(r)
    ts = P("""Thank you for your letter and for the {thing}, which arrived {when}. / We are all well here, although {okin} has been {feeling} since {month}. /
        {weather} when I went to the {spot} yesterday. / I have {tv:pp} {np}, as you asked. / Do you remember the {item} that {o} {tv:past} {where}? /
        {o} is now {orole:a} in {town} and has {num} {animal:pl}. / The {place} has been sold, and the new owner wants to {tv} {np}. /
        I am sending you {np}, {num} {thing:pl} and some {food}. / Please do not {tv} {np} before I come. / We hope to visit you in {month}. /
        The {animal} had {num} young ones, and the children are {feeling}. / I often think of {abstract} and of the {place} where we used to {iv}. /
        Your {kin} writes that the {plant} is in flower. / I have been reading a book about {subject}, and it makes me {feeling}. / The doctor says I must {iv} every day and eat more {food}.""")
    body = some(r, ts, 4, 8)
    k = len(body) // 2
    return (sent(r, "Dear {o},", c) + "\n" + para(r, body[:k], c) + "\n" + para(r, body[k:], c) + "\n"
            + sent(r, "[Yours|With love|Best wishes|Your friend|Until soon], {h}", c))


def d_essay(r):
    c = dict(x=pick(r, LEX["abstract"]), y=pick(r, LEX["abstract"]), s=pick(r, LEX["subject"]), t=pick(r, LEX["thing"]), w=pick(r, LEX["role"]))
    ts = P("""It is often said that {x} is the enemy of {y}. / {w:a,C} knows more about {x} than most books about {s}. /
        Consider {adj:a} {t}: it is made of {material}, it can be {tv:pp}, and yet it tells us something about {x}. /
        There are {num} kinds of {x}, and only one of them can be learned. / Those who {tv} {thing:pl} every day seldom think about {y}. /
        In {s}, as in the {place}, {x} comes before {y}. / The {padj} {w} does not ask for {x}; {y} is enough. /
        We admire {x} in others and {tv} it in ourselves. / Without {y}, the {place} would be only {adj:a} {place}. /
        I once knew {role:a} who {tv:past} {np} and called it {x}. / If {x} were {adj}, everyone would have it. / Perhaps that is why {role:pl} {tv} {thing:pl} and {role:pl} {tv} {y}. /
        {x:C} begins where {y} ends. / Nobody has ever measured {x}, though many {role:pl} have tried. / The same is true of {abstract}, of {abstract} and of {food}. /
        To {iv} is easy; to {tv} {np} takes {x}. / A child understands {y} the first time {animal:a} runs away. / What remains is {adj}, but it is ours.""")
    body = some(r, ts, 5, 10)
    k = len(body) // 2
    return sent(r, "[On {x}|{x:C} and {y}|The {t} and {x}|Notes on {s}]", c) + "\n" + para(r, body[:k], c) + "\n" + para(r, body[k:], c)


def d_nature(r):
    a = pick(r, LEX["animal"])
    lo = r.randint(4, 60)
    c = dict(a=a, ad=r.choice(["grey", "common", "northern", "spotted", "mountain", "lesser", "great", "dwarf", "marsh", "striped", "crested", "silver"]),
             lo=lo, hi=lo + r.randint(3, 40), kg=r.randint(2, 300), yr=r.randint(2, 35), young=r.choice(LEX["num"][:9]), p=pick(r, LEX["place"]))
    ts = P("""It feeds on {plant}, {food} and small {animal:pl}. / Adults are {lo} to {hi} centimetres long and weigh about {kg} grams. /
        The back is {color}, the belly {color}, and the tail [short|long|{color}]. / The female has {young} young in {month} or {month}. /
        It builds its nest of {plant} and {material}, often near {place:a}. / In {season} it moves to the {compass} in search of {plant}. /
        In captivity it can live for {yr} years. / Its enemies are the {animal}, the {animal} and the {animal}. / Farmers once believed that it brought {abstract}. /
        It is active mainly [at night|at dusk|in the morning|in {season}]. / The call is {adj:a} whistle, repeated {young} times. / Its numbers have fallen since the {plant} woods were cut down. /
        When it is disturbed it will {iv} or hide under the {plant}. / The young leave the nest after {yr} days.""")
    return para(r, ["The {ad} {a} is found [in the {p}|in {adj} {plant} woods|along {adj} rivers|in the hills] of the {compass}."] + some(r, ts, 4, 8), c)


def d_recipe(r):
    c = dict(f=pick(r, LEX["food"]), g=pick(r, LEX["food"]), k=pick(r, LEX["food"]), h=pick(r, LEX["plant"]), n1=r.randint(2, 9) * 50,
             n2=r.randint(2, 8), t1=r.randint(5, 90), t2=r.randint(2, 25), deg=r.randint(15, 23) * 10, s=r.randint(2, 8))
    title = sent(r, "[{f:C} with {g}|{g:C} and {f} pie|Baked {f} with {k}|{h:C} {f}|Cold {f} with {g} and {h}]", c)
    steps = ["Wash the {f} and cut it into [thin slices|small pieces|{num} parts].", "Heat {n2} spoons of [butter|oil] in {adj:a} pan and add the {g}.",
             "Stir {adv} for {t2} minutes until the {g} is [soft|golden|brown].", "Add the {f}, {n1} grams of {k} and a little {h}.",
             "Cover the pan and cook for {t1} minutes.", "Bake at {deg} degrees for {t1} minutes.", "Season with salt, pepper and {h}.",
             "Let it rest for {t2} minutes before you cut it.", "Serve [hot|cold|warm] with {food} and {food}.", "Mix {n1} grams of flour with {n2} eggs and a cup of milk."]
    ks = sorted(r.sample(range(len(steps)), r.randint(4, 7)))
    return (title + "\n" + sent(r, "For {s} people you need {n1} grams of {f}, {n2} {k:pl}, some {g} and [a bunch of|a little|dried] {h}.", c) + "\n"
            + "\n".join(f"{i + 1}. " + sent(r, steps[k], c) for i, k in enumerate(ks)))


def d_diary(r):
    c = cast(r)
    out = []
    d = r.randint(1, 20)
    mth = r.choice(LEX["month"])
    ts = P("""{weather:C}. / Got up at {num} and {tv:past} {np}. / {o} came {when} with {thing:a} for the {spot}. / No news from {town}. /
        Walked to the {place}, {num} {unitlen} from here, and saw {num} {animal:pl}. / Spent the whole day {where}, {feeling} and {adj}. /
        Must {tv} {np} tomorrow. / Wrote {num} pages about {subject}, then tore up {num} of them. / The {beast} is {padj} again and will not eat its {food}. /
        {o} says the {item} is worth {num} coins; I think it is worth nothing. / Dreamed of {thing:a} and of {animal:a} that could {iv}. / Too {feeling} to {iv}.
        / Paid the {role} for the {thing}. / Supper of {food} and {food}. / Began to {tv} the {item}, but the {material} is too {adj}.""")
    for _ in range(r.randint(2, 4)):
        out.append(f"{mth} {d}. " + para(r, some(r, ts, 2, 5), c))
        d += r.randint(1, 3)
    return "\n".join(out)


PROSE_HAND = [
"""The ferry left at seven, whether or not anyone was on it. Old Brandt had been told this on his first day, forty years ago, and he had never found a reason to change it. Some mornings he crossed with nobody but the gulls. On those mornings he stood straighter at the wheel, as if the empty benches were watching.
The bridge opened in the spring. There were speeches, and a brass band, and a ribbon that would not cut. On the day after, at seven, the ferry left as usual. A boy on the bridge leaned over the rail and waved, and Brandt, who did not hold with waving, lifted one hand from the wheel.""",
"""My grandmother kept bees, and she spoke to them as other people speak to the radio: constantly, without expecting to be answered. When someone in the village died she went out to tell the hives, knocking on each roof with her knuckle. I asked her once what would happen if she forgot. She thought about it for a while. "I suppose," she said, "that they would hear it from someone less polite." """,
"""A good map leaves things out. This is the first thing a surveyor learns and the last thing he believes. In his early years he will try to put in every hedge and every gate, and the sheet will come back from the printer so crowded that nobody can find the road. Later he understands that a map is an argument about what matters, and that the white spaces are part of it.""",
"""Glass is not a slow liquid, whatever you may have heard about cathedral windows. The old panes are thicker at the bottom because they were made unevenly, and a sensible glazier put the heavy edge down. Left alone at room temperature, a window would need far longer than the age of the universe to sag by the width of a hair.""",
"""The clock in the hall had stopped at ten past four so long ago that the family had come to use it as a kind of joke. "I'll be back by ten past four," they said, meaning never. When the new tenant had it repaired, everyone who visited was late for something.""",
"""Salt was once carried over these mountains on the backs of mules, two sacks to an animal, forty animals to a train. The path is still there. It climbs through beech woods, then through pines, and then over bare rock where the hooves have worn a groove as deep as a hand. Nobody carries salt any more, but walkers put their boots in the groove without thinking, because it is the easiest way up.""",
"""How does a river choose its bed? It does not choose at all; it only falls, as fast as the ground allows. But the ground is never even, and water that is slowed on one bank drops its sand there, and water that is hurried on the other bank carries the bank away. So a straight river becomes a bent one, and a bent one becomes more bent, until in some flood it breaks through the neck of its own loop and is straight again for a while.""",
"""She learned to read from seed packets. Her father grew vegetables for the hotels along the coast, and the shed was papered with pictures of carrots and beans. By the time she went to school she could spell "germination" but not "cat", and the teacher, who had prepared a great many cats, was at a loss.""",
"""Before the lamps were electric, a man walked the length of Harbour Street each evening with a pole over his shoulder. Children followed him, and dogs followed the children. He never hurried. It took him exactly as long as it took the light to fail, so that to anyone watching from a window it seemed that he was not lighting the lamps so much as moving the day, one post at a time, to somewhere else.""",
"""Most of what is called bad luck is arithmetic. If a thing goes wrong one time in a hundred, and you do it every morning, you may expect three or four disasters a year. The careful person is not the one who believes in omens but the one who counts the mornings.""",
"""The letter had gone to three wrong addresses before it reached the right one, and each of the wrong people had written something on the envelope. "Not here." "Try the mill." "He moved away but he was a decent man." By the time it arrived, the outside was more interesting than the inside, which was only a bill.""",
"""Snow changes the sound of a town before it changes the look of it. You wake and know, with your eyes still shut, that something has been taken away: the tyres, the footsteps, the far rattle of the trains. Then you go to the window to see what has been put in its place.""",
"""In the museum of the printing works there is a drawer of type that nobody is allowed to sort. The story goes that the last compositor, on the last day, picked up a line of metal letters and let it fall into the drawer, face down, and said that whoever wanted to know his opinion of the new machines could put it together. There are two hundred and six letters. People have tried.""",
"""If you want to keep a sourdough alive, you must first accept that it does not need you. It needs flour, water and a little warmth; it will get along with a draught and forgive you a missed day. What it cannot stand is attention. More starters have been killed by worry than by neglect.""",
"""We were taught to fold the flag so that no red showed. Nobody could tell us why. Years afterwards I met the sergeant in a garden centre, buying tomatoes, and asked him. He put down the tray and considered. "It kept you quiet for ten minutes," he said.""",
]

PROSE_GENS = [(d_story, 8), (d_town, 2), (d_news, 2), (d_letter, 2), (d_essay, 2), (d_nature, 2), (d_recipe, 1), (d_diary, 1)]


# ==========================================================================
# code

CN = W("""user item order record node token page event task job entry message packet frame buffer block chunk file path
    name value key index count size offset length width height depth weight score rank price total amount balance
    account invoice product customer session request response header body query result row column table cell field
    matrix vector tensor layer bias shape stride kernel point line edge vertex graph tree leaf root branch queue stack
    list cache slot bucket hash digest seed sample batch epoch step rate limit quota timer clock date hour minute
    sensor signal channel port socket client server worker thread lock pool device driver sector track image pixel
    color tile sprite level player enemy bullet map region zone country city street word sentence letter symbol rule
    state machine transition config option flag version release bundle plugin routine argument parameter variable""")
CV = W("""load save read write parse format update remove insert add find get set build make check validate count sum
    merge split sort filter map reduce scan visit walk push pop send receive open close start stop reset clear copy
    swap encode decode compress expand digest compare pair replace render draw print log measure compute estimate
    convert normalize collect group assign resolve apply enroll lookup fetch store flush rotate shift pack unpack""")
CA = W("max min total current last first next previous new old active pending valid local global raw final average default partial")
CU = W("ms bytes seconds items rows pixels percent degrees metres tokens")
LEX["cn"], LEX["cv"], LEX["ca"] = CN, CV, CA


def snake(*ws):
    return "_".join(ws)


def camel(*ws):
    return ws[0] + "".join(w.capitalize() for w in ws[1:])


def pascal(*ws):
    return "".join(w.capitalize() for w in ws)


def ids(r, style=snake):
    n = r.sample(CN, 8)
    v = r.sample(CV, 4)
    a = r.sample(CA, 3)
    f = style
    return dict(a=n[0], b=n[1], c=n[2], d=n[3], e=n[4], A=pascal(n[0]), B=pascal(n[1]), AB=pascal(n[0], n[1]), CD=pascal(n[2], n[3]),
                pl=plural(n[0]), bpl=plural(n[1]), cpl=plural(n[2]), ab=f(n[0], n[1]), cd=f(n[2], n[3]), xa=f(a[0], n[0]), xb=f(a[1], n[1]), xc=f(a[2], n[2]),
                va=f(v[0], n[0]), vb=f(v[1], n[1]), vc=f(v[2], n[2]), vab=f(v[0], n[0], n[1]), vbc=f(v[1], n[1], n[2]), vpl=f(v[0], plural(n[0])),
                v=v[0], w=v[1], V=v[0].capitalize(), UP=snake(a[0], n[0]).upper(), UQ=snake(n[1], a[1]).upper(), UR=snake(n[2], n[3]).upper(),
                k=r.choice([1, 2, 3, 4, 5, 7, 8, 10, 12, 16, 20, 24, 32, 50, 64, 100, 128, 256, 500, 512, 1000, 1024, 4096]), k2=r.randint(2, 99),
                k3=r.randint(100, 9999), f1=f"{r.randint(0, 9)}.{r.randint(1, 99)}", f2=f"0.{r.randint(1, 999):03d}", unit=r.choice(CU),
                s=r.choice(CN), s2=r.choice(LEX["thing"]), s3=r.choice(LEX["adj"]), s4=r.choice(LEX["material"]), hx=f"0x{r.getrandbits(r.choice([8, 16, 32])):x}")


def code(r, t, **kw):
    """Fill $name slots; lines 'alt1 ~~ alt2' pick one."""
    c = ids(r, kw.get("style", snake))
    out = []
    for ln in t.strip("\n").split("\n"):
        if " ~~" in ln:
            ind = ln[:len(ln) - len(ln.lstrip())]
            x = r.choice(re.split(r" ~~(?: |$)", ln)).strip()
            if not x:
                continue
            ln = ind + x
        out.append(re.sub(r"\$([A-Za-z]+[0-9]?)", lambda m: str(c[m.group(1)]) if m.group(1) in c else m.group(0), ln))
    return "\n".join(out)


def blocks(s):
    return [b for b in s.strip("\n").split("\n---\n")]


PY = blocks('''
def $v_$cpl($a, $b):
    $d = collections.Counter(x.$c for x in $a) ~~ $d = {x.$c: x.$e for x in $a if x.$e}
    for $c, count in $d.items():
        if count < $b:
            print(f"{$c}: {count} $unit") ~~ yield $c, count ~~ $w($c, limit=$k2)
        else:
            raise RuntimeError(f"$s3 $c {$c!r}") ~~ yield $c, $b * $k2 ~~ pass
---
with open("$s2.$s", "rb") as f:
    magic, $xa, $xb = struct.unpack("<4sIQ", f.read(16)) ~~ $xa = int.from_bytes(f.read($k), "little")
    $cd = np.frombuffer(f.read($xa * $k), dtype=np.float32) ~~ $cd = [f.read($k2) for _ in range($xa)]
if len($cd) != $xa:
    raise ValueError("$s2 is $s3: expected $k3 $cpl") ~~ sys.exit(f"{f.name}: $s3 $c")
---
@functools.lru_cache(maxsize=$k3)
def $vab($a: int, $b: int) -> int:
    if $a == 0 or $b <= $k2: ~~ if $a < $b:
        return $k ~~ return 1 ~~ return $b
    return $vab($a - 1, $b) + $vab($a, $b - $k2) ~~ return $k2 * $vab($a // 2, $b)
---
def $w_$ab(self, $c=None, *, $d=$k2):
    $xa = [self.$v(x) for x in self.$bpl if x is not $c]
    self.$e = max($xa, default=$d) ~~ self.$e = sum($xa) / max(1, len($xa)) ~~ self.$e = tuple($xa[:$d])
    logging.info("$v %d $bpl in %s", len($xa), self.$a) ~~ assert self.$e is not None, "$s3 $a"
    return self
---
def $vab($a, $b=$k):
    """$V the $a of each $b and return the $cd."""
    $cd = []
    for i, $c in enumerate($a):
        if $c is None or i % $b == $k2: ~~ if $c.$d < $k2: ~~ if i >= $b or not $c:
            continue ~~ break
        $cd.append($c * $k2 + $b) ~~ $cd.append(($c, $b)) ~~ $cd.append($c.$e)
    return $cd
---
class $AB:
    """A $a with its $b and $c."""
    def __init__(self, $a, $b=$k, $c=None):
        self.$a = $a
        self.$b = $b
        self.$c = $c if $c is not None else [] ~~ self.$c = $c or {}
    def $va(self, $d):
        if $d not in self.$c: ~~ if self.$b < $k2:
            raise KeyError(f"no such $a: {$d}") ~~ raise ValueError("$a has no $d") ~~ return None
        return self.$c[$d] ~~ return self.$a + $d
    def __repr__(self):
        return f"$AB({self.$a!r}, {self.$b})"
---
@dataclass
class $A:
    $b: int ~~ $b: str
    $c: float = $f1
    $d: list[int] = field(default_factory=list) ~~ $d: str = "$s"
    @property
    def $xb(self) -> float:
        return self.$c * $k2 ~~ return self.$c / $k + $f1
---
def $vpl(path, $b="$s"):
    with open(path, encoding="utf-8") as f:
        rows = [line.rstrip("\\n").split("$b") for line in f] ~~ rows = [json.loads(line) for line in f if line.strip()]
    $cpl = {}
    for row in rows:
        $a = row[0] ~~ $a = row["$a"] ~~ $a = row.get("$a", $k)
        $cpl[$a] = $cpl.get($a, 0) + 1 ~~ $cpl.setdefault($a, []).append(row)
    return sorted($cpl.items()) ~~ return $cpl
---
def test_$vab():
    $a = $AB("$s2", $k3) ~~ $a = make_$a($k2) ~~ $a = [$k2, $k, $k3]
    assert $v($a) == $k2 ~~ assert len($a) > 0
    assert $vb($a, $b=$k) is not None ~~ assert $vb($a, "$s3 $s2") == "$s4"
    with pytest.raises(ValueError): ~~ with pytest.raises($A.Error):
        $vb(None) ~~ $vc($a, $k3)
---
async def $vab($a, $b):
    $c = await $b.$v($a["$d"]) ~~ $c = await $b.$w($a, timeout=$k2)
    if not $c:
        logger.warning("$a %s has no $d", $a) ~~ return None
    await asyncio.sleep($f2)
    return {"$a": $c, "$e": len($c)} ~~ return $c
---
$UP = $k3
$UQ = "$s2" ~~ $UQ = $f1
$UR = {"$s": $k2, "$s2": $k, "$s3": $f1} ~~ $UR = ["$s2", "$s3", "$s4"]
---
def $va($a: str, $b: int = $k2) -> list[str]:
    $cpl = [w.strip().lower() for w in $a.split("$s")] ~~ $cpl = re.findall(r"[a-z]+", $a)
    while len($cpl) > $b:
        $cpl.pop() ~~ $cpl = $cpl[1:] ~~ del $cpl[$k]
    return $cpl or ["$s2"] ~~ return list(reversed($cpl))
---
def $v_$ab($a, $b):
    lo, hi = 0, len($a) ~~ lo, hi = $b, len($a) - 1
    while lo < hi:
        mid = (lo + hi) // 2
        if $a[mid] < $b:
            lo = mid + 1
        else:
            hi = mid
    return lo if lo < len($a) and $a[lo] == $b else -1 ~~ return lo
---
def main():
    parser = argparse.ArgumentParser(description="$V the $a of a $b.")
    parser.add_argument("$a", help="the $a to $v")
    parser.add_argument("--$b", type=int, default=$k, help="number of $cpl")
    args = parser.parse_args()
    $c = $va(args.$a, args.$b)
    print(f"$d: {$c:.3f}") ~~ print(json.dumps($c, indent=2)) ~~ print("$d", $c)
---
def $vab(n):
    """Return the $xa of the first n $cpl."""
    $a, $b = 0, 1 ~~ $a, $b = $k2, $k
    for _ in range(n):
        $a, $b = $b, $a + $b ~~ $a += $b * $k2 ~~ $a, $b = $b, ($a * $k2 + $k) % $k3
    return $a ~~ return $a, $b
---
$xa = sum($a.$b for $a in $pl if $a.$c > $k2) ~~ $xa = {$a.$b: $a for $a in $pl} ~~ $xa = sorted($pl, key=lambda x: x.$b)
try:
    $xc = $vc($xa)
except (OSError, ValueError) as err: ~~ except KeyError as err: ~~ except $A.Error as err:
    print(f"could not $v $b: {err}", file=sys.stderr) ~~ $xc = $k2
''')

RS = blocks('''
pub fn $vab($a: &[u32], $b: usize) -> Option<u32> { ~~ fn $vab($a: &[i64], $b: usize) -> Option<i64> {
    let mut $cd = $k2;
    for (i, $c) in $a.iter().enumerate() {
        if i % $b == $k2 { ~~ if *$c > $k3 {
            continue; ~~ break; ~~ return None;
        }
        $cd += $c * $k; ~~ $cd = $cd.max(*$c);
    }
    Some($cd)
}
---
#[derive(Debug, Clone, PartialEq)] ~~ #[derive(Debug, Default)]
pub struct $AB {
    pub $a: String, ~~ $a: Vec<u8>,
    $b: u32, ~~ pub $b: usize,
    $c: f32, ~~ $c: Option<Box<$CD>>,
}
impl $AB {
    pub fn $va(&mut self, $d: u32) -> &mut Self {
        self.$b += $d; ~~ self.$b = $d.saturating_sub($k2);
        self
    }
    pub fn $xb(&self) -> usize { self.$b as usize * $k } ~~ pub fn $vc(&self) -> bool { self.$b > $k2 }
}
---
pub enum $A {
    $B,
    $CD(u32), ~~ $CD { $c: String, $d: u64 },
    $AB(Vec<u8>), ~~ $AB,
}
---
fn $va($a: &str) -> Result<$B, $AB> {
    let $b = $a.trim().parse::<u64>().map_err($AB::from)?; ~~ let $b = $a.split("$s2").next().ok_or($AB::$B)?;
    match $b {
        $k => Ok($B::$CD), ~~ "$s2" => Ok($B::$V),
        _ if $b.is_empty() => Err($AB::$CD), ~~ x => Ok($B::new(x)), ~~ _ => Err($AB::$CD),
    }
}
---
impl Iterator for $AB<'_> {
    type Item = $CD; ~~ type Item = (usize, $CD);
    fn next(&mut self) -> Option<Self::Item> {
        if self.$a >= self.$b.len() {
            return None;
        }
        let $c = self.$b[self.$a];
        self.$a += 1; ~~ self.$a += $k2;
        Some($c.into()) ~~ Some((self.$a, $c))
    }
}
---
#[test]
fn $vab() {
    let $a = $AB::new($k2, "$s2"); ~~ let mut $a = vec![$k2, $k, $k3];
    assert_eq!($a.$v(), $k3); ~~ assert!($a.len() > $k);
    assert_eq!($vc(&$a), Some($k2)); ~~ assert!($vc(&$a).is_err(), "$b must fail");
}
---
const $UP: usize = $k3; ~~ const $UP: u32 = $hx;
pub fn $v($a: &mut [f32], $xb: f32) {
    let $c = $a.iter().fold(0f32, |m, x| m.max(x.abs())) / $k2 as f32;
    for x in $a.iter_mut() {
        *x = (*x / $c).round() * $c; ~~ *x *= $xb; ~~ *x = x.clamp(-$xb, $xb);
    }
}
---
fn $v_$cpl($bpl: &[$B], out: &mut impl Write) -> io::Result<()> {
    let $pl: Vec<$A> = $bpl.iter().filter(|x| x.$c > $k2).map($A::from).collect(); ~~ let $pl = $w($bpl, $k2)?;
    for ($c, $d) in $pl.iter().enumerate() {
        writeln!(out, "{$c:>$k2} {$d}")?; ~~ writeln!(out, "$b {$c}: {$d:?}")?; ~~ $vc(out, $c, &$d.$e)?;
    }
    Ok(())
}
---
mod tests {
    use super::*;
    fn $xa() -> $A { $A { $b: $k2, $c: "$s2".into() } } ~~ fn $xa() -> $A { $A::new($k3, "$s2") }
    #[test]
    fn $v_of_$s3_$b() {
        let $d = $xa().$w($k3); ~~ let $d = $vc(&$xa(), $k);
        assert_eq!($d.$e, $k2); ~~ assert!(matches!($d, Some($k2..=$k3)));
    }
}
---
impl From<$B> for $A {
    fn from($b: $B) -> Self {
        Self { $c: $b.$c, $d: $b.$d as u32 } ~~ $A::new($b.$c, $k2) ~~ match $b { $B::$CD => Self::default(), $B::$V => $A::$AB }
    }
}
---
use std::collections::HashMap; ~~ use std::io::{self, Read, Write}; ~~ use std::path::{Path, PathBuf};
/// $V one $a from the $b and returns its $c.
pub fn $vbc($a: &Path, $c: u64) -> io::Result<Vec<u8>> {
    let mut $b = std::fs::File::open($a)?;
    let mut $d = Vec::with_capacity($k3);
    $b.read_to_end(&mut $d)?; ~~ $b.take($c).read_to_end(&mut $d)?;
    $d.truncate($c as usize);
    Ok($d)
}
''')

CC = blocks('''
static int $vab(const uint8_t *$a, size_t $b, uint32_t *$c)
{
    uint32_t $d = $hx; ~~ uint32_t $d = 0;
    for (size_t i = 0; i < $b; i++) {
        $d = ($d << $k2) ^ $a[i]; ~~ $d += $a[i] * $k3; ~~ if ($a[i] == $k2) break;
    }
    *$c = $d;
    return $d ? 0 : -1; ~~ return 0;
}
---
typedef struct $ab {
    char *$a; ~~ char $a[$k];
    int $b; ~~ size_t $b;
    struct $ab *next; ~~ double $c;
} $ab_t;
---
#define $UP $k3
#define $UQ "$s2" ~~ #define $UQ(x) ((x) * $k2)
#include <$s.h> ~~ #include "$ab.h"
---
struct $ab *$v_$ab(int $c)
{
    struct $ab *$a = malloc(sizeof(*$a)); ~~ struct $ab *$a = calloc($k2, sizeof *$a);
    if (!$a) {
        fprintf(stderr, "$v_$ab: no $b\\n"); ~~ perror("$v $a");
        return NULL;
    }
    $a->$b = $c; ~~ $a->$b = $c * $k2 + $k;
    $a->$d = NULL;
    return $a;
}
---
void $vb(double *$a, int n, double $xb)
{
    int i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < i; j++)
            $a[i * n + j] = $a[j * n + i] * $xb; ~~ $a[i * n + j] += $f1 * $xb;
}
---
int main(int argc, char **argv)
{
    int $a = argc > 1 ? atoi(argv[1]) : $k2;
    if ($a < 0 || $a > $k3) {
        fprintf(stderr, "usage: %s $b [$c]\\n", argv[0]);
        return 1; ~~ exit($k2);
    }
    printf("$b %d\\n", $va($a)); ~~ printf("%s: %d $unit\\n", argv[0], $va($a));
    return 0;
}
---
int $v_$cd(struct $ab *$a, const char *$c)
{
    int $xb = $k2;
    while (($a = $vb($c)) != NULL) {
        if (strcmp($a->$d, "$s2") == 0) ~~ if ($a->$b >= $UP)
            $xb++; ~~ $xb += $a->$b; ~~ continue;
        $va($a, $k2, &$cd);
    }
    return $xb; ~~ return $xb > $k3 ? $k3 : $xb;
}
---
static int $w_$ab(struct $ab *$a)
{
    switch ($a->$b) {
    case $UP:
        return $va($a, $k); ~~ return $k2;
    case $UQ:
        return $vb($a, $k3); ~~ $vb(&$a->$c, $k3); return $k;
    default:
        return -1; ~~ abort();
    }
}
---
/* $V the $c of a $b: at most $k3 $unit. */ ~~ /* The $b is $s3 here, so $v it before the $c. */
unsigned long $vbc(FILE *$a, unsigned char *$b)
{
    unsigned long $xa = $hx;
    int ch;
    while ((ch = fgetc($a)) != EOF && ch != '\\n') {
        $xa = $xa * $k2 + (unsigned char)ch; ~~ $xa ^= (unsigned long)ch << ($xa % $k); ~~ *$b++ = ch;
    }
    return $xa % $k3; ~~ return $xa & $hx;
}
''')

JS = blocks('''
const $pl = new Set($bpl.map(({ $a, $c }) => `${$a}-${$c}`)); ~~ const $pl = Array.from({ length: $k3 }, (_, i) => i * $k2);
$pl.forEach(($d) => {
  if (typeof $d === "string" && $d.startsWith("$s2")) $va($d); ~~ if ($xa[$d] > $k2) delete $xa[$d];
  $vb($d, { $e: $k2 }); ~~ $vc($d);
});
---
function* $vpl($a, $b) {
  let $c = 0; ~~ let $c = $k2;
  while ($c < $a.length) {
    yield $a.slice($c, $c + $b); ~~ yield { $d: $a[$c], $e: $c };
    $c += $b; ~~ $c += $k;
  }
}
---
try {
  const $xa = JSON.parse($a); ~~ const $xa = await $v("$s2.json");
  $vb($xa.$c, $xa.$d ?? $k2);
} catch (error) {
  console.error("cannot $v the $a:", error.message); ~~ $xb = { $c: $k2, $d: "$s3" };
}
---
export function $vab($a, { $b = $k2, $c } = {}) { ~~ function $vab($a, $b = $k2) {
  const $cd = $a.filter((x) => x.$d > $b); ~~ const $cd = $a.map((x) => x.$d * $k2);
  if ($cd.length === 0) { ~~ if (!$cd.includes($k)) {
    throw new Error(`no $a in ${$b}`); ~~ return null; ~~ return [];
  }
  return $cd.reduce((p, q) => p + q, $k); ~~ return $cd.slice(0, $b); ~~ return { $d: $cd, $e: "$s2" };
}
---
class $AB extends $CD { ~~ export class $AB extends $CD {
  #$b = $k2;
  constructor($a, $c) {
    super($c); ~~ super();
    this.$a = $a;
    this.$c = new Map(); ~~ this.$c = $c ?? "$s2";
  }
  get $xb() {
    return this.#$b + this.$a.length;
  }
  $va($d) {
    this.#$b += $d; ~~ this.$a.push($d); ~~ if ($d === this.#$b) return;
    return this;
  }
}
---
const $ab = async ($a) => {
  const $c = await fetch(`/api/$bpl/${$a}`);
  if (!$c.ok) throw new Error($c.statusText); ~~ if ($c.status === $k3) return null;
  const { $d, $e } = await $c.json(); ~~ const $d = await $c.json();
  return $d ?? $k2; ~~ return $d.map((x) => x.$e);
};
---
document.querySelector("#$a").addEventListener("click", (event) => {
  event.preventDefault(); ~~ const $c = event.target.$d;
  const $b = Number(event.target.dataset.$b); ~~ $va(event.target.value, $k2);
  $vb($k3); ~~ render($k2);
});
---
const $UP = $k3; ~~ let $xa = $f1;
const $cd = { $a: $k2, $b: "$s2", $c: [$k, $k3] }; ~~ const { $a, $b = $k2 } = require("./$s");
---
describe("$va", () => {
  it("${V}s $s3 $bpl", () => { ~~ it("returns the $b of a $s3 $c", () => {
    const $a = $vb($k2, "$s2"); ~~ const $a = new $A({ $b: $k });
    expect($a.$c).toBe($k3); ~~ expect($a).toEqual([$k2, $k]);
  });
});
---
for (const [$a, $b] of Object.entries($c)) {
  if ($b === undefined || $b < $k2) continue;
  console.log(`${$a}: ${$b} $unit`); ~~ $xc[$a] = ($xc[$a] ?? 0) + $b;
}
---
module.exports = { $va, $vb, $AB }; ~~ export default $AB; ~~ import { $va, $vb } from "./$ab.js";
''')
JS = [b.replace("${V}s", "$vs") for b in JS]
JS = [b.replace('it("$vs $s3 $bpl"', 'it("can $v $s3 $bpl"') for b in JS]

CODE_NOTE = P("""{cv:C} every {cn} that has {adj:a} {cn}. / The {cn} must not be {adj} here. / TODO: {cv} the {cn} before the {cn}. /
    Returns the {cn} of the {cn}, or the {cn} if it has none. / {cn:a,C} is {cn:a} with {num} {cn:pl}. / Slow, but the {cn} is {adj} anyway. /
    See the {cn} {cn} for the layout of the {cn}. / Keeps the {cn} and the {cn} in step. / This {cv:s} the {cn}; do not {cv} it twice. /
    NOTE: the {cn} {cn} is in {cn:pl}, not {cn:pl}. / Invariant: {cn:pl} are sorted by {cn}. / Workaround for {adj:a} {cn} in the {cn} {cn}.""")


def d_code(r):
    lang = r.choice(["py", "py", "rs", "rs", "c", "js"])
    bl, cm, st = {"py": (PY, "# ", snake), "rs": (RS, "// ", snake), "c": (CC, "// ", snake), "js": (JS, "// ", camel)}[lang]
    out = []
    if r.random() < 0.35:
        out.append(cm + f"{r.choice(CN)}_{r.choice(CN)}.{lang}: " + sent(r, r.choice(CODE_NOTE)))
    for b in r.sample(bl, r.randint(1, 3)):
        if r.random() < 0.45:
            out.append(cm + sent(r, r.choice(CODE_NOTE)))
        t = code(r, b, style=st)
        out.append(t)
    return "\n".join(out)


def d_data(r):
    k = r.random()
    if k < 0.4:
        import json
        obj = {r.choice(CN): r.choice([r.randint(0, 999), r.choice(LEX["thing"]), True, None, round(r.random() * 9, 2)]) for _ in range(r.randint(3, 6))}
        obj[plural(r.choice(CN))] = [{"id": i + 1, r.choice(CN): r.choice(LEX["adj"]) + " " + r.choice(LEX["thing"])} for i in range(r.randint(1, 3))]
        return json.dumps(obj, indent=2)
    if k < 0.7:
        out = []
        for _ in range(r.randint(1, 3)):
            out.append(f"[{r.choice(CN)}.{r.choice(CN)}]" if r.random() < 0.4 else f"[{r.choice(CN)}]")
            for n in r.sample(CN, r.randint(2, 5)):
                out.append(f"{n}_{r.choice(CN)} = " + r.choice([str(r.randint(0, 9999)), f'"{r.choice(LEX["thing"])}"', "true", "false", f"{r.random():.3f}"]))
        return "\n".join(out)
    t, a, b, c = (r.choice(CN) for _ in range(4))
    q = r.choice(["SELECT {t}.{a}, COUNT(*) AS {b}_{c}\nFROM {tp}\nJOIN {bp} ON {bp}.{t}_id = {tp}.id\nWHERE {tp}.{c} > {k}\nGROUP BY {t}.{a}\nORDER BY {b}_{c} DESC\nLIMIT {n};",
                  "CREATE TABLE {tp} (\n  id INTEGER PRIMARY KEY,\n  {a} TEXT NOT NULL,\n  {b} REAL DEFAULT {k},\n  {c}_id INTEGER REFERENCES {bp}(id)\n);",
                  "UPDATE {tp} SET {a} = {a} + {k}, {b} = '{c}'\nWHERE id IN (SELECT {t}_id FROM {bp} WHERE {c} = {n});",
                  "#!/bin/sh\nset -eu\nfor {a} in {tp}/*.{b}; do\n  {c}=$(wc -l < \"${a}\")\n  echo \"${a}: ${c} {bp}\" >> {t}.log\ndone\ntest -s {t}.log || exit {n}"])
    q = q.replace("${a}", "$" + a).replace("${c}", "$" + c)
    for k_, v_ in dict(tp=plural(t), bp=plural(b), t=t, a=a, b=b, c=c, k=r.randint(1, 999), n=r.randint(2, 60)).items():
        q = q.replace("{" + k_ + "}", str(v_))
    return q


def d_commit(r):
    c = dict(a=r.choice(CN), b=r.choice(CN), c=r.choice(CN), v=r.choice(CV), k=r.randint(2, 900), ver=f"{r.randint(0, 4)}.{r.randint(0, 19)}.{r.randint(0, 9)}")
    ts = P("""The {a} was {adj} whenever the {b} had more than {k} {c:pl}. / This {v:s} the {b} first and only then the {c}. /
        Measured on {k} {cn:pl}: {num} times faster than {ver}. / No change for callers that never {cv} the {c}. /
        The old {a} could {cv} the same {b} twice if the {cn} was {adj}. / Adds a test with {k} {b:pl} and {adj:a} {c}. / Fixes #{k}.""")
    head = sent(r, "[{a}: {v} the {b} before the {c}|{v} {b:pl} without a {c}|fix {adj} {a} in {b} {c}|release {ver}|{a}: do not {v} {adj} {c:pl}]", c)
    return head + "\n" + para(r, some(r, ts, 2, 4), c)


CODE_HAND = ['''def wrap(words, width):
    """Greedy line filling: never optimal, rarely ugly."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        lines.append(line)
    return lines''',
'''def sieve(limit):
    is_prime = bytearray([1]) * (limit + 1)
    is_prime[0:2] = b"\\0\\0"
    for p in range(2, int(limit ** 0.5) + 1):
        if is_prime[p]:
            is_prime[p * p :: p] = bytes(len(range(p * p, limit + 1, p)))
    return [i for i, flag in enumerate(is_prime) if flag]''',
'''/// Lengths are prefixed with a varint: seven bits per byte, low bits first.
pub fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
pub fn get_varint(input: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}''',
'''size_t utf8_count(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        if ((*s & 0xC0) != 0x80) /* not a continuation byte */
            n++;
    return n;
}''',
'''function debounce(fn, delay) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = null;
      fn(...args);
    }, delay);
  };
}''',
'''fn transpose(rows: usize, cols: usize, src: &[f32]) -> Vec<f32> {
    assert_eq!(src.len(), rows * cols);
    let mut dst = vec![0.0; src.len()];
    for r in 0..rows {
        for c in 0..cols {
            dst[c * rows + r] = src[r * cols + c];
        }
    }
    dst
}''',
'''class LruCache:
    def __init__(self, capacity):
        self.capacity = capacity
        self.entries = collections.OrderedDict()
    def get(self, key, default=None):
        if key not in self.entries:
            return default
        self.entries.move_to_end(key)
        return self.entries[key]
    def put(self, key, value):
        self.entries[key] = value
        self.entries.move_to_end(key)
        while len(self.entries) > self.capacity:
            self.entries.popitem(last=False)''',
'''/* Reverse the bits of a byte with three swaps. */
static unsigned char reverse_bits(unsigned char b)
{
    b = (b & 0xF0) >> 4 | (b & 0x0F) << 4;
    b = (b & 0xCC) >> 2 | (b & 0x33) << 2;
    b = (b & 0xAA) >> 1 | (b & 0x55) << 1;
    return b;
}''',
'''def edit_distance(a, b):
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            cost = 0 if x == y else 1
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + cost))
        previous = current
    return previous[-1]''',
'''export function parseQuery(text) {
  const result = new Map();
  for (const pair of text.replace(/^\\?/, "").split("&")) {
    if (!pair) continue;
    const [name, value = ""] = pair.split("=").map(decodeURIComponent);
    result.set(name, [...(result.get(name) ?? []), value]);
  }
  return result;
}''']

CODE_GENS = [(d_code, 10), (d_data, 2), (d_commit, 2)]


# ==========================================================================
# mathematics: every number below is computed, so the arithmetic is right

def frac(a, b):
    from math import gcd
    g = gcd(a, b)
    a, b = a // g, b // g
    return str(a) if b == 1 else f"{a}/{b}"


def lin(*terms):
    """lin((2, 'x'), (-1, 'y')) -> '2x - y'"""
    out = ""
    for k, v in terms:
        if k == 0:
            continue
        body = v if abs(k) == 1 and v else f"{abs(k)}{v}"
        out += (" - " if k < 0 else " + ") + body if out else ("-" if k < 0 else "") + body
    return out or "0"


def factorize(n):
    out, p = [], 2
    while p * p <= n:
        while n % p == 0:
            out.append(p)
            n //= p
        p += 1
    if n > 1:
        out.append(n)
    return out


def m_words(r):
    p, q = person(r), person(r)
    th = plural(pick(r, LEX["thing"] + LEX["food"]))
    pl_ = pick(r, LEX["place"])
    a, b, k = r.randint(3, 95), r.randint(2, 60), r.randint(2, 12)
    n, o = p["name"], q["name"]
    he, his = p["he"], p["his"]
    kind = r.randrange(9)
    if kind == 0:
        return (f"{n} has {a} {th} and buys {b} more at the {pl_}. How many {th} does {he} have now?\n"
                f"{r.choice(['Add the two numbers', 'We add', 'The answer is the sum'])}: {a} + {b} = {a + b}. So {n} has {a + b} {th}.")
    if kind == 1:
        a += b
        return (f"There were {a} {th} in the {pl_}. {n} took away {b} of them. How many were left?\n"
                f"We subtract: {a} - {b} = {a - b}. There were {a - b} {th} left.")
    if kind == 2:
        return (
                f"A {pick(r, LEX['role'])} packs {k} {th} into each box. How many {th} are in {b} boxes?\n"
                f"Multiply: {k} * {b} = {k * b}. The boxes hold {k * b} {th}.")
    if kind == 3:
        t = k * b + r.randint(0, k - 1)
        rest = t - k * (t // k)
        return (f"{n} shares {t} {th} equally among {k} friends. How many does each friend get, and how many are left over?\n"
                f"{t} divided by {k} is {t // k} with remainder {rest}, because {k} * {t // k} = {k * (t // k)}"
                + (f" and {k * (t // k)} + {rest} = {t}." if rest else ".")
                + f" Each friend gets {t // k} {th}" + (f" and {rest} {'is' if rest == 1 else 'are'} left over." if rest else " and none are left over."))
    if kind == 4:
        v, h = r.randint(3, 90), r.randint(2, 9)
        w = r.choice(["train", "bus", "cyclist", "ship", "lorry", "pigeon", "boat"])
        return (f"A {w} travels from {town(r)} to {town(r)} at {v} kilometres per hour. The journey takes {h} hours. How far is it?\n"
                f"Distance is speed times time: {v} * {h} = {v * h} kilometres.")
    if kind == 5:
        c1, c2, n1, n2 = r.randint(1, 9), r.randint(1, 19), r.randint(2, 9), r.randint(2, 9)
        f1, f2 = pick(r, LEX["food"]), pick(r, LEX["food"])
        t = c1 * n1 + c2 * n2
        pay = ((t // 50) + 1) * 50 if t > 20 else 20
        return (f"At the {pl_} {n} buys {n1} bags of {f1} at {c1} euros each and {n2} boxes of {f2} at {c2} euros each. {he.capitalize()} pays with {pay} euros. What is {his} change?\n"
                f"The {f1} costs {n1} * {c1} = {n1 * c1} euros and the {f2} costs {n2} * {c2} = {n2 * c2} euros. Together that is {n1 * c1} + {n2 * c2} = {t} euros. "
                f"The change is {pay} - {t} = {pay - t} euros.")
    if kind == 6:
        x, d = r.randint(5, 40), r.randint(2, 30)
        return (f"{n} is {d} years older than {o}. Together they are {2 * x + d} years old. How old is {o}?\n"
                f"Let x be the age of {o}. Then x + (x + {d}) = {2 * x + d}, so 2x = {2 * x} and x = {x}. {o} is {x} and {n} is {x + d}.")
    if kind == 7:
        pc, base = r.choice([5, 10, 15, 20, 25, 30, 40, 50, 60, 75]), r.randint(2, 60) * 20
        part = base * pc // 100
        return (f"{pick(r, LEX['thing']).capitalize()} number {r.randint(2, 99)} in the {pl_} costs {base} euros. It is reduced by {pc} percent. What is the new price?\n"
                f"{pc} percent of {base} is {base} * {pc} / 100 = {part}. The new price is {base} - {part} = {base - part} euros.")
    wd, ht = r.randint(3, 60), r.randint(3, 40)
    return (f"A rectangular {r.choice(['garden', 'field', 'floor', 'table', 'window', 'carpet', 'sheet', 'yard'])} is {wd} metres long and {ht} metres wide. Find its area and its perimeter.\n"
            f"The area is {wd} * {ht} = {wd * ht} square metres. The perimeter is 2 * ({wd} + {ht}) = 2 * {wd + ht} = {2 * (wd + ht)} metres.")


def m_alg(r):
    k = r.randrange(8)
    x = r.randint(-12, 20)
    if k == 0:
        a, b = r.randint(2, 15), r.randint(-30, 40)
        c = a * x + b
        bs = f"+ {b}" if b >= 0 else f"- {-b}"
        return (f"{r.choice(['Solve', 'Solve the equation', 'Find x if'])} {a}x {bs} = {c}.\n"
                f"{'Subtract' if b >= 0 else 'Add'} {abs(b)} {'from' if b >= 0 else 'to'} both sides: {a}x = {c - b}. Divide by {a}: x = {x}.\n"
                f"Check: {a} * {x if x >= 0 else f'({x})'} {bs} = {c}.")
    if k == 1:
        p, q = r.randint(-9, 9), r.randint(-9, 9)
        quad = lin((1, "x^2"), (-p - q, "x"), (p * q, ""))
        w = lambda v: f"(x {'+' if v < 0 else '-'} {abs(v)})" if v else "x"
        if p == q:
            return f"Factor {quad}.\nThis is a perfect square: {quad} = {w(p)}^2, and the only root is {p}." if p else "Factor x^2.\nThe only root is 0, and it counts twice."
        return (f"Factor {quad}.\nWe look for two numbers with sum {-p - q} and product {p * q}: these are {-p} and {-q}. "
                f"Hence {quad} = {w(p)}{w(q)}, and the roots are {p} and {q}.")
    if k == 2:
        a, b = r.randint(12, 400), r.randint(12, 300)
        out, u, v = [], max(a, b), min(a, b)
        first = (u, v)
        while v:
            out.append(f"{u} = {u // v} * {v} + {u % v}")
            u, v = v, u % v
        return f"Find the greatest common divisor of {first[0]} and {first[1]}.\n" + "\n".join(out) + f"\nThe last nonzero remainder is {u}, so gcd({first[0]}, {first[1]}) = {u}."
    if k == 3:
        n = r.randint(20, 3000)
        f = factorize(n)
        return f"{n} = " + " * ".join(map(str, f)) + ("." if len(f) > 1 else f", so {n} is prime.") + (
            f" It has {len(f)} prime factors, the largest of which is {max(f)}." if len(f) > 1 else "")
    if k == 4:
        a, b, c, d = (r.randint(1, 9) for _ in range(4))
        b, d = b + 1, d + 1
        op = r.choice("+-*")
        num, den = {"+": (a * d + c * b, b * d), "-": (a * d - c * b, b * d), "*": (a * c, b * d)}[op]
        mid = f"{a * d}/{b * d} {op} {c * b}/{b * d} = {num}/{den}" if op != "*" else f"({a} * {c})/({b} * {d}) = {num}/{den}"
        res = frac(num, den)
        return f"Compute {a}/{b} {op} {c}/{d}.\n{a}/{b} {op} {c}/{d} = {mid}" + (f" = {res}." if res != f"{num}/{den}" else ".")
    if k == 5:
        a, d, n = r.randint(1, 20), r.randint(1, 12), r.randint(5, 30)
        last = a + (n - 1) * d
        return (f"The sequence {a}, {a + d}, {a + 2 * d}, {a + 3 * d}, ... is arithmetic. Find the sum of its first {n} terms.\n"
                f"The common difference is {d}, so term number {n} is {a} + {n - 1} * {d} = {last}. The sum is {n} * ({a} + {last}) / 2 = {n * (a + last) // 2}.")
    if k == 6:
        y = r.randint(-6, 9)
        a, b, c, d = r.randint(1, 9), r.randint(2, 6), r.randint(1, 9), -r.randint(2, 6)
        e, g = a * x + b * y, c * x + d * y
        return (f"Solve the system {lin((a, 'x'), (b, 'y'))} = {e}, {lin((c, 'x'), (d, 'y'))} = {g}.\n"
                f"Multiply the first equation by {-d} and the second by {b} and add: {lin((a * -d + c * b, 'x'))} = {-d * e + b * g}, "
                f"so x = {x}. Then {b}y = {lin((e, ''), (-a * x, ''))} = {b * y}, so y = {y}.")
    c = [r.randint(1, 9) for _ in range(3)]
    t = r.randint(-5, 9)
    return (f"Let f(x) = {lin((c[0], 'x^2'), (c[1], 'x'), (c[2], ''))}. Then f'(x) = {2 * c[0]}x + {c[1]}, and f({t}) = {c[0] * t * t} {'+' if t >= 0 else '-'} {abs(c[1] * t)} + {c[2]} = "
            f"{c[0] * t * t + c[1] * t + c[2]}. The tangent at x = {t} has slope {2 * c[0] * t + c[1]}.")


def m_drill(r):
    out = []
    k = r.randrange(5)
    for _ in range(r.randint(4, 9)):
        a, b = r.randint(2, 999), r.randint(2, 99)
        if k == 0:
            out.append(f"{a} + {b} = {a + b}")
        elif k == 1:
            out.append(f"{a} * {b} = {a * b}")
        elif k == 2:
            out.append(f"{a + b} - {b} = {a}")
        elif k == 3:
            out.append(f"{a * b} / {b} = {a}")
        else:
            c = r.randint(2, 30)
            out.append(r.choice([f"{a} + {b} * {c} = {a} + {b * c} = {a + b * c}", f"({a} - {b}) * {c} = {a - b} * {c} = {(a - b) * c}", f"{b}^2 - {c} = {b * b} - {c} = {b * b - c}"]))
    return "\n".join(out)


def m_stats(r):
    xs = [r.randint(1, 60) for _ in range(r.choice([5, 5, 7, 9]))]
    while sum(xs) % len(xs):
        xs[r.randrange(len(xs))] += 1
    s = sorted(xs)
    what = r.choice(["ages", "scores", "weights in kilograms", "prices in euros", "temperatures", "waiting times in minutes", "heights in centimetres", "daily sales"])
    who = r.choice(["the {role:pl} of {town}", "{num} {animal:pl}", "a class in {town}", "the visitors of the {place}", "the {thing:pl} in the {place}"])
    return (sent(r, f"The {what} of {who} are") + " " + ", ".join(map(str, xs)) + ".\n"
            f"Their sum is {sum(xs)}, so the mean is {sum(xs)} / {len(xs)} = {sum(xs) // len(xs)}. In order they are {', '.join(map(str, s))}; "
            f"the median is {s[len(s) // 2]} and the range is {s[-1]} - {s[0]} = {s[-1] - s[0]}.")


def m_prob(r):
    a, b, c = r.randint(2, 12), r.randint(2, 12), r.randint(1, 9)
    x, y, z = r.sample(LEX["color"], 3)
    t = a + b + c
    return (f"A {r.choice(['bag', 'box', 'jar', 'basket', 'drawer'])} holds {a} {x}, {b} {y} and {c} {z} {plural(r.choice(LEX['thing']))}. One is drawn at random. "
            f"What is the probability that it is {r.choice([x, x])}?\nThere are {a} + {b} + {c} = {t} in all, and {a} of them are {x}, so the probability is {a}/{t}"
            + (f" = {frac(a, t)}" if frac(a, t) != f"{a}/{t}" else "") + f". The probability that it is not {z} is {t - c}/{t}.")


def m_proof(r):
    k = r.choice([2, 3, 4, 5, 6, 7])
    v = r.sample(list("abcmnpqrst"), 3)
    a, b, c = v
    j = r.randint(2, 40)
    ts = [f"Claim. If {k} divides {a} and {k} divides {b}, then {k} divides {a} + {j}{b}.\nProof. Write {a} = {k}{c} and {b} = {k}d for integers {c} and d. Then {a} + {j}{b} = {k}({c} + {j}d), [which is a multiple of {k}|and the bracket is an integer|so {k} divides the sum]. []",
          f"Claim. The sum of {k + 1} consecutive integers starting with {a} is {k + 1}{a} + {k * (k + 1) // 2}.\nProof. The integers are {a}, {a} + 1, ..., {a} + {k}. Their sum is {k + 1}{a} + (1 + ... + {k}), and 1 + ... + {k} = {k * (k + 1) // 2}. []",
          f"Lemma. For every {a} > {j} we have {a}^2 > {j}{a}.\nProof. Multiply both sides of {a} > {j} by the positive number {a}. The inequality [keeps its direction|is preserved], [as claimed|which was to be shown]. []",
          f"Claim. If {a} is odd, then {a}^2 + {2 * j + 1} is even.\nProof. Write {a} = 2{b} + 1. Then {a}^2 = 4{b}^2 + 4{b} + 1, and adding {2 * j + 1} gives 4{b}^2 + 4{b} + {2 * j + 2} = 2(2{b}^2 + 2{b} + {j + 1}). [This is even|Hence the sum is even]. []"]
    t = r.choice(ts)
    t = t.replace("[]", "\x00")
    return ex(r, t.replace("{", "(").replace("}", ")")).replace("\x00", "QED")


MATH_HAND = [
"""Why is the square root of two irrational? Suppose it were a fraction p/q in lowest terms. Then p^2 = 2q^2, so p^2 is even, and therefore p is even, say p = 2k. Substituting gives 4k^2 = 2q^2, that is q^2 = 2k^2, so q is even as well. But then p/q was not in lowest terms. The assumption was wrong.""",
"""To add the odd numbers, draw them. One dot; around it, an L of three dots; around that, an L of five. Each new L turns a square into the next larger square. So 1 + 3 = 4, 1 + 3 + 5 = 9, 1 + 3 + 5 + 7 = 16, and in general the sum of the first n odd numbers is n^2.""",
"""A quick test for divisibility by 9: add the digits. It works because 10 leaves remainder 1 when divided by 9, and so does every power of 10. The number 5823 is 5 * 1000 + 8 * 100 + 2 * 10 + 3, so its remainder is the same as that of 5 + 8 + 2 + 3 = 18, which is zero.""",
"""How many handshakes are there if everyone in a room of n people shakes hands with everyone else? Each person shakes n - 1 hands, which makes n(n - 1), but every handshake has been counted twice. The answer is n(n - 1)/2. For ten people that is 45.""",
"""The harmonic series grows without bound, but very slowly. Group the terms: 1/3 + 1/4 is more than 1/2, the next four terms together are more than 1/2, the next eight again, and so on. Each group adds at least one half, so the sum passes every bound; yet to pass 10 it needs more than twelve thousand terms.""",
"""Two trains start 120 kilometres apart and run towards each other, one at 50 and one at 70 kilometres per hour. A fly travels back and forth between them at 90. They meet after 120 / (50 + 70) = 1 hour, so the fly covers 90 kilometres. There is no need to add up its trips.""",
"""Pigeonholes: among any 13 people two were born in the same month, since there are only 12 months. The argument says nothing about which two, or which month. Its strength is that it needs so little.""",
"""An average hides as much as it shows. If nine people earn 20 and one earns 820, the mean is (180 + 820) / 10 = 100, a wage that nobody in the room receives. The median, which is 20, tells a different story.""",
"""Binary is no stranger than decimal. In the number 1101 the places are worth 8, 4, 2 and 1, so it means 8 + 4 + 0 + 1 = 13. To go the other way, divide by two again and again and read the remainders backwards: 13, 6, 3, 1 give 1, 0, 1, 1.""",
]

MATH_GENS = [(m_words, 6), (m_alg, 6), (m_drill, 1), (m_stats, 2), (m_prob, 2), (m_proof, 1)]


# ==========================================================================
# dialogue

ASK = P("""[Have you seen|Did you see|Have you found] my {adj} {thing}? / Where did you put {np}? / Do you know who {tv:past} {np}? / Can you help me to {tv} {np}? / Why is the {place} so {adj} today? /
    How long have you been {role:a}? / Is it far to the {place}? / What do you think of {np}? / Would you like some {food} or {food}? / Are you going to {town} in {month}? /
    Who is that {role} {where}? / What happened to {np}? / Did {third} really {tv} {np}? / When does the {place} open? / How much is {np}? / Shall we {tv} {np} together? /
    Could I borrow your {thing} until {day}? / Did you hear about the {animal} {where}? / Is {third} still {feeling}? / Must we {tv} it now?""")
ANS = P("""No, I have not seen it since {day}. / I think {third} {tv:past} it. / It is {where}, next to the {thing}. / Of course, just let me {tv} {np} first. / I have no idea, ask {third}. /
    Only for {num} [weeks|months|years], but I like it. / About {num} {unitlen}, if you go past the {place}. / [Too expensive|Too heavy|Too small|Too noisy|Too old|Too far] for me, to be honest. / {food:C}, please, and a little {food}. /
    Yes, with my {kin} and {num} {animal:pl}. / That is {surname}, the {role} from {town}. / Somebody {tv:past} it {when}. / Not before {day}, I am afraid. / {num:C} coins, and not one less. /
    I would rather {tv} {np}. / If you promise not to {tv} it. / So they say, but I do not believe it. / Because the {role} forgot to {tv} {np}. / Perhaps, but I am too {feeling} to {iv}. / You ask that every {day}.""")
SAY = P("""I never wanted to be {role:a}. / The {thing} in the {place} is {adj}. / My {kin} always said that {abstract} is {adj} and {abstract} is {adj}. / {third} will be {feeling} when {he} hears that. / You are {padj}, you know. /
    I found {np} {where}. / We could {tv} {np} and nobody would notice. / There is something {adj} about that {thing}. / I dreamed of {animal:a} last night. / It has been {adj} ever since {month}. /
    Let us {mv} to the {place} before it rains. / You forgot the {thing} again. / The {role} says it cannot be {tv:pp}. / I am {feeling}, and it is your fault. / In {town} they do it with {material}. / Nothing is as {adj} as {abstract}. /
    I sold the {thing} for {num} coins. / The {animal} ate the {food}. / That reminds me of the {adj} {place} in {town}. / I will tell you {when}.""")
REACT = P("""Really? / I see. / That is good to know. / Oh no. / You must be joking. / Never mind. / I am sorry to hear that. / How strange. / Thank you. / Well, well. / As you like. / Fine. / Exactly. / What a pity. / I suppose so. / Not at all. / Good heavens. / Certainly not. / Tell me more. / Go on.""")
TAG = W("said asked replied whispered answered muttered shouted laughed sighed added insisted repeated")


def dctx(r):
    a, b, t = person(r), person(r), person(r)
    while b["name"] == a["name"]:
        b = person(r)
    return dict(x=a["name"], y=b["name"], third=t["name"], he=t["he"], surname=r.choice(SURNAMES), spot=pick(r, LEX["place"]),
                town=town(r), xhe=a["he"], yhe=b["he"], xrole=pick(r, LEX["role"]))


def utter(r, c, kind=None):
    kind = kind or r.choice("asrs")
    pool = {"q": ASK, "a": ANS, "s": SAY, "r": REACT}[kind if kind in "qasr" else "s"]
    s = sent(r, r.choice(pool), c)
    if r.random() < 0.35:
        s = sent(r, r.choice(REACT), c) + " " + s
    if r.random() < 0.3:
        s += " " + sent(r, r.choice(SAY), c)
    return s


def d_script(r):
    c = dctx(r)
    out = []
    if r.random() < 0.4:
        out.append("(" + sent(r, "{where}.", c) + " " + sent(r, "{weather}.", c) + ")")
    who, other = c["x"], c["y"]
    for i in range(r.randint(4, 10)):
        out.append(f"{who}: " + utter(r, c, r.choice("qqs") if i % 2 == 0 else r.choice("aas")))
        who, other = other, who
    return "\n".join(out)


def d_quoted(r):
    c = dctx(r)
    out = [sent(r, r.choice(P("""{x} was sitting {where} when {y} came in. / {x} met {y} {where}. / {weather}, and {x} and {y} were waiting {where}. /
        {when} {x} called {y} into the {spot}. / {x}, who was {xrole:a}, looked at {y} for a long time.""")), c)]
    who, other, he = c["x"], c["y"], c["xhe"]
    for i in range(r.randint(4, 9)):
        s = utter(r, c, r.choice("qqs") if i % 2 == 0 else r.choice("aas"))
        k = r.random()
        if k < 0.35:
            out.append(f'"{s}"')
        else:
            tag = "asked" if "?" in s[-2:] else r.choice(TAG[2:] + ["said"] * 8)
            body = s[:-1] + "," if s.endswith(".") else s
            adv = " " + r.choice(LEX["adv"]) if r.random() < 0.25 else ""
            out.append(f'"{body}" {tag} {who}{adv}.' if k < 0.8 else f'"{body}" {he} {tag}{adv}.')
        if r.random() < 0.2:
            out.append(sent(r, r.choice(P("""{who} {tv:past} {np} and {iv:past}. / For a while nobody spoke. / {who} looked at {np}. / Outside, {weather}. / {who} was {feeling}. / {animal:a} {iv:past} {where}.""")), c | {"who": other}))
        who, other = other, who
        he = c["xhe"] if who == c["x"] else c["yhe"]
    return "\n".join(out)


QA = [
    ("How do I {tv} {thing:a}?", "First, {tv} the {thing} and put it on a {adj} {thing}. Then {tv} it {adv}, and wait {num} minutes. If it is still {adj}, use a little {material}."),
    ("Can you tell me a story about {animal:a}?", "Once there was {padj:a} {animal} that lived {where}. {when:C} it met {role:a} who had {tv:pp} {np}. They became friends, and the {animal} was never {feeling} again."),
    ("What should I cook with {food} and {food}?", "You could make {food} with {food}. Cut the {food}, fry it for {num} minutes, and add some {plant} at the end."),
    ("What is {abstract}?", "{abstract:C} is what {role:a} needs when the {thing} is {adj}. It has something to do with {abstract}, but it is not the same as {abstract}."),
    ("Write a sentence with the words '{thing}' and '{place}'.", "The {role} {tv:past} the {thing} and left it in the {adj} {place}."),
    ("Where can I see {animal:pl}?", "{animal:pl,C} live near {place:pl} and in {plant} woods. The best time is {season}, {when}. Be {padj} and do not {tv} them."),
    ("Give me {num3} words for something {adj}.", "{adj:C}, {adj}, {adj} and perhaps {adj}."),
    ("My {thing} is {adj}. What can I do?", "That happens when {thing:pl} are {tv:pp} too often. Try to {tv} it with {material}. If that does not help, ask {role:a}."),
    ("Which is better for {role:a}, {material} or {material}?", "It depends on the {thing}. {material:C} is {adj} and lasts for {num} years, while {material} is {adj} but easier to {tv}."),
    ("Translate 'the {thing} is {adj}' into plain words.", "It means that somebody should {tv} the {thing} because it is no longer {adj}."),
    ("What did people in {town} do in {season}?", "They {tv:past} {thing:pl}, sold {food} at the {place}, and on {day}s they would {iv} {where}."),
]


def d_assist(r):
    c = {"num3": r.choice(["three", "four", "five"]), "town": town(r)}
    out = []
    for _ in range(r.randint(1, 3)):
        c2 = dict(c)
        for k in ("thing", "animal", "role", "adj", "material", "food", "abstract"):
            if r.random() < 0.55:
                c2[k] = pick(r, LEX[k])
        if r.random() < 0.25:
            q = m_words(r).split("\n")
            out += ["User: " + q[0], "Assistant: " + q[1]]
            continue
        q, a = r.choice(QA)
        out.append("User: " + sent(r, "[|Please tell me: |Hello! |I have a question. |]" + q, c2))
        out.append("Assistant: " + sent(r, "[|Sure. |Good question. |Of course. |]", c2) + sent(r, a, c2))
    return "\n".join(re.sub(r"(Sure|question|course)\.(?=[A-Z])", r"\1. ", o) for o in out)


def d_shop(r):
    c = dict(f=pick(r, LEX["food"]), t=pick(r, LEX["thing"]), n=r.randint(2, 12), p=r.randint(2, 40), town=town(r), third=person(r)["name"], mod=r.randint(100, 999))
    kind = r.randrange(3)
    if kind == 0:
        ts = ["CLERK: Good [morning|evening|afternoon]. Can I help you?", "CUSTOMER: Yes, I am looking for {adj:a} {t}, [preferably {color}|not too {adj}|made of {material}].",
              "CLERK: We have one for {p} euros. It came from {town} {when}.", "CUSTOMER: [That is too {adj}|It looks [heavy|old|useful|lovely|expensive]|My {kin} has the same one]. Do you have {thing:a} as well?",
              "CLERK: Only {num} {color} ones, {where}.", f"CUSTOMER: Then I will take {c['n']} of them. How much is that?", f"CLERK: That makes {c['n'] * c['p']} euros."]
    elif kind == 1:
        ts = ["PASSENGER: [Excuse me|Pardon me|Hello], is this the train to {town}?", "CONDUCTOR: No, this one stops at the {place} and then goes to {home}. You want platform {n}.",
              "PASSENGER: When does it leave?", "CONDUCTOR: In {mod2} minutes, if the {animal:pl} keep off the track.", "PASSENGER: And may I bring my {thing} and {padj:a} {animal}?", "CONDUCTOR: The {thing}, yes. The {animal} must {iv} {where}."]
        c["home"], c["mod2"] = town(r), r.randint(3, 55)
    else:
        ts = ["DOCTOR: What seems to be the trouble?", "PATIENT: I have been {feeling} since {day}, and I cannot {iv}.", "DOCTOR: Do you eat {food} or {food}?", "PATIENT: [Never|Every day|Only on {day}s], with {food}.",
              "DOCTOR: Then stop it. And do not {tv} {thing:pl} before bed.", "PATIENT: For how long?", "DOCTOR: For {num} [days|weeks]. Take {n} drops of this {adj} {plant} tea {when}."]
    return "\n".join(sent(r, t, c) for t in ts[: r.randint(4, len(ts))])


DIALOGUE_HAND = [
'''"You are early," said the watchmaker without looking up.
"By your clock or mine?"
"By the one that matters." He set down the tweezers. "Sit. It will run, but it will never be right. Somebody has been kind to it."
"Kind?"
"Oiled it. Every year, I should think, with whatever was in the kitchen. Butter, by the smell."''',
'''MAID: There is a gentleman at the door who says he is expected.
LADY: By whom?
MAID: He did not say, madam. He only said it very firmly.
LADY: Then show him in. A man that certain ought to be disappointed in person.''',
'''User: Why does bread go stale faster in the refrigerator?
Assistant: Because staling is mostly not drying out. The starch slowly rearranges itself into crystals, and it does so fastest a little above freezing. On the counter the process is slower, and in the freezer it almost stops.
User: So I should freeze it?
Assistant: Yes, in slices, so that you can take out only what you need and put it straight into the toaster.''',
'''"Did you read the contract?"
"I read the first page and the last page."
"And the forty pages in between?"
"I assumed they agreed with each other," he said, and for the first time that morning she laughed.''',
'''TEACHER: If I give you two apples and then three apples, how many do you have?
PUPIL: Six.
TEACHER: Think again. Two and three.
PUPIL: Six. I already have one in my bag.''',
'''"How deep is it here?"
"Deep enough to swim."
"That isn't a number."
"It's the only number you need, if you can swim. If you can't, I'd say it is exactly as deep as you are tall, plus a bit."''',
'''User: My plant has yellow leaves. What is wrong?
Assistant: The most common cause is too much water. Push a finger into the soil: if it is wet below the surface, wait a week before you water again. If it is bone dry, the plant is thirsty instead. Yellow between green veins, on new leaves only, usually means it lacks iron.''',
'''"I've come about the room," said the young man.
"It's taken," said Mrs. Doyle.
"The sign says vacant."
"The sign has been there since the war. I keep it up for company. You'd be surprised who knocks."
He put down his suitcase. "And do you ever let anyone in?"
"Depends," she said. "Can you play cards?"''',
'''CAPTAIN: What do you see?
LOOKOUT: Nothing, sir.
CAPTAIN: Nothing, or nothing new?
LOOKOUT: The same nothing as yesterday, sir, only closer.''',
]

DIALOGUE_GENS = [(d_script, 4), (d_quoted, 4), (d_assist, 4), (d_shop, 2)]


# ==========================================================================
# multilingual: each language has its own small grammar. Noun phrases carry
# their article, verbs come with matching objects, so agreement stays right.

DE = dict(
    names=W("Anna Lukas Marie Jonas Klara Felix Lena Paul Greta Max Johanna Emil Frieda Karl Sophie Moritz Ida Anton Hanna Otto"),
    city=W("Hamburg Köln München Dresden Leipzig Bremen Wien Basel Freiburg Lübeck Kassel Ulm Jena Graz Bern Salzburg"),
    s=P("""der Bäcker / die Lehrerin / der alte Mann / meine Großmutter / der Bürgermeister / die Ärztin / ein junger Musiker / der Fischer / die Nachbarin / der Briefträger / eine fremde Frau / der Müller /
        die Gärtnerin / mein Onkel / der Schaffner / die Köchin / ein müder Soldat / der Förster / die Schneiderin / der Uhrmacher / das kleine Mädchen / der Nachtwächter / die Bibliothekarin / ein kluger Student / der Kapitän / die Malerin"""),
    v=P("""kaufte=einen Laib Brot / schrieb=einen langen Brief / suchte=den verlorenen Schlüssel / fand=ein altes Buch / reparierte=das Fahrrad / öffnete=die schwere Tür / trug=einen Korb voller Äpfel / hörte=ein seltsames Geräusch /
        las=die Zeitung / malte=ein Bild vom Hafen / verkaufte=die letzten Möbel / kochte=eine dicke Suppe / zählte=die Münzen / sah=einen großen Vogel / vergaß=den Regenschirm / brachte=frische Milch / pflanzte=einen Kirschbaum /
        erzählte=eine lange Geschichte / zeichnete=eine Karte der Insel / putzte=die Fenster / versteckte=den goldenen Ring / verlor=die Geduld / fing=drei Fische / baute=ein kleines Boot / stellte=die Lampe / bezahlte=die Rechnung / beobachtete=die Sterne"""),
    t=P("""am Morgen / gestern / am nächsten Tag / im Winter / eines Abends / nach dem Essen / vor vielen Jahren / am Sonntag / kurz vor Mitternacht / im Frühling / heute / jeden Freitag / während des Krieges / im letzten Sommer / um sechs Uhr / später / wie immer"""),
    w=P("""in der Stadt / am Fluss / auf dem Markt / im Garten / hinter der Kirche / am Bahnhof / in der Küche / unter der Brücke / neben der alten Mühle / im Wald / auf dem Dach / am Ufer / in {city} / vor dem Rathaus / im Keller / an der Grenze / im dritten Stock"""),
    a=P("""müde / glücklich / traurig / sehr alt / freundlich / ungeduldig / neugierig / krank / stolz / still / hungrig / überrascht / berühmt / zufrieden / nervös / allein"""),
    x=P("""die Straße / das Haus / der Himmel / das Wetter / der Weg nach {city} / die Brücke / das Meer / die Suppe / der Zug / die Nacht / das Museum / der Winter / die Musik / das Zimmer / der Brief / die Arbeit"""),
    xa=P("""dunkel / lang / kalt / schön / leer / geschlossen / schwer / leise / zu teuer / ruhig / neu / gefährlich / grau / fast fertig / besser als früher / nicht weit"""),
    f=P("""{t:C} {v1} {s} {o1} {w}. / {s:C} {v1} {o1}, und {n} {v2} {o2}. / {n} {v1} {w} {o1}. / {x:C} war {xa}, aber {s} war {a}. / {t:C} war {n} {a}, denn {x} war {xa}. /
        „Warum {v1} {s} {o1}?“, fragte {n}. / Niemand wusste, dass {s} {w} {o1} {v1}. / {n} und {m} wohnten {w}; {x} war {xa}. / Als {s} {o1} {v1}, war {n} schon {w}. / Es gibt {num} Bücher über {city}, und {n} hat sie alle gelesen. /
        „{x:C} ist {xa}“, sagte {s}. / Wenn {x} {xa} ist, bleibt {n} {w}. / {s:C} sagte, {x} sei {xa}. / Zuerst {v1} {n} {o1}, dann {o2b}. / Die Fahrt von {city} nach {city2} dauert {num} Stunden."""),
    num=W("zwei drei vier fünf sechs sieben acht neun zehn zwölf zwanzig dreißig"))
FR = dict(
    names=W("Marie Pierre Camille Louis Julie Antoine Claire Hugo Lucie Marcel Élise Gaston Margot Henri Amélie Paul Jeanne Théo Inès Bernard"),
    city=W("Paris Lyon Marseille Bordeaux Lille Nantes Genève Toulouse Rouen Dijon Liège Avignon Grenoble Québec Rennes Metz"),
    s=P("""le boulanger / la maîtresse / le vieil homme / ma grand-mère / le maire / la voisine / un jeune musicien / le pêcheur / le facteur / une femme inconnue / le meunier / la jardinière / mon oncle / le contrôleur / la cuisinière /
        un soldat fatigué / l'horloger / la petite fille / le gardien / la bibliothécaire / un étudiant / le capitaine / la couturière / le médecin / une dame en noir / l'apprenti"""),
    v=P("""acheta=du pain frais / écrivit=une longue lettre / chercha=la clé perdue / trouva=un vieux livre / répara=le vélo / ouvrit=la lourde porte / porta=un panier de pommes / entendit=un bruit étrange / lut=le journal / peignit=un tableau du port /
        vendit=ses derniers meubles / prépara=une soupe épaisse / compta=les pièces / vit=un grand oiseau / oublia=son parapluie / apporta=du lait / planta=un cerisier / raconta=une longue histoire / dessina=une carte de l'île / nettoya=les fenêtres /
        cacha=l'anneau d'or / perdit=patience / attrapa=trois poissons / construisit=une petite barque / paya=l'addition / regarda=les étoiles / ferma=les volets / demanda=le chemin"""),
    t=P("""le matin / hier / le lendemain / en hiver / un soir / après le repas / il y a longtemps / dimanche / peu avant minuit / au printemps / aujourd'hui / chaque vendredi / pendant la guerre / l'été dernier / à six heures / plus tard / comme toujours"""),
    w=P("""dans la ville / au bord de la rivière / au marché / dans le jardin / derrière l'église / à la gare / dans la cuisine / sous le pont / près du vieux moulin / dans la forêt / sur le toit / à {city} / devant la mairie / dans la cave / au troisième étage / sur la plage"""),
    a=P("""fatigué / content / triste / très aimable / impatient / curieux / malade / silencieux / surpris / célèbre / inquiet / seul / en retard / pressé / de bonne humeur"""),
    x=P("""la route / la maison / la nuit / la rue / la porte / la mer / la soupe / la gare / la ville / la musique / la chambre / la lettre / la lumière / la forêt / la réponse"""),
    xa=P("""sombre / longue / froide / belle / vide / fermée / lourde / trop chère / calme / nouvelle / dangereuse / grise / presque finie / meilleure qu'avant / encore loin"""),
    f=P("""{t:C}, {s} {v1} {o1} {w}. / {s:C} {v1} {o1}, et {n} {v2} {o2}. / {n} {v1} {o1} {w}. / {x:C} était {xa}, mais {s} restait {w}. / {t:C}, {m2} était {a}, car {x} était {xa}. / « Pourquoi {m2} est-il {w} ? » demanda {s}. /
        Personne ne savait que {s} {v1} {o1}. / {n} et {m} habitaient {w} ; {x} était {xa}. / Quand {s} {v1} {o1}, {n} était déjà {w}. / Il y a {num} livres sur {city}, et {n} les a tous lus. / « {x:C} est {xa} », dit {s}. / Si {x} est {xa}, {n} reste {w}. /
        Le voyage de {city} à {city2} dure {num} heures. / D'abord {n} {v1} {o1}, puis {m} {v2} {o2}. / Selon {s}, {x} est toujours {xa}."""),
    num=W("deux trois quatre cinq six sept huit neuf dix douze vingt trente"))
FR["m2"] = W("Pierre Louis Antoine Hugo Marcel Gaston Henri Paul Théo Bernard")
ES = dict(
    names=W("María José Lucía Carlos Elena Diego Carmen Pablo Rosa Andrés Pilar Javier Inés Manuel Teresa Miguel Ana Luis Sofía Tomás"),
    city=W("Madrid Sevilla Valencia Bilbao Granada Lima Bogotá Toledo Quito Cádiz Salamanca Montevideo Oviedo Córdoba Rosario Cuenca"),
    s=P("""el panadero / la maestra / el viejo / mi abuela / el alcalde / la vecina / un joven músico / el pescador / el cartero / una mujer desconocida / el molinero / la jardinera / mi tío / el revisor / la cocinera / un soldado cansado /
        el relojero / la niña / el guardia / la bibliotecaria / un estudiante / el capitán / la costurera / el médico / la pintora / el aprendiz"""),
    v=P("""compró=pan fresco / escribió=una larga carta / buscó=la llave perdida / encontró=un libro antiguo / arregló=la bicicleta / abrió=la puerta pesada / llevó=una cesta de manzanas / oyó=un ruido extraño / leyó=el periódico / pintó=un cuadro del puerto /
        vendió=sus últimos muebles / preparó=una sopa espesa / contó=las monedas / vio=un pájaro enorme / olvidó=el paraguas / trajo=leche / plantó=un cerezo / dibujó=un mapa de la isla / limpió=las ventanas / escondió=el anillo de oro / perdió=la paciencia /
        pescó=tres peces / construyó=una barca pequeña / pagó=la cuenta / miró=las estrellas / cerró=las persianas / pidió=un vaso de agua / rompió=el espejo"""),
    t=P("""por la mañana / ayer / al día siguiente / en invierno / una tarde / después de comer / hace muchos años / el domingo / poco antes de medianoche / en primavera / hoy / cada viernes / durante la guerra / el verano pasado / a las seis / más tarde / como siempre"""),
    w=P("""en la ciudad / junto al río / en el mercado / en el jardín / detrás de la iglesia / en la estación / en la cocina / debajo del puente / cerca del viejo molino / en el bosque / en el tejado / en {city} / delante del ayuntamiento / en el sótano / en la playa / en la frontera"""),
    a=P("""triste / muy amable / impaciente / alegre / feliz / inteligente / de mal humor / valiente / fuerte / pobre / en silencio / puntual / cortés / siempre igual"""),
    x=P("""la calle / la casa / la noche / la puerta / la mar / la sopa / la estación / la ciudad / la música / la habitación / la carta / la luz / la respuesta / la montaña / la plaza"""),
    xa=P("""oscura / larga / fría / hermosa / vacía / cerrada / pesada / demasiado cara / tranquila / nueva / peligrosa / gris / casi terminada / mejor que antes / muy lejos"""),
    f=P("""{t:C}, {s} {v1} {o1} {w}. / {s:C} {v1} {o1}, y {n} {v2} {o2}. / {n} {v1} {o1} {w}. / {x:C} estaba {xa}, pero {s} seguía {w}. / {t:C} {n} parecía {a}, porque {x} estaba {xa}. / —¿Por qué {v1} {s} {o1}? —preguntó {n}. /
        Nadie sabía que {s} {v1} {o1} {w}. / {n} y {m} vivían {w}; {x} estaba {xa}. / Cuando {s} {v1} {o1}, {n} ya estaba {w}. / Hay {num} libros sobre {city}, y {n} los ha leído todos. / —{x:C} está {xa} —dijo {s}. / Si {x} está {xa}, {n} se queda {w}. /
        El viaje de {city} a {city2} dura {num} horas. / Primero {n} {v1} {o1}, luego {m} {v2} {o2}. / Dicen que {s} era {a}, pero {n} no lo cree."""),
    num=W("dos tres cuatro cinco seis siete ocho nueve diez doce veinte treinta"))
IT = dict(
    names=W("Giulia Marco Lucia Paolo Elena Luca Chiara Matteo Rosa Andrea Francesca Giovanni Sara Pietro Teresa Carlo Anna Stefano Marta Bruno"),
    city=W("Roma Milano Torino Napoli Bologna Firenze Genova Venezia Trieste Siena Palermo Bari Parma Verona Pisa Lucca"),
    s=P("""il fornaio / la maestra / il vecchio / mia nonna / il sindaco / la vicina / un giovane musicista / il pescatore / il postino / una donna sconosciuta / il mugnaio / la giardiniera / mio zio / il controllore / la cuoca / un soldato stanco /
        l'orologiaio / la bambina / il guardiano / la bibliotecaria / uno studente / il capitano / la sarta / il medico / la pittrice / il falegname"""),
    v=P("""comprò=il pane fresco / scrisse=una lunga lettera / cercò=la chiave perduta / trovò=un libro antico / riparò=la bicicletta / aprì=la porta pesante / portò=un cesto di mele / sentì=un rumore strano / lesse=il giornale / dipinse=un quadro del porto /
        vendette=gli ultimi mobili / preparò=una zuppa densa / contò=le monete / vide=un grande uccello / dimenticò=l'ombrello / piantò=un ciliegio / raccontò=una lunga storia / disegnò=una mappa dell'isola / pulì=le finestre / nascose=l'anello d'oro /
        perse=la pazienza / pescò=tre pesci / costruì=una piccola barca / pagò=il conto / guardò=le stelle / chiuse=le persiane / chiese=un bicchiere d'acqua / ruppe=lo specchio"""),
    t=P("""al mattino / ieri / il giorno dopo / d'inverno / una sera / dopo pranzo / molti anni fa / domenica / poco prima di mezzanotte / in primavera / oggi / ogni venerdì / durante la guerra / l'estate scorsa / alle sei / più tardi / come sempre"""),
    w=P("""in città / lungo il fiume / al mercato / nel giardino / dietro la chiesa / alla stazione / in cucina / sotto il ponte / vicino al vecchio mulino / nel bosco / sul tetto / a {city} / davanti al municipio / in cantina / sulla spiaggia / al terzo piano"""),
    a=P("""triste / molto gentile / impaziente / felice / intelligente / di cattivo umore / forte / in silenzio / puntuale / cortese / sempre uguale / in ritardo / prudente / sola con i suoi pensieri"""),
    x=P("""la strada / la casa / la notte / la porta / la zuppa / la stazione / la città / la musica / la stanza / la lettera / la luce / la risposta / la montagna / la piazza / la biblioteca"""),
    xa=P("""buia / lunga / fredda / bella / vuota / chiusa / pesante / troppo cara / tranquilla / nuova / pericolosa / grigia / quasi finita / migliore di prima / ancora lontana"""),
    f=P("""{t:C} {s} {v1} {o1} {w}. / {s:C} {v1} {o1}, e {n} {v2} {o2}. / {n} {v1} {o1} {w}. / {x:C} era {xa}, ma {s} restava {w}. / {t:C} {n} {v1} {o1}, perché {x} era {xa}. / «Perché {s} {v1} {o1}?» chiese {n}. /
        Nessuno sapeva che {s} {v1} {o1} {w}. / {n} e {m} abitavano {w}; {x} era {xa}. / Quando {s} {v1} {o1}, {n} era già {w}. / Ci sono {num} libri su {city}, e {n} li ha letti tutti. / «{x:C} è {xa}» disse {s}. / Se {x} è {xa}, {n} rimane {w}. /
        Il viaggio da {city} a {city2} dura {num} ore. / Prima {n} {v1} {o1}, poi {m} {v2} {o2}. / Secondo {s}, {x} è sempre {xa}."""),
    num=W("due tre quattro cinque sei sette otto nove dieci dodici venti trenta"))
RU = dict(
    names=W("Иван Пётр Сергей Андрей Николай Павел Михаил Борис Фёдор Степан"), city=W("Москве Твери Казани Туле Риге Минске Самаре Пскове"),
    s=P("старик / учитель / мой дед / сосед / врач / молодой музыкант / рыбак / почтальон / мальчик / капитан / сторож / художник"),
    v=P("""купил=свежий хлеб / написал=длинное письмо / искал=потерянный ключ / нашёл=старую книгу / починил=велосипед / открыл=тяжёлую дверь / услышал=странный звук / читал=газету / продал=лошадь / варил=суп / считал=монеты / увидел=большую птицу /
        забыл=зонтик / принёс=молоко / посадил=вишню / рассказал=длинную историю / нарисовал=карту острова / спрятал=кольцо"""),
    t=P("утром / вчера / на следующий день / зимой / однажды вечером / после обеда / много лет назад / в воскресенье / весной / сегодня / летом / поздно ночью"),
    w=P("в городе / у реки / на рынке / в саду / за церковью / на вокзале / на кухне / под мостом / возле старой мельницы / в лесу / в {city} / на берегу"),
    a=P("рад / голоден / болен / удивлён / спокоен / один / очень стар / доволен"), x=P("дорога / ночь / зима / улица / комната / музыка / работа / вода"),
    xa=P("тёмная / длинная / холодная / красивая / пустая / тяжёлая / тихая / новая"),
    f=P("""{t:C} {s} {v1} {o1} {w}. / {s:C} {v1} {o1}, а {n} {v2} {o2}. / {n} {v1} {o1} {w}. / {x:C} была {xa}, но {s} был {a}. / «Почему {s} {v1} {o1}?» — спросил {n}. / Никто не знал, что {s} {v1} {o1}. / Когда {s} {v1} {o1}, {n} был уже {w}. / {n} и {m} жили {w}, и {x} была {xa}."""),
    num=W("два три четыре"))
JA = dict(
    names=W("田中さん 山本さん 花子 太郎 先生 鈴木さん 母 父 祖母 弟"), city=W("東京 京都 大阪 札幌 奈良 長崎 福岡 仙台"),
    s=P("おじいさん / 店の人 / 若い音楽家 / 漁師 / 医者 / 隣の人 / 小さな女の子 / 駅員 / 画家 / 学生"),
    v=P("""買いました=新しいパンを / 書きました=長い手紙を / 探しました=古い鍵を / 見つけました=本を / 直しました=自転車を / 開けました=窓を / 聞きました=不思議な音を / 読みました=新聞を / 描きました=港の絵を / 作りました=温かいスープを / 忘れました=傘を / 見ました=大きな鳥を / 植えました=桜の木を / 話しました=昔の話を"""),
    t=P("朝 / 昨日 / 次の日 / 冬に / ある晩 / 食事の後で / 日曜日に / 春に / 今日 / 夏の終わりに"), w=P("町で / 川のそばで / 市場で / 庭で / 駅で / 台所で / 橋の下で / 森の中で / {city}で / 海岸で"),
    a=P("元気 / 静か / 有名 / 親切 / 一人"), x=P("道 / 夜 / 海 / 部屋 / 音楽 / 仕事 / 空"), xa=P("暗かった / 長かった / 寒かった / 美しかった / 新しかった / 遠かった"),
    f=P("""{t}、{s}は{w}{o1}{v1}。/ {s}は{o1}{v1}。{n}は{o2}{v2}。/ {n}は{w}{o1}{v1}。/ {x}は{xa}ですが、{s}は{a}でした。/ 「なぜ{s}は{o1}{v1}か」と{n}が聞きました。/ {n}と{m}は{city}に住んでいました。/ {s}が{w}{o1}{v1}とき、{n}はもういませんでした。"""),
    num=W("二 三 四"))
JA["f"] = [x for x in JA["f"] if "とき" not in x] + ["{s}が{o1}{v1}。そのとき{n}は{w}待っていました。", "{t}、{x}は{xa}です。", "{city}から{city2}まで{num}時間かかります。"]
ZH = dict(
    names=W("小明 王老师 李医生 小红 张先生 妈妈 爷爷 陈女士 弟弟 刘师傅"), city=W("北京 上海 广州 成都 杭州 南京 西安 昆明"),
    s=P("老人 / 面包师 / 年轻的音乐家 / 渔夫 / 邻居 / 小女孩 / 邮递员 / 画家 / 学生 / 船长"),
    v=P("""买了=新鲜的面包 / 写了=一封长信 / 找到了=一本旧书 / 修好了=自行车 / 打开了=沉重的门 / 听见了=奇怪的声音 / 读完了=报纸 / 画了=一张岛的地图 / 做了=一碗热汤 / 忘了=雨伞 / 看见了=一只大鸟 / 种了=一棵樱桃树 / 讲了=一个很长的故事 / 卖掉了=最后的家具"""),
    t=P("早上 / 昨天 / 第二天 / 冬天 / 有一天晚上 / 吃饭以后 / 很多年以前 / 星期天 / 春天 / 今天"), w=P("在城里 / 在河边 / 在市场 / 在花园里 / 在车站 / 在厨房里 / 在桥下 / 在森林里 / 在{city} / 在海边"),
    a=P("累 / 高兴 / 安静 / 有名 / 着急"), x=P("路 / 夜 / 海 / 房间 / 音乐 / 工作 / 天空"), xa=P("很暗 / 很长 / 很冷 / 很美 / 很新 / 很远"),
    f=P("""{t}，{s}{w}{v1}{o1}。/ {s}{v1}{o1}，{n}{v2}{o2}。/ {n}{w}{v1}{o1}。/ {x}{xa}，但是{s}很{a}。/ “为什么{s}{v1}{o1}？”{n}问。/ {n}和{m}住{w}。/ 没有人知道{s}{v1}{o1}。/ 从{city}到{city2}要{num}个小时。/ {t}{x}{xa}，所以{n}{v1}{o1}。"""),
    num=W("两 三 四 五 六"))
LANGS = {"de": (DE, "Deutsch"), "fr": (FR, "français"), "es": (ES, "español"), "it": (IT, "italiano"), "ru": (RU, "русский"), "ja": (JA, "日本語"), "zh": (ZH, "中文")}


def ml_sentence(r, L, c, cjk):
    v1, v2 = r.sample(L["v"], 2)
    d = dict(c)
    d["v1"], d["o1"] = v1.split("=")
    d["v2"], d["o2"] = v2.split("=")
    d["city"], d["city2"] = r.sample(L["city"], 2)
    d["num"] = r.choice(L["num"])
    if r.random() < 0.55:
        d["n"], d["m"] = d["m"], d["n"]
    d["o2b"] = f"{d['v2']} {d['m']} {d['o2']}"
    for k in ("s", "t", "w", "x"):
        if k not in d or r.random() < 0.75:
            d[k] = pick(r, L[k])
    for k in ("a", "xa"):
        d[k] = pick(r, L[k])
    d["m2"] = r.choice(L.get("m2", L["names"]))
    t = ex(r, r.choice(L["f"]), d)
    return t if cjk else t[:1].upper() + t[1:]


def d_lang(r, code_=None):
    code_ = code_ or r.choice(["de"] * 5 + ["fr"] * 5 + ["es"] * 5 + ["it"] * 4 + ["ru"] * 2 + ["ja", "zh"])
    L = LANGS[code_][0]
    cjk = code_ in ("ja", "zh")
    n, m = r.sample(L["names"], 2)
    c = dict(n=n, m=m, s=pick(r, L["s"]))
    join = "" if cjk else " "
    return "\n".join(join.join(ml_sentence(r, L, c, cjk) for _ in range(r.randint(3, 6))) for _ in range(r.randint(1, 2)))


GLOSS = [x.split("|") for x in P("""the bread|das Brot|le pain|el pan|il pane / the house|das Haus|la maison|la casa|la casa / the water|das Wasser|l'eau|el agua|l'acqua / the book|das Buch|le livre|el libro|il libro /
the night|die Nacht|la nuit|la noche|la notte / the street|die Straße|la rue|la calle|la strada / the key|der Schlüssel|la clé|la llave|la chiave / the bridge|die Brücke|le pont|el puente|il ponte / the tree|der Baum|l'arbre|el árbol|l'albero /
the bird|der Vogel|l'oiseau|el pájaro|l'uccello / the window|das Fenster|la fenêtre|la ventana|la finestra / the door|die Tür|la porte|la puerta|la porta / the letter|der Brief|la lettre|la carta|la lettera / the sea|das Meer|la mer|el mar|il mare /
the winter|der Winter|l'hiver|el invierno|l'inverno / the morning|der Morgen|le matin|la mañana|il mattino / the apple|der Apfel|la pomme|la manzana|la mela / the milk|die Milch|le lait|la leche|il latte / the friend|der Freund|l'ami|el amigo|l'amico /
the station|der Bahnhof|la gare|la estación|la stazione / the church|die Kirche|l'église|la iglesia|la chiesa / the river|der Fluss|la rivière|el río|il fiume / the forest|der Wald|la forêt|el bosque|il bosco / the hand|die Hand|la main|la mano|la mano /
the moon|der Mond|la lune|la luna|la luna / the island|die Insel|l'île|la isla|l'isola / the kitchen|die Küche|la cuisine|la cocina|la cucina / the horse|das Pferd|le cheval|el caballo|il cavallo / the clock|die Uhr|l'horloge|el reloj|l'orologio /
the snow|der Schnee|la neige|la nieve|la neve / the garden|der Garten|le jardin|el jardín|il giardino / the fish|der Fisch|le poisson|el pez|il pesce / the word|das Wort|le mot|la palabra|la parola / the year|das Jahr|l'année|el año|l'anno /
the song|das Lied|la chanson|la canción|la canzone / the city|die Stadt|la ville|la ciudad|la città / the mountain|der Berg|la montagne|la montaña|la montagna / the sun|die Sonne|le soleil|el sol|il sole / the child|das Kind|l'enfant|el niño|il bambino""")]
GLANG = ["English", "Deutsch", "français", "español", "italiano"]


def d_gloss(r):
    a, b = r.sample(range(5), 2)
    rows = r.sample(GLOSS, r.randint(4, 8))
    sep = r.choice([" = ", ": ", " - ", " | "])
    return f"{GLANG[a]}{sep}{GLANG[b]}\n" + "\n".join(x[a] + sep + x[b] for x in rows)


ML_HAND = [
"""Wer früh aufsteht, sieht die Stadt, bevor sie sich kämmt. Die Rollläden sind noch unten, der Bäcker lehnt rauchend in der Hintertür, und auf dem Platz streiten sich zwei Krähen um ein halbes Brötchen. Eine Stunde später ist alles ordentlich, und man glaubt nicht mehr, was man gesehen hat.""",
"""Meine Tante besaß ein Wörterbuch, in dem das Wort „unmöglich“ fehlte. Die Seite war herausgerissen. Als Kind hielt ich das für eine Art Mut; später erfuhr ich, dass mein Onkel damit den Ofen angezündet hatte.""",
"""Die Fähre fährt nur, wenn jemand die Glocke läutet. Am Steg hängt ein Schild: „Bitte einmal läuten. Wer zweimal läutet, wartet doppelt so lange.“ Bisher hat es niemand ausprobiert.""",
"""Ein Fluss ist keine Grenze, sagte der Schmuggler, ein Fluss ist eine Einladung. Dann zog er die Stiefel aus.""",
"""Dans mon village, l'horloge de l'église avance de sept minutes. Tout le monde le sait et personne ne la corrige. Les habitants y gagnent sept minutes d'avance sur le reste du monde, et les étrangers arrivent toujours trop tôt, ce qui leur donne l'air poli.""",
"""Il vendait des parapluies les jours de soleil et des chapeaux de paille les jours de pluie. « C'est une question de prix, expliquait-il. Quand on en a besoin, tout le monde en vend. »""",
"""La traductrice corrigeait depuis une heure la même phrase. Dans l'original, un homme fermait une porte. Dans sa langue à elle, il fallait dire s'il la fermait derrière lui ou devant lui, et l'auteur était mort depuis longtemps.""",
"""Mi abuelo decía que el mar no se aprende, se recuerda. Nosotros, que habíamos nacido tierra adentro, no entendíamos nada, pero asentíamos con la cabeza y seguíamos comiendo aceitunas.""",
"""El tren de las ocho llegaba siempre a las nueve, y el de las nueve no llegaba nunca. Por eso el jefe de estación propuso cambiar los nombres de los trenes, que era más barato que cambiar las vías.""",
"""Cada vez que se iba la luz, la vecina del cuarto cantaba. No cantaba bien, pero en la oscuridad nadie sabe qué hacer, y agradecíamos que alguien lo supiera.""",
"""Nel cassetto della cucina c'erano trentadue chiavi e nessuno sapeva che cosa aprissero. Mio padre non voleva buttarle. «Una porta si trova sempre» diceva, e aggiungeva la trentatreesima.""",
"""Il barbiere di piazza Grande parlava soltanto di calcio, tranne il lunedì, quando il negozio era chiuso e leggeva Dante a voce alta. Chi passava sotto la finestra rallentava il passo.""",
"""Per fare un buon brodo ci vogliono tempo, acqua fredda e poche idee. Chi ne ha troppe finisce per fare una minestra.""",
"""Старый фонарщик знал каждую ступеньку в городе. Он говорил, что темнота везде разная: у реки она мягкая, на площади твёрдая, а во дворах пахнет кошками.""",
"""В нашей деревне снег называли по имени хозяина двора. Чистый снег был у мельника, а самый глубокий — у бабушки Веры.""",
"""古い時計屋の主人は、止まった時計しか直しませんでした。遅れる時計を持って行くと、「急がないのは病気ではない」と言って笑いました。""",
"""雨の日、駅の傘立てには必ず一本だけ赤い傘が残っています。誰のものか、駅員も知りません。""",
"""村口有一棵老槐树，树下有一张石桌。下棋的人换了三代，棋子也丢了几个，现在用瓶盖代替，大家都习惯了。""",
"""奶奶说，茶要慢慢喝，话要慢慢说，只有饭要趁热吃。""",
]
ML_GENS = [(d_lang, 12), (d_gloss, 1)]


# ==========================================================================
# assembly

GENS = {"prose": PROSE_GENS, "code": CODE_GENS, "math": MATH_GENS, "dialogue": DIALOGUE_GENS, "multilingual": ML_GENS}
HAND = {"prose": PROSE_HAND, "code": CODE_HAND, "math": MATH_HAND, "dialogue": DIALOGUE_HAND, "multilingual": ML_HAND}
SENTENCE = re.compile(r'(?<=[.!?])["”»“)]*\s+|(?<=[。！？])')


def units(text: str) -> set[str]:
    """The lines and sentences of at least UNIT bytes."""
    out = set()
    for line in text.split("\n"):
        line = line.strip()
        for s in [line] + SENTENCE.split(line):
            s = s.strip()
            if len(s.encode()) >= UNIT:
                out.add(s)
    return out


def tidy(doc: str) -> str:
    doc = "\n".join(x.rstrip() for x in doc.split("\n") if x.strip())
    return doc.strip("\n")


def draw(r, gens):
    fs, ws = zip(*gens)
    return tidy(r.choices(fs, ws)[0](r))


def build(domain, split, size, seed, hand, forbidden, stats):
    """Documents of one domain up to `size` bytes, none sharing a unit with `forbidden`."""
    r = random.Random(f"{seed}-{split}-{domain}")
    docs, total, mine = [], 0, set()
    hand = [tidy(h) for h in hand]
    fill = sum(len(h.encode()) + 2 for h in hand)
    while total + fill < size:
        d = draw(r, GENS[domain])
        u = units(d)
        stats[0] += 1
        if u & forbidden or d in mine:
            stats[1] += 1
            continue
        mine.add(d)
        docs.append(d)
        total += len(d.encode()) + 2
    for h in hand:
        assert not (units(h) & forbidden), h
        docs.insert(r.randrange(len(docs) + 1), h)
    return docs


def check(files: dict[str, list[str]]) -> None:
    """files: split -> texts. Raises when two splits share a unit."""
    us = {k: set().union(*map(units, v)) for k, v in files.items()}
    ks = list(us)
    for i, a in enumerate(ks):
        for b in ks[i + 1:]:
            both = us[a] & us[b]
            if both:
                raise SystemExit(f"{a} and {b} share {len(both)} lines or sentences, such as: {sorted(both)[0]!r}")
    print("no line or sentence of", UNIT, "bytes or more is shared:", ", ".join(f"{k} {len(v)}" for k, v in us.items()))


def write(path: Path, docs: list[str]) -> str:
    text = "\n\n".join(docs) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return text


def main() -> None:
    ap = argparse.ArgumentParser(description="Write the built-in calibration, evaluation and training texts.")
    ap.add_argument("--out", type=Path, default=DATASETS / "text")
    ap.add_argument("--train", type=Path, help="also write a training corpus to this file")
    ap.add_argument("--train-mb", type=float, default=5.0)
    ap.add_argument("--seed", type=int, default=20)
    ap.add_argument("--check", action="store_true", help="write nothing, only check the files for overlap")
    a = ap.parse_args()
    if a.check:
        files = {s: [(a.out / s / f"{d}.txt").read_text(encoding="utf-8") for d in DOMAINS] for s in ("evaluation", "calibration")}
        if a.train:
            files["train"] = [a.train.read_text(encoding="utf-8")]
        check(files)
        return
    texts: dict[str, list[str]] = {}
    forbidden: set[str] = set()
    plan = [("evaluation", 40_000), ("calibration", 60_000)]
    if a.train:
        plan.append(("train", int(a.train_mb * 1e6)))
    share = {"prose": 0.24, "code": 0.2, "math": 0.18, "dialogue": 0.18, "multilingual": 0.2}
    for split, size in plan:
        texts[split], alldocs = [], []
        for d in DOMAINS:
            # a third of the hand-written paragraphs goes to each text
            k = ["evaluation", "calibration", "train"].index(split)
            hand = HAND[d][k::3]
            stats = [0, 0]
            docs = build(d, split, int(size * share[d]) if split == "train" else size, a.seed, hand, forbidden, stats)
            if split == "train":
                alldocs += docs
                print(f"{split} {d}: {len(docs)} documents, {stats[1]} of {stats[0]} drawn were rejected")
            else:
                texts[split].append(write(a.out / split / f"{d}.txt", docs))
                print(f"{split} {d}: {len(docs)} documents, {len(texts[split][-1].encode())} bytes, {stats[1]} of {stats[0]} drawn were rejected")
        if split == "train":
            random.Random(f"{a.seed}-shuffle").shuffle(alldocs)
            texts[split].append(write(a.train, alldocs))
            print(f"train: {len(alldocs)} documents, {len(texts[split][-1].encode())} bytes")
        for t in texts[split]:
            forbidden |= units(t)
    check(texts)


if __name__ == "__main__":
    sys.exit(main())
