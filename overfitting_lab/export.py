"""Export a trained network as one file for use elsewhere, with normalization inside; load and compare such files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from datamodules import CIFAR10DataModule
from datamodules.batch import to_network
from datamodules.images import SIZE
from lightning_modules import ImageClassifier
from lightning_modules.errors import ModelError
from overfitting_lab.runs import Run
from overfitting_lab.runs.checkpoints import load_checkpoint
from overfitting_lab.runs.files import replace_file

IMAGES = 1000  # to compare a file on
TOLERANCE = 1e-4  # of a probability; another order of float32 sums changed none by more than 2e-6
BATCH = 64  # images at a time: VGG16 at 224x224 needs about 2 GiB for their activations
ONNX = ("onnx", "onnxscript", "onnxruntime")
ONNX_REMEDY = "pip install -e '.[onnx]'"


class Trust(NamedTuple):
    """The result of a run on its test images, as far as it is known: how far to trust the network."""

    images: str  # how many were tested, and of which data
    acc: float  # fraction of 1
    confidence: float | None = None  # mean largest probability, in [0, 1]
    calibration_error: float | None = None  # expected calibration error over 15 bins, in [0, 1]

    @property
    def sentence(self) -> str:
        """The result in words."""
        text = f"On {self.images}, this network's accuracy was {self.acc:.1%}"
        if self.confidence is not None:
            text += f", with a mean confidence of {self.confidence:.1%}"
        error = self.calibration_error
        return f"{text}{'' if error is None else f' (calibration error {error:.3f})'}."


def trust_of(run: Run, temperature: float = 1.0) -> Trust | None:
    """Return the test result of a run, at a temperature; ``None`` if the run was not tested."""
    test = run.summary.test
    if test is None:
        return None
    images = f"{run.summary.tested_on} test images of {run.summary.data.name}"
    if temperature == 1:
        return Trust(images, test.acc, test.confidence, test.calibration_error)
    return Trust(images, test.acc, None, test.calibration_error_at_temperature)


class Predictor(NamedTuple):
    """A trained network, from a run or from an exported file."""

    classes: Sequence[str]  # names of the classes, in the order of the probabilities
    # maps uint8 images [N, 3, 32, 32], RGB in [0, 255], to probabilities, float32 [N, classes]
    network: Callable[[Tensor], Tensor]
    trust: Trust | None = None  # None if it is unknown

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32 [N, classes], of any number of images, uint8 [N, 3, 32, 32]."""
        with torch.inference_mode():
            return torch.cat([self.network(part) for part in torch.split(images, BATCH)])

    def best(self, images: Tensor, number: int) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image with their probabilities, most probable first."""
        values, places = self.probabilities(images).topk(min(number, len(self.classes)))
        return [
            [(self.classes[place], value) for value, place in zip(*row, strict=True)]
            for row in zip(values.tolist(), places.tolist(), strict=True)
        ]


class Portable(nn.Module):
    """A network that maps raw images, uint8 [N, 3, 32, 32], to probabilities, float32 [N, classes].

    It resizes, crops (for the policy ``vgg``) and normalizes as ``data`` did in training, and divides the logits by the
    temperature.
    """

    def __init__(self, model: ImageClassifier, data: CIFAR10DataModule, temperature: float) -> None:
        super().__init__()
        self.network = model.network.to(memory_format=torch.contiguous_format)  # torch warns of saving others
        self.register_buffer("mean_std", torch.tensor([data.mean, data.std]))
        self._augmentation = data.augmentation
        self._probabilities = model.probabilities
        self._temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities; see the class."""
        logits = self.network(to_network(images, self._augmentation, self.get_buffer("mean_std")))
        return _at_temperature(self._probabilities(logits), self._temperature)


def _at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Return the probabilities at a temperature, by which logits are divided. The network may end in a softmax."""
    if temperature == 1:
        return probabilities
    smallest = torch.finfo(probabilities.dtype).tiny
    return (probabilities.clamp(min=smallest).log() / temperature).softmax(dim=1)


def _load(checkpoint: Path, trusted: str | None = None) -> tuple[ImageClassifier, CIFAR10DataModule]:
    """Return the network in float32 on the CPU, and the data module that it was trained with."""
    data = CIFAR10DataModule.load_from_checkpoint(checkpoint, weights_only=True)
    return ImageClassifier.from_checkpoint(checkpoint, trusted), data


def _from_checkpoint(
    path: Path, classes: Sequence[str], temperature: float = 1.0, trusted: str | None = None
) -> Predictor:
    model, data = _load(path, trusted)
    return Predictor(
        classes, lambda images: _at_temperature(model.predict_step(data.network_input(images)), temperature)
    )


def load_predictor(path: Path) -> Predictor:
    """Load a run's best checkpoint, or a file that :func:`export` wrote.

    A file ends in ``.pth``, ``.pt2`` or ``.onnx``. A ``.pt2`` can run code when it is loaded, as torch says of the
    format: load only files that you trust. The network that a run's ``config.yaml`` names is imported.

    Raises:
        ModelError: if the file is damaged or foreign, or ONNX Runtime is missing.
        RunError: if the folder is no run, or the run has no checkpoint.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in _READERS or path.is_dir():
        run = Run(path)
        checkpoint, classes = run.best_checkpoint, run.summary.data.classes
        predictor = _from_checkpoint(checkpoint, classes, trusted=run.settings.get("model"))
        return predictor._replace(trust=trust_of(run))
    if not path.is_file():
        raise ModelError(f"{path}: no such file; make it from a run: python scripts/export.py RUN")
    try:
        return _READERS[kind](path)
    except ModelError:
        raise
    except Exception as error:  # torch and ONNX Runtime raise almost anything for a damaged file
        raise ModelError(
            f"{path} is damaged, or was not written by scripts/export.py; make it again: python scripts/export.py RUN"
        ) from error


def _read_pth(path: Path) -> Predictor:
    content = load_checkpoint(path)
    predictor = _from_checkpoint(path, content["classes"], content.get("temperature", 1.0))
    return predictor._replace(trust=_read_trust(content.get("trust")))


def _read_trust(text: str | None) -> Trust | None:
    """Return what an exported file says of its test; files of earlier versions say nothing."""
    return Trust(**json.loads(text)) if text else None


def _read_pt2(path: Path) -> Predictor:
    extra = {"classes": "", "trust": ""}
    with ZipFile(path) as archive:  # torch would load changed bytes as weights, and log other defects
        ours = any(name.endswith("/extra/classes") for name in archive.namelist())
        if not ours or archive.testzip() is not None:
            raise ValueError("foreign, or damaged")
    network = torch.export.load(path, extra_files=extra).module()
    return Predictor(json.loads(extra["classes"]), network, _read_trust(extra["trust"]))


def _read_onnx(path: Path) -> Predictor:
    if find_spec("onnxruntime") is None:
        raise ModelError(f"{path} needs ONNX Runtime: {ONNX_REMEDY}; or give model.pth or model.pt2")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # by default it uses all cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return Predictor(
        json.loads(metadata["classes"]),
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        _read_trust(metadata.get("trust")),
    )


_READERS = {"pth": _read_pth, "pt2": _read_pt2, "onnx": _read_onnx}


def _write_pth(checkpoint: Path, texts: Mapping[str, str], temperature: float, path: Path) -> None:
    """Write only what is needed to build the network again and to prepare its images."""
    model, data = _load(checkpoint)
    content = load_checkpoint(checkpoint)
    exported = {name: content[name] for name in ("hparams_name", "hyper_parameters", "pytorch-lightning_version")}
    settings = {name: getattr(data, name) for name in ("augment", "image_size", "mean", "std")}  # not the data's folder
    exported |= {"datamodule_hyper_parameters": settings, "state_dict": model.state_dict()}
    exported |= {"classes": json.loads(texts["classes"]), "temperature": temperature, "trust": texts["trust"]}
    torch.save(exported, path)


def _write_program(checkpoint: Path, texts: Mapping[str, str], temperature: float, path: Path) -> None:
    """Write the network as a program, which needs no code of this project."""
    network = Portable(*_load(checkpoint), temperature).eval()
    example = (torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),)  # with one image, the batch would have a fixed size
    if path.suffix == ".pt2":
        with torch.no_grad():
            exported = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        torch.export.save(exported, path, extra_files=dict(texts))
        return
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, **names)
    assert program is not None
    program.model.metadata_props.update(texts)
    program.save(path, external_data=False)


_WRITERS = {"pth": _write_pth, "pt2": _write_program, "onnx": _write_program}
FORMATS = tuple(_WRITERS)


def export(
    run: Run,
    checkpoint: Path,
    data: CIFAR10DataModule,
    formats: Sequence[str] | None,
    *,
    calibrated: bool = False,
) -> Iterator[str]:
    """Write a run's checkpoint into ``export/`` in its folder, and compare each file before it gets its name.

    The files are compared on 1,000 test images spread over ``data``, the run's data, or on all if there are fewer. By
    default all of :data:`FORMATS` that can be written here are written. ``calibrated`` divides the logits by the
    temperature in the run's summary (Guo et al. 2017, sec. 4.2).

    Yields:
        One readable line per file: how well it agrees with the checkpoint, or why it is missing.

    Raises:
        ModelError: if a format cannot be written, or its file disagrees with the checkpoint.
        DataError: if the data cannot be had.
        RunError: if the run has no temperature.
    """
    temperature = run.temperature if calibrated else 1.0
    without_onnx = any(find_spec(package) is None for package in ONNX)
    if without_onnx and formats and "onnx" in formats:
        raise ModelError(f"ONNX needs more packages: {ONNX_REMEDY}")
    classes = run.summary.data.classes
    data.prepare_data()
    data.setup("test")
    number = len(data.test_indices)
    places = torch.arange(min(IMAGES, number)) * number // min(IMAGES, number)
    images = data.images.test_images[data.test_indices[places]].permute(0, 3, 1, 2)
    trust = trust_of(run, temperature)
    texts = {"classes": json.dumps(classes), "trust": json.dumps(trust._asdict()) if trust else ""}
    reference = _from_checkpoint(checkpoint, classes, temperature).probabilities(images)
    for kind in formats or FORMATS:
        path = run.files.export / f"model.{kind}"
        if kind == "onnx" and without_onnx:
            yield f"{path}: not written, it needs more packages: {ONNX_REMEDY}"
            continue
        with TemporaryDirectory(prefix=".export-", dir=run.folder) as scratch:
            new = Path(scratch) / path.name
            try:
                _WRITERS[kind](checkpoint, texts, temperature, new)
            except RuntimeError as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                others = " ".join(other for other in FORMATS if other != kind)
                raise ModelError(f"{path} was not written: {reason}; the others are: --formats {others}") from error
            agrees, how = compare(load_predictor(new).probabilities(images), reference)
            if not agrees:
                raise ModelError(
                    f"{path} was not written, it disagrees with the checkpoint: {how}; "
                    "try other versions of torch and of the format's packages, or another of --formats"
                )
            run.files.export.mkdir(exist_ok=True)
            replace_file(path, new.replace)
        yield f"{path}: {how}"


def compare(answers: Tensor, reference: Tensor) -> tuple[bool, str]:
    """Tell if two networks agree by their probabilities, float32 [N, classes], and describe how well.

    They agree if no probability differs by more than ``TOLERANCE`` and each image has the same class. Classes whose
    probabilities differ by at most ``TOLERANCE`` count as the same.
    """
    difference = (answers - reference).abs().max()
    named = answers.argmax(dim=1, keepdim=True)
    lost = reference.max(dim=1).values - reference.gather(1, named)[:, 0]
    equal = int((named[:, 0] == reference.argmax(dim=1)).sum())
    how = f"{len(answers):,} images, largest difference of a probability {difference:.1e}, the same class for {equal:,}"
    return bool(difference <= TOLERANCE) and bool((lost <= TOLERANCE).all()), how  # NaN does not agree
