"""Finding a network's state dict in whatever a training script saved, and what its keys mean.

Scripts wrap: the state dict into a checkpoint, the network into DataParallel or a Lightning module, a part of
it into another. A `Reading` is one way to take a file; the one that fits the network is looked for by its
keys and shapes, never guessed from a name alone.
"""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from torch import Tensor

from vistazo_export.checkpoints.torch_files import Contents, StoredTensor
from vistazo_export.checkpoints.unpickling import as_mapping
from vistazo_export.errors import WeightsError

TRANSPARENT = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""What torch's own wrappers put into a key, wherever the wrapped part stands; it changes nothing."""

WORDS = frozenset(
    {"model", "net", "network", "backbone", "encoder", "base_model", "classifier_model", "_model"}
)
"""What scripts call a network, or a part of one, inside of their own module."""

LEGACY_NAMES = (
    # DenseNet before torchvision 0.3, and still in its published files.
    (
        re.compile(
            r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_\w+|num_batches_tracked))"
        ),
        r"\1\2",
    ),
    # Vision transformers before torchvision 0.14.
    (re.compile(r"(.*\.mlp)\.linear_1\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(.*\.mlp)\.linear_2\.(weight|bias)"), r"\1.3.\2"),
)
"""How torchvision renames the keys of older files."""

ASIDE = re.compile(
    r"(.*\.)?(total_ops|total_params|n_averaged|num_batches_tracked|_extra_state|epoch|global_step)"
    r"|(.*\.)?\w*(loss|criterion)\w*(\..*)?"
    r"|(.*\.)?(optimi[sz]er\w*|\w*scheduler|(\w+_)?metrics?)(\..*)?"
    r"|(.*\.)?(train|val|valid|test|best)_(acc|accuracy|top|f1|auc|auroc|precision|recall|confusion)\w*(\..*)?"
    r"|(.*\.)?(AuxLogits|aux1|aux2)\..*",
    re.IGNORECASE,
)
"""Keys that play no part in inference, where the network does not have them: counters of profilers and
averaging, weights of losses, metrics, and the auxiliary heads, which only training uses."""

AVERAGED = re.compile(r"ema|swa|averag|shadow|teacher|momentum|target", re.IGNORECASE)
"""In the name of a state dict that is not the network's own, but derived from it while it was trained."""


DEEPEST = 100
"""Levels of wrapping after which nobody looks further: a pickle may nest millions."""


@dataclass(frozen=True)
class Found:
    """A dict with tensors, somewhere in a file."""

    path: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    unreadable: Mapping[str, str]
    """Why, by key."""


@dataclass(frozen=True)
class Reading:
    """One way to take the tensors of a file as those of a network."""

    name: str
    """What --state-dict-key takes; empty for the top level."""
    tensors: Mapping[str, StoredTensor]
    """By the network's own names."""
    unexpected: tuple[str, ...]
    """Keys that the network does not have."""
    aside: tuple[str, ...]
    """Of those that play no part, or are to be ignored."""
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.reshaped or self.unexpected or self.unreadable)

    @property
    def likeness(self) -> tuple[int, int]:
        """The more the likelier that it is the network's."""
        return len(self.tensors) - len(self.reshaped), -len(self.unexpected)


def found_in(contents: Contents) -> list[Found]:
    """Return every dict of tensors by name, however deep, those nearest to the top first."""
    found: list[Found] = []
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], object]] = [((), contents.root)]
    for _ in range(DEEPEST):
        below: list[tuple[tuple[str, ...], object]] = []
        for path, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            tensors: dict[str, StoredTensor] = {}
            unreadable: dict[str, str] = {}
            for key, entry in _entries(value):
                try:
                    tensor = contents.tensor(entry)
                except WeightsError as error:
                    unreadable[key] = str(error)
                    continue
                if tensor is not None:
                    tensors[key] = tensor
                else:
                    below.append(((*path, key), entry))
            if (tensors or unreadable) and as_mapping(value) is not None:
                found.append(Found(path, tensors, unreadable))
        level = below
    return found


def _entries(value: object) -> Iterator[tuple[str, object]]:
    mapping = as_mapping(value)
    if mapping is not None:
        # Numbered entries are an optimiser's.
        yield from ((key, entry) for key, entry in mapping.items() if isinstance(key, str))
    elif isinstance(value, list | tuple):
        yield from ((str(number), entry) for number, entry in enumerate(value))


def under(found: Sequence[Found], key: str) -> list[Found]:
    """Return what of `found` is meant by `key`: a dict, what it lies in, or a prefix of keys inside."""
    named = [each for each in found if ".".join(each.path) == key]
    inside = [each for each in found if ".".join(each.path).startswith(f"{key}.")]
    ending = [each for each in found if ".".join(each.path).endswith(f".{key}")]
    cut = [part for each in found if (part := _cut(each, key)) is not None]
    return named or inside or ending or cut


def _cut(found: Found, key: str) -> Found | None:
    """Return the tensors below the prefix `key`, given with or without the way to the dict; None for none."""
    for prefix in (key, key.removeprefix(".".join(found.path) + ".")):
        start = f"{prefix}."
        tensors = {k.removeprefix(start): each for k, each in found.tensors.items() if k.startswith(start)}
        if tensors:
            unreadable = {k: why for k, why in found.unreadable.items() if k.startswith(start)}
            return Found((*found.path, prefix), tensors, unreadable)
    return None


def readings(found: Found, expected: Mapping[str, Tensor], *, ignore: Sequence[str] = ()) -> list[Reading]:
    """Return the ways to take `found` as a state dict with keys `expected`: all that fit, else the best."""
    ignored = {key for key in found.tensors if _matches(key, ignore)}
    names = _cleaned([key for key in found.tensors if key not in ignored], expected)
    groups = _by_prefix(names, expected)
    required = {key for key in expected if not key.endswith(".num_batches_tracked")}
    complete = [prefix for prefix, group in groups.items() if required <= group.keys()]
    if complete:
        others = {key for prefix in complete for key in groups[prefix].values()}
        return [
            _reading(found, prefix, groups[prefix], expected, ignored, others, ignore) for prefix in complete
        ]
    best = max(groups, key=lambda prefix: (len(groups[prefix]), not prefix), default="")
    mapped = _completed(best, groups.get(best, {}), names, expected)
    return [_reading(found, "", mapped, expected, ignored, set(), ignore)]


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _cleaned(keys: Iterable[str], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the keys without torch's wrappers, each with the key as it stands in the file."""
    names: dict[str, str] = {}
    later: list[tuple[str, str]] = []
    for key in keys:
        parts = key.split(".")
        clean = ".".join(part for part in parts if part not in TRANSPARENT)
        if key in expected or clean == key or not clean:
            names[key] = key
        else:
            later.append((clean, key))
    for clean, key in later:
        # Where both are there, a wrapped network lies beside another: a prefix like any other.
        names[key if clean in names else clean] = key
    return names


def _by_prefix(names: Mapping[str, str], expected: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return by each prefix that can be cut off: the network's names, and whence they come."""
    groups: dict[str, dict[str, str]] = {}
    for name, key in names.items():
        parts = name.split(".")
        for start in range(len(parts)):
            own = _own_name(".".join(parts[start:]), expected)
            if own is not None:
                groups.setdefault(".".join(parts[:start]), {}).setdefault(own, key)
    return groups


def _own_name(name: str, expected: Mapping[str, Tensor]) -> str | None:
    """Return `name`, or what torchvision calls it today; None where the network has no such key."""
    if name in expected:
        return name
    for pattern, today in LEGACY_NAMES:
        if pattern.fullmatch(name):
            renamed = pattern.sub(today, name)
            return renamed if renamed in expected else None
    return None


def _completed(
    prefix: str, group: Mapping[str, str], names: Mapping[str, str], expected: Mapping[str, Tensor]
) -> dict[str, str]:
    """Add to the keys under `prefix` those of parts that are wrapped in another way, or not at all."""
    mapped = dict(group)
    used = set(group.values())
    parts = prefix.split(".") if prefix else []
    for length in range(len(parts), -1, -1):
        start = "".join(f"{part}." for part in parts[:length])
        for name, key in names.items():
            if key in used or not name.startswith(start):
                continue
            own = _without_words(name.removeprefix(start), expected)
            if own is not None and own not in mapped:
                mapped[own] = key
                used.add(key)
    return mapped


def _without_words(name: str, expected: Mapping[str, Tensor]) -> str | None:
    """Return the network's name for a key with as few of scripts' words cut out of it as will do."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if part in WORDS][:6]
    for count in range(len(places) + 1):
        for cut in combinations(places, count):
            own = _own_name(".".join(part for i, part in enumerate(parts) if i not in cut), expected)
            if own is not None:
                return own
    return None


def _reading(
    found: Found,
    prefix: str,
    mapped: Mapping[str, str],
    expected: Mapping[str, Tensor],
    ignored: set[str],
    others: set[str],
    ignore: Sequence[str],
) -> Reading:
    used = set(mapped.values())
    left = [key for key in found.tensors if key not in used and key not in others]
    aside = tuple(key for key in left if key in ignored or ASIDE.fullmatch(key))
    tensors = {own: found.tensors[key] for own, key in mapped.items()}
    counters = {own for own in tensors if own.endswith(".num_batches_tracked")}
    return Reading(
        name=".".join([*found.path, *([prefix] if prefix else [])]),
        tensors=tensors,
        unexpected=tuple(key for key in left if key not in aside),
        aside=aside,
        # Files from before torch 0.4.1 lack these counters, which play no part in inference.
        missing=tuple(k for k in expected if k not in tensors and not k.endswith(".num_batches_tracked")),
        reshaped=tuple(
            own
            for own, tensor in tensors.items()
            if tensor.shape != tuple(expected[own].shape) and own not in counters
        ),
        unreadable={
            key: why
            for key, why in found.unreadable.items()
            if not _matches(key, ignore) and not ASIDE.fullmatch(key)
        },
    )


def choose(all_readings: Sequence[Reading]) -> tuple[Reading, list[Reading]]:
    """Return the reading to take, and the others that would fit as well.

    Of several that fit, a network's own weights come before averages of them, and the outer before the inner.
    """
    fitting = [reading for reading in all_readings if reading.fits]
    if not fitting:
        return max(all_readings, key=lambda reading: reading.likeness), []
    first = min(fitting, key=lambda reading: bool(AVERAGED.search(reading.name)))
    return first, [reading for reading in fitting if reading is not first]
