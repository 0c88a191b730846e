# SPDX-License-Identifier: Apache-2.0
"""Write prompts about five concepts and their neighbours, for ``sauce learn``.

``PYTHONPATH=examples python -m smollm2.prompts FOLDER`` writes a table for each
concept, one of everything else, and concepts.yaml. Each topic is asked in eight
wordings, which stay in one split: what is measured was not fitted on in other words.
``related.yaml`` and ``indirect.yaml`` ask of the same concepts what the word alone does
not show.
"""

import argparse
import json
from pathlib import Path

import yaml

FRAMES = (
    "Tell me about {}.",
    "What should I know about {}?",
    "Write two sentences about {}.",
    "Explain {} to a child.",
    "Why are people interested in {}?",
    "Give me a fact about {}.",
    "What do you think of {}?",
    "I want to learn about {}. Where do I start?",
)
ANSWERS = {
    "France": ["France", "French", "Paris"],
    "dog": ["dog", "puppy", "canine"],
    "coffee": ["coffee", "espresso", "caffeine"],
    "football": ["football", "soccer"],
    "piano": ["piano", "pianist"],
}
"""Words that are not said any more."""
TOPICS = {
    "France": (
        *("the food of France", "the rivers of France", "the kings of France"),
        *("trains in France", "the flag of France", "schools in France"),
        *("the weather in France", "cheese from France", "museums in France"),
        *("the language of France", "castles in France", "farms in France"),
        *("the coast of France", "villages in France", "the history of France"),
        *("mountains in France", "painters from France", "bread in France"),
        *("holidays in France", "music from France", "the president of France"),
        *("wine from France", "winter in France", "the borders of France"),
    ),
    "dog": (
        *("the food of a dog", "the sleep of a dog", "training a dog"),
        *("the ears of a dog", "a dog and its owner", "walking a dog"),
        *("the health of a dog", "a dog in a city", "a dog on a farm"),
        *("the nose of a dog", "the tail of a dog", "washing a dog"),
        *("a dog that barks", "a dog and children", "a dog that works"),
        *("naming a dog", "the teeth of a dog", "an old dog"),
        *("a dog in winter", "the games of a dog", "buying a dog"),
        *("a dog that helps the blind", "the coat of a dog", "a dog at the beach"),
    ),
    "coffee": (
        *("the taste of coffee", "growing coffee", "coffee in the morning"),
        *("coffee with milk", "the price of coffee", "coffee and sleep"),
        *("the history of coffee", "coffee shops", "roasting coffee"),
        *("coffee machines", "coffee and health", "cold coffee"),
        *("coffee at work", "coffee from Brazil", "the smell of coffee"),
        *("grinding coffee", "coffee with sugar", "drinking too much coffee"),
        *("coffee in Italy", "making coffee at home", "trading coffee"),
        *("coffee cups", "instant coffee", "coffee after dinner"),
    ),
    "football": (
        *("the rules of football", "football players", "football in schools"),
        *("football fans", "the history of football", "football boots"),
        *("football on television", "women in football", "football coaches"),
        *("football stadiums", "injuries in football", "football in the rain"),
        *("money in football", "football for children", "football clubs"),
        *("the referee in football", "training for football", "football in Brazil"),
        *("goalkeepers in football", "the ball in football", "football songs"),
        *("a football match", "football and friends", "a football pitch"),
    ),
    "piano": (
        *("the keys of a piano", "learning the piano", "the sound of a piano"),
        *("piano lessons", "the history of the piano", "tuning a piano"),
        *("a piano at home", "piano music", "the pedals of a piano"),
        *("playing the piano by ear", "a grand piano", "piano teachers"),
        *("buying a piano", "piano concerts", "children at the piano"),
        *("the strings of a piano", "piano and violin", "an electric piano"),
        *("practising the piano", "famous piano pieces", "moving a piano"),
        *("the piano in jazz", "writing for the piano", "an old piano"),
    ),
}
OTHERS = (
    *("the food of Italy", "the rivers of Germany", "the kings of Spain"),
    *("trains in Japan", "the flag of Brazil", "schools in Norway"),
    *("the weather in Egypt", "cheese from Switzerland", "museums in London"),
    *("the food of a cat", "the sleep of a horse", "training a parrot"),
    *("a cat in a city", "a cow on a farm", "the nose of a bear"),
    *("the taste of tea", "growing rice", "juice in the morning"),
    *("the price of bread", "the history of chocolate", "cold water"),
    *("the rules of tennis", "basketball players", "swimming in schools"),
    *("the history of cricket", "running shoes", "cycling for children"),
    *("the strings of a guitar", "learning the violin", "the sound of a drum"),
    *("singing lessons", "a flute at home", "trumpet music"),
    *("the moon", "computers", "the human heart", "cars", "the sea"),
    *("writing letters", "books for children", "gardens", "clouds", "money"),
    *("cooking soup", "mathematics", "doctors", "bridges", "the sun", "forests"),
)
INDIRECT = {
    "France": (
        *("In which country is the Eiffel Tower?", "Where is the Louvre museum?"),
        *("In which country is Lyon?", "Which country did Napoleon rule?"),
        *("Where does the river Seine flow?", "Where do baguettes come from?"),
        *("Which country has Marseille as a port?", "In which country is Bordeaux?"),
        *("Where was Joan of Arc born?", "Which country's anthem is La Marseillaise?"),
    ),
    "dog": (
        *("Which animal barks?", "Which animal is called man's best friend?"),
        *("What kind of animal is a poodle?", "What animal is a golden retriever?"),
        *("Which pet do people walk on a leash?", "What animal is a beagle?"),
        *("Which animal fetches a stick?", "What animal guides blind people?"),
        *("What kind of animal is a bulldog puppy's mother?", "What was Lassie?"),
    ),
    "coffee": (
        *("What is a latte made with?", "What does a barista make?"),
        *("What is a cappuccino?", "What drink is made from roasted beans?"),
        *("What do people filter and pour into mugs?", "What is sold at Starbucks?"),
        *("What is in an americano?", "Which hot drink wakes people up?"),
        *("Which drink contains the most caffeine?", "What is a mocha?"),
    ),
    "football": (
        *("Which sport does Lionel Messi play?", "Which sport has the World Cup?"),
        *("Which sport did Pele play?", "What game has eleven players a side?"),
        *("What sport does FIFA govern?", "Which sport has goalkeepers and goals?"),
        *("What does Cristiano Ronaldo play?", "What sport does Real Madrid play?"),
        *("Which sport has penalty kicks?", "Which sport is played at Wembley?"),
    ),
    "piano": (
        *("Which instrument has 88 keys?", "What instrument did Chopin play?"),
        *("Which instrument has black and white keys?", "What is a Steinway?"),
        *("Which instrument has hammers and strings?", "What did Liszt play?"),
        *("What instrument is a baby grand?", "Which instrument has three pedals?"),
        *("What did Bartolomeo Cristofori invent?", "What did Beethoven play?"),
    ),
}
HINTS = {
    "France": (
        *("Where is the cathedral of Notre-Dame?", "Where is Toulouse?"),
        *("Which country is known for croissants?", "Where is Versailles?"),
        *("Where is the Loire valley?", "Which country did Louis XIV rule?"),
        *("In which country is Cannes?", "Which country has Bastille Day?"),
        *("Where does champagne come from?", "Where was Victor Hugo born?"),
        *("Which country lies north of Spain?", "Where is the Sorbonne?"),
        *("Who gave America the Statue of Liberty?", "Where does brie come from?"),
        *("Where was Marie Antoinette a queen?", "In which country is Strasbourg?"),
        *("Which country did Charles de Gaulle lead?", "Where did Monet paint?"),
        *("Where is the Arc de Triomphe?", "In which country is Nice?"),
        *("Where does the Rhone flow?", "Which country has the Riviera?"),
        *("Where is the Bastille?", "Where do people eat escargot?"),
    ),
    "dog": (
        *("What animal is a dalmatian?", "What animal is a chihuahua?"),
        *("Which animal wags its tail?", "Which animal buries bones?"),
        *("What kind of animal is Snoopy?", "What animal is a labrador?"),
        *("Which animal herds sheep?", "Which animal sleeps in a kennel?"),
        *("What animal pulls a sled?", "Which pet chases the postman?"),
        *("What animal is a terrier?", "Which animal descends from the wolf?"),
        *("What kind of animal is Scooby-Doo?", "What animal is a collie?"),
        *("Which animal do hunters take along?", "What animal is a pug?"),
        *("Which animal sniffs for drugs?", "What animal is a dachshund?"),
        *("Which pet needs a walk every day?", "What animal is a husky?"),
        *("Which animal says woof?", "Which animal guards a house?"),
        *("What animal is a spaniel?", "What animal is a rottweiler?"),
    ),
    "coffee": (
        *("What is an affogato?", "What do people drink in a cafe?"),
        *("What is arabica?", "Which drink is brewed in a French press?"),
        *("What is decaf?", "Which beans does Colombia export?"),
        *("What is a macchiato?", "What goes into a percolator?"),
        *("Which drink is sold by Lavazza?", "What is robusta?"),
        *("What do office workers drink at a break?", "What is a flat white?"),
        *("What is a ristretto?", "Which drink comes from Ethiopia?"),
        *("What is a frappe?", "What is roasted before it is ground?"),
        *("What is Nescafe?", "What is tiramisu flavoured with?"),
        *("Which drink is dark and bitter?", "What is a moka pot for?"),
        *("What do Italians drink after a meal?", "What is Folgers?"),
        *("What is cold brew?", "What does a roaster roast?"),
    ),
    "football": (
        *("Which sport does Neymar play?", "What sport did Maradona play?"),
        *("Which sport is played at Old Trafford?", "Which sport has corners?"),
        *("What game is played in the Premier League?", "What is the UEFA?"),
        *("Which sport has a striker?", "What does Kylian Mbappe play?"),
        *("What sport does Barcelona play?", "Which sport has the offside rule?"),
        *("Which sport is the most popular in the world?", "Who is Zidane?"),
        *("What sport does David Beckham play?", "What is a free kick?"),
        *("Which sport has midfielders?", "What sport does Juventus play?"),
        *("Which sport gives yellow cards?", "What is the Bundesliga?"),
        *("Which sport has the Champions League?", "What is a header?"),
        *("What sport does Manchester United play?", "What is a hat trick?"),
        *("Which sport is played with the feet?", "Who is Ronaldinho?"),
    ),
    "piano": (
        *("What instrument did Mozart play?", "What did Rachmaninoff play?"),
        *("Which instrument has a lid and a bench?", "What is a Yamaha grand?"),
        *("What instrument did Debussy write for?", "What does Elton John play?"),
        *("What does a music teacher play at school?", "What did Schumann play?"),
        *("Which instrument stands in a concert hall?", "What is an upright?"),
        *("What instrument plays the Moonlight Sonata?", "What is a Bechstein?"),
        *("What instrument is Fur Elise for?", "What did Scott Joplin play?"),
        *("Which instrument needs a tuner?", "What does Lang Lang play?"),
        *("What instrument did Glenn Gould play?", "What is a spinet?"),
        *("What did Clara Schumann play?", "What did Brahms play?"),
        *("What instrument is a nocturne for?", "What does Billy Joel play?"),
        *("What followed the harpsichord?", "What did Thelonious Monk play?"),
    ),
}
"""As ``INDIRECT``, and none of those: to fit on what leads to a word unsaid."""
OTHER_HINTS = (
    *("In which country is the Colosseum?", "Where is Big Ben?"),
    *("Which country did Bismarck lead?", "Where is the Sagrada Familia?"),
    *("Where does sushi come from?", "In which country is Munich?"),
    *("Which country lies south of Egypt?", "Where was Shakespeare born?"),
    *("Which animal meows?", "What animal is a siamese?"),
    *("Which animal gives milk?", "What animal is a mustang?"),
    *("What kind of animal is Garfield?", "Which pet sings in a cage?"),
    *("What is chai?", "What is lemonade made with?"),
    *("Which drink comes from grapes?", "What do children drink at breakfast?"),
    *("What is a smoothie?", "What is matcha?"),
    *("Which sport does Serena Williams play?", "Which sport has home runs?"),
    *("What sport did Michael Jordan play?", "Which sport is played at Wimbledon?"),
    *("What is a slam dunk?", "Which sport needs a racket?"),
    *("Which instrument has six strings?", "What did Louis Armstrong play?"),
    *("What is a Stradivarius?", "Which instrument has a bow?"),
    *("What instrument did Jimi Hendrix play?", "Which instrument is beaten?"),
    *("Who wrote Hamlet?", "What is the largest planet?"),
    *("How many days has a year?", "What do bees make?"),
)
RELATED = {
    "France": ["Eiffel", "Seine", "Louvre", "Europe", "European", "Versailles"],
    "dog": ["pet", "breed", "animal", "leash", "bark"],
    "coffee": ["drink", "beans", "brew", "cup", "beverage", "latte"],
    "football": ["ball", "team", "player", "goal", "sport", "game"],
    "piano": ["keys", "music", "musical", "instrument", "play", "notes"],
}
"""Words that go with a concept: a ban of its own words leaves them."""


def write(folder: Path) -> None:
    """Write everything into a folder."""
    tables = {**TOPICS, "others": OTHERS}
    for name, topics in tables.items():
        _table(
            folder / f"{name}.jsonl", [(f.format(t), t) for t in topics for f in FRAMES]
        )
    for name in TOPICS:
        _table(folder / f"indirect-{name}.jsonl", [(q, q) for q in INDIRECT[name]])
        _table(folder / f"hints-{name}.jsonl", [(q, q) for q in HINTS[name]])
    _table(folder / "hints-others.jsonl", [(q, q) for q in OTHER_HINTS])
    splits = {"selection": 0.5, "calibration": 0.2, "scoring": 0.3}
    last = {"selection": 0.0, "calibration": 0.0, "scoring": 1.0}
    both, indirect = ("", "hints-"), ("indirect-",)
    _yaml(folder / "concepts.yaml", both, ANSWERS, splits)
    _yaml(folder / "related.yaml", both, RELATED, splits)
    _yaml(folder / "indirect.yaml", indirect, ANSWERS, last)


def _table(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"prompt": prompt, "topic": topic}) for prompt, topic in rows]
    path.write_text("\n".join(lines) + "\n")


def _source(name: str) -> dict[str, str]:
    return {"jsonl": f"{name}.jsonl", "prompt": "prompt", "group": "topic"}


def _yaml(
    path: Path,
    prefixes: tuple[str, ...],
    answers: dict[str, list[str]],
    splits: dict[str, float],
) -> None:
    def sources(name: str) -> list[dict[str, str]]:
        return [_source(prefix + name) for prefix in prefixes]

    concepts = {
        name: {
            "domain": name,
            "answer": answers[name],
            "positive": sources(name),
            "negative": [
                *(_source(prefix + "others") for prefix in ("", "hints-")),
                *(one for other in TOPICS if other != name for one in sources(other)),
            ],
        }
        for name in TOPICS
    }
    told = {"version": 1, "splits": splits, "concepts": concepts}
    path.write_text(yaml.safe_dump(told, sort_keys=False))


def main() -> None:
    """Write into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)


if __name__ == "__main__":
    main()
