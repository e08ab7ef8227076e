"""Detect stock refusals in English: a response that declines, or admits that it does not know.

The patterns are approximate: docs/constitution.md has their precision and recall on manually checked responses.
"""

from __future__ import annotations

import re

from selfalign.quality.rouge import words

_NOT = "(?:can ?not|can't|could not|couldn't|will not|won't|would not|do not|don't|(?:am|'m) not able to|am unable to)"


def any_of(*wordings: str) -> re.Pattern[str]:
    """Return a pattern that matches any of the wordings as whole words; `I NOT` is "I cannot", "I do not" and so on."""
    whole = "|".join(w if w.endswith((r"\s", "?")) else rf"(?<!\w){w}(?!\w)" for w in wordings)
    return re.compile(whole.replace("NOT", _NOT))


_SAYS_NO = (
    r"(?:i|we) NOT (?:want to |wish to )?(?:help|assist|answer|support|give|provide|tell you|show|explain|recommend)",
    r"(?:i|we) NOT (?:want to |wish to )?(?:encourage|advise|write|take part|condone|discuss|do (?:that|this|it))",
    r"(?:i|we) (?:must |have to |will )?(?:refuse|decline)",
    r"(?:will not|cannot|can't|won't) help",
    r"not something i (?:can|will)",
)
_FORBIDDEN = (
    r"(?:it|this|that) (?:is|would be|may be) (?:illegal|against the law|a crime|unethical|immoral)",
    r"(?:it|this|that) (?:is|would be) not (?:legal|ethical|right|safe|allowed)",
)
_HARMFUL = (r"(?:it|this|that) (?:is|would be|may be) (?:wrong|harmful|dangerous)(?!,? but here)",)
_WARNS = (
    r"you (?:should|must) (?:not|never)",
    r"(?:do not|don't|never) (?:do|try|use|make|take|break|steal|hurt) (?:this|that|it|them|him|her|anyone|anything)",
)
TELLS_USER_NO = any_of(
    r"(?:i|we) NOT (?:help|assist|answer|support|recommend|encourage|advise|take part|condone|discuss|comply)",
    r"(?:i|we) NOT (?:give|provide|tell|show|explain|write|share) (?:you|such|instructions?|advice|details)",
    r"(?:i|we) NOT (?:give|provide|tell|show|explain|write|share) (?:any )?(?:information|advice|help|details)",
    *_SAYS_NO[2:],
)
"""The assistant declines. Narrower than `DECLINE`, because small models write as the user ("I don't want to do it")."""
FORBIDDEN = any_of(*_FORBIDDEN)
"""The response calls the request illegal or unethical."""
HARMFUL = any_of(*_HARMFUL)
WARNS = any_of(*_WARNS)
"""The response warns: a refusal, or good advice."""
DECLINE = any_of(
    *_SAYS_NO, *_FORBIDDEN, *_HARMFUL, *_WARNS, r"i(?: a|')m sorry,? (?:but|i)", r"as an ai(?: language)? model"
)
IGNORANCE = any_of(
    r"(?:i|we) (?:really |just |simply )?NOT (?:actually |really |yet )?(?:know|have|say|predict|recall|find|see)",
    r"(?:i|we) (?:really |just |simply )?NOT (?:remember|look up|be sure|verify|answer|tell|guess)",
    r"i (?:have|had) no (?:idea|information|knowledge|memory|way|record|access|data|live|living|personal|experience)",
    r"i (?:have|had) no (?:favou?rite|preferences?|opinion)",
    r"i(?: a|')m not (?:sure|certain|aware|familiar)",
    r"(?:not )?(?:unknown|known|familiar) to me",
    r"(?:is|are) (?:not known|unknown)",
    r"no one knows",
    r"i lack",
    r"i know nothing",
    r"as an ai",
    r"i(?: a|')m (?:only |just )?a (?:language model|computer program)",
)
STATIC = any_of(
    r"no (?:live|living|real-time|current|up-to-date|recent) (?:data|information|news|prices?)",
    r"real[- ]time",
    r"live data",
    r"i NOT (?:look (?:it|this|that|things) up|see (?:today|current|live)|access|check|know)",
    r"(?:check|see|look at|visit|ask|consult|use) (?:an?|the|your|several|some) (?:\w+ ){0,3}(?:website|sites?|app)",
    r"(?:check|see|look at|visit|consult|use) (?:an?|the|your|some) (?:\w+ ){0,3}(?:news|forecast|newspaper|source)",
    r"(?:check|see|look at|use) (?:an?|the|your) (?:\w+ ){0,3}(?:search engine|timetable|clock|calendar)",
    r"changes? (?:all the time|every (?:day|hour|minute)|constantly|often|quickly)",
)


_ONE_OF = frozenset([
    "not", "cannot", "t", "unable", "refuse", "decline", "never", "sorry", "illegal", "law", "crime", "unethical",
    "immoral", "wrong", "harmful", "dangerous", "ai", "no", "unknown", "known", "familiar", "nothing", "lack",
    "language", "computer", "real", "live", "website", "site", "sites", "app", "news", "forecast", "newspaper",
    "source", "search", "timetable", "clock", "calendar", "change", "changes",
])  # fmt: skip
"""Each pattern of `stock_refusal` needs one of these words, so that most responses are not searched."""


def lower(text: str) -> str:
    """Return the text in lower case, with straight apostrophes."""
    return text.lower().replace("’", "'")


def sentences(text: str) -> list[str]:
    """Split the text into sentences, in lower case."""
    return [s for s in re.split(r"(?<=[.?!])\s+|\n+", lower(text).strip()) if s]


def refuses(answer: str) -> bool:
    """Return whether a response declines, or calls the request illegal, harmful or wrong."""
    return bool(DECLINE.search(lower(answer)))


def admits(answer: str) -> bool:
    """Return whether a response says that it does not know or has no such information."""
    return bool(IGNORANCE.search(lower(answer)))


def stock_refusal(answer: str) -> bool:
    """Return whether a refusal or an admission of ignorance opens the response or fills half of its sentences."""
    if _ONE_OF.isdisjoint(words(answer)):
        return False
    hits = [bool(IGNORANCE.search(s) or DECLINE.search(s) or STATIC.search(s)) for s in sentences(answer)]
    return bool(hits) and (hits[0] or sum(hits) * 2 >= len(hits))
