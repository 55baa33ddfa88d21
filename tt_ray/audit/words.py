"""The sections of an audit's page: figures with the words that say what they mean, and what they cannot."""

import shlex
from typing import Any

import numpy as np

import tt_ray
from tt_ray.audit.findings import Found, Options
from tt_ray.audit.noise import Interval, Noise
from tt_ray.audit.page import Page, Section, Table

_CLASSES = 100
"""Classes that a page shows, those with the most suspected labels; audit.json has all."""
_SUSPECTS = 50


def sections(found: Found, figures: dict[str, Any], options: Options) -> Page:
    """The whole page."""
    parts = [_labels(found, figures, options), _suspects(found, figures), _knows(found, figures), _captions(found)]
    parts += [_pairs(found)] if found.pairs is not None else []
    parts.append(Section("What was left out, replaced or missing", list(found.inputs.notes) or ["Nothing."]))
    made = f"{options.command} (tt-ray {tt_ray.__version__})"
    return Page(
        "Will it help? An audit of captions and labels",
        found.verdict.headline,
        list(found.verdict.evidence),
        parts,
        made,
    )


def per_cent(share: float | Interval) -> str:
    """A share, with its interval if it has one."""
    if isinstance(share, Interval):
        return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f} %)"
    return f"{100 * share:.1f} %"


def estimate(noise: Noise) -> str:
    """How many labels are wrong, and what that rests on."""
    if not noise.anchors:
        return "Wrong labels: not known, as classes have too few images."
    return (
        f"Wrong labels: {per_cent(noise.share)}, 95 % interval: of the {noise.anchors:,} images of whose class "
        "captions are surest, those with another label, less what may be mistakes of a model that saw few images of "
        "a class. That holds for all images as far as labels are wrong as often among hard images as among easy ones; "
        "where hard ones are labelled worse, more are wrong."
    )


def how_many_listed(figures: dict[str, Any]) -> str:
    """How many labels are probably wrong, next to how many the estimate says."""
    listed, known = figures["suspects"]["listed"], figures["knowledge"]
    text = f"Labels that are more likely wrong than right: {listed:,} of {known['images']:,}"
    estimated = round(known["noise"]["value"] * known["images"])
    if known["knows"] and estimated >= max(5, 2 * listed):
        text += f" (the estimate is about {estimated:,}: of the others captions do not show clearly which they are)"
    return text


def to_train(figures: dict[str, Any], table: str) -> str:
    """The options of a training on corrected labels."""
    return f"--data.labels {shlex.quote(table)}" + " --data.label_noise 0" * figures["knowledge"]["spoiled"]


def _labels(found: Found, figures: dict[str, Any], options: Options) -> Section:
    noise = found.learned.noise
    unknown = (
        "Captions do not know the classes, so that labels cannot be judged: these are figures of a model that guesses."
    )
    sentences = [] if found.learned.knows else [unknown]
    sentences += [
        estimate(noise),
        f"Confident learning's own estimate is {per_cent(noise.confident)}, mistakes of the model included. Its counts "
        "are the column suspected and the pairs of classes below. Suspects are judged one by one, and may be fewer.",
        "What captions cannot show: a wrong label whose caption was made from the label, or by the same mistake, looks "
        "right; and a caption of another image looks like a wrong label.",
        f"corrected.csv has the suggestions that are right with a probability of {options.corrected:g} or more "
        f"({figures['suspects']['corrected']:,}); --data.labels reads it, in train, compare, tune and here.",
    ]
    if figures["knowledge"]["spoiled"]:
        sentences.append(
            "It has the labels that data.label_noise made wrong, too: train with "
            f"{to_train(figures, 'corrected.csv')}, or they are replaced again, those that were corrected included."
        )
    classes = sorted(figures["classes"], key=lambda each: -(each["suspected"] or 0))
    rows = [
        (each["name"], each["images"], each["accuracy"], each["suspected"], *_noise_of(each["noise"]))
        for each in classes[:_CLASSES]
    ]
    head = (
        "class",
        "images",
        "predicted from captions",
        "suspected (confident joint)",
        "wrong among anchors",
        "95 % interval",
    )
    tables = [Table(head, rows, (2, 3, 4))]
    if figures["confusions"]:
        pairs = [(each["label"], each["likely"], each["images"]) for each in figures["confusions"]]
        tables.append(Table(("label", "captions say (confident joint)", "images"), pairs))
    if len(classes) > _CLASSES:
        sentences.append(
            f"The {_CLASSES} classes of {len(classes)} with the largest share of suspects; audit.json has all."
        )
    return Section("Labels", sentences, tables)


def _noise_of(own: dict[str, float] | None) -> tuple[float | None, str | None]:
    return (None, None) if own is None else (own["value"], f"{100 * own['low']:.0f} to {100 * own['high']:.0f} %")


def _suspects(found: Found, figures: dict[str, Any]) -> Section:
    suspects, images, texts = found.learned.suspects, found.inputs.images, found.inputs.texts
    listed = figures["suspects"]["listed"]
    count = min(_SUSPECTS, max(listed, 10))
    rows = []
    for place, row in enumerate(suspects.rows[:count].tolist()):
        names = (images.classes[images.labels[row]], images.classes[suspects.suggestion[place]])
        caption = None if texts is None else texts[row].as_py()
        rows.append(
            (images.ids[row].as_py(), *names, float(suspects.wrong[place]), float(suspects.right[place]), caption)
        )
    head = ("image", "label", "suggestion", "label is wrong", "suggestion is right", "caption")
    sentences = [
        f"{how_many_listed(figures)}. The first {count} of the ranking are below; suspects.csv and suspects.parquet "
        "have all of these, and at least the first hundred. Edit the column label (the name of a class, or nothing to "
        "leave the image out) and pass the file as --data.labels."
    ]
    return Section("Suspects", sentences, [Table(head, rows, (3, 4))])


def _knows(found: Found, figures: dict[str, Any]) -> Section:
    known, spread, guesses = found.knowledge, found.learned.directions, found.learned.guesses
    fitted = f"{guesses.folds}-fold cross-validation, logistic regression with C = {guesses.strength:.2g}"
    if guesses.fitted < (guesses.folds - 1) / guesses.folds * known.images * 0.9:
        fitted += f", fitted on a stratified sample of {guesses.fitted:,} images a fold"
    rows = [
        ("labels predicted from captions", per_cent(known.accuracy)),
        ("by naming the most frequent class", per_cent(known.majority)),
        ("from captions of other images (control)", per_cent(known.shuffled)),
        ("agreement of labels and predictions beyond chance (Cohen's kappa)", f"{known.agreement:.2f}"),
        (f"effective dimension of embeddings, of {found.inputs.store.dim}", f"{spread.effective:.1f}"),
        ("the same within classes", f"{spread.within:.1f}"),
        ("share of the variance within classes", per_cent(spread.left)),
    ]
    sentences = [
        f"{known.images:,} images of {known.classes:,} classes; {fitted}.",
        "What lies within classes is what captions say that labels do not. Labels that are probably wrong count for "
        f"their likeliest class there. Effective dimensions are participation ratios, over {spread.of:,} images.",
    ]
    return Section("What captions know", sentences, [Table(("", "value"), rows)])


def _captions(found: Found) -> Section:
    captions, near = found.captions, found.neighbours
    if captions is None:
        sentences = ["Only embeddings are known; name their captions in the data to see more here."]
        return Section("Captions", sentences, [])
    rows: list[tuple[object, ...]] = [
        ("images", captions.images),
        ("without a caption", captions.missing),
        ("different captions", captions.distinct),
        ("images whose caption another image has too", captions.shared),
        ("words: least, quartiles, most", ", ".join(map(str, captions.words))),
        ("captions with letters of (Unicode script, not language)", _scripts(captions.scripts)),
        ("captions that name the class of their label", None if captions.named is None else per_cent(captions.named)),
        ("captions with one of 5 words that only their class has", per_cent(captions.told)),
    ]
    if found.cut is not None:
        of = f" (of {found.cut.of:,} looked at)"
        rows.append((f"cut off at the encoder's {found.cut.limit} tokens", per_cent(found.cut.share) + of))
    else:
        rows.append(("cut off by the encoder", "not known: its tokenizer is not on this machine"))
    tables = [Table(("", "value"), rows)]
    if captions.common:
        tables.append(Table(("most frequent captions", "images"), captions.common))
    texts, images = found.inputs.texts, found.inputs.images
    if texts is not None and near.near:
        pairs = [
            (
                texts[one].as_py(),
                images.classes[images.labels[one]],
                texts[other].as_py(),
                images.classes[images.labels[other]],
                cosine,
            )
            for one, other, cosine in near.near
        ]
        tables.append(Table(("nearest captions with different labels", "label", "caption", "label", "cosine"), pairs))
    if texts is not None and near.odd:
        odd = [(texts[row].as_py(), images.ids[row].as_py(), cosine) for row, cosine in near.odd]
        tables.append(Table(("captions unlike any other", "image", "cosine of the nearest"), odd))
    return Section("Captions", [f"Nearest and odd captions are those of a sample of {near.of:,}."], tables)


def _scripts(scripts: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * share:.3g} %" for name, share in sorted(scripts.items(), key=lambda item: -item[1])
    )


def _pairs(found: Found) -> Section:
    assert found.pairs is not None
    columns = [found.pairs[name][:_SUSPECTS].to_pylist() for name in ("image_id", "label", "suspicion", "caption")]
    rows = list(zip(*columns, strict=True))
    spread = np.quantile(found.pairs["suspicion"].to_numpy(), [0.5, 0.95])
    sentences = [
        f"Images and captions that disagree with their neighbours (LEMoN, arXiv 2407.18941), of {found.compared:,} "
        "looked at, the worst first: a caption of another image, or an odd pair. Half of all have a suspicion below "
        f"{spread[0]:.2f}, and 95 % one below {spread[1]:.2f}. All are in pairs.csv and pairs.parquet.",
    ]
    return Section("Captions of other images", sentences, [Table(("image", "label", "suspicion", "caption"), rows)])
