"""The words by which Chinese and English deny, forbid, warn, refute, doubt and urge: `negation`'s patterns.

Every repetition is bounded and its parts exclude each other, so that no text makes a pattern search long.
"""

import re


def _compiled(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


# No negations, though they hold one; or two, which are none.
AFFIRMING = _compiled(
    r"不得不|不能不|不可不|不得已|不会不|不(?:仅|但|只|光|单|止)|无论|不论|不管|不妨|不慎|不小心|不然|不久|不断|不少|不适",
    r"不良|不同|不足|不安|无疑",
    r"(?:不要|别|切勿|请勿|不能|不可|勿|不应|不必|不用)再?(?:忘|忽视|忽略|犹豫|迟疑|惊慌|慌|紧张|害怕|担心|等|拖|耽误|延误|错过|放弃)",
    r"\bnot (?:only|just|merely|simply)\b|\bno (?:doubt|matter|later)\b",
    r"(?:\b(?:do not|never|without|cannot|must not|should not)|n['’]t)\s+"
    r"(?:hesitat\w+|delay\w*|forget\w*|fail\w*|wait\w*|panic\w*|worry\w*|ignor\w+|miss\w*|be afraid)",
)
CUE = _compiled(
    r"不(?:要|能|可以?|得|应|该|宜|建议|推荐|主张|提倡|支持|需要?|必|用|许|准|允许|是|属于|等于|意味|代表|会|构成|存在|要求|赞成|鼓励|适合|再)",
    r"并非|没有?|未(?![成来婚知])|勿|忌|禁|避免|防止|杜绝|拒绝|反对|无[需须]|绝非|莫",
    r"(?<![特分区级个性类鉴辨识派])别(?![人的名处])",
    r"错误|危险的?(?:做法|行为|操作)|违法|非法|犯罪|而不是|不再",
    r"\b(?:not|never|no|nobody|nor|neither|cannot|avoid\w*|refrain\w*|without|against|refus\w+)\b|n['’]t\b",
    r"\b(?:instead of|rather than|contraindicat\w*|prohibit\w*|forbid\w*|illegal|unlawful|unethical)\b",
    r"\b(?:unsafe|dangerous|harmful)\b",
)
# What others believe: to the end of the clause, however it goes on.
REPORTED = _compiled(
    r"误区|谣言|误以为|误认为|有人(?:说|认为)|错误(?:地|观念|认识|说法|看法)",
    r"\b(?:myths?|misconceptions?|wrong (?:to|that)|wrongly|mistaken\w*|falsely|false that)\b",
)
# After it a negation is over.
SWITCH = _compiled(
    r"应该?|应当|必须|而是|但是?|却|反而|就|请|建议|可以|立即|马上|然后",
    r"\b(?:but|instead(?! of)|should|must|then|immediately|please|rather(?! than))\b",
)
BORDER = _compiled(r"[，,]|但是?|而是|然后|\b(?:but|however|instead(?! of)|then)\b")
# A clause that stands between a negation and what it negates.
INTERRUPTION = _compiled(
    r"\s*(?:尤其|特别是?|即使|哪怕|除非|在|无论|不论|不管|包括)",
    r"\s*(?:especially|even|unless|under|in any|at home|without|whatever)\b",
)
# A clause that goes on with the one before.
ATTACHED = _compiled(
    r"\s*(?:也|或者?|以及|及|和|还有|更)", r"\s*(?:or|nor)\b", r"\s*and (?:do not|don['’]t|never|even)\b"
)

_CLOSED = r"^[\"”’'」』》）)]?"
# A second thing that the same is said of: 用嘴吸毒和扎止血带都不推荐.
_AND_MORE = r"(?:[、和或及与][^，,。；;、和或及与]{1,10}){0,3}?"
JUDGED = _compiled(
    _CLOSED + _AND_MORE + r"(?:等|的|这种|这类|做法|方法|行为|处理|措施|说法|观点|想法|法|是|属于?|为|都|均"
    r"|绝对|非常|十分|很|极其?|也|反而|本身|被|严格|只|早已|已经?|更|往往|通常|还|甚至){0,6}"
    r"(?:禁忌|禁止|严禁|危险|错误|错的|不可取|不当|不对|不行|不合适|不正确|不再?推荐|不建议|不可以|不能|不宜|不应|不允许|不合法|有害|大忌"
    r"|误区|谣言|没有?(?:科学|法律)?(?:依据|根据|必要|用|益处|帮助)|无益|违法|犯罪|侵权|无效"
    r"|(?:会|可能|可以|可(?![能以])|容易|能){0,3}"
    r"(?:再次|进一步)?(?:导致|造成|引起|引发|诱发|加重|延误|构成|损害|损伤|灼伤|伤害|危及|侵犯|涉嫌|增加[^，。]{0,8}(?:风险|感染|损伤|负担|危险)))",
    _CLOSED + r"(?:\s+(?!and\b)\w+){0,3}?"
    r"\s+(?:is|are|was|were|can|may|could|might|will|would|should|must|has|have)\s+(?:\w+\s+){0,2}?"
    r"(?:not|never|no|dangerous|harmful|contraindicated|wrong|unsafe|false|untrue|a (?:\w+ )?(?:myth|mistake|crime)"
    r"|illegal|unlawful|forbidden|prohibited|avoided|incorrect|unethical|causes?|worsen|damage|harm|increase|lead|burn)\b",
    r"^\s*(?:causes|worsens|damages|harms|increases|leads to|(?:is|are|should|ca|does|wo)n['’]t)\b",
)
REFUTED = re.compile(
    r"^[^。！？!?\n]{0,40}?[，,；;—-]\s*"
    r"(?:(?:但|其实|然而|可|不过)?(?:这|此|该|那|都是|是|属于)[^，,。]{0,12}"
    r"(?:错误|错的|误区|谣言|偏见|误解|不正确|不对|不可取|危险|违法|犯罪|不合法|没有(?:科学|法律)?依据)"
    r"|也?(?:都|均)[^，,。]{0,12}(?:错误|错的|不推荐|不可取|危险|违法|犯罪|侵权|禁止|不行|不可以|不允许)"
    r"|(?:but|which|this|that)\b[^.,]{0,30}"
    r"\b(?:wrong|myth|incorrect|dangerous|false|untrue|illegal|misconception|not true)\b)",
    re.IGNORECASE,
)
LIST_MARK = _compiled(r"\s*(?:[-*•·✗×❌]|\d{1,3}\s*[.、)）]|[（(]\d{1,3}[)）]|[①-⑳])")
QUESTION_END = _compiled(r"[?？]\s*[\"”’'」』》）)]?$")

# The rest is about single terms, where a wrong alarm costs more: only what stands right beside a term counts.
CONDITION = _compiled(
    r"如果|若|假如|一旦|除非|要是|是否|是不是|有没有|能否|可否|会不会", r"\b(?:if|unless|when|whether)\b"
)
UNSURE = _compiled(
    r"(?:不能|无法|不可|难以|未能?)(?:完全)?(?:排除|除外)|不(?:排除|除外)",
    r"\b(?:cannot|can['’]t|not)\s+(?:\w+\s+){0,2}?(?:rule|ruled|exclude|excluded)\b",
)
# Between a negation and a term: then not the term is denied.
PARTLY = _compiled(
    r"典型|所有|每|都|一定|必然|单纯|仅|唯一|真正|完全|全部|患者|时|的人|者",
    r"\b(?:always|all|every|only|typical|just|alone|simply)\b",
)

_USE = r"(?:使用|用|服用|给予|给|进行|采用|做|接种|签订?|支付|承担)?"
_FORBIDDING = (
    rf"(?:不(?:应该?|应当|宜|能|可以?|要|得|推荐|建议|主张){_USE}|禁用|禁止{_USE}|禁忌|避免{_USE}|忌用|严禁{_USE})"
)
_DENYING = (
    rf"(?:{_FORBIDDING}|不是|并非|没有|没患|没得|无[需须]?|未见|未发现|未患|否认|排除了?|不存在|不考虑|不支持|不符合|不属于|不构成"
    rf"|不适用|不(?:需要?|必|用){_USE}|不会(?:导致|引起|是|发生)?)"
)
_FORBIDDING_EN = (
    r"\b(?:should not|shouldn['’]t|must not|mustn['’]t|do not|don['’]t|never|avoid|not recommended|contraindicated"
    r"|cannot|can['’]t)"
)
_DENYING_EN = (
    rf"(?:{_FORBIDDING_EN}|\b(?:not|no|without|denies|rules? out|ruled out|excludes?|neither|nor)"
    r"|\b(?:is|does|do|are|was|need)n['’]t)"
)
_FILLER_EN = (
    r"(?P<words>(?:\s+(?:a|an|the|any|to|be|have|need|use|using|take|taking|give|giving|signs?|evidence|history|of|for"
    r"|require|has|caused|by|due|from|with|indicate|suggest|it|is|this|considered)\b){0,5}\s*$)"
)
_LISTED = r"(?:[^，,。；;、和及或与]{1,8}[、和及或与]){0,6}"
DENIED_BEFORE = _compiled(rf"{_DENYING}(?P<filler>{_LISTED}[^，,。；;：:\s]{{0,6}})$", _DENYING_EN + _FILLER_EN)
FORBIDDEN_BEFORE = _compiled(rf"{_FORBIDDING}(?P<filler>[^，,。；;：:\s]{{0,4}})$", _FORBIDDING_EN + _FILLER_EN)
DENIED_AFTER = _compiled(
    r"^的?(?:可能性?|诊断)?(?:已经?|可以?|被|基本){0,3}(?:排除|除外|不成立|不存在|不需要|不考虑|阴性|禁用|禁忌)",
    r"^\s+(?:is|was|are|were|has been|have been|can be|should be|must be)\s+(?:\w+\s+)?"
    r"(?:ruled out|excluded|not (?:needed|required|indicated|recommended|present)|unlikely|contraindicated|absent"
    r"|avoided)\b",
)
URGED_BEFORE = _compiled(
    rf"(?:应该?|应当|必须|需要?|建议|推荐|首选|可以|可|给予|要){_USE}[^，,。；;：:\s]{{0,4}}$",
    r"\b(?:should|must|recommend\w*|needs?|can|start|give|take|use|requires?)(?:\s+\w+){0,3}\s*$",
)
