"""A configuration goes to the command line's form and back."""

from __future__ import annotations

import dataclasses

import pytest
from micro_run import micro_model, micro_run

from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.training.run_config import RunConfig


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=3.0, dropout=0.0)])
def test_there_and_back(lora):
    config = micro_run("shards", model=micro_model(lora=lora))
    assert RunConfig.from_config_dict(config.to_config_dict()) == config


def test_a_rank_switches_low_rank_adapters_on_and_zero_off():
    config = micro_run("shards")
    values = config.to_config_dict()
    values.model.phi.lora.rank = 4
    with_adapters = RunConfig.from_config_dict(values)
    assert with_adapters.model.phi.lora == LoraConfig(rank=4)
    values = with_adapters.to_config_dict()
    values.model.phi.lora.rank = 0
    assert RunConfig.from_config_dict(values) == config


def test_empty_fields_can_be_filled():
    values = micro_run("shards").to_config_dict()
    values.wandb_project, values.validation.batches, values.step.logits_chunk = "mine", 3, 64
    config = RunConfig.from_config_dict(values)
    assert (config.wandb_project, config.validation.batches, config.step.logits_chunk) == ("mine", 3, 64)
    assert dataclasses.replace(config.validation, batches=None) == micro_run("shards").validation
