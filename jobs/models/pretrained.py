"""A local folder of a model in Hugging Face's format: where it is, and that it is the same. Pure: no torch in here."""

from pathlib import Path

from jobs.errors import SpecError
from jobs.hashing import digest_file, digest_json
from jobs.spec.model import HuggingFaceModel, Model

CONFIG_FILE = "config.json"


def located(model: Model) -> Model:
    """The same model, its folder, if it has one, by its absolute path: whoever builds it may work elsewhere."""
    if not isinstance(model, HuggingFaceModel) or model.args.path is None:
        return model
    path = str(Path(model.args.path).absolute())
    return model.model_copy(update={"args": model.args.model_copy(update={"path": path})})


def digest_folder(folder: Path) -> str:
    """The SHA-256 (hex) over the names and contents of configuration and weights.

    Raises SpecError unless they are there, the weights as safetensors: pickled ones are never read.
    """
    if not folder.is_dir():
        raise SpecError.at("model.args.path", "no such folder; nothing is downloaded", str(folder), "a local folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / CONFIG_FILE).is_file() or not weights:
        raise SpecError.at(
            "model.args.path",
            "the folder holds no model",
            str(folder),
            f"a folder with {CONFIG_FILE} and *.safetensors; pickled weights (*.bin) are not read",
        )
    return digest_json([[path.name, digest_file(path)] for path in (*sorted(folder.glob("*.json")), *weights)])
