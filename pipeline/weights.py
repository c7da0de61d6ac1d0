"""The checkpoints that segmenters load: where each comes from, and whether a file is the one its name says.

A sha256 stands here only where independent projects that load the same URL give the same one; a file without one is
trusted when it first comes, and compared with itself from then on (``pipeline.download``).
"""

from dataclasses import dataclass
from pathlib import Path

import pooch

from pipeline.errors import PipelineError

_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
_DIRECTSAM = "https://huggingface.co/chendelong/DirectSAM-1800px-0424/resolve/main"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that lies somewhere on the web.

    Attributes:
        name: of the file on disk.
        url: None where nobody offers it any more, so that it has to be placed by hand.
        size_bytes: None where it is not known.
        sha256: 64 hexadecimal digits; None where none is known to be right.
    """

    name: str
    url: str | None
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file or files that ``masks.weights`` of params.yaml points to.

    Attributes:
        name: what ``pipeline.download`` calls it.
        what: for people.
        files: of which it consists.
        licence: for people.
        folder: below ``weights/`` where the files go; empty for ``weights/`` itself.
    """

    name: str
    what: str
    files: tuple[RemoteFile, ...]
    licence: str
    folder: str = ""


def _of_one_file(name: str, what: str, folder_url: str, file_name: str, size_bytes: int, sha256: str) -> Checkpoint:
    file = RemoteFile(file_name, f"{folder_url}/{file_name}", size_bytes, sha256)
    return Checkpoint(name, what, (file,), licence="Apache-2.0")


CHECKPOINTS: tuple[Checkpoint, ...] = (
    _of_one_file(
        "sam-vit-b", "Segment Anything, ViT-B", _SAM, "sam_vit_b_01ec64.pth", 375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _of_one_file(
        "sam-vit-l", "Segment Anything, ViT-L", _SAM, "sam_vit_l_0b3195.pth", 1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _of_one_file(
        "sam-vit-h", "Segment Anything, ViT-H", _SAM, "sam_vit_h_4b8939.pth", 2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    _of_one_file(
        "sam2.1-hiera-tiny", "SAM 2.1, Hiera tiny", _SAM2, "sam2.1_hiera_tiny.pt", 156_008_466,
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    _of_one_file(
        "sam2.1-hiera-small", "SAM 2.1, Hiera small", _SAM2, "sam2.1_hiera_small.pt", 184_416_285,
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    _of_one_file(
        "sam2.1-hiera-base-plus", "SAM 2.1, Hiera base plus", _SAM2, "sam2.1_hiera_base_plus.pt", 323_606_802,
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    _of_one_file(
        "sam2.1-hiera-large", "SAM 2.1, Hiera large", _SAM2, "sam2.1_hiera_large.pt", 898_083_611,
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    Checkpoint(
        "directsam",
        "DirectSAM-1800px-0424, for SLIT",
        tuple(
            RemoteFile(name, f"{_DIRECTSAM}/{name}", size_bytes=None, sha256=None)
            for name in ("config.json", "preprocessor_config.json", "model.safetensors")
        ),
        licence="none stated",
        folder="DirectSAM-1800px-0424",
    ),
)  # fmt: skip


def how_to_get(name: str) -> str:
    """Say how to get the checkpoint NAME, such as ``sam-vit-b``: the end of a message to the user."""
    assert any(checkpoint.name == name for checkpoint in CHECKPOINTS), f"no checkpoint {name!r}"
    return f"run `python -m pipeline.download {name}`"


def checkpoint_with(file_name: str) -> Checkpoint | None:
    """Find the checkpoint that consists of one file called FILE_NAME, such as ``sam_vit_b_01ec64.pth``."""
    return next((c for c in CHECKPOINTS if len(c.files) == 1 and c.files[0].name == file_name), None)


def check_official(path: Path, sha256: str | None = None) -> None:
    """Refuse a file that bears the name of an official checkpoint and is another one: damaged, cut off, or mislabelled.

    Files with any other name pass.

    Args:
        path: an existing file.
        sha256: of its bytes, where the caller has read them already; otherwise they are read if the name is known.

    Raises:
        PipelineError: shows the sha256 found, the one expected, and how to get the right file.
    """
    checkpoint = checkpoint_with(path.name)
    expected = checkpoint.files[0].sha256 if checkpoint else None
    if checkpoint is None or expected is None:
        return
    found = sha256 or pooch.file_hash(str(path), alg="sha256")
    if found.lower() != expected:
        raise PipelineError(
            f"{path} has the sha256 {found}, but the official {path.name} has {expected}: move it away and"
            f" {how_to_get(checkpoint.name)}, or rename it if it is meant to be another checkpoint"
        )
