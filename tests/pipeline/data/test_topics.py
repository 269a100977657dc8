"""Which topics are found, and when one is said to be over-represented."""

import json
import random
from pathlib import Path

import pytest

from tunewright.pipeline.data.topics import survey

SHARED = Path(__file__).parents[4] / "shared" / "data"

# Name, signs, cause, treatment of each illness; the sentences below put them together.
ILLNESSES = """\
influenza|fever, muscle aches and a dry cough|a virus of the cold season|oseltamivir, rest and fluids
asthma|wheezing and a tight chest|inflamed airways after allergens|inhaled corticosteroids and salbutamol
migraine|throbbing headache on one side with nausea|a disturbance of nerves and vessels|triptans in a dark room
diabetes|thirst, weight loss and tiredness|insulin resistance|metformin, diet and exercise
appendicitis|pain that wanders to the lower right abdomen|a blocked appendix|surgery within a day
psoriasis|scaly plaques on elbows and knees|an overactive immune system|topical steroids and ultraviolet light
gout|a red and swollen big toe|crystals of uric acid|colchicine, later allopurinol
pneumonia|productive cough with crackles|pneumococci among other germs|amoxicillin for a week
anaemia|pallor and breathlessness|a lack of iron|oral iron until ferritin recovers
glaucoma|slow loss of peripheral vision|raised pressure in the eye|prostaglandin drops
epilepsy|recurrent seizures|abnormal electrical discharges|valproate or lamotrigine
stroke|sudden weakness of one side and slurred speech|a clot in a cerebral artery|thrombolysis within hours
malaria|fever every other day with chills|parasites that mosquitoes carry|artemisinin combinations
scabies|itching at night and burrows between fingers|a mite under the skin|permethrin cream for the household
ringworm|bald and scaly patches on a child's scalp|fungi that live on hair|griseofulvin by mouth
reflux|heartburn after meals|a weak lower sphincter|proton pump inhibitors and smaller dinners
sciatica|pain that shoots down the leg|a herniated lumbar disc|physiotherapy and movement
scurvy|bleeding gums and bruises|a diet without vitamin C|oranges and ascorbic acid
acne|comedones and pustules on the face|blocked sebaceous glands|benzoyl peroxide in the evening
measles|rash, red eyes and Koplik spots|a paramyxovirus|vitamin A and supportive care"""
SYPHILIS = """\
syphilis|a painless chancre on the genitals|Treponema pallidum|benzathine penicillin by injection
secondary syphilis|a rash on palms and soles|Treponema pallidum|one injection of penicillin and a VDRL test later
syphilis|condylomata lata and swollen nodes|Treponema, a spirochaete|penicillin, or doxycycline for the allergic
latent syphilis|nothing but a positive VDRL test|Treponema pallidum in hiding|three injections of penicillin"""
SENTENCES = [
    "Her complaints were {signs}. This points to {name}, behind which stands {cause}; {treatment} will help.",
    "{name} shows itself by {signs}. What works is {treatment}.",
    "Given {signs}, one thinks of {name} first. As {cause} explains it all, begin with {treatment}.",
    "It could be {name}: {signs} fit. Have it looked at; {treatment} may be advised.",
    "With {name}, {cause} brings about {signs}.",
    "To manage {name} take {treatment}, and come back when {signs} grow worse.",
    "Those {signs}? I would look for {name}. {cause} would be the reason and {treatment} the answer.",
    "No need to fear {name}. Though {signs} are a nuisance, {treatment} is usually enough.",
]
CHINESE = """\
流感|高热、肌肉酸痛、干咳|病毒感染|奥司他韦
哮喘|喘息、胸闷、气促|气道炎症|吸入激素
偏头痛|单侧搏动样头疼、恶心|神经血管紊乱|曲普坦类药物
糖尿病|多饮、多尿、体重下降|胰岛素抵抗|二甲双胍
阑尾炎|转移性右下腹疼|阑尾腔梗阻|手术切除
银屑病|肘膝鳞屑斑块|免疫异常|外用激素
痛风|足趾红肿剧痛|尿酸结晶|秋水仙碱
肺炎|咳痰、湿啰音|链球菌感染|阿莫西林
贫血|面色苍白、乏力|铁缺乏|口服铁剂
青光眼|视野缩小|眼压升高|前列腺素滴眼液
癫痫|反复抽搐|异常放电|丙戊酸钠
疟疾|隔日寒战高热|疟原虫|青蒿素"""
CHINESE_SYPHILIS = """\
梅毒|无痛性硬下疳|苍白螺旋体|苄星青霉素肌注
二期梅毒|手掌足底皮疹|螺旋体播散|注射青霉素并复查血清
梅毒|扁平湿疣、淋巴结肿大|螺旋体|青霉素，过敏者用多西环素"""
CHINESE_SENTENCES = [
    "患者表现为{signs}，最可能诊断为{name}，病因{cause}，治疗首选{treatment}。",
    "{name}常见{signs}，建议{treatment}。",
    "根据{signs}考虑{name}；因{cause}所致，故予{treatment}。",
    "{name}由{cause}引起，出现{signs}。",
    "处理{name}时应用{treatment}，如{signs}加重请复诊。",
    "不排除{name}：{signs}符合，可予{treatment}观察。",
]


def answers(count: int, share: float, *, illnesses: str, common: str, sentences: list[str]) -> list[str]:
    """So many varied answers, `share` of them about the common illness."""
    chance, made = random.Random(5), list[str]()
    for number in range(count):
        kind = common if number < share * count else illnesses
        name, signs, cause, treatment = chance.choice(kind.splitlines()).split("|")
        made.append(chance.choice(sentences).format(name=name, signs=signs, cause=cause, treatment=treatment))
    chance.shuffle(made)
    return made


def english(count: int, share: float) -> list[str]:
    return answers(count, share, illnesses=ILLNESSES, common=SYPHILIS, sentences=SENTENCES)


def chinese(count: int, share: float) -> list[str]:
    return answers(count, share, illnesses=CHINESE, common=CHINESE_SYPHILIS, sentences=CHINESE_SENTENCES)


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5])
def test_one_diagnosis_in_too_many_answers_is_named_with_its_share(share: float) -> None:
    texts = english(600, share)
    found = survey(texts, 42)
    assert found["skew"].startswith(f"{share:.0%} of the rows are about one topic: syphilis (with penicillin")
    topic = next(topic for topic in found["topics"] if "syphilis" in topic["terms"])
    assert topic["share"] == pytest.approx(share, abs=0.01)
    assert "syphilis" in texts[topic["example"]]


def test_one_diagnosis_in_too_many_chinese_answers_is_named() -> None:
    found = survey(chinese(500, 0.3), 42)
    assert "梅毒" in found["skew"] or "青霉" in found["skew"]


@pytest.mark.parametrize("texts", [english(600, 0.03), chinese(500, 0.06)], ids=["English", "Chinese"])
def test_evenly_spread_answers_are_not_called_skewed(texts: list[str]) -> None:
    assert survey(texts, 42)["skew"] is None


@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "dpo_en_demo.json", "c4_demo.jsonl"])
def test_varied_real_data_is_not_called_skewed(name: str) -> None:
    if not (SHARED / name).is_file():
        pytest.skip("no shared data here")
    text = (SHARED / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    texts = [row.get("output") or row.get("text") or row["chosen"]["value"] for row in rows]
    found = survey(texts, 42)
    assert found["skew"] is None
    assert len(found["topics"]) >= 4


def test_several_subjects_of_one_size_are_topics_but_no_skew() -> None:
    subjects = {
        "law": "The court heard the plaintiff; the judge read the verdict on the contract and the appeal.",
        "cooking": "Fry the onion in butter, add the flour and simmer the sauce until the noodles are done.",
        "football": "The striker scored a late goal; the keeper missed the ball and the referee ended the match.",
        "astronomy": "The telescope showed a distant galaxy whose stars orbit a black hole beyond the nebula.",
    }
    chance = random.Random(1)
    texts = [" ".join(chance.sample(text.split(), 11)) for text in subjects.values() for _ in range(60)]
    found = survey(texts, 42)
    assert found["skew"] is None
    assert found["largest_share"] <= 0.3
    assert {"court", "onion", "striker", "telescope"} & {term for topic in found["topics"] for term in topic["terms"]}


def test_a_phrase_that_many_answers_share_is_no_topic() -> None:
    texts = [f"As a helpful assistant I say: {text}" if i % 3 else text for i, text in enumerate(english(300, 0.03))]
    assert survey(texts, 42)["skew"] is None


def test_shares_are_of_rows_and_examples_are_numbers_of_rows() -> None:
    texts = english(400, 0.2)
    found = survey(texts, 42)
    shares = [topic["share"] for topic in found["topics"]]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert shares == sorted(shares, reverse=True)
    assert found["largest_share"] == shares[0]
    for topic in found["topics"]:
        assert any(term in texts[topic["example"]].lower() for term in topic["terms"])


def test_the_same_texts_and_seed_give_the_same_topics() -> None:
    assert survey(english(300, 0.2), 7) == survey(english(300, 0.2), 7)


NOTHING = {
    "few rows": english(49, 0.5),
    "no rows": [],
    "empty rows": [""] * 200,
    "rows without words": ["1 + 1 = 2"] * 200,
}


@pytest.mark.parametrize("texts", NOTHING.values(), ids=NOTHING)
def test_rows_that_say_too_little_have_no_topics(texts: list[str]) -> None:
    assert survey(texts, 42) == {"topics": [], "largest_share": None, "skew": None}


def test_rows_that_all_say_the_same_are_no_failure() -> None:
    assert survey(["The same answer every time."] * 100, 42)["skew"] is None


def test_fewer_different_answers_than_clusters_are_no_failure() -> None:
    parcel = "Your parcel left the warehouse yesterday and arrives on Monday before noon."
    password = "Open the settings page, choose security, and reset the password there."
    refund = "We have sent the money back to your card; the bank needs three working days."
    found = survey([parcel, password, refund] * 60, 42)
    assert [topic["share"] for topic in found["topics"]] == pytest.approx([1 / 3] * 3, abs=0.001)
