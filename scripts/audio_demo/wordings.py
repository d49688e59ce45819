"""Questions about one and about two sounds, in many wordings, and the right answer to each."""

from collections.abc import Sequence
from random import Random

from ..media_demo.words import NUMBERS, ORDINALS, Turn, other, pick, sentence, verdict
from .tones import MOST, PITCHES, Sound, clearly_apart

Sounds = Sequence[Sound]

COUNT = (
    "How many tones are there?",
    "How many tones do you hear?",
    "How many tones can you hear?",
    "How many tones are in the {sound}?",
    "How many tones are in this {sound}?",
    "How many tones does the {sound} have?",
    "How many are there?",
    "How many {beep}s are there?",
    "How many {beep}s do you hear?",
    "Count the tones.",
    "Count the {beep}s.",
)
IS_COUNT = (
    "Are there {number} tones?",
    "Are there {number} tones in the {sound}?",
    "Do you hear {number} tones?",
    "Does the {sound} have {number} tones?",
    "Are these {number} tones?",
)
IS_ONE = (
    "Is there one tone?",
    "Is there only one tone?",
    "Do you hear one tone?",
    "Does the {sound} have one tone?",
)
COUNT_PITCH = (
    "How many {pitch} tones are there?",
    "How many {pitch} tones do you hear?",
    "How many {pitch} tones are in the {sound}?",
    "How many tones are {pitch}?",
    "How many of the tones are {pitch}?",
    "How many of them are {pitch}?",
    "Count the {pitch} tones.",
)
PITCH = (
    "Is the {place} tone high or low?",
    "Is the {place} tone low or high?",
    "The {place} tone, is it high or low?",
    "Is the {place} one high or low?",
    "What pitch has the {place} tone?",
    "What pitch does the {place} tone have?",
    "What is the pitch of the {place} tone?",
    "What is the {place} tone?",
    "How high is the {place} tone?",
)
ONLY_PITCH = (
    "Is the tone high or low?",
    "Is the tone low or high?",
    "Is it high or low?",
    "Is this high or low?",
    "Is it a high or a low tone?",
    "Is this tone high or low?",
    "Is the {sound} high or low?",
    "What pitch has the tone?",
    "What pitch does it have?",
    "What is the pitch?",
    "What is the pitch of the tone?",
)
IS_PITCH = (
    "Is the {place} tone {pitch}?",
    "Is the {place} one {pitch}?",
    "Is the {place} a {pitch} tone?",
    "Does the {place} tone have a {pitch} pitch?",
)
DESCRIBE = (
    "What do you hear?",
    "What can you hear?",
    "What is it?",
    "What is this?",
    "What's this?",
    "What is in the {sound}?",
    "What is in this {sound}?",
    "Which tones do you hear?",
    "Which tones are in the {sound}?",
    "Describe the {sound}.",
    "Describe this {sound}.",
    "Describe the tones.",
    "Describe it.",
    "Tell me what you hear.",
)
HIGHER = (
    "Which tone is {more}?",
    "Which tone is {more}, the first or the second?",
    "Which of the two tones is {more}?",
    "Which of the tones is {more}?",
    "Which one is {more}?",
    "Which is {more}, the first or the second?",
    "Is the first or the second tone {more}?",
    "Which is the {more} tone?",
)
HIGHEST = (
    "Which tone is the {most}?",
    "Which tone is {most}?",
    "Which of the tones is the {most}?",
    "Which one is the {most}?",
    "Which is the {most} tone?",
    "Where is the {most} tone?",
)
STEP = (
    "Does the pitch go up or down?",
    "Does it go up or down?",
    "Do the tones go up or down?",
    "Does the pitch rise or fall?",
    "Does it rise or fall?",
    "Is it going up or down?",
)
MORE = (
    "Which {sound} has {more} tones?",
    "Which one has {more} tones?",
    "Which has {more} tones?",
    "Which has {more} tones, the first or the second?",
    "Which {sound} has {more} tones, the first or the second?",
    "Which of the two {sound}s has {more} tones?",
    "Does the first or the second {sound} have {more} tones?",
    "In which {sound} are there {more} tones?",
)
SAME_COUNT = (
    "Do they have the same number of tones?",
    "Do both have the same number of tones?",
    "Do both {sound}s have the same number of tones?",
    "Do the two {sound}s have as many tones?",
    "Is the number of tones the same?",
    "Are there as many tones in both {sound}s?",
)
COUNT_NTH = (
    "How many tones are in the {nth} {sound}?",
    "How many tones does the {nth} {sound} have?",
    "How many tones has the {nth} {sound}?",
    "How many tones has the {nth} one?",
    "How many tones do you hear in the {nth} {sound}?",
    "Count the tones of the {nth} {sound}.",
    "Count the tones in the {nth} {sound}.",
)
DESCRIBE_NTH = (
    "What is in the {nth} {sound}?",
    "What do you hear in the {nth} {sound}?",
    "What is the {nth} {sound}?",
    "Which tones are in the {nth} {sound}?",
    "Describe the {nth} {sound}.",
    "Describe the {nth} one.",
)
HIGHER_SOUND = (
    "Which {sound} has the {more} tone?",
    "Which one has the {more} tone?",
    "Which has the {more} tone?",
    "Which has the {more} tone, the first or the second?",
    "Which {sound} has the {more} tone, the first or the second?",
    "Does the first or the second {sound} have the {more} tone?",
    "Which of the two {sound}s has the {more} tone?",
    "Which {sound} is {more}?",
    "Which one is {more}?",
)


def worded(rng: Random, wordings: Sequence[str], **slots: str) -> str:
    """One of the wordings with its slots filled; {sound} and {beep} have several names."""
    slots["sound"] = pick(rng, ("sound", "sound", "sound", "clip", "recording"))
    slots["beep"] = pick(rng, ("beep", "note", "sound"))
    return pick(rng, wordings).format(**slots)


def described(sound: Sound) -> str:
    """Such as "Two tones: low, high." """
    if not sound.number:
        return "No tone."
    noun = "tone" if sound.number == 1 else "tones"
    return sentence(f"{NUMBERS[sound.number]} {noun}: {', '.join(sound.pitches)}")


def counted(number: int) -> str:
    """Such as "Two." """
    return sentence(NUMBERS[number] if number else "none")


def count(rng: Random, sounds: Sounds) -> Turn:
    """How many tones there are."""
    return Turn(worded(rng, COUNT), counted(sounds[0].number))


def is_count(rng: Random, sounds: Sounds) -> Turn:
    """Whether there are so many tones."""
    real, numbers = sounds[0].number, range(1, MOST + 1)
    asked = real if real and rng.random() < 0.45 else other(rng, numbers, real)
    question = worded(rng, IS_ONE if asked == 1 else IS_COUNT, number=NUMBERS[asked])
    return Turn(question, "Yes." if asked == real else f"No, {counted(real).lower()}")


def count_pitch(rng: Random, sounds: Sounds) -> Turn:
    """How many of them are high, or low."""
    pitch = pick(rng, PITCHES)
    question = worded(rng, COUNT_PITCH, pitch=pitch)
    return Turn(question, counted(sounds[0].pitches.count(pitch)))


def a_place(rng: Random, sound: Sound) -> tuple[str, str | None]:
    """A tone by its place, and its pitch; now and then it is not there."""
    if rng.random() < 0.25 and sound.number:
        return "last", sound.pitches[-1]
    place = rng.randrange(min(MOST, sound.number + (rng.random() < 0.15)) or 1)
    return ORDINALS[place], sound.pitches[place] if place < sound.number else None


def pitch(rng: Random, sounds: Sounds) -> Turn:
    """Whether a tone, or the only one, is high or low."""
    if sounds[0].number == 1 and rng.random() < 0.7:
        return Turn(worded(rng, ONLY_PITCH), sentence(sounds[0].pitches[0]))
    place, real = a_place(rng, sounds[0])
    answer = sentence(real) if real else f"There is no {place} tone."
    return Turn(worded(rng, PITCH, place=place), answer)


def is_pitch(rng: Random, sounds: Sounds) -> Turn:
    """Whether a tone is high, or low."""
    (place, real), asked = a_place(rng, sounds[0]), pick(rng, PITCHES)
    question = worded(rng, IS_PITCH, place=place, pitch=asked)
    return Turn(question, verdict(asked == real, real) if real else f"There is no {place} tone.")


def describe(rng: Random, sounds: Sounds) -> Turn:
    """How many tones there are, and the pitch of each."""
    return Turn(worded(rng, DESCRIBE), described(sounds[0]))


def extreme(rng: Random, hertz: Sequence[float], ending: str) -> tuple[str, str]:
    """A word such as "higher" or "lower" with an ending, and which frequency of all is it."""
    high = rng.random() < 0.6
    place = hertz.index(max(hertz) if high else min(hertz))
    return ("high" if high else "low") + ending, f"The {ORDINALS[place]}."


def higher(rng: Random, sounds: Sounds) -> Turn:
    """Which of two tones is higher, or lower."""
    more, answer = extreme(rng, sounds[0].hertz, "er")
    return Turn(worded(rng, HIGHER, more=more), answer)


def highest(rng: Random, sounds: Sounds) -> Turn:
    """Which of several tones is the highest, or the lowest."""
    most, answer = extreme(rng, sounds[0].hertz, "est")
    return Turn(worded(rng, HIGHEST, most=most), answer)


def step(rng: Random, sounds: Sounds) -> Turn:
    """Whether the second of two tones is higher."""
    first, second = sounds[0].hertz
    return Turn(worded(rng, STEP), "Up." if second > first else "Down.")


def more(rng: Random, sounds: Sounds) -> Turn:
    """Which of two sounds has more tones, or fewer."""
    first, second = (sound.number for sound in sounds)
    word = pick(rng, ("more", "more", "fewer"))
    place = (second > first) == (word == "more")
    answer = "Neither." if first == second else f"The {ORDINALS[place]}."
    return Turn(worded(rng, MORE, more=word), answer)


def same_count(rng: Random, sounds: Sounds) -> Turn:
    """Whether two sounds have as many tones."""
    first, second = (counted(sound.number).lower().rstrip(".") for sound in sounds)
    answer = f"Yes, {first}." if first == second else f"No, {first} and {second}."
    return Turn(worded(rng, SAME_COUNT), answer)


def nth(rng: Random, sounds: Sounds) -> Turn:
    """How many tones the first or the second sound has, or all that is heard in it."""
    place = rng.randrange(2)
    wordings, answer = pick(
        rng,
        ((COUNT_NTH, counted(sounds[place].number)), (DESCRIBE_NTH, described(sounds[place]))),
    )
    return Turn(worded(rng, wordings, nth=ORDINALS[place]), answer)


def higher_sound(rng: Random, sounds: Sounds) -> Turn:
    """Which of two sounds has the higher tone; of two single tones also which is lower."""
    single = all(sound.number == 1 for sound in sounds)
    tops = [sound.top for sound in sounds]
    if single:
        word, answer = extreme(rng, tops, "er")
    else:
        word, answer = "higher", f"The {ORDINALS[tops[1] > tops[0]]}."
    wordings = HIGHER_SOUND if single else HIGHER_SOUND[:-2]
    return Turn(worded(rng, wordings, more=word), answer)


def two_apart(sounds: Sounds) -> bool:
    """Whether there are two tones, one clearly higher."""
    return sounds[0].number == 2 and clearly_apart(*sounds[0].hertz)


def all_apart(sounds: Sounds) -> bool:
    """Whether there are three or more tones, the two highest and the two lowest clearly apart."""
    hertz = sorted(sounds[0].hertz)
    return len(hertz) > 2 and clearly_apart(*hertz[:2]) and clearly_apart(*hertz[-2:])


def tops_apart(sounds: Sounds) -> bool:
    """Whether of two sounds one has clearly the higher tone."""
    return all(sound.number for sound in sounds) and clearly_apart(*(s.top for s in sounds))
