import pytest
import torch

from distillab.errors import ConfigError
from distillab.runtime.device import choose_compute, cpu_threads, has_fast_bfloat16


def test_auto_takes_the_best_device_there_is():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_compute("auto").device.type == expected


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:3", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        choose_compute(name)
    assert caught.value.where == "device"


def test_precision_follows_the_hardware_unless_told():
    cpu = torch.device("cpu")
    auto = choose_compute("cpu", "auto").autocast_dtype
    assert auto == (torch.bfloat16 if has_fast_bfloat16(cpu) else None)
    assert choose_compute("cpu", "float32").autocast_dtype is None
    assert choose_compute("cpu", "bfloat16").autocast_dtype is torch.bfloat16


def test_bfloat16_runs_products_in_it_and_float32_does_not():
    a = torch.ones(4, 4)
    with choose_compute("cpu", "bfloat16").autocast():
        assert (a @ a).dtype is torch.bfloat16
    with choose_compute("cpu", "float32").autocast():
        assert (a @ a).dtype is torch.float32


def test_threads_are_set_for_a_while():
    before = torch.get_num_threads()
    with cpu_threads(1) as count:
        assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
