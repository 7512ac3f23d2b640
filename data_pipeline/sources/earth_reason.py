"""EarthReason as published: `{train,val,test}/{images,labels,QAs}`, an image, a mask `labels/NAME.png` and questions `QAs/NAME.json` each.

As the official SegEarth-R1 reads it (`ReasonSegDataset`): a JSON file is `{"questions": [...], "answer": [...]}`, foreground is where the
label is not zero, an empty `answer` says that the image holds no target. Where the JSON file has labelme's `shapes`, their polygons
(filled with their outline, as labelme and `cv2.fillPoly` do) stand in for the label image.

Every question becomes an annotation `NAME/NUMBER`; the official code trains and tests with the first of each image, `NAME/0`. Question n
is answered by answer n, in turn where there are fewer answers: "Sure, it is [SEG]. ANSWER".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.annotation import Annotation, Rejection, check_count, check_text, file_inside, read_json, shown
from data_pipeline.schema import Tags
from data_pipeline.sources.answers import NO_TARGET, masks_answer
from data_pipeline.sources.source import Source
from data_pipeline.targets import MaskImage, Polygons, Target, read_band
from segearth_r2_jax.errors import UserError

SPLITS = ("train", "val", "test")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_TAGS = Tags(reasoning="implicit")


def present(folder: Path) -> tuple[str, ...]:
    """The splits that `folder` holds; UserError if there is none."""
    found = tuple(split for split in SPLITS if _part(folder, split, "QAs").is_dir())
    if not found:
        raise UserError(f"{folder}: holds none of train/QAs, val/QAs, test/QAs; expected the EarthReason layout")
    return found


def read(folder: Path, split: str) -> Iterator[Annotation | Rejection]:
    """One annotation per question, images in the order of their names; images and question files without their counterpart are rejected."""
    if split not in present(folder):
        raise UserError(f"{_part(folder, split, 'QAs')}: no such folder; expected the EarthReason layout")
    images = _by_stem(_part(folder, split, "images"), _IMAGE_SUFFIXES)
    questions = _by_stem(_part(folder, split, "QAs"), (".json", ".txt"))
    for stem in sorted(images.keys() | questions.keys()):
        files = [*questions.get(stem, ()), *images.get(stem, ())]
        if len(questions.get(stem, ())) != 1 or len(images.get(stem, ())) != 1:
            yield Rejection(str(files[0]), f"expected one image and one file of questions called {stem}, found {_listed(files)}")
            continue
        yield from _read_file(folder, split, *files)


def _read_file(folder: Path, split: str, file: Path, image: Path) -> Iterator[Annotation | Rejection]:
    try:
        content = read_json(file, dict, "an object of questions and answer")
        questions, answers = (_texts(content, key, str(file)) for key in ("questions", "answer"))
        if not questions:
            raise UserError(f"{file}: has no questions")
        file_inside(file.parent, file.name, str(file), "file", "file")
        file_inside(image.parent, image.name, str(file))
        targets = _targets(content, bool(answers), folder, split, file)
    except UserError as error:
        yield Rejection.from_error(str(file), error)
        return
    label = _part(folder, split, "labels") / f"{file.stem}.png"
    for number, question in enumerate(questions):
        name = f"{file}: question {number}"
        answer = f"{masks_answer(1)} {answers[number % len(answers)].strip()}".strip() if answers else NO_TARGET
        try:
            check_count(answer, targets, name)
            if not question.strip():
                raise UserError(f"{name}: is empty")
        except UserError as error:
            yield Rejection.from_error(name, error)
            continue
        yield Annotation(
            name=name,
            record_id=f"{file.stem}/{number}",
            source=file.relative_to(folder).as_posix(),
            image_name=image.relative_to(folder).as_posix(),
            image_path=image,
            instruction=question.strip(),
            answer=answer,
            targets=targets,
            tags=_TAGS,
            # Where there is no target, the label was read to see that it says so, too.
            also_from=() if targets or not label.is_file() else (label,),
        )


def _targets(content: Mapping[str, Any], expected: bool, folder: Path, split: str, file: Path) -> tuple[Target, ...]:
    """The one target, or none where none is `expected`; UserError where shapes or label say something else than the answer."""
    name = str(file)
    if "shapes" in content:
        rings = tuple(_labelme_ring(shape, f"{name}: shape {number}") for number, shape in enumerate(_list(content, "shapes", name)))
        if bool(rings) != expected:
            raise UserError(f"{name}: has {len(rings)} shapes, but its answer {'names a target' if expected else 'is empty'}")
        return (Polygons(rings, edges=True, size=_labelme_size(content, name)),) if rings else ()
    labels = _part(folder, split, "labels")
    if expected:
        return (MaskImage(file_inside(labels, f"{file.stem}.png", name, "label", "label")),)
    label = labels / f"{file.stem}.png"
    if label.is_file() and read_band(file_inside(labels, label.name, name, "label", "label"), f"{name}: {label}").any():
        raise UserError(f"{name}: its answer is empty, which says that there is no target, but {label} marks one")
    return ()


def _labelme_ring(shape: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(shape, Mapping):
        raise UserError(f"{name}: expected an object of label and points, it is {type(shape).__name__}")
    kind = shape.get("shape_type", "polygon")
    points = _list(shape, "points", name)
    if shape.get("label") == "ignore":
        raise UserError(f"{name}: is labelled 'ignore'; a mask cannot leave open what belongs to it")
    if kind == "rectangle" and len(points) == 2 and all(isinstance(point, list) and len(point) == 2 for point in points):
        (x0, y0), (x1, y1) = points
        return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    if kind != "polygon":
        raise UserError(f"{name}: shape_type must be polygon or rectangle, it is {shown(kind)}")
    return tuple(tuple(point) if isinstance(point, list) else point for point in points)


def _labelme_size(content: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    size = tuple(content.get(key) for key in ("imageHeight", "imageWidth"))
    if size == (None, None):
        return None
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise UserError(f"{name}: imageHeight and imageWidth must be positive whole numbers")
    return size


def _texts(content: Mapping[str, Any], key: str, name: str) -> list[str]:
    texts = _list(content, key, name)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}: {key} {number} must be a text, it is {type(text).__name__}")
        check_text(text, f"{key} {number}", name)
    return texts


def _list(content: Mapping[str, Any], key: str, name: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise UserError(f"{name}: {key} must be a list, it is {'missing' if value is None else type(value).__name__}")
    return value


def _part(folder: Path, split: str, part: str) -> Path:
    """`SPLIT/PART`, or `SPLIT/SPLIT/PART`, which unpacking `SPLIT.zip` within `SPLIT` makes of it."""
    direct, nested = folder / split / part, folder / split / split / part
    return nested if nested.is_dir() and not direct.is_dir() else direct


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the EarthReason layout")
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in suffixes:
            found.setdefault(file.stem, []).append(file)
    return found


def _listed(files: list[Path]) -> str:
    return ", ".join(f"{file.parent.name}/{file.name}" for file in files)


SOURCE = Source(
    name="earth_reason",
    title="EarthReason",
    home="https://huggingface.co/datasets/earth-insights/EarthReason",
    licence="Apache-2.0",
    splits=SPLITS,
    present=present,
    read=read,
)
