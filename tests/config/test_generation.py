"""Sampling defaults: GLM-4's own where the folder is silent, else the folder's word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glm_mlx.config import GenerationDefaults, read_generation_config
from glm_mlx.errors import ConfigError

DEFAULTS = GenerationDefaults(temperature=0.8, top_p=0.8)


def read(folder: Path, data: object) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(data))
    return read_generation_config(folder)


def test_absent_file(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == DEFAULTS
    assert read_generation_config(tmp_path / "absent") == DEFAULTS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, DEFAULTS),
        ({"_from_model_config": True, "max_length": 20, "temperature": None}, DEFAULTS),
        ({"eos_token_id": 3}, GenerationDefaults(eos_token_ids=(3,))),
        ({"eos_token_id": [3, 5, 3]}, GenerationDefaults(eos_token_ids=(3, 5))),
        ({"repetition_penalty": 1.1}, GenerationDefaults(repetition_penalty=1.1)),
        (
            {"do_sample": True, "temperature": 0.8, "top_p": 0.8, "eos_token_id": [151329]},
            GenerationDefaults(eos_token_ids=(151329,)),
        ),
        ({"do_sample": True}, GenerationDefaults(temperature=1.0, top_p=None)),
        ({"temperature": 0.6}, GenerationDefaults(temperature=0.6, top_p=None)),
        ({"top_p": 0.95}, GenerationDefaults(temperature=1.0, top_p=0.95)),
        ({"top_k": 50, "min_p": 0.1}, GenerationDefaults(1.0, None, 50, 0.1)),
        ({"do_sample": False, "temperature": 0.8}, GenerationDefaults(0.0, None)),
        ({"do_sample": False}, GenerationDefaults(temperature=0.0, top_p=None)),
    ],
)
def test_what_the_file_says(tmp_path: Path, data: object, expected: GenerationDefaults) -> None:
    assert read(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"temperature": -1}, "temperature is -1; expected a number from 0 to 100"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is true"),
        ({"top_p": 0}, "top_p is 0; expected a number from"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 2.5}, "top_k is 2.5; expected an integer from 0"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"do_sample": 1}, "do_sample is 1; expected true or false"),
        ({"eos_token_id": "x"}, "eos_token_id holds 'x'"),
        ({"eos_token_id": []}, "eos_token_id is an empty list"),
        ([], "holds a list; expected a JSON object"),
    ],
)
def test_refusal(tmp_path: Path, data: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, data)
    assert said in str(caught.value)
    assert caught.value.file == str(tmp_path / "generation_config.json")


@pytest.mark.parametrize("damage", ["", "{", '{"temperature": NaN}', '{"top_k": 1, "top_k": 2}'])
def test_damage_is_an_error_and_never_a_default(tmp_path: Path, damage: str) -> None:
    (tmp_path / "generation_config.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"generation_config\.json: "):
        read_generation_config(tmp_path)


def test_link_to_nothing_is_damage(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="is a link to nothing"):
        read_generation_config(tmp_path)
