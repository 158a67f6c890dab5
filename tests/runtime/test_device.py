import os
import platform
import subprocess
import sys
import threading

import pytest
import torch

from distillab.errors import ConfigError
from distillab.runtime import device
from distillab.runtime.device import (
    Compute,
    choose_compute,
    cpu_threads,
    has_fast_bfloat16,
    keep_memory,
    release_memory,
)


def test_auto_takes_the_best_device_there_is():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_compute("auto").device.type == expected


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:3", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        choose_compute(name)
    assert caught.value.where == "device"


def test_a_process_counts_the_cores_that_it_may_use(monkeypatch):
    assert device.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr("os.sched_getaffinity")
    assert device.usable_cores() == os.cpu_count()


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


class CLibrary:
    """Takes the calls that glibc would get."""

    def __init__(self, largest=2**31 - 1):
        self.largest = largest
        self.thresholds = {}
        self.num_trims = 0

    def mallopt(self, parameter, value):
        if value > self.largest:
            return 0
        self.thresholds[parameter] = value
        return 1

    def malloc_trim(self, pad):
        self.num_trims += 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_only_a_run_that_is_to_be_deterministic_on_a_gpu_takes_slower_algorithms(deterministic, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set below is taken away again
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    with device.computing(Compute(torch.device("cuda"), None, deterministic=deterministic), None):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (
            not deterministic,
            deterministic,
        )
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
    with device.computing(Compute(torch.device("cpu"), None, deterministic=deterministic), None):
        assert not torch.are_deterministic_algorithms_enabled()


TRIM, MMAP = -1, -3  # as malloc.h numbers them
KEPT = {MMAP: 2**30, TRIM: -1}
USUAL = {MMAP: 2**25, TRIM: 2**26}


@pytest.fixture
def library(monkeypatch):
    found = CLibrary()
    monkeypatch.setattr(device, "_tunable_glibc", lambda: found)
    return found


def test_memory_is_kept_inside_and_goes_back_to_the_system_at_the_end(library):
    with keep_memory():
        assert library.thresholds == KEPT
        assert not library.num_trims
    assert library.thresholds == USUAL
    assert library.num_trims == 1


def test_memory_is_kept_to_the_end_of_the_outermost_block(library):
    with keep_memory():
        with pytest.raises(ZeroDivisionError), keep_memory():
            raise ZeroDivisionError
        assert library.thresholds == KEPT
    assert library.thresholds == USUAL


def test_memory_is_kept_to_the_end_of_the_last_threads_block(library):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with keep_memory():
            entered.set()
            leave.wait(timeout=60)

    thread = threading.Thread(target=other)
    with keep_memory():
        thread.start()
        assert entered.wait(timeout=60)
    assert library.thresholds == KEPT
    leave.set()
    thread.join()
    assert library.thresholds == USUAL


def test_memory_can_be_given_back_in_between_and_is_kept_again(library):
    with keep_memory():
        release_memory()
        assert library.num_trims == 1
        assert library.thresholds == KEPT


def test_an_older_library_keeps_what_it_can(library):
    library.largest = 2**25
    with keep_memory():
        assert library.thresholds == {MMAP: 2**25, TRIM: -1}


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(device, "_tunable_glibc", lambda: None)
    with keep_memory():
        release_memory()


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_users_own_thresholds_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1000000")
    assert device._tunable_glibc.__wrapped__() is None


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35),
    reason="the C library is not glibc 2.35 or newer, which keeps tensors of any size",
)
def test_the_pages_of_freed_tensors_serve_the_next_ones():
    program = """
import resource, torch
from distillab.runtime.device import keep_memory
def fresh_pages(number):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # 64 MiB: glibc by itself maps it and gives it back. Each is a page smaller than the one before: an aligned block of
    # the very same size may miss by some bytes the place that was left, if a small object has settled beside it.
    torch.ones(2**24 - 1024 * number)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
usual = [fresh_pages(number) for number in range(5)]
with keep_memory():
    kept = [fresh_pages(number) for number in range(5)]
print(min(usual), min(kept))
"""
    words = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name not in device._TUNED_BY}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    usual, kept = map(int, done.stdout.split())
    assert usual > 10 * (kept + 1)
