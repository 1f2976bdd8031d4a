"""The tasks of the first Open LLM Leaderboard (paper, appendix A), one row each.

Choices: the score is the leaderboard's, `acc_norm` (log-probability divided by the choice's length) for ARC and
HellaSwag, `acc` for the others. lm-eval's definitions give no shot count, so zero is the default here too, except MMLU,
which is a 5-shot benchmark: upstream's file would silently run it with none.

Written answers: the prompts that Llama-3.1-Instruct was published with, which the paper uses for MMLU, MMLU-CoT, ARC
and GSM8K: conversations, the examples of MMLU and GSM8K as turns of their own.
"""

from __future__ import annotations

from dataclasses import replace

from bitworth.tasks.base import TaskDef
from bitworth.tasks.passages import choices, column, introduced

_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security
    conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
    high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
    high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
    logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
    moral_scenarios nutrition philosophy prehistory professional_accounting professional_law
    professional_medicine professional_psychology public_relations security_studies sociology us_foreign_policy
    virology world_religions
"""
MMLU_SUBJECTS = tuple(_SUBJECTS.split())

_ARC = TaskDef(
    name="arc_challenge",
    in_demo=True,
    yaml="arc/arc_challenge.yaml",
    metric="acc_norm",
    dataset="allenai/ai2_arc",
    folders=("allenai/ai2_arc", "ai2_arc"),
    config="ARC-Challenge",
    flat="arc",
    questions=1172,
    tokens=70,
    prefixes=("challenge_",),
    item_key="id",
)
_MMLU = TaskDef(
    name="mmlu",
    in_demo=True,
    yaml="mmlu/default/mmlu_{subset}.yaml",
    metric="acc",
    dataset="cais/mmlu",
    folders=("cais/mmlu", "hails/mmlu_no_train"),
    flat="mmlu",
    questions=14042,
    tokens=150,
    shots=5,
    subsets=MMLU_SUBJECTS,
    subset_key="subject",
    sharing=introduced,
    splits=("test",),
    pool="dev",
)
TASKS = (
    _ARC,
    TaskDef(
        name="arc_easy",
        in_demo=True,
        yaml="arc/arc_easy.yaml",
        metric="acc_norm",
        dataset="allenai/ai2_arc",
        folders=("allenai/ai2_arc", "ai2_arc"),
        config="ARC-Easy",
        flat="arc",
        questions=2376,
        tokens=60,
        prefixes=("easy_",),
        item_key="id",
    ),
    TaskDef(
        name="hellaswag",
        in_demo=True,
        yaml="hellaswag/hellaswag.yaml",
        metric="acc_norm",
        dataset="Rowan/hellaswag",
        folders=("Rowan/hellaswag", "hellaswag"),
        flat="hellaswag",
        questions=10042,
        tokens=170,
        sharing=column("source_id"),
        splits=("validation",),
    ),
    TaskDef(
        name="winogrande",
        in_demo=True,
        yaml="winogrande/default.yaml",
        metric="acc",
        dataset="allenai/winogrande",
        folders=("allenai/winogrande", "winogrande"),
        config="winogrande_xl",
        flat="winogrande",
        questions=1267,
        tokens=45,
        prefixes=("xl_", ""),
        sharing=choices,
        splits=("validation",),
    ),
    _MMLU,
    TaskDef(
        name="truthfulqa_mc2",
        yaml="truthfulqa/truthfulqa_mc2.yaml",
        metric="acc",
        dataset="truthfulqa/truthful_qa",
        folders=("truthfulqa/truthful_qa", "truthful_qa"),
        config="multiple_choice",
        flat="truthfulqa",
        stems=("v1_mc_task",),
        questions=817,
        tokens=280,
        splits=("validation",),
        pool="",
    ),
    replace(
        _MMLU,
        name="mmlu_llama",
        yaml="llama3/instruct/mmlu/mmlu_{subset}.yaml",
        kind="generated",
        metric="exact_match",
        tokens=700,
        answer_tokens=3,
        chat=True,
        multiturn=True,
    ),
    replace(
        _MMLU,
        name="mmlu_cot_llama",
        yaml="llama3/instruct/mmlu_cot/mmlu_{subset}.yaml",
        kind="generated",
        metric="exact_match",
        shots=0,
        tokens=500,
        answer_tokens=250,
        chat=True,
    ),
    replace(
        _ARC,
        name="arc_challenge_llama",
        yaml="llama3/instruct/arc_challenge/arc_challenge_llama.yaml",
        kind="generated",
        metric="exact_match",
        questions=1165,  # those with four choices
        tokens=240,
        answer_tokens=5,
        chat=True,
        prepared=True,
        splits=("test",),
    ),
    TaskDef(
        name="gsm8k_llama",
        yaml="llama3/instruct/gsm8k/gsm8k.yaml",
        kind="generated",
        metric="exact_match",
        dataset="openai/gsm8k",
        folders=("openai/gsm8k", "gsm8k"),
        config="main",
        flat="gsm8k",
        questions=1319,
        tokens=400,
        answer_tokens=150,
        shots=8,
        chat=True,
        multiturn=True,
        splits=("test",),
        pool="",
    ),
)
