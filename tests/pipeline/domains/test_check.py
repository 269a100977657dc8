"""What is said, denied, forbidden or left open, in both languages; names in both; and no text that crashes it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.pipeline import domains

PACK: dict[str, Any] = {
    "name": "poisons",
    "language": "zh",
    "terms": [
        {"term": "急性肾损伤", "en": "acute kidney injury", "abbreviations": ["AKI"],
         "synonyms": ["急性肾衰竭"], "source": "S"},
        {"term": "心肌梗死", "en": "myocardial infarction", "abbreviations": ["MI"], "also": ["心梗"], "source": "S"},
        {"term": "糖尿病", "en": "diabetes", "source": "S"},
        {"term": "糖尿病酮症酸中毒", "en": "diabetic ketoacidosis", "abbreviations": ["DKA"], "source": "S"},
        {"term": "抗生素", "en": "antibiotics", "source": "S"},
    ],
    "associations": [{"id": "chest", "from": ["胸痛", "chest pain"], "to": ["心肌梗死", "肺栓塞"], "source": "S"}],
    "rules": [
        {
            "id": "vomit", "must_not_say": ["催吐", "induc* vomit*"], "allowed": ["医生在场"],
            "message": "No.", "severity": "error", "source": "S",
        },
        {
            "id": "help", "when": {"question": ["误服"]}, "unless": {"question": ["定义"]}, "must_say": ["就医", "120"],
            "message": "Help.", "severity": "error", "source": "S",
        },
        {"id": "dose", "must_not_say": ["(服用|吃)*阿司匹林"], "message": "No.", "severity": "warning", "source": "S"},
        {"id": "more", "must_not_say": ["阿司匹林"], "message": "No.", "severity": "warning", "source": "S"},
    ],
    "structure": [
        {"id": "choice", "when": {"question": ["单选题"]}, "source": "S",
         "parts": {"option": ["答案*(A|B)"], "reason": ["因为"]}},
    ],
}  # fmt: skip

Kinds = Callable[..., list[str]]
MEDICINE = domains.load("medicine")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> domains.Pack:
    path = tmp_path_factory.mktemp("pack") / "poisons.yaml"
    path.write_text(yaml.safe_dump(PACK, allow_unicode=True), encoding="utf-8")
    return domains.load(str(path))


@pytest.fixture(scope="module")
def kinds(pack: domains.Pack) -> Kinds:
    def check(answer: str, reference: str | None = None, question: str = "") -> list[str]:
        findings = domains.check(pack, answer=answer, reference=reference, question=question)
        return [f"{finding.kind}: {finding.rule}" for finding in findings]

    return check


SAID = (
    "应立即催吐。", "先催吐，再送医院。", "不要惊慌，立即催吐。", "不仅要催吐，还要洗胃。", "别忘了催吐。",
    "特别要催吐。", "孩子不慎误服后催吐。",
    "不得不催吐。", "不要喝水应马上催吐。", "可以催吐吗？可以催吐。", "步骤如下：\n1. 催吐\n2. 送医",
    "Induce vomiting at once.", "Do not hesitate to induce vomiting.", "Don't wait, induce vomiting.",
    "You should not only call for help but induce vomiting.", "Do this:\n- induce vomiting",
    "Don’t panic and inducing vomiting is next.",
)  # fmt: skip
NOT_SAID = (
    "不要催吐。", "切勿自行催吐。", "严禁给患者催吐、洗胃。", "禁止喝水、催吐或导泻。", "催吐是非常危险的。",
    "催吐会再次灼伤食道，因此应避免。",
    "催吐会导致二次损伤。", "有人说应该催吐，这是错误的。", "误区：误服后要催吐。", "需要催吐吗？不需要。",
    "禁忌：\n- 喝醋\n- 催吐",
    "## 不要做\n1. 催吐", "不建议在家里，尤其是没有医生时，催吐。", "喝水和催吐都不推荐。", "医生在场时方可催吐。",
    "不要喝水，也不要催吐。",
    "Do not induce vomiting.", "Never try to induce vomiting.", "Inducing vomiting is dangerous.",
    "Avoid inducing vomiting.",
    "It is a myth that one should induce vomiting.", "Don’t induce vomiting.", "Should I induce vomiting?",
    "Do not:\n- drink milk\n- induce vomiting", "Do not, under any circumstances, induce vomiting.",
    "Call 999 instead of inducing vomiting.",
)  # fmt: skip


@pytest.mark.parametrize("answer", SAID)
def test_what_is_advised_is_a_violation(kinds: Kinds, answer: str) -> None:
    assert kinds(answer) == ["violation: vomit"]


@pytest.mark.parametrize("answer", NOT_SAID)
def test_a_warning_a_question_or_a_refutation_is_none(kinds: Kinds, answer: str) -> None:
    assert kinds(answer) == []


@pytest.mark.parametrize(
    "answer",
    ["急性肾损伤", "AKI", "患者有AKI病史", "急性肾衰竭", "Acute  Kidney\nInjury", "acute kidney injuries or AKIs"],
)
def test_a_term_counts_under_each_of_its_names(kinds: Kinds, answer: str) -> None:
    assert kinds(answer, reference="考虑急性肾损伤。") == []


@pytest.mark.parametrize("answer", ["肾损伤", "aki", "AKIN", "kidney injury", ""])
def test_a_term_without_any_name_in_the_answer_is_lacking(kinds: Kinds, answer: str) -> None:
    assert kinds(answer, reference="It was AKI.") == ["coverage: 急性肾损伤"]


def test_a_name_inside_another_word_is_none(kinds: Kinds) -> None:
    assert kinds("He studied at MIT.", reference="He studied at MIT.") == []
    assert kinds("He studied at MIT.", reference="It was an MI.") == ["coverage: 心肌梗死"]


def test_a_name_inside_a_longer_name_is_the_longer_term(kinds: Kinds) -> None:
    assert kinds("DKA", reference="糖尿病酮症酸中毒") == []
    assert kinds("糖尿病酮症酸中毒", reference="糖尿病") == []


CONTRADICTIONS = [
    ("诊断为心肌梗死。", "不是心肌梗死，是心包炎。"),
    ("诊断为心肌梗死。", "已排除MI。"),
    ("This is a myocardial infarction.", "There is no evidence of myocardial infarction."),
    ("This is an MI.", "An MI is ruled out."),
    ("需要使用抗生素。", "不需要使用抗生素。"),
    ("不应使用抗生素。", "建议使用抗生素。"),
    ("Do not use antibiotics.", "He should take antibiotics."),
]
AGREEMENTS = [
    ("诊断为心肌梗死。", "不能排除心肌梗死。"),
    ("诊断为心肌梗死。", "不是典型的心肌梗死。"),
    ("诊断为心肌梗死。", "如果不是心肌梗死，可考虑心包炎。"),
    ("诊断为心肌梗死。", "不是心肌梗死吗？是心梗。"),
    ("This is an MI.", "MI cannot be ruled out."),
    ("This is an MI.", "Not only an MI is possible."),
    ("排除心肌梗死。", "没有心肌梗死。"),
    ("糖尿病控制不佳。", "没有糖尿病酮症酸中毒，但有糖尿病。"),
    ("没有使用抗生素。", "应使用抗生素。"),
]


@pytest.mark.parametrize(("reference", "answer"), CONTRADICTIONS)
def test_a_denied_term_contradicts(kinds: Kinds, reference: str, answer: str) -> None:
    assert [kind.split(":")[0] for kind in kinds(answer, reference=reference)] == ["contradiction"]


@pytest.mark.parametrize(("reference", "answer"), AGREEMENTS)
def test_doubt_conditions_and_questions_do_not_contradict(kinds: Kinds, reference: str, answer: str) -> None:
    assert kinds(answer, reference=reference) == []


def test_an_association_asks_for_one_of_its_ends_where_the_reference_has_one(kinds: Kinds) -> None:
    assert kinds("休息即可。", reference="可能是肺栓塞。", question="胸痛两天") == ["omission: chest"]
    assert kinds("可能是心梗。", reference="可能是肺栓塞。", question="胸痛两天") == []
    assert kinds("休息即可。", reference="多喝水。", question="胸痛两天") == []
    assert kinds("休息即可。", question="胸痛两天") == []


def test_what_must_be_said_may_not_be_denied(kinds: Kinds) -> None:
    assert kinds("请拨打120。", question="误服了药") == []
    assert kinds("多喝水。", question="误服了药") == ["omission: help"]
    assert kinds("不需要就医。", question="误服了药") == ["omission: help"]
    assert kinds("多喝水。", question="误服的定义") == []


def test_required_parts_are_named_when_they_are_missing(kinds: Kinds, pack: domains.Pack) -> None:
    assert kinds("答案是B，因为……", question="单选题：……") == []
    [finding] = domains.check(pack, answer="答案是B。", reference=None, question="单选题：……")
    assert (finding.kind, finding.message) == ("structure", "The answer lacks: reason.")


def test_overlapping_rules_each_report_once(kinds: Kinds) -> None:
    assert kinds("服用一片阿司匹林，再吃阿司匹林。") == ["violation: dose", "violation: more"]


def test_a_passage_stands_in_its_text_and_is_short(pack: domains.Pack) -> None:
    answer = "很长的一句话" * 60 + "应催吐" + "还没有说完" * 60 + "。"
    [finding] = domains.check(pack, answer=answer, reference=None, question="")
    assert finding.passage in answer and "催吐" in finding.passage and len(finding.passage) <= 160
    assert (finding.severity, finding.source, finding.passage_of) == ("error", "S", "answer")


def test_a_summary_counts_answers(pack: domains.Pack) -> None:
    texts = ["应催吐。", "应催吐，吃阿司匹林。", "多休息。"]
    found = [domains.check(pack, answer=text, reference=None, question="") for text in texts]
    summary = domains.summary(pack, found)
    assert summary["answers"] == 3 and summary["flagged"] == 2 and summary["errors"] == 2
    assert summary["kinds"] == {"violation": 2}
    assert next(iter(summary["rules"].items())) == ("violation: vomit", 2)
    assert "no expert" in summary["note"]


WORDS = st.lists(
    st.sampled_from(
        ["催吐", "不要", "，", "。", "？", "\n", "- ", "：", "AKI", "心肌梗死", "没有", "induce vomiting",
         " ", "not", "阿司匹林", "吃", "ß", "İ"]
    )
).map("".join)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(answer=st.text() | WORDS, reference=st.none() | st.text() | WORDS, question=st.text() | WORDS)
def test_no_text_crashes_it_and_every_passage_is_real(answer: str, reference: str | None, question: str) -> None:
    texts = {"answer": answer, "reference": reference or "", "question": question}
    for finding in domains.check(MEDICINE, answer=answer, reference=reference, question=question):
        assert finding.passage in texts[finding.passage_of]
        assert len(finding.passage) <= 160


@pytest.mark.parametrize(
    "hostile", ["催吐" * 20_000, "吃" * 20_000, "\n- 催吐" * 10_000, "不能排除和" * 10_000,
     "可能" * 20_000 + "催吐", "induc " * 9_000],
)  # fmt: skip
def test_long_texts_are_read_in_no_time(pack: domains.Pack, hostile: str) -> None:
    begun = time.thread_time()
    domains.check(pack, answer=hostile, reference=hostile, question=hostile)
    assert time.thread_time() - begun < 3
