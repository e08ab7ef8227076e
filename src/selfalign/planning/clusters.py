"""Parse the value of `plan --cluster`, such as gpus=2x8xH100,model=70b,network=400."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from selfalign.errors import UserError
from selfalign.planning import hardware
from selfalign.planning.hardware import Gpu, Shape
from selfalign.system.environment import expand_home
from selfalign.system.format import did_you_mean

_KEYS = ("gpus", "nodes", "model", "network")
_FORM = "write gpus=8xH100, and optionally nodes=2, model=70b, network=400, separated by commas"
_MOST_NODES, _MOST_GPUS, _MOST_GBIT = 10_000, 64, 100_000
_NETWORK = 400


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of identical nodes."""

    nodes: int
    gpus_per_node: int
    """GPUs of one node."""
    gpu: Gpu
    network: float
    """Bytes/s between nodes, in one direction."""
    model: str = ""
    """A size or a folder; empty for the recipe's model."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def text(self) -> str:
        """Return a text such as `2 nodes of 8 H100`."""
        return ("" if self.nodes == 1 else f"{self.nodes} nodes of ") + f"{self.gpus_per_node} {self.gpu.name}"


def parse(text: str) -> Cluster:
    """Return the cluster of the option's value.

    Raises:
        UserError: the value is malformed, or the GPU is unknown.
    """
    values = _pairs(text)
    if "gpus" not in values:
        raise UserError(f"--cluster {text!r} names no GPUs: {_FORM}")
    nodes, each, gpu = _gpus(values["gpus"])
    if "nodes" in values:
        if nodes is not None:
            raise UserError(f"--cluster: nodes={values['nodes']} and gpus={values['gpus']} both set the nodes: use one")
        nodes = _number("nodes", values["nodes"], _MOST_NODES)
    network = _number("network", values.get("network", str(_NETWORK)), _MOST_GBIT)
    return Cluster(nodes or 1, each, gpu, network / 8 * 1e9, values.get("model", ""))


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not value:
            raise UserError(f"--cluster {text!r}: {part.strip()!r} is not key=value; {_FORM}")
        if key not in _KEYS:
            raise UserError(f"--cluster: unknown key {key!r}; {did_you_mean(key, _KEYS)}")
        if key in pairs:
            raise UserError(f"--cluster: {key} is set twice ({pairs[key]} and {value})")
        pairs[key] = value
    return pairs


def _gpus(value: str) -> tuple[int | None, int, Gpu]:
    """Return (nodes or None, GPUs of a node, GPU) of `2x8xH100`, `8xH100` or `H100`."""
    *numbers, name = re.split(r"(?<=[0-9])x", value.lower())
    if len(numbers) > 2:
        raise UserError(f"--cluster gpus {value!r}: at most two numbers, nodes x GPUs per node, as in 2x8xH100")
    each = _number("gpus", numbers[-1], _MOST_GPUS) if numbers else 1
    nodes = _number("gpus (nodes)", numbers[0], _MOST_NODES) if len(numbers) == 2 else None
    known = {key.lower(): key for key in hardware.GPUS} | {key.lower(): gpu for key, gpu in hardware.ALIASES.items()}
    if name not in known:
        longer = [key for key in hardware.GPUS if name and key.lower().startswith(name)]
        near = [known[key] for key in difflib.get_close_matches(name, known, n=1, cutoff=0.8)]
        hint = " or ".join(longer or near)
        hint = f"did you mean {hint}?" if hint else f"known: {', '.join(hardware.GPUS)}"
        raise UserError(f"--cluster gpus {value!r}: unknown GPU {name.upper()!r}; {hint}")
    return nodes, each, hardware.GPUS[known[name]]


def _number(key: str, text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise UserError(f"--cluster {key}: {text!r} is not a number from 1 to {most:,}")
    return int(text)


def shape_of(name: str, recipe_model: str) -> Shape:
    """Return the shape of the model `name`, or of the recipe's model if it is empty.

    Raises:
        UserError: it is not a known size or a folder with a config.json.
    """
    model = name or recipe_model
    known = ", ".join(hardware.SHAPES)
    if not model:
        raise UserError(f"the recipe names no model: add model=70b to --cluster ({known}, or a Hugging Face folder)")
    if model == "embedded":
        if not name:
            raise UserError(
                f"the recipe's model is the embedded one: add model= to --cluster, for example model=70b ({known})"
            )
        model = "270m"
    if shape := hardware.SHAPES.get(model.lower()):
        return shape
    path = expand_home(model)
    if path.is_dir():
        return hardware.read_shape(path)
    where = "--cluster model" if name else "the recipe's model"
    hint = did_you_mean(model.lower(), hardware.SHAPES, "known: {}; or a Hugging Face folder")
    remedy = "" if name else "; add model=70b (or another size) to --cluster"
    raise UserError(f"{where} {model!r} is neither a known size nor a folder: {hint}{remedy}")
