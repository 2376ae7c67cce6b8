"""A checkpoint to export: where each of its components comes from."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from telecine.errors import SourceError
from telecine.families import FAMILIES
from telecine.families.ltx2.gemma import gemma_names
from telecine.json_files import read_json
from telecine.lora import Lora, split_scale
from telecine.safetensors_files import weight_files
from telecine_export import hub
from telecine_export.checkpoints.checkpoint import Checkpoint, NoTensors
from telecine_export.checkpoints.lora import FusedLoras
from telecine_export.checkpoints.renamed import Renamed
from telecine_export.checkpoints.together import Together
from telecine_export.components import CONFIG_FILE, SCHEDULER_FILE, Component, FileComponent, FolderComponent, open_file
from telecine_export.families.ltx_video.releases import check_widths, holds, recognise, release_of

NETWORKS = ("text_encoder", "transformer", "vae")
FURTHER = ("connectors", "audio_vae", "vocoder")  # of models that have them
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")  # the last is Gemma's


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint on this machine's disk.

    `root` is a folder in diffusers' layout or a single file; `components` has those that do not lie in folders of
    `root`; `loras` are added to the transformer.
    """

    root: Path
    pipeline_class: str
    components: Mapping[str, Component] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()

    def config(self, component: str) -> dict[str, Any]:
        """The component's configuration as the checkpoint ships it, or as its tensors tell it."""
        return self.component(component).config()

    def checkpoint(self, component: str | None, also: str | None = None) -> Checkpoint:
        """The component's tensors, by diffusers' names, and those of another beside them; None has none."""
        if component is None:
            return NoTensors()
        if also is not None:
            return Together([self.checkpoint(component), self.checkpoint(also)])
        checkpoint = self.component(component).checkpoint()
        if component == "text_encoder" and (names := gemma_names(checkpoint.names())):
            return Renamed(checkpoint, names)
        if component == "transformer" and self.loras:
            return FusedLoras(checkpoint, self.loras, self._lora_name)
        return checkpoint

    def component(self, name: str) -> Component:
        """Where a component comes from."""
        config_file = SCHEDULER_FILE if name.endswith("scheduler") else CONFIG_FILE
        return self.components.get(name) or FolderComponent(self.root / name, config_file)

    def _lora_name(self, name: str) -> str:
        """diffusers' name of a layer that a LoRA file names."""
        own = (family for family in FAMILIES.values() if self.pipeline_class in family.pipelines)
        return next(own, FAMILIES["ltx-video"]).naming.rename(name)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.component("tokenizer").origin

    def describe(self) -> list[str]:
        """A line for each network and LoRA file: where it comes from and how it is stored.

        Raises:
            SourceError: a file is missing or damaged.
        """
        lines = []
        further = [name for name in FURTHER if self.component(name).origin.exists()]
        added = ("latent_upsampler",) if "latent_upsampler" in self.components else ()
        for name in (*NETWORKS, *further, *added):
            component = self.component(name)
            with component.checkpoint() as checkpoint:
                lines.append(f"{name}: {component.origin} ({checkpoint.formats()})")
        return lines + [f"lora: {lora.file} (times {lora.scale:g})" for lora in self.loras]


def open_source(
    source: str,
    *,
    revision: str | None = None,
    transformer: str | None = None,
    vae: str | None = None,
    text_encoder: str | None = None,
    loras: Sequence[str] = (),
) -> Source:
    """Find a checkpoint: a folder, a single file, or a hub id that is downloaded into (or found in) the hub's cache.

    Args:
        source: a folder in diffusers' layout, its hub id, or a `.safetensors` file with a transformer and a VAE.
        revision: of a hub id.
        transformer, vae, text_encoder: in place of the source's: a component's or a pipeline's folder, a hub id, a
            `.safetensors` file, or for the transformer a GGUF file. A file of a hub repository is `OWNER/NAME/FILE`.
        loras: files to fuse into the transformer, each as `FILE` or `FILE=SCALE`.

    Raises:
        SourceError: something is not there, not reachable, or not in a form that can be read.
    """
    given = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
    overrides = {name: override for name, override in given.items() if override is not None}
    opened = _base(source, revision, overrides)
    components = dict(opened.components)
    for name, override in overrides.items():
        components |= _override(name, override, opened)
    opened = replace(opened, components=components, loras=tuple(map(parse_lora, loras)))
    if opened.root.is_file() and "tokenizer" not in components:
        raise SourceError(
            f"{text_encoder} has no tokenizer",
            expected="a folder or hub id with T5 and its tokenizer, as the single file has neither",
            fix="Pass --text-encoder a pipeline's folder, or put tokenizer.json or spiece.model into T5's folder.",
        )
    if overrides:
        check_widths(
            {name: opened.config(name) for name in NETWORKS}, {name: opened.component(name).origin for name in NETWORKS}
        )
    return opened


def parse_lora(text: str) -> Lora:
    """`FILE` or `FILE=SCALE`; FILE may be a folder with one file in it, or a file on the hub.

    Raises:
        SourceError: no such file, or a scale that is no finite number.
    """
    name, scale = split_scale(text)
    path = _path(name, None)
    if path is None:
        raise _absent(name, "a LoRA file")
    return Lora(file=weight_files(path)[0] if path.is_dir() else path, scale=scale)


def _base(source: str, revision: str | None, overrides: Collection[str]) -> Source:
    """The source itself; of a hub's repository, without the weights that `overrides` replace."""
    path = _path(source, revision)
    if path is None and hub.HUB_ID.fullmatch(source):
        path = hub.download(source, revision, set(hub.COMPONENT_FOLDERS).difference(overrides))
    elif path is not None and revision is not None and not hub.HUB_FILE.fullmatch(source):
        raise SourceError(
            f"--revision {revision} with the {'folder' if path.is_dir() else 'file'} {source}",
            expected="a hub id, which has revisions",
            fix="Leave --revision out, or name the model by its hub id.",
        )
    if path is None:
        raise _absent(source, "a folder in diffusers' layout, a .safetensors file")
    if path.is_file():
        return _single_file(path, has_text_encoder="text_encoder" in overrides)
    index = read_json(path / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise SourceError(
            f"{path / 'model_index.json'} names no pipeline class",
            expected="a `_class_name`",
            fix="Save the pipeline again with diffusers' save_pretrained.",
        )
    return Source(root=path, pipeline_class=index["_class_name"])


def _single_file(file: Path, *, has_text_encoder: bool) -> Source:
    """An original file: transformer and VAE by their keys, the rest of the release that has both."""
    with open_file(file) as checkpoint:
        missing = [part for part in ("transformer", "vae") if not holds(part, checkpoint)]
        if missing:
            raise SourceError(
                f"{file} has no {' and no '.join(missing)}",
                expected="a source with a transformer and a VAE of LTX-Video",
                fix="Name a whole model as SOURCE, and pass this file as --transformer or --vae.",
            )
        found = {name: recognise(name, checkpoint) for name in ("transformer", "vae")}
    if not has_text_encoder:
        raise SourceError(
            f"{file} is a single file, which has no text encoder",
            expected="T5 and its tokenizer beside it",
            fix="Add --text-encoder SOURCE: a folder or hub id with text_encoder/ and tokenizer/.",
        )
    release = release_of(found["transformer"].config, found["vae"].config, file)
    parts: dict[str, Component] = {name: FileComponent(file, part.config, part.names) for name, part in found.items()}
    parts["scheduler"] = FileComponent(file, release.scheduler, {})
    return Source(root=file, pipeline_class=release.pipeline_class, components=parts)


def _override(name: str, given: str, base: Source) -> dict[str, Component]:
    """The component that takes the place of the base's; a text encoder brings its tokenizer, where it has one."""
    path = _path(given, None)
    if path is None and hub.HUB_ID.fullmatch(given):
        path = hub.download(given, None, {name, "tokenizer"} if name == "text_encoder" else {name})
        if not (path / name).is_dir():
            path = hub.download_root(given)
    if path is None:
        raise _absent(given, f"a folder or file with a {name.replace('_', ' ')}")
    if path.is_file():
        replaced = base.component(name)
        configured = replaced.origin.is_file() or (replaced.origin / CONFIG_FILE).is_file()
        with open_file(path) as checkpoint:
            part = recognise(name, checkpoint, also=[replaced.config()] if configured else [])
        return {name: FileComponent(path, part.config, part.names)}
    folder = path / name if (path / name).is_dir() else path
    parts: dict[str, Component] = {name: FolderComponent(folder)}
    if name == "text_encoder":
        homes = (path / "tokenizer", folder, folder.parent / "tokenizer")
        home = next((home for home in homes if any((home / file).is_file() for file in TOKENIZER_FILES)), None)
        parts |= {"tokenizer": FolderComponent(home)} if home else {}
    return parts


def _path(given: str, revision: str | None) -> Path | None:
    """A folder or file on this disk or, where `given` is a file of a hub repository, in the hub's cache."""
    path = Path(os.path.expanduser(given))  # Path.expanduser raises where ~NAME is no user
    if path.exists():
        return path
    on_hub = hub.HUB_FILE.fullmatch(given)
    return hub.download_file(on_hub[1], on_hub[2], revision) if on_hub else None


def _absent(given: str, expected: str) -> SourceError:
    return SourceError(
        f"{given} does not exist",
        expected=f"{expected} or a hub id such as Lightricks/LTX-Video",
        fix="Check the path.",
    )
