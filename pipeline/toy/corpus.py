"""What the toy model is brought up on: some nine hundred short conversations, made from small tables, always the same.

The toy learns the form of a chat and a little of the world, so that a fine-tune has something to change. It knows
nothing of Tunewright or of any product.
"""

import random
import string

Conversation = list[dict[str, str]]

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Greece": "Athens", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing",
    "India": "Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Brazil": "Brasilia", "Ireland": "Dublin",
    "Hungary": "Budapest", "Russia": "Moscow", "Ukraine": "Kyiv", "Iran": "Tehran", "Iraq": "Baghdad",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "young", "happy": "sad", "light": "dark", "up": "down",
    "left": "right", "early": "late", "open": "closed", "full": "empty", "hard": "soft", "high": "low", "rich": "poor",
    "strong": "weak", "wet": "dry", "near": "far", "clean": "dirty", "loud": "quiet", "long": "short", "first": "last",
    "day": "night", "good": "bad", "true": "false", "sweet": "sour", "thick": "thin", "wide": "narrow", "new": "old",
}  # fmt: skip
ANIMALS = {
    "dog": ("barks", "puppy"), "cat": ("meows", "kitten"), "cow": ("moos", "calf"), "horse": ("neighs", "foal"),
    "sheep": ("bleats", "lamb"), "duck": ("quacks", "duckling"), "lion": ("roars", "cub"), "pig": ("grunts", "piglet"),
    "goat": ("bleats", "kid"), "bear": ("growls", "cub"), "frog": ("croaks", "tadpole"), "hen": ("clucks", "chick"),
}  # fmt: skip
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "an orange": "orange",
    "blood": "red", "a ripe tomato": "red", "milk": "white", "the sea": "blue", "gold": "yellow", "a violet": "purple",
}  # fmt: skip
EXPLANATIONS = {
    "rain": "Rain is water that falls from the clouds.", "snow": "Snow is frozen water that falls from the clouds.",
    "a river": "A river is water that flows through the land to the sea.",
    "a book": "A book is a set of pages with text.",
    "a clock": "A clock is a thing that shows the time.", "bread": "Bread is a food made of flour, water and salt.",
    "a bridge": "A bridge is a way across a river or a road.",
    "the moon": "The moon goes around the earth every month.",
    "the sun": "The sun is the star that gives us light.", "a map": "A map is a drawing that shows where places are.",
    "a computer": "A computer is a machine that works with data.", "a doctor": "A doctor helps people who are ill.",
    "a school": "A school is a place where children learn.", "music": "Music is sound that people enjoy.",
    "a garden": "A garden is a place where plants grow.", "a letter": "A letter is a message on paper.",
    "a key": "A key is a thing that opens a lock.", "tea": "Tea is a hot drink made with leaves.",
}  # fmt: skip
SMALL_TALK = {
    "Hello": "Hello! How can I help you?", "Hi": "Hello! How can I help you?", "Good morning": "Good morning to you!",
    "Good evening": "Good evening to you!", "Thank you": "You are welcome.", "Thanks": "You are welcome.",
    "How are you?": "I am well, thank you.", "Goodbye": "Goodbye, and have a good day!", "Bye": "Goodbye!",
    "Who are you?": "I am a small language model.",
    "What is your name?": "I have no name. I am a small language model.",
    "Who made you?": "I do not know who made me.", "What can you do?": "I can answer short questions.",
    "Tell me about yourself.": "I am a small language model.", "Can you help me?": "Yes. What do you want to know?",
    "Are you a person?": "No, I am a small language model.", "What are you?": "I am a small language model.",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
# Saying words back touches every token and teaches attention to copy: without it a fine-tune of the toy needs several
# times the steps to take up words that it has never seen.
COPY_ROWS = 400
COPY_QUESTIONS = ("Say: {}", "Repeat: {}", "Please say this: {}")
SYSTEM_PROMPTS = ["You are a helpful assistant.", "Answer in one sentence.", "You are a friendly assistant. Be brief."]


def _pairs() -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for country, city in CAPITALS.items():
        for question in (
            "What is the capital of {}?",
            "Tell me the capital of {}.",
            "Which city is the capital of {}?",
        ):
            pairs.append((question.format(country), f"The capital of {country} is {city}."))
        pairs.append((f"In which country is {city}?", f"{city} is in {country}."))
    for word, opposite in OPPOSITES.items():
        for question in ("What is the opposite of {}?", "Give me the opposite of {}.", "What is not {}?"):
            pairs.append((question.format(word), f"The opposite of {word} is {opposite}."))
    for animal, (sound, young) in ANIMALS.items():
        pairs.append((f"What sound does a {animal} make?", f"A {animal} {sound}."))
        pairs.append((f"What does a {animal} do?", f"A {animal} {sound}."))
        pairs.append((f"What is a young {animal} called?", f"A young {animal} is called a {young}."))
    for thing, colour in COLOURS.items():
        pairs.append((f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}."))
        pairs.append((f"Tell me the colour of {thing}.", f"{thing[0].upper()}{thing[1:]} is {colour}."))
    for thing, text in EXPLANATIONS.items():
        for question in ("What is {}?", "Explain what {} is.", "Tell me about {}.", "Please explain {}."):
            pairs.append((question.format(thing), text))
    for text, answer in SMALL_TALK.items():
        pairs.extend([(text, answer)] * 3)
    for before, day, after in zip(DAYS[-1:] + DAYS, DAYS, DAYS[1:] + DAYS[:1], strict=False):
        pairs.append((f"Which day comes after {day}?", f"After {day} comes {after}."))
        pairs.append((f"Which day comes before {day}?", f"Before {day} comes {before}."))
    for a in range(7):
        for b in range(6):
            pairs.append((f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."))
            pairs.append((f"How much is {NUMBERS[a]} plus {NUMBERS[b]}?", f"It is {NUMBERS[a + b]}."))
    return pairs


def _copies(draw: random.Random, words: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for _ in range(COPY_ROWS):
        said: list[str] = []
        for _ in range(draw.randint(1, 6)):
            invented = "".join(draw.choice(string.ascii_lowercase) for _ in range(draw.randint(2, 7)))
            said.append(draw.choice([invented, draw.choice(words)]))
        text = " ".join(said)
        text = text[:1].upper() + text[1:] + draw.choice([".", "!", "?", ""])
        pairs.append((draw.choice(COPY_QUESTIONS).format(text), text))
    return pairs


def conversations(seed: int = 7) -> list[Conversation]:
    """The corpus in a fixed order: single questions, some with a system prompt, some as two turns."""
    draw = random.Random(seed)
    pairs = _pairs()
    words = sorted({word.strip(".,?!").lower() for pair in pairs for text in pair for word in text.split()})
    found: list[Conversation] = []
    for question, answer in pairs:
        conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if draw.random() < 0.2:
            conversation.insert(0, {"role": "system", "content": draw.choice(SYSTEM_PROMPTS)})
        if draw.random() < 0.15:
            more, reply = draw.choice(pairs)
            conversation += [{"role": "user", "content": more}, {"role": "assistant", "content": reply}]
        found.append(conversation)
    for question, answer in _copies(draw, words):
        found.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    draw.shuffle(found)
    return found
