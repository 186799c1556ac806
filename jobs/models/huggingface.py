"""Models of Hugging Face's transformers: from a configuration with random weights, or from a local folder.

The library is optional (`pip install thresher[hf]`). Nothing is downloaded, no code of a model's own is run, and no
pickled weights are read.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jobs.errors import SpecError
from jobs.models.inputs import require
from jobs.models.modules import present
from jobs.models.pretrained import digest_folder
from jobs.records import Signature
from jobs.spec.model import HuggingFaceArgs

_OF_THE_DATA = frozenset({"id2label", "label2id", "num_labels", "pad_token_id"})
"""What the data says, and no configuration."""
_OF_NO_MATTER = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)


class HuggingFaceModule(nn.Module):
    """Tokens (batch, steps) int64, 0 beyond the end → logits (batch, outputs), or (batch, steps, outputs)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lengths = (tokens != 0).sum(dim=1).clamp(min=1)
        mask = present(lengths, tokens.shape[1]).long()
        return self.model(input_ids=tokens, attention_mask=mask).logits

    def section(self) -> dict[str, Any]:
        """The `model:` section that builds this architecture again, from nothing but itself."""
        config = self.model.config
        # Those that the data decides where they are not written down.
        written = [_native(config, name) for name in ("vocab_size", "max_position_embeddings")]
        values = config.to_diff_dict() | {name: getattr(config, name) for name in written if hasattr(config, name)}
        kept = {name: value for name, value in values.items() if name not in _OF_THE_DATA | _OF_NO_MATTER}
        return {"name": "huggingface", "args": {"config": {"model_type": config.model_type, **kept}}}


def build_hugging_face(args: HuggingFaceArgs, signature: Signature) -> HuggingFaceModule:
    """A classifier, regressor or language model over tokens. Its random weights come from torch's random state.

    Raises SpecError if the library is missing, or there is no such model, or it does not fit the data.
    """
    require(signature, "huggingface", "tokens", per_step=True)
    try:
        import transformers
    except ImportError as error:
        raise SpecError.at(
            "model.name",
            "transformers is not installed",
            "huggingface",
            "any other model; or pip install 'thresher[hf]'",
        ) from error
    kind = transformers.AutoModelForCausalLM if signature.per_step else transformers.AutoModelForSequenceClassification
    with _quiet(transformers):
        if args.path is not None:
            model = _from_folder(transformers, kind, Path(args.path), signature)
        else:
            assert args.config is not None
            model = _from_config(transformers, kind, args.config, signature)
    return HuggingFaceModule(model.float())


def _from_config(transformers: Any, kind: Any, document: dict[str, Any], signature: Signature) -> Any:
    try:
        config = _make_config(transformers, document, signature)
        _suit(config, signature)
        return kind.from_config(config, trust_remote_code=False)
    except _refusals() as error:
        raise SpecError.at(
            "model.args.config", f"transformers makes no model of it: {_first_line(error)}", document
        ) from error


def _make_config(transformers: Any, document: dict[str, Any], signature: Signature) -> Any:
    values = dict(document)
    name = values.pop("model_type")
    if name not in transformers.CONFIG_MAPPING:
        raise _unknown("model_type", name, list(transformers.CONFIG_MAPPING))
    config_class = transformers.CONFIG_MAPPING[name]
    plain = config_class()
    known = set(plain.to_dict()) | set(plain.attribute_map)
    for key in values:
        if key in _OF_THE_DATA:
            raise SpecError.at(f"model.args.config.{key}", "the data decides this", values[key])
        if key not in known:
            raise _unknown(key, None, sorted(known - _OF_THE_DATA - _OF_NO_MATTER))
    values = {_native(plain, key): value for key, value in values.items()}
    codes = signature.num_codes[0]
    # RoBERTa counts positions from the padding's code on, so there is one more than there are steps.
    derived: dict[str, int | None] = {"vocab_size": codes, "max_position_embeddings": signature.input_shape[0] + 1}
    derived |= {"bos_token_id": None, "eos_token_id": None}
    named = {_native(plain, key): value for key, value in derived.items()}
    defaults = {key: value for key, value in named.items() if key in plain.to_dict()}
    config = config_class(**(defaults | values), pad_token_id=0)
    allowed = f"{codes}" if signature.per_step else f"at least {codes}"
    if config.vocab_size < codes or (signature.per_step and config.vocab_size != codes):
        raise SpecError.at("model.args.config.vocab_size", f"the data has {codes} codes", config.vocab_size, allowed)
    return config


def _from_folder(transformers: Any, kind: Any, folder: Path, signature: Signature) -> Any:
    digest_folder(folder)  # refuses what is no model
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        codes = signature.num_codes[0]
        if config.vocab_size < codes:
            raise SpecError.at(
                "model.args.path", f"the model knows {config.vocab_size} codes, and the data has {codes}", str(folder)
            )
        if getattr(config, "pad_token_id", None):
            raise SpecError.at(
                "model.args.path",
                f"the model pads with the code {config.pad_token_id}, and the data with 0",
                str(folder),
            )
        _suit(config, signature)
        model, found = kind.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the head is for other classes
            output_loading_info=True,
            **local,
        )
    except _refusals() as error:
        raise SpecError.at(
            "model.args.path", f"transformers reads no model from it: {_first_line(error)}", str(folder)
        ) from error
    _check_body(model, found, folder)
    if signature.per_step and config.vocab_size != signature.outputs:
        model.resize_token_embeddings(signature.outputs)
    return model


def _suit(config: Any, signature: Signature) -> None:
    """Sets what the data decides."""
    config.pad_token_id = 0
    config.use_cache = False
    if signature.per_step:
        if hasattr(config, "is_decoder"):
            config.is_decoder = True  # an encoder's attention, too, then looks to the left alone
    else:
        config.num_labels = signature.outputs


def _check_body(model: Any, found: dict[str, Any], folder: Path) -> None:
    """All but the head must come from the folder: random weights in place of trained ones would go unnoticed."""
    body = {name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")}
    other = {entry if isinstance(entry, str) else entry[0] for entry in found["mismatched_keys"]}
    if body and (body <= set(found["missing_keys"]) or body & other):
        raise SpecError.at(
            "model.args.path",
            f"the weights are not those of a {type(model).__name__} of this configuration",
            str(folder),
        )


def _native(config: Any, name: str) -> str:
    """A setting's name in one architecture: GPT-2 calls max_position_embeddings n_positions."""
    return config.attribute_map.get(name, name)


def _unknown(key: str, value: Any, known: list[str]) -> SpecError:
    near = difflib.get_close_matches(value or key, known, n=1)
    what = "is no architecture of transformers" if key == "model_type" else "unknown key"
    allowed = None if key == "model_type" else ", ".join(known)
    return SpecError.at(f"model.args.config.{key}", what, value, allowed, near[0] if near else None)


def _refusals() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
        RuntimeError,
        StrictDataclassError,
        SafetensorError,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
