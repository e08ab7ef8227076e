"""Two rows of our own in the form of each published data set, and how they must be read.

docs/datasets.md has a line for each of them, which tests/data/test_published.py checks.
"""

from __future__ import annotations

from typing import Any

from selfalign.data.formats import Row

Form = list[tuple[dict[str, Any], Row]]


def chat(*texts: str, role: str = "role", text: str = "content", names: str = "user assistant") -> list[dict[str, Any]]:
    """Return turns that alternate between two roles."""
    first, second = names.split()
    return [{role: second if n % 2 else first, text: value} for n, value in enumerate(texts)]


def share(*texts: str, names: str = "human gpt") -> list[dict[str, Any]]:
    """Return turns in the keys of ShareGPT."""
    return chat(*texts, role="from", text="value", names=names)


RIVER = ("Name a river of Europe.", "The Danube runs through ten countries.")
SALT = ("Why does salt melt ice?", "It lowers the temperature at which water freezes.")
MORE = ("And in winter?", "Then roads stay wet longer.")
PASSAGE = "Mara keeps bees on her roof and sells the honey."
ABOUT = ("What does Mara sell?", "She sells honey.")


def row(name: str, pair: tuple[str, str], skipped: int = 0, passage: str = "", system: str | None = None) -> Row:
    return Row(name, pair[0], passage, pair[1], system, skipped)


def message(number: int, parent: int | None, text: str, rank: int | None = None) -> dict[str, Any]:
    """Return a message of an OpenAssistant tree."""
    return {
        "message_id": f"m{number}", "parent_id": None if parent is None else f"m{parent}", "user_id": "u", "text": text,
        "role": "prompter" if number == 0 else "assistant", "lang": "en", "deleted": False, "rank": rank,
        "synthetic": False, "tree_state": "ready_for_export", "labels": {"name": ["quality"], "value": [0.7]},
    }  # fmt: skip


def scored(text: str, score: float) -> dict[str, Any]:
    return {"model": "m", "response": text, "overall_score": score, "critique": "It is short.", "annotations": {}}


WEATHER = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALL = '<functioncall> {"name": "weather", "arguments": \'{}\'} <|endoftext|>'
PICTURE = {"type": "image_url", "image_url": {"url": "door.png"}, "text": None}
QUESTION = {"type": "text", "text": "What is on the picture?", "image_url": None}

TEMPLATE = (
    "Below is an instruction that describes a task. Respond to it in an own text.\n\n### Instruction:\n{}\n\n"
    "### Response:\n"
)

FORMS: dict[str, Form] = {
    "tatsu-lab/alpaca": [
        ({"instruction": RIVER[0], "input": "", "output": RIVER[1], "text": f"### Instruction:\n{RIVER[0]}"},
         row("Alpaca", RIVER)),
        ({"instruction": ABOUT[0], "input": PASSAGE, "output": ABOUT[1], "text": f"### Instruction:\n{ABOUT[0]}"},
         row("Alpaca", ABOUT, passage=PASSAGE)),
    ],
    "databricks/databricks-dolly-15k": [
        ({"instruction": ABOUT[0], "context": PASSAGE, "response": ABOUT[1], "category": "closed_qa"},
         row("Dolly", ABOUT, passage=PASSAGE)),
        ({"instruction": RIVER[0], "context": "", "response": RIVER[1], "category": "open_qa"}, row("Dolly", RIVER)),
    ],
    "anon8231489123/ShareGPT_Vicuna_unfiltered": [
        ({"id": "a_0", "conversations": share(*RIVER, *MORE)}, row("ShareGPT", RIVER, 2)),
        ({"id": "b_0", "conversations": share("Hello! How can I help?", *SALT, names="chatgpt user")},
         row("ShareGPT", SALT, 1)),
    ],
    "openchat/openchat_sharegpt4_dataset": [
        ({"items": share(*RIVER), "system": ""}, row("dialogue", RIVER, system="")),
        ({"items": share(*SALT, *MORE), "system": "Be brief."}, row("dialogue", SALT, 2, system="Be brief.")),
    ],
    "OpenAssistant/oasst1": [
        ({"message_tree_id": "t", "tree_state": "ready", "prompt": {**message(0, None, RIVER[0]), "replies": [
            {**message(1, 0, "A river.", 1), "replies": []}, {**message(2, 0, RIVER[1], 0), "replies": []}]}},
         row("message tree", RIVER, 1)),
        ({"message_tree_id": "u", "tree_state": "ready", "prompt": {**message(0, None, SALT[0]), "replies": [
            {**message(1, 0, SALT[1]), "replies": [{**message(2, 1, MORE[0]), "replies": []}]}]}},
         row("message tree", SALT, 1)),
    ],
    "OpenAssistant/oasst2": [  # a message in each row; rows of one tree follow each other
        ({**message(0, None, RIVER[0]), "message_tree_id": "m0"}, Row("message tree", RIVER[0], "", RIVER[1])),
        ({**message(1, 0, RIVER[1], 0), "message_tree_id": "m0"}, Row("message tree", "")),
    ],
    "timdettmers/openassistant-guanaco": [
        ({"text": f"### Human: {RIVER[0]}### Assistant: {RIVER[1]}"}, row("transcript", RIVER)),
        ({"text": f"### Human: {SALT[0]}### Assistant: {SALT[1]}### Human: {MORE[0]}"}, row("transcript", SALT, 1)),
    ],
    "stingning/ultrachat": [
        ({"id": "0", "data": [*RIVER, *MORE]}, row("dialogue", RIVER, 2)),
        ({"id": "1", "data": [*SALT]}, row("dialogue", SALT)),
    ],
    "HuggingFaceH4/ultrachat_200k": [
        ({"prompt": RIVER[0], "prompt_id": "9", "messages": chat(*RIVER, *MORE)}, row("messages", RIVER, 2)),
        ({"prompt": SALT[0], "prompt_id": "8", "messages": chat(*SALT)}, row("messages", SALT)),
    ],
    "GAIR/lima": [
        ({"conversations": [*RIVER], "source": "own"}, row("ShareGPT", RIVER)),
        ({"conversations": [*SALT, *MORE], "source": "multi_turn"}, row("ShareGPT", SALT, 2)),
    ],
    "allenai/WildChat-1M": [
        ({"conversation_hash": "x", "model": "m", "turn": 1, "language": "English", "toxic": False, "redacted": False,
          "conversation": [{**turn, "country": "Peru", "language": "English", "redacted": False, "toxic": False,
                            "turn_identifier": 1} for turn in chat(*RIVER)]}, row("dialogue", RIVER)),
        ({"conversation_hash": "y", "model": "m", "turn": 2, "language": "English", "toxic": False, "redacted": False,
          "conversation": chat(*SALT, *MORE)}, row("dialogue", SALT, 2)),
    ],
    "lmsys/lmsys-chat-1m": [
        ({"conversation_id": "x", "model": "m", "conversation": chat(*RIVER), "turn": 1, "language": "English",
          "redacted": False}, row("dialogue", RIVER)),
        ({"conversation_id": "y", "model": "m", "conversation": chat(*SALT, *MORE), "turn": 2, "language": "English",
          "redacted": True}, row("dialogue", SALT, 2)),
    ],
    "Open-Orca/OpenOrca": [
        ({"id": "niv.1", "system_prompt": "You explain.", "question": SALT[0], "response": SALT[1]},
         row("question–answer", SALT, system="You explain.")),
        ({"id": "flan.2", "system_prompt": "", "question": RIVER[0], "response": RIVER[1]},
         row("question–answer", RIVER, system="")),
    ],
    "Open-Orca/SlimOrca": [
        ({"conversations": [{"from": "system", "value": "You explain.", "weight": None}, *share(*SALT)]},
         row("ShareGPT", SALT, system="You explain.")),
        ({"conversations": [{**turn, "weight": 1.0} for turn in share(*RIVER)]}, row("ShareGPT", RIVER)),
    ],
    "Open-Orca/FLAN": [
        ({"inputs": RIVER[0], "targets": RIVER[1], "_task_name": "t", "_template_type": "zs_noopt"},
         row("question–answer", RIVER)),
        ({"inputs": SALT[0], "targets": SALT[1], "_task_name": "t", "_template_type": "zs_noopt"},
         row("question–answer", SALT)),
    ],
    "allenai/tulu-3-sft-mixture": [
        ({"id": "1", "messages": chat(*RIVER), "source": "own"}, row("messages", RIVER)),
        ({"id": "2", "messages": [{"role": "system", "content": "A."}, {"role": "system", "content": "B."},
                                  *chat(*SALT)], "source": "own"}, row("messages", SALT, system="A.\n\nB.")),
    ],
    "HuggingFaceH4/no_robots": [
        ({"prompt": RIVER[0], "prompt_id": "9", "messages": chat(*RIVER), "category": "Open QA"},
         row("messages", RIVER)),
        ({"prompt": SALT[0], "prompt_id": "8", "messages": chat("I have a question.", SALT[0], names="user user")
          + chat(SALT[1], names="assistant user"), "category": "Chat"},
         Row("messages", f"I have a question.\n\n{SALT[0]}", "", SALT[1])),
    ],
    "LDJnr/Capybara": [
        ({"source": "own", "conversation": [{"input": RIVER[0], "output": RIVER[1]},
                                            {"input": MORE[0], "output": MORE[1]}]}, row("dialogue", RIVER, 2)),
        ({"source": "own", "conversation": [{"input": SALT[0], "output": SALT[1]}]}, row("dialogue", SALT)),
    ],
    "teknium/OpenHermes-2.5": [
        ({"conversations": share(*RIVER), "source": "own", "category": None, "system_prompt": None, "language": None,
          "custom_instruction": None, "skip_prompt_formatting": False, "title": None}, row("ShareGPT", RIVER)),
        ({"conversations": share(*SALT), "source": "own", "category": "physics", "system_prompt": "You explain.",
          "custom_instruction": True, "skip_prompt_formatting": None, "title": None},
         row("ShareGPT", SALT, system="You explain.")),
    ],
    "yizhongw/self_instruct": [
        ({"prompt": RIVER[0], "completion": RIVER[1]}, row("prompt–completion", RIVER)),
        ({"id": "h", "motivation_app": "Maps", "instruction": ABOUT[0],
          "instances": {"input": [PASSAGE, "Jon keeps goats."], "output": [ABOUT[1], "Nothing."]}},
         row("selfalign", ABOUT, 2, PASSAGE)),
    ],
    "Muennighoff/natural-instructions": [
        ({"task_name": "task1", "id": "task1-a", "definition": "Answer the question.", "inputs": RIVER[0],
          "targets": RIVER[1]}, Row("question–answer", "Answer the question.", RIVER[0], RIVER[1])),
        ({"task_name": "task2", "id": "task2-b", "definition": "Explain it.", "inputs": SALT[0], "targets": SALT[1]},
         Row("question–answer", "Explain it.", SALT[0], SALT[1])),
    ],
    "Anthropic/hh-rlhf": [
        ({"chosen": f"\n\nHuman: {RIVER[0]}\n\nAssistant: {RIVER[1]}",
          "rejected": f"\n\nHuman: {RIVER[0]}\n\nAssistant: No."}, row("preferences", RIVER)),
        ({"chosen": f"\n\nHuman: {SALT[0]}\n\nAssistant: {SALT[1]}\n\nHuman: {MORE[0]}\n\nAssistant: {MORE[1]}",
          "rejected": f"\n\nHuman: {SALT[0]}\n\nAssistant: {SALT[1]}\n\nHuman: {MORE[0]}\n\nAssistant: No."},
         row("preferences", SALT, 2)),
    ],
    "HuggingFaceH4/ultrafeedback_binarized": [
        ({"prompt": RIVER[0], "prompt_id": "9", "chosen": chat(*RIVER), "rejected": chat(RIVER[0], "No."),
          "messages": chat(*RIVER), "score_chosen": 8.0, "score_rejected": 2.0}, row("messages", RIVER)),
        ({"prompt": SALT[0], "prompt_id": "8", "chosen": chat(*SALT), "rejected": chat(SALT[0], "No."),
          "messages": None, "score_chosen": 8.0, "score_rejected": 2.0}, row("preferences", SALT)),
    ],
    "Intel/orca_dpo_pairs": [
        ({"system": "", "question": RIVER[0], "chosen": RIVER[1], "rejected": "No."},
         row("preferences", RIVER, system="")),
        ({"system": "You explain.", "question": SALT[0], "chosen": SALT[1], "rejected": "No."},
         row("preferences", SALT, system="You explain.")),
    ],
    "openbmb/UltraFeedback": [
        ({"source": "own", "instruction": RIVER[0], "models": ["a", "b"], "correct_answers": ["None"],
          "completions": [scored("A river.", 3.0), scored(RIVER[1], 8.5)]}, row("selfalign", RIVER)),
        ({"source": "own", "instruction": SALT[0], "models": ["a"], "correct_answers": ["None"],
          "completions": [scored(SALT[1], 7.0)]}, row("selfalign", SALT)),
    ],
    "microsoft/orca-math-word-problems-200k": [
        ({"question": "What is 8 + 2?", "answer": "10"}, row("question–answer", ("What is 8 + 2?", "10"))),
        ({"question": "What is 8 - 2?", "answer": "6"}, row("question–answer", ("What is 8 - 2?", "6"))),
    ],
    "meta-math/MetaMathQA": [
        ({"type": "GSM_Rephrased", "query": "What is 8 + 2?", "original_question": "Add 8 and 2.", "response": "10"},
         Row("question–answer", "What is 8 + 2?", "", "10")),
        ({"type": "GSM_SV", "query": "What is 8 - 2?", "original_question": "Add 8 and 2.", "response": "6"},
         Row("question–answer", "What is 8 - 2?", "", "6")),
    ],
    "sahil2801/CodeAlpaca-20k": [
        ({"instruction": "Sort the list.", "input": "[2, 1]", "output": "[1, 2]"},
         Row("Alpaca", "Sort the list.", "[2, 1]", "[1, 2]")),
        ({"instruction": "", "input": RIVER[0], "output": RIVER[1]}, Row("Alpaca", "", RIVER[0], RIVER[1])),
    ],
    "WizardLMTeam/WizardLM_evol_instruct_V2_196k": [
        ({"idx": "a", "conversations": share(*RIVER)}, row("ShareGPT", RIVER)),
        ({"idx": "b", "conversations": share(*SALT)}, row("ShareGPT", SALT)),
    ],
    "ise-uiuc/Magicoder-OSS-Instruct-75K": [
        ({"lang": "python", "raw_index": 1, "index": 2, "seed": "x = 1", "problem": "Print x.", "solution": "print(x)"},
         Row("question–answer", "Print x.", "", "print(x)")),
        ({"lang": "php", "raw_index": 3, "index": 4, "seed": "y = 1", "problem": "Print y.", "solution": "echo $y;"},
         Row("question–answer", "Print y.", "", "echo $y;")),
    ],
    "project-baize/baize-chatbot": [
        ({"topic": RIVER[0], "input": "The conversation between human and AI assistant.\n"
          f"[|Human|] {RIVER[0]}\n[|AI|] {RIVER[1]}\n[|Human|] {MORE[0]}\n[|AI|] {MORE[1]}\n[|Human|] "},
         row("question–answer", RIVER, 3, system="The conversation between human and AI assistant.")),
        ({"topic": SALT[0], "input": f"[|Human|] {SALT[0]}\n[|AI|] {SALT[1]}"}, row("question–answer", SALT)),
    ],
    "teknium/GPTeacher-General-Instruct": [
        ({"instruction": ABOUT[0], "input": PASSAGE, "response": ABOUT[1]}, row("selfalign", ABOUT, passage=PASSAGE)),
        ({"instruction": RIVER[0], "input": "", "response": RIVER[1]}, row("selfalign", RIVER)),
    ],
    "BAAI/Infinity-Instruct": [
        ({"id": 1, "conversations": share(*RIVER, *MORE), "label": {"ability": ["geography"]}, "langdetect": "en",
          "source": "own"}, row("ShareGPT", RIVER, 2)),
        ({"id": 2, "conversations": share(*SALT), "label": None, "langdetect": "en", "source": "own"},
         row("ShareGPT", SALT)),
    ],
    "HuggingFaceTB/smoltalk": [
        ({"messages": chat(*RIVER), "source": "own"}, row("messages", RIVER)),
        ({"messages": [{"role": "system", "content": "You have these tools: weather."}, {"role": "user",
          "content": "How warm is it?"}, {"role": "assistant", "content": "<tool_call>[{}]</tool_call>"}],
          "source": "own"}, Row("messages", "How warm is it?", "", "<tool_call>[{}]</tool_call>",
                                "You have these tools: weather.", 0, "has a tool call")),
    ],
    "Magpie-Align/Magpie-Pro-300K-Filtered": [
        ({"uuid": "a", "model": "m", "gen_input_configs": {"temperature": 1.0}, "instruction": RIVER[0],
          "response": RIVER[1], "conversations": share(*RIVER), "difficulty": "easy"}, row("ShareGPT", RIVER)),
        ({"uuid": "b", "model": "m", "gen_input_configs": {"temperature": 1.0}, "instruction": SALT[0],
          "response": SALT[1], "conversations": share(*SALT), "difficulty": "easy"}, row("ShareGPT", SALT)),
    ],
    "CohereForAI/aya_dataset": [
        ({"inputs": RIVER[0], "targets": RIVER[1], "language": "English", "language_code": "eng",
          "annotation_type": "original-annotations", "user_id": "u"}, row("question–answer", RIVER)),
        ({"inputs": "¿Qué vende Mara?", "targets": "Miel.", "language": "Spanish", "language_code": "spa",
          "annotation_type": "re-annotations", "user_id": "u"},
         Row("question–answer", "¿Qué vende Mara?", "", "Miel.")),
    ],
    "garage-bAInd/Open-Platypus": [
        ({"input": "", "output": RIVER[1], "instruction": RIVER[0], "data_source": "own"}, row("Alpaca", RIVER)),
        ({"input": PASSAGE, "output": ABOUT[1], "instruction": ABOUT[0], "data_source": "own"},
         row("Alpaca", ABOUT, passage=PASSAGE)),
    ],
    "AI-MO/NuminaMath-CoT": [
        ({"source": "own", "problem": "What is 8 + 2?", "solution": "10", "messages": chat("What is 8 + 2?", "10")},
         Row("messages", "What is 8 + 2?", "", "10")),
        ({"source": "own", "problem": "What is 8 - 2?", "solution": "6", "messages": None},
         Row("question–answer", "What is 8 - 2?", "", "6")),
    ],
    "berkeley-nest/Nectar": [
        ({"prompt": f"\n\nHuman: {RIVER[0]}\n\nAssistant: ", "turns": 1, "num_responses": 2,
          "answers": [{"answer": "The sea.", "model": "m", "rank": 2.0},
                      {"answer": RIVER[1], "model": "n", "rank": 1.0}]}, row("question–answer", RIVER)),
        ({"prompt": f"\n\nHuman: {SALT[0]}\n\nAssistant: ", "turns": 1, "num_responses": 2,
          "answers": [{"answer": SALT[1], "model": "m", "rank": 1.0},
                      {"answer": "It is hot.", "model": "n", "rank": 7.0}]}, row("question–answer", SALT)),
    ],
    "HuggingFaceH4/stack-exchange-preferences": [
        ({"qid": 1, "question": RIVER[0], "date": "2020/01/01", "metadata": ["own"],
          "answers": [{"answer_id": 2, "author": "a", "pm_score": 1, "selected": False, "text": "The sea."},
                      {"answer_id": 3, "author": "b", "pm_score": 4, "selected": True, "text": RIVER[1]}]},
         row("question–answer", RIVER)),
        ({"qid": 2, "question": SALT[0], "date": "2020/01/01", "metadata": ["own"],
          "answers": [{"answer_id": 4, "author": "a", "pm_score": 2, "selected": False, "text": SALT[1]}]},
         row("question–answer", SALT)),
    ],
    "mosaicml/dolly_hhrlhf": [
        ({"prompt": TEMPLATE.format(RIVER[0]), "response": RIVER[1]},
         row("question–answer", RIVER, system=TEMPLATE.partition("\n")[0])),
        ({"prompt": TEMPLATE.format(SALT[0]), "response": SALT[1]},
         row("question–answer", SALT, system=TEMPLATE.partition("\n")[0])),
    ],
    "trl-lib/kto-mix-14k": [
        ({"prompt": chat(RIVER[0]), "completion": chat(RIVER[1], names="assistant user"), "label": True},
         row("prompt–completion", RIVER)),
        ({"prompt": chat(SALT[0]), "completion": chat("It is hot.", names="assistant user"), "label": False},
         Row("prompt–completion", SALT[0])),
    ],
    "nvidia/ChatQA-Training-Data": [
        ({"messages": chat(ABOUT[0]), "answers": [ABOUT[1]], "document": PASSAGE},
         row("messages", ABOUT, passage=PASSAGE)),
        ({"messages": chat("Where are the bees?"), "answers": ["On her roof.", "Roof."], "document": PASSAGE},
         row("messages", ("Where are the bees?", "On her roof."), passage=PASSAGE)),
    ],
    "nvidia/HelpSteer2": [
        ({"prompt": RIVER[0], "response": RIVER[1], "helpfulness": 4, "coherence": 4}, row("question–answer", RIVER)),
        ({"prompt": SALT[0], "response": SALT[1], "helpfulness": 3, "coherence": 4}, row("question–answer", SALT)),
    ],
    "nvidia/Llama-Nemotron-Post-Training-Dataset": [
        ({"input": chat(RIVER[0]), "output": RIVER[1], "category": "chat", "system_prompt": "detailed thinking off"},
         row("question–answer", RIVER, system="detailed thinking off")),
        ({"input": chat(*SALT, MORE[0]), "output": MORE[1], "category": "chat", "system_prompt": ""},
         row("question–answer", SALT, 2, system="")),
    ],
    "rajpurkar/squad": [
        ({"id": "1", "title": "Mara", "context": PASSAGE, "question": ABOUT[0],
          "answers": {"text": ["honey"], "answer_start": [40]}}, Row("question–answer", ABOUT[0], PASSAGE, "honey")),
        ({"id": "2", "title": "Mara", "context": PASSAGE, "question": "Where are the bees?",
          "answers": {"text": ["on her roof", "roof"], "answer_start": [16, 23]}},
         Row("question–answer", "Where are the bees?", PASSAGE, "on her roof")),
    ],
    "glaiveai/glaive-function-calling-v2": [
        ({"system": "SYSTEM: You have access to functions.", "chat": f"USER: How warm is it?\n\n\nASSISTANT: {CALL}"},
         Row("transcript", "How warm is it?", "", CALL.removesuffix(" <|endoftext|>"),
             "SYSTEM: You have access to functions.", 0, "has a tool call")),
        ({"system": "SYSTEM: You have no functions.",
          "chat": f"USER: {RIVER[0]}\n\n\nASSISTANT: {RIVER[1]} <|endoftext|>\n\n\n"},
         row("transcript", RIVER, system="SYSTEM: You have no functions.")),
    ],
    "Salesforce/xlam-function-calling-60k": [
        ({"id": 1, "query": "How warm is it?", "answers": '[{"name": "weather"}]', "tools": '[{"name": "weather"}]'},
         Row("question–answer", "How warm is it?", "", '[{"name": "weather"}]', None, 0, "offers tools")),
        ({"id": 2, "query": "Is it wet?", "answers": '[{"name": "weather"}]', "tools": '[{"name": "weather"}]'},
         Row("question–answer", "Is it wet?", "", '[{"name": "weather"}]', None, 0, "offers tools")),
    ],
    "OpenAI messages with tools": [
        ({"messages": [{"role": "user", "content": "How warm is it?"},
                       {"role": "assistant", "content": None, "tool_calls": [WEATHER]},
                       {"role": "tool", "tool_call_id": "1", "content": "12"},
                       {"role": "assistant", "content": "It is 12 degrees."}]},
         Row("messages", "How warm is it?", "", None, None, 2, "has a tool call")),
        ({"messages": [*chat(*RIVER)]}, row("messages", RIVER)),
    ],
    "Team-ACE/ToolACE": [
        ({"system": "You can call functions: weather.",
          "conversations": [*share("How warm is it?", '[weather(city="Oslo")]', names="user assistant"),
                            {"from": "tool", "value": "12"}]},
         Row("ShareGPT", "How warm is it?", "", '[weather(city="Oslo")]', "You can call functions: weather.", 1,
             "has a tool call")),
        ({"system": "You can call functions: weather.", "conversations": share(*RIVER, names="user assistant")},
         row("ShareGPT", RIVER, system="You can call functions: weather.")),
    ],
    "liuhaotian/LLaVA-Instruct-150K": [
        ({"id": "1", "image": "door.jpg", "conversations": share("<image>\nWhat is it?", "A door.")},
         Row("ShareGPT", "<image>\nWhat is it?", "", "A door.", None, 0, "has an image or another file")),
        ({"id": "2", "image": None, "conversations": share(*RIVER)}, row("ShareGPT", RIVER)),
    ],
    "HuggingFaceH4/llava-instruct-mix-vsft": [
        ({"messages": [{"role": "user", "content": [QUESTION, PICTURE]},
                       {"role": "assistant", "content": [{**QUESTION, "text": "A door."}]}]},
         Row("messages", "What is on the picture?", "", "A door.", None, 0, "has an image or another file")),
        ({"messages": [{"role": " User ", "content": [{**QUESTION, "text": RIVER[0]}]},
                       {"role": "ASSISTANT", "content": [{**QUESTION, "text": RIVER[1]}]}]}, row("messages", RIVER)),
    ],
}  # fmt: skip
