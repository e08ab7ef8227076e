"""A GGUF with an adapter added: tensor types, metadata, and the bases that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import tiny_models
from selfalign.errors import Resumable, UserError
from selfalign.export import gguf_model
from selfalign.model import sources
from selfalign.training import lora
from selfalign.training.settings import TrainingSettings

METADATA = gguf_model.Metadata("Alma (final)", "{{ 'ours' }}", 265, "terms")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("tiny") / "base", "llama", "chatml")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    model = lora.with_new_adapter(
        lora.load_base(base), TrainingSettings(rank=4, alpha=8, targets=["q_proj", "o_proj"]), seed=0
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn_like(value))
    lora.save_adapter(model, base.parent / "adapter", sources.resolve(str(base)), "card")
    return base.parent / "adapter"


def written(base: Path, adapter: Path, target: Path, kind: Any = "f16", **changes: Any) -> gguf.GGUFReader:
    source = next(base.glob("*.gguf"))
    metadata = gguf_model.Metadata(**{**{k: getattr(METADATA, k) for k in METADATA.__slots__}, **changes})
    gguf_model.write(source, adapter, base, target, kind, metadata)
    return gguf.GGUFReader(str(target))


def values(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize("chunk", [1 << 24, 1000])
def test_only_the_adapters_tensors_change(
    base: Path, adapter: Path, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_model, "_CHUNK", chunk)
    before = values(gguf.GGUFReader(str(next(base.glob("*.gguf")))))
    after = values(written(base, adapter, tmp_path / "m.gguf"))
    assert list(before) == list(after)
    for name, value in before.items():
        changed = not np.allclose(value, after[name], atol=2e-3)
        assert changed == name.endswith(("attn_q.weight", "attn_output.weight")), name
    # The order of the rows is proven by llama.cpp itself (test_export.py); rows of the output projection stay in place.
    tensors = gguf_model._Deltas(adapter, base)
    delta = tensors.of("blk.1.attn_output.weight")
    assert delta is not None
    expected = before["blk.1.attn_output.weight"] + delta(0, 64)
    np.testing.assert_allclose(after["blk.1.attn_output.weight"], expected, rtol=2e-3, atol=2e-3)


def test_weight_type_applies_to_matrices_only(base: Path, adapter: Path, tmp_path: Path) -> None:
    for kind, name, number in (("q8_0", "Q8_0", 7), ("f16", "F16", 1)):
        reader = written(base, adapter, tmp_path / f"{kind}.gguf", kind)
        assert reader.fields["general.file_type"].contents() == number
        for tensor in reader.tensors:
            assert tensor.tensor_type.name == ("F32" if len(tensor.shape) == 1 else name), tensor.name
    # A row that is no multiple of a block is kept in half precision.
    row = type("T", (), {"shape": np.array([48, 3]), "tensor_type": gguf.GGMLQuantizationType.F16})
    assert gguf_model._new_type(row, "q8_0", True) == gguf.GGMLQuantizationType.F16
    router = type("T", (), {"shape": np.array([64, 3]), "tensor_type": gguf.GGMLQuantizationType.F32})
    assert gguf_model._new_type(router, "q8_0", True) == gguf.GGMLQuantizationType.F32
    assert gguf_model._new_type(router, "q8_0", False) == gguf.GGMLQuantizationType.Q8_0


def test_metadata_is_replaced_and_tokenizer_kept(base: Path, adapter: Path, tmp_path: Path) -> None:
    old = gguf.GGUFReader(str(next(base.glob("*.gguf")))).fields
    new = written(base, adapter, tmp_path / "m.gguf").fields
    assert new["general.name"].contents() == "Alma (final)"
    assert new["tokenizer.chat_template"].contents() == "{{ 'ours' }}"
    assert new["general.license.name"].contents() == "terms"
    for key in old:
        if key.startswith(("llama.", "tokenizer.ggml.")):
            assert new[key].contents() == old[key].contents(), key
    assert "tokenizer.ggml.eot_token_id" not in new


def test_new_end_token_replaces_eos_and_keeps_the_old_as_eot(base: Path, adapter: Path, tmp_path: Path) -> None:
    new = written(base, adapter, tmp_path / "m.gguf", end=267).fields
    assert new["tokenizer.ggml.eos_token_id"].contents() == 267
    assert new["tokenizer.ggml.eot_token_id"].contents() == 265


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """Write a copy of the GGUF with other metadata or tensors."""
    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), "llama")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(key, field.contents(), *field.types)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    change(writer, tensors)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda w, t: w.add_uint16("split.count", 3), "f16", "several parts"),
        (lambda w, t: t.pop("blk.1.attn_q.weight"), "f16", r"no tensor 'blk\.1\.attn_q\.weight'"),
        (lambda w, t: t["blk.0.ffn_up.weight"].fill(1e6), "f16", "F16 cannot represent: use --type q8_0"),
    ],
)
def test_unsupported_base_is_refused(
    base: Path, adapter: Path, tmp_path: Path, change: Any, kind: Any, message: str
) -> None:
    changed = rewritten(next(base.glob("*.gguf")), tmp_path / "base.gguf", change)
    with pytest.raises(UserError, match=message):
        gguf_model.write(changed, adapter, base, tmp_path / "m.gguf", kind, METADATA)


def test_an_adapter_of_another_kind_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora is True, which is no plain LoRA"):
        written(base, tmp_path / "adapter", tmp_path / "m.gguf")


def test_full_disk_is_reported_before_writing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000}))
    with pytest.raises(Resumable, match=r"1,000 free\); free some space"):
        written(base, adapter, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
