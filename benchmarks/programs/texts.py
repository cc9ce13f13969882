"""Synthetic text: sentences that are alike in form and differ in what they say, as long as is asked for."""

from __future__ import annotations

import random


def _list(text: str) -> list[str]:
    return text.split(", ")


PEOPLE = _list(
    "Ana, Boris, Chloe, David, Elif, Farid, Greta, Hugo, Irina, Jonas, Karim, Lena, Marco, Nadia, Omar, Rosa"
)
CITIES = _list(
    "Aarhus, Bergen, Cadiz, Dover, Essen, Faro, Ghent, Haifa, Izmir, Jena, Kiel, Lyon, Malmo, Nice, Oslo, Riga"
)
JOBS = _list("baker, carpenter, dentist, engineer, farmer, gardener, lawyer, mechanic, nurse, painter, pilot, tailor")
THINGS = _list("chairs, lamps, letters, maps, paintings, shoes, songs, tables, tiles, tools, toys, windows")
QUALITIES = _list("careful, cheerful, clever, curious, gentle, honest, patient, quiet, quick, stubborn, tidy")
PLACES = _list("at the market, by the river, in a small shop, in the old town, near the station, on a hill")

_FORMS = (
    "{person} is a {quality} {job} who lives {place} of {city}.",
    "Since {year}, {person} has sold {number} {things} {place}, mostly to people from {city}.",
    "In {city}, {person} and {other} repair {things} together, and the {job} next door helps them.",
    "{person} moved from {city} to {elsewhere} in {year}, because the {job} there needed {number} {things}.",
    "Nobody in {city} makes better {things} than {person}, says {other}, a {quality} {job}.",
)


def sentence(rng: random.Random) -> str:
    """Some twenty tokens."""
    person, other = rng.sample(PEOPLE, 2)
    city, elsewhere = rng.sample(CITIES, 2)
    return rng.choice(_FORMS).format(
        person=person,
        other=other,
        city=city,
        elsewhere=elsewhere,
        job=rng.choice(JOBS),
        things=rng.choice(THINGS),
        quality=rng.choice(QUALITIES),
        place=rng.choice(PLACES),
        year=rng.randint(1950, 2020),
        number=rng.randint(2, 99),
    )


def paragraph(rng: random.Random, num_sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(num_sentences))
