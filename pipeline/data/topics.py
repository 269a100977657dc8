"""What a dataset is about, and whether one topic is over-represented (a model then finds it everywhere).

Guarantees the same answer for the same texts and seed. Topics are an orientation, not a classification: clusters of
TF-IDF vectors (words, of scripts without spaces pairs of characters), made with scikit-learn. Over-representation is
told by words that keep company: a term of many rows that two others accompany closely, as penicillin and treponema
accompany syphilis. General words ("use", "time") stand in as many rows, but without company.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.data.statistics import sample

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MIN_TEXTS = 50
MAX_TEXTS = 2000
READ_CHARACTERS = 2000
MAX_TERMS = 6000
MAX_CLUSTERS = 8
LISTED_TERMS = 4
# A topic is over-represented when its term stands in so many rows, two others keep company with it (phi coefficient
# of their presence in rows; measured: ≤ 0.28 among 1,000 varied instructions, ≤ 0.44 among 300 web pages) and the next
# such topic is clearly smaller. What stands in nearly all rows is the dataset's subject.
MIN_SHARE, MAX_SHARE = 0.12, 0.8
MIN_COMPANY = 0.5
MIN_COMPANION_SHARE = 0.04
NEXT_IS_SMALLER = 0.6
# Terms that stand at one distance from each other in half of their rows are one phrase, not company.
PHRASE_SHARE = 0.5

RUN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\\W\\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{3,}")
ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Characters that hold Chinese and Japanese sentences together rather than mean something.
PARTICLES = frozenset(
    "的了是在和与及或而其之等为有不以于对也就都很把被让到从会能可要这那个我你他它们吗呢吧么のはがをにでとも"
)


def survey(texts: Sequence[str], seed: int) -> dict[str, Any]:
    """The topics of `texts` (best the answers alone: what the model learns to say), at most 2,000 of them read.

    `topics`: `[{"terms": [...], "share": 0.3, "example": number in `texts`}]`, the largest first, shares of rows;
    `largest_share`; `skew`: a sentence where one topic is over-represented, else None. All empty below 50 texts.
    """
    rows = [row for row in sample(len(texts), MAX_TEXTS) if texts[row].strip()]
    if len(rows) < MIN_TEXTS:
        return {"topics": [], "largest_share": None, "skew": None}
    read = [texts[row][:READ_CHARACTERS].lower() for row in rows]
    left = list(range(len(rows)))
    common: list[dict[str, Any]] = []
    while len(common) < 3 and (found := _kept_company(read, left, len(rows))):
        terms, inside = found
        common.append({"terms": terms, "share": round(len(inside) / len(rows), 4), "example": rows[inside[0]]})
        left = sorted(set(left) - set(inside))
    topics = [
        topic | {"share": round(topic["share"] / len(rows), 4), "example": rows[topic["example"]]}
        for topic in _clusters(read, left, seed)
    ]
    common.sort(key=lambda topic: -topic["share"])
    topics = sorted(common + topics, key=lambda topic: -topic["share"])
    return {"topics": topics, "largest_share": topics[0]["share"] if topics else None, "skew": _skew(common)}


def _skew(common: list[dict[str, Any]]) -> str | None:
    if not common or (len(common) > 1 and common[1]["share"] > NEXT_IS_SMALLER * common[0]["share"]):
        return None
    term, *company = common[0]["terms"]
    return f"{common[0]['share']:.0%} of the rows are about one topic: {term} (with {', '.join(company)})."


def _terms(text: str) -> list[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    terms: list[str] = []
    for run in RUN.findall(text):
        if ASIAN.match(run):
            terms += [a + b for a, b in pairwise(run) if a not in PARTICLES and b not in PARTICLES]
        elif run not in ENGLISH_STOP_WORDS:
            terms.append(run)
    return terms


def _vectors(texts: list[str]) -> tuple[Any, Sequence[str]]:
    """TF-IDF vectors (rows, terms), sparse, and the terms; without terms (0, 0)."""
    # scikit-learn: the field's standard, and of what Unsloth brings along anyway.
    from sklearn.feature_extraction.text import TfidfVectorizer

    # scikit-learn has no annotations; pyright guesses them from the defaults.
    vectorizer: Any = TfidfVectorizer(
        analyzer=_terms,  # pyright: ignore[reportArgumentType]
        min_df=3,
        max_df=MAX_SHARE,
        max_features=MAX_TERMS,
        sublinear_tf=True,
    )
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no term stands in three texts and not in all
        return None, []
    return vectors, list(vectorizer.get_feature_names_out())


def _kept_company(read: list[str], left: list[int], total: int) -> tuple[list[str], list[int]] | None:
    """The commonest term of the rows `left` that others accompany, with these, and the rows that hold it."""
    import numpy as np

    texts = [read[row] for row in left]
    vectors, names = _vectors(texts) if len(left) >= MIN_TEXTS else (None, [])
    if vectors is None:
        return None
    present = (vectors > 0).astype(np.float32)
    share: Array = np.asarray(present.mean(axis=0)).ravel()
    enough = np.flatnonzero(share >= MIN_COMPANION_SHARE)
    held: Array = present[:, enough].toarray()
    share = share[enough]
    spread = np.sqrt(share * (1 - share))
    phi = (held.T @ held / len(left) - np.outer(share, share)) / np.outer(spread, spread)
    np.fill_diagonal(phi, 0)
    for seed in np.argsort(-share, kind="stable"):
        inside = np.flatnonzero(held[:, seed])
        if len(inside) < MIN_SHARE * total:
            return None
        term = names[int(enough[seed])]
        close = [names[int(enough[i])] for i in np.argsort(-phi[seed], kind="stable") if phi[seed, i] >= MIN_COMPANY]
        company = _apart(term, close, [texts[row] for row in inside])
        if len(company) >= 2:
            return [term, *company[: LISTED_TERMS - 1]], [left[row] for row in inside]
    return None


def _apart(term: str, close: list[str], texts: list[str]) -> list[str]:
    """Those of `close` that are no part of one phrase with `term` or with each other."""
    apart: list[str] = []
    for other in close:
        if len(apart) == LISTED_TERMS:
            break
        if not any(_is_phrase(known, other, texts) for known in (term, *apart)):
            apart.append(other)
    return apart


def _is_phrase(a: str, b: str, texts: list[str]) -> bool:
    distances = Counter(text.find(a) - text.find(b) for text in texts if a in text and b in text)
    return not distances or max(distances.values()) >= PHRASE_SHARE * distances.total()


def _clusters(read: list[str], left: list[int], seed: int) -> list[dict[str, Any]]:
    """Topics of the rows `left`; `share` in rows, `example` the number of the row nearest to the middle."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    vectors, names = _vectors([read[row] for row in left]) if len(left) >= MIN_TEXTS else (None, [])
    if vectors is None or len(names) < MAX_CLUSTERS:
        return []
    # Latent semantic analysis (Deerwester and others, 1990): clusters of the raw vectors are one giant and many dwarfs.
    reduced: Any = TruncatedSVD(min(50, len(names) - 1), random_state=seed).fit_transform(vectors)
    dense: Any = normalize(reduced)
    # Templated answers have fewer different rows than clusters.
    different = len(np.unique(dense.round(6), axis=0))
    count = min(MAX_CLUSTERS, different, max(2, round(len(left) ** 0.5 / 2)))
    clusterer: Any = KMeans(count, n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType]
    labels: Array = clusterer.fit_predict(dense)
    topics: list[dict[str, Any]] = []
    for number in range(count):
        members = np.flatnonzero(labels == number)
        if not len(members):
            continue
        middle: Array = dense[members].mean(axis=0)
        weights: Array = np.asarray(vectors[members].mean(axis=0)).ravel()
        terms = [names[i] for i in np.argsort(-weights, kind="stable")[:LISTED_TERMS] if weights[i] > 0]
        nearest = members[int((dense[members] @ middle).argmax())]
        topics.append({"terms": terms, "share": len(members), "example": left[nearest]})
    return topics
