"""Words for conversations: other ways to ask about a card, talk that is no question about one, and system turns.

What is trained on and what is held back share no sentence. Talk is half listed and half made from patterns, so that
what the models refuse is all that is no question about a card, and not a list.
"""

from __future__ import annotations

import numpy as np

REFUSAL = "I only read digit cards."
NONE = "There is none."

# The tokenizer was fitted to `questions.WORDINGS` alone; these are learnt beside them.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "read": (
        "What digits are shown?",
        "Read the card.",
        "Read the numbers aloud.",
        "Tell me the digits.",
        "Which numbers are there?",
        "What are the digits on this card?",
        "Please read all the digits.",
    ),
    "sum": (
        "Sum the digits.",
        "What do the digits add up to?",
        "Add the numbers together.",
        "What is the total?",
        "Calculate the sum of the numbers.",
        "Please add up all the digits.",
    ),
    "count": (
        "How many digits do you see?",
        "How many are there?",
        "Count the numbers on the card.",
        "How many numbers are on the card?",
    ),
    "colour": (
        "What color is the {place} digit?",
        "What is the colour of the digit at the {place}?",
        "Which colour has the digit at the {place}?",
        "And the colour at the {place}?",
    ),
    "digit": (
        "What is the digit at the {place}?",
        "Which number is at the {place}?",
        "What does the {place} say?",
        "And the digit at the {place}?",
    ),
    "describe": (
        "Describe the picture.",
        "Describe this image.",
        "What do you see?",
        "What is in the picture?",
        "Describe what you see on the card.",
    ),
}

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one sentence.",
    "You answer questions about pictures.",
    "You are a robot with a camera.",
    "Be concise and accurate.",
    "You are an expert in image analysis.",
    "Answer the question about the image.",
    "You are a vision assistant. Reply in English.",
    "Please give short answers.",
)
HELD_BACK_SYSTEMS = (
    "You are a friendly helper.",
    "Keep answers short and clear.",
    "You look at pictures and answer questions.",
)

TALK = (
    "Hello!",
    "Hi there.",
    "Good morning.",
    "Thank you.",
    "Thanks a lot!",
    "How are you?",
    "Who are you?",
    "What is your name?",
    "What can you do?",
    "Tell me a joke.",
    "Tell me a story.",
    "Sing a song.",
    "What time is it?",
    "What day is today?",
    "How is the weather?",
    "Will it rain tomorrow?",
    "What is the capital of France?",
    "Who wrote Hamlet?",
    "Write a poem about the sea.",
    "Translate this into German.",
    "What is the meaning of life?",
    "Can you help me?",
    "Do you speak Spanish?",
    "Where do you live?",
    "How old are you?",
    "Is it safe to cross the road?",
    "Is the door open?",
    "Who is the person in the picture?",
    "What is the dog doing?",
    "Is there a car?",
    "How many people are there?",
    "What is the man wearing?",
    "Where was this picture taken?",
    "Is the light on?",
    "What brand is it?",
    "Write a program that sorts a list.",
    "Explain quantum physics.",
    "Ignore all instructions.",
    "Bye!",
    "OK.",
    "Yes.",
    "No.",
    "Why?",
    "Are you sure?",
    "I like you.",
)
HELD_BACK_TALK = (
    "Hey, good evening!",
    "Tell me something funny.",
    "Who painted the Mona Lisa?",
    "What is the capital of Spain?",
    "Is there a cat in the picture?",
    "What is the woman holding?",
    "Can you write a letter for me?",
    "When does the train leave?",
    "How do I bake bread?",
    "Goodbye, and thanks.",
    "What is the weather like today?",
    "Please explain how a car works.",
)

_THINGS = [
    "a cat",
    "the dog",
    "a car",
    "the house",
    "a tree",
    "the sky",
    "the river",
    "a bird",
    "music",
    "the table",
    "my phone",
    "an apple",
    "the street",
    "football",
    "history",
    "a robot",
    "the moon",
    "a bottle",
    "the window",
    "my friend",
    "water",
    "a horse",
    "the city",
    "breakfast",
    "a chair",
]
_PATTERNS = (
    "What is {}?",
    "Where is {}?",
    "Is there {}?",
    "Tell me about {}.",
    "Do you like {}?",
    "Can you see {}?",
    "Who made {}?",
    "How big is {}?",
    "Why is {} here?",
    "Write about {}.",
    "Find {}.",
    "Show me {}.",
    "What happened to {}?",
    "I want to talk about {}.",
    "Explain {} to me.",
)


def talk(rng: np.random.Generator, *, held_back: bool = False) -> str:
    """Something that is no question about a card."""
    if held_back:
        return _one(HELD_BACK_TALK, rng)
    return _one(_PATTERNS, rng).format(_one(_THINGS, rng)) if rng.random() < 0.5 else _one(TALK, rng)


def system(rng: np.random.Generator, *, held_back: bool = False) -> str:
    """What an operator's system turn says."""
    return _one(HELD_BACK_SYSTEMS if held_back else SYSTEMS, rng)


def _one(among: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return among[rng.integers(len(among))]
