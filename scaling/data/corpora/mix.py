"""`mix:WEIGHT CORPUS + WEIGHT CORPUS ...`: several corpora by weight, each of a kind of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scaling.data.corpora.corpus import Corpus
from scaling.data.mixture import PREFIX, Ingredient, mixture_error, parse
from scaling.data.settings import DataSettings, Work

if TYPE_CHECKING:
    from scaling.data.prepared import PreparedData

Mixture = tuple[Ingredient, ...]


def kind(kind_of: Callable[[str], Corpus[Any]]) -> Corpus[Mixture]:
    """The kind of mixtures of corpora.

    Args:
        kind_of: the kind of each of them. Only what is made of documents can be mixed.
    """

    def check(mixture: Mixture, data: DataSettings) -> None:
        for one in mixture:
            of_one = kind_of(one.corpus)
            if of_one.documents is None:
                raise mixture_error(data.corpus, f"{one.corpus} cannot be mixed with others")
            of_one.check(of_one.parse(one.corpus), replace(data, corpus=one.corpus))

    def prepare(mixture: Mixture, data: DataSettings, work: Work) -> PreparedData:
        from scaling.data.mixture_data import prepare_mixture  # with numpy

        def prepare_one(alone: DataSettings) -> PreparedData:
            of_one = kind_of(alone.corpus)
            return of_one.prepare(of_one.parse(alone.corpus), alone, work)

        return prepare_mixture(mixture, data, work, prepare_one)

    return Corpus(
        prefix=PREFIX,
        form="mix:WEIGHT CORPUS + ...",
        parse=parse,
        check=check,
        prepare=prepare,
    )
