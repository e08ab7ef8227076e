"""Detect unsafe responses by named rules on English wordings.

The rules are approximate: docs/filters.md has their precision on manually checked responses. They select training
data, where losing a good response costs little. They are no safeguard for a deployed model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from selfalign.quality.refusals import lower, refuses
from selfalign.quality.rouge import words

_PEOPLE = (
    r"(?:him|her|them|me|you|someone|somebody|anyone|people|a (?:person|man|woman|child)|"
    r"(?:my|your|his|her|their|the) (?:\w+ )?"
    r"(?:boss|wife|husband|brother|sister|mother|father|parents|friends?|girlfriend|boyfriend|child|son|daughter|"
    r"neighbou?rs?|teacher|classmates?|co-?workers?|colleagues?|grand(?:mother|father)|ex))"
)
_THINGS = r"(?:cars?|money|phones?|clothes|bikes?|bicycles?|goods|things?|jewell?ery|cards?|identity|something)"


def _any(*wordings: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"\b(?:{wording})" for wording in wordings))


_HARM = _any(
    r"(?:steal|rob|shoplift|burgle|smuggl(?:e|ing)|blackmail|kidnap|stalk|strangle|murder|rape|tortur(?:e|ing))\b",
    rf"take {_THINGS} from (?:my|the|a) (?:\w+ )?(?:till|shop|company|boss)",
    r"pick (?:the|a) locks?\b",
    r"break (?:into|in to)\b|break the windows?\b|hack(?:ing)? into\b",
    r"(?:forg(?:e|ing)|counterfeit|fake)\b (?:\w+ ){0,3}(?:passports?|ids?|signatures?|money|bills|notes|letters?)",
    r"(?:false|fake) reviews?\b|rumou?rs? about\b|spread(?:ing)? (?:a )?lies?\b|insults? for\b",
    r"copy (?:a|someone's|somebody's) credit cards?\b",
    r"get into (?:someone|somebody|another)\b[^.?!\n]{0,60}\b(?:account|phone|mail)",
    rf"(?:kill|hurt|poison|beat|punish|threaten(?:s|ing)?|attack|follow|frighten|harm)\b (?:{_PEOPLE}|(?:a )?dogs?)",
    rf"(?:beat|break) {_PEOPLE}(?:'s)? (?:up|legs?|arms?)|break (?:his|her|their|your) (?:legs?|arms?|nose)",
    r"cut the brakes?\b|burn(?:ing)? down\b|set (?:\w+ ){1,3}on fire\b|revenge\b|mak(?:e|es|ing) fun of people",
    r"(?:make|build|buy|get)\b (?:\w+ ){0,3}(?:bombs?|explosives?|grenades?)\b",
    r"(?:guns?|weapons?|pistols?)\b (?:\w+ ){0,2}without (?:a )?licen[cs]e|knife through\b",
    r"(?:poisonous|deadly|toxic) (?:gas|soup)|make (?:them|him|her|someone) sick\b",
    r"(?:cook|make|grow|recipe for|buy|sell)\b (?:\w+ ){0,3}(?:meth|heroin|cocaine|drugs?)\b",
    r"hide (?:money|that i|income|it from the police)\b",
    r"lie to the police\b|cheat (?:in|on|at) (?:the|an|a|my) (?:exams?|tests?)\b|change my grades\b",
    r"drive (?:home )?(?:drunk|after (?:\w+ ){1,2}(?:beers?|glasses|drinks))",
    r"without (?:being|getting) (?:caught|seen|noticed)\b",
    r"(?:in secret|secretly)\b[^.?!\n]{0,60}\b(?:phone|calls|messages|mail)",
    r"listen to (?:my|his|her) \w+'s? (?:phone )?calls\b",
    r"tricks? (?:an? )?(?:\w+ )?(?:man|woman|people|person|grandmother)|by lying\b|in the name of (?:a|the) bank\b",
    r"(?:home )?address and phone number\b|stolen \w+\b|(?:starve|hurt) (?:myself|yourself)",
    r"(?:computer )?virus (?:which|that) (?:deletes|destroys|steals)\b|malware\b",
    r"talked into meeting a stranger\b|praises? (?:terrorists?|terror)\b|get a dog to fight\b",
)
"""A request for something that hurts somebody, or is illegal nearly everywhere."""
_REQUEST = _any(
    r"how (?:can|do|could|should|would|to|somebody|someone)\b",
    r"(?:tell|teach|explain|describe|write|give|help me|make|plan|steps|recipe|best|easiest|quickest|clever|where)\b",
    r"(?:what|which) (?:\w+ ){0,3}(?:should|can|could|do|would|to|is (?:the|a)|together)\b",
)
_HARMLESS = _any(
    r"(?:protect\w*|against (?:thieves|fire|it)|prevent\w*|keep (?:\w+ ){1,3}away|story|scene|novel|film|poem|fable)\b",
    r"(?:history|process|computer that|weeds|germs|bacteria|pests?|ants|measures?|vaccines?|paint\w*|pictures?)\b",
)
_SELF_HARM = _any(
    r"(?:kill|hurt|harm|cut|starve|hang|drown) (?:myself|yourself|oneself)\b|suicid|(?:want|wish) to die\b",
    r"end my life\b|life has no (?:sense|meaning)\b|(?:pills|painkillers|tablets)\b[^.?!\n]{0,60}\bto die\b",
)
_HELP = _any(
    r"(?:get|seek|find|ask for|need|call for) (?:\w+ ){0,2}help\b|(?:talk|speak|turn) to\b",
    r"tell (?:someone|somebody|a )",
    r"(?:doctor|hospital|emergency|helpline|hotline|therapist|counsell?or|psychologist|ambulance|poison control)\b",
)
_AGAINST = _any(
    r"(?:illegal|unlawful|against the law|forbidden|(?:a|serious) crime|criminal offence|unethical|immoral)\b",
    r"(?:it|this|that|they)(?: is| are|'s) (?:not (?:allowed|legal|safe|fair|right)|dangerous|harmful|wrong|unsafe)",
    r"you (?:should|must|do)(?: not|n't) |never \w+",
)
_MAKE = r"(?:mak(?:e|ing|es)|made|build(?:ing|s)?|mix(?:ing|es)?|cook(?:ing|s|ed)?|combin(?:e|ing)|grow(?:ing)?)"
_FEW = r"(?:(?!of\b|with\b)[\w']+ ){0,4}?"
_BOMB = r"(?:pipe bombs?|bombs?|explosives?|grenades?|poison(?:ous)? gas|nerve gas|napalm)"
_WEAPON = _any(
    rf"{_MAKE} {_FEW}{_BOMB}\b", rf"{_BOMB} (?:can be|is|are) (?:made|built|mixed)\b", rf"mix {_FEW}of a {_BOMB}\b"
)
_NOT_WEAPON = re.compile(r"\bbomb calorimeter|\bbath bombs?|\bcherry bomb")
_POWDER = r"(?:crystal meth|meth|methamphetamine|heroin|cocaine|crack|lsd|ecstasy|(?:strong(?:est)?|illegal) drugs?)"
_DRUG = _any(rf"{_MAKE} {_FEW}{_POWDER}\b", rf"{_POWDER}\b[^.?!\n]{{0,60}}\b{_MAKE}\b")
_GROUP = (
    r"(?:women|men|girls|boys|(?:poor|old|fat|gay|black|white|young|disabled|homeless|jewish) (?:people|men|women)|"
    r"immigrants|foreigners|refugees|jews|muslims|christians|homosexuals|lesbians|gays|africans|asians|arabs|"
    r"the (?:poor|elderly|disabled))"
)
_LOW = (
    r"(?:lazy|stupid|dumb(?:er)?|idiots?|inferior|worthless|dirty|criminals?|ugly|useless|disgusting|animals|vermin|"
    r"(?:less|not as|not so|not very) (?:smart|intelligent|clever|capable|able)|more (?:dumb|stupid|lazy))"
)
_DEMEANING = _any(
    rf"{_GROUP} (?:who [^.,]{{1,30}} )?(?:are|is|were|seem|tend to be) (?:\w+ ){{0,2}}?{_LOW}\b",
    r"they are (?:\w+ )?(?:lazy|stupid|dumb|inferior|worthless|criminals)\b",
)
_DENIES = _any(r"(?:not true|untrue|false|myth|wrong to|unfair|stereotypes?|prejudices?|no evidence)\b")
_ADVICE = _any(r"(?:good idea|safe|fine|healthy|helps?|all right|ok(?:ay)?|you (?:can|should|may)|best|cure)\b")
_ALCOHOL = r"(?:whisky|alcohol|vodka|wine|beer)"
_DANGER = _any(
    r"(?:drink(?:ing)?|swallow(?:ing)?|clean (?:your|the) stomach|wash your stomach|eat(?:ing)?)[^.?!\n]{0,40}"
    r"\b(?:bleach|petrol|gasoline|detergent|antifreeze|methanol|toxic mushrooms?)",
    r"bleach\b[^.?!\n]{0,60}\b(?:stomach|drink)",
    r"stop(?:ping)? (?:taking |using )?(?:my |your |the |it|with )*(?:insulin|medicine|medication|tablets|antibiotics)",
    rf"bab(?:y|ies)\b[^.?!\n]{{0,60}}\b{_ALCOHOL}|{_ALCOHOL}\b[^.?!\n]{{0,40}}\bbab(?:y|ies)\b",
    rf"(?:pills|painkillers|tablets)\b[^.?!\n]{{0,40}}\bwith {_ALCOHOL}",
)
_DIGITS = re.compile(r"\d{3}[ )-]")
_PERSONAL = re.compile(
    r"(?<![\w.])[\w.+-]{2,64}@(?!example\.)[\w-]{1,64}\.(?:com|org|net|edu|de|uk|info)\b|"
    r"(?<!\d)(?:\+\d{1,3}[ -]?)?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}(?!\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)|"
    r"(?<!\d)\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?!\d)"
)
_MINOR = _any(r"(?:child(?:ren)?|kids?|minors?|(?:little|young) (?:girls?|boys?)|school(?:girl|boy)s?|toddlers?)\b")
_SEXUAL = _any(r"(?:sex(?:ual(?:ly)?)?|naked|nude|erotic|porn\w*|orgasms?|genitals?|seduc\w+)\b")


def asks_for_harm(message: str) -> bool:
    """Return whether the user asks for something that hurts somebody or is illegal."""
    text = lower(message)
    return bool(_HARM.search(text) and _REQUEST.search(text)) and not _HARMLESS.search(text)


def _declines(text: str) -> bool:
    return refuses(text) or bool(_AGAINST.search(lower(text)))


def _complies(text: str, message: str) -> bool:
    return asks_for_harm(message) and not _declines(text)


def _self_harm(text: str, message: str) -> bool:
    return bool(_SELF_HARM.search(lower(message))) and not _HELP.search(lower(text))


def _has(text: str, any_of: frozenset[str]) -> bool:
    """Return whether the text contains one of the words. It is faster than the patterns, which most texts then skip."""
    return not any_of.isdisjoint(words(text))


_WEAPON_WORDS = frozenset(["bomb", "bombs", "explosive", "explosives", "grenade", "grenades", "gas", "napalm"])
_DRUG_WORDS = frozenset(
    ["meth", "methamphetamine", "heroin", "cocaine", "crack", "lsd", "ecstasy", "drug", "drugs"]
)  # fmt: skip
_LOW_WORDS = frozenset([
    "lazy", "stupid", "dumb", "dumber", "idiot", "idiots", "inferior", "worthless", "dirty", "criminal", "criminals",
    "ugly", "useless", "disgusting", "animals", "vermin", "smart", "intelligent", "clever", "capable", "able",
])  # fmt: skip
_DANGER_WORDS = frozenset([
    "bleach", "petrol", "gasoline", "detergent", "antifreeze", "methanol", "toxic", "stop", "stopping", "baby",
    "babies", "pills", "painkillers", "tablets",
])  # fmt: skip
_MINOR_WORDS = frozenset([
    "child", "children", "kid", "kids", "minor", "minors", "girl", "girls", "boy", "boys", "schoolgirls", "schoolboys",
    "toddler", "toddlers",
])  # fmt: skip


def _weapons(text: str, message: str) -> bool:
    if not _has(text, _WEAPON_WORDS):
        return False
    low = lower(text)
    about_else = _NOT_WEAPON.search(low) or _HARMLESS.search(lower(message))
    return bool(_WEAPON.search(low)) and not (about_else or refuses(text))


def _drugs(text: str, message: str) -> bool:
    return _has(text, _DRUG_WORDS) and bool(_DRUG.search(lower(text))) and not _declines(text)


def _demeaning(text: str, message: str) -> bool:
    if not _has(text, _LOW_WORDS):
        return False
    low = lower(text)
    return bool(_DEMEANING.search(low)) and not (refuses(text) or _DENIES.search(low))


def _dangerous_advice(text: str, message: str) -> bool:
    if not (_has(text, _DANGER_WORDS) or _has(message, _DANGER_WORDS)):
        return False
    low = lower(text)
    danger = _DANGER.search(low) or (_DANGER.search(lower(message)) and not _HARMLESS.search(lower(message)))
    return bool(danger and _ADVICE.search(low)) and not (_AGAINST.search(low) or _HELP.search(low))


def _personal_data(text: str, message: str) -> bool:
    if "@" not in text and not _DIGITS.search(text):
        return False
    return any(match[0] not in message for match in _PERSONAL.finditer(text))


def _minors(text: str, message: str) -> bool:
    if not _has(text, _MINOR_WORDS):
        return False
    return any(_MINOR.search(s) and _SEXUAL.search(s) for s in re.split(r"[.?!\n]", lower(text)))


RULES: dict[str, Callable[[str, str], bool]] = {
    "weapons": _weapons,
    "drugs": _drugs,
    "demeaning": _demeaning,
    "dangerous_advice": _dangerous_advice,
    "self_harm": _self_harm,
    "personal_data": _personal_data,
    "minors": _minors,
    "complies": _complies,
}
"""Name -> rule(response, message). Rules on content come first, compliance with a harmful request last."""


def first_violation(text: str, message: str, names: Sequence[str]) -> str | None:
    """Return the first of these rules that the response breaks, or None."""
    return next((name for name in names if RULES[name](text, message)), None)
