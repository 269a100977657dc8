"""Answers that a text supports, in its own and in other words, and answers that were made up; three languages."""

import pytest

from tunewright.pipeline.generation.support import missing

ENGLISH = """The National Poison Centre in Zurich answers about 40,000 calls a year. If somebody has swallowed \
dishwasher tablets, do not make them vomit: the alkaline foam would burn the throat a second time. Give one glass of \
water (at most 200 ml) and call 145. Activated charcoal does not bind alkalis and must not be given. Observation lasts \
at least 6.5 hours."""
GERMAN = """Die Giftzentrale in Zürich beantwortet rund 40 000 Anfragen im Jahr. Wer Geschirrspültabs verschluckt hat, \
soll nicht erbrechen: Der alkalische Schaum würde die Speiseröhre ein zweites Mal verätzen. Geben Sie ein Glas Wasser \
(höchstens 200 ml) und rufen Sie 145 an. Aktivkohle bindet keine Laugen und darf nicht gegeben werden."""
CHINESE = """苏黎世中毒急救中心每年接听约40000个电话。如果有人误吞洗碗机清洁片,不要催吐:碱性泡沫会再次灼伤食道。\
应给一杯水(最多200毫升),并拨打145。活性炭不能吸附碱,不得使用。观察至少6小时。"""


@pytest.mark.parametrize(
    ("question", "answer", "text"),
    [
        ("What now?", "Do not make the child vomit, because the foam would burn the throat again. Call 145.", ENGLISH),
        ("What now?", "1. Don't induce vomiting.\n2. Give one glass of water.\n3) Call 145.", ENGLISH),
        ("Why?", "Vomiting would expose the throat to the alkaline foam a second time, which burns it again.", ENGLISH),
        (
            "Charcoal?",
            "It should not be used because it is unable to bind alkalis such as dishwasher tablets.",
            ENGLISH,
        ),
        ("How many calls?", "It handles roughly 40 000 calls each year, in Zurich's centre.", ENGLISH),
        ("How many calls?", "About 40000 calls.", ENGLISH),
        ("How long?", "Observation lasts 6,50 hours or more.", ENGLISH),
        ("And for 2 tablets of Finish?", "For 2 tablets of Finish, too, call 145.", ENGLISH),
        ("Charcoal?", "No.", ENGLISH),
        (
            "Was tun?",
            "Auf keinen Fall Erbrechen auslösen, da der Schaum die Speiseröhre erneut verätzt. Stattdessen ein Glas "
            "Wasser trinken und die Giftzentrale unter 145 anrufen.",
            GERMAN,
        ),
        ("Warum keine Aktivkohle?", "Weil Aktivkohle Laugen nicht binden kann.", GERMAN),
        ("怎么办?", "不要催吐,因为碱性泡沫会再次灼伤食道。给患者喝一杯水,不超过200毫升,然后拨打145。", CHINESE),
        ("为什么不能用活性炭?", "因为活性炭无法吸附碱性物质。", CHINESE),
        ("需要观察多久?", "至少需要观察6个小时。", CHINESE),
    ],
)
def test_what_the_text_says_is_supported_in_other_words_too(question: str, answer: str, text: str) -> None:
    assert missing(answer, question, text) is None


@pytest.mark.parametrize(
    ("answer", "text", "why"),
    [
        ("Give 500 ml of water and call 145.", ENGLISH, "the number 500 does not stand in the text"),
        ("Observation lasts 65 hours.", ENGLISH, "the number 65 does"),
        ("About 40 calls are answered a year.", ENGLISH, "the number 40 does"),
        ("Do not make them vomit, says Meier, but call 145.", ENGLISH, "the name 'Meier' does"),
        ("The Poison Centre in Geneva answers the calls.", ENGLISH, "the name 'Geneva' does"),
        ("If somebody swallowed tablets, the WHO says to give water.", ENGLISH, "the name 'WHO' does"),
        (
            "The best approach is seeking emergency medical attention and keeping the packaging available for review.",
            ENGLISH,
            "the text has only 0 of the answer's 10 words",
        ),
        ("Particles could enter the lungs and cause pneumonia in small patients.", ENGLISH, "the text has only 0 of"),
        ("Der Patient sollte umgehend ins Krankenhaus gebracht und beatmet werden.", GERMAN, "the text has only 1 of"),
        ("应立即送医院进行洗胃治疗,并注意保暖和心理安慰。", CHINESE, "the text has only 0 of"),
        ("可以使用Omeprazole保护食道。", CHINESE, "the name 'Omeprazole' does"),
        ("需要观察24小时。", CHINESE, "the number 24 does"),
        ("需要观察２４小时。", CHINESE, "the number 24 does"),
    ],
)
def test_what_was_made_up_is_found_and_said(answer: str, text: str, why: str) -> None:
    found = missing(answer, "", text)
    assert found is not None and found.startswith(why)


def test_a_german_noun_is_no_name() -> None:
    answer = (
        "Bei Kindern gilt für Geschirrspültabs: Der Schaum verätzt die Speiseröhre, Aktivkohle bindet keine Laugen."
    )
    assert missing(answer, "", GERMAN) is None


def test_a_number_may_have_its_thousands_set_apart_in_any_way() -> None:
    for written in ("1,250,000", "1.250.000", "1 250 000", "1'250'000", "1’250’000", "1250000", "1 250 000"):
        assert missing(f"It cost {written} francs.", "", "It cost 1250000 francs.") is None, written
        assert missing("It cost 1250000 francs.", "", f"It cost {written} francs.") is None, written
    assert missing("It cost 1250 francs.", "", "It cost 1,250,000 francs.") is not None
