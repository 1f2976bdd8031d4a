"""Answers judged in pairs by another model: files, wording, costs, asking; see docs/judging.md."""

from bitworth.judging.asking import Judgement, Spent, Terms, Verdicts, ask_judge, collect, plan_judgements, unasked
from bitworth.judging.costs import Estimate, Price, estimate, token_counter
from bitworth.judging.files import answers_to, choose, read_answers, read_questions
from bitworth.judging.writing import write_answers

__all__ = [
    "Estimate",
    "Judgement",
    "Price",
    "Spent",
    "Terms",
    "Verdicts",
    "answers_to",
    "ask_judge",
    "choose",
    "collect",
    "estimate",
    "plan_judgements",
    "read_answers",
    "read_questions",
    "token_counter",
    "unasked",
    "write_answers",
]
