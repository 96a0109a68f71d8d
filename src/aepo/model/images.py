"""`ImageEncoding` turns the images of a problem into tokens of its prompt, patches and positions.

It serves the models of Qwen's interface: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and what shares it. An image takes as many
tokens as its patches, merged, and the model's own `get_rope_index` gives each token a position on three axes.
"""

from __future__ import annotations

import inspect
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo.errors import InvalidValue, require
from aepo.tasks.images import Image
from aepo.types import Pixels, Prompt, PromptVision

# Images that can be named by their hash: a control that trains again on rows of earlier steps keeps only the hashes.
KNOWN = 2**16
# Bytes of patches that are kept, so that an image is not read again for each pass of a step.
KEPT = 2**30

# What the names of the files of images in a checkpoint begin with.
FILE = "image-"
# Names of configurations for the tokens that stand for what is no text. An answer must not hold them.
PLACES = ("image_token_id", "video_token_id", "audio_token_id")
WANTED = "a model of text, or one of images with Qwen's interface (Qwen2-VL, Qwen2.5-VL, Qwen3-VL)"


@dataclass
class ImageEncoding:
    """`ImageEncoding` is an image processor with what the model's configuration says of images."""

    processor: Any
    """The image processor of transformers."""
    tokenizer: Any
    """The tokenizer of the model."""
    config: Any
    """The configuration of the model."""
    files: tuple[str, ...] = ()
    """Further files of the model that say how other programs process its images; they are copied when it is saved."""
    _known: OrderedDict[str, Image] = field(default_factory=OrderedDict, repr=False)
    _pixels: OrderedDict[str, Pixels] = field(default_factory=OrderedDict, repr=False)

    @property
    def token(self) -> int:
        """Return the token that stands for a merged patch."""
        return int(self.config.image_token_id)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Return the tokens that stand for what is no text."""
        found = (getattr(self.config, name, None) for name in PLACES)
        return tuple(sorted({token for token in found if isinstance(token, int)}))

    @property
    def mark(self) -> str:
        """Return what stands for an image in a plain prompt: its token, between those of start and end."""
        names = ("vision_start_token_id", "image_token_id", "vision_end_token_id")
        ids = [getattr(self.config, name, None) for name in names]
        return "".join(self.tokenizer.convert_ids_to_tokens([token for token in ids if token is not None]))

    @property
    def _merged(self) -> int:
        """Return how many patches become one token."""
        return int(self.processor.merge_size) ** 2

    def save(self, folder: Path) -> None:
        """Write the image processor, and what other programs want beside it."""
        self.processor.save_pretrained(folder)
        for file in map(Path, self.files):
            if file.parent.resolve() != folder.resolve():
                shutil.copyfile(file, folder / file.name)

    # --- tokens ----------------------------------------------------------------------------------------------

    def count(self, image: Image, where: str = "image") -> int:
        """Return the number of tokens of an image; only its size matters.

        Raises:
            InvalidValue: The processor refuses the size.
        """
        width, height = image.size
        try:
            return int(self.processor.get_number_of_image_patches(height, width, {})) // self._merged
        except ValueError as error:
            raise InvalidValue(where, f"an image of {width} x {height}", f"another size ({error})") from None

    def expanded(self, tokens: Sequence[int], images: Sequence[Image], where: str) -> tuple[int, ...]:
        """Return the tokens of a prompt with as many image tokens at each place as its image has.

        Args:
            tokens: The tokens, with one image token for each image.
            images: The images.
            where: The prompt, for messages.

        Raises:
            InvalidValue: The places and the images are not equally many, or a text spells the token of an image.
        """
        found = [token for token in tokens if token in self.places]
        fits = len(found) == len(images) and all(token == self.token for token in found)
        names = ", ".join(self.tokenizer.convert_ids_to_tokens(list(self.places)))
        wanted = f"a prompt whose text does not spell {names}, and whose template shows each image once"
        require(fits, where, f"{len(found)} such tokens and {len(images)} images", wanted)
        counts = iter([self.count(image, where) for image in images])
        return tuple(t for token in tokens for t in ((token,) * next(counts) if token == self.token else (token,)))

    def collapsed(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens with a single image token in place of a run of them, for people to read."""
        pairs = zip((None, *tokens), tokens, strict=False)
        return [token for before, token in pairs if not token == before == self.token]

    def example(self) -> Image:
        """Return a small image, for the check of a model."""
        from PIL import Image as Pillow

        return Image.of(Pillow.linear_gradient("L").resize((64, 48)), "example")

    # --- pixels ----------------------------------------------------------------------------------------------

    def remember(self, images: Sequence[Image]) -> tuple[str, ...]:
        """Return the hashes of these images, by which `pixels` then finds them."""
        for image in images:
            self._known[image.digest] = image
            self._known.move_to_end(image.digest)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        return tuple(image.digest for image in images)

    def keep(self, folder: Path, digests: Iterable[str]) -> None:
        """Write the images with these hashes, without loss, for `recall`."""
        for digest in digests:
            self._image(digest).load().save(folder / f"{FILE}{digest}.png")

    def recall(self, folder: Path) -> None:
        """Remember the images that `keep` wrote into the folder."""
        files = sorted(folder.glob(f"{FILE}*.png"))
        self.remember([Image.of(file.read_bytes(), str(file)) for file in files])

    def _image(self, digest: str) -> Image:
        if digest not in self._known:
            raise RuntimeError(f"an image was asked for that no prompt of this process has: {digest[:12]}")
        return self._known[digest]

    def pixels(self, digest: str) -> Pixels:
        """Return the patches of an image.

        Raises:
            RuntimeError: No image with this hash was remembered.
        """
        if digest not in self._pixels:
            made = self.processor(images=[self._image(digest).load()], return_tensors="pt")
            grid = tuple(made["image_grid_thw"][0].tolist())
            self._pixels[digest] = Pixels(made["pixel_values"], grid, digest)
        self._pixels.move_to_end(digest)
        held = sum(kept.patches.nbytes for kept in self._pixels.values())
        while held > KEPT and len(self._pixels) > 1:
            held -= self._pixels.popitem(last=False)[1].patches.nbytes
        return self._pixels[digest]

    def look(self, model: Any, prompt: Prompt) -> PromptVision:
        """Return what the model needs of a prompt besides its tokens, on the CPU."""
        images = tuple(self.pixels(digest) for digest in prompt.images)
        return PromptVision(images, self.positions(model, prompt.tokens, images))

    def positions(self, model: Any, tokens: Sequence[int], images: Sequence[Pixels]) -> Tensor:
        """Return the positions of a prompt's tokens, [3, L]: those of the model's own `get_rope_index`."""
        ids = torch.tensor([list(tokens)])
        if not images:
            return torch.arange(len(tokens)).expand(3, -1)
        index = model.base_model.get_rope_index
        grids = torch.tensor([image.grid for image in images])
        kinds = {"mm_token_type_ids": (ids == self.token).int()}  # older versions find the images by their tokens
        further = {k: v for k, v in kinds.items() if k in inspect.signature(index).parameters}
        found: Tensor = index(input_ids=ids, image_grid_thw=grids, attention_mask=torch.ones_like(ids), **further)[0]
        return found[:, 0].long()


def check_interface(model: Any) -> None:
    """Refuse a model of images that this package cannot run.

    Raises:
        InvalidValue: The model has no `get_rope_index`, no vision tower or no image token.
    """
    ours = hasattr(model.base_model, "get_rope_index") and tower(model) is not None
    fits = ours and isinstance(getattr(model.config, "image_token_id", None), int)
    require(fits, "model", type(model).__name__, WANTED)


def tower(model: Any) -> Any:
    """Return the vision tower of a model, with the layers that map it to the text model; None without one."""
    return getattr(model.base_model, TOWER, None)


TOWER = "visual"
"""The name of the vision tower inside the model."""


def tower_layer(name: str) -> bool:
    """Return whether a module of this dotted name belongs to the vision tower."""
    return TOWER in name.split(".")
