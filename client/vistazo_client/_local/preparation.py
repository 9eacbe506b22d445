"""Preparation: the recipes that a client knows, and the images that its threads prepare by them. No waiting.

Nothing here is public.
"""

import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from vistazo_client._channel import Link
from vistazo_client._codec import Entry, Query, encode_entry
from vistazo_client._images import MESSAGE_OVERHEAD_BYTES, image_name, take_image
from vistazo_client._local.pool import Pool
from vistazo_client._local.recipe import NotToldError, Recipe, read_recipe
from vistazo_client.errors import (
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    LocalPreprocessingWarning,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnsupportedError,
    VistazoError,
)
from vistazo_proto import classification_pb2 as pb

# A server refuses what was prepared in another way than it does, and so tells when to ask again. This is for
# what it cannot tell: that it is now one that says how it prepares images, or is no more.
ASK_AGAIN_SECONDS: Final = 60.0

# What images that are taken ahead may hold of memory: arrays and PIL images are as large as their pixels.
AHEAD_BYTES: Final = 256 << 20

# After this a rollout may have reached all replicas.
MIXED_SECONDS: Final = 10.0

NOT_OF_ALL: Final = (DeadlineExceededError, OverloadedError)
"""Where asking fails so, an image of a stream goes as it is, in what is left of its time: the others may fare
better."""

_NOT_OFFERED: Final = (UnsupportedError, PermissionDeniedError)

_Key = tuple[str, str]
Ask = pb.GetModelRequest | pb.ListModelsRequest


@dataclass(frozen=True, slots=True)
class _Known:
    recipe: Recipe | None
    """None: the server prepares the images of this model."""
    until: float


class Preparation:
    """What preprocessing at the client takes, but for the calls."""

    def __init__(self, *, max_message_bytes: int) -> None:
        self.max_message_bytes: Final = max_message_bytes
        self.pool: Final = Pool()
        self._known: dict[_Key, _Known] = {}
        self._refused: dict[_Key, str] = {}
        """The id that was refused, until it is known what holds instead."""
        self._told: set[tuple[_Key, str]] = set()

    def is_enough(self, images: int, held: int) -> bool:
        """Return whether so many images, of so many bytes, are enough to take before the first is ready."""
        # With two for each thread none of them waits for work.
        return images > 2 * self.pool.threads or (held > AHEAD_BYTES and images > 1)

    def knows(self, query: Query) -> bool:
        """Return whether there is no need to ask."""
        known = self._known.get(_key(query))
        return known is not None and time.monotonic() < known.until

    def recipe(self, query: Query) -> Recipe | None:
        """Return what is known; None: images go as they are."""
        known = self._known.get(_key(query))
        return None if known is None else known.recipe

    def question(self, query: Query) -> Ask:
        """Return what to ask of the server. Only of a model with a name it can tell one version."""
        if query.model:
            return pb.GetModelRequest(name=query.model, version=query.version)
        return pb.ListModelsRequest()

    def learn(self, query: Query, answer: pb.Model | pb.ListModelsResponse | VistazoError) -> None:
        """Take note of the answer to the question, or of why there is none.

        Raises the error when it would be that of any other call. Warns where images will go as they are.
        """
        recipe, key, seconds = None, _key(query), ASK_AGAIN_SECONDS
        try:
            max_bytes = self.max_message_bytes - MESSAGE_OVERHEAD_BYTES
            recipe = read_recipe(_answered(query, answer), max_bytes=max_bytes)
            if recipe.id == self._refused.pop(key, ""):
                # What one of them says does not hold for another. As they are, any takes them.
                recipe, seconds = None, MIXED_SECONDS
                self._tell(key, "its replicas prepare images in different ways now")
        except NotToldError as error:
            self._tell(key, str(error))
        except _NoAnswerError:
            # The server's answer to the images says it as it says it to everybody.
            self._known.pop(key, None)
            return
        self._known[key] = _Known(recipe, time.monotonic() + seconds)

    def forget(self, query: Query, refused: str) -> None:
        """Ask again before the next image: the server does not prepare as it said."""
        known = self._known.get(_key(query))
        if known is not None and known.recipe is not None and known.recipe.id == refused:
            self._known.pop(_key(query), None)
            self._refused[_key(query)] = refused

    def start(self, value: object, query: Query) -> Entry | Future[Entry]:
        """Return the entry for an image of the caller's, or the future of one that a thread prepares.

        What the caller does to an array or image afterwards changes nothing.
        """
        recipe = self.recipe(query)
        if recipe is None or isinstance(value, InvalidImageError):
            return encode_entry(value, max_message_bytes=self.max_message_bytes)
        name = image_name(value)
        try:
            source = take_image(value)
        except InvalidImageError as error:
            return Entry(name, error)
        return self.pool.submit(self._prepared, name, source, recipe)

    def again(self, entry: Entry, query: Query) -> Future[Entry]:
        """Return the future of an entry that the server refused, to be sent as it is."""
        self.forget(query, entry.prepared_as)
        return self.pool.submit(partial(encode_entry, entry.source, max_message_bytes=self.max_message_bytes))

    def _prepared(self, name: str, source: object, recipe: Recipe) -> Entry:
        message = recipe.prepare(source, self.pool.hold)  # type: ignore[arg-type]  # from take_image
        return Entry(name, message, source, recipe.id)

    def _tell(self, key: _Key, reason: str) -> None:
        if (key, reason) not in self._told:
            self._told.add((key, reason))
            model = f"model {key[0]!r}" if key[0] else "the model"
            warnings.warn(
                f"the images for {model} are prepared by the server: {reason}",
                LocalPreprocessingWarning,
                stacklevel=2,
            )


def pick_method(question: Ask) -> Callable[[Link[Any]], Any]:
    """Return the method of the server that answers a question, of a link."""
    name = "GetModel" if isinstance(question, pb.GetModelRequest) else "ListModels"
    return lambda link: getattr(link.service, name)


class _NoAnswerError(Exception):
    """Nothing is known, and nothing has to be said about it."""


def _key(query: Query) -> _Key:
    return query.model, query.version


def _answered(query: Query, answer: pb.Model | pb.ListModelsResponse | VistazoError) -> pb.Model:
    """Return the model that would answer. Raises NotToldError, _NoAnswerError or a VistazoError."""
    if isinstance(answer, _NOT_OFFERED):
        raise NotToldError(f"it does not say how it prepares images ({answer})")
    if isinstance(answer, ModelNotFoundError | InvalidRequestError):
        raise _NoAnswerError
    if isinstance(answer, VistazoError):
        raise answer
    models = [answer] if isinstance(answer, pb.Model) else list(answer.models)
    ready = [model for model in models if model.state == pb.READY and query.version in ("", model.version)]
    # Of several models none is the one to ask, and one that is loading says nothing yet.
    if not ready or len({model.name for model in models}) > 1:
        raise _NoAnswerError
    return max(ready, key=lambda model: int(model.version) if model.version.isdecimal() else 0)
