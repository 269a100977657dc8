"""The arguments of a dataset, with their bounds and defaults: what `prepare_dataset` takes and the manifest keeps."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tunewright.pipeline.data.cleaning import Action, Finding
from tunewright.pipeline.data.layouts import Format
from tunewright.pipeline.errors import call

MAX_EVAL_FRACTION = 0.5

Text = Annotated[str, StringConstraints(max_length=20_000)]
Path = Annotated[str, StringConstraints(max_length=4096)]


class DatasetArguments(BaseModel):
    """All but the source and the name. `mapping`, `cleaning` and files are checked where they are used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Annotated[Format, Field(description="auto recognises it.")] = "auto"
    mapping: Annotated[
        dict[str, str] | None,
        Field(
            description='Part to column, for other layouts: {"prompt": "q", "response": "a"}; '
            "with messages: role, content, user, …."
        ),
    ] = None
    split: Annotated[str, Field(max_length=64, description="Which split to take.")] = "train"
    system_prompt: Annotated[Text | None, Field(description="Put before rows that have none.")] = None
    eval_fraction: Annotated[float, Field(ge=0, le=MAX_EVAL_FRACTION, description="Share held out to measure on.")] = (
        0.05
    )
    max_rows: Annotated[int | None, Field(ge=1)] = None
    dedupe: Annotated[bool, Field(description="Drop exact and near duplicates.")] = True
    cleaning: Annotated[
        dict[Finding, Action] | None,
        Field(
            description="What to do about a finding, else mended or reported. control_tokens, html, mojibake: mend, "
            "drop, keep; role_order: mend, drop; near_duplicate: drop, keep, ignore; personal_data, secrets: keep, "
            "mask, drop; too_long: keep, drop, truncate, split."
        ),
    ] = None
    substitutions: Annotated[dict[str, Text] | None, Field(description="Fills {{name}}: {name: text}.")] = None
    domain: Annotated[Path | None, Field(description="Pack of terms: medicine, law, …, or a YAML file.")] = None
    benchmark_dir: Annotated[Path | None, Field(description="A benchmark whose questions are looked for.")] = None
    model: Annotated[str | None, Field(max_length=500, description="Whose tokenizer counts; else estimated.")] = None
    max_seq_length: Annotated[int | None, Field(ge=32, le=1_048_576, description="For too_long; needs model.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42

    def again(self, **corrected: Any) -> str:
        """The text of a call of prepare_dataset with these arguments and what is `corrected` of them, `source` too."""
        others = self.model_dump(mode="json", exclude_defaults=True, exclude={"format", *corrected})
        return call("prepare_dataset", **corrected, **others)

    @model_validator(mode="after")
    def _blank_is_none(self) -> "DatasetArguments":
        if self.system_prompt is not None and not self.system_prompt.strip():
            object.__setattr__(self, "system_prompt", None)
        return self
