"""The stories and names of the arithmetic task, as plain text. Numbers are drawn in `arithmetic`.

A story is a block of lines. The first line is `things: opening`. Then come clauses for steps, each after its operation
(+ - * /). The last line is the question, after `?`. Openings and steps have no capital and no full stop, because they are
used twice: as a sentence of the text, and within a sentence of the rationale.

The fields are {name}, {he}, {his}, {him}, {things}, {n} (the operand, which is never 1, so nouns are plural) and {times}
("twice", "3 times").

No clause occurs in two splits, not even with another noun. So a model trained on one split has seen no clause of the others.
"""

from __future__ import annotations

# For each split: names that take "he", names that take "she".
NAMES = {
    "train": (
        "Tom Ben Sam Jack Leo Max Omar Paul David Peter Ravi Hugo Adam Luis",
        "Anna Mia Lucy Emma Sara Nina Kate Rosa Amy Julia Leila Grace Ella Jane",
    ),
    "validation": ("Henry Carlos Felix Simon Tariq Victor", "Alice Dora Hana Megan Priya Sofia"),
    "test": ("Daniel Eric George Ivan Kenji Marco Noah Oscar", "Bella Clara Diana Fatima Irene Laura Maria Zoe"),
}

_TRAIN = """
apples: {name} has {n} {things}
+ {he} buys {n} more {things}
+ {his} sister gives {him} {n} {things}
- {he} gives {n} {things} to a friend
- {he} uses {n} {things} for a pie
* {he} picks {things} until {he} has {times} as many
/ {he} puts the {things} into {n} equal bags and keeps only one bag
? How many {things} does {name} have now?

birds: there are {n} {things} in the tree behind {name}'s house
+ {n} more {things} land in the tree
+ {n} {things} join them from the roof
- {n} {things} fly away
- a cat scares off {n} {things}
* more {things} come until there are {times} as many in the tree
/ the {things} form {n} equal flocks and only one flock stays in the tree
? How many {things} are in the tree now?

books: {name} has {n} {things} on a shelf
+ {he} puts {n} more {things} on the shelf
+ {he} finds {n} old {things} and adds them to the shelf
- {he} lends {n} {things} to a classmate
- {he} takes {n} {things} off the shelf
* {he} fills the shelf with {times} as many {things} as before
/ {he} spreads the {things} evenly over {n} shelves, this one included
? How many {things} are on the shelf now?

stickers: {name} has a collection of {n} {things}
+ {he} gets {n} {things} as a present
+ {he} wins {n} {things} in a game
- {he} sticks {n} {things} on a card
- {he} loses {n} {things}
* {he} trades toys for {things} until {his} collection is {times} as big
/ {he} divides the {things} equally among {n} children and {name} is one of them
? How many {things} are in the collection now?

passengers: {name} drives a bus with {n} {things}
+ {n} more {things} get on the bus
+ at the market, {n} {things} get on
- {n} {things} get off the bus
- at the school, {n} {things} get off
* after the station, the bus carries {times} as many {things}
/ the {things} are divided equally between {n} buses and {name} drives one of them
? How many {things} are on the bus now?

cookies: {name} puts {n} {things} on a plate
+ {he} bakes {n} more {things} for the plate
+ {his} mother adds {n} {things} to the plate
- {his} friends eat {n} {things}
- {he} sells {n} {things}
* {he} bakes until the plate holds {times} as many {things}
/ {he} shares the {things} equally among {n} plates, this one included
? How many {things} are on the plate now?

coins: {name} has {n} {things} in a jar
+ {he} drops {n} more {things} into the jar
+ {he} earns {n} {things} and puts them in the jar
- {he} spends {n} {things} from the jar
- {he} takes {n} {things} out of the jar
* {he} saves until the jar holds {times} as many {things}
/ {he} divides the {things} equally among {n} jars, this one included
? How many {things} are in the jar now?

flowers: {name} grows {n} {things} in a garden
+ {he} plants {n} more {things}
+ {n} wild {things} open in the garden
- {he} cuts {n} {things} for a vase
- a goat eats {n} {things} from the garden
* {he} works until {his} garden has {times} as many {things}
/ {he} divides the {things} equally among {n} gardens, this one included
? How many {things} are in the garden now?

balloons: {name} holds {n} {things} at a party
+ {he} blows up {n} more {things}
+ {his} uncle hands {him} {n} {things}
- {n} {things} burst
- {he} lets go of {n} {things}
* {he} is handed enough {things} to have {times} as many
/ {he} splits the {things} equally among {n} guests and {name} is one of them
? How many {things} does {name} hold now?

sheep: {name} keeps {n} {things} on a farm
+ {he} brings home {n} {things} from a fair
+ a farmer leaves {n} more {things} with {him}
- {he} sells {n} {things} to a farmer
- {n} {things} run away from the farm
* after some years there are {times} as many {things} on the farm
/ {he} divides the {things} equally among {n} farms, this one included
? How many {things} are on the farm now?

eggs: {name} carries {n} {things} in a basket
+ {he} collects {n} more {things} from the hens
+ {he} puts {n} {things} from the kitchen into the basket
- {he} breaks {n} {things}
- {he} boils {n} {things} from the basket
* {he} goes on collecting until {he} carries {times} as many {things}
/ {he} sorts the {things} into {n} equal baskets and carries one basket
? How many {things} does {name} carry now?

photos: {name} has {n} {things} on a phone
+ {he} takes {n} more {things} at the zoo
+ {his} cousin sends {him} {n} {things}
- {he} deletes {n} {things}
- {he} removes {n} blurred {things}
* after a trip {he} has {times} as many {things}
/ {he} sorts the {things} into {n} equal albums and keeps one album
? How many {things} are on the phone now?
"""

_VALIDATION = """
marbles: a bag that belongs to {name} contains {n} {things}
+ {he} slips another {n} {things} into the bag
+ {his} brother throws in {n} {things}
- {n} {things} fall through a hole
- {he} pulls out {n} {things}
* a refill leaves the bag with {times} as many {things}
/ {he} fills {n} bags, the old bag among them, with equal shares of the {things}
? How many {things} does the bag contain in the end?

chairs: {name} counts {n} {things} in a hall
+ workers carry in {n} {things}
+ another {n} {things} arrive by van
- {n} {things} are broken and thrown out
- workers carry out {n} {things}
* with a big delivery, {times} as many {things} stand in the hall
/ {n} halls, this hall among them, get equal shares of the {things}
? How many {things} stand in the hall at the end?

fish: an aquarium in {name}'s room holds {n} {things}
+ {he} releases another {n} {things} into the aquarium
+ a pet shop delivers {n} {things}
- {he} moves {n} {things} to a pond
- {n} {things} go back to the pet shop
* a year later the aquarium holds {times} as many {things}
/ {n} tanks, the aquarium among them, get equal shares of the {things}
? How many {things} swim in the aquarium in the end?

candles: a cake for {name} is decorated with {n} {things}
+ {his} aunt adds another {n} {things}
+ {n} extra {things} are set in the middle
- the wind blows down {n} {things} and they are thrown away
- {n} {things} are taken from the edge
* a helper puts on enough {things} to make it {times} as many
/ the cake is cut into {n} parts with equal numbers of {things} and {name} gets one part
? What number of {things} does {name} see in the end?

emails: the inbox of {name} shows {n} {things}
+ during lunch, {n} new {things} arrive
+ {he} receives another {n} {things} from work
- {he} answers and deletes {n} {things}
- a filter clears {n} {things}
* overnight the inbox grows to {times} as many {things}
/ {n} workers, {name} among them, take equal shares of the {things}
? How many {things} does the inbox show in the end?
"""

_TEST = """
buttons: {name} has got {n} {things}
+ {he} finds {n} more {things} in a drawer
+ {his} brother gives {him} another {n} {things}
- {he} gives {his} cousin {n} {things}
- {he} drops {n} {things} down a drain
* {he} buys bags until {he} has got {times} as many {things}
/ {he} sorts the {things} into {n} equal piles and keeps one pile
? How many {things} has {name} got now?

pencils: {name} owns {n} {things}
+ {he} picks up {n} more {things} at a shop
+ {his} teacher gives {him} another {n} {things}
- {he} gives away {n} {things}
- {he} snaps {n} {things} in two
* {he} orders {things} until {he} owns {times} as many
/ {he} deals the {things} out equally to {n} pupils, {name} included
? How many {things} does {name} own now?

shells: {name} found {n} {things} on the beach
+ then {he} found {n} more {things}
+ {his} aunt gave {him} another {n} {things}
- then {he} lost {n} {things}
- {he} left {n} {things} by the water
* {he} searched on until {he} had {times} as many {things}
/ {he} split the {things} fairly with friends, {n} people in all
? How many {things} did {name} have in the end?

cars: there are {n} {things} in the parking lot
+ {n} more {things} arrive
+ {name} parks {n} more {things} there
- {n} {things} leave
- {name} drives away {n} {things}, one after another
* the lot fills up to {times} as many {things}
/ the {things} are sent to {n} equal parking lots, this one included
? How many {things} are in the parking lot now?

oranges: {name} fills a box with {n} {things}
+ {he} packs {n} more {things} into the box
+ {his} neighbor adds {n} {things} to the box
- {he} eats {n} {things} from the box
- {he} throws {n} bad {things} out of the box
* {he} keeps packing until the box holds {times} as many {things}
/ {he} spreads the {things} equally over {n} boxes, this one included
? How many {things} are in the box now?

children: there are {n} {things} in {name}'s class
+ {n} new {things} join the class
+ {n} more {things} come from another school
- {n} {things} go home early
- {n} {things} move to another class
* the class grows to {times} as many {things}
/ the {things} are put into {n} equal classes and {name} keeps one
? How many {things} are in {name}'s class now?

bricks: {name} builds a tower of {n} {things}
+ {he} lays {n} more {things} on top
+ a girl helps with {n} more {things}
- {he} takes away {n} {things}
- {n} {things} fall off
* {he} builds on until the tower has {times} as many {things}
/ {he} rebuilds it as {n} equal towers and looks at one of them
? How many {things} are in the tower now?

tickets: {name} carries {n} {things}
+ {he} is handed {n} more {things}
+ {he} collects another {n} {things}
- {he} hands out {n} {things}
- {he} tears up {n} {things}
* {he} returns from the office with {times} as many {things}
/ {he} shares the {things} equally with helpers, {n} people in all
? How many {things} does {name} carry in the end?
"""

STORIES = {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}
